"""`FaissIndex`: a flat FAISS index on the CPU, which compares a query with every vector: exact."""

from __future__ import annotations

from typing import TYPE_CHECKING

import faiss
import numpy as np

from kronos.index.base import (
    KeyTable,
    check_keys,
    check_queries,
    check_rows,
    distinct,
    find_positions,
    no_hits,
    order_ties,
    require_known,
    rows_from_bytes,
    rows_to_buffers,
)
from kronos.index.faiss.library import FEW_QUERIES, rows_of, threads_for
from kronos.index.faiss.rows import Rows, bits_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from kronos.types import Keys, Vectors

_PICK_BELOW, _PICK_BELOW_IN_A_BATCH = 2, 16
"""When less than one row in this many is allowed, the allowed rows are compared in place. Otherwise
FAISS scans all rows with a bitmap, which pays sooner for a batch: its threads share the bitmap.
`python -m benchmarks.index` times filtered searches."""


class FaissIndex:
    """A `VectorIndex` over `IndexIDMap(IndexFlatIP)`. Not thread-safe; its owner locks.

    FAISS keeps keys and vectors. The table from keys to rows is kept here and built on first use,
    so the hash map of IndexIDMap2 is not needed. Setting the vector of a held key overwrites its
    row in place; removing and adding it would move every row behind it.

    Args:
        dim: the width of a vector.
    """

    kind = "faiss-flat"

    def __init__(self, dim: int) -> None:
        self.dim = dim
        self._flat = faiss.IndexFlatIP(dim)
        self._index = faiss.IndexIDMap(self._flat)
        self._highest: int | None = None
        """An upper bound of the held keys. Keys above it, the usual case, need no look-up."""
        self._table: KeyTable | None = None
        """Built when a key is first looked up, so filling an index does not pay for it."""

    @classmethod
    def from_bytes(cls, data: bytes | memoryview, dim: int) -> FaissIndex:
        """Read what `to_buffers` wrote.

        Raises:
            SnapshotError: the bytes are no index, or an index of another width.
        """
        index = cls(dim)
        index._append(*rows_from_bytes(data, dim))
        return index

    def __len__(self) -> int:
        return int(self._index.ntotal)

    def upsert(self, keys: Keys, vectors: Vectors) -> None:
        """Set the vectors of keys; see `VectorIndex.upsert`."""
        keys, vectors = check_rows(keys, vectors, self.dim)
        if self._highest is not None and keys.size and keys.min() <= self._highest:
            rows, known = self._find(keys)
            self._overwrite(rows, vectors[known])
            keys, vectors = keys[~known], vectors[~known]
        self._append(keys, vectors)

    def remove(self, keys: Keys) -> int:
        """Remove keys; see `VectorIndex.remove`."""
        keys = distinct(check_keys(keys))
        keys = keys[self._find(keys)[1]]
        if keys.size:
            # In one call: each call moves every row behind the first removed one.
            self._index.remove_ids(keys)
            self._table = None
        return keys.size

    def search(
        self, queries: Vectors, k: int, *, allowed: Keys | None = None
    ) -> tuple[Vectors, Keys]:
        """Find the k nearest keys of each query; see `VectorIndex.search`.

        Equal scores are ordered by key, lowest first. If several keys share the score of the last
        place, it is undefined which of them are returned.
        """
        queries = check_queries(queries, k, self.dim)
        with threads_for(queries):
            return self._search(queries, k, allowed)

    def _search(self, queries: Vectors, k: int, allowed: Keys | None) -> tuple[Vectors, Keys]:
        if allowed is None:
            return order_ties(*self._search_all(queries, min(k, len(self))))
        rows, keys = self._allowed_rows(distinct(check_keys(allowed)))
        pick_below = _PICK_BELOW if len(queries) <= FEW_QUERIES else _PICK_BELOW_IN_A_BATCH
        if not rows.size or rows.size * pick_below < len(self):
            return Rows(self._flat).pick(queries, k, rows, keys)
        return order_ties(*self._search_rows(queries, min(k, rows.size), rows))

    def _allowed_rows(self, allowed: Keys) -> tuple[NDArray[np.intp], Keys]:
        """The rows of the allowed keys, distinct and ascending, that are held; and those keys."""
        if allowed.size < len(self):
            rows, known = self._find(allowed)
            return rows, allowed[known]
        keys = self.keys()  # look up the shorter list in the longer one: a tail is short
        keys = keys[find_positions(allowed, keys)[1]]
        return self._find(keys)[0], keys

    def keys(self) -> Keys:
        """All keys, in ascending order: (n,) int64."""
        return np.sort(self._keys())

    def contains(self, keys: Keys) -> NDArray[np.bool_]:
        """Whether the index holds each of the keys: (n,) bool."""
        return self._find(check_keys(keys))[1]

    def vectors_of(self, keys: Keys) -> Vectors:
        """The vectors of keys: (n, dim) float32.

        Raises:
            NotFoundError: a key is not held.
        """
        keys = check_keys(keys)
        rows, known = self._find(keys)
        require_known(keys, known)
        return self._vectors().take(rows, axis=0)

    def to_buffers(self) -> list[memoryview]:
        """The index as bytes that `from_bytes` reads: raw arrays, in the order of the rows."""
        return rows_to_buffers(self._keys().copy(), self._vectors().copy())

    def freeze(self) -> tuple[Keys, Rows]:
        """The keys and the rows, without copying the rows; the index must not be used again."""
        return self._keys().copy(), Rows(self._flat)

    def _append(self, keys: Keys, vectors: Vectors) -> None:
        if keys.size:
            self._index.add_with_ids(vectors, keys)
            highest = int(keys.max())
            self._highest = highest if self._highest is None else max(self._highest, highest)
            if self._table is not None:
                self._table.append(keys)

    def _overwrite(self, rows: NDArray[np.intp], vectors: Vectors) -> None:
        if rows.size:
            self._vectors()[rows] = vectors

    def _find(self, keys: Keys) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
        """The rows of the keys that are held, and which keys are held: (n,) bool."""
        if self._table is None:
            self._table = KeyTable(self._keys())
        return self._table.find(keys)

    def _keys(self) -> Keys:
        """The keys in the order of the rows: a view that the next change may leave dangling."""
        if not len(self):
            return np.empty(0, np.int64)
        keys: Keys = faiss.rev_swig_ptr(self._index.id_map.data(), len(self))
        return keys

    def _vectors(self) -> Vectors:
        """The rows: a view that the next change may leave dangling."""
        return rows_of(self._flat)

    def _search_all(self, queries: Vectors, k: int) -> tuple[Vectors, Keys]:
        # FAISS refuses k = 0, and fills up with the key -1 where k is more than it holds.
        if not k:
            return no_hits(len(queries))
        with threads_for(queries):
            scores, keys = self._index.search(queries, k)
        return scores, keys

    def _search_rows(
        self, queries: Vectors, k: int, rows: NDArray[np.intp]
    ) -> tuple[Vectors, Keys]:
        scores, found = Rows(self._flat).scan(queries, k, bits_of(rows, len(self)))
        return scores, self._keys().take(found)
