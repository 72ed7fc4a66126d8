"""`Rows` and `MainRows`: rows that do not change, the building blocks of a `LayeredIndex`.

Rows are numbered from 0. Which rows a search may find is told by a bitmap, one bit for each row.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import faiss
import numpy as np

from kronos.index.base import score_all, top_k
from kronos.index.faiss.library import (
    FEW_QUERIES,
    keeping_alive,
    one_thread,
    rows_of,
    threads_for,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from kronos.types import Keys, Vectors


def bits(mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """A mask of rows, (n,) bool, as a bitmap for searches: one bit for each row."""
    return np.packbits(mask, bitorder="little")


def bits_of(rows: NDArray[np.intp], size: int) -> NDArray[np.uint8]:
    """The bitmap of some of `size` rows."""
    mask = np.zeros(size, np.bool_)
    mask[rows] = True
    return bits(mask)


class Rows:
    """Rows that do not change. Searches compare them one by one, so they are exact.

    Args:
        flat: a flat FAISS index, which must not change any more.
    """

    def __init__(self, flat: Any) -> None:
        self._flat = flat
        self._vectors: Vectors | None = None

    def __len__(self) -> int:
        return int(self._flat.ntotal)

    @property
    def flat(self) -> Any:
        """FAISS's flat index of the rows."""
        return self._flat

    @property
    def vectors(self) -> Vectors:
        """A view of the rows: (n, dim) float32."""
        if self._vectors is None:
            self._vectors = keeping_alive(self._flat, rows_of(self._flat))
        return self._vectors

    def scan(
        self, queries: Vectors, k: int, allowed: NDArray[np.uint8] | None
    ) -> tuple[Vectors, NDArray[np.int64]]:
        """Find the k nearest rows of each query, by a scan of all rows.

        Args:
            queries: (n, dim) float32, checked.
            k: at least 1 and at most the number of allowed rows.
            allowed: the bitmap of the rows that may be found; None: all.

        Returns:
            (n, k) scores, best first, and rows.
        """
        params = None
        if allowed is not None:
            # FAISS keeps only a pointer: these local names keep both objects alive.
            selector = faiss.IDSelectorBitmap(allowed)
            params = faiss.SearchParameters(sel=selector)
        with threads_for(queries):
            scores, rows = self._flat.search(queries, k, params=params)
        return scores, rows

    def pick(
        self, queries: Vectors, k: int, rows: NDArray[np.intp], keys: Keys
    ) -> tuple[Vectors, Keys]:
        """Find the k nearest among some rows, comparing only those, in place.

        Args:
            queries: (n, dim) float32, checked.
            k: at least 1.
            rows: (m,) which rows.
            keys: (m,) their keys, ascending.

        Returns:
            (n, min(k, m)) scores and keys, ordered by score, highest first, then by key.
        """
        if len(queries) > FEW_QUERIES or not rows.size:
            return score_all(queries, keys, self.vectors.take(rows, axis=0), k)
        k, vectors = min(k, rows.size), self.vectors
        scores = np.empty((len(queries), k), np.float32)
        found = np.empty((len(queries), k), np.int64)
        with one_thread():
            for number, query in enumerate(queries):
                all_scores = inner_products(query, vectors, rows)
                positions = top_k(all_scores, k)
                scores[number], found[number] = all_scores[positions], keys[positions]
        return scores, found


def inner_products(query: Vectors, vectors: Vectors, rows: NDArray[np.intp]) -> Vectors:
    """The inner products of a query and some rows of C-contiguous vectors: (m,) float32."""
    query, rows = np.ascontiguousarray(query), np.ascontiguousarray(rows, np.int64)
    products = np.empty(rows.size, np.float32)
    faiss.fvec_inner_products_by_idx(
        *map(faiss.swig_ptr, (products, query, vectors, rows)), query.size, 1, rows.size
    )
    return products


class MainRows(Rows, ABC):
    """Rows with an approximate index over them, so that a search does not compare all of them.

    Rows can be added, but neither changed nor removed.
    """

    name: str
    """The index's name, as `Settings.index` gives it."""

    def train(self, vectors: Vectors) -> None:
        """Prepare for rows such as these, (n, dim) float32; once, before any row is added."""

    @abstractmethod
    def add(self, vectors: Vectors) -> None:
        """Add rows, (n, dim) float32. It is slow, and other Python threads run meanwhile.

        Views that were taken before must not be used any more.
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
            effort: how many candidates a graph search follows, allowed or not; or how many lists of
                an inverted file it reads.
            allowed: the bitmap of the rows that may be found; None: all.

        Returns:
            (n, k) scores, best first, and rows: -1 where no more were found.
        """
