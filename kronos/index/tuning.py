"""`Tuning`: how much of the truth a main part finds, and how hard it must look to find enough.

Measured on the index's own vectors, against comparing them all, while searches and writes go on.
What is asked for lies beside memories, as questions do: see `_APART`. It changes nothing; its owner
takes over what it found.
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
_APART = 1.5
"""A question is a memory's vector, of length 1, moved by so much in a direction of chance; the two
have a cosine of .55. To ask for the memories themselves says too much: their own links lead to what
is near. With 16,000 real texts and an effort of 24 they had a recall of .986, the questions that
people asked .91 and .98, and memories moved by .5 / 1 / 1.5: .979 / .970 / .935."""
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
        self._k = min(_K, rows.size)
        # The same ones every time, and spread over all.
        asked = rows[np.linspace(0, rows.size - 1, min(_QUERIES, rows.size)).astype(np.intp)]
        self._queries = _beside(graph.vectors[asked])

    def run(self, target: float, stopped: Callable[[], bool] = lambda: False) -> Tuned | None:
        """Find the least effort that reaches a recall, or the greatest; None when stopped.

        Args:
            target: the recall@10 that is wanted, 0..1.
            stopped: asked now and then whether to stop.
        """
        furthest = []
        for query in self._queries:
            if stopped():
                return None
            scores, _ = self._graph.scan(query[None], self._k, self._allowed)
            furthest.append(scores[0, -1])
        tuned = None
        for effort in EFFORTS:
            if stopped():
                return None
            tuned = Tuned(effort, self._recall(effort, np.array(furthest)))
            if tuned.recall >= target:
                break
        return tuned

    def _recall(self, effort: int, furthest: Vectors) -> float:
        """The share that is found; by score: which of several equally near ones is all the same."""
        policy = replace(self._policy, search_effort=effort)
        effort = policy.effort(self._k, self._share)
        if policy.scans(effort, len(self._graph)):
            return 1.0
        found = 0
        for query, least in zip(self._queries, furthest, strict=True):
            scores, rows = self._graph.search(query[None], self._k, effort, self._allowed)
            found += int(np.count_nonzero((scores >= least - _AS_NEAR) & (rows >= 0)))
        return found / (len(self._queries) * self._k)


def _beside(vectors: Vectors) -> Vectors:
    """Vectors that lie beside some unit vectors: (n, dim) float32, of unit length."""
    moves = np.random.default_rng(0).standard_normal(vectors.shape)
    moved = vectors + _APART * moves / np.linalg.norm(moves, axis=1, keepdims=True)
    moved /= np.linalg.norm(moved, axis=1, keepdims=True)
    return np.ascontiguousarray(moved, np.float32)
