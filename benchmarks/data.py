"""What the suite stores and asks for: vectors of real texts, and a seeded way to more of them.

The first 30,000 are the documents of the collections and windows of 6 to 24 of their words,
embedded by all-MiniLM-L6-v2. More are mixes of a real vector and one of its ten nearest, with some
noise; their text is that of the first. Questions are the collections' own, embedded.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.beir import load
from benchmarks.peers import Items, Rows

REAL = 30_000
DIM = 384
_AT_ONCE = 2000
_NOISE = 0.3
"""Length of what is added to a mix of unit vectors: its cosine to one of the two is about .85."""


@dataclass(frozen=True, slots=True)
class Data:
    """A folder with what one size needs, as arrays that a process maps."""

    folder: Path

    def rows(self) -> Rows:
        """(n, 384) float32, unit length."""
        rows: Rows = np.load(self.folder / "rows.npy", mmap_mode="r")
        return rows

    def queries(self) -> Rows:
        """(m, 384) float32, unit length."""
        queries: Rows = np.load(self.folder / "queries.npy")
        return queries

    def shares(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """(n,) 0..99 by chance: the metadata that filters ask for."""
        return np.random.default_rng(3).integers(0, 100, len(self.rows()))

    def texts(self) -> list[str]:
        """Of the real vectors; the others have the same ones in turn, with their number behind."""
        texts: list[str] = json.loads((self.folder / "texts.json").read_text("utf-8"))
        return texts

    def text_bytes(self) -> int:
        """Of all texts together, about: as if all were as long as they are on average."""
        texts = self.texts()
        return len(self.rows()) * sum(len(text.encode()) for text in texts) // len(texts)

    def batches(self, size: int = 1000) -> Iterator[Items]:
        """All of it, batch by batch."""
        rows, shares, texts = self.rows(), self.shares(), self.texts()
        for start in range(0, len(rows), size):
            ids = range(start, min(start + size, len(rows)))
            yield Items(
                list(ids),
                np.ascontiguousarray(rows[start : ids.stop]),
                [f"{texts[id % len(texts)]} ({id})" for id in ids],
                shares[start : ids.stop].tolist(),
            )


def make(sources: Path, cache: Path, count: int) -> Data:
    """The data of one size; what was embedded before is taken from the cache.

    Args:
        sources: a folder of collections in BEIR format.
        cache: where vectors are kept from run to run.
        count: how many memories.
    """
    cache.mkdir(parents=True, exist_ok=True)
    if not (cache / "rows.npy").exists():
        _embed(sources, cache)
    data = Data(cache / f"{count}")
    if not (data.folder / "rows.npy").exists():
        data.folder.mkdir(exist_ok=True)
        for name in ("queries.npy", "texts.json"):
            (data.folder / name).write_bytes((cache / name).read_bytes())
        np.save(data.folder / "rows.npy", _grown(np.load(cache / "rows.npy"), count))
    return data


def described(count: int) -> str:
    """What vectors so many are, in a line."""
    real = min(count, REAL)
    text = f"{real:,} texts embedded by all-MiniLM-L6-v2 ({DIM} wide)"
    if count == real:
        return text
    return f"{text}, and {count - real:,} mixes of two near ones with noise of length {_NOISE}"


def texts_of(documents: list[str], count: int) -> list[str]:
    """Documents, and windows of their words, each once."""
    rng = random.Random(0)
    texts = dict.fromkeys(documents)
    words = [document.split() for document in documents]
    while len(texts) < count:
        among, size = rng.choice(words), rng.randint(6, 24)
        if len(among) > size:
            start = rng.randrange(len(among) - size + 1)
            texts.setdefault(" ".join(among[start : start + size]))
    return list(texts)[:count]


def _embed(sources: Path, cache: Path) -> None:
    from kronos import create_embedding_service

    collections = [load(folder) for folder in sorted(sources.iterdir()) if folder.is_dir()]
    documents = [text for each in collections for text in each.documents.values()]
    texts = texts_of(documents, REAL)
    service = asyncio.run(create_embedding_service("mini"))
    parts = [service.encode(texts[at : at + _AT_ONCE]) for at in range(0, REAL, _AT_ONCE)]
    queries = service.encode([text for each in collections for text in each.queries.values()])
    np.save(cache / "queries.npy", queries[np.random.default_rng(1).permutation(len(queries))])
    (cache / "texts.json").write_text(json.dumps(texts), "utf-8")
    np.save(cache / "rows.npy", np.concatenate(parts))


def _grown(real: Rows, count: int) -> Rows:
    """The first of the real rows, or all and as many mixes as are needed; always the same ones."""
    import faiss  # not in the workers, whose memory is a figure

    rng = np.random.default_rng(2)
    real = real[np.random.default_rng(4).permutation(len(real))]
    if count <= len(real):
        return real[:count]
    index = faiss.IndexFlatIP(real.shape[1])
    index.add(real)
    near = np.concatenate(
        [index.search(real[at : at + 1000], 11)[1] for at in range(0, len(real), 1000)]
    )
    rows: Rows = np.empty((count, real.shape[1]), np.float32)
    rows[: len(real)] = real
    for start in range(len(real), count, 10_000):
        part = rows[start : start + 10_000]
        first = np.arange(start, start + len(part)) % len(real)
        second = near[first, rng.integers(1, 11, len(part))]
        weight = rng.uniform(0.5, 1, (len(part), 1)).astype(np.float32)
        noise = rng.standard_normal(part.shape, np.float32)
        noise *= _NOISE / np.linalg.norm(noise, axis=1, keepdims=True)
        part[:] = weight * real[first] + (1 - weight) * real[second] + noise
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    return rows
