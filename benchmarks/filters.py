"""Filtered search at every selectivity: what it finds, how many, and how long it takes.

    python -m benchmarks.filters [--count 100000] [FOLDER...]

Texts are cut from collections in BEIR format (without one, from the words of this checkout's
docs), with hash vectors 384 wide. For each selectivity: recall@10 of dense search against exact
scoring of the memories that match, hits that came back, the median time, and the ratio to the same
mode's unfiltered search in the same run. Questions with a filter and without take turns. The first
search under a filter pays for finding what matches; it stands in a column of its own.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.beir import load
from kronos import MemoryStore, NewMemory
from kronos.embedding.hashing import HashEmbedder

if TYPE_CHECKING:
    from kronos.types import SearchMode

DIM = 384
SHARES = (None, 0.001, 0.01, 0.1, 0.5)
QUESTIONS = 100


def texts_of(folders: list[Path], count: int) -> tuple[list[str], list[str]]:
    """So many texts, and questions about them."""
    texts: list[str] = []
    questions: list[str] = []
    for folder in folders:
        collection = load(folder)
        texts += collection.documents.values()
        questions += collection.queries.values()
    if not texts:
        pages = sorted((Path(__file__).parents[1] / "docs").rglob("*.md"))
        texts = [text for page in pages for text in page.read_text("utf-8").split(". ")]
        questions = [text[:60] for text in texts if text.strip()]
    draw = random.Random(1)
    words = [text.split() for text in texts]
    while len(texts) < count:
        one, other = draw.choice(words), draw.choice(words)
        texts.append(" ".join(one[: len(one) // 2 + 1] + other[len(other) // 2 :]))
    draw.shuffle(questions)
    return texts[:count], questions[:QUESTIONS]


def filled(folder: str, texts: list[str]) -> MemoryStore:
    """A store of the texts; the metadata key "rank" says by a filter how many match."""
    store = MemoryStore.open(folder, embedding_model="hash", embedding_dim=DIM)
    ranks = random.Random(2).sample(range(len(texts)), len(texts))

    def items() -> Iterator[NewMemory]:
        for number, (text, rank) in enumerate(zip(texts, ranks, strict=True)):
            yield NewMemory(text, id=str(number), metadata={"rank": rank, "lang": "en"})

    store.add_many(items())
    store.maintenance.index_field("rank")
    return store


def measure(store: MemoryStore, questions: list[str], mode: SearchMode, count: int) -> None:
    """Print a row a selectivity."""
    embedder = HashEmbedder(DIM)
    queries: list[Any] = list(questions)
    if mode == "dense":
        queries = [row.tolist() for row in embedder.embed_queries(questions)]
    wheres = {s: None if s is None else {"rank": {"$lt": int(s * count)}} for s in SHARES}
    first = {share: _timed(store, queries[0], mode, where)[0] for share, where in wheres.items()}
    times: dict[float | None, list[float]] = {share: [] for share in SHARES}
    hits: dict[float | None, list[list[str]]] = {share: [] for share in SHARES}
    for query in queries:
        for share, where in wheres.items():
            seconds, found = _timed(store, query, mode, where)
            times[share].append(seconds)
            hits[share].append(found)
    base = statistics.median(times[None])
    for share in SHARES:
        middle = statistics.median(times[share])
        ordered = sorted(times[share])
        least = min(map(len, hits[share]))
        recall = _recall(store, queries, hits[share], share, count) if mode == "dense" else None
        shown = "      -" if recall is None else f"{recall:7.4f}"
        name = "none" if share is None else f"{share:.1%}"
        print(
            f"{mode:8} {name:>7} {shown} {least:5} {first[share] * 1e3:9.2f} {middle * 1e3:8.2f} "
            f"{ordered[int(len(ordered) * 0.95)] * 1e3:8.2f} {middle / base:6.2f}"
        )


def _timed(store: MemoryStore, query: Any, mode: SearchMode, where: Any) -> tuple[float, list[str]]:
    started = time.perf_counter()
    found = store.search(query, mode=mode, where=where)
    return time.perf_counter() - started, [hit.id for hit in found]


_ROWS: dict[int, tuple[np.ndarray, np.ndarray]] = {}


def _recall(
    store: MemoryStore, queries: list[Any], hits: list[list[str]], share: float | None, count: int
) -> float:
    """Of the ten best that match, by exact scoring, how many came; equal scores count as found."""
    if id(store) not in _ROWS:
        memories = list(store.iterate())
        rows = HashEmbedder(DIM).embed_documents([memory.content for memory in memories])
        _ROWS[id(store)] = rows, np.array([memory.metadata["rank"] for memory in memories])
    rows, ranks = _ROWS[id(store)]
    matching = ranks < count if share is None else ranks < int(share * count)
    found = 0
    for query, ids in zip(queries, hits, strict=True):
        scores = rows @ np.array(query, np.float32)
        floor = np.sort(scores[matching])[-10:][0]
        own = [int(id) for id in ids]
        found += sum(bool(matching[i]) and scores[i] >= floor - 1e-5 for i in own)
    return found / (10 * len(queries))


def main() -> None:
    """Fill a store and measure every mode."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--count", type=int, default=100_000)
    options = parser.parse_args()
    texts, questions = texts_of(options.folders, options.count)
    print(f"{len(texts)} memories, {len(questions)} questions, limit 10; times in ms")
    print("mode       share  recall  hits     first      p50      p95  ratio")
    with tempfile.TemporaryDirectory() as folder, filled(folder, texts) as store:
        for mode in ("dense", "lexical", "hybrid"):
            measure(store, questions, mode, len(texts))


if __name__ == "__main__":
    main()
