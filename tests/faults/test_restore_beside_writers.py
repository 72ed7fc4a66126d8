"""Two processes write, a third restores and is killed at its calls: nothing acknowledged is lost.

Each acknowledged write must be in the store at the end, or in one of the copies that were set
aside; and all that any of them shows must be of one moment. `RESTORE_POINTS=100000 pytest` on this
file kills at every call.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kronos import MemoryStore
from tests.faults.walk import COUNT, KILL_BEFORE, KILL_WITHIN, Zygote, build_shim
from tests.faults.zygote import DIM

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the shim is for Linux")

_POINTS = int(os.environ.get("RESTORE_POINTS", "40"))
_WRITER = """
import sys
from contextlib import suppress
from kronos.errors import NotFoundError
from kronos import MemoryStore, Settings
folder, name = sys.argv[1:]
settings = Settings(busy_timeout_s=60, snapshot_changes=1)
with MemoryStore.open(folder, embedding_model="hash", embedding_dim=32, settings=settings) as store:
    number = 0
    while True:
        id = f"{name}-{number}"
        store.add(f"{name} wrote {number}", id=id)
        print(id, flush=True)
        if number % 5 == 4:
            store.search(f"{name} wrote {number}", mode="lexical")
            with suppress(NotFoundError):  # a restore came between
                store.update(id, importance=0.1)
        number += 1
"""


@contextmanager
def writing(folder: Path, logs: list[Path]) -> Iterator[None]:
    """Two processes that write for ever, and say what was acknowledged."""
    writers = []
    for number, log in enumerate(logs):
        command = [sys.executable, "-c", _WRITER, str(folder), f"writer{number}"]
        with log.open("w") as file:
            writers.append(subprocess.Popen(command, stdout=file, stderr=subprocess.PIPE))
    try:
        yield
        assert [writer.poll() for writer in writers] == [None, None], "a writer failed"
    finally:
        for writer in writers:
            writer.kill()
            _, said = writer.communicate()
            assert said == b"", said.decode()


def acknowledged(logs: list[Path]) -> list[str]:
    return [line for log in logs for line in log.read_text().split("\n")[:-1]]


def opened_copy(path: Path, folder: Path) -> MemoryStore:
    """A store made of a copy of a database and its log."""
    folder.mkdir()
    for end in ("", "-wal"):
        if (file := path.with_name(path.name + end)).exists():
            shutil.copy(file, folder / f"kronos.db{end}")
    return MemoryStore.open(folder, embedding_model="hash", embedding_dim=DIM)


def test_each_acknowledged_write_is_in_the_store_or_in_a_copy(tmp_path: Path) -> None:
    try:
        zygote = Zygote(build_shim(tmp_path))
    except FileNotFoundError:
        pytest.skip("no C compiler")
    folder, logs = tmp_path / "store", [tmp_path / "0.log", tmp_path / "1.log"]
    zygote.ask("fill", folder)
    shutil.copy(folder / "kronos.db", tmp_path / "backup.db")
    calls = zygote.ask("restore", folder, mode=COUNT)["calls"]
    chance = random.Random(calls)
    points = [*range(1, calls + 1)]
    with writing(folder, logs):
        while not all(log.read_text() for log in logs):
            time.sleep(0.01)
        for at in sorted(chance.sample(points, min(_POINTS, calls))):
            mode = chance.choice([KILL_BEFORE, KILL_WITHIN])
            before = len(acknowledged(logs))
            done = zygote.ask("restore", folder, mode=mode, at=at)
            # With writers beside it a restore takes more calls, or fewer: it may come to its end.
            assert done["end"] in ("killed", "done"), done
            deadline = time.monotonic() + 30
            while len(acknowledged(logs)) < before + 4 and time.monotonic() < deadline:
                time.sleep(0.002)
            assert len(acknowledged(logs)) >= before + 4, "writers go on after a kill"
    zygote.close()
    found: set[str] = set()
    for number, aside in enumerate(sorted(folder.glob("kronos.db.*"))):
        if ".part" in aside.name or aside.name.endswith("-wal"):
            continue
        with opened_copy(aside, tmp_path / f"aside{number}") as store:
            found |= {memory.id for memory in store.iterate()}
            assert store.maintenance.check().ok, aside
    with MemoryStore.open(folder, embedding_model="hash", embedding_dim=DIM) as store:
        found |= {memory.id for memory in store.iterate()}
        assert store.maintenance.check().ok
        for memory in store.list(limit=5):
            assert store.search(memory.content, limit=1)[0].content == memory.content
    assert set(acknowledged(logs)) <= found
    assert [path.name for path in folder.rglob("*") if ".part" in path.name] == []
