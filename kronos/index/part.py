"""`Part`: rows of a `LayeredIndex` that do not change, some of which may be dead.

A part with an index over its rows is a main part; any other was the tail until a build began. Dead
rows are masked: no search returns them, but in a graph they still lead to live rows.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from kronos.index.base import KeyTable, no_hits
from kronos.index.faiss.graph import Graph
from kronos.index.faiss.rows import MainRows, Rows, bits, bits_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from kronos.index.policy import IndexPolicy
    from kronos.types import Keys, Vectors

_MAX_REMEMBERED = 8
"""How many sets of allowed keys a part remembers the rows of."""


@dataclass(slots=True)
class _AllowedRows:
    """The live rows of the keys that a search may find."""

    rows: NDArray[np.intp]
    keys: Keys
    """The keys of the rows."""
    bits: NDArray[np.uint8] | None = None
    """The bitmap of the rows, made when it is first needed."""


class Part:
    """Rows that do not change, some of which may be dead.

    Args:
        keys: (n,) int64, the key of each row; a key may also be the key of dead rows.
        rows: the rows.
        alive: (n,) which rows are alive; None: all.
    """

    def __init__(self, keys: Keys, rows: Rows, alive: NDArray[np.bool_] | None = None) -> None:
        self.keys = keys
        self.rows = rows
        self.alive = np.ones(keys.size, np.bool_) if alive is None else alive
        self.count = int(np.count_nonzero(self.alive))
        """How many rows are alive."""
        live = np.flatnonzero(self.alive)
        self._table = KeyTable(keys[live], live)
        self._highest = int(keys.max()) if keys.size else -(2**63)
        self._bits: NDArray[np.uint8] | None = None
        self._remembered: OrderedDict[int, tuple[weakref.ref[Keys], _AllowedRows]] = OrderedDict()
        """The rows of keys that recent searches allowed, by the identity of the keys' array."""

    @property
    def dead(self) -> int:
        """How many rows were removed or overwritten."""
        return self.keys.size - self.count

    def has_duplicate_keys(self) -> bool:
        """Whether two live rows have the same key, which only damage can cause."""
        return self._table.has_duplicates()

    def find(self, keys: Keys) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
        """The live rows of keys, and which keys have one: (n,) bool."""
        if not keys.size or keys.min() > self._highest:  # new keys are usually higher
            return np.empty(0, np.intp), np.zeros(keys.size, np.bool_)
        rows, known = self._table.find(keys)
        if self.dead:
            known[known] = alive = self.alive[rows]
            rows = rows[alive]
        return rows, known

    def mark_dead(self, keys: Keys) -> int:
        """Mark the rows of distinct keys as dead; returns how many were alive."""
        rows, _ = self.find(keys)
        if rows.size:
            self.alive[rows] = False
            self.count -= rows.size
            self._bits = None
            self._remembered.clear()
        return rows.size

    def live_rows(self) -> tuple[Keys, NDArray[np.intp]]:
        """The keys of the live rows, and the rows."""
        rows = np.flatnonzero(self.alive)
        return self.keys[rows], rows

    def search(self, queries: Vectors, k: int, policy: IndexPolicy) -> tuple[Vectors, Keys]:
        """Find the nearest live rows of each query.

        Args:
            queries: (n, dim) float32, checked.
            k: at least 1.
            policy: how hard to search.

        Returns:
            (n, min(k, live rows)) scores, best first, and keys.
        """
        if not self.count:
            return no_hits(len(queries))
        if self.dead and self._bits is None:
            self._bits = bits(self.alive)
        k = min(k, self.count)
        effort = self._effort(k, self.count / self.keys.size, policy)
        return self._search_rows(queries, k, effort, self._bits)

    def search_among(
        self, queries: Vectors, k: int, allowed: Keys, policy: IndexPolicy
    ) -> tuple[Vectors, Keys]:
        """Find the nearest among some keys, distinct and ascending; else as `search`."""
        found = self._allowed_rows(allowed)
        count = found.rows.size
        if not count:
            return no_hits(len(queries))
        share, k = count / self.keys.size, min(k, count)
        effort = self._effort(k, share, policy)
        if policy.picks(count, self.keys.size, effort):
            return self.rows.pick(queries, k, found.rows, found.keys)
        if found.bits is None:
            found.bits = bits_of(found.rows, self.keys.size)
        return self._search_rows(queries, k, effort, found.bits)

    def _allowed_rows(self, allowed: Keys) -> _AllowedRows:
        """The rows of keys. Looking them up takes longer than a search, so they are remembered."""
        remembered = self._remembered.get(id(allowed))
        if remembered is not None and remembered[0]() is allowed:
            return remembered[1]
        rows, known = self.find(allowed)
        found = _AllowedRows(rows, allowed[known])
        if not allowed.flags.writeable:  # a writeable array may hold other keys the next time
            self._remembered[id(allowed)] = weakref.ref(allowed), found
            if len(self._remembered) > _MAX_REMEMBERED:
                self._remembered.popitem(last=False)
        return found

    def _effort(self, k: int, share: float, policy: IndexPolicy) -> int | None:
        """The effort of a search of a main part; None if comparing all rows costs no more."""
        effort = policy.effort(k, share)
        scans = not isinstance(self.rows, MainRows) or policy.scans(effort, self.keys.size)
        return None if scans else effort

    def _search_rows(
        self, queries: Vectors, k: int, effort: int | None, allowed: NDArray[np.uint8] | None
    ) -> tuple[Vectors, Keys]:
        if effort is not None and isinstance(self.rows, MainRows):
            scores, rows = self.rows.search(queries, k, effort, allowed)
            if not rows.size or rows.min() >= 0:
                return scores, self.keys.take(rows)
        # Also if the graph did not lead to k rows.
        scores, rows = self.rows.scan(queries, k, allowed)
        return scores, self.keys.take(rows)


def without_dead_vectors(part: Part) -> Part:
    """A copy in which no dead row holds its own vector.

    In a graph a dead row takes the vector of a live row that it links to, and still leads the way.
    Any other part must have no dead rows.
    """
    if not part.dead:
        return Part(part.keys, part.rows, part.alive.copy())
    assert isinstance(part.rows, Graph)
    graph, dead = part.rows.copy(), np.flatnonzero(~part.alive)
    if dead.size:
        near = part.rows.links.lowest(dead)
        fits = np.asarray((near >= 0) & part.alive[near])
        chosen = near[np.arange(dead.size), fits.argmax(axis=1)]
        graph.vectors[dead] = np.where(np.any(fits, axis=1)[:, None], graph.vectors[chosen], 0)
    return Part(part.keys, graph, part.alive.copy())
