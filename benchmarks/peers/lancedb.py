"""LanceDB: a table of columns in files, with an index beside it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pyarrow as pa
from lancedb.index import BTree, HnswFlat

from benchmarks.peers import Items, Rows


class Adapter:
    """One HNSW graph of the whole vectors, its fastest index, and `share` indexed."""

    NAME = "LanceDB"
    FULL = True
    SYNCED = "never"
    EFFORTS = (16, 24, 32, 48, 64, 96, 128, 192, 256, 512)

    def __init__(self, folder: Path, dim: int) -> None:
        self._schema = pa.schema(
            [
                pa.field("id", pa.int64()),
                pa.field("vector", pa.list_(pa.float32(), dim)),
                pa.field("text", pa.string()),
                pa.field("share", pa.int64()),
            ]
        )
        self._db = lancedb.connect(folder)
        self._table = self._db.create_table("items", schema=self._schema, exist_ok=True)
        self._effort = 64

    def add(self, items: Items) -> None:
        rows = pa.array(np.ascontiguousarray(items.rows, np.float32).ravel())
        columns = [
            pa.array(items.ids, pa.int64()),
            pa.FixedSizeListArray.from_arrays(rows, items.rows.shape[1]),
            pa.array(items.texts, pa.string()),
            pa.array(items.shares, pa.int64()),
        ]
        self._table.add(pa.Table.from_arrays(columns, schema=self._schema))

    def sync(self) -> None:
        pass

    def settle(self) -> None:
        self._optimize()
        graph = HnswFlat(distance_type="dot", num_partitions=1, m=20, ef_construction=150)
        self._table.create_index("vector", config=graph)
        self._table.create_index("share", config=BTree())

    def set_effort(self, effort: int) -> None:
        self._effort = effort

    def search(self, query: Rows, k: int, below: int | None = None) -> Any:
        search = self._search(query, k)
        if below is not None:
            search = search.where(f"share < {below}")
        return search.to_list()

    def search_many(self, queries: Rows, k: int) -> Sequence[Any]:
        found: list[list[Any]] = [[] for _ in queries]
        for row in self._search(queries, k).to_list():
            found[row["query_index"]].append(row)
        return found

    def ids(self, found: Any) -> list[int]:
        return [row["id"] for row in found]

    def delete(self, ids: Sequence[int]) -> None:
        self._table.delete(f"id IN ({', '.join(map(str, ids))})")

    def compact(self) -> None:
        self._optimize()

    def close(self) -> None:
        del self._table, self._db

    def _search(self, query: Rows, k: int) -> Any:
        search = self._table.search(query).distance_type("dot").ef(max(self._effort, k))
        return search.limit(k).select(["id", "text", "share", "_distance"])

    def _optimize(self) -> None:
        """Merge the files, take what came later into the index, drop old versions."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "any concurrent reader will fail": there is none
            self._table.optimize(cleanup_older_than=timedelta(0))
