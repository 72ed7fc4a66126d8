"""The index kinds that the conformance suite is run over, and a stand-in for FAISS's GPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import faiss

from kronos.index.exact import ExactIndex
from kronos.index.faiss import FaissIndex
from kronos.index.layered import LayeredIndex
from kronos.index.policy import IndexPolicy
from kronos.types import VectorIndex

if TYPE_CHECKING:
    from kronos.types import Keys, Vectors


class GpuResources:
    """What FAISS allocates for a GPU."""


class StandInGpu:
    """A faiss module whose GPUs are copies in main memory, and which counts what it is asked."""

    def __init__(self, gpus: int = 1) -> None:
        self.gpus = gpus
        self.full = False
        self.calls: list[str] = []

    def get_num_gpus(self) -> int:
        return self.gpus

    def StandardGpuResources(self) -> GpuResources:
        self.calls.append("allocate")
        return GpuResources()

    def index_cpu_to_gpu(self, resources: GpuResources, number: int, flat: Any) -> StandInIndex:
        assert isinstance(resources, GpuResources)
        self.calls.append(f"copy {flat.ntotal} to {number}")
        if self.full:
            raise RuntimeError("Error in allocMemory: Failed to cudaMalloc 80000000 bytes")
        return StandInIndex(faiss.clone_index(flat), self.calls)


class StandInIndex:
    """An index on a stand-in GPU; it refuses what the kernels refuse."""

    def __init__(self, index: Any, calls: list[str]) -> None:
        self._index = index
        self._calls = calls

    @property
    def ntotal(self) -> int:
        return int(self._index.ntotal)

    def add(self, vectors: Any) -> None:
        self._calls.append(f"add {len(vectors)}")
        self._index.add(vectors)

    def search(self, queries: Any, k: int) -> Any:
        assert k <= 2048, "GPU index only supports k <= 2048"
        self._calls.append(f"search {k}")
        return self._index.search(queries, k)


@dataclass(frozen=True)
class Kind:
    make: Callable[[int], VectorIndex]
    from_bytes: Callable[[bytes, int], VectorIndex]


def _with_gpu(dim: int) -> FaissIndex:
    return FaissIndex(dim, device="cuda", library=StandInGpu())


def _read_with_gpu(data: bytes, dim: int) -> FaissIndex:
    return FaissIndex.from_bytes(data, dim, device="cuda", library=StandInGpu())


EAGER = IndexPolicy(flat_below=8, tail_least=5, tail_share=0, search_effort=4000)
"""Builds whenever it can, and searches so hard that a graph, too, is exact."""
ALL_GRAPH = replace(EAGER, rows_for_step=0)
"""Asks the graph whenever there is one."""


class EagerIndex(LayeredIndex):
    """Builds within every change, as no store does: so the laws hold over all its parts."""

    def __init__(self, dim: int, *, policy: IndexPolicy = EAGER, **options: Any) -> None:
        super().__init__(dim, policy=policy, **options)

    def upsert(self, keys: Keys, vectors: Vectors) -> None:
        super().upsert(keys, vectors)
        self.build()

    def remove(self, keys: Keys) -> int:
        removed = super().remove(keys)
        self.build()
        return removed

    def build(self) -> None:
        if self.build_is_due:
            build = self.begin_build()
            assert build.run()
            assert self.finish_build(build)


def _layered(policy: IndexPolicy) -> Kind:
    options: dict[str, Any] = {"device": "cpu", "policy": policy}
    return Kind(partial(EagerIndex, **options), partial(EagerIndex.from_bytes, **options))


KINDS = {
    "exact": Kind(ExactIndex, ExactIndex.from_bytes),
    "faiss": Kind(partial(FaissIndex, device="cpu"), partial(FaissIndex.from_bytes, device="cpu")),
    "layered": _layered(EAGER),
    "layered-graph": _layered(ALL_GRAPH),
    "layered-coded": _layered(replace(ALL_GRAPH, main="HNSW8,SQ8")),
    "layered-lists": _layered(replace(ALL_GRAPH, main="IVF1,SQfp16")),
    "faiss-gpu": Kind(_with_gpu, _read_with_gpu),
}
