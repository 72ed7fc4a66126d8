"""The torch index alone: its copy on the device, chunks, float16, and a device that fails.

torch's "cpu" stands in for a GPU: it runs the same code, and tests make its memory run out.
"""

from __future__ import annotations

import os
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import kronos.index.gpu.torch_index as module
from kronos import MemoryStore, NewMemory, Settings, devices
from kronos.errors import KronosWarning
from kronos.index.exact import ExactIndex
from kronos.index.faiss.flat import FaissIndex
from kronos.index.gpu.torch_index import TorchIndex, torch_device
from kronos.index.layered import LayeredIndex
from kronos.index.policy import IndexPolicy

Rows = np.ndarray[Any, np.dtype[np.float32]]
DIM = 16


def rows(count: int, seed: int) -> Rows:
    made = np.random.default_rng(seed).standard_normal((count, DIM))
    return np.asarray(made / np.linalg.norm(made, axis=1, keepdims=True), np.float32)


class Watched(TorchDispatchMode):  # type: ignore[misc]
    """Records what torch does, and lets one operation run out of memory."""

    def __init__(self, full: str = "", rough: bool = False) -> None:
        super().__init__()
        self.full = full
        self.rough = rough
        """Whether products have as many bits as bfloat16."""
        self.largest = 0
        """Numbers in the largest product of two matrices, or rows gathered for one."""
        self.copied = 0
        """Numbers that were copied within their own device: usually rows."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        if self.full and name == self.full:
            self.full = ""  # what the host does is not the device's memory
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        made = func(*args, **(kwargs or {}))
        if name == "matmul" and self.rough:
            made = made.bfloat16().float()
        if name in ("matmul", "index"):
            self.largest = max(self.largest, made.numel())
        if name == "copy_":
            self.copied += made.numel()
        return made


def both(count: int = 500, **options: Any) -> tuple[TorchIndex, ExactIndex]:
    index, exact = TorchIndex(DIM, device="cpu", **options), ExactIndex(DIM)
    for each in (index, exact):
        each.upsert(np.arange(count), rows(count, 1))
    return index, exact


def assert_answers(index: Any, exact: ExactIndex, k: int = 7, allowed: Any = None) -> None:
    queries = rows(30, 9) * 3
    found, best = (each.search(queries, k, allowed=allowed) for each in (index, exact))
    np.testing.assert_array_equal(found[1], best[1])
    np.testing.assert_allclose(found[0], best[0], rtol=3e-6, atol=2e-6)


@pytest.mark.parametrize("half", [False, True])
def test_no_product_is_larger_than_the_bound(monkeypatch: pytest.MonkeyPatch, half: bool) -> None:
    monkeypatch.setattr(module, "_MAX_NUMBERS", 2000)
    monkeypatch.setattr(module, "_MAX_QUERIES", 25)
    index, exact = both(1000, half=half)
    with Watched() as watched:
        for allowed in (None, np.arange(0, 1000, 3), np.arange(700)):
            for k in (1, 7, 400):
                if allowed is None or k <= allowed.size:
                    assert_answers(index, exact, k, allowed)
    assert 1000 < watched.largest <= 2000


def test_only_new_and_overwritten_rows_are_copied() -> None:
    index, exact = both(1000)
    changes = [(np.arange(0, 800, 2), 0), (np.arange(1000, 1003), 3)]
    with Watched() as watched:
        assert_answers(index, exact)
        assert watched.copied == 1000 * DIM
        watched.copied = 0
        assert_answers(index, exact)
        assert watched.copied == 0
        for keys, new in changes:
            for each in (index, exact):
                each.upsert(keys, rows(keys.size, 5))
            assert_answers(index, exact)
            assert watched.copied == new * DIM
    np.testing.assert_array_equal(index.vectors_of(np.array([2, 0])), rows(2, 5)[::-1])


def test_filling_the_index_copies_each_row_only_a_few_times() -> None:
    index, exact = TorchIndex(DIM, device="cpu"), ExactIndex(DIM)
    hosts = []
    with Watched() as watched:
        for start in range(0, 4000, 20):
            for each in (index, exact):
                each.upsert(np.arange(start, start + 20), rows(20, start))
            index.search(rows(1, 9), 1)
            hosts.append(index._rows)
    assert_answers(index, exact)
    assert len({id(each) for each in hosts}) <= 10
    assert watched.copied <= 8 * 4000 * DIM


def test_many_removed_rows_are_dropped() -> None:
    index, exact = both(1000)
    for keys in (np.arange(0, 1000, 10), np.arange(0, 1000, 2), np.arange(1000)):
        assert index.remove(keys) == exact.remove(keys)
        assert_answers(index, exact)
        assert len(index._keys) <= 1.25 * len(index)
    for each in (index, exact):
        each.upsert(np.arange(10), rows(10, 3))
    assert_answers(index, exact)


def test_float16_gives_more_candidates_until_no_other_row_can_be_nearer() -> None:
    """More rows that float16 cannot tell apart than the first candidates."""
    near = rows(1, 1) + 1e-5 * np.random.default_rng(2).standard_normal((900, DIM))
    index, exact = TorchIndex(DIM, device="cpu", half=True), ExactIndex(DIM)
    for each in (index, exact):
        each.upsert(np.arange(900), near.astype(np.float32))
        each.upsert(np.arange(900, 1900), rows(1000, 3))
    for length in (1, 100):
        query = rows(1, 1) * length
        found, best = (each.search(query, 5) for each in (index, exact))
        np.testing.assert_allclose(found[0], best[0], atol=2e-7 * length)
    assert index._copy._buffer.dtype == torch.float16
    assert found[1].max() < 900


def test_a_row_that_float16_cannot_hold_switches_to_float32() -> None:
    index, exact = both(100, half=True)
    assert_answers(index, exact)
    for each in (index, exact):
        each.upsert(np.array([100]), rows(1, 3) * 1e5)
    assert_answers(index, exact, k=101)
    assert index._copy._buffer.dtype == torch.float32


def test_scores_are_exact_if_a_program_lets_torch_multiply_with_fewer_bits() -> None:
    index, exact = both(2000)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with Watched(rough=True):
            assert_answers(index, exact)
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.skipif(not hasattr(torch.backends, "fp32_precision"), reason="an older torch")
def test_the_newer_setting_for_fewer_bits_is_detected() -> None:
    index, exact = both(2000)
    before = torch.backends.fp32_precision
    torch.backends.fp32_precision = "tf32"
    try:
        assert_answers(index, exact)
    finally:
        torch.backends.fp32_precision = before


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("full", ["empty", "copy_", "matmul", "topk", "index", "masked_fill_"])
def test_the_host_goes_on_without_loss_when_memory_runs_out(full: str, half: bool) -> None:
    index, exact = both(800, half=half)
    if full != "empty":
        assert_answers(index, exact)
    for each in (index, exact):
        each.upsert(np.arange(790, 900), rows(110, 3))
        each.remove(np.arange(50))
    allowed = np.arange(0, 900, 3) if full == "index" else None
    with Watched(full), pytest.warns(KronosWarning, match="850 vectors .* without the GPU: CUDA"):
        index.search(rows(1, 1), 1, allowed=allowed)
    assert not index.is_on_device
    with Watched() as watched:
        assert_answers(index, exact)
        assert watched.copied == 0
    for each in (index, exact):
        each.upsert(np.arange(880, 1000), rows(120, 4))
        each.remove(np.arange(100))
    assert_answers(index, exact)
    assert_answers(index, exact, allowed=np.arange(0, 1000, 3))
    np.testing.assert_array_equal(index.keys(), exact.keys())
    np.testing.assert_array_equal(index.vectors_of(exact.keys()), exact.vectors_of(exact.keys()))
    back = TorchIndex.from_bytes(b"".join(index.to_buffers()), DIM, device="cpu")
    assert_answers(back, exact)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_leaves_the_device_to_its_parent() -> None:
    index, exact = both(800)
    assert_answers(index, exact)
    child = os.fork()
    if child == 0:
        try:
            assert not index.is_on_device
            assert_answers(index, exact)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert index.is_on_device
    assert_answers(index, exact)


# -- Where it is chosen --------------------------------------------------------------------------


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with two GPUs, according to torch."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.mark.usefixtures("gpus")
@pytest.mark.parametrize(
    ("device", "chosen"),
    [
        ("auto", "cuda:0"),
        ("cuda", "cuda:0"),
        ("cuda:1", "cuda:1"),
        ("cuda:1,cuda:0", "cuda:1"),
        ("cuda:2", None),
        ("cpu", None),
        ("mps", None),
    ],
)
def test_the_device_selects_the_gpu_that_holds_the_rows(device: str, chosen: str | None) -> None:
    assert torch_device(device) == chosen


def test_a_failing_driver_counts_as_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> bool:
        raise RuntimeError("CUDA driver initialization failed")

    monkeypatch.setattr(torch.cuda, "is_available", fail)
    assert torch_device("auto") is None


def test_torch_is_not_imported_if_there_cannot_be_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_ACCELERATOR_NODES", ())
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delitem(sys.modules, "torch")
    assert torch_device("auto") is None
    assert "torch" not in sys.modules


@pytest.mark.skipif(
    any(Path(node).exists() for node in devices._ACCELERATOR_NODES), reason="there may be a GPU"
)
def test_a_store_on_the_cpu_never_imports_torch(tmp_path: Path) -> None:
    program = """
import sys
from kronos import MemoryStore
with MemoryStore.open(sys.argv[1], embedding_model="hash") as store:
    store.add_many([f"memory {number}" for number in range(20)])
    print(len(store.search("memory 7", mode="dense")), "torch" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["10", "False"]


@pytest.fixture
def on_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine whose GPU only torch can use; it is really torch's "cpu"."""
    monkeypatch.setattr("kronos.index.layered.torch_device", {"auto": "cpu"}.get)


@pytest.mark.usefixtures("on_torch")
def test_a_layered_index_on_torch_builds_nothing() -> None:
    policy = IndexPolicy(flat_below=100, tail_least=10, gpu_half=True)
    index, exact = LayeredIndex(DIM, policy=policy), ExactIndex(DIM)
    for each in (index, exact):
        each.upsert(np.arange(500), rows(500, 1))
        each.remove(np.arange(40))
    assert_answers(index, exact)
    assert_answers(index, exact, allowed=np.arange(0, 500, 3))
    assert not index.build_is_due
    assert index.kind == "faiss-flat"
    for copy in (
        LayeredIndex.from_bytes(b"".join(index.to_buffers()), DIM, policy=policy),
        index.compacted(),
    ):
        assert_answers(copy, exact)
        assert isinstance(copy._tail, TorchIndex)
        assert copy._tail._copy._buffer.dtype == torch.float16


@pytest.mark.usefixtures("on_torch")
@pytest.mark.parametrize("storage", ["float32", "float16"])
def test_a_store_searched_by_torch_can_be_reopened_anywhere(tmp_path: Path, storage: Any) -> None:
    settings = Settings(gpu_storage=storage, snapshot_changes=100)
    vectors, exact = rows(600, 1), ExactIndex(DIM)
    options: dict[str, Any] = {"embedding_model": None, "embedding_dim": DIM, "settings": settings}

    def assert_right(store: MemoryStore) -> None:
        for query in rows(20, 9):
            found = [int(hit.id) for hit in store.search(query, limit=5, mode="dense")]
            assert found == exact.search(query[None], 5)[1][0].tolist()

    with MemoryStore.open(tmp_path, **options) as store:
        store.add_many(
            NewMemory(f"memory {at}", id=str(at), embedding=vectors[at]) for at in range(600)
        )
        exact.upsert(np.arange(600), vectors)
        assert_right(store)
        assert store.delete([str(at) for at in range(0, 600, 7)]) == exact.remove(
            np.arange(0, 600, 7)
        )
        assert_right(store)
        index: Any = store._session.serving.replica._index
        assert index._tail._copy._buffer.dtype == getattr(torch, storage)
    for device in ("auto", "cpu"):
        with MemoryStore.open(tmp_path, device=device, **options) as store:
            assert_right(store)


@pytest.mark.usefixtures("on_torch")
def test_a_layered_index_reads_a_graph_and_returns_to_one_after_a_gpu_failure() -> None:
    policy = IndexPolicy(flat_below=100, tail_least=10, search_effort=2000)
    graph, exact = LayeredIndex(DIM, device="cpu", policy=policy), ExactIndex(DIM)
    for each in (graph, exact):
        each.upsert(np.arange(500), rows(500, 1))
    build(graph)
    index = LayeredIndex.from_bytes(b"".join(graph.to_buffers()), DIM, policy=policy)
    assert_answers(index, exact)
    assert not index.build_is_due
    with Watched("matmul"), pytest.warns(KronosWarning, match="500 vectors .* without the GPU"):
        index.search(rows(1, 1), 1)
    assert_answers(index, exact)
    assert index.build_is_due
    build(index)
    assert index.kind == "faiss-hnsw"
    assert_answers(index, exact)


@pytest.mark.usefixtures("on_torch")
def test_a_named_graph_is_not_held_by_torch() -> None:
    index = LayeredIndex(DIM, policy=IndexPolicy.of("HNSW16"))
    assert isinstance(index._tail, FaissIndex)


def build(index: LayeredIndex) -> None:
    made = index.begin_build()
    assert made.run()
    assert index.finish_build(made)
