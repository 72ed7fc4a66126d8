"""How a filtered search is answered: which memories may be found, and how they are gone through.

Filtering after the top k returns too few, so the filter comes first: SQL names the keys that may be
found. They are kept, and follow the changes by seq as an index does, so that a filter that is used
again costs nothing. A few are compared one by one; of many the index is asked, for those alone.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from kronos.forking import Lock
from kronos.index.base import locate
from kronos.search.filters import canonical, compile_filter, parse

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement, FromClause

    from kronos.repository import Pulse, Repository
    from kronos.search.filters import Filter, Where
    from kronos.types import Keys, VectorIndex, Vectors

_MOST_SETS = 64
_MOST_KEYS = 8_000_000
"""So many sets, and keys in them all (64 MB), are kept; those used last."""


@dataclass(frozen=True, slots=True)
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

    @property
    def name(self) -> tuple[str | None, str]:
        """What tells two selections apart."""
        return self.scope, "" if self.filter is None else canonical(self.filter)


@dataclass(slots=True)
class _KeySet:
    keys: Keys | None
    """Ascending, and never changed; None: every memory may be found."""
    seq: int

    @property
    def size(self) -> int:
        """How many keys there are to keep."""
        return 0 if self.keys is None else self.keys.size

    def __post_init__(self) -> None:
        if self.keys is not None:
            self.keys.flags.writeable = False  # an index remembers where the keys of one set lie


class KeySets:
    """The keys that selections stand for, kept from search to search. Threads may share it."""

    def __init__(self) -> None:
        self._sets: OrderedDict[tuple[str | None, str], _KeySet] = OrderedDict()
        self._lock = Lock()

    def find(self, repository: Repository, pulse: Pulse, selection: Selection) -> Keys | None:
        """Find the keys that a search may return.

        Args:
            repository: over the transaction of the search.
            pulse: of that transaction.
            selection: what may be found.

        Returns:
            (n,) int64, ascending, of memories some of which may have expired since; None when
            every memory may be found.
        """
        if selection.scope is None and selection.filter is None:
            return None
        with self._lock:
            name = selection.name
            known = self._sets.get(name)
            if known is None or known.seq != pulse.seq:
                known = _KeySet(self._follow(repository, pulse, selection, known), pulse.seq)
                self._sets.pop(name, None)
                self._sets[name] = known
                self._evict()
            else:
                self._sets.move_to_end(name)
            return known.keys

    def _follow(
        self, repository: Repository, pulse: Pulse, selection: Selection, known: _KeySet | None
    ) -> Keys | None:
        if selection.filter is None and repository.is_whole_store(selection.scope):
            return None
        scope, condition = selection.scope, selection.condition
        # A database that was put back has other rows at the seqs that were seen.
        if (
            known is None
            or known.keys is None
            or known.seq > pulse.seq
            or known.seq < repository.spaces.pruned_seq(pulse.active_space or 0)
        ):
            return repository.keys(scope, condition)
        changed = repository.changed_since(known.seq)
        matching = repository.keys(scope, condition, since=known.seq)
        gone = locate(changed, known.keys)[1]
        if not matching.size and not gone.any():
            return known.keys
        kept = known.keys[~gone]
        # None of them is kept: a union would sort them all, 217 ms for half a million.
        return np.insert(kept, np.searchsorted(kept, matching), matching)

    def _evict(self) -> None:
        size = sum(each.size for each in self._sets.values())
        while len(self._sets) > 1 and (len(self._sets) > _MOST_SETS or size > _MOST_KEYS):
            size -= self._sets.popitem(last=False)[1].size


@dataclass(frozen=True, slots=True)
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
