from __future__ import annotations

import struct

import numpy as np
import pytest

from kronos.db.vectors import from_rows, to_bytes
from kronos.errors import CorruptStoreError

ROWS = np.array([[1.0, -2.5, 0.0], [3.4028235e38, 1e-45, 0.1]], np.float32)
# Written down, so that no machine and no version reads yesterday's bytes differently.
BYTES = [
    bytes.fromhex("0000803f000020c000000000"),
    bytes.fromhex("ffff7f7f01000000cdcccc3d"),
]


def test_vectors_become_the_little_endian_bytes_that_are_written_down() -> None:
    assert to_bytes(ROWS) == BYTES


def test_bytes_become_the_vectors_they_were_made_from() -> None:
    read = from_rows(BYTES, 3)
    assert read.dtype == np.float32
    assert read.dtype.isnative
    assert read.flags.c_contiguous
    assert np.array_equal(read, ROWS)


def test_the_bytes_are_those_of_struct() -> None:
    rows = np.random.default_rng(7).standard_normal((50, 17)).astype(np.float32)
    assert to_bytes(rows) == [struct.pack("<17f", *row) for row in rows.tolist()]


def test_a_big_endian_array_is_stored_little_endian() -> None:
    assert to_bytes(ROWS.astype(">f4")) == BYTES


def test_rows_that_are_strided_in_memory_are_stored_in_order() -> None:
    assert to_bytes(np.asfortranarray(ROWS)) == BYTES
    assert to_bytes(np.repeat(ROWS, 2, axis=0)[::2]) == BYTES


def test_no_rows_are_no_bytes() -> None:
    assert to_bytes(np.empty((0, 3), np.float32)) == []
    assert from_rows([], 3).shape == (0, 3)


@pytest.mark.parametrize("lengths", [(8, 12), (12, 13), (8, 16), (0, 24), (11, 13)])
def test_a_value_of_another_width_is_refused_even_when_the_sum_is_right(
    lengths: tuple[int, int],
) -> None:
    with pytest.raises(CorruptStoreError, match="3 wide, which is 12 bytes"):
        from_rows([bytes(length) for length in lengths], 3)
