"""The main part on GPUs: the exact calls to FAISS, and the host that goes on after a failure.

FAISS's GPU functions are stand-ins here, which compute with the real FAISS on the CPU.
"""

from __future__ import annotations

import os
import traceback
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import faiss
import numpy as np
import pytest

from kronos.errors import ConfigurationError, KronosWarning
from kronos.index.exact import ExactIndex
from kronos.index.faiss.flat import FaissIndex
from kronos.index.faiss.graph import Graph
from kronos.index.layered import LayeredIndex
from kronos.index.policy import IndexPolicy
from tests.index.kinds import StandInGpu

if TYPE_CHECKING:
    from kronos.types import Vectors

DIM = 8
POLICY = IndexPolicy(flat_below=200, gpu_from=100, tail_least=50, search_effort=2000)


def rows(count: int, seed: int) -> Vectors:
    made = np.random.default_rng(seed).standard_normal((count, DIM))
    return np.asarray(made / np.linalg.norm(made, axis=1, keepdims=True), np.float32)


def build(index: LayeredIndex) -> None:
    made = index.begin_build()
    assert made.run()
    # A GPU's rows are copied again at the next open: they need no snapshot.
    assert made.is_from_scratch == (made.made is not None and isinstance(made.made.rows, Graph))
    assert index.finish_build(made)


def on_gpu(
    gpu: StandInGpu, count: int = 100, device: str = "auto", **policy: Any
) -> tuple[LayeredIndex, ExactIndex]:
    """An index with all rows on the GPU, and the oracle; recorded calls are cleared."""
    policies = replace(POLICY, **policy)
    index, exact = LayeredIndex(DIM, device=device, policy=policies, library=gpu), ExactIndex(DIM)
    for each in (index, exact):
        each.upsert(np.arange(count), rows(count, 1))
    build(index)
    return index, exact


def assert_answers(
    index: LayeredIndex, exact: ExactIndex, k: int = 5, allowed: Any = None, count: int = 20
) -> None:
    queries = 3 * rows(count, 9)
    found, best = (each.search(queries, k, allowed=allowed) for each in (index, exact))
    np.testing.assert_array_equal(found[1], best[1])
    np.testing.assert_allclose(found[0], best[0], atol=1e-6)


@pytest.fixture
def gpu() -> StandInGpu:
    return StandInGpu()


def test_a_build_puts_all_rows_on_the_gpu_and_searches_ask_it(gpu: StandInGpu) -> None:
    index, exact = on_gpu(gpu)
    assert gpu.calls == ["allocate", "IndexFlatIP to gpu 0", "add 100"]
    assert_answers(index, exact)
    assert gpu.calls[3:] == ["search 26"]


def test_recent_writes_are_on_the_cpu_until_the_next_build(gpu: StandInGpu) -> None:
    index, exact = on_gpu(gpu)
    gpu.calls.clear()
    for each in (index, exact):
        each.upsert(np.arange(95, 144), rows(49, 2))
        each.remove(np.arange(5))
    assert not index.build_is_due
    assert_answers(index, exact)
    assert set(gpu.calls) == {"search 26"}
    for each in (index, exact):
        each.upsert(np.arange(144, 146), rows(2, 3))
    assert index.build_is_due
    build(index)
    assert gpu.calls[-3:] == ["allocate", "IndexFlatIP to gpu 0", "add 141"]
    assert_answers(index, exact)


def test_more_candidates_are_asked_for_if_many_near_rows_are_dead(gpu: StandInGpu) -> None:
    index, exact = on_gpu(gpu, count=5000)
    query = rows(1, 9)
    gone = exact.search(query, 150)[1][0]
    for each in (index, exact):
        each.remove(gone)
    gpu.calls.clear()
    assert_answers(index, exact, count=1)
    assert gpu.calls == ["search 26", "search 156"]


def test_the_gpu_answers_a_filtered_search_if_enough_candidates_pass(gpu: StandInGpu) -> None:
    index, exact = on_gpu(gpu, count=20_000)
    gpu.calls.clear()
    half = np.random.default_rng(4).permutation(20_000)[:9000]
    assert_answers(index, exact, allowed=half, count=3)
    assert set(gpu.calls) <= {"search 26", "search 156"}
    assert gpu.calls
    gpu.calls.clear()
    few = np.arange(0, 20_000, 100)
    assert_answers(index, exact, allowed=few, count=3)
    assert gpu.calls == []


def test_the_cpu_answers_a_filtered_search_if_no_near_row_passes(gpu: StandInGpu) -> None:
    index, exact = on_gpu(gpu, count=10_000)
    gpu.calls.clear()
    far = exact.search(rows(1, 9), 10_000)[1][0, 5000:]
    assert_answers(index, exact, allowed=far, count=1)
    assert gpu.calls == ["search 26", "search 156", "search 936", "search 2048"]


def test_the_cpu_finds_more_rows_than_the_kernels_can_select(gpu: StandInGpu) -> None:
    index, exact = on_gpu(gpu, count=3000)
    gpu.calls.clear()
    assert_answers(index, exact, k=2049, count=2)
    assert gpu.calls == []


def test_float16_gives_the_scores_of_float32(gpu: StandInGpu) -> None:
    index, exact = on_gpu(gpu, count=2000, gpu_half=True)
    assert gpu.calls == ["allocate", "IndexFlatIP to gpu 0 half", "add 2000"]
    assert_answers(index, exact)
    np.testing.assert_array_equal(index.vectors_of(np.arange(2000)), rows(2000, 1))


def test_rows_that_float16_cannot_hold_are_kept_as_float32(gpu: StandInGpu) -> None:
    index = LayeredIndex(DIM, policy=replace(POLICY, gpu_half=True), library=gpu)
    index.upsert(np.arange(200), rows(200, 1) * 1e6)
    build(index)
    assert gpu.calls[1] == "IndexFlatIP to gpu 0"


@pytest.mark.parametrize(
    ("half", "kind"), [(False, "IndexIVFFlat"), (True, "IndexIVFScalarQuantizer")]
)
def test_many_rows_make_an_inverted_file(gpu: StandInGpu, half: bool, kind: str) -> None:
    index, exact = on_gpu(gpu, count=3000, inverted_from=3000, gpu_half=half)
    end = " half" if half else ""
    assert gpu.calls == [
        "allocate",
        f"{kind} to gpu 0{end}",
        "train 3000",
        "to cpu",
        "allocate",
        f"{kind} to gpu 0{end}",
        "add 3000",
    ]
    found, best = (each.search(rows(50, 9), 10)[1].tolist() for each in (index, exact))
    recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found, best, strict=True)])
    assert 0.5 < recall < 1  # of 216 lists of random rows, 16 are read
    assert index.policy.probes(216) == index.effort == 16


def test_the_cpu_searches_if_the_lists_hold_too_few_rows(gpu: StandInGpu) -> None:
    index, exact = on_gpu(gpu, count=3000, inverted_from=3000)
    assert_answers(index, exact, k=1500, count=2)


@pytest.mark.parametrize(("shards", "how"), [(True, "shards"), (False, "replicas")])
def test_several_gpus_share_the_rows_or_the_queries(shards: bool, how: str) -> None:
    gpu = StandInGpu(2)
    index, exact = on_gpu(gpu, gpu_shards=shards)
    assert gpu.calls == ["allocate", "allocate", f"IndexFlatIP to {how} 0,1", "add 100"]
    assert_answers(index, exact)


@pytest.mark.parametrize(
    ("device", "gpus", "where"),
    [
        ("auto", 1, "gpu 0"),
        ("auto", 3, "shards 0,1,2"),
        ("cuda", 3, "gpu 0"),
        ("cuda:1", 3, "gpu 1"),
        ("cuda:2,cuda:0", 3, "shards 0,2"),
        ("cuda:3", 3, None),
        ("auto", 0, None),
        ("cpu", 3, None),
        ("mps", 3, None),
    ],
)
def test_the_device_selects_the_gpus_that_hold_the_rows(
    device: str, gpus: int, where: str | None
) -> None:
    gpu = StandInGpu(gpus)
    index, exact = on_gpu(gpu, device=device)
    assert_answers(index, exact)
    copies = [call for call in gpu.calls if " to " in call]
    assert copies == ([] if where is None else [f"IndexFlatIP to {where}"])


@pytest.mark.parametrize(("name", "uses"), [("auto", True), ("flat", True), ("HNSW32", False)])
def test_a_named_graph_is_on_no_gpu(gpu: StandInGpu, name: str, uses: bool) -> None:
    policy = IndexPolicy.of(name)
    assert policy.uses_gpu == uses
    index = LayeredIndex(DIM, policy=policy, library=gpu)
    index.upsert(np.arange(9999), rows(9999, 1))
    assert not index.build_is_due
    index.upsert(np.array([9999]), rows(1, 2))
    assert index.build_is_due
    assert gpu.calls == []
    if uses:
        build(index)
        assert gpu.calls == ["allocate", "IndexFlatIP to gpu 0", "add 10000"]


def test_a_full_gpu_warns_once_and_a_graph_replaces_it(gpu: StandInGpu) -> None:
    gpu.full = True
    index = LayeredIndex(DIM, policy=POLICY, library=gpu)
    exact = ExactIndex(DIM)
    for each in (index, exact):
        each.upsert(np.arange(300), rows(300, 1))
    with pytest.warns(KronosWarning, match=r"300 vectors .* without the GPU: .*cudaMalloc"):
        build(index)
    calls = list(gpu.calls)
    assert_answers(index, exact)
    assert index.build_is_due
    build(index)
    assert index.kind == "faiss-hnsw"
    assert_answers(index, exact)
    assert gpu.calls == calls


def test_the_cpu_goes_on_after_a_gpu_fails_in_a_search(gpu: StandInGpu) -> None:
    index, exact = on_gpu(gpu, count=300)
    gpu.full = True
    with pytest.warns(KronosWarning, match=r"300 vectors .* without the GPU"):
        assert_answers(index, exact)
    asked = len(gpu.calls)
    assert index._parts[0].rows._copy is None  # type: ignore[attr-defined]
    for each in (index, exact):
        each.remove(np.arange(7))
        each.upsert(np.arange(400, 410), rows(10, 5))
    assert_answers(index, exact)
    assert len(gpu.calls) == asked
    assert index.build_is_due
    build(index)
    assert index.kind == "faiss-hnsw"
    assert_answers(index, exact)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_leaves_the_gpu_to_its_parent(gpu: StandInGpu) -> None:
    index, exact = on_gpu(gpu, count=300)
    calls = list(gpu.calls)
    child = os.fork()
    if child == 0:
        try:
            assert_answers(index, exact)
            assert index.build_is_due
            build(index)
            assert index.kind == "faiss-hnsw"
            fresh = LayeredIndex(DIM, policy=POLICY, library=gpu)
            fresh.upsert(np.arange(300), rows(300, 1))
            build(fresh)
            assert_answers(fresh, exact)
            assert gpu.calls == calls
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert_answers(index, exact)
    assert gpu.calls[len(calls) :] == ["search 26"]


def test_its_bytes_are_a_flat_index(gpu: StandInGpu) -> None:
    index, exact = on_gpu(gpu)
    index.upsert(np.arange(90, 120), rows(30, 2))
    flat = FaissIndex.from_bytes(b"".join(index.to_buffers()), DIM)
    assert index.kind == "faiss-flat"
    np.testing.assert_array_equal(flat.keys(), index.keys())
    np.testing.assert_array_equal(flat.vectors_of(flat.keys()), index.vectors_of(flat.keys()))
    del exact


def test_a_graphs_bytes_are_read_on_a_machine_with_a_gpu(gpu: StandInGpu) -> None:
    graph, exact = LayeredIndex(DIM, device="cpu", policy=POLICY), ExactIndex(DIM)
    for each in (graph, exact):
        each.upsert(np.arange(300), rows(300, 1))
    build(graph)
    assert graph.kind == "faiss-hnsw"
    index = LayeredIndex.from_bytes(b"".join(graph.to_buffers()), DIM, policy=POLICY, library=gpu)
    assert_answers(index, exact)
    assert gpu.calls == []
    assert index.kind == "faiss-hnsw"  # until it is built
    assert index.build_is_due
    build(index)
    assert index.kind == "faiss-flat"
    assert gpu.calls[-1] == "add 300"
    assert_answers(index, exact)


def test_a_stopped_build_changes_nothing(gpu: StandInGpu) -> None:
    index = LayeredIndex(DIM, policy=POLICY, library=gpu)
    index.upsert(np.arange(300), rows(300, 1))
    made = index.begin_build()
    assert not made.run(lambda: True)
    assert not index.finish_build(made)
    assert gpu.calls == []


@pytest.mark.skipif(hasattr(faiss, "StandardGpuResources"), reason="this FAISS has GPU support")
def test_a_faiss_without_gpu_support_stays_on_the_cpu() -> None:
    index, exact = on_gpu(faiss, device="cuda")
    assert_answers(index, exact)


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x", "cuda:-1", "", "auto,cpu", "cpu,"])
def test_an_unknown_device_is_refused(device: str) -> None:
    with pytest.raises(ConfigurationError, match="device must be"):
        LayeredIndex(DIM, device=device)
