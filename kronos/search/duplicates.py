"""Near duplicates: groups of keys whose vectors are nearly the same.

The result is exact for every kind of index: every pair is compared. Pairs are compared in tiles of
a bounded size, with a few numbers for each key, so memory grows with the keys and not with the
pairs. The index is only read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from kronos.concurrency.progress import Steps
from kronos.errors import InputError
from kronos.types import DuplicateGroup
from kronos.validation import check_limit, check_number

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from kronos.repository.memories import Repository
    from kronos.types import Keys, VectorIndex, Vectors

    Numbers: TypeAlias = NDArray[np.intp]
    Scores: TypeAlias = NDArray[np.float64]

DECIMALS = 6
"""Decimals of a score. float32 vectors have no more, and with these equal vectors score 1.0."""
_COLUMNS = 4
"""The width of a tile, in heights."""
_SLACK = 1e-4
"""More than the rounding error of float32 products of unit vectors."""


@dataclass(frozen=True, slots=True)
class KeyGroup:
    """Keys whose vectors are connected by similar pairs."""

    keys: tuple[int, ...]
    """At least two, ascending."""
    score: float
    """The highest threshold, to six decimals, at which they are still one group."""


def near_duplicates(
    index: VectorIndex,
    threshold: float,
    *,
    allowed: Keys | None = None,
    batch: int = 1024,
    steps: Steps | None = None,
) -> list[KeyGroup]:
    """Find the groups of keys whose vectors are nearly the same.

    Two vectors are a pair if their cosine, rounded to six decimals, is at least the threshold. A
    group is a connected component of pairs. Its score is that of the weakest pair in its maximum
    spanning tree.

    Args:
        index: of unit vectors; only `keys` and `vectors_of` are called.
        threshold: above 0, at most 1.
        allowed: (n,) int64, the keys to compare; None: all.
        batch: how many vectors to compare at once with four times as many.
        steps: progress, one step for each vector that was compared with all others.

    Returns:
        The groups, highest score first; of equal scores, the lowest key first.

    Raises:
        InputError: the threshold or the batch is refused.
        StoppedError: the caller asked to stop.
    """
    threshold = check_threshold(threshold)
    keys = index.keys()
    if allowed is not None:
        keys = np.intersect1d(keys, allowed)
    if not keys.size:
        return []
    batch = check_limit(batch, field="batch")
    tiles = _Tiles(index, keys, threshold, batch, steps or Steps())
    forest = _Forest(keys.size)
    # Borůvka's algorithm: each group takes the best pair that leads out of it. The number of groups
    # at least halves in each round, and rows without a pair take part in the first round only.
    rows = np.arange(keys.size)
    while rows.size:
        best, partner = tiles.best_outside(rows, forest.roots)
        found = np.flatnonzero(best >= 0)
        forest.join(rows[found], partner[found], best[found])
        rows = rows[np.isin(forest.roots[rows], forest.roots[rows[found]])]
    groups = [KeyGroup(tuple(keys[rows].tolist()), score) for rows, score in forest.groups()]
    return sorted(groups, key=lambda group: (-group.score, group.keys))


def check_threshold(threshold: float) -> float:
    """The cosine from which on two vectors are a pair; refused unless above 0 and at most 1."""
    number = check_number(threshold, field="threshold")
    if not 0 < number <= 1:
        raise InputError(
            f"threshold must be above 0 and at most 1, not {threshold!r}", field="threshold"
        )
    return number


def groups_of(repository: Repository, found: Sequence[KeyGroup]) -> list[DuplicateGroup]:
    """The live memories of each group; groups with fewer than two are left out."""
    memories = repository.by_keys(np.array([key for each in found for key in each.keys], np.int64))
    live = [([key for key in each.keys if key in memories], each.score) for each in found]
    return [
        DuplicateGroup(tuple(memories[key] for key in keys), score)
        for keys, score in live
        if len(keys) > 1
    ]


class _Tiles:
    """Compares the vectors of an index in tiles. A row is the position of a key."""

    def __init__(
        self, index: VectorIndex, keys: Keys, threshold: float, batch: int, steps: Steps
    ) -> None:
        self._steps = steps
        self._index = index
        self._keys = keys
        self._threshold = threshold
        self._batch = batch

    def best_outside(self, rows: Numbers, roots: Numbers) -> tuple[Scores, Numbers]:
        """The best pair of each row with a row in another group.

        Args:
            rows: (n,), ascending.
            roots: the group of every row of the index.

        Returns:
            (n,) scores, -1 without a pair, and (n,) partners: the first of those with equal scores.
        """
        best, partner = np.full(rows.size, -1.0), np.zeros(rows.size, np.intp)
        for ours, theirs, scores in self._tiles(rows, roots):
            scores[_same(roots, rows[ours], rows[theirs])] = -1
            # Both directions: the other half of the pairs has no tile.
            for near, far, table in ((ours, theirs, scores), (theirs, ours, scores.T)):
                place = table.argmax(axis=1)
                score = table[np.arange(near.size), place]
                # Of equal scores the earlier tile's stays, as its row is lower.
                better = (score >= self._threshold) & (score > best[near])
                best[near[better]] = score[better]
                partner[near[better]] = rows[far[place[better]]]
        return best, partner

    def _tiles(self, rows: Numbers, roots: Numbers) -> Iterator[tuple[Numbers, Numbers, Scores]]:
        """The parts of tiles that may have a pair: positions down, positions across, scores."""
        for top in range(0, rows.size, self._batch):
            down = np.arange(top, min(top + self._batch, rows.size))
            ours = self._vectors(rows[down])
            for left in range(top, rows.size, self._batch * _COLUMNS):
                self._steps.check_stopped()
                across = np.arange(left, min(left + self._batch * _COLUMNS, rows.size))
                theirs = self._vectors(rows[across])
                near = ours @ theirs.T >= self._threshold - _SLACK
                if near.any():
                    near &= ~_same(roots, rows[down], rows[across])
                here, there = np.flatnonzero(near.any(axis=1)), np.flatnonzero(near.any(axis=0))
                if here.size:
                    yield down[here], across[there], _cosines(ours[here], theirs[there])
            if rows.size == self._keys.size:  # the first round, which takes longest
                self._steps.report(int(down[-1]) + 1, rows.size)

    def _vectors(self, rows: Numbers) -> Vectors:
        return self._index.vectors_of(self._keys[rows])


def _same(roots: Numbers, ours: Numbers, theirs: Numbers) -> NDArray[np.bool_]:
    """(n, m): which pairs of rows are in the same group."""
    same: NDArray[np.bool_] = roots[ours][:, None] == roots[theirs][None, :]
    return same


def _cosines(ours: Vectors, theirs: Vectors) -> Scores:
    """(n, m) float64 cosines, to six decimals."""
    left, right = ours.astype(np.float64), theirs.astype(np.float64)
    left /= np.linalg.norm(left, axis=1, keepdims=True)
    right /= np.linalg.norm(right, axis=1, keepdims=True)
    scores: Scores = np.round(left @ right.T, DECIMALS)
    return scores


class _Forest:
    """Groups of rows, and the lowest score that joined each."""

    def __init__(self, count: int) -> None:
        self.roots: Numbers = np.arange(count)
        """(count,) the group of each row, named by its lowest row."""
        self._weakest: Scores = np.ones(count)
        """(count,) the lowest score that joined a group, by its root."""

    def join(self, rows: Numbers, partners: Numbers, scores: Scores) -> None:
        """Join each group by the best pair that leads out of it."""
        order = np.lexsort((partners, rows, -scores))
        _, first = np.unique(self.roots[rows[order]], return_index=True)
        parents = self.roots.copy()
        for place in order[first].tolist():
            self._join(parents, rows[place], partners[place], scores[place])
        # Roots point to themselves. Take two steps at once until nothing changes.
        while not np.array_equal(parents, parents[parents]):
            parents = parents[parents]
        self.roots = parents

    def _join(self, parents: Numbers, row: int, partner: int, score: float) -> None:
        low, high = sorted((_root(parents, row), _root(parents, partner)))
        # Two groups may take the same pair, or several groups pairs of one score in a circle.
        if low != high:
            parents[high] = low
            self._weakest[low] = min(self._weakest[low], self._weakest[high], score)

    def groups(self) -> Iterator[tuple[Numbers, float]]:
        """The groups with more than one row: their rows, ascending, and their lowest score."""
        order = np.argsort(self.roots, kind="stable")
        roots, starts = np.unique(self.roots[order], return_index=True)
        for root, rows in zip(roots.tolist(), np.split(order, starts[1:]), strict=True):
            if rows.size > 1:
                yield rows, min(1.0, float(self._weakest[root]))


def _root(parents: Numbers, row: int) -> int:
    while parents[row] != row:
        # Path halving: shortens the way of later calls.
        parents[row] = parents[parents[row]]
        row = int(parents[row])
    return int(row)
