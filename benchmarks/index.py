"""The layered index beside the flat one and bare FAISS HNSW, on the same vectors, in one run.

    python -m benchmarks.index [--counts 10000 60000 200000] [--dim 384] [--searches 300]

Single searches run in turn, one thread, so a noisy machine weighs on all of them: the ratios of the
medians are the figures. The vectors are clustered unit vectors, as embeddings are: 64 latent
dimensions and some noise.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import faiss
import numpy as np

from kronos.index.faiss.flat import FaissIndex
from kronos.index.layered import LayeredIndex
from kronos.index.policy import IndexPolicy

if TYPE_CHECKING:
    from kronos.types import VectorIndex

Rows = np.ndarray[Any, np.dtype[np.float32]]
K = 10


def clustered_rows(count: int, dim: int, seed: int) -> Rows:
    """Unit vectors about 1,000 centres, (count, dim) float32; the centres are always the same."""
    fixed, rng = np.random.default_rng(7), np.random.default_rng(seed)
    latent = 64
    spread = fixed.standard_normal((latent, dim), np.float32) / np.sqrt(np.float32(latent))
    centres = fixed.standard_normal((1000, latent), np.float32)
    rows: Rows = np.empty((count, dim), np.float32)
    for start in range(0, count, 10_000):
        part = rows[start : start + 10_000]
        own = rng.standard_normal((len(part), latent), np.float32)
        points = centres[rng.integers(0, len(centres), len(part))] + own
        part[:] = points @ spread + 0.3 * rng.standard_normal(part.shape, np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows


def timed(call: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
    """Seconds, and what came back."""
    started = time.perf_counter()
    result = call(*arguments)
    return time.perf_counter() - started, result


def in_turn(calls: dict[str, Callable[[Rows], Any]], queries: Rows) -> dict[str, float]:
    """Median ms of each call, run in turn; each has other queries than the one before it.

    For what one query touched lies in the caches, and its second search would be a faster one.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(len(queries)):
        for place, (name, call) in enumerate(calls.items()):
            query = queries[(number + place * len(queries) // len(calls)) % len(queries)]
            times[name].append(timed(call, query[None, :])[0])
    return {name: float(np.median(each)) * 1e3 for name, each in times.items()}


def searching(index: VectorIndex, k: int, allowed: Any = None) -> Callable[[Rows], Any]:
    """A search of an index, to be timed."""
    return lambda queries: index.search(queries, k, allowed=allowed)


def recall(found: Any, truth: Any) -> float:
    """The share of the true neighbours that was found."""
    pairs = zip(found.tolist(), truth.tolist(), strict=True)
    return float(np.mean([len(set(row) & set(best)) / len(best) for row, best in pairs]))


def build(index: LayeredIndex) -> float:
    """Build what is due: seconds."""
    started = time.perf_counter()
    made = index.begin_build()
    made.run()
    index.finish_build(made)
    return time.perf_counter() - started


def compare(count: int, dim: int, searches: int, policy: IndexPolicy) -> None:
    """Print the figures of one size."""
    rows, queries = clustered_rows(count, dim, 1), clustered_rows(searches, dim, 2)
    keys = np.arange(count)
    flat, layered = FaissIndex(dim), LayeredIndex(dim, device="cpu", policy=policy)
    flat.upsert(keys, rows)
    seconds = add(layered, keys, rows)
    print(
        f"\n{count:,} x {dim}: added and searchable, in thousands: {count / seconds:,.0f} a second"
    )
    seconds = build(layered)
    print(f"  graph built in {seconds:.1f} s: {count / seconds:,.0f} a second")
    bare = bare_graph(layered)
    faiss.omp_set_num_threads(1)
    truth = flat.search(queries, K)[1]
    ours, theirs = layered.search(queries, K)[1], bare(queries)[1]
    times = in_turn({"layered": searching(layered, K), "bare": bare}, queries)
    times |= in_turn({"flat": searching(flat, K)}, queries[:100])
    print(
        f"  one search: layered {times['layered']:.3f} ms (recall {recall(ours, truth):.3f}), "
        f"{times['layered'] / times['flat']:.2f} of flat ({times['flat']:.2f} ms), "
        f"{times['layered'] / times['bare']:.2f} of bare FAISS HNSW at the same efSearch "
        f"({times['bare']:.3f} ms, recall {recall(theirs, truth):.3f})"
    )
    for k in (100, 300):
        wanted, found = flat.search(queries, k)[1], layered.search(queries, k)[1]
        took = in_turn({"": searching(layered, k)}, queries)[""]
        print(f"  k = {k}: {took:.3f} ms, recall {recall(found, wanted):.3f}")
    compare_filters(flat, layered, queries, count)
    compare_with_tail(flat, layered, queries, dim)
    compare_opening(layered, dim, policy, queries)


def bare_graph(layered: LayeredIndex) -> Callable[[Rows], Any]:
    """FAISS's own search of the very same graph."""
    part = layered._parts[0].rows
    params = faiss.SearchParametersHNSW(efSearch=layered.policy.search_effort)
    return lambda query: part._graph.search(query, K, params=params)  # type: ignore[attr-defined]


def add(index: LayeredIndex, keys: Any, rows: Rows) -> float:
    """Add in thousands, with a search after each that finds the last of them: seconds adding."""
    seconds = 0.0
    for start in range(0, len(rows), 1000):
        part, those = keys[start : start + 1000], rows[start : start + 1000]
        seconds += timed(index.upsert, part, those)[0]
        if start % 10_000 == 0:
            assert index.search(those[-1:], 1)[1][0, 0] == part[-1]
    return seconds


def compare_filters(flat: FaissIndex, layered: LayeredIndex, queries: Rows, count: int) -> None:
    """Searches among 1, 10, 30 and 50 % of the keys, scattered."""
    for percent in (1, 10, 30, 50):
        allowed = np.flatnonzero(np.random.default_rng(percent).random(count) * 100 < percent)
        truth = flat.search(queries, K, allowed=allowed)[1]
        found = layered.search(queries, K, allowed=allowed)[1]
        calls = {"flat": searching(flat, K, allowed), "layered": searching(layered, K, allowed)}
        times = in_turn(calls, queries[:100])
        print(
            f"  filter {percent} %: layered {times['layered']:.3f} ms "
            f"(recall {recall(found, truth):.3f}), "
            f"{times['layered'] / times['flat']:.2f} of flat ({times['flat']:.3f} ms)"
        )


def compare_with_tail(flat: FaissIndex, layered: LayeredIndex, queries: Rows, dim: int) -> None:
    """A search while 900 rows are tail and 2 % of the graph are dead."""
    new = clustered_rows(900, dim, 3)
    keys = np.arange(10**9, 10**9 + len(new))
    gone = np.arange(0, len(layered), 50)
    for index in (flat, layered):
        index.upsert(keys, new)
        index.remove(gone)
    truth, found = flat.search(queries, K)[1], layered.search(queries, K)[1]
    took = in_turn({"": searching(layered, K)}, queries)[""]
    print(
        f"  with a tail of {len(new)} and {len(gone)} dead rows: {took:.3f} ms, "
        f"recall {recall(found, truth):.3f}"
    )
    seconds = build(layered)
    print(f"  the tail merged in {seconds:.2f} s")


def compare_opening(layered: LayeredIndex, dim: int, policy: IndexPolicy, queries: Rows) -> None:
    """To bytes, and from bytes to the first answer."""
    saving, data = timed(lambda: b"".join(layered.to_buffers()))
    started = time.perf_counter()
    back = LayeredIndex.from_bytes(data, dim, device="cpu", policy=policy)
    first = back.search(queries[:1], K)[1]
    opening = time.perf_counter() - started
    assert first.tolist() == layered.search(queries[:1], K)[1].tolist()
    raw = len(layered) * dim * 4
    print(
        f"  snapshot {len(data) / raw:.2f} of the raw vectors, made in {saving:.3f} s, "
        f"first answer {opening:.3f} s after its bytes are read"
    )


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--counts", type=int, nargs="+", default=[10_000, 60_000, 200_000])
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--searches", type=int, default=300)
    parser.add_argument("--effort", type=int, default=IndexPolicy().search_effort)
    options = parser.parse_args()
    policy = IndexPolicy(search_effort=options.effort)
    for count in options.counts:
        compare(count, options.dim, options.searches, policy)


if __name__ == "__main__":
    main()
