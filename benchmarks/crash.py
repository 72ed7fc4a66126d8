"""A mixed writer, killed at random moments: nothing acknowledged is lost, nothing comes back.

    python -m benchmarks.crash [--kills 1000] [--stores 10]

A child adds, replaces, edits and deletes batches, saves snapshots, compacts, and changes the model
step by step; after each kill the store is opened and compared with what was acknowledged. Prints
the counts, and how long it took from the open to the first right search.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

import kronos.index.faiss.flat  # noqa: F401  loaded once, for all children
from kronos import MemoryStore, NewMemory, Settings
from kronos.embedding.hashing import HashEmbedder
from kronos.errors import KronosError

_BATCH = 20
_LONGEST_LIFE_S = 0.25
_WIDTHS = (64, 96)
_FAULTS = (
    *("lost", "stale", "risen", "torn", "unknown"),
    *("not agreeing", "not opened", "no write"),
)


def open_store(folder: Path) -> MemoryStore:
    """The store, without an embedder."""
    return MemoryStore.open(folder, embedding_model=None)


class Writer:
    """What a child does until it is killed; each thing is announced, and acknowledged when done."""

    def __init__(self, folder: Path, life: int, pipe: BinaryIO) -> None:
        self._store = MemoryStore.open(
            folder,
            embedder=HashEmbedder(_WIDTHS[life // 20 % 2]),
            on_model_change="background",
            settings=Settings(snapshot_changes=50, snapshot_interval_s=0.01),
        )
        self._life = life
        self._pipe = pipe
        self._chance = random.Random(life)
        self._batches: list[str] = []

    def _say(self, **fields: Any) -> None:
        self._pipe.write(json.dumps(fields).encode() + b"\n")
        self._pipe.flush()

    def run(self) -> None:
        """Write until the end."""
        self._say(open=True)
        for number in range(10**9):
            name = f"life{self._life}-{number}"
            self._say(will="add", batch=name)
            self._store.add_many(_items(name, "first"))
            self._say(did="add", batch=name)
            self._batches.append(name)
            self._one_more(self._chance.choice(self._batches))

    def _one_more(self, batch: str) -> None:
        match self._chance.randrange(8):
            case 0:
                self._say(will="replace", batch=batch)
                self._store.add_many(_items(batch, "second"), on_conflict="replace")
                self._say(did="replace", batch=batch)
            case 1:
                self._say(will="delete", batch=batch)
                self._store.delete(where={"batch": batch}, namespace="*")
                self._say(did="delete", batch=batch)
                self._batches = [other for other in self._batches if other != batch] or [batch]
            case 2:
                self._store.search("first")
            case 3 if self._chance.random() < 0.2:
                self._store.maintenance.compact()
            case _:
                pass


def _items(batch: str, word: str) -> list[dict[str, Any]]:
    return [
        {"content": f"{word} {batch} {n}", "id": f"{batch}-{n}", "metadata": {"batch": batch}}
        for n in range(_BATCH)
    ]


class Witness:
    """What must be there: each batch's word, or None, and what was under way at the kill."""

    def __init__(self) -> None:
        self.words: dict[str, set[str | None]] = {}

    def hear(self, lines: list[bytes]) -> None:
        """Take what a child said before it was killed."""
        effect: dict[str, str | None] = {"add": "first", "replace": "second", "delete": None}
        for line in lines:
            said = json.loads(line)
            if "will" in said:
                self.words.setdefault(said["batch"], {None}).add(effect[said["will"]])
            if "did" in said:
                self.words[said["batch"]] = {effect[said["did"]]}


def live_and_die(folder: Path, life: int, seconds: float) -> list[bytes]:
    """Let a child write, kill it, and hear what it said."""
    readable, writable = os.pipe()
    if (pid := os.fork()) == 0:
        os.close(readable)
        warnings.simplefilter("ignore")
        with os.fdopen(writable, "wb") as pipe:
            try:
                Writer(folder, life, pipe).run()
            finally:
                os._exit(1)
    os.close(writable)
    with os.fdopen(readable, "rb") as pipe:
        first = pipe.readline()
        time.sleep(seconds)
        os.kill(pid, signal.SIGKILL)
        rest = pipe.read().splitlines(keepends=True)
    ended = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if not first or ended != -signal.SIGKILL:
        raise RuntimeError(f"the store did not open, or a write failed (exit {ended})")
    return [line for line in rest if line.endswith(b"\n")]


def look(folder: Path, witness: Witness, faults: Counter[str]) -> float:
    """Open what is left and count what is wrong; the seconds to the first right search."""
    started = time.perf_counter()
    with open_store(folder) as store:
        dim = store.stats().dim
        newest = store.list(limit=1)
        text = newest[0].content if newest else "nothing"
        vector = HashEmbedder(dim).embed_queries([text])[0]
        hits = store.search(vector, limit=1)
        seconds = time.perf_counter() - started
        held: dict[str, list[str]] = {}
        for memory in store.list(limit=10**6):
            held.setdefault(memory.metadata["batch"], []).append(memory.content)
        if newest and not (hits and np.isclose(hits[0].score, 1, atol=1e-5)):
            pending = sum(e.pending for e in store.stats().spaces if e.space.state == "active")
            faults["stale"] += not pending
        _compare(held, witness, faults)
        faults["not agreeing"] += sum(
            p.kind != "pending" for p in store.maintenance.check().problems
        )
        try:
            probe = NewMemory("a write", id="probe", embedding=vector, metadata={"batch": "probe"})
            store.add_many([probe])
            store.delete("probe")
        except KronosError:
            faults["no write"] += 1
    return seconds


def _compare(held: dict[str, list[str]], witness: Witness, faults: Counter[str]) -> None:
    for batch, allowed in witness.words.items():
        contents = held.pop(batch, [])
        words = {content.split()[0] for content in contents}
        if len(contents) not in (0, _BATCH) or len(words) > 1:
            faults["torn"] += 1
            continue
        word = words.pop() if words else None
        if word not in allowed:
            faults["lost" if word is None or allowed != {None} else "risen"] += 1
        witness.words[batch] = {word}
    faults["unknown"] += len(held)


def main() -> None:
    """Kill, look, and print the counts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--stores", type=int, default=10)
    options = parser.parse_args()
    faults: Counter[str] = Counter()
    seconds: list[float] = []
    batches = 0
    for store in range(options.stores):
        chance = random.Random(store)
        with tempfile.TemporaryDirectory() as name:
            folder, witness = Path(name) / "store", Witness()
            for life in range(options.kills // options.stores):
                try:
                    said = live_and_die(folder, life, chance.uniform(0, _LONGEST_LIFE_S))
                except RuntimeError as exc:
                    faults["not opened"] += 1
                    print(exc)
                    continue
                witness.hear(said)
                seconds.append(look(folder, witness, faults))
            batches += len(witness.words)
    counts = ", ".join(f"{faults[kind]} {kind}" for kind in _FAULTS)
    print(f"{options.kills} kills, {batches} batches of {_BATCH}: {counts}")
    median, worst = np.median(seconds), max(seconds)
    print(f"open to first right search: median {median:.3f} s, worst {worst:.3f} s")


if __name__ == "__main__":
    main()
