"""`Tuning`: how much of the truth a main part finds, and how hard it must look to find enough.

Measured on the index's own vectors, against comparing them all, while searches and writes go on.
It changes nothing; its owner takes over what it found.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from kronos.index.faiss import MainRows
    from kronos.index.policy import IndexPolicy
    from kronos.types import Vectors

EFFORTS = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)
"""Those that are tried, least first: FAISS's efSearch, or nprobe."""
_QUERIES = 200
_K = 10
_AS_NEAR = 1e-5
"""What the two ways to compute a score may differ by."""


@dataclass(frozen=True, slots=True)
class Tuned:
    """What was found."""

    effort: int
    """Candidates that a search is to follow, for k up to 10."""
    recall: float
    """The share of the 10 nearest that it found then, 0..1; 1 where it compares all."""


class Tuning:
    """Measures one graph.

    Args:
        graph: what is measured; nobody changes it.
        rows: those alive, at least one: (n,).
        allowed: their bits; None: all are.
        policy: how it is searched, but for the effort.
    """

    def __init__(
        self,
        graph: MainRows,
        rows: NDArray[np.intp],
        allowed: NDArray[np.uint8] | None,
        policy: IndexPolicy,
    ) -> None:
        self._graph = graph
        self._allowed = allowed
        self._policy = policy
        self._share = rows.size / len(graph)
        # The same ones every time, and spread over all.
        self._asked = rows[np.linspace(0, rows.size - 1, min(_QUERIES, rows.size)).astype(np.intp)]
        self._k = min(_K + 1, rows.size)
        """One more than is counted: each finds itself, which says nothing."""

    def run(self, target: float, stopped: Callable[[], bool] = lambda: False) -> Tuned | None:
        """Find the least effort that reaches a recall, or the greatest; None when stopped.

        Args:
            target: the recall@10 that is wanted, 0..1.
            stopped: asked now and then whether to stop.
        """
        truth = []
        for row in self._asked.tolist():
            if stopped():
                return None
            answer = self._graph.scan(self._query(row), self._k, self._allowed)
            truth.append(self._others(row, answer))
        tuned = None
        for effort in EFFORTS:
            if stopped():
                return None
            tuned = Tuned(effort, self._recall(effort, truth))
            if tuned.recall >= target:
                break
        return tuned

    def _recall(self, effort: int, truth: list[Vectors]) -> float:
        policy = replace(self._policy, search_effort=effort)
        effort = policy.effort(_K, self._share)
        if policy.scans(effort, len(self._graph)):
            return 1.0
        found = wanted = 0
        for row, best in zip(self._asked.tolist(), truth, strict=True):
            answer = self._graph.search(self._query(row), self._k, effort, self._allowed)
            # By score: which of several that are equally near are found is all the same.
            found += int(np.count_nonzero(self._others(row, answer) >= best[-1:] - _AS_NEAR))
            wanted += best.size
        return found / wanted if wanted else 1.0

    def _query(self, row: int) -> Vectors:
        return self._graph.vectors[row : row + 1]

    @staticmethod
    def _others(row: int, answer: tuple[Vectors, NDArray[np.int64]]) -> Vectors:
        """The scores of all but the row itself, best first: those of the 10 best at most."""
        (scores,), (rows,) = answer
        others: Vectors = scores[(rows != row) & (rows >= 0)][:_K]
        return others
