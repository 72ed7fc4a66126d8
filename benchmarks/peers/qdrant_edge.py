"""Qdrant Edge: the engine of Qdrant inside the process, one shard in a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import qdrant_edge as qdrant

from benchmarks.peers import Items, Rows


class Adapter:
    """HNSW of M = 16, and `share` indexed, so that the graph keeps links for its filters."""

    NAME = "Qdrant Edge"
    FULL = True
    SYNCED = "on request"
    EFFORTS = (16, 24, 32, 48, 64, 96, 128, 192, 256, 512)

    def __init__(self, folder: Path, dim: int) -> None:
        path = folder / "shard"
        if path.exists():
            self._shard = qdrant.EdgeShard.load(str(path))
        else:
            path.mkdir(parents=True)
            self._shard = qdrant.EdgeShard.create(str(path), _config(dim))
            self._update(
                qdrant.UpdateOperation.create_field_index("share", qdrant.PayloadSchemaType.Integer)
            )
        self.set_effort(64)

    def add(self, items: Items) -> None:
        points = [
            qdrant.Point(id, row.tolist(), {"text": text, "share": share})
            for id, row, text, share in zip(
                items.ids, items.rows, items.texts, items.shares, strict=True
            )
        ]
        self._update(qdrant.UpdateOperation.upsert_points(points))

    def sync(self) -> None:
        self._shard.flush()

    def settle(self) -> None:
        self._shard.optimize()
        self._shard.flush()

    def set_effort(self, effort: int) -> None:
        self._params = qdrant.SearchParams(hnsw_ef=effort)

    def search(self, query: Rows, k: int, below: int | None = None) -> Any:
        return self._shard.query(self._request(query, k, below))

    def search_many(self, queries: Rows, k: int) -> Sequence[Any]:
        requests = [self._request(query, k, None) for query in queries]
        found: Sequence[Any] = self._shard.query_batch(qdrant.QueryBatchRequest(requests))
        return found

    def ids(self, found: Any) -> list[int]:
        return [point.id for point in found]

    def delete(self, ids: Sequence[int]) -> None:
        self._update(qdrant.UpdateOperation.delete_points(list(ids)))

    def compact(self) -> None:
        self._shard.optimize()
        self._shard.flush()

    def close(self) -> None:
        self._shard.flush()
        self._shard.close()

    def _update(self, operation: Any) -> None:
        self._shard.update(operation)

    def _request(self, query: Rows, k: int, below: int | None) -> Any:
        return qdrant.QueryRequest(
            limit=k,
            query=qdrant.Query.Nearest(query.tolist()),
            filter=None if below is None else _share_below(below),
            params=self._params,
            with_payload=True,
        )


def _config(dim: int) -> Any:
    return qdrant.EdgeConfig(
        vectors=qdrant.EdgeVectorParams(dim, qdrant.Distance.Dot),
        hnsw_config=qdrant.HnswIndexConfig(m=16, ef_construct=100, full_scan_threshold=10_000),
        # One segment: a search goes through one graph.
        optimizers=qdrant.EdgeOptimizersConfig(default_segment_number=1),
    )


def _share_below(below: int) -> Any:
    share = qdrant.FieldCondition("share", range=qdrant.RangeFloat(lt=below))
    return qdrant.Filter(must=[share])
