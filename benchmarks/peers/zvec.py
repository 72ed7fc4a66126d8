"""zvec: an embedded vector database with a schema, one collection in a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import zvec

from benchmarks.peers import Items, Rows

zvec.init(log_level=zvec.LogLevel.ERROR)  # once in a process

BATCH = 1_000
"""It takes 1,024 documents in a call."""


class Adapter:
    """HNSW of M = 16, and `share` indexed for ranges."""

    NAME = "zvec"
    FULL = True
    SYNCED = "on request"
    EFFORTS = (16, 24, 32, 48, 64, 96, 128, 192, 256, 512)

    def __init__(self, folder: Path, dim: int) -> None:
        path = folder / "collection"  # made by zvec, which refuses one that is there
        if path.exists():
            self._collection = zvec.open(str(path))
        else:
            self._collection = zvec.create_and_open(str(path), _schema(dim))
        self.set_effort(64)

    def add(self, items: Items) -> None:
        documents = [
            zvec.Doc(str(id), vectors={"vector": row}, fields={"text": text, "share": share})
            for id, row, text, share in zip(
                items.ids, items.rows, items.texts, items.shares, strict=True
            )
        ]
        for start in range(0, len(documents), BATCH):
            _check(self._collection.insert(documents[start : start + BATCH]))

    def sync(self) -> None:
        self._collection.flush()

    def settle(self) -> None:
        self._collection.optimize()
        self._collection.flush()

    def set_effort(self, effort: int) -> None:
        self._param = zvec.HnswQueryParam(ef=effort)

    def search(self, query: Rows, k: int, below: int | None = None) -> Any:
        return self._collection.query(
            zvec.Query("vector", vector=query, param=self._param),
            topk=k,
            filter=None if below is None else f"share < {below}",
        )

    def search_many(self, queries: Rows, k: int) -> Sequence[Any]:
        return [self.search(query, k) for query in queries]  # it has no batch call

    def ids(self, found: Any) -> list[int]:
        return [int(document.id) for document in found]

    def delete(self, ids: Sequence[int]) -> None:
        _check(self._collection.delete([str(id) for id in ids]))

    def compact(self) -> None:
        self._collection.optimize()
        self._collection.flush()

    def close(self) -> None:
        self._collection.close()


def _schema(dim: int) -> Any:
    graph = zvec.HnswIndexParam(metric_type=zvec.MetricType.IP, m=16, ef_construction=200)
    ranges = zvec.InvertIndexParam(enable_range_optimization=True)
    return zvec.CollectionSchema(
        name="items",
        fields=[
            zvec.FieldSchema("text", zvec.DataType.STRING),
            zvec.FieldSchema("share", zvec.DataType.INT64, index_param=ranges),
        ],
        vectors=[zvec.VectorSchema("vector", zvec.DataType.VECTOR_FP32, dim, graph)],
    )


def _check(statuses: Sequence[Any]) -> None:
    """Raise what a call did not do: it says so only in what it returns."""
    for status in statuses:
        if not status.ok():
            raise RuntimeError(status.message())
