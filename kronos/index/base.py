"""What every index kind shares: checks on entry, lookup of keys, best-first order, rows as bytes.

Behind these checks keys are int64 and vectors are float32, of the right width, and of a squared
length that float32 holds, so that no inner product of two of them is NaN or inf.
No index by itself.
"""

from __future__ import annotations

import math
import struct
from typing import TYPE_CHECKING, Any

import numpy as np

from kronos.errors import (
    DimensionMismatchError,
    InputError,
    NotFoundError,
    SnapshotError,
    VectorError,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from kronos.types import Keys, Vectors

_PREFIX = struct.Struct("<qq")
"""Width and count, before the keys and the vectors."""


def check_rows(keys: Keys, vectors: Vectors, dim: int) -> tuple[Keys, Vectors]:
    """Check what is to be put into an index; arrays that are right already are not copied.

    Raises:
        DimensionMismatchError: the width is not `dim`.
        VectorError: a value is NaN or inf, shapes do not agree, or a key occurs twice.
    """
    keys = check_keys(keys)
    vectors = _check_vectors(vectors, dim, "vectors")
    if len(keys) != len(vectors):
        raise VectorError(
            f"expected one vector for each key, found {len(keys)} keys and {len(vectors)} vectors",
            field="vectors",
        )
    if len(distinct(keys)) != len(keys):
        values, counts = np.unique(keys, return_counts=True)
        raise VectorError(
            f"expected distinct keys, found {values[counts > 1][0]} more than once: "
            "hand in the newest vector of each key alone",
            field="keys",
        )
    return keys, vectors


def check_queries(queries: Vectors, k: int, dim: int) -> Vectors:
    """Check what is to be searched for.

    Raises:
        DimensionMismatchError: the width is not `dim`.
        VectorError: a value is NaN or inf, or the shape is not (n, dim).
        InputError: k is below 1.
    """
    if k < 1:
        raise InputError(f"k must be at least 1, not {k}", field="k")
    return _check_vectors(queries, dim, "queries")


def check_keys(keys: Keys) -> Keys:
    """Check that keys are (n,) whole numbers, and hand them back as int64."""
    keys = np.asarray(keys)
    if keys.ndim != 1 or (keys.dtype.kind != "i" and keys.size):
        raise VectorError(
            f"keys must be (n,) int64, not {keys.shape} {keys.dtype}",
            field="keys",
        )
    return keys.astype(np.int64, copy=False)


def distinct(keys: Keys) -> Keys:
    """The keys in ascending order, each once; keys that come so, as SQL gives them, cost little."""
    return keys if bool((keys[1:] > keys[:-1]).all()) else np.unique(keys)


def locate(held: Keys, keys: Keys) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """Find keys among those held.

    Args:
        held: in ascending order.
        keys: (n,) in any order.

    Returns:
        The positions in `held` of those keys that are there, and (n,) which keys those are.
    """
    positions = np.searchsorted(held, keys)
    known = positions < held.size
    known[known] = held[positions[known]] == keys[known]
    return positions[known], known


class KeyTable:
    """Finds the rows of keys that stand in no order.

    Args:
        keys: (n,) int64, distinct.
        rows: (n,) the row of each; None: the key at position i is that of row i.
    """

    def __init__(self, keys: Keys, rows: NDArray[np.intp] | None = None) -> None:
        order = np.argsort(keys, kind="stable")
        self._rows: NDArray[np.intp] = order if rows is None else rows[order]
        self._held: Keys = keys[order]

    def find(self, keys: Keys) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
        """The rows of those keys that are held, and (n,) which keys those are."""
        positions, known = locate(self._held, keys)
        return self._rows[positions], known

    def has_twins(self) -> bool:
        """Whether a key stands there twice."""
        return bool((self._held[1:] == self._held[:-1]).any())

    def append(self, keys: Keys) -> None:
        """Take in keys, none of them held, whose rows follow the last one.

        A merge: to sort a million keys anew for every thousand that come takes 20 times as long.
        """
        order = np.argsort(keys, kind="stable")
        positions = np.searchsorted(self._held, keys[order])
        self._rows = np.insert(self._rows, positions, self._rows.size + order)
        self._held = np.insert(self._held, positions, keys[order])


def require_known(keys: Keys, known: NDArray[np.bool_]) -> None:
    """Raise NotFoundError, naming the first, when a key is not known."""
    if not known.all():
        raise NotFoundError(
            f"the index does not hold key {keys[~known][0]}: ask for keys() that it holds"
        )


def best(scores: NDArray[np.floating[Any]], k: int) -> NDArray[np.intp]:
    """Positions of the k highest of (n,) scores, best first; equal ones in their own order."""
    near = np.arange(scores.size)
    if k < scores.size:
        floor = np.partition(scores, scores.size - k)[scores.size - k]
        near = np.flatnonzero(scores >= floor)
    order = np.argsort(-scores[near], kind="stable")[:k]
    return near[order]


def score_all(queries: Vectors, keys: Keys, vectors: Vectors, k: int) -> tuple[Vectors, Keys]:
    """Search by comparing every query with every vector.

    Args:
        queries: (n, dim) float32.
        keys: (m,) int64, ascending.
        vectors: (m, dim) float32, row by row those of `keys`.
        k: how many, at least 1.

    Returns:
        As `VectorIndex.search`: ordered by score, highest first, then by key, lowest first.
    """
    k = min(k, keys.size)
    scores = np.empty((len(queries), k), np.float32)
    found = np.empty((len(queries), k), np.int64)
    # Query by query: the scores of all of them at once may not fit the memory.
    for row, query in enumerate(queries):
        all_scores = vectors @ query
        positions = best(all_scores, k)
        scores[row], found[row] = all_scores[positions], keys[positions]
    return scores, found


def to_buffer(values: NDArray[Any], kind: str) -> memoryview:
    """An array as raw bytes of a NumPy type, such as "<f4"; no copy where it is of that type."""
    return np.ascontiguousarray(values, kind).reshape(-1).view(np.uint8).data


def rows_to_buffers(keys: Keys, vectors: Vectors) -> list[memoryview]:
    """Write rows as raw little-endian arrays: width, count, int64 keys, float32 vectors."""
    count, dim = vectors.shape
    prefix = memoryview(_PREFIX.pack(dim, count))
    return [prefix, to_buffer(keys, "<i8"), to_buffer(vectors, "<f4")]


def rows_from_bytes(data: bytes | memoryview, dim: int) -> tuple[Keys, Vectors]:
    """Read what `rows_to_buffers` wrote, without a copy.

    Returns:
        (n,) keys and (n, dim) vectors, checked as on entry; both are read-only views of `data`.

    Raises:
        SnapshotError: the bytes are no such rows, or of another width.
    """
    if len(data) < _PREFIX.size:
        raise SnapshotError(f"an index begins with {_PREFIX.size} bytes, found {len(data)}")
    width, count = _PREFIX.unpack_from(data)
    if width != dim:
        raise SnapshotError(f"the index is {width} wide, expected {dim}")
    expected = _PREFIX.size + count * (8 + 4 * dim)
    if count < 0 or len(data) != expected:
        raise SnapshotError(f"an index of {count} vectors has {expected} bytes, found {len(data)}")
    keys = np.frombuffer(data, "<i8", count, _PREFIX.size)
    vectors = np.frombuffer(data, "<f4", count * dim, _PREFIX.size + 8 * count)
    try:
        return check_rows(keys, vectors.reshape(count, dim), dim)
    except VectorError as exc:
        raise SnapshotError(f"the index holds a row that was never put in: {exc}") from exc


def _check_vectors(vectors: Vectors, dim: int, field: str) -> Vectors:
    vectors = np.asarray(vectors)
    if vectors.ndim != 2 or vectors.dtype.kind not in "fiu":
        raise VectorError(
            f"{field} must be (n, {dim}) float32, not {vectors.shape} {vectors.dtype}",
            field=field,
        )
    if vectors.shape[1] != dim:
        raise DimensionMismatchError(
            f"{field} are {vectors.shape[1]} wide, expected {dim}: embed them with the model of "
            "this space",
            field=field,
        )
    # Not for float32: errstate alone costs a lone search .04 ms.
    if vectors.dtype != np.float32:
        with np.errstate(over="ignore"):
            vectors = vectors.astype(np.float32)
    # One pass that finds NaN and inf, and costs a quarter of isfinite.
    if not math.isfinite(np.vdot(vectors, vectors)):
        _refuse_bad_rows(vectors, field)
    return vectors


def _refuse_bad_rows(vectors: Vectors, field: str) -> None:
    # The squares of many sound rows may overflow together: each row is asked alone.
    for row, vector in enumerate(vectors):
        if not math.isfinite(np.vdot(vector, vector)):
            found = "too long for float32" if np.isfinite(vector).all() else "NaN or inf"
            raise VectorError(
                f"row {row} of {field} is {found}: finite vectors of about unit length are needed",
                field=field,
            )
