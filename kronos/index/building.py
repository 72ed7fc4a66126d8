"""`Build`: builds a new main part of a `LayeredIndex` while searches and writes go on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from kronos.index.faiss.coded import CodedRows
from kronos.index.faiss.flat import FaissIndex
from kronos.index.faiss.graph import Graph
from kronos.index.faiss.library import use_half_of_the_processors
from kronos.index.faiss.rows import MainRows, Rows
from kronos.index.part import Part

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from kronos.index.gpu.faiss_gpu import Gpus
    from kronos.index.policy import IndexPolicy
    from kronos.types import Keys, Vectors

_ADDED_AT_ONCE, _COPIED_AT_ONCE = 256, 8192
"""How many rows are added to the main part, or copied, before a build checks whether to stop."""
_MAX_TRAINED_ROWS = 2**17
"""A main part is trained on at most this many rows: more improve little, and training cannot be
stopped."""


def empty_main(dim: int, policy: IndexPolicy) -> MainRows:
    """An empty main part of the kind that a policy names.

    Raises:
        ConfigurationError: this FAISS cannot make it.
    """
    if policy.links is not None:
        return Graph(dim, width=policy.links, effort=policy.build_effort)
    return CodedRows(dim, policy.main, effort=policy.build_effort)


class Build:
    """Builds a new main part; `run` changes nothing that a search can see.

    Args:
        dim: the width of a vector.
        policy: what to build.
        parts: the parts to build from; they are searched meanwhile, and their rows may die.
        gpus: hold the new main part instead of an index on the CPU; None: there are none.
    """

    def __init__(
        self, dim: int, policy: IndexPolicy, parts: Sequence[Part], gpus: Gpus | None = None
    ) -> None:
        self.parts = tuple(parts)
        self.alive = tuple(part.alive.copy() for part in parts)
        """Which rows of each part were alive when the build began."""
        self.made: Part | None = None
        self.duplicates: Part | None = None
        """Rows left out of the main part, since too many of its rows have the same vector."""
        self._dim = dim
        self._policy = policy
        self._gpus = gpus

    @property
    def is_from_scratch(self) -> bool:
        """Whether a whole main part is built on the CPU, rather than an old one merged into."""
        return self._base is None and self._gpus is None

    @property
    def _base(self) -> MainRows | None:
        """The main part to add to; None if it is worn or of another kind than the policy's."""
        rows = self.parts[0].rows if self.parts else None
        if not isinstance(rows, MainRows) or rows.name != self._policy.main:
            return None
        size, alive = self.parts[0].keys.size, int(np.count_nonzero(self.alive[0]))
        return None if self._policy.is_worn(size, size - alive) else rows

    def run(self, stopped: Callable[[], bool] = lambda: False) -> bool:
        """Build, on a thread of its own, which FAISS then limits to half of the processors.

        Args:
            stopped: asked at intervals whether to stop.

        Returns:
            False if it was stopped before it was done.
        """
        use_half_of_the_processors()
        if self._gpus is not None:
            return self._run_on_gpus(self._gpus, stopped)
        base = self._base
        first = 0 if base is None else 1
        keys, places = self._rows_of(first)
        if base is None:
            made = empty_main(self._dim, self._policy)
            sample = np.linspace(0, keys.size - 1, min(keys.size, _MAX_TRAINED_ROWS))
            made.train(self._gather(places[sample.astype(np.intp)], first))
        else:
            made = base.copy()
        added = self._belong_in_main(base, places, first)
        duplicates = self._flat(keys[~added], places[~added], first, stopped)
        if duplicates is None:
            return False
        keys, places = keys[added], places[added]
        for start in range(0, keys.size, _ADDED_AT_ONCE):
            if stopped():
                return False
            made.add(self._gather(places[start : start + _ADDED_AT_ONCE], first))
        alive = np.ones(keys.size, np.bool_)
        if base is not None:
            keys = np.concatenate([self.parts[0].keys, keys])
            alive = np.concatenate([self.alive[0], alive])
        self.made = Part(keys, made, alive)
        self.duplicates = Part(*duplicates) if len(duplicates[1]) else None
        return True

    def _run_on_gpus(self, gpus: Gpus, stopped: Callable[[], bool]) -> bool:
        flat = self._flat(*self._rows_of(0), 0, stopped)
        if flat is None:
            return False
        keys, rows = flat
        self.made = Part(keys, gpus.hold(rows))
        return True

    def _rows_of(self, first: int) -> tuple[Keys, NDArray[np.intp]]:
        """The live keys of the parts from number `first` on, and the place of each.

        Returns:
            (n,) keys, ascending, and (n, 2) the part number and the row of each.
        """
        found = [np.empty(0, np.int64)]
        places = [np.empty((0, 2), np.intp)]
        for number in range(first, len(self.parts)):
            rows = np.flatnonzero(self.alive[number])
            found.append(self.parts[number].keys[rows])
            places.append(np.stack([np.full(rows.size, number), rows], axis=1))
        keys = np.concatenate(found)
        order = np.argsort(keys, kind="stable")
        return keys[order], np.concatenate(places)[order]

    def _belong_in_main(
        self, base: MainRows | None, places: NDArray[np.intp], first: int
    ) -> NDArray[np.bool_]:
        """Which rows belong in the main part: (n,) bool; the others duplicate too many rows.

        An HNSW graph links a row to its nearest rows. Many rows with the same vector would link
        only to each other, and a search that comes from elsewhere would never reach them.
        """
        most = self._policy.max_duplicates
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
        """Rows without an index over them, and their keys; None if it was stopped."""
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
    """A hash of each vector, (n,): equal for equal vectors, and almost never for others."""
    found: NDArray[np.uint64] = (vectors.view(np.uint32) * weights).sum(axis=1, dtype=np.uint64)
    return found


def _ranks(values: NDArray[np.uint64]) -> NDArray[np.intp]:
    """How many earlier values each value equals: (n,)."""
    order = np.argsort(values, kind="stable")
    sorted_values = values[order]
    begins = np.concatenate([[True], sorted_values[1:] != sorted_values[:-1]])[: values.size]
    places = np.arange(values.size)
    ranks = np.empty(values.size, np.intp)
    ranks[order] = places - np.maximum.accumulate(np.where(begins, places, 0))
    return ranks
