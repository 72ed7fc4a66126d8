"""`CodedRows`: rows with any FAISS index over them that a setting names, e.g. "IVF1024,SQ8".

As a rule it keeps the rows in fewer bits, and asks less memory for it. What it finds are
candidates: their scores are computed anew from the rows, so that each score is exact, and only a
row can be missed. The rows themselves lie in the snapshot's file once it was opened, where just
those of the candidates are read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import faiss
import numpy as np

from kronos.errors import ConfigurationError, SnapshotError
from kronos.index.base import best
from kronos.index.faiss import MainRows, fill, products, threads_for

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from kronos.types import Vectors

_MORE, _FEW = 2, 20
"""So many candidates for each row that is wanted, and so many beside them. 20,000 x 384, recall@10
with 1 and 0 / 2 and 0 / 2 and 20 / 4 and 20: "HNSW16,SQ8" .983 / .987 / .987 / .987, "HNSW16,SQ4"
.933 / .985 / .985 / .985, "IVF128,RaBitQ" .743 / .915 / .963 / .975."""


class CodedRows(MainRows):
    """Rows with a FAISS index over them. It is trained, then added to; nothing is removed.

    Args:
        dim: the width of a vector.
        name: of the index, as FAISS's index factory takes it.
        effort: candidates weighed for a row's links, where it has a graph.

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
                f"index={name!r} is none that FAISS {faiss.__version__} makes of vectors {dim} "
                f'wide: {exc}. Try "auto"',
                field="index",
            ) from exc
        if isinstance(self._index, faiss.IndexHNSW):
            self._index.hnsw.efConstruction = effort

    @classmethod
    def of(cls, vectors: Vectors, name: str, codes: NDArray[np.uint8], *, effort: int) -> CodedRows:
        """Put together what `vectors` and `codes` gave.

        Args:
            vectors: (n, dim) float32; read where they lie, as far as FAISS can.
            name: as for the index.
            codes: of the index; verified, for FAISS believes them.
            effort: as for the index.

        Raises:
            SnapshotError: the codes are none of such rows.
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
        """The index without the rows, as bytes."""
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
        wanted = k * _MORE + _FEW
        # All that a graph weighs are scored exactly: it has them at hand.
        wanted = min(max(wanted, effort) if is_graph else wanted, self._findable(allowed))
        with threads_for(queries):
            params = self._parameters(max(effort, wanted), allowed)
            _, near = self._index.search(queries, wanted, params=params)
        scores = np.full((len(queries), k), -np.inf, np.float32)
        rows = np.full((len(queries), k), -1, np.int64)
        if is_graph and (near < 0).any():
            return scores, rows  # its links do not lead everywhere: then nothing is sure
        for number, query in enumerate(queries):
            candidates = near[number][near[number] >= 0]
            exact = products(query, self.vectors, candidates)
            order = best(exact, k)
            scores[number, : order.size] = exact[order]
            rows[number, : order.size] = candidates[order]
        return scores, rows

    def _findable(self, allowed: NDArray[np.uint8] | None) -> int:
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
