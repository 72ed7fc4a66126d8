"""Kronos, by its public calls alone: with each item, words and history are written too."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import faiss  # noqa: F401  (Kronos imports it at its first search, and imports are not timed)

from benchmarks.peers import Items, Rows
from kronos import F, KronosMemory, MemoryStore, NewMemory


class Adapter:
    """A store of vectors that are handed in, its settings as they come: every commit synced."""

    NAME = "Kronos"
    FULL = True
    SYNCED = "each call"
    EFFORTS = (600, 700, 800, 900, 950, 970, 980, 990)
    """Targets of `tune`, in thousandths: it finds its own search parameter for each."""

    def __init__(self, folder: Path, dim: int) -> None:
        self._folder, self._dim = folder, dim
        self._store = MemoryStore.open(folder, embedding_model=None, embedding_dim=dim)

    def add(self, items: Items) -> None:
        self._store.add_many(_memories(items))

    def add_at_once(self, items: Items, callers: int) -> float:
        """Add each item in a call of its own, so many calls at a time: seconds."""
        return asyncio.run(self._add_at_once(_memories(items), callers))

    async def _add_at_once(self, memories: list[NewMemory], callers: int) -> float:
        waiting = iter(memories)

        async def call() -> None:
            for memory in waiting:
                await store.add_many([memory])

        async with KronosMemory(
            self._folder, embedding_model=None, embedding_dim=self._dim
        ) as store:
            started = time.perf_counter()
            await asyncio.gather(*(call() for _ in range(callers)))
            return time.perf_counter() - started

    def sync(self) -> None:
        pass

    def settle(self) -> None:
        self._store.maintenance.tune()  # it waits for the graph that is being built

    def set_effort(self, effort: int) -> None:
        self._store.maintenance.tune(effort / 1000)

    def search(self, query: Rows, k: int, below: int | None = None) -> Any:
        where = None if below is None else F.share < below
        return self._store.search(query, limit=k, where=where)

    def search_many(self, queries: Rows, k: int) -> Sequence[Any]:
        return self._store.search_many(queries, limit=k)

    def ids(self, found: Any) -> list[int]:
        return [int(hit.id) for hit in found]

    def delete(self, ids: Sequence[int]) -> None:
        self._store.delete([str(id) for id in ids])

    def compact(self) -> None:
        self._store.maintenance.compact()

    def close(self) -> None:
        self._store.close()


def _memories(items: Items) -> list[NewMemory]:
    return [
        NewMemory(text, id=str(id), embedding=row, metadata={"share": share})
        for id, row, text, share in zip(
            items.ids, items.rows, items.texts, items.shares, strict=True
        )
    ]
