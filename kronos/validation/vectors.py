"""Vectors: finite float32 rows of unit length."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from kronos.errors import DimensionMismatchError, VectorError
from kronos.validation.texts import shorten

if TYPE_CHECKING:
    from kronos.types import Vectors

_FLOAT32 = np.dtype(np.float32)
_UNIT_TOLERANCE = 1e-6
_ROUNDED = 1e-4
"""An upper bound for how far float32 rounding moves the length of a wide unit vector from 1."""


def check_embeddings(
    embeddings: Sequence[Vectors | Sequence[float] | None],
    dim: int,
    space: str,
    name: Callable[[int], str],
) -> Vectors:
    """Check vectors from a caller, and scale them to unit length.

    Args:
        embeddings: n vectors.
        dim: the width of their space.
        space: the name of their space, for errors.
        name: gives the name for errors of the vector at a position.

    Returns:
        (n, dim) float32, C-contiguous. Rows of unit length are not changed.

    Raises:
        DimensionMismatchError: the width differs from `dim`.
        VectorError: not floats, NaN or inf, or length 0.
    """
    rows = np.empty((len(embeddings), dim), np.float32)
    for position, embedding in enumerate(embeddings):
        rows[position] = _as_vector(embedding, dim, space, name, position)
    return scale_to_unit(rows, name)


def unusable_rows(rows: Vectors) -> dict[int, str]:
    """Find vectors that cannot be scaled to unit length.

    Args:
        rows: (n, dim) float32.

    Returns:
        What is wrong with each of them, by position.
    """
    return _unusable(_norms(rows))


def not_unit(rows: Vectors) -> Any:
    """Which vectors, (n, dim) float32, do not have unit length: (n,) bool."""
    return ~(np.abs(_norms(rows) - 1) <= _ROUNDED)  # negated, so that NaN counts as not unit


def _unusable(norms: Any) -> dict[int, str]:
    return {
        position: "has length 0" if norms[position] == 0 else "holds NaN or inf"
        for position in np.flatnonzero(~(np.isfinite(norms) & (norms > 0))).tolist()
    }


def _norms(rows: Vectors) -> Any:
    # In float64: the squares of finite float32 values may overflow float32.
    if len(rows) == 1:
        return np.array([_norm(rows[0])])
    return np.sqrt(np.einsum("ij,ij->i", rows, rows, dtype=np.float64))


def _norm(row: Vectors) -> float:
    """The same for one vector, without the set-up cost of einsum."""
    wide = row.astype(np.float64)
    return math.sqrt(wide @ wide)


def scale_to_unit(rows: Vectors, name: Callable[[int], str]) -> Vectors:
    """Scale vectors to unit length.

    Args:
        rows: (n, dim) float32.
        name: gives the name for errors of the row at a position.

    Returns:
        (n, dim) float32, C-contiguous. Rows of unit length are not changed.

    Raises:
        VectorError: a row holds NaN or inf, or has length 0.
    """
    # The fast path for one query or one write: a plain number is faster than an array of one.
    if len(rows) == 1 and abs(_norm(rows[0]) - 1) <= _UNIT_TOLERANCE:
        return np.array(rows, np.float32, order="C")
    norms = _norms(rows)
    are_unit = np.abs(norms - 1) <= _UNIT_TOLERANCE  # False for NaN
    if are_unit.all():
        return np.array(rows, np.float32, order="C")
    for position, found in _unusable(norms).items():
        raise VectorError(
            f"{name(position)} {found}: pass a finite vector of non-zero length",
            field=name(position),
        )
    scale = np.where(are_unit, 1.0, norms)
    return np.ascontiguousarray(rows / scale[:, None], np.float32)


def _as_vector(
    embedding: object, dim: int, space: str, name: Callable[[int], str], position: int
) -> Vectors:
    if type(embedding) is np.ndarray and embedding.dtype == _FLOAT32 and embedding.shape == (dim,):
        return embedding
    try:
        vector = np.asarray(embedding)
        if vector.dtype.kind not in "fiu":
            raise TypeError(f"its values are of type {vector.dtype}")
    except (TypeError, ValueError) as exc:
        field = name(position)
        raise VectorError(
            f"{field} must be a sequence of {dim} floats: {shorten(str(exc))}", field=field
        ) from None
    if vector.shape != (dim,):
        field = name(position)
        raise DimensionMismatchError(
            f"{field} has shape {vector.shape}, expected ({dim},) for the space of {space}: "
            "embed it with that model, or change the store's model with `kronos reindex`",
            field=field,
        )
    with np.errstate(over="ignore"):
        return vector.astype(np.float32, copy=False)
