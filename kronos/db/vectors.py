"""Vectors as the bytes of a database column: float32, little-endian, one row after the other.

The layout is the same on every machine and holds only the numbers; the row of the vector's space
says how wide it is and which embedder made it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from kronos.errors import CorruptStoreError

if TYPE_CHECKING:
    from kronos.types import Vectors

_STORED = np.dtype("<f4")


def to_bytes(vectors: Vectors) -> list[bytes]:
    """Turn vectors into column values.

    Args:
        vectors: (n, dim) float32.

    Returns:
        n values of 4 * dim bytes.
    """
    rows, dim = vectors.shape
    width = dim * _STORED.itemsize
    data = np.ascontiguousarray(vectors, _STORED).tobytes()
    return [data[start : start + width] for start in range(0, rows * width, width)]


def from_rows(blobs: Sequence[bytes], dim: int) -> Vectors:
    """Turn column values back into vectors.

    Args:
        blobs: n values as `to_bytes` made them.
        dim: the width of their space.

    Returns:
        (n, dim) float32, C-contiguous; read-only, as it is a view of the bytes.

    Raises:
        CorruptStoreError: a value is not bytes, or not as long as a vector `dim` wide.
    """
    width = dim * _STORED.itemsize
    kinds = set(map(type, blobs)) - {bytes}
    if kinds:
        raise CorruptStoreError(f"a stored vector must be bytes, not {kinds.pop().__name__}")
    # Each value is measured: a short and a long one together would shift the rows between them.
    wrong = set(map(len, blobs)) - {width}
    if wrong:
        raise CorruptStoreError(
            f"a stored vector must be {dim} wide, which is {width} bytes, but {min(wrong)} bytes "
            "were found: the database was changed by something else than Kronos"
        )
    stored = np.frombuffer(b"".join(blobs), _STORED).reshape(len(blobs), dim)
    return stored.astype(np.float32, copy=False)
