"""Adding, opening and searching vectors that are handed in, beside bare FAISS, in one run.

    python -m benchmarks.core [--count 50000] [--dim 384] [--searches 300]

A search returns full hits, text and metadata included; bare FAISS returns row numbers. Both run in
turn on the same vectors, so a noisy machine weighs on both: the ratio of the medians is the figure.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from kronos import MemoryStore, NewMemory

Rows = np.ndarray[Any, np.dtype[np.float32]]


def unit_rows(count: int, dim: int) -> Rows:
    """Random unit vectors, (count, dim) float32."""
    rows: Rows = np.random.default_rng(0).standard_normal((count, dim), dtype=np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows


def add(folder: Path, rows: Rows) -> float:
    """Add all rows in batches of 1,000, synced: seconds."""
    items = [
        NewMemory(f"memory number {i}", embedding=row, metadata={"number": i})
        for i, row in enumerate(rows)
    ]
    with MemoryStore.open(folder, embedding_model=None, embedding_dim=rows.shape[1]) as store:
        started = time.perf_counter()
        store.add_many(items)
        return time.perf_counter() - started


def open_and_search(folder: Path, query: Rows) -> float:
    """Open a store and get the first answer: seconds, imports excluded."""
    started = time.perf_counter()
    with MemoryStore.open(folder, embedding_model=None) as store:
        store.search(query)
        return time.perf_counter() - started


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=50_000)
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--searches", type=int, default=300)
    options = parser.parse_args()
    rows = unit_rows(options.count, options.dim)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        seconds = add(folder, rows)
        print(f"added, durability full, batches of 1,000: {options.count / seconds:,.0f} a second")
        shutil.rmtree(folder / "index", ignore_errors=True)
        first = open_and_search(folder, rows[0])
        print(f"reopened, index rebuilt from SQL, first answer: {first:.2f} s")
        first = open_and_search(folder, rows[0])
        print(f"reopened, index from its snapshot, first answer: {first:.2f} s")
        compare_searches(folder, rows, options.searches)


def compare_searches(folder: Path, rows: Rows, searches: int) -> None:
    """Search with Kronos and with bare FAISS in turn; print medians and their ratio."""
    bare = faiss.IndexFlatIP(rows.shape[1])
    bare.add(rows)
    noise = np.random.default_rng(1).standard_normal((searches, rows.shape[1]), dtype=np.float32)
    queries = noise / np.linalg.norm(noise, axis=1, keepdims=True)
    with MemoryStore.open(folder, embedding_model=None) as store:
        store.search(queries[0])
        ours, theirs = [], []
        for query in queries:
            started = time.perf_counter()
            hits = store.search(query, limit=10)
            middle = time.perf_counter()
            _, numbers = bare.search(query[None, :], 10)
            ours.append(middle - started)
            theirs.append(time.perf_counter() - middle)
            assert [hit.memory.metadata["number"] for hit in hits] == numbers[0].tolist()
    kronos, plain = np.median(ours) * 1e3, np.median(theirs) * 1e3
    print(
        f"one search, k = 10: Kronos {kronos:.2f} ms, bare FAISS flat {plain:.2f} ms, "
        f"ratio {kronos / plain:.2f}"
    )


if __name__ == "__main__":
    main()
