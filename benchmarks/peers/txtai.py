"""txtai: an embeddings database, its vectors in FAISS and its content in SQLite."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from txtai import Embeddings

from benchmarks.peers import Items, Rows

NEAREST = "SELECT id, text, score, share FROM txtai WHERE similar(:query)"


class Adapter:
    """Content with `FAISS` as its defaults have it: flat when small, else IVF, built by `settle`.

    What is added is in memory until `close` saves it. A filter takes what it matches among the
    nearest candidates.
    """

    NAME = "txtai"
    FULL = True
    SYNCED = "on request"
    EFFORTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
    """Cells of the IVF index that are read."""

    def __init__(self, folder: Path, dim: int) -> None:
        self._path = str(folder / "embeddings")
        self._pending = np.empty((0, dim), np.float32)
        self._faiss: dict[str, int] = {}
        self._embeddings = Embeddings(self._config())
        if self._embeddings.exists(self._path):
            self._embeddings.load(self._path, config=self._config())
        self._threads = faiss.omp_get_max_threads()

    def add(self, items: Items) -> None:
        self._pending = np.asarray(items.rows, np.float32)
        self._embeddings.upsert(
            (str(id), {"text": text, "share": share})
            for id, text, share in zip(items.ids, items.texts, items.shares, strict=True)
        )

    def sync(self) -> None:
        self._embeddings.save(self._path)

    def settle(self) -> None:
        """Index anew: what began as a small, flat index stays one else."""
        faiss.omp_set_num_threads(self._threads)
        index = self._embeddings.ann.backend
        if index.ntotal > 5_000 and isinstance(index, faiss.IndexIDMap):
            self._pending = faiss.downcast_index(index.index).reconstruct_n(0, index.ntotal)
            self._embeddings.reindex(self._config())
        self._embeddings.save(self._path)

    def set_effort(self, effort: int) -> None:
        self._faiss["nprobe"] = effort

    def search(self, query: Rows, k: int, below: int | None = None) -> Any:
        faiss.omp_set_num_threads(1)
        if below is None:
            return self._embeddings.search(NEAREST, k, parameters={"query": query})
        sql = NEAREST.replace("(:query)", f"(:query, {100 * k})") + " AND share < :below"
        return self._embeddings.search(sql, k, parameters={"query": query, "below": below})

    def search_many(self, queries: Rows, k: int) -> Sequence[Any]:
        faiss.omp_set_num_threads(self._threads)
        parameters = [{"query": query} for query in queries]
        found: Sequence[Any] = self._embeddings.batchsearch(
            [NEAREST] * len(queries), k, parameters=parameters
        )
        return found

    def ids(self, found: Any) -> list[int]:
        return [int(row["id"]) for row in found]

    def delete(self, ids: Sequence[int]) -> None:
        self._embeddings.delete([str(id) for id in ids])

    def compact(self) -> None:
        pass

    def close(self) -> None:
        if self._embeddings.count():
            self._embeddings.save(self._path)
        self._embeddings.close()

    def _config(self) -> dict[str, Any]:
        return {
            "method": "external",
            "transform": lambda texts: self._take(len(texts)),
            "content": True,
            "faiss": self._faiss,
        }

    def _take(self, n: int) -> Rows:
        """The vectors of the next n texts: it asks in the order in which they were handed in."""
        taken, self._pending = self._pending[:n], self._pending[n:]
        return taken
