"""`ExactIndex`: compares every vector with every query, in NumPy; the oracle for the other kinds.

It returns the exact result in a defined order: by score, highest first, then by key, lowest first.
It is not made for speed: the first search after a change copies all rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from kronos.index.base import (
    check_keys,
    check_queries,
    check_rows,
    distinct,
    find_positions,
    require_known,
    rows_from_bytes,
    rows_to_buffers,
    score_all,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from kronos.types import Keys, Vectors


class ExactIndex:
    """A `VectorIndex` in two arrays. Not thread-safe; its owner locks.

    Args:
        dim: the width of a vector.
    """

    kind = "exact"

    def __init__(self, dim: int) -> None:
        self.dim = dim
        self._keys: Keys = np.empty(0, np.int64)
        """Ascending; the keys of the rows of `_vectors`."""
        self._vectors: Vectors = np.empty((0, dim), np.float32)
        self._batches: list[tuple[Keys, Vectors]] = []
        """Upserts not yet merged into the two arrays, oldest first: many upserts cost one merge."""

    @classmethod
    def from_bytes(cls, data: bytes | memoryview, dim: int) -> ExactIndex:
        """Read what `to_buffers` wrote.

        Raises:
            SnapshotError: the bytes are no index, or an index of another width.
        """
        index = cls(dim)
        index.upsert(*rows_from_bytes(data, dim))
        return index

    def __len__(self) -> int:
        self._merge()
        return self._keys.size

    def upsert(self, keys: Keys, vectors: Vectors) -> None:
        """Set the vectors of keys; see `VectorIndex.upsert`."""
        keys, vectors = check_rows(keys, vectors, self.dim)
        self._batches.append((keys.copy(), vectors.copy()))

    def remove(self, keys: Keys) -> int:
        """Remove keys; see `VectorIndex.remove`."""
        self._merge()
        kept = ~find_positions(distinct(check_keys(keys)), self._keys)[1]
        removed = kept.size - int(np.count_nonzero(kept))
        self._keys, self._vectors = self._keys[kept], self._vectors[kept]
        return removed

    def search(
        self, queries: Vectors, k: int, *, allowed: Keys | None = None
    ) -> tuple[Vectors, Keys]:
        """Find the k nearest keys of each query; see `VectorIndex.search`."""
        queries = check_queries(queries, k, self.dim)
        self._merge()
        keys, vectors = self._keys, self._vectors
        if allowed is not None:
            _, findable = find_positions(distinct(check_keys(allowed)), keys)
            keys, vectors = keys[findable], vectors[findable]
        return score_all(queries, keys, vectors, k)

    def keys(self) -> Keys:
        """All keys, in ascending order: (n,) int64."""
        self._merge()
        return np.array(self._keys)

    def contains(self, keys: Keys) -> NDArray[np.bool_]:
        """Whether the index holds each of the keys: (n,) bool."""
        self._merge()
        return find_positions(self._keys, check_keys(keys))[1]

    def vectors_of(self, keys: Keys) -> Vectors:
        """The vectors of keys: (n, dim) float32.

        Raises:
            NotFoundError: a key is not held.
        """
        self._merge()
        keys = check_keys(keys)
        rows, known = find_positions(self._keys, keys)
        require_known(keys, known)
        return self._vectors[rows]

    def to_buffers(self) -> list[memoryview]:
        """The index as bytes that `from_bytes` reads: raw arrays."""
        self._merge()
        return rows_to_buffers(self._keys, self._vectors)

    def _merge(self) -> None:
        if not self._batches:
            return
        keys = np.concatenate([self._keys, *(keys for keys, _ in self._batches)])
        vectors = np.concatenate([self._vectors, *(vectors for _, vectors in self._batches)])
        # unique() returns the first position of each key: in reverse order, that is the newest.
        self._keys, newest = np.unique(keys[::-1], return_index=True)
        self._vectors = vectors[::-1][newest]
        self._batches.clear()
