"""kill -9 at any moment: what was acknowledged is there, what was not is whole or absent."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kronos import MemoryStore

KILLS = 100
STORES = 10

# Writes batches, edits and deletes for ever, and acknowledges each on stdout when it has returned.
WRITER = """
import itertools, json, sys
from kronos import MemoryStore, NewMemory
from kronos.settings import Settings

store = MemoryStore.open(sys.argv[1], embedding_model="hash", embedding_dim=64,
                         settings=Settings(batch_size=20))
def say(**done):
    sys.stdout.write(json.dumps(done) + "\\n")
    sys.stdout.flush()
say(ready=True)
for n in itertools.count():
    tag = f"{sys.argv[2]}-{n}"
    details = {"batch": tag}
    store.add_many(NewMemory(f"batch {tag} item number{i}", id=f"{tag}-{i}", metadata=details)
                   for i in range(20))
    say(batch=tag)
    store.update(f"{tag}-0", content=f"edited {tag}")
    say(edited=tag)
    if n % 3 == 2:
        store.delete(where={"batch": tag})
        say(deleted=tag)
    if n % 5 == 4:
        store.search("batch item", limit=3)
        store.close()
        store.connect()
"""


class Acknowledged:
    """What a writer said it had done, over all its lives."""

    def __init__(self) -> None:
        self.batches: set[str] = set()
        self.edited: set[str] = set()
        self.deleted: set[str] = set()

    def take(self, lines: list[str]) -> None:
        for line in lines:
            done = json.loads(line)
            for kind, seen in (
                ("batch", self.batches), ("edited", self.edited), ("deleted", self.deleted),
            ):  # fmt: skip
                if kind in done:
                    seen.add(done[kind])


def live_and_die(folder: Path, life: str, seconds: float) -> list[str]:
    """Run the writer for so long after it opened the store, kill it, and hear what it said."""
    command = [sys.executable, "-c", WRITER, str(folder), life]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        assert first, "the store did not open after a kill"
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        rest = process.stdout.read().splitlines(keepends=True)
    # The last line may have been cut by the kill.
    return [line for line in rest if line.endswith("\n")]


def assert_nothing_lost(folder: Path, said: Acknowledged) -> None:
    with MemoryStore.open(folder, embedding_model="hash", embedding_dim=64) as store:
        held: dict[str, dict[str, str]] = {}
        for memory in store.list(limit=10**6):
            held.setdefault(memory.metadata["batch"], {})[memory.id] = memory.content
        assert all(len(items) == 20 for items in held.values()), "half a batch"
        # A delete that was under way when the kill came is done or not done.
        unsure = said.batches - said.deleted - set(held)
        assert all(int(tag.rsplit("-", 1)[1]) % 3 == 2 for tag in unsure), "a lost batch"
        assert not said.deleted & set(held), "risen from the dead"
        for tag in said.edited & set(held):
            assert held[tag][f"{tag}-0"] == f"edited {tag}", "a lost edit"
        assert store.maintenance.check().problems == ()
        # Each text has words that no other has, so that it alone can come first.
        for tag in list(held)[-3:]:
            (best,) = store.search(held[tag][f"{tag}-7"], limit=1)
            assert best.id == f"{tag}-7"
        store.add("it still takes a write", id="probe", metadata={"batch": "probe"})
        store.delete("probe")


@pytest.mark.parametrize("number", range(STORES))
def test_a_killed_writer_loses_nothing_it_acknowledged(tmp_path: Path, number: int) -> None:
    chance = random.Random(number)
    said = Acknowledged()
    for life in range(KILLS // STORES):
        said.take(live_and_die(tmp_path, f"life{life}", chance.uniform(0, 0.25)))
    assert_nothing_lost(tmp_path, said)
    assert said.batches
