"""The index kinds that the conformance suite is run over, and a stand-in for FAISS's GPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import faiss

from kronos.index.exact import ExactIndex
from kronos.index.faiss import FaissIndex
from kronos.types import VectorIndex


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


KINDS = {
    "exact": Kind(ExactIndex, ExactIndex.from_bytes),
    "faiss": Kind(partial(FaissIndex, device="cpu"), partial(FaissIndex.from_bytes, device="cpu")),
    "faiss-gpu": Kind(_with_gpu, _read_with_gpu),
}
