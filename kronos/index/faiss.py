"""`FaissIndex`: a flat FAISS index, exact, on the CPU and, where FAISS can, copied to a GPU.

The only module that imports faiss. All is checked before FAISS sees it: FAISS takes NaN and a key
that it holds already, and a wrong width reads past the array's end under `python -O`. FAISS reads
no file and no serialised bytes. A few questions are answered on one thread; the number of threads,
which is torch's as well, is put back at once.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import faiss
import numpy as np

from kronos.errors import ConfigurationError, KronosWarning
from kronos.forking import in_children
from kronos.index.base import (
    KeyTable,
    check_keys,
    check_queries,
    check_rows,
    distinct,
    require_known,
    rows_from_bytes,
    rows_to_bytes,
    score_all,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from kronos.types import Keys, Vectors

_FEW = 16
"""When fewer than one key in 16 is allowed, their vectors are gathered and compared; when more
are, FAISS walks a bitmap of rows.

50,000 x 384, one thread, k = 10, scattered keys, ms gathered / by bitmap: 0.1 % .03 / .21,
1 % .11 / .22, 5 % .42 / .60, 10 % 1.7 / 1.2, 50 % 14 / 5.8. For keys whose rows lie together the
two cross at 6 %. An IDSelectorBatch takes 1.2 to 1.7 times as long as the bitmap.
"""
_LONE = 8
"""So many queries are answered on one thread. Two share a scan of 100,000 x 384 in 10 ms on an idle
machine as one does, and take three times as long where another process uses the processors: each
waits for the other at every end."""
_GPU_MAX_K = 2048
"""FAISS's GPU kernels select no more."""
# OpenMP's threads are not in a forked child, and the first parallel loop would wait for them.
in_children(lambda: faiss.omp_set_num_threads(1))
_DEVICE = re.compile(r"cpu|mps|auto|cuda(?::(?P<number>\d+))?")


class FaissIndex:
    """A `VectorIndex` over `IndexIDMap(IndexFlatIP)`.

    FAISS keeps keys and vectors; the table that finds a key's row is built here, when it is needed,
    and makes the hash map of IndexIDMap2 superfluous. The vector of a held key is overwritten in
    place: to remove and add it would move every row behind it.

    Args:
        dim: the width of a vector.
        device: "cpu"; "auto" or "cuda" for the first GPU; "cuda:N" for another. Where FAISS cannot
            use that GPU, and for "mps", the index is on the CPU alone.
        library: the faiss module; a test hands in one with a stand-in for a GPU.
    """

    kind = "faiss-flat"

    def __init__(self, dim: int, *, device: str = "auto", library: Any = faiss) -> None:
        self.dim = dim
        self._flat = faiss.IndexFlatIP(dim)
        self._index = faiss.IndexIDMap(self._flat)
        self._highest: int | None = None
        """No held key is above it: keys that are, the usual case, are new without a look-up."""
        self._table: KeyTable | None = None
        """Made when a key is first looked up, so that filling an index does not pay for it."""
        self._gpu = GpuCopy.on(device, library)

    @classmethod
    def from_bytes(
        cls, data: bytes, dim: int, *, device: str = "auto", library: Any = faiss
    ) -> FaissIndex:
        """Read what `to_bytes` wrote.

        Raises:
            SnapshotError: the bytes are no index, or one of another width.
        """
        index = cls(dim, device=device, library=library)
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
            self._spoil_gpu_copy()
        return keys.size

    def search(
        self, queries: Vectors, k: int, *, allowed: Keys | None = None
    ) -> tuple[Vectors, Keys]:
        """Find the k nearest keys of each query; see `VectorIndex.search`.

        Equal scores are ordered by key, lowest first; which of several with the score of the last
        place are returned is left open.
        """
        queries = check_queries(queries, k, self.dim)
        with _threads_for(len(queries)):
            return self._search(queries, k, allowed)

    def _search(self, queries: Vectors, k: int, allowed: Keys | None) -> tuple[Vectors, Keys]:
        if allowed is None:
            return _settle_ties(*self._search_all(queries, min(k, len(self))))
        allowed = distinct(check_keys(allowed))
        rows, known = self._find(allowed)
        if not rows.size or rows.size * _FEW < len(self):
            vectors = self._vectors().take(rows, axis=0)
            return score_all(queries, allowed[known], vectors, k)
        return _settle_ties(*self._search_rows(queries, min(k, rows.size), rows))

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

    def to_bytes(self) -> bytes:
        """The index as bytes that `from_bytes` reads: raw arrays, in the order of the rows."""
        return rows_to_bytes(self._keys(), self._vectors())

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
            self._spoil_gpu_copy()

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
        if not len(self):
            return np.empty((0, self.dim), np.float32)
        values: Vectors = faiss.rev_swig_ptr(self._flat.get_xb(), len(self) * self.dim)
        return values.reshape(len(self), self.dim)

    def _search_all(self, queries: Vectors, k: int) -> tuple[Vectors, Keys]:
        # k is never more than can be found, as FAISS fills up with the key -1, and it takes no 0.
        if not k:
            return np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
        if self._gpu is not None and k <= _GPU_MAX_K:
            try:
                scores, rows = self._gpu.search(queries, k, self._flat, self._vectors())
                return scores, self._keys().take(rows)
            except RuntimeError as exc:
                self._gpu = None
                warnings.warn(
                    f"the index of {len(self)} vectors goes on without the GPU: {exc}",
                    KronosWarning,
                    stacklevel=3,
                )
        scores, keys = self._index.search(queries, k)
        return scores, keys

    def _search_rows(
        self, queries: Vectors, k: int, rows: NDArray[np.intp]
    ) -> tuple[Vectors, Keys]:
        mask = np.zeros(len(self), np.bool_)
        mask[rows] = True
        selector = faiss.IDSelectorBitmap(np.packbits(mask, bitorder="little"))
        params = faiss.SearchParameters(sel=selector)
        scores, found = self._flat.search(queries, k, params=params)
        return scores, self._keys().take(found)

    def _spoil_gpu_copy(self) -> None:
        if self._gpu is not None:
            self._gpu.spoil()


@contextmanager
def _threads_for(queries: int) -> Iterator[None]:
    """One thread for a few queries. The number is the calling thread's own, to OpenMP."""
    if queries > _LONE:
        yield
        return
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(threads)


def _settle_ties(scores: Vectors, keys: Keys) -> tuple[Vectors, Keys]:
    """Order equal scores by key, lowest first."""
    # After FAISS went through all vectors caches are cold: a NumPy comparison costs twice the sets.
    if all(len(set(row)) == len(row) for row in scores.tolist()):
        return scores, keys
    order = np.lexsort((keys, -scores))
    return np.take_along_axis(scores, order, 1), np.take_along_axis(keys, order, 1)


class GpuCopy:
    """A copy of a flat index on a GPU, brought up to date when it is asked.

    The index on the CPU stays the truth: removals, filters and snapshots are its own.
    Not run on a GPU yet; its tests use a stand-in for FAISS's GPU functions.
    """

    def __init__(self, number: int, library: Any) -> None:
        self._number = number
        self._library = library
        self._resources: Any = None
        self._copy: Any = None

    @classmethod
    def on(cls, device: str, library: Any) -> GpuCopy | None:
        """Prepare a copy on a device; None when it is no GPU, or none that FAISS can use.

        Raises:
            ConfigurationError: the device has no meaning.
        """
        match = _DEVICE.fullmatch(device)
        if match is None:
            raise ConfigurationError(
                f'device must be "auto", "cpu", "cuda", "cuda:N" or "mps", not {device!r}',
                field="device",
            )
        # A CPU build has index_cpu_to_all_gpus as well, which does nothing; these it has not.
        if device in ("cpu", "mps") or not hasattr(library, "StandardGpuResources"):
            return None
        number = int(match["number"] or 0)
        return cls(number, library) if number < library.get_num_gpus() else None

    def spoil(self) -> None:
        """A row was overwritten or removed: the next search copies the index anew."""
        self._copy = None

    def search(
        self, queries: Vectors, k: int, flat: Any, vectors: Vectors
    ) -> tuple[Vectors, NDArray[np.int64]]:
        """Search the copy, after it was given what is new.

        Args:
            queries: (n, dim) float32.
            k: how many rows, 1 to 2048.
            flat: the index on the CPU.
            vectors: its rows: (m, dim) float32.

        Returns:
            (n, k) scores and rows.

        Raises:
            RuntimeError: the GPU failed, e.g. its memory is full.
        """
        if self._copy is None:
            # Made once: each holds memory on the GPU.
            self._resources = self._resources or self._library.StandardGpuResources()
            self._copy = self._library.index_cpu_to_gpu(self._resources, self._number, flat)
        elif self._copy.ntotal < len(vectors):
            self._copy.add(vectors[self._copy.ntotal :])
        scores, rows = self._copy.search(queries, k)
        return scores, rows
