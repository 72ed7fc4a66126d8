"""`Build`: the making of a new main part of a `LayeredIndex`, beside searches and writes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from kronos.index.coded import CodedRows
from kronos.index.faiss import FaissIndex, Graph, MainRows, Rows, build_beside_searches
from kronos.index.parts import Part

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from kronos.index.gpu import Gpus
    from kronos.index.policy import IndexPolicy
    from kronos.types import Keys, Vectors

_LINKED_AT_ONCE, _COPIED_AT_ONCE = 256, 8192
"""So many rows are linked in, or copied, until a build looks whether it is to stop."""
_TRAINED_ON = 2**17
"""So many rows at most: what is learnt from more is the same, and nothing can stop it meanwhile."""


def empty_main(dim: int, policy: IndexPolicy) -> MainRows:
    """A main part of the kind that a policy wants.

    Raises:
        ConfigurationError: this FAISS cannot make it.
    """
    if policy.links is not None:
        return Graph(dim, width=policy.links, effort=policy.build_effort)
    return CodedRows(dim, policy.main, effort=policy.build_effort)


class Build:
    """The making of a new main part; `run` changes nothing that a search can see.

    Args:
        dim: the width of a vector.
        policy: what to make.
        parts: of what; they are searched meanwhile, and rows of theirs may die.
        gpus: where to put it, in the place of an index on the CPU; None: there are none.
    """

    def __init__(
        self, dim: int, policy: IndexPolicy, parts: Sequence[Part], gpus: Gpus | None = None
    ) -> None:
        self.parts = tuple(parts)
        self.alive = tuple(part.alive.copy() for part in parts)
        """As they were when the build began."""
        self.made: Part | None = None
        self.copies: Part | None = None
        """Rows that stay flat, as too many others of the main part have the very same vector."""
        self._dim = dim
        self._policy = policy
        self._gpus = gpus

    @property
    def is_from_scratch(self) -> bool:
        """Whether a whole main part is built that is saved, and not only merged into."""
        return self._base is None and self._gpus is None

    @property
    def _base(self) -> MainRows | None:
        """The main part to begin with; None where it is worn, or of another kind than wanted."""
        rows = self.parts[0].rows if self.parts else None
        if not isinstance(rows, MainRows) or rows.name != self._policy.main:
            return None
        size, alive = self.parts[0].keys.size, int(np.count_nonzero(self.alive[0]))
        return None if self._policy.is_worn(size, size - alive) else rows

    def run(self, stopped: Callable[[], bool] = lambda: False) -> bool:
        """Build; False when it was stopped before it was done.

        Called by a thread of its own: afterwards FAISS uses half of the processors there.

        Args:
            stopped: asked now and then whether to stop.
        """
        build_beside_searches()
        if self._gpus is not None:
            return self._run_on(self._gpus, stopped)
        base = self._base
        first = 0 if base is None else 1
        keys, places = self._rows_of(first)
        if base is None:
            made = empty_main(self._dim, self._policy)
            sample = np.linspace(0, keys.size - 1, min(keys.size, _TRAINED_ON)).astype(np.intp)
            made.train(self._gather(places[sample], first))
        else:
            made = base.copy()
        linked = self._are_linked(base, places, first)
        copies = self._flat(keys[~linked], places[~linked], first, stopped)
        if copies is None:
            return False
        keys, places = keys[linked], places[linked]
        for start in range(0, keys.size, _LINKED_AT_ONCE):
            if stopped():
                return False
            made.add(self._gather(places[start : start + _LINKED_AT_ONCE], first))
        alive = np.ones(keys.size, np.bool_)
        if base is not None:
            keys = np.concatenate([self.parts[0].keys, keys])
            alive = np.concatenate([self.alive[0], alive])
        self.made = Part(keys, made, alive)
        self.copies = Part(*copies) if len(copies[1]) else None
        return True

    def _run_on(self, gpus: Gpus, stopped: Callable[[], bool]) -> bool:
        flat = self._flat(*self._rows_of(0), 0, stopped)
        if flat is None:
            return False
        keys, rows = flat
        self.made = Part(keys, gpus.hold(rows))
        return True

    def _rows_of(self, first: int) -> tuple[Keys, NDArray[np.intp]]:
        """The living keys of the parts from some one on, ascending, and where each lies."""
        found = [np.empty(0, np.int64)]
        places = [np.empty((0, 2), np.intp)]
        for number in range(first, len(self.parts)):
            rows = np.flatnonzero(self.alive[number])
            found.append(self.parts[number].keys[rows])
            places.append(np.stack([np.full(rows.size, number), rows], axis=1))
        keys = np.concatenate(found)
        order = np.argsort(keys, kind="stable")
        return keys[order], np.concatenate(places)[order]

    def _are_linked(
        self, base: MainRows | None, places: NDArray[np.intp], first: int
    ) -> NDArray[np.bool_]:
        """Which rows are to be part of the main part: (n,) bool; the others are one copy too many.

        An HNSW graph links a row to its nearest, and of many with one vector to nothing but each
        other: a search that comes from elsewhere never enters among them.
        """
        most = self._policy.most_copies
        if most is None:
            return np.ones(len(places), np.bool_)
        held = np.empty((0, self._dim), np.float32) if base is None else base.vectors
        weights = np.random.default_rng(0).integers(0, 2**63, self._dim, np.uint64) * 2 + 1
        seen = [np.empty(0, np.uint64)]
        for at in range(0, len(held), _COPIED_AT_ONCE):
            seen.append(_digests(held[at : at + _COPIED_AT_ONCE], weights))
        for at in range(0, len(places), _COPIED_AT_ONCE):
            seen.append(_digests(self._gather(places[at : at + _COPIED_AT_ONCE], first), weights))
        return _ranks(np.concatenate(seen))[len(held) :] < most

    def _flat(
        self, keys: Keys, places: NDArray[np.intp], first: int, stopped: Callable[[], bool]
    ) -> tuple[Keys, Rows] | None:
        """Rows without an index over them, and their keys; None when it was stopped."""
        flat = FaissIndex(self._dim)
        for start in range(0, keys.size, _COPIED_AT_ONCE):
            if stopped():
                return None
            part = slice(start, start + _COPIED_AT_ONCE)
            flat.upsert(keys[part], self._gather(places[part], first))
        return flat.freeze()

    def _gather(self, places: NDArray[np.intp], first: int) -> Vectors:
        vectors = np.empty((len(places), self._dim), np.float32)
        for number in range(first, len(self.parts)):
            here = places[:, 0] == number
            if here.any():
                vectors[here] = self.parts[number].rows.vectors[places[here, 1]]
        return vectors


def _digests(vectors: Vectors, weights: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A number for each vector, (n,); equal vectors have equal ones, and hardly any others do."""
    found: NDArray[np.uint64] = (vectors.view(np.uint32) * weights).sum(axis=1, dtype=np.uint64)
    return found


def _ranks(values: NDArray[np.uint64]) -> NDArray[np.intp]:
    """How many values before it equal each one: (n,)."""
    order = np.argsort(values, kind="stable")
    sorted_values = values[order]
    begins = np.concatenate([[True], sorted_values[1:] != sorted_values[:-1]])[: values.size]
    places = np.arange(values.size)
    ranks = np.empty(values.size, np.intp)
    ranks[order] = places - np.maximum.accumulate(np.where(begins, places, 0))
    return ranks
