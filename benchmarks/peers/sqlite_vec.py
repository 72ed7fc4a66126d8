"""sqlite-vec: vectors in a virtual table of SQLite, every one compared.

It runs through apsw: the `sqlite3` of many a Python loads no extensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import apsw
import numpy as np
import sqlite_vec

from benchmarks.peers import Items, Rows


class Adapter:
    """One `vec0` table: `share` a metadata column, which it filters by, and `text` beside it."""

    NAME = "sqlite-vec"
    FULL = True
    SYNCED = "each call"
    EFFORTS = (0,)
    """It is exact."""

    def __init__(self, folder: Path, dim: int) -> None:
        self._db = apsw.Connection(str(folder / "items.db"))
        self._db.enable_load_extension(True)
        sqlite_vec.load(self._db)
        self._db.enable_load_extension(False)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        # Of unit vectors, L2 orders as the cosine does, and is what it computes fastest.
        self._db.execute(
            "CREATE VIRTUAL TABLE IF NOT EXISTS items USING vec0("
            f"id INTEGER PRIMARY KEY, vector FLOAT[{dim}], share INTEGER, +text TEXT)"
        )

    def add(self, items: Items) -> None:
        rows = np.ascontiguousarray(items.rows, np.float32)
        values = zip(items.ids, rows, items.shares, items.texts, strict=True)
        with self._db:
            self._db.executemany(
                "INSERT INTO items (id, vector, share, text) VALUES (?, ?, ?, ?)", values
            )

    def sync(self) -> None:
        pass

    def settle(self) -> None:
        pass

    def set_effort(self, effort: int) -> None:
        pass

    def search(self, query: Rows, k: int, below: int | None = None) -> Any:
        sql = "SELECT id, distance, share, text FROM items WHERE vector MATCH ? AND k = ?"
        if below is None:
            return self._db.execute(sql, (query, k)).fetchall()
        return self._db.execute(f"{sql} AND share < ?", (query, k, below)).fetchall()

    def search_many(self, queries: Rows, k: int) -> Sequence[Any]:
        return [self.search(query, k) for query in queries]  # it has no batch call

    def ids(self, found: Any) -> list[int]:
        return [row[0] for row in found]

    def delete(self, ids: Sequence[int]) -> None:
        with self._db:
            self._db.executemany("DELETE FROM items WHERE id = ?", [(id,) for id in ids])

    def compact(self) -> None:
        self._db.execute("VACUUM")

    def close(self) -> None:
        self._db.close()
