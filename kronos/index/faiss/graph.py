"""`Graph`: rows with an HNSW graph over them (Malkov and Yashunin, 2016); its links as arrays."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import faiss
import numpy as np

from kronos.errors import SnapshotError
from kronos.index.faiss.library import fill, integers_of, keeping_alive, lend
from kronos.index.faiss.rows import MainRows

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from kronos.types import Vectors


@dataclass(frozen=True, slots=True)
class Links:
    """The links of a graph, without its vectors, as arrays."""

    levels: NDArray[np.int32]
    """(n,) how many levels each row has, at least 1."""
    neighbours: NDArray[np.int32]
    """Row by row, level by level, the rows that each row links to; -1 for none."""
    entry: int
    """The row where a search begins; -1 in an empty graph."""
    width: int
    """Links of a row above the lowest level; at the lowest level it has twice as many."""

    def lowest(self, rows: NDArray[np.intp]) -> NDArray[np.int32]:
        """The links of some rows at the lowest level: (n, 2 * width), -1 for none."""
        sizes = (self.levels.astype(np.intp) + 1) * self.width
        starts = (np.cumsum(sizes) - sizes)[rows]
        links: NDArray[np.int32] = self.neighbours[starts[:, None] + np.arange(2 * self.width)]
        return links


class Graph(MainRows):
    """Rows with an HNSW graph over them.

    The rows are stored once, in FAISS.

    Args:
        dim: the width of a vector.
        width: links of a row above the lowest level, FAISS's M.
        effort: candidates considered for a row's links, FAISS's efConstruction.
    """

    def __init__(self, dim: int, *, width: int, effort: int) -> None:
        self._graph = faiss.IndexHNSWFlat(dim, width, faiss.METRIC_INNER_PRODUCT)
        self._graph.hnsw.efConstruction = effort
        self._width, self._effort = width, effort
        self.name = f"HNSW{width}"
        self._lent: NDArray[np.int32] | None = None
        """Links that FAISS reads in place; kept alive here."""
        super().__init__(faiss.downcast_index(self._graph.storage))

    @classmethod
    def of(cls, vectors: Vectors, links: Links, *, effort: int, lent: bool = False) -> Graph:
        """Assemble a graph from another one's `vectors` and `links`.

        Args:
            vectors: (n, dim) float32.
            links: the links of those rows.
            effort: for rows that are added later.
            lent: read both in place if this FAISS can; then no row can be added. False: copy them.

        Raises:
            SnapshotError: the links do not fit the rows.
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
        """The links of the graph: a view."""
        hnsw = self._graph.hnsw
        return Links(
            faiss.vector_to_array(hnsw.levels),
            keeping_alive(self._graph, integers_of(hnsw.neighbors)),
            int(hnsw.entry_point),
            self._width,
        )

    def copy(self) -> Graph:
        """See `MainRows`."""
        return Graph.of(self.vectors, self.links, effort=self._effort)

    def add(self, vectors: Vectors) -> None:
        """See `MainRows`."""
        self._vectors = None
        # Levels are random. Without a new seed a copy would repeat the levels of its original.
        self._graph.hnsw.rng = faiss.RandomGenerator(len(self) + 1)
        self._graph.add(vectors)

    def search(
        self, queries: Vectors, k: int, effort: int, allowed: NDArray[np.uint8] | None
    ) -> tuple[Vectors, NDArray[np.int64]]:
        """See `MainRows`."""
        if allowed is None:
            params = _parameters(effort)
        else:
            selector = faiss.IDSelectorBitmap(allowed)
            params = faiss.SearchParametersHNSW(efSearch=effort, sel=selector)
        scores, rows = self._graph.search(queries, k, params=params)
        return scores, rows

    def _link(self, links: Links, *, lent: bool) -> None:
        hnsw, count = self._graph.hnsw, len(self)
        widths = faiss.vector_to_array(hnsw.cum_nneighbor_per_level)
        _check_links(links, count, widths)
        offsets = np.zeros(count + 1, np.uint64)
        np.cumsum(widths[links.levels], out=offsets[1:])
        faiss.copy_array_to_vector(np.ascontiguousarray(links.levels), hnsw.levels)
        faiss.copy_array_to_vector(offsets, hnsw.offsets)
        if lent and lend(hnsw.neighbors, links.neighbours):
            self._lent = links.neighbours
        else:
            hnsw.neighbors.resize(links.neighbours.size)
            if count:
                integers_of(hnsw.neighbors)[:] = links.neighbours
        hnsw.entry_point = links.entry
        hnsw.max_level = int(links.levels.max()) - 1 if count else -1


@lru_cache(maxsize=64)
def _parameters(effort: int) -> Any:
    """FAISS's search parameters, which it only reads. Cached: creating them costs a graph hop."""
    return faiss.SearchParametersHNSW(efSearch=effort)


def _check_links(links: Links, count: int, widths: NDArray[np.int32]) -> None:
    """Refuse links that would let FAISS read beyond its arrays."""
    levels, neighbours = links.levels, links.neighbours
    sound = levels.size == count
    if sound and count:
        sound = levels.min() >= 1 and levels.max() < widths.size
        sound = sound and int(widths[levels].sum()) == neighbours.size
        sound = sound and neighbours.min() >= -1 and neighbours.max() < count
        sound = sound and 0 <= links.entry < count and levels[links.entry] == levels.max()
    if not sound:
        raise SnapshotError(f"the links of an index do not fit its {count} rows")
