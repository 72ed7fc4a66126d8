"""Candidates that were scored roughly, made exact: scored anew in float32, and enough of them.

What a device finds in half precision, or without knowing which rows may be found, is a proposal.
The rows on the host decide.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from kronos.index.base import best

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from kronos.types import Vectors

HALF_ERROR = 2.0**-8
"""How far a score in float16 may be off, for vectors of unit length: both are rounded (2^-11 each),
so is the result, and so may be partial sums."""
LONGEST_HALF = 4.0
"""Longer rows are not kept in float16: their products might not fit it."""
_MORE = 6
"""What was not enough is asked for again, so many times as many."""

Propose = Callable[["Vectors", int], "tuple[Vectors, NDArray[np.int64]]"]
"""From (n, dim) queries of unit length and a number to (n, number) scores, best first, and rows;
-1 for none."""


def refine(
    propose: Propose,
    queries: Vectors,
    k: int,
    vectors: Vectors,
    *,
    most: int,
    error: float,
    allowed: NDArray[np.uint8] | None = None,
) -> tuple[Vectors, NDArray[np.int64]] | None:
    """Find the k nearest rows among what is proposed; ask for more until no other can be nearer.

    Args:
        propose: finds rows, roughly.
        queries: (n, dim) float32, checked.
        k: at least 1, and not more than may be found.
        vectors: (m, dim) float32, the rows.
        most: no more rows can be proposed: m, or a limit of the device, where what there is does.
        error: how far a proposed score may be off; 0 for a search that is approximate anyway.
        allowed: one bit for each row that may be found; None: all.

    Returns:
        (n, k) scores and rows, best first; None: most of them did not hold k that may be found.
    """
    lengths = np.linalg.norm(queries, axis=1)
    lengths[lengths == 0] = 1
    directions = queries / lengths[:, None]
    scores = np.empty((len(queries), k), np.float32)
    found = np.empty((len(queries), k), np.int64)
    todo, count = np.arange(len(queries)), min(2 * k + 16, most)
    while todo.size:
        rough, rows = propose(directions[todo], count)
        unsure = []
        for at, low, near in zip(todo.tolist(), rough[:, -1].tolist(), rows, strict=True):
            near = _findable(near, allowed)
            if near.size >= k:
                exact = vectors.take(near, axis=0) @ queries[at]
                order = best(exact, k)
                scores[at], found[at] = exact[order], near[order]
                if not error or count == most or scores[at, -1] > (low + error) * lengths[at]:
                    continue
            elif count == most:
                return None
            unsure.append(at)
        todo, count = np.array(unsure, np.intp), min(count * _MORE, most)
    return scores, found


def longest(vectors: Vectors) -> float:
    """The length of the longest of (n, dim) vectors; 0 when there is none."""
    return math.sqrt(float(np.einsum("ij,ij->i", vectors, vectors).max(initial=0)))


def _findable(rows: NDArray[np.int64], allowed: NDArray[np.uint8] | None) -> NDArray[np.int64]:
    rows = rows[rows >= 0]
    return rows if allowed is None else rows[(allowed[rows >> 3] >> (rows & 7) & 1) != 0]
