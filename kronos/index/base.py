"""What all index kinds share: input checks, key look-up, best-first order, rows as bytes.

After these checks keys are int64, and vectors are float32 of the right width whose squared length
fits float32. So no inner product of two of them is NaN or inf.
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
    """Check keys and vectors before they enter an index; correct arrays are not copied.

    Args:
        keys: (n,) integers.
        vectors: (n, dim) numbers.
        dim: the width of a vector.

    Returns:
        (n,) int64 keys and (n, dim) float32 vectors.

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
            "pass only the newest vector of each key",
            field="keys",
        )
    return keys, vectors


def check_queries(queries: Vectors, k: int, dim: int) -> Vectors:
    """Check the queries of a search: (n, dim) float32.

    Raises:
        DimensionMismatchError: the width is not `dim`.
        VectorError: a value is NaN or inf, or the shape is not (n, dim).
        InputError: k is below 1.
    """
    if k < 1:
        raise InputError(f"k must be at least 1, not {k}", field="k")
    return _check_vectors(queries, dim, "queries")


def check_keys(keys: Keys) -> Keys:
    """Check that keys are (n,) integers, and return them as int64."""
    keys = np.asarray(keys)
    if keys.ndim != 1 or (keys.dtype.kind != "i" and keys.size):
        raise VectorError(
            f"keys must be (n,) int64, not {keys.shape} {keys.dtype}",
            field="keys",
        )
    return keys.astype(np.int64, copy=False)


def distinct(keys: Keys) -> Keys:
    """The keys in ascending order, each once; keys in that order, as SQL has them, cost little."""
    return keys if bool((keys[1:] > keys[:-1]).all()) else np.unique(keys)


def find_positions(held: Keys, keys: Keys) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """Find the positions of keys in a sorted array.

    Args:
        held: (m,) in ascending order.
        keys: (n,) in any order.

    Returns:
        The positions in `held` of the keys that it holds, and which keys those are: (n,) bool.
    """
    positions = np.searchsorted(held, keys)
    known = positions < held.size
    known[known] = held[positions[known]] == keys[known]
    return positions[known], known


class KeyTable:
    """Finds the rows of keys that are in no order.

    Args:
        keys: (n,) int64, distinct.
        rows: (n,) the row of each key; None: the key at position i has row i.
    """

    def __init__(self, keys: Keys, rows: NDArray[np.intp] | None = None) -> None:
        order = np.argsort(keys, kind="stable")
        self._rows: NDArray[np.intp] = order if rows is None else rows[order]
        self._held: Keys = keys[order]

    def find(self, keys: Keys) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
        """The rows of the keys that are held, and which keys those are: (n,) bool."""
        positions, known = find_positions(self._held, keys)
        return self._rows[positions], known

    def has_duplicates(self) -> bool:
        """Whether a key occurs twice."""
        return bool((self._held[1:] == self._held[:-1]).any())

    def append(self, keys: Keys) -> None:
        """Add new keys, whose rows follow the last row.

        It merges into the sorted keys: sorting all keys again for each batch would be far slower.
        """
        order = np.argsort(keys, kind="stable")
        positions = np.searchsorted(self._held, keys[order])
        self._rows = np.insert(self._rows, positions, self._rows.size + order)
        self._held = np.insert(self._held, positions, keys[order])


def require_known(keys: Keys, known: NDArray[np.bool_]) -> None:
    """Raise NotFoundError, naming the first unknown key, unless all keys are known."""
    if not known.all():
        raise NotFoundError(
            f"the index does not hold key {keys[~known][0]}: pass keys that keys() returns"
        )


def top_k(scores: NDArray[np.floating[Any]], k: int) -> NDArray[np.intp]:
    """Positions of the k highest of (n,) scores, best first; equal scores keep their order."""
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
        vectors: (m, dim) float32, the vectors of `keys`.
        k: how many keys to find, at least 1.

    Returns:
        Like `VectorIndex.search`, ordered by score, highest first, then by key, lowest first.
    """
    k = min(k, keys.size)
    scores = np.empty((len(queries), k), np.float32)
    found = np.empty((len(queries), k), np.int64)
    # Query by query: the scores of all queries together may not fit into memory.
    for row, query in enumerate(queries):
        all_scores = vectors @ query
        positions = top_k(all_scores, k)
        scores[row], found[row] = all_scores[positions], keys[positions]
    return scores, found


def order_ties(scores: Vectors, keys: Keys) -> tuple[Vectors, Keys]:
    """Order keys of equal score by key, lowest first.

    Args:
        scores: (n, k) float32, best first.
        keys: (n, k) int64.
    """
    # Sets, not a NumPy comparison: after FAISS read all vectors, caches are cold and NumPy is slow.
    if all(len(set(row)) == len(row) for row in scores.tolist()):
        return scores, keys
    order = np.lexsort((keys, -scores))
    return np.take_along_axis(scores, order, 1), np.take_along_axis(keys, order, 1)


def no_hits(queries: int) -> tuple[Vectors, Keys]:
    """The scores and keys of a search without hits, for some number of queries."""
    return np.empty((queries, 0), np.float32), np.empty((queries, 0), np.int64)


def to_buffer(values: NDArray[Any], kind: str) -> memoryview:
    """An array as raw bytes of a NumPy type, such as "<f4"; not copied if it has that type."""
    return np.ascontiguousarray(values, kind).reshape(-1).view(np.uint8).data


def rows_to_buffers(keys: Keys, vectors: Vectors) -> list[memoryview]:
    """Write rows as raw little-endian arrays: width, count, int64 keys, float32 vectors."""
    count, dim = vectors.shape
    prefix = memoryview(_PREFIX.pack(dim, count))
    return [prefix, to_buffer(keys, "<i8"), to_buffer(vectors, "<f4")]


def rows_from_bytes(data: bytes | memoryview, dim: int) -> tuple[Keys, Vectors]:
    """Read what `rows_to_buffers` wrote, without a copy.

    Returns:
        (n,) keys and (n, dim) vectors, checked like new input; both are read-only views of `data`.

    Raises:
        SnapshotError: the bytes are no such rows, or rows of another width.
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
        raise SnapshotError(f"the index holds a row that was never added: {exc}") from exc


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
    # Not for float32: errstate alone costs a single search a noticeable share of its time.
    if vectors.dtype != np.float32:
        with np.errstate(over="ignore"):
            vectors = vectors.astype(np.float32)
    # One pass that finds NaN and inf, and costs less than isfinite.
    if not math.isfinite(np.vdot(vectors, vectors)):
        _refuse_bad_rows(vectors, field)
    return vectors


def _refuse_bad_rows(vectors: Vectors, field: str) -> None:
    # The squares of many valid rows may overflow together: each row is checked alone.
    for row, vector in enumerate(vectors):
        if not math.isfinite(np.vdot(vector, vector)):
            found = "too long for float32" if np.isfinite(vector).all() else "NaN or inf"
            raise VectorError(
                f"row {row} of {field} is {found}: expected finite vectors of about unit length",
                field=field,
            )
