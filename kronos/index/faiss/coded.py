"""`CodedRows`: rows with an index from FAISS's index factory over them, such as "IVF1024,SQ8".

Such an index usually encodes the rows in fewer bits, so it needs less memory. It finds candidates,
and their scores are computed again from the rows. So each score is exact, and the only error is a
missed row. After a snapshot is opened, the rows stay in its mapped file, where only those of the
candidates are read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import faiss
import numpy as np

from kronos.errors import ConfigurationError, SnapshotError
from kronos.index.base import top_k
from kronos.index.faiss.library import fill, threads_for
from kronos.index.faiss.rows import MainRows, inner_products

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from kronos.types import Vectors

_CANDIDATES_PER_ROW, _MORE_CANDIDATES = 2, 20
"""How many candidates are rescored: some for each wanted row, and some more. The coarser the codes,
the more recall these add."""


class CodedRows(MainRows):
    """Rows with a factory index over them. It is trained, then added to; no row is removed.

    Args:
        dim: the width of a vector.
        name: the index's name for FAISS's index factory.
        effort: candidates considered for a row's links, if the index is a graph.

    Raises:
        ConfigurationError: this FAISS cannot make such an index.
    """

    def __init__(self, dim: int, name: str, *, effort: int) -> None:
        super().__init__(faiss.IndexFlatIP(dim))
        self.name = name
        try:
            self._index = faiss.index_factory(dim, name, faiss.METRIC_INNER_PRODUCT)
        except RuntimeError as exc:
            raise ConfigurationError(
                f"FAISS {faiss.__version__} cannot make index={name!r} for vectors {dim} wide: "
                f'{exc}. Try "auto"',
                field="index",
            ) from exc
        if isinstance(self._index, faiss.IndexHNSW):
            self._index.hnsw.efConstruction = effort

    @classmethod
    def of(cls, vectors: Vectors, name: str, codes: NDArray[np.uint8], *, effort: int) -> CodedRows:
        """Assemble rows from others' `vectors` and `codes`.

        Args:
            vectors: (n, dim) float32; read in place if this FAISS can.
            name: as for the class.
            codes: the index's bytes; verified by the caller, since FAISS trusts them.
            effort: as for the class.

        Raises:
            SnapshotError: the codes do not fit the rows.
        """
        rows = cls(vectors.shape[1], name, effort=effort)
        kind = type(rows._index)
        try:
            rows._index = faiss.deserialize_index(np.ascontiguousarray(codes))
        except RuntimeError as exc:
            raise SnapshotError(f"the codes of an index cannot be read: {exc}") from exc
        found = (type(rows._index), rows._index.d, rows._index.ntotal)
        if found != (kind, vectors.shape[1], len(vectors)):
            raise SnapshotError(f"the codes of an index do not fit its {len(vectors)} rows")
        fill(rows._flat, vectors)
        rows._vectors = vectors
        return rows

    @property
    def codes(self) -> NDArray[np.uint8]:
        """The index without the rows, as bytes: (size,) uint8."""
        codes: NDArray[np.uint8] = faiss.serialize_index(self._index)
        return codes

    def train(self, vectors: Vectors) -> None:
        """See `MainRows`."""
        if not self._index.is_trained:
            self._index.train(vectors)

    def add(self, vectors: Vectors) -> None:
        """See `MainRows`."""
        self._vectors = None
        self._flat.add(vectors)
        self._index.add(vectors)

    def copy(self) -> CodedRows:
        """See `MainRows`."""
        copy = CodedRows.__new__(CodedRows)
        MainRows.__init__(copy, faiss.IndexFlatIP(self._flat.d))
        copy.name = self.name
        copy._index = faiss.clone_index(self._index)
        copy._flat.add(self.vectors)
        return copy

    def search(
        self, queries: Vectors, k: int, effort: int, allowed: NDArray[np.uint8] | None
    ) -> tuple[Vectors, NDArray[np.int64]]:
        """See `MainRows`."""
        is_graph = isinstance(self._index, faiss.IndexHNSW)
        wanted = k * _CANDIDATES_PER_ROW + _MORE_CANDIDATES
        # All candidates that a graph search follows are rescored: it returns them at no cost.
        wanted = min(max(wanted, effort) if is_graph else wanted, self._count(allowed))
        with threads_for(queries):
            params = self._parameters(max(effort, wanted), allowed)
            _, near = self._index.search(queries, wanted, params=params)
        scores = np.full((len(queries), k), -np.inf, np.float32)
        rows = np.full((len(queries), k), -1, np.int64)
        if is_graph and (near < 0).any():
            return scores, rows  # the links do not reach every row: report that none is sure
        for number, query in enumerate(queries):
            candidates = near[number][near[number] >= 0]
            exact = inner_products(query, self.vectors, candidates)
            order = top_k(exact, k)
            scores[number, : order.size] = exact[order]
            rows[number, : order.size] = candidates[order]
        return scores, rows

    def _count(self, allowed: NDArray[np.uint8] | None) -> int:
        """How many rows may be found."""
        if allowed is None:
            return len(self)
        return int.from_bytes(allowed.tobytes(), "little").bit_count()

    def _parameters(self, effort: int, allowed: NDArray[np.uint8] | None) -> Any:
        options = {}
        if allowed is not None:
            options["sel"] = faiss.IDSelectorBitmap(allowed)
        if isinstance(self._index, faiss.IndexHNSW):
            return faiss.SearchParametersHNSW(efSearch=effort, **options)
        return faiss.SearchParametersIVF(nprobe=min(effort, self._index.nlist), **options)
