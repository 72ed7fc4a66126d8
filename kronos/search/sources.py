"""Where a search finds its candidates among the memories as they are.

A source answers questions about one read transaction: which memories are nearest to a vector, which
contain the words of a query, and which vectors memories have. It returns only memories that the
selection of the search means, though some may have expired since. `kronos.search.past` has the
source for a past moment.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias

import numpy as np

from kronos.index.base import find_positions
from kronos.search.lexical import terms, word_scores
from kronos.search.nearest import Found, nearest, vectors_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from kronos.repository.memories import Repository
    from kronos.types import Keys, VectorIndex, Vectors

    Floats: TypeAlias = NDArray[np.float64]


class Source(Protocol):
    """Where candidates come from."""

    def nearest(self, query: Vectors, k: int, among: Keys | None = None) -> Found:
        """The k nearest memories to a vector; fewer only if there are fewer.

        Args:
            query: (dim,) float32.
            k: how many.
            among: (n,) ascending, all of them in the selection; the search looks among these alone.
        """

    def words(self, query: str) -> tuple[Keys, Floats]:
        """All memories that contain words of a query: (n,) keys, ascending, and (n,) BM25."""

    def vectors(self, keys: Keys) -> Vectors:
        """The vectors of memories: (n, dim) float32; zeros for those without one."""

    def sample(self) -> Vectors:
        """Some vectors of the store: (n, dim) float32."""


@dataclass(slots=True)
class Present:
    """The memories as they are."""

    repository: Repository
    index: VectorIndex | None
    """None if the search needs no vectors."""
    allowed: Keys | None
    """The keys of the selection, ascending; None for all."""
    sample: Callable[[], Vectors]
    """See `Source`."""
    found: Found | None = None
    """What the index found for this query together with others, in one scan."""

    def nearest(self, query: Vectors, k: int, among: Keys | None = None) -> Found:
        """See `Source`."""
        if self.found is not None and among is None and self.found.covers(k):
            return self.found.first(k)
        assert self.index is not None
        return nearest(self.index, query, k, self.allowed if among is None else among)

    def vectors(self, keys: Keys) -> Vectors:
        """See `Source`."""
        assert self.index is not None
        return vectors_of(self.index, keys)

    def words(self, query: str) -> tuple[Keys, Floats]:
        """See `Source`."""
        fulltext = self.repository.fulltext
        keys, scores = word_scores(fulltext, terms(fulltext, query))
        if self.allowed is None:
            return keys, scores
        _, is_allowed = find_positions(self.allowed, keys)
        return keys[is_allowed], scores[is_allowed]
