"""Makes rough candidates exact: scores them again in float32, and asks for more until sure.

A device proposes rows in half precision, or without knowing which rows may be found. The rows on
the host decide.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from kronos.index.base import top_k

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from kronos.types import Vectors

HALF_ERROR = 2.0**-8
"""The largest error of a float16 score of unit vectors. Both vectors are rounded (2^-11 each), so
is the result, and so may be partial sums."""
MAX_HALF_LENGTH = 4.0
"""Longer rows are not kept in float16: their products might overflow it."""
_GROWTH = 6
"""When the candidates were not enough, this many times as many are asked for."""

Propose = Callable[["Vectors", int], "tuple[Vectors, NDArray[np.int64]]"]
"""Takes (n, dim) queries of unit length and a number of rows; returns (n, number) scores, best
first, and rows, -1 for none."""


def rescore(
    propose: Propose,
    queries: Vectors,
    k: int,
    vectors: Vectors,
    *,
    most: int,
    error: float,
    allowed: NDArray[np.uint8] | None = None,
) -> tuple[Vectors, NDArray[np.int64]] | None:
    """Find the k nearest rows among proposed ones; ask for more until no other can be nearer.

    Args:
        propose: finds rows, roughly.
        queries: (n, dim) float32, checked.
        k: at least 1, and at most the number of allowed rows.
        vectors: (m, dim) float32, the rows.
        most: the most rows that can be proposed: m, or the device's limit.
        error: the largest error of a proposed score; 0 for a search that is approximate anyway.
        allowed: the bitmap of the rows that may be found; None: all.

    Returns:
        (n, k) scores and rows, best first; None if `most` rows did not hold k allowed ones.
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
        for at, lowest, near in zip(todo.tolist(), rough[:, -1].tolist(), rows, strict=True):
            near = _allowed_rows(near, allowed)
            if near.size >= k:
                exact = vectors.take(near, axis=0) @ queries[at]
                order = top_k(exact, k)
                scores[at], found[at] = exact[order], near[order]
                if not error or count == most or scores[at, -1] > (lowest + error) * lengths[at]:
                    continue
            elif count == most:
                return None
            unsure.append(at)
        todo, count = np.array(unsure, np.intp), min(count * _GROWTH, most)
    return scores, found


def longest(vectors: Vectors) -> float:
    """The length of the longest of (n, dim) vectors; 0 if there is none."""
    return math.sqrt(float(np.einsum("ij,ij->i", vectors, vectors).max(initial=0)))


def _allowed_rows(rows: NDArray[np.int64], allowed: NDArray[np.uint8] | None) -> NDArray[np.int64]:
    rows = rows[rows >= 0]
    return rows if allowed is None else rows[(allowed[rows >> 3] >> (rows & 7) & 1) != 0]
