"""Adding, replacing and deleting, each synced to the disk, beside bare sqlite3 in one run.

    python -m benchmarks.writes [--counts 1000 60000 200000] [--dim 384] [--folder DIR]

Bare sqlite3 writes the same text, metadata and vector to two plain tables, with the same log and
the same sync at each commit, but keeps no words, no history and no second index. Both are timed in
turn, so a slow disk weighs on both: the ratio is the figure. A folder in memory
(`--folder /dev/shm`) leaves the disk out and shows what the processor alone takes.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import itertools
import json
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers import Rows
from kronos import KronosMemory, MemoryStore, NewMemory

_BATCH = 1000
_CALLERS = 64
_ROUNDS = 5


def unit_rows(count: int, dim: int) -> Rows:
    """Random unit vectors, (count, dim) float32."""
    rows: Rows = np.random.default_rng(0).standard_normal((count, dim), dtype=np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows


class Supply:
    """New memories without end; vectors come round again, texts do not."""

    def __init__(self, dim: int) -> None:
        self._rows = unit_rows(20_000, dim)
        self._numbers = itertools.count()
        self._words = [f"word{number}" for number in range(5000)]
        self._chance = np.random.default_rng(1)

    def take(self, count: int) -> list[NewMemory]:
        """So many new memories, each of a dozen words."""
        words = self._chance.integers(0, len(self._words), (count, 12))
        return [self._one(next(self._numbers), row) for row in words.tolist()]

    def _one(self, number: int, words: Sequence[int]) -> NewMemory:
        text = " ".join(self._words[word] for word in words)
        row = self._rows[number % len(self._rows)]
        return NewMemory(f"{number} {text}", embedding=row, metadata={"number": number})


class Bare:
    """sqlite3 and nothing else."""

    def __init__(self, folder: Path) -> None:
        self._connection = sqlite3.connect(folder / "bare.db", isolation_level=None)
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute("PRAGMA synchronous=FULL")
        self._connection.execute(
            "CREATE TABLE memories (key INTEGER PRIMARY KEY, content TEXT, metadata TEXT)"
        )
        self._connection.execute("CREATE TABLE vectors (key INTEGER PRIMARY KEY, vector BLOB)")
        self._numbers = itertools.count()
        self._deleted = 0

    def add(self, items: Sequence[NewMemory]) -> None:
        """Add memories in one transaction."""
        rows = [
            (next(self._numbers), item.content, json.dumps(item.metadata), _bytes(item.embedding))
            for item in items
        ]
        self._connection.execute("BEGIN IMMEDIATE")
        self._connection.executemany(
            "INSERT INTO memories VALUES (?, ?, ?)", [row[:3] for row in rows]
        )
        self._connection.executemany(
            "INSERT INTO vectors VALUES (?, ?)", [(row[0], row[3]) for row in rows]
        )
        self._connection.execute("COMMIT")

    def delete(self, count: int) -> None:
        """Delete so many memories in one transaction, the oldest first."""
        self._deleted += count
        self._connection.execute("BEGIN IMMEDIATE")
        for table in ("memories", "vectors"):
            self._connection.execute(f"DELETE FROM {table} WHERE key < ?", (self._deleted,))
        self._connection.execute("COMMIT")

    def close(self) -> None:
        """Let go of the file."""
        self._connection.close()


def _bytes(embedding: object) -> bytes:
    return np.asarray(embedding, np.float32).tobytes()


def rate(count: int, work: Callable[..., object], *args: object) -> float:
    """Run something that writes so many memories: memories a second."""
    started = time.perf_counter()
    work(*args)
    return count / (time.perf_counter() - started)


def one_by_one(work: Callable[[list[Any]], object], items: Iterable[object]) -> None:
    """Hand items over in calls of their own."""
    for item in items:
        work([item])


def report(what: str, rates: Sequence[tuple[float, float]]) -> None:
    """Print the medians of (Kronos, bare) pairs and the median of their ratios."""
    ours, bare = np.median(rates, axis=0)
    ratio = np.median([a / b for a, b in rates])
    print(f"{what:<44}{ours:>9,.0f} /s   bare sqlite3{bare:>9,.0f} /s   ratio {ratio:.2f}")


@contextmanager
def opened(folder: str | None, dim: int) -> Iterator[tuple[MemoryStore, Bare]]:
    """A new store, and a bare database beside it."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        bare = Bare(Path(name))
        store = MemoryStore.open(Path(name) / "store", embedding_model=None, embedding_dim=dim)
        with store:
            yield store, bare
        bare.close()


def singles(store: MemoryStore, bare: Bare, supply: Supply, count: int) -> None:
    """One caller, one memory a call."""
    rates = []
    for _ in range(_ROUNDS):
        items = supply.take(count)
        ours = rate(count, one_by_one, store.add_many, items)
        rates.append((ours, rate(count, one_by_one, bare.add, items)))
    report("single adds", rates)


def threads(store: MemoryStore, bare: Bare, supply: Supply, each: int) -> None:
    """Many threads, one memory a call; bare sqlite3 has one caller."""
    rates = []
    with ThreadPoolExecutor(_CALLERS) as pool:
        call = functools.partial(one_by_one, store.add_many)

        def all_at_once(calls: list[list[NewMemory]]) -> None:
            list(pool.map(call, calls))

        for _ in range(_ROUNDS):
            calls = [supply.take(each) for _ in range(_CALLERS)]
            ours = rate(_CALLERS * each, all_at_once, calls)
            lone = [item for items in calls[:8] for item in items]
            rates.append((ours, rate(len(lone), one_by_one, bare.add, lone)))
    report(f"{_CALLERS} threads on MemoryStore", rates)


async def tasks(folder: Path, bare: Bare, supply: Supply, each: int, dim: int) -> None:
    """Many asyncio tasks, one memory a call; bare sqlite3 has one caller."""
    rates = []
    async with KronosMemory(folder, embedding_model=None, embedding_dim=dim) as memory:

        async def call(items: list[NewMemory]) -> None:
            for item in items:
                await memory.add_many([item])

        for _ in range(_ROUNDS):
            calls = [supply.take(each) for _ in range(_CALLERS)]
            started = time.perf_counter()
            await asyncio.gather(*map(call, calls))
            ours = _CALLERS * each / (time.perf_counter() - started)
            lone = [item for items in calls[:8] for item in items]
            rates.append((ours, rate(len(lone), one_by_one, bare.add, lone)))
    report(f"{_CALLERS} asyncio tasks on KronosMemory", rates)


def bulk(
    store: MemoryStore, bare: Bare, supply: Supply, counts: Sequence[int], batches: int
) -> None:
    """Batches of 1,000 at several sizes of the store."""
    for count in counts:
        while (missing := count - store.count()) > 0:
            items = supply.take(min(missing, _BATCH))
            store.add_many(items)
            bare.add(items)
        rates = []
        for _ in range(batches):
            items = supply.take(_BATCH)
            rates.append((rate(_BATCH, store.add_many, items), rate(_BATCH, bare.add, items)))
        report(f"batches of {_BATCH:,} at {count:,}", rates)


def changes(store: MemoryStore, bare: Bare, supply: Supply, rounds: int) -> None:
    """Replacing and deleting 1,000 at once, and deleting one by one, at the size reached."""
    held = f"of {store.count():,}"
    replaced, named, matched, lone = [], [], [], []
    replace = functools.partial(store.add_many, on_conflict="replace")
    for _ in range(rounds):
        items = supply.take(2 * _BATCH + 100)
        ids = store.add_many(items)
        bare.add(items)
        new = [
            NewMemory(item.content, id=id, embedding=item.embedding, metadata={"marked": True})
            for item, id in zip(supply.take(_BATCH), ids, strict=False)
        ]
        replaced.append((rate(_BATCH, replace, new), rate(_BATCH, bare.add, new)))
        ours = rate(_BATCH, functools.partial(store.delete, where={"marked": True}))
        matched.append((ours, rate(_BATCH, bare.delete, _BATCH)))
        ours = rate(_BATCH, store.delete, ids[_BATCH : 2 * _BATCH])
        named.append((ours, rate(_BATCH, bare.delete, _BATCH)))
        ours = rate(100, one_by_one, store.delete, ids[2 * _BATCH :])
        lone.append((ours, rate(100, one_by_one, lambda _: bare.delete(1), range(100))))
    report(f"replacing {_BATCH:,} {held} (bare: adding)", replaced)
    report(f"deleting {_BATCH:,} {held} by ids", named)
    report(f"deleting {_BATCH:,} {held} by a filter", matched)
    report(f"deleting one by one {held}", lone)


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--counts", type=int, nargs="*", default=[1000, 60_000, 200_000])
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--singles", type=int, default=500, help="single adds a round")
    parser.add_argument("--each", type=int, default=60, help="adds of each of 64 callers a round")
    parser.add_argument("--batches", type=int, default=20, help="timed batches at each count")
    parser.add_argument("--folder", help="where the databases are made; None: a temporary folder")
    options = parser.parse_args()
    supply = Supply(options.dim)
    with opened(options.folder, options.dim) as (store, bare):
        singles(store, bare, supply, options.singles)
        threads(store, bare, supply, options.each)
    with opened(options.folder, options.dim) as (store, bare):
        folder = store.location.database.parent.with_name("async")
        asyncio.run(tasks(folder, bare, supply, options.each, options.dim))
        bulk(store, bare, supply, options.counts, options.batches)
        changes(store, bare, supply, 5)


if __name__ == "__main__":
    main()
