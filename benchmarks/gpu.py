"""What a machine with a GPU shows: every index kind there, held against the exact index, and timed.

    python -m benchmarks.gpu [--counts 100000 1000000] [--dim 384] [--searches 200] [--device auto]

Kronos has not been run on a GPU by its makers: this is the check. Each kind takes the same changes
as the exact index (rows added, overwritten, removed) and must give its scores, also under a filter,
and its vectors bit by bit; lists are approximate, and their recall is printed. What a kind does
wrong is named, and the exit code is 1. Without a CUDA device it says so and ends with 0.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import faiss
import numpy as np

from benchmarks.index import clustered_rows, recall
from kronos.index.faiss.flat import FaissIndex
from kronos.index.gpu.faiss_gpu import Gpus
from kronos.index.gpu.torch_index import TorchIndex, torch_device
from kronos.index.layered import LayeredIndex
from kronos.index.policy import IndexPolicy

if TYPE_CHECKING:
    from kronos.types import VectorIndex

Rows = np.ndarray[Any, np.dtype[np.float32]]
Make = Callable[[int], "VectorIndex"]
K = 10
_SCORE_ERROR = 1e-5


def kinds(device: str) -> dict[str, Make]:
    """The index kinds that this machine's GPUs can hold."""
    found: dict[str, Make] = {}
    number = torch_device(device)
    if number is not None:
        found["torch float32"] = lambda dim: TorchIndex(dim, device=number)
        found["torch float16"] = lambda dim: TorchIndex(dim, device=number, half=True)
    policy = IndexPolicy(gpu_from=1, inverted_from=2**62)
    if Gpus.on(device, faiss, policy) is not None:
        found["FAISS flat float32"] = _layered(device, policy)
        found["FAISS flat float16"] = _layered(device, replace(policy, gpu_half=True))
        lists = replace(policy, inverted_from=1)
        found["FAISS lists float32"] = _layered(device, lists)
        found["FAISS lists float16"] = _layered(device, replace(lists, gpu_half=True))
        if faiss.get_num_gpus() > 1:
            found["FAISS flat, replicas"] = _layered(device, replace(policy, gpu_shards=False))
    return found


def _layered(device: str, policy: IndexPolicy) -> Make:
    return lambda dim: LayeredIndex(dim, device=device, policy=policy)


def build(index: VectorIndex) -> None:
    """Put what is tail on the GPU, where that is a step of its own."""
    if isinstance(index, LayeredIndex):
        made = index.begin_build()
        made.run()
        index.finish_build(made)


def change(index: VectorIndex, rows: Rows) -> None:
    """All rows, then half of a tenth anew after a build, and some removed."""
    count, dim = rows.shape
    index.upsert(np.arange(count), rows)
    build(index)
    again = np.arange(0, count, 20)
    index.upsert(again, clustered_rows(again.size, dim, 5))
    index.remove(np.arange(3, count, 30))


def wrong(index: VectorIndex, oracle: FaissIndex, queries: Rows, exact: bool) -> list[str]:
    """What does not agree with the oracle."""
    found: list[str] = []
    keys = oracle.keys()
    if not np.array_equal(index.keys(), keys):
        found.append("keys")
    elif not np.array_equal(index.vectors_of(keys[::7]), oracle.vectors_of(keys[::7])):
        found.append("vectors")
    for name, share in (("search", 1.0), ("1 % filter", 0.01), ("50 % filter", 0.5)):
        allowed = None if share == 1 else keys[np.random.default_rng(1).random(keys.size) < share]
        for k in (1, K, 300):
            scores, best = index.search(queries, k, allowed=allowed)
            truth, wanted = oracle.search(queries, k, allowed=allowed)
            if scores.shape != truth.shape:
                found.append(f"{name}, k = {k}: {scores.shape[1]} of {truth.shape[1]}")
            elif exact and np.abs(scores - truth).max() > _SCORE_ERROR:
                found.append(f"{name}, k = {k}: scores off by {np.abs(scores - truth).max():.1e}")
            elif not exact and k == K and recall(best, wanted) < 0.9:
                found.append(f"{name}: recall {recall(best, wanted):.3f}")
    return found


def milliseconds(index: VectorIndex, queries: Rows, allowed: Any = None) -> float:
    """The median time of one search; the first ones warm it up."""
    times = []
    for query in queries:
        started = time.perf_counter()
        index.search(query[None], K, allowed=allowed)
        times.append(time.perf_counter() - started)
    return float(np.median(times[5:])) * 1e3


def row(name: str, index: VectorIndex, queries: Rows, oracle: FaissIndex) -> str:
    """One line of figures."""
    tenth = oracle.keys()[::10]
    one, filtered = milliseconds(index, queries), milliseconds(index, queries[:50], tenth)
    started = time.perf_counter()
    found = index.search(queries, K)[1]
    each = len(queries) / (time.perf_counter() - started)
    near = recall(found, oracle.search(queries, K)[1])
    return f"  {name:22} {one:8.3f} ms {filtered:8.3f} ms {each:12,.0f}/s   {near:.4f}"


def compare(count: int, dim: int, searches: int, device: str) -> bool:
    """Check and time one size: whether all agree."""
    rows, queries = clustered_rows(count, dim, 1), clustered_rows(searches, dim, 2)
    oracle = FaissIndex(dim)
    change(oracle, rows)
    print(f"\n{count:,} x {dim}      one search  10 % filter   many at once   recall@{K}")
    print(row("CPU, flat", oracle, queries, oracle))
    sound = True
    for name, make in kinds(device).items():
        index, bad = make(dim), []
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            started = time.perf_counter()
            try:
                change(index, rows)
                index.search(queries[:1], 1)
                made = time.perf_counter() - started
                bad += wrong(index, oracle, queries, exact="lists" not in name)
                print(f"{row(name, index, queries, oracle)}   made in {made:.1f} s")
            except Exception as exc:  # whatever a GPU and its libraries make of it
                bad.append(f"{name}: {type(exc).__name__}: {exc}")
            bad += [str(each.message) for each in caught]
        for each in bad:
            print(f"    WRONG: {each}")
        sound = sound and not bad
    return sound


def main() -> int:
    """Print the figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--counts", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--searches", type=int, default=200)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    if not kinds(options.device):
        print("no CUDA device")
        return 0
    print(f"kinds: {', '.join(kinds(options.device))}")
    results = [
        compare(count, options.dim, options.searches, options.device) for count in options.counts
    ]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
