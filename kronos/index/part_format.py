"""A main part as bytes: raw arrays after a header, each at a multiple of 64 bytes.

FAISS and NumPy read the arrays in place, for example in a mapped file.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import numpy as np

from kronos.errors import SnapshotError, VectorError
from kronos.index.base import check_rows, to_buffer
from kronos.index.faiss.coded import CodedRows
from kronos.index.faiss.graph import Graph, Links
from kronos.index.faiss.rows import MainRows, bits
from kronos.index.part import Part
from kronos.index.tuning import TuningResult

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from kronos.index.policy import IndexPolicy
    from kronos.types import Vectors

_GRAPH, _CODED = b"KRHNSW\x00\x01", b"KRCODE\x00\x01"
MAGICS = (_GRAPH, _CODED)
"""The first bytes of a main part."""
_PREFIX = struct.Struct("<8sqqqqqqqd")
"""Magic, width of a vector, rows, live rows, then three numbers: for a graph, the links of a row,
the entry, and the size of `neighbours`; for coded rows, the length of the name, 0, and the size of
the codes. Last the tuned effort (0: not tuned) and its recall."""
_MAX_LINKS = 1024
_ALIGNMENT = 64


def main_to_buffers(part: Part, tuned: TuningResult | None) -> list[memoryview]:
    """A main part, and how it was tuned, as bytes that `read_main` reads."""
    rows = part.rows
    if isinstance(rows, Graph):
        links = rows.links
        magic, numbers = _GRAPH, (links.width, links.entry, links.neighbours.size)
        own = [to_buffer(links.levels, "<i4"), to_buffer(links.neighbours, "<i4")]
    else:
        assert isinstance(rows, CodedRows)
        name, codes = rows.name.encode("ascii"), rows.codes
        magic, numbers = _CODED, (len(name), 0, codes.size)
        own = [memoryview(name), codes.data]
    count, dim = rows.vectors.shape
    measured = (0, 0.0) if tuned is None else (tuned.effort, tuned.recall)
    buffers = [
        memoryview(_PREFIX.pack(magic, dim, count, part.count, *numbers, *measured)),
        to_buffer(part.keys, "<i8"),
        bits(part.alive).data,
        *own,
        to_buffer(rows.vectors, "<f4"),
    ]
    return [piece for buffer in buffers for piece in (buffer, _padding(buffer.nbytes))]


def _padding(size: int) -> memoryview:
    """The bytes that bring `size` bytes to the next multiple of 64."""
    return memoryview(bytes(-size % _ALIGNMENT))


class _Reader:
    """Reads arrays one after the other from bytes, without copying them."""

    def __init__(self, data: memoryview, start: int) -> None:
        self._data = data
        self._at = start + -start % _ALIGNMENT

    def read(self, kind: str, count: int) -> NDArray[Any]:
        size = np.dtype(kind).itemsize * count
        end = self._at + size + -size % _ALIGNMENT
        if count < 0 or end > len(self._data):
            raise SnapshotError(f"an index ends after {len(self._data)} bytes, within an array")
        values = np.frombuffer(self._data, kind, count, self._at)
        self._at = end
        return values

    def rows(self, shape: tuple[int, int], known: bool) -> Vectors:
        vectors = self.read("<f4", shape[0] * shape[1]).reshape(shape)
        try:
            if not known:  # the check reads every vector, which a mapped file is meant to avoid
                check_rows(np.arange(shape[0]), vectors, shape[1])
        except VectorError as exc:
            raise SnapshotError(f"the index holds a row that was never added: {exc}") from exc
        return vectors

    def rest(self) -> memoryview:
        return memoryview(self._data)[self._at :]


def read_main(
    data: memoryview, dim: int, policy: IndexPolicy, *, known: bool
) -> tuple[Part, memoryview, TuningResult | None]:
    """Read what `main_to_buffers` wrote, followed by the bytes of a tail.

    Args:
        data: the bytes; the main part's arrays stay in them.
        dim: the expected width of a vector.
        policy: how rows are added later.
        known: the bytes were verified before: skip checking the vectors.

    Returns:
        The main part, the bytes of the tail, and how the main part was tuned, if it was.

    Raises:
        SnapshotError: the bytes are no main part, or one of another width.
    """
    if len(data) < _PREFIX.size:
        raise SnapshotError(f"an index begins with {_PREFIX.size} bytes, found {len(data)}")
    magic, found, count, live, *numbers, effort, recall = _PREFIX.unpack_from(data)
    if found != dim:
        raise SnapshotError(f"the index is {found} wide, expected {dim}")
    reader = _Reader(data, _PREFIX.size)
    keys = reader.read("<i8", count)
    alive = np.unpackbits(reader.read("u1", -(-count // 8)), count=count, bitorder="little")
    main = _read_graph if magic == _GRAPH else _read_coded
    part = Part(keys, main(reader, (count, dim), numbers, policy, known), alive.astype(np.bool_))
    if part.count != live or part.has_duplicate_keys():
        raise SnapshotError("the index holds a key twice, or lacks a key that was added")
    return part, reader.rest(), TuningResult(effort, recall) if effort > 0 else None


def _read_graph(
    reader: _Reader, shape: tuple[int, int], numbers: list[int], policy: IndexPolicy, known: bool
) -> MainRows:
    width, entry, size = numbers
    if not 2 <= width <= _MAX_LINKS:
        raise SnapshotError(f"a row of the index has {width} links")
    links = Links(reader.read("<i4", shape[0]), reader.read("<i4", size), entry, width)
    return Graph.of(reader.rows(shape, known), links, effort=policy.build_effort, lent=True)


def _read_coded(
    reader: _Reader, shape: tuple[int, int], numbers: list[int], policy: IndexPolicy, known: bool
) -> MainRows:
    length, _, size = numbers
    name = reader.read("u1", length).tobytes().decode("ascii", "replace")
    codes = reader.read("u1", size)
    return CodedRows.of(reader.rows(shape, known), name, codes, effort=policy.build_effort)
