"""`Part`: rows of a `LayeredIndex` that cannot change, some of which may have died; and its bytes.

One with an index over its rows is a main part; another was the tail until a build began. Dead rows
are masked: they are never found, and those of a graph still lead the way to the living.
"""

from __future__ import annotations

import struct
import weakref
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from kronos.errors import SnapshotError, VectorError
from kronos.index.base import KeyTable, check_rows, to_buffer
from kronos.index.coded import CodedRows
from kronos.index.faiss import Graph, Links, MainRows, Rows, bits, bits_of
from kronos.index.tuning import Tuned

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from kronos.index.policy import IndexPolicy
    from kronos.types import Keys, Vectors

_GRAPH, _CODED = b"KRHNSW\x00\x01", b"KRCODE\x00\x01"
MAGICS = (_GRAPH, _CODED)
"""How the bytes of a main part begin."""
_PREFIX = struct.Struct("<8sqqqqqqqd")
"""Magic, width of a vector, rows, rows alive; three numbers of the kind: of a graph the links of a
row, the entry, the numbers in `neighbours`; of another the bytes of its name, 0, those of its
codes. Then the effort that was tuned (0: none was) and its recall."""
_MOST_LINKS = 1024
_ALIGNED = 64
_MOST_ASKED = 8


@dataclass(slots=True)
class _Among:
    """Where the keys lie that a search is for."""

    rows: NDArray[np.intp]
    keys: Keys
    """Row by row."""
    bits: NDArray[np.uint8] | None = None
    """The `bits` of the rows, once they were needed."""


class Part:
    """Rows that cannot change, some of which may have died."""

    def __init__(self, keys: Keys, rows: Rows, alive: NDArray[np.bool_] | None = None) -> None:
        self.keys = keys
        """Row by row; a key may stand at dead rows as well."""
        self.rows = rows
        self.alive = np.ones(keys.size, np.bool_) if alive is None else alive
        self.count = int(np.count_nonzero(self.alive))
        """Rows alive."""
        living = np.flatnonzero(self.alive)
        self._table = KeyTable(keys[living], living)
        self._highest = int(keys.max()) if keys.size else -(2**63)
        self._bits: NDArray[np.uint8] | None = None
        self._asked: OrderedDict[int, tuple[weakref.ref[Keys], _Among]] = OrderedDict()
        """Where the keys lie that searches were for lately, by the identity of their array."""

    @property
    def dead(self) -> int:
        """Rows that were removed or overwritten."""
        return self.keys.size - self.count

    def holds_a_key_twice(self) -> bool:
        """Whether a key stands at two living rows, which only damage can bring about."""
        return self._table.has_twins()

    def find(self, keys: Keys) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
        """The living rows of keys, and (n,) which keys those are."""
        if not keys.size or keys.min() > self._highest:  # new keys, as a rule, are higher
            return np.empty(0, np.intp), np.zeros(keys.size, np.bool_)
        rows, known = self._table.find(keys)
        if self.dead:
            known[known] = alive = self.alive[rows]
            rows = rows[alive]
        return rows, known

    def bury(self, keys: Keys) -> int:
        """Let the rows of keys, distinct ones, be dead: how many were alive."""
        rows, _ = self.find(keys)
        if rows.size:
            self.alive[rows] = False
            self.count -= rows.size
            self._bits = None
            self._asked.clear()
        return rows.size

    def living(self) -> tuple[Keys, NDArray[np.intp]]:
        """The keys of the living, and their rows."""
        rows = np.flatnonzero(self.alive)
        return self.keys[rows], rows

    def search(self, queries: Vectors, k: int, policy: IndexPolicy) -> tuple[Vectors, Keys]:
        """Find the nearest of the living."""
        if not self.count:
            return nothing(len(queries))
        if self.dead and self._bits is None:
            self._bits = bits(self.alive)
        k = min(k, self.count)
        effort = self._effort(k, self.count / self.keys.size, policy)
        return self._look(queries, k, effort, self._bits)

    def search_among(
        self, queries: Vectors, k: int, allowed: Keys, policy: IndexPolicy
    ) -> tuple[Vectors, Keys]:
        """Find the nearest of some keys, which are distinct and ascending."""
        among = self._among(allowed)
        count = among.rows.size
        if not count:
            return nothing(len(queries))
        share, k = count / self.keys.size, min(k, count)
        effort = self._effort(k, share, policy)
        if policy.picks(count, self.keys.size, effort):
            return self.rows.pick(queries, k, among.rows, among.keys)
        if among.bits is None:
            among.bits = bits_of(among.rows, self.keys.size)
        return self._look(queries, k, effort, among.bits)

    def _among(self, allowed: Keys) -> _Among:
        """Where keys lie: to look each of them up takes longer than to search, so it is kept."""
        asked = self._asked.get(id(allowed))
        if asked is not None and asked[0]() is allowed:
            return asked[1]
        rows, known = self.find(allowed)
        among = _Among(rows, allowed[known])
        if not allowed.flags.writeable:  # else it may hold other keys the next time
            self._asked[id(allowed)] = weakref.ref(allowed), among
            if len(self._asked) > _MOST_ASKED:
                self._asked.popitem(last=False)
        return among

    def _effort(self, k: int, share: float, policy: IndexPolicy) -> int | None:
        """How hard to search a main part; None: to compare all that may be found costs no more."""
        effort = policy.effort(k, share)
        scans = not isinstance(self.rows, MainRows) or policy.scans(effort, self.keys.size)
        return None if scans else effort

    def _look(
        self, queries: Vectors, k: int, effort: int | None, allowed: NDArray[np.uint8] | None
    ) -> tuple[Vectors, Keys]:
        if effort is not None and isinstance(self.rows, MainRows):
            scores, rows = self.rows.search(queries, k, effort, allowed)
            if not rows.size or rows.min() >= 0:
                return scores, self.keys.take(rows)
        # Also where the graph did not lead to as many as there are.
        scores, rows = self.rows.scan(queries, k, allowed)
        return scores, self.keys.take(rows)


def nothing(queries: int) -> tuple[Vectors, Keys]:
    """No hits for each of some queries."""
    return np.empty((queries, 0), np.float32), np.empty((queries, 0), np.int64)


def without_the_dead(part: Part) -> Part:
    """A copy whose dead rows hold the vector of another row; only a graph may have such."""
    if not part.dead:
        return Part(part.keys, part.rows, part.alive.copy())
    assert isinstance(part.rows, Graph)
    graph, dead = part.rows.copy(), np.flatnonzero(~part.alive)
    if dead.size:
        near = part.rows.links.lowest(dead)
        fits = np.asarray((near >= 0) & part.alive[near])
        chosen = near[np.arange(dead.size), fits.argmax(axis=1)]
        graph.vectors[dead] = np.where(np.any(fits, axis=1)[:, None], graph.vectors[chosen], 0)
    return Part(part.keys, graph, part.alive.copy())


def main_buffers(part: Part, tuned: Tuned | None) -> list[memoryview]:
    """A main part as bytes that `read_main` reads: raw arrays, each at a multiple of 64."""
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
    """What brings so many bytes to a multiple of 64: FAISS reads arrays where they lie."""
    return memoryview(bytes(-size % _ALIGNED))


class _Reader:
    """Takes arrays off the front of bytes, without a copy."""

    def __init__(self, data: memoryview, start: int) -> None:
        self._data = data
        self._at = start + -start % _ALIGNED

    def take(self, kind: str, count: int) -> NDArray[Any]:
        size = np.dtype(kind).itemsize * count
        end = self._at + size + -size % _ALIGNED
        if count < 0 or end > len(self._data):
            raise SnapshotError(f"an index ends after {len(self._data)} bytes, within an array")
        values = np.frombuffer(self._data, kind, count, self._at)
        self._at = end
        return values

    def rows(self, shape: tuple[int, int], known: bool) -> Vectors:
        vectors = self.take("<f4", shape[0] * shape[1]).reshape(shape)
        try:
            if not known:  # reads all of them, which a mapped file is there to spare
                check_rows(np.arange(shape[0]), vectors, shape[1])
        except VectorError as exc:
            raise SnapshotError(f"the index holds a row that was never put in: {exc}") from exc
        return vectors

    def rest(self) -> memoryview:
        return memoryview(self._data)[self._at :]


def read_main(
    data: memoryview, dim: int, policy: IndexPolicy, *, known: bool
) -> tuple[Part, memoryview, Tuned | None]:
    """The main part, which lies where the bytes do, the bytes of the tail, and what was tuned."""
    if len(data) < _PREFIX.size:
        raise SnapshotError(f"an index begins with {_PREFIX.size} bytes, found {len(data)}")
    magic, found, count, living, *numbers, tuned, recall = _PREFIX.unpack_from(data)
    if found != dim:
        raise SnapshotError(f"the index is {found} wide, expected {dim}")
    reader = _Reader(data, _PREFIX.size)
    keys = reader.take("<i8", count)
    alive = np.unpackbits(reader.take("u1", -(-count // 8)), count=count, bitorder="little")
    main = _read_graph if magic == _GRAPH else _read_coded
    part = Part(keys, main(reader, (count, dim), numbers, policy, known), alive.astype(np.bool_))
    if part.count != living or part.holds_a_key_twice():
        raise SnapshotError("the index holds a key twice, or none where one was put in")
    return part, reader.rest(), Tuned(tuned, recall) if tuned > 0 else None


def _read_graph(
    reader: _Reader, shape: tuple[int, int], numbers: list[int], policy: IndexPolicy, known: bool
) -> MainRows:
    width, entry, size = numbers
    if not 2 <= width <= _MOST_LINKS:
        raise SnapshotError(f"a row of the index has {width} links")
    links = Links(reader.take("<i4", shape[0]), reader.take("<i4", size), entry, width)
    return Graph.of(reader.rows(shape, known), links, effort=policy.build_effort, lent=True)


def _read_coded(
    reader: _Reader, shape: tuple[int, int], numbers: list[int], policy: IndexPolicy, known: bool
) -> MainRows:
    length, _, size = numbers
    name = reader.take("u1", length).tobytes().decode("ascii", "replace")
    codes = reader.take("u1", size)
    return CodedRows.of(reader.rows(shape, known), name, codes, effort=policy.build_effort)
