"""`Build`: the making of a new main part of a `LayeredIndex`, beside searches and writes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from kronos.index.faiss import FaissIndex, Graph, build_beside_searches
from kronos.index.parts import Part

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from kronos.index.gpu import Gpus
    from kronos.index.policy import IndexPolicy
    from kronos.types import Keys, Vectors

_CHUNK, _CHUNK_ON_GPU = 256, 8192
"""So many rows are linked in, or copied, until a build looks whether it is to stop."""


class Build:
    """The making of a new main part; `run` changes nothing that a search can see.

    Args:
        dim: the width of a vector.
        policy: what to make.
        parts: of what; they are searched meanwhile, and rows of theirs may die.
        gpus: where to put it, in the place of building a graph; None: there are none.
    """

    def __init__(
        self, dim: int, policy: IndexPolicy, parts: Sequence[Part], gpus: Gpus | None = None
    ) -> None:
        self.parts = tuple(parts)
        self.alive = tuple(part.alive.copy() for part in parts)
        """As they were when the build began."""
        self.made: Part | None = None
        self._dim = dim
        self._policy = policy
        self._gpus = gpus

    @property
    def is_from_scratch(self) -> bool:
        """Whether a whole graph is built, and not only merged into: it is worth a snapshot."""
        return self._base is None and self._gpus is None

    @property
    def _base(self) -> Graph | None:
        """The graph to begin with."""
        if not self.parts or not isinstance(self.parts[0].rows, Graph):
            return None
        size, alive = self.parts[0].keys.size, int(np.count_nonzero(self.alive[0]))
        return None if self._policy.is_worn(size, size - alive) else self.parts[0].rows

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
            policy = self._policy
            graph = Graph(self._dim, width=policy.neighbours, effort=policy.build_effort)
            alive = np.ones(keys.size, np.bool_)
        else:
            graph = base.copy()
            alive = np.concatenate([self.alive[0], np.ones(keys.size, np.bool_)])
        for start in range(0, keys.size, _CHUNK):
            if stopped():
                return False
            graph.add(self._gather(places[start : start + _CHUNK], first))
        if base is not None:
            keys = np.concatenate([self.parts[0].keys, keys])
        self.made = Part(keys, graph, alive)
        return True

    def _run_on(self, gpus: Gpus, stopped: Callable[[], bool]) -> bool:
        keys, places = self._rows_of(0)
        index = FaissIndex(self._dim)
        for start in range(0, keys.size, _CHUNK_ON_GPU):
            if stopped():
                return False
            part = slice(start, start + _CHUNK_ON_GPU)
            index.upsert(keys[part], self._gather(places[part], 0))
        keys, rows = index.freeze()
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

    def _gather(self, places: NDArray[np.intp], first: int) -> Vectors:
        vectors = np.empty((len(places), self._dim), np.float32)
        for number in range(first, len(self.parts)):
            here = places[:, 0] == number
            if here.any():
                vectors[here] = self.parts[number].rows.vectors[places[here, 1]]
        return vectors
