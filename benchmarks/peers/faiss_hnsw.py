"""Bare FAISS HNSW, M = 32: the floor of an approximate search. It keeps vectors alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import faiss

from benchmarks.peers import Items, faiss_flat


class Adapter(faiss_flat.Adapter):
    """`IndexHNSWFlat`; an id is the number of its row."""

    NAME = "FAISS HNSW32"
    EFFORTS = (16, 24, 32, 48, 64, 96, 128, 192, 256)

    def __init__(self, folder: Path, dim: int) -> None:
        self._path = folder / "index.faiss"
        if self._path.exists():
            self._index = faiss.read_index(str(self._path))
        else:
            self._index = faiss.IndexHNSWFlat(dim, 32, faiss.METRIC_INNER_PRODUCT)
            self._index.hnsw.efConstruction = 100
        self._threads = faiss.omp_get_max_threads()

    def add(self, items: Items) -> None:
        self._index.add(items.rows)

    def set_effort(self, effort: int) -> None:
        self._index.hnsw.efSearch = effort

    def delete(self, ids: Sequence[int]) -> None:
        raise NotImplementedError("a graph of FAISS deletes nothing")
