"""`FaissIndex`: a flat FAISS index, exact, on the CPU.

`Rows` and `Graph` are what `LayeredIndex` is made of: rows that change no more, and the same with
an HNSW graph over them. This module and `coded` alone import faiss. All is checked before FAISS
sees it: FAISS takes NaN and a key that it holds already, and a wrong width reads past the array's
end under `python -O`. FAISS reads no file, and here no serialised bytes. A few questions are
answered on one thread; how many threads FAISS uses, which are torch's as well, is put back at once.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import faiss
import numpy as np

from kronos.concurrency.forking import in_children
from kronos.errors import SnapshotError
from kronos.index.base import (
    KeyTable,
    best,
    check_keys,
    check_queries,
    check_rows,
    distinct,
    locate,
    require_known,
    rows_from_bytes,
    rows_to_buffers,
    score_all,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from kronos.types import Keys, Vectors

_FEW, _FEW_IN_A_BATCH = 2, 16
"""When less than one row in so many is allowed, the rows are compared where they lie; when more
are, FAISS walks a bitmap of rows.

60,000 x 384, one thread, k = 10, scattered rows, ms by `Rows.pick` / by bitmap: 1 % .03 / .13,
5 % .20 / .43, 10 % .44 / .72, 30 % 3.5 / 4.1, 50 % 9.4 / 9.6; gathered with NumPy .04 / .37 / 1.4 /
7.9 / 28. For many queries at once FAISS's threads share the bitmap.
"""
_LONE = 8
"""So many queries are answered on one thread, one by one; for more, rows are gathered once for all
of them. Two threads share a scan of 100,000 x 384 in 10 ms on an idle machine as one does, and take
three times as long where another process uses the processors: each waits for the other at every
end."""
LIBRARY: Any = faiss
"""For whoever asks what this FAISS can do."""
# OpenMP's threads are not in a forked child, and the first parallel loop would wait for them.
in_children(lambda: faiss.omp_set_num_threads(1))
_IMPORTED_IN = os.getpid()


class FaissIndex:
    """A `VectorIndex` over `IndexIDMap(IndexFlatIP)`.

    FAISS keeps keys and vectors; the table that finds a key's row is built here, when it is needed,
    and makes the hash map of IndexIDMap2 superfluous. The vector of a held key is overwritten in
    place: to remove and add it would move every row behind it.

    Args:
        dim: the width of a vector.
    """

    kind = "faiss-flat"

    def __init__(self, dim: int) -> None:
        self.dim = dim
        self._flat = faiss.IndexFlatIP(dim)
        self._index = faiss.IndexIDMap(self._flat)
        self._highest: int | None = None
        """No held key is above it: keys that are, the usual case, are new without a look-up."""
        self._table: KeyTable | None = None
        """Made when a key is first looked up, so that filling an index does not pay for it."""

    @classmethod
    def from_bytes(cls, data: bytes | memoryview, dim: int) -> FaissIndex:
        """Read what `to_buffers` wrote.

        Raises:
            SnapshotError: the bytes are no index, or one of another width.
        """
        index = cls(dim)
        index._append(*rows_from_bytes(data, dim))
        return index

    def __len__(self) -> int:
        return int(self._index.ntotal)

    def upsert(self, keys: Keys, vectors: Vectors) -> None:
        """Set the vectors of keys; see `VectorIndex.upsert`."""
        keys, vectors = check_rows(keys, vectors, self.dim)
        if self._highest is not None and keys.size and keys.min() <= self._highest:
            rows, known = self._find(keys)
            self._overwrite(rows, vectors[known])
            keys, vectors = keys[~known], vectors[~known]
        self._append(keys, vectors)

    def remove(self, keys: Keys) -> int:
        """Forget keys; see `VectorIndex.remove`."""
        keys = distinct(check_keys(keys))
        keys = keys[self._find(keys)[1]]
        if keys.size:
            # One call for them all: each call moves every row behind the first one removed.
            self._index.remove_ids(keys)
            self._table = None
        return keys.size

    def search(
        self, queries: Vectors, k: int, *, allowed: Keys | None = None
    ) -> tuple[Vectors, Keys]:
        """Find the k nearest keys of each query; see `VectorIndex.search`.

        Equal scores are ordered by key, lowest first; which of several with the score of the last
        place are returned is left open.
        """
        queries = check_queries(queries, k, self.dim)
        with threads_for(queries):
            return self._search(queries, k, allowed)

    def _search(self, queries: Vectors, k: int, allowed: Keys | None) -> tuple[Vectors, Keys]:
        if allowed is None:
            return settle_ties(*self._search_all(queries, min(k, len(self))))
        rows, keys = self._among(distinct(check_keys(allowed)))
        few = _FEW if len(queries) <= _LONE else _FEW_IN_A_BATCH
        if not rows.size or rows.size * few < len(self):
            return Rows(self._flat).pick(queries, k, rows, keys)
        return settle_ties(*self._search_rows(queries, min(k, rows.size), rows))

    def _among(self, allowed: Keys) -> tuple[NDArray[np.intp], Keys]:
        """The rows of those of some keys, distinct and ascending, that are held; and their keys."""
        if allowed.size < len(self):
            rows, known = self._find(allowed)
            return rows, allowed[known]
        keys = self.keys()  # the fewer are looked up among the many: a tail is short
        keys = keys[locate(allowed, keys)[1]]
        return self._find(keys)[0], keys

    def keys(self) -> Keys:
        """All keys, in ascending order: (n,) int64."""
        return np.sort(self._keys())

    def held(self, keys: Keys) -> NDArray[np.bool_]:
        """Which of some keys the index holds: (n,) bool."""
        return self._find(check_keys(keys))[1]

    def vectors_of(self, keys: Keys) -> Vectors:
        """The vectors of keys: (n, dim) float32.

        Raises:
            NotFoundError: a key is not held.
        """
        keys = check_keys(keys)
        rows, known = self._find(keys)
        require_known(keys, known)
        return self._vectors().take(rows, axis=0)

    def to_buffers(self) -> list[memoryview]:
        """The index as bytes that `from_bytes` reads: raw arrays, in the order of the rows."""
        return rows_to_buffers(self._keys().copy(), self._vectors().copy())

    def freeze(self) -> tuple[Keys, Rows]:
        """Hand out the keys and the rows, without a copy of the rows; the index is used up."""
        return self._keys().copy(), Rows(self._flat)

    def _append(self, keys: Keys, vectors: Vectors) -> None:
        if keys.size:
            self._index.add_with_ids(vectors, keys)
            highest = int(keys.max())
            self._highest = highest if self._highest is None else max(self._highest, highest)
            if self._table is not None:
                self._table.append(keys)

    def _overwrite(self, rows: NDArray[np.intp], vectors: Vectors) -> None:
        if rows.size:
            self._vectors()[rows] = vectors

    def _find(self, keys: Keys) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
        """The rows of those keys that are held, and (n,) which keys those are."""
        if self._table is None:
            self._table = KeyTable(self._keys())
        return self._table.find(keys)

    def _keys(self) -> Keys:
        """The keys in the order of the rows: a view, which the next change may leave dangling."""
        if not len(self):
            return np.empty(0, np.int64)
        keys: Keys = faiss.rev_swig_ptr(self._index.id_map.data(), len(self))
        return keys

    def _vectors(self) -> Vectors:
        """The rows: a view, which the next change may leave dangling."""
        return _view(self._flat)

    def _search_all(self, queries: Vectors, k: int) -> tuple[Vectors, Keys]:
        # k is never more than can be found, as FAISS fills up with the key -1, and it takes no 0.
        if not k:
            return np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
        with threads_for(queries):
            scores, keys = self._index.search(queries, k)
        return scores, keys

    def _search_rows(
        self, queries: Vectors, k: int, rows: NDArray[np.intp]
    ) -> tuple[Vectors, Keys]:
        scores, found = Rows(self._flat).scan(queries, k, bits_of(rows, len(self)))
        return scores, self._keys().take(found)


def settle_ties(scores: Vectors, keys: Keys) -> tuple[Vectors, Keys]:
    """Order equal scores by key, lowest first."""
    # After FAISS went through all vectors caches are cold: a NumPy comparison costs twice the sets.
    if all(len(set(row)) == len(row) for row in scores.tolist()):
        return scores, keys
    order = np.lexsort((keys, -scores))
    return np.take_along_axis(scores, order, 1), np.take_along_axis(keys, order, 1)


def bits(mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """A mask of rows as `Rows` and `Graph` take it: (n,) bool to one bit for each row."""
    return np.packbits(mask, bitorder="little")


def bits_of(rows: NDArray[np.intp], size: int) -> NDArray[np.uint8]:
    """The `bits` of some of so many rows."""
    mask = np.zeros(size, np.bool_)
    mask[rows] = True
    return bits(mask)


class _Held:
    """FAISS's memory as an array, for as long as the array is held.

    Args:
        owner: whose memory it is; it must not grow meanwhile.
        view: a view of it.
    """

    def __init__(self, owner: Any, view: NDArray[Any]) -> None:
        self._owner = owner
        self.__array_interface__ = view.__array_interface__

    @classmethod
    def array(cls, owner: Any, view: NDArray[Any]) -> NDArray[Any]:
        """The view, which now keeps the owner alive."""
        return np.asarray(cls(owner, view)) if view.size else view


def _lend(vector: Any, values: NDArray[Any]) -> bool:
    """Let FAISS read an array where it lies, e.g. in a mapped file; False where it cannot.

    Whoever lends keeps the array alive, and has nothing added to the vector. FAISS can since 1.11;
    what it gives Python to make such a vector with needs a C++ pointer, so its fields are set.
    """
    if not hasattr(vector, "view_data"):
        return False
    pointer = faiss.swig_ptr(values)
    vector.is_owned = False
    vector.view_data = vector.c_ptr = pointer
    vector.view_size = vector.c_size = values.size
    return True


def fill(flat: Any, vectors: Vectors) -> None:
    """Let an empty flat index hold vectors, (n, dim) float32, where they lie, if FAISS can.

    Its user keeps them alive, and adds nothing.
    """
    if _lend(flat.codes, vectors.reshape(-1).view(np.uint8)):
        flat.ntotal = len(vectors)
    else:
        flat.add(vectors)


def _view(flat: Any) -> Vectors:
    """The rows of a flat index: (n, dim); the next change may leave it dangling."""
    if not flat.ntotal:
        return np.empty((0, flat.d), np.float32)
    values: Vectors = faiss.rev_swig_ptr(flat.get_xb(), flat.ntotal * flat.d)
    return values.reshape(flat.ntotal, flat.d)


class Rows:
    """Rows that change no more, compared one by one.

    Args:
        flat: a flat FAISS index, which nobody changes.
    """

    def __init__(self, flat: Any) -> None:
        self._flat = flat
        self._vectors: Vectors | None = None

    def __len__(self) -> int:
        return int(self._flat.ntotal)

    @property
    def flat(self) -> Any:
        """FAISS's index of them."""
        return self._flat

    @property
    def vectors(self) -> Vectors:
        """A view of them: (n, dim) float32."""
        if self._vectors is None:
            self._vectors = _Held.array(self._flat, _view(self._flat))
        return self._vectors

    def scan(
        self, queries: Vectors, k: int, allowed: NDArray[np.uint8] | None
    ) -> tuple[Vectors, NDArray[np.int64]]:
        """Find the k nearest rows of each query, exactly.

        Args:
            queries: (n, dim) float32, checked.
            k: 1 to the number of rows that may be found.
            allowed: the `bits` of those; None: all.

        Returns:
            (n, k) scores, best first, and rows.
        """
        params = None
        if allowed is not None:
            # FAISS keeps a pointer alone: the names keep both alive.
            selector = faiss.IDSelectorBitmap(allowed)
            params = faiss.SearchParameters(sel=selector)
        with threads_for(queries):
            scores, rows = self._flat.search(queries, k, params=params)
        return scores, rows

    def pick(
        self, queries: Vectors, k: int, rows: NDArray[np.intp], keys: Keys
    ) -> tuple[Vectors, Keys]:
        """Find the k nearest of some rows, which are compared where they lie.

        Args:
            queries: (n, dim) float32, checked.
            k: at least 1.
            rows: (m,) which rows.
            keys: (m,) their keys, ascending.

        Returns:
            (n, min(k, m)) scores and keys, ordered by score, highest first, then by key.
        """
        if len(queries) > _LONE or not rows.size:
            return score_all(queries, keys, self.vectors.take(rows, axis=0), k)
        k, vectors = min(k, rows.size), self.vectors
        scores = np.empty((len(queries), k), np.float32)
        found = np.empty((len(queries), k), np.int64)
        with _one_thread():
            for number, query in enumerate(queries):
                each = products(query, vectors, rows)
                positions = best(each, k)
                scores[number], found[number] = each[positions], keys[positions]
        return scores, found


@contextmanager
def _one_thread() -> Iterator[None]:
    """Let FAISS use the calling thread alone; what it may use elsewhere, and later, stays."""
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def threads_for(queries: Vectors) -> AbstractContextManager[None]:
    """One thread for a few queries; see `_LONE`."""
    return _one_thread() if len(queries) <= _LONE else nullcontext()


def products(query: Vectors, vectors: Vectors, rows: NDArray[np.intp]) -> Vectors:
    """The inner products of a query and some rows of C-contiguous vectors: (m,) float32."""
    query, rows = np.ascontiguousarray(query), np.ascontiguousarray(rows, np.int64)
    products = np.empty(rows.size, np.float32)
    faiss.fvec_inner_products_by_idx(
        *map(faiss.swig_ptr, (products, query, vectors, rows)), query.size, 1, rows.size
    )
    return products


@dataclass(frozen=True, slots=True)
class Links:
    """A graph without its vectors, as arrays."""

    levels: NDArray[np.int32]
    """(n,) how many levels each row has, at least 1."""
    neighbours: NDArray[np.int32]
    """Row by row, level by level, the rows that it links to; -1 for none."""
    entry: int
    """The row where a search begins; -1 in an empty graph."""
    width: int
    """Links of a row above the lowest level, where it has twice as many."""

    def lowest(self, rows: NDArray[np.intp]) -> NDArray[np.int32]:
        """The links of some rows at the lowest level: (n, 2 * width), -1 for none."""
        sizes = (self.levels.astype(np.intp) + 1) * self.width
        starts = (np.cumsum(sizes) - sizes)[rows]
        links: NDArray[np.int32] = self.neighbours[starts[:, None] + np.arange(2 * self.width)]
        return links


class MainRows(Rows, ABC):
    """Rows with an index over them, so that a search need not compare all of them.

    They can be added to, and neither changed nor removed.
    """

    name: str
    """Of the index, as `Settings.index` gives it."""

    def train(self, vectors: Vectors) -> None:
        """Prepare for rows such as these, (n, dim) float32; once, before any is added."""

    @abstractmethod
    def add(self, vectors: Vectors) -> None:
        """Take rows in, (n, dim) float32. It is slow, and other Python threads run meanwhile.

        A view that was taken before is not to be used any more.
        """

    @abstractmethod
    def copy(self) -> MainRows:
        """A copy that can be added to while this one is searched."""

    @abstractmethod
    def search(
        self, queries: Vectors, k: int, effort: int, allowed: NDArray[np.uint8] | None
    ) -> tuple[Vectors, NDArray[np.int64]]:
        """Find about the k nearest rows of each query.

        Args:
            queries: (n, dim) float32, checked.
            k: at least 1.
            effort: how many candidates of a graph are followed, whether they may be found or not;
                or how many lists are gone through.
            allowed: the `bits` of rows that may be found; None: all.

        Returns:
            (n, k) scores, best first, and rows: -1 where no more were found.
        """


class Graph(MainRows):
    """Rows with an HNSW graph over them.

    The rows are FAISS's own, so there is no second copy of any vector.

    Args:
        dim: the width of a vector.
        width: links of a row above the lowest level, FAISS's M.
        effort: candidates weighed for a row's links, FAISS's efConstruction.
    """

    def __init__(self, dim: int, *, width: int, effort: int) -> None:
        self._graph = faiss.IndexHNSWFlat(dim, width, faiss.METRIC_INNER_PRODUCT)
        self._graph.hnsw.efConstruction = effort
        self._width, self._effort = width, effort
        self.name = f"HNSW{width}"
        self._lent: NDArray[np.int32] | None = None
        """Links that FAISS reads where they lie; kept alive here."""
        super().__init__(faiss.downcast_index(self._graph.storage))

    @classmethod
    def of(cls, vectors: Vectors, links: Links, *, effort: int, lent: bool = False) -> Graph:
        """Put a graph together from what `links` and `vectors` gave.

        Args:
            vectors: (n, dim) float32.
            links: those of the rows.
            effort: for rows that are added later.
            lent: read both where they lie, as far as FAISS can; then no row can be added. Else they
                are copied.

        Raises:
            SnapshotError: the links are none of such rows.
        """
        graph = cls(vectors.shape[1], width=links.width, effort=effort)
        if lent:
            fill(graph._flat, vectors)
            graph._vectors = vectors
        else:
            graph._flat.add(vectors)
        graph._graph.ntotal = len(vectors)
        graph._link(links, lent=lent)
        return graph

    @property
    def links(self) -> Links:
        """The graph without its vectors; a view."""
        hnsw = self._graph.hnsw
        return Links(
            faiss.vector_to_array(hnsw.levels),
            _Held.array(self._graph, _values(hnsw.neighbors)),
            int(hnsw.entry_point),
            self._width,
        )

    def copy(self) -> Graph:
        """See `MainRows`."""
        return Graph.of(self.vectors, self.links, effort=self._effort)

    def add(self, vectors: Vectors) -> None:
        """See `MainRows`."""
        self._vectors = None
        # Levels are drawn by chance: a copy would draw those of its original once more.
        self._graph.hnsw.rng = faiss.RandomGenerator(len(self) + 1)
        self._graph.add(vectors)

    def search(
        self, queries: Vectors, k: int, effort: int, allowed: NDArray[np.uint8] | None
    ) -> tuple[Vectors, NDArray[np.int64]]:
        """See `MainRows`."""
        if allowed is None:
            params = _hard(effort)
        else:
            selector = faiss.IDSelectorBitmap(allowed)
            params = faiss.SearchParametersHNSW(efSearch=effort, sel=selector)
        scores, rows = self._graph.search(queries, k, params=params)
        return scores, rows

    def _link(self, links: Links, *, lent: bool) -> None:
        hnsw, count = self._graph.hnsw, len(self)
        widths = faiss.vector_to_array(hnsw.cum_nneighbor_per_level)
        _check_links(links, count, widths)
        places = np.zeros(count + 1, np.uint64)
        np.cumsum(widths[links.levels], out=places[1:])
        faiss.copy_array_to_vector(np.ascontiguousarray(links.levels), hnsw.levels)
        faiss.copy_array_to_vector(places, hnsw.offsets)
        if lent and _lend(hnsw.neighbors, links.neighbours):
            self._lent = links.neighbours
        else:
            hnsw.neighbors.resize(links.neighbours.size)
            if count:
                _values(hnsw.neighbors)[:] = links.neighbours
        hnsw.entry_point = links.entry
        hnsw.max_level = int(links.levels.max()) - 1 if count else -1


@lru_cache(maxsize=64)
def _hard(effort: int) -> Any:
    """How hard to search, for FAISS, which only reads it; to make one takes as long as a hop."""
    return faiss.SearchParametersHNSW(efSearch=effort)


def _values(vector: Any) -> NDArray[np.int32]:
    """A view of FAISS's own vector of numbers, whatever class this FAISS has for it."""
    if not vector.size():
        return np.empty(0, np.int32)
    values: NDArray[np.int32] = faiss.rev_swig_ptr(vector.data(), vector.size())
    return values


def _check_links(links: Links, count: int, widths: NDArray[np.int32]) -> None:
    """Refuse what would have FAISS read beyond its arrays."""
    levels, neighbours = links.levels, links.neighbours
    sound = levels.size == count
    if sound and count:
        sound = levels.min() >= 1 and levels.max() < widths.size
        sound = sound and int(widths[levels].sum()) == neighbours.size
        sound = sound and neighbours.min() >= -1 and neighbours.max() < count
        sound = sound and 0 <= links.entry < count and levels[links.entry] == levels.max()
    if not sound:
        raise SnapshotError(f"the links of an index do not fit its {count} rows")


def build_beside_searches() -> None:
    """Leave the calling thread, which is to build, half of the processors; others keep theirs."""
    most = 1 if os.getpid() != _IMPORTED_IN else (os.cpu_count() or 1) // 2
    faiss.omp_set_num_threads(max(min(most, faiss.omp_get_max_threads()), 1))
