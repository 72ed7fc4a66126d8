"""Bare FAISS, every vector compared: the floor of an exact search. It keeps vectors alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import faiss
import numpy as np

from benchmarks.peers import Items, Rows


class Adapter:
    """`IndexIDMap2(IndexFlatIP)`, one thread for a single search."""

    NAME = "FAISS flat"
    FULL = False
    SYNCED = "never"
    EFFORTS: ClassVar[Sequence[int]] = (0,)

    def __init__(self, folder: Path, dim: int) -> None:
        self._path = folder / "index.faiss"
        if self._path.exists():
            self._index = faiss.read_index(str(self._path))
        else:
            self._index = faiss.IndexIDMap2(faiss.IndexFlatIP(dim))
        self._threads = faiss.omp_get_max_threads()

    def add(self, items: Items) -> None:
        self._index.add_with_ids(items.rows, np.asarray(items.ids, np.int64))

    def sync(self) -> None:
        pass

    def settle(self) -> None:
        pass

    def set_effort(self, effort: int) -> None:
        pass

    def search(self, query: Rows, k: int, below: int | None = None) -> Any:
        if below is not None:
            raise NotImplementedError("it keeps no metadata")
        faiss.omp_set_num_threads(1)
        return self._index.search(query[None, :], k)[1][0]

    def search_many(self, queries: Rows, k: int) -> Sequence[Any]:
        faiss.omp_set_num_threads(self._threads)
        found: Sequence[Any] = self._index.search(queries, k)[1]
        return found

    def ids(self, found: Any) -> list[int]:
        return [int(id) for id in found if id >= 0]

    def delete(self, ids: Sequence[int]) -> None:
        self._index.remove_ids(np.asarray(ids, np.int64))

    def compact(self) -> None:
        pass

    def close(self) -> None:
        faiss.write_index(self._index, str(self._path))
