"""The index kinds that the conformance suite covers, and a stand-in for FAISS's GPUs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import faiss

from kronos.index.exact import ExactIndex
from kronos.index.faiss.flat import FaissIndex
from kronos.index.gpu.torch_index import TorchIndex
from kronos.index.layered import LayeredIndex
from kronos.index.policy import IndexPolicy
from kronos.types import VectorIndex

if TYPE_CHECKING:
    from kronos.types import Keys, Vectors


class GpuResources:
    """A stand-in for the resources that FAISS allocates for a GPU."""

    def setTempMemory(self, size: int) -> None:
        assert size == 256 * 2**20


class Options:
    """The fields of FAISS's GpuClonerOptions; no other field can be set."""

    __slots__ = ("useFloat16", "use_cuvs")

    def __init__(self) -> None:
        self.useFloat16 = False
        self.use_cuvs = True


class MultipleOptions(Options):
    __slots__ = ("shard",)

    def __init__(self) -> None:
        super().__init__()
        self.shard = False


class StandInGpu:
    """A faiss module whose GPUs are copies in main memory, and which records its calls.

    Everything else is the real FAISS, including shards and replicas.
    """

    def __init__(self, gpus: int = 1) -> None:
        self.gpus = gpus
        self.full = False
        self.calls: list[str] = []
        self._parts: list[Any] = []
        """Kept alive here: FAISS keeps only pointers."""

    def __getattr__(self, name: str) -> Any:
        return getattr(faiss, name)

    def get_num_gpus(self) -> int:
        return self.gpus

    GpuClonerOptions = Options
    GpuMultipleClonerOptions = MultipleOptions

    def StandardGpuResources(self) -> GpuResources:
        self.calls.append("allocate")
        return GpuResources()

    def index_cpu_to_gpu(
        self, resources: GpuResources, number: int, index: Any, options: Options
    ) -> StandInIndex:
        assert isinstance(resources, GpuResources)
        assert type(options) is Options
        return self._copied(index, faiss.clone_index(index), options, f"gpu {number}")

    def index_cpu_to_gpu_multiple_py(
        self,
        resources: list[GpuResources],
        index: Any,
        co: MultipleOptions,
        gpus: list[int],
    ) -> StandInIndex:
        assert len(resources) == len({id(each) for each in resources}) == len(gpus)
        assert type(co) is MultipleOptions
        successive = isinstance(index, faiss.IndexFlat)
        if co.shard:
            whole = faiss.IndexShards(index.d, True, successive)
            join = whole.add_shard
        else:
            whole = faiss.IndexReplicas(index.d, True)
            join = whole.add_replica
        for _ in gpus:
            self._parts.append(faiss.clone_index(index))
            join(self._parts[-1])
        how = "shards" if co.shard else "replicas"
        return self._copied(index, whole, co, f"{how} {','.join(map(str, gpus))}")

    def index_gpu_to_cpu(self, copy: StandInIndex) -> Any:
        self.calls.append("to cpu")
        return faiss.clone_index(copy.index)

    def _copied(self, index: Any, copy: Any, options: Options, where: str) -> StandInIndex:
        assert not options.use_cuvs, "cuVS refuses float16 lists"
        kind = type(index).__name__
        self.calls.append(f"{kind} to {where}{' half' if options.useFloat16 else ''}")
        # FAISS ignores it for other kinds.
        return StandInIndex(copy, self, options.useFloat16 and kind == "IndexFlatIP")


class StandInIndex:
    """An index on a stand-in GPU, with the same limits as the GPU kernels."""

    def __init__(self, index: Any, library: StandInGpu, half: bool) -> None:
        self.index = index
        self._library = library
        self._half = half

    def train(self, vectors: Any) -> None:
        self._library.calls.append(f"train {len(vectors)}")
        self.index.train(vectors)

    def add(self, vectors: Any) -> None:
        self._say(f"add {len(vectors)}")
        self.index.add(self._kept(vectors))

    def search(self, queries: Any, k: int) -> Any:
        assert k <= 2048, "GPU index only supports min/max-K selection up to 2048"
        self._say(f"search {k}")
        scores, rows = self.index.search(self._kept(queries), k)
        return self._kept(scores), rows

    def _say(self, call: str) -> None:
        self._library.calls.append(call)
        if self._library.full:
            raise RuntimeError("Error in allocMemory: Failed to cudaMalloc 80000000 bytes")

    def _kept(self, values: Any) -> Any:
        return values.astype("float16").astype("float32") if self._half else values


@dataclass(frozen=True)
class Kind:
    make: Callable[[int], VectorIndex]
    from_bytes: Callable[[bytes, int], VectorIndex]


EAGER = IndexPolicy(
    flat_below=8, gpu_from=8, tail_least=5, tail_share=0, search_effort=4000, read_share=1
)
"""Builds whenever it can, and searches so hard that even a graph is exact."""
ALL_GRAPH = replace(EAGER, rows_for_step=0)
"""Searches the graph whenever there is one."""


class EagerIndex(LayeredIndex):
    """Builds within every change, as no store does, so the laws are tested over all its parts."""

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


def _on_gpus(gpus: int = 1, **policy: Any) -> Kind:
    options: dict[str, Any] = {"policy": replace(EAGER, **policy), "device": "auto"}
    return Kind(
        lambda dim: EagerIndex(dim, library=StandInGpu(gpus), **options),
        lambda data, dim: EagerIndex.from_bytes(data, dim, library=StandInGpu(gpus), **options),
    )


def _torch(half: bool) -> Kind:
    options: dict[str, Any] = {"device": "cpu", "half": half}
    return Kind(partial(TorchIndex, **options), partial(TorchIndex.from_bytes, **options))


KINDS = {
    "exact": Kind(ExactIndex, ExactIndex.from_bytes),
    "faiss": Kind(FaissIndex, FaissIndex.from_bytes),
    "layered": _layered(EAGER),
    "layered-graph": _layered(ALL_GRAPH),
    "layered-coded": _layered(replace(ALL_GRAPH, main="HNSW8,SQ8")),
    "layered-lists": _layered(replace(ALL_GRAPH, main="IVF1,SQfp16")),
    "torch": _torch(half=False),
    "torch-half": _torch(half=True),
    "gpu": _on_gpus(),
    "gpu-half": _on_gpus(gpu_half=True),
    "gpu-shards": _on_gpus(3),
    "gpu-replicas": _on_gpus(2, gpu_shards=False),
    "gpu-lists": _on_gpus(inverted_from=30),
    "gpu-lists-half-shards": _on_gpus(2, inverted_from=30, gpu_half=True),
}
