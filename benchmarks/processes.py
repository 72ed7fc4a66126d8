"""Many processes on one store: seeing another one's commit, writing side by side, kills.

    python -m benchmarks.processes

prints: what a search pays to learn that nothing changed; a reader's first search after another
process committed 100 memories to a store of 50,000; two writers of 10,000 each; from a killed
process to the first right search, at 10,000 and at 100,000 memories, the index folder deleted.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kronos import MemoryStore, NewMemory

if TYPE_CHECKING:
    from kronos.types import Vectors

_DIM = 384
_COMMITS = 60

_WRITER = """
import sys, time
import numpy as np
from kronos import MemoryStore, NewMemory
folder, seed, commits, size, paced = sys.argv[1], *map(int, sys.argv[2:])
rng = np.random.default_rng(seed)
with MemoryStore.open(folder, embedding_model=None, embedding_dim=384) as store:
    print("ready", flush=True)
    for commit in range(commits):
        if paced:
            sys.stdin.readline()
        rows = rng.standard_normal((size, 384)).astype(np.float32)
        store.add_many(NewMemory(f"{seed} {commit} {i}", embedding=r) for i, r in enumerate(rows))
        print(store.stats().seq if paced else "done", flush=True)
"""


def rows(count: int, seed: int = 0) -> Vectors:
    """Random unit vectors."""
    made: Vectors = np.random.default_rng(seed).standard_normal((count, _DIM)).astype(np.float32)
    made /= np.linalg.norm(made, axis=1, keepdims=True)
    return made


def memories(count: int, seed: int = 0) -> Iterator[NewMemory]:
    """So many memories with vectors."""
    for number, row in enumerate(rows(count, seed)):
        yield NewMemory(f"memory {seed} {number}", embedding=row)


def writer(folder: Path, *arguments: int) -> subprocess.Popen[str]:
    """Another process that has the store open and waits to write."""
    command = [sys.executable, "-c", _WRITER, str(folder), *map(str, arguments)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    return process


def change_check(store: MemoryStore) -> None:
    """How long a transaction takes that only looks whether something changed."""
    times = []
    for _ in range(2000):
        started = time.perf_counter()
        with store._session.reader() as repository:
            repository.head()
        times.append(time.perf_counter() - started)
    with store._session.reader() as repository:
        started = time.perf_counter()
        for _ in range(2000):
            repository.head()
        alone = (time.perf_counter() - started) / 2000
    whole = float(np.median(times))
    print(
        f"seeing that nothing changed: {alone * 1e6:.0f} us, with a transaction {whole * 1e6:.0f}"
    )


def fresh_reads(store: MemoryStore) -> None:
    """A reader's first search after another process's commit of 100."""
    query = rows(1, seed=9)[0]
    store.search(query)
    idle, fresh = [], []
    with writer(store.location.folder, 1, _COMMITS, 100, 1) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        for _ in range(_COMMITS):
            started = time.perf_counter()
            store.search(query)
            idle.append(time.perf_counter() - started)
            other.stdin.write("go\n")
            other.stdin.flush()
            seq = int(other.stdout.readline())
            started = time.perf_counter()
            store.search(query)
            fresh.append(time.perf_counter() - started)
            assert store._session.serving.replica._applied == seq
    print(
        f"first search after another process's commit of 100, store of {store.count():,}: p50 "
        f"{np.median(fresh) * 1e3:.1f} ms, p95 {np.percentile(fresh, 95) * 1e3:.1f} ms; "
        f"without a commit p50 {np.median(idle) * 1e3:.1f}, p95 {np.percentile(idle, 95) * 1e3:.1f}"
    )


def two_writers(folder: Path) -> None:
    """Two processes that write 10,000 memories each, in batches of 100."""
    with MemoryStore.open(folder, embedding_model=None, embedding_dim=_DIM) as store:
        started = time.perf_counter()
        others = [writer(folder, seed, 100, 100, 0) for seed in (1, 2)]
        for other in others:
            other.communicate()
        seconds = time.perf_counter() - started
        wanted = {f"{s} {c} {i}" for s in (1, 2) for c in range(100) for i in range(100)}
        held = {memory.content for memory in store.list(limit=10**6)}
        lost, strange = len(wanted - held), len(held - wanted)
        print(f"two writers x 10,000: {lost} lost, {strange} strange, {seconds:.1f} s")


def after_a_kill(folder: Path, count: int) -> None:
    """Kill a process that wrote so many, delete its index, open, and search."""
    if (pid := os.fork()) == 0:
        store = MemoryStore.open(folder, embedding_model=None, embedding_dim=_DIM)
        store.add_many(memories(count))
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    shutil.rmtree(folder / "index", ignore_errors=True)
    row = rows(count)[count // 2]
    started = time.perf_counter()
    with MemoryStore.open(folder, embedding_model=None) as store:
        (hit,) = store.search(row, limit=1)
        seconds = time.perf_counter() - started
    right = hit.content == f"memory 0 {count // 2}"
    print(f"after a kill, index deleted, {count:,}: {seconds:.2f} s, the answer is right: {right}")


def main() -> None:
    """Print the figures."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        after_a_kill(folder / "small", 10_000)
        after_a_kill(folder / "large", 100_000)
        two_writers(folder / "pair")
        with MemoryStore.open(folder / "one", embedding_model=None, embedding_dim=_DIM) as store:
            store.add_many(memories(50_000))
            change_check(store)
            fresh_reads(store)


if __name__ == "__main__":
    main()
