"""Chroma: documents, metadata and the log of writes in SQLite, an HNSW graph in files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import chromadb
import numpy as np

from benchmarks.peers import Items, Rows

GRAPH = {"space": "ip", "max_neighbors": 16, "ef_construction": 200, "ef_search": 64}
"""Of a collection that is made; one that is there keeps its own."""


class Adapter:
    """A persistent client and one collection, HNSW of M = 16 with the inner product."""

    NAME = "Chroma"
    FULL = True
    SYNCED = "each call"
    EFFORTS = (16, 24, 32, 48, 64, 96, 128, 192, 256, 512)

    def __init__(self, folder: Path, dim: int) -> None:
        self._folder = folder
        self._open()

    def add(self, items: Items) -> None:
        ids = [str(id) for id in items.ids]
        rows = np.asarray(items.rows, np.float32)
        metadatas = [{"share": share} for share in items.shares]
        for start in range(0, len(ids), self._batch):
            part = slice(start, start + self._batch)
            self._collection.add(
                ids=ids[part],
                embeddings=rows[part],
                documents=list(items.texts[part]),
                metadatas=metadatas[part],
            )

    def sync(self) -> None:
        pass

    def settle(self) -> None:
        pass

    def set_effort(self, effort: int) -> None:
        self._collection.modify(configuration={"hnsw": {"ef_search": effort}})
        self._client.close()  # a graph in memory keeps the parameter it was read with
        self._open()

    def search(self, query: Rows, k: int, below: int | None = None) -> Any:
        where = None if below is None else {"share": {"$lt": below}}
        return _each(self._collection.query(query_embeddings=[query], n_results=k, where=where))[0]

    def search_many(self, queries: Rows, k: int) -> Sequence[Any]:
        return _each(self._collection.query(query_embeddings=list(queries), n_results=k))

    def ids(self, found: Any) -> list[int]:
        return [int(id) for id in found[0]]

    def delete(self, ids: Sequence[int]) -> None:
        for start in range(0, len(ids), self._batch):
            self._collection.delete(ids=[str(id) for id in ids[start : start + self._batch]])

    def compact(self) -> None:
        pass

    def close(self) -> None:
        self._client.close()

    def _open(self) -> None:
        settings = chromadb.Settings(anonymized_telemetry=False)
        self._client = chromadb.PersistentClient(self._folder, settings)
        self._batch = self._client.get_max_batch_size()
        self._collection = self._client.get_or_create_collection(
            "items", configuration={"hnsw": GRAPH}, embedding_function=None
        )


def _each(found: Any) -> list[Any]:
    """(ids, documents, metadatas, distances) of each query."""
    columns = ("ids", "documents", "metadatas", "distances")
    return list(zip(*(found[column] for column in columns), strict=True))
