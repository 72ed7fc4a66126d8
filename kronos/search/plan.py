"""What a search is about: which memories it means, and what an index finds among them.

Filtering after the top k returns too few, so the filter comes first: SQL names the keys that may be
found (`kronos.search.kept` keeps them). A few are compared one by one; of many the index is asked,
for those alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from kronos.search.filters import canonical, parse
from kronos.search.filters.compiler import compile_filter

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement, FromClause

    from kronos.search.filters import Filter, Where
    from kronos.types import Keys, VectorIndex, Vectors


@dataclass(frozen=True)  # no slots: `name` is kept
class Selection:
    """Which memories a call means: a namespace with all below it, and a filter."""

    scope: str | None
    """None for every namespace."""
    filter: Filter | None

    @classmethod
    def of(cls, scope: str | None, where: Where | Filter | None) -> Selection:
        """Parse a filter.

        Raises:
            FilterError: it cannot be understood.
        """
        return cls(scope, parse(where))

    def __call__(self, rows: FromClause) -> ColumnElement[bool]:
        """The filter as SQL over some rows; for selections that have one."""
        condition = compile_filter(self.filter, rows)
        assert condition is not None
        return condition

    @property
    def condition(self) -> Selection | None:
        """What makes the filter's SQL; None for no filter."""
        return None if self.filter is None else self

    @cached_property
    def name(self) -> tuple[str | None, str]:
        """What tells two selections apart."""
        return self.scope, "" if self.filter is None else canonical(self.filter)


EVERY_MEMORY = Selection(None, None)
"""Whatever its namespace."""


@dataclass(slots=True)
class Found:
    """What an index found."""

    scores: Vectors
    """(n,) float32, best first."""
    keys: Keys
    """(n,) int64."""
    plan: str
    """How, in words."""


def nearest(index: VectorIndex, query: Vectors, k: int, allowed: Keys | None) -> Found:
    """Find the k nearest of the keys that may be found; see `nearest_of_each`."""
    return nearest_of_each(index, query[None, :], k, allowed)[0]


def nearest_of_each(
    index: VectorIndex, queries: Vectors, k: int, allowed: Keys | None
) -> list[Found]:
    """Find the k nearest of the keys that may be found, for each of some queries, in one scan.

    Args:
        index: what is searched.
        queries: (n, dim) float32.
        k: how many; as many come back when as many are held.
        allowed: (m,) int64, ascending; None: all.
    """
    scores, keys = index.search(queries, k, allowed=allowed)
    plan = f"index of {len(index)}" if allowed is None else f"the {allowed.size} that match, alone"
    return [Found(*each, plan) for each in zip(scores, keys, strict=True)]
