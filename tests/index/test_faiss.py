"""What only the FAISS index does: GPU copies, devices, and checks that `python -O` keeps."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import faiss
import numpy as np
import pytest

import kronos.index
from kronos.errors import ConfigurationError, KronosWarning
from kronos.index.faiss import FaissIndex
from tests.index.kinds import StandInGpu

if TYPE_CHECKING:
    from kronos.types import Keys, Vectors

ROOT = Path(kronos.index.__file__).parents[2]


@pytest.fixture
def gpu() -> StandInGpu:
    return StandInGpu()


def rows(first: int, count: int) -> tuple[Keys, Vectors]:
    keys = np.arange(first, first + count)
    return keys, np.random.default_rng(first).standard_normal((count, 8)).astype(np.float32)


def on_gpu(gpu: StandInGpu, count: int = 100) -> FaissIndex:
    index = FaissIndex(8, device="auto", library=gpu)
    index.upsert(*rows(0, count))
    return index


def nearest(index: FaissIndex, vector: Vectors, k: int = 1) -> list[int]:
    found: list[int] = index.search(vector[None], k)[1][0].tolist()
    return found


def test_an_unfiltered_search_is_answered_by_the_gpu(gpu: StandInGpu) -> None:
    index = on_gpu(gpu)
    nearest(index, rows(0, 1)[1][0])
    nearest(index, rows(0, 1)[1][0], k=3)
    assert gpu.calls == ["allocate", "copy 100 to 0", "search 1", "search 3"]


def test_rows_added_later_are_given_to_the_copy_alone(gpu: StandInGpu) -> None:
    index = on_gpu(gpu)
    nearest(index, np.ones(8, np.float32))
    index.upsert(np.array([500]), np.full((1, 8), 9, np.float32))
    index.upsert(*rows(600, 4))
    assert nearest(index, np.ones(8, np.float32)) == [500]
    assert gpu.calls == ["allocate", "copy 100 to 0", "search 1", "add 5", "search 1"]


def test_a_changed_row_is_copied_anew(gpu: StandInGpu) -> None:
    index = on_gpu(gpu)
    nearest(index, np.ones(8, np.float32))
    index.upsert(np.array([42]), np.full((1, 8), 9, np.float32))
    assert nearest(index, np.ones(8, np.float32)) == [42]
    index.remove(np.array([42]))
    assert nearest(index, np.ones(8, np.float32)) != [42]
    assert [call for call in gpu.calls if not call.startswith("search")] == [
        "allocate",
        "copy 100 to 0",
        "copy 100 to 0",
        "copy 99 to 0",
    ]


def test_rows_removed_and_added_to_the_same_number_are_copied_anew(gpu: StandInGpu) -> None:
    index = on_gpu(gpu)
    nearest(index, np.ones(8, np.float32))
    index.remove(np.array([0]))
    index.upsert(np.array([500]), np.full((1, 8), 9, np.float32))
    assert nearest(index, np.ones(8, np.float32)) == [500]


def test_filters_and_large_k_are_answered_by_the_cpu(gpu: StandInGpu) -> None:
    index = on_gpu(gpu, count=3000)
    query = np.ones((1, 8), np.float32)
    for allowed in (np.arange(5), np.arange(2000)):
        index.search(query, 3, allowed=allowed)
    assert index.search(query, 2049)[1].shape == (1, 2049)
    assert gpu.calls == []


def test_a_full_gpu_is_warned_of_once_and_the_cpu_answers(gpu: StandInGpu) -> None:
    index = on_gpu(gpu)
    gpu.full = True
    index.upsert(np.array([500]), np.full((1, 8), 9, np.float32))
    with pytest.warns(KronosWarning, match=r"101 vectors .* without the GPU: .*cudaMalloc"):
        assert nearest(index, np.ones(8, np.float32)) == [500]
    index.upsert(*rows(600, 4))
    index.remove(np.array([3]))
    assert nearest(index, np.ones(8, np.float32)) == [500]
    assert gpu.calls == ["allocate", "copy 101 to 0"]


@pytest.mark.parametrize(
    ("device", "gpus", "copied_to"),
    [
        ("auto", 2, "0"),
        ("cuda", 2, "0"),
        ("cuda:1", 2, "1"),
        ("cuda:2", 2, None),
        ("auto", 0, None),
        ("cpu", 2, None),
        ("mps", 2, None),
    ],
)
def test_the_device_says_which_gpu_holds_the_copy(
    device: str, gpus: int, copied_to: str | None
) -> None:
    library = StandInGpu(gpus)
    index = FaissIndex(8, device=device, library=library)
    index.upsert(*rows(0, 5))
    nearest(index, np.ones(8, np.float32))
    copies = [call.split(" to ")[1] for call in library.calls if call.startswith("copy")]
    assert copies == ([] if copied_to is None else [copied_to])


@pytest.mark.skipif(hasattr(faiss, "StandardGpuResources"), reason="this FAISS has GPU support")
def test_a_faiss_without_gpu_support_stays_on_the_cpu() -> None:
    index = FaissIndex(8, device="cuda")
    index.upsert(np.array([500]), np.full((1, 8), 9, np.float32))
    assert nearest(index, np.ones(8, np.float32)) == [500]


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x", "cuda:-1", ""])
def test_an_unknown_device_is_refused(device: str) -> None:
    with pytest.raises(ConfigurationError, match="device must be"):
        FaissIndex(8, device=device)


WRONG_WIDTHS = """
import numpy as np
from kronos.errors import DimensionMismatchError
from kronos.index.faiss import FaissIndex

index = FaissIndex(64, device="cpu")
index.upsert(np.arange(9), np.ones((9, 64), np.float32))
narrow = np.ones((1, 8), np.float32)
for call in (lambda: index.upsert(np.array([9]), narrow), lambda: index.search(narrow, 1)):
    try:
        call()
    except DimensionMismatchError as exc:
        print(exc.field)
print(len(index), __debug__)
"""


def test_a_wrong_width_is_refused_when_asserts_are_off() -> None:
    done = subprocess.run(
        [sys.executable, "-O", "-c", WRONG_WIDTHS],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["vectors", "queries", "9", "False"]
