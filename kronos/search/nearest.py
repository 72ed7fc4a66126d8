"""What an index finds among the keys that a search may find.

Filtering after the top k returns too few, so the filter comes first: SQL selects the keys that may
be found, and the index looks among these alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from kronos.types import Keys, VectorIndex, Vectors


@dataclass(slots=True)
class Found:
    """The nearest keys to a vector."""

    scores: Vectors
    """(n,) float32 cosines, best first."""
    keys: Keys
    """(n,) int64."""
    asked: int
    """How many were asked for; fewer are found only if there are no more."""
    plan: str
    """How they were found, in words."""

    @property
    def is_all(self) -> bool:
        """Whether no other key may be found."""
        return self.keys.size < self.asked

    def covers(self, k: int) -> bool:
        """Whether the k nearest are among these."""
        return k <= self.asked or self.is_all

    def first(self, k: int) -> Found:
        """The k nearest of these."""
        return Found(self.scores[:k], self.keys[:k], k, self.plan)


def nearest(index: VectorIndex, query: Vectors, k: int, allowed: Keys | None) -> Found:
    """Find the k nearest of the allowed keys; see `nearest_of_each`."""
    return nearest_of_each(index, query[None, :], k, allowed)[0]


def nearest_of_each(
    index: VectorIndex, queries: Vectors, k: int, allowed: Keys | None
) -> list[Found]:
    """Find the k nearest of the allowed keys, for each of several queries, in one scan.

    Args:
        index: the index to search.
        queries: (n, dim) float32.
        k: how many keys for each query.
        allowed: (m,) int64, ascending; None: all.
    """
    scores, keys = index.search(queries, k, allowed=allowed)
    plan = f"index of {len(index)}" if allowed is None else f"the {allowed.size} that match, alone"
    return [Found(*each, k, plan) for each in zip(scores, keys, strict=True)]


def vectors_of(index: VectorIndex, keys: Keys) -> Vectors:
    """The vectors of keys: (n, dim) float32; zeros for keys that the index does not hold."""
    rows = np.zeros((keys.size, index.dim), np.float32)
    held = index.contains(keys)
    rows[held] = index.vectors_of(keys[held])
    return rows
