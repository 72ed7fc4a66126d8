"""Where a search finds its candidates: among the memories as they are.

A source answers three questions about one read transaction: which memories are nearest to a vector,
how near some memories are to it, and which hold a question's words. What it names may be found
under the search's selection; memories may have expired since. `kronos.search.past` has the source
of what was.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias

import numpy as np

from kronos.index.base import find_positions
from kronos.search.lexical import terms, word_scores
from kronos.search.plan import Found, nearest

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from kronos.repository.memories import Repository
    from kronos.types import Keys, VectorIndex, Vectors

    Floats: TypeAlias = NDArray[np.float64]


class Source(Protocol):
    """Where candidates come from."""

    def nearest(self, query: Vectors, k: int, among: Keys | None = None) -> Found:
        """The k nearest to a vector; fewer only when there are fewer.

        Args:
            query: (dim,) float32.
            k: how many.
            among: ascending; of these alone, all of which may be found.
        """

    def cosines(self, query: Vectors, keys: Keys) -> Vectors:
        """How near some memories are: (n,) float32; 0 for those without a vector."""

    def words(self, query: str) -> tuple[Keys, Floats]:
        """All that hold a question's words: (n,) keys, ascending, and (n,) float64 BM25."""

    def vectors(self, keys: Keys) -> Vectors:
        """The vectors of memories: (n, dim) float32; zeros for those without one."""

    def sample(self) -> Vectors:
        """Some vectors of the store: (n, dim) float32."""


@dataclass(slots=True)
class Present:
    """The memories as they are."""

    repository: Repository
    index: VectorIndex | None
    """None: nothing is asked but words."""
    allowed: Keys | None
    """Ascending; None: all."""
    sample: Callable[[], Vectors]
    """See `Source`."""

    def nearest(self, query: Vectors, k: int, among: Keys | None = None) -> Found:
        """See `Source`."""
        assert self.index is not None
        return nearest(self.index, query, k, self.allowed if among is None else among)

    def cosines(self, query: Vectors, keys: Keys) -> Vectors:
        """See `Source`."""
        return self.vectors(keys) @ query

    def vectors(self, keys: Keys) -> Vectors:
        """See `Source`."""
        assert self.index is not None
        return held_vectors(self.index, keys)

    def words(self, query: str) -> tuple[Keys, Floats]:
        """See `Source`."""
        words = self.repository.fulltext
        keys, scores = word_scores(words, terms(words, query))
        if self.allowed is None:
            return keys, scores
        _, known = find_positions(self.allowed, keys)
        return keys[known], scores[known]


@dataclass(slots=True)
class Ahead:
    """A source whose index was asked about many questions in one scan."""

    source: Source
    found: Found
    """What is nearest to this one."""
    asked: int
    """How many were asked for."""

    def nearest(self, query: Vectors, k: int, among: Keys | None = None) -> Found:
        """See `Source`."""
        if among is None and (self.found.keys.size < self.asked or k <= self.asked):
            return Found(self.found.scores[:k], self.found.keys[:k], self.found.plan)
        return self.source.nearest(query, k, among)

    def cosines(self, query: Vectors, keys: Keys) -> Vectors:
        """See `Source`."""
        return self.source.cosines(query, keys)

    def vectors(self, keys: Keys) -> Vectors:
        """See `Source`."""
        return self.source.vectors(keys)

    def words(self, query: str) -> tuple[Keys, Floats]:
        """See `Source`."""
        return self.source.words(query)

    def sample(self) -> Vectors:
        """See `Source`."""
        return self.source.sample()


def held_vectors(index: VectorIndex, keys: Keys) -> Vectors:
    """The vectors of keys: (n, dim) float32; zeros for those that the index does not hold."""
    rows = np.zeros((keys.size, index.dim), np.float32)
    held = index.contains(keys)
    rows[held] = index.vectors_of(keys[held])
    return rows
