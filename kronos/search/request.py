"""What a search asks for, checked: its options, and the query."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kronos.search.ranking import Ranking
    from kronos.search.selection import Selection
    from kronos.types import SearchMode, Vectors

CANDIDATES = 100
"""Candidates taken from vectors and from words at first; more if the limit is higher."""
DIVERSE = 5
"""Candidates for each hit if hits are to be unlike each other."""


@dataclass(slots=True, kw_only=True)
class Request:
    """The options of a search."""

    selection: Selection
    limit: int
    mode: SearchMode
    min_score: float
    ranking: Ranking
    group_by: tuple[str, ...] | None
    """As `group_path` returns it."""
    now: int
    """Microseconds since 1970 UTC. Recency counts back from this time."""
    with_shares: bool = True
    """Whether each candidate has the shares of its score."""

    @property
    def needs_vectors(self) -> bool:
        """Whether the search needs the index."""
        return self.mode != "lexical" or self.ranking.diversity > 0

    def first_size(self, wanted: int) -> int:
        """How many candidates to take from vectors and from words at first."""
        if self.mode == "dense" and not self.ranking.needs_signals and not self.group_by:
            return wanted * (DIVERSE if self.ranking.diversity else 1)
        return max(wanted * 2, CANDIDATES)


@dataclass(slots=True)
class Query:
    """What to look for: a text, a vector, or both."""

    text: str | None
    vector: Vectors | None
    """(dim,) float32 of unit length."""
    is_hashed: bool = False
    """Whether the hash embedder made the vector, from letters and words."""
    excluded: int | None = None
    """The key of the memory to which hits are similar; it is not a hit itself."""
