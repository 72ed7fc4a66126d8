"""`Tuning`: measures the recall of a main part, and the least search effort for a wanted recall.

Recall is measured on the index's own vectors, against comparing all of them, while searches and
writes go on. Like real queries, the queries are near memories but not equal to them: see
`_QUERY_OFFSET`. Tuning changes nothing; its owner applies the result.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from kronos.index.faiss.rows import MainRows
    from kronos.index.policy import IndexPolicy
    from kronos.types import Vectors

EFFORTS = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)
"""The efforts that are tried, least first: FAISS's efSearch, or nprobe."""
_QUERIES = 200
_K = 10
_QUERY_OFFSET = 1.5
"""A query is a memory's unit vector, moved this far in a random direction, so the two have a cosine
of about .55, as a question and its answer may have. Memories themselves would measure too high a
recall: their own links lead to their neighbours."""
_SCORE_ERROR = 1e-5
"""The largest difference between the two ways to compute a score."""


@dataclass(frozen=True, slots=True)
class TuningResult:
    """The measured effort and its recall."""

    effort: int
    """Candidates that a search should follow, for k up to 10."""
    recall: float
    """The share of the 10 nearest that it finds with this effort, 0..1; 1 if it compares all."""


class Tuning:
    """Measures one main part.

    Args:
        main: the main part's rows; they must not change.
        rows: the live rows, at least one: (n,).
        allowed: their bitmap; None: all are alive.
        policy: how the main part is searched, except for the effort.
    """

    def __init__(
        self,
        main: MainRows,
        rows: NDArray[np.intp],
        allowed: NDArray[np.uint8] | None,
        policy: IndexPolicy,
    ) -> None:
        self._main = main
        self._allowed = allowed
        self._policy = policy
        self._share = rows.size / len(main)
        self._k = min(_K, rows.size)
        # The same rows every time, spread over all.
        asked = rows[np.linspace(0, rows.size - 1, min(_QUERIES, rows.size)).astype(np.intp)]
        self._queries = _moved(main.vectors[asked])

    def run(
        self, target: float, stopped: Callable[[], bool] = lambda: False
    ) -> TuningResult | None:
        """Find the least effort that reaches a recall; the greatest effort if none does.

        Args:
            target: the wanted recall@10, 0..1.
            stopped: asked at intervals whether to stop.

        Returns:
            None if it was stopped.
        """
        furthest = []
        for query in self._queries:
            if stopped():
                return None
            scores, _ = self._main.scan(query[None], self._k, self._allowed)
            furthest.append(scores[0, -1])
        tuned = None
        for effort in EFFORTS:
            if stopped():
                return None
            tuned = TuningResult(effort, self._recall(effort, np.array(furthest)))
            if tuned.recall >= target:
                break
        return tuned

    def _recall(self, effort: int, furthest: Vectors) -> float:
        """The share that is found, compared by score: any of several equally near rows counts."""
        policy = replace(self._policy, search_effort=effort)
        effort = policy.effort(self._k, self._share)
        if policy.scans(effort, len(self._main)):
            return 1.0
        found = 0
        for query, least in zip(self._queries, furthest, strict=True):
            scores, rows = self._main.search(query[None], self._k, effort, self._allowed)
            found += int(np.count_nonzero((scores >= least - _SCORE_ERROR) & (rows >= 0)))
        return found / (len(self._queries) * self._k)


def _moved(vectors: Vectors) -> Vectors:
    """Unit vectors moved by `_QUERY_OFFSET` in random directions: (n, dim) float32 unit rows."""
    moves = np.random.default_rng(0).standard_normal(vectors.shape)
    moved = vectors + _QUERY_OFFSET * moves / np.linalg.norm(moves, axis=1, keepdims=True)
    moved /= np.linalg.norm(moved, axis=1, keepdims=True)
    return np.ascontiguousarray(moved, np.float32)
