"""Embedding as programs call it: many callers at once, a lone call, seen texts, hash vectors.

    python -m benchmarks.calls [--data ../shared/data] [--rounds 5]

One thread embeds. The ways that are compared take turns, and the ratio of the medians is the
figure. With `kronos-memory[fast]` the engine is ONNX Runtime, else sentence-transformers.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks.embedding import Encode, Rows, in_turn, mixed_texts, one_by_one, plain_encode
from kronos import MemoryStore
from kronos.concurrency.coalescing import Coalescer
from kronos.embedding.hashing import HashEmbedder
from kronos.embedding.service import EmbeddingService
from kronos.serving.serving import MOST_TEXTS
from kronos.settings import Settings
from kronos.validation import hash_content

_CALLERS = 64
_SHORT = "where when who what which cat dog bee tree river stone lamp road house winter".split()
_SEEN = 20_000
_MISSING = """
import time, warnings
import kronos.embedding.service as service
warnings.simplefilter("ignore")
started = time.perf_counter()
embedder = service.EmbeddingService("nobody/has-this-model")
embedder.load()
embedder.encode(["a cat"])
print(time.perf_counter() - started)
"""


def short_texts(count: int) -> list[str]:
    """Questions of four words."""
    draw = random.Random(1)
    return [" ".join(draw.choices(_SHORT, k=4)) for _ in range(count)]


def medians(work: Sequence[Callable[[], object]], rounds: int) -> list[float]:
    """Seconds of each, run in turn."""
    return [median(wall for wall, _ in times) for times in in_turn(work, rounds)]


def callers(
    plain: Encode, service: EmbeddingService, texts: Sequence[str], rounds: int
) -> tuple[float, float]:
    """How many times as fast so many callers, one text each, are as one after the other.

    Returns:
        Against plain sentence-transformers, and against the same engine.
    """
    ask = Coalescer(service.embed_queries, max_size=MOST_TEXTS)
    with ThreadPoolExecutor(_CALLERS) as threads:

        def at_once() -> None:
            list(threads.map(ask, [[text] for text in texts]))

        at_once()
        taken = medians(
            [
                partial(one_by_one, plain, texts),
                partial(one_by_one, service.encode, texts),
                at_once,
            ],
            rounds,
        )
    return taken[0] / taken[2], taken[1] / taken[2]


def lone(service: EmbeddingService, text: str, rounds: int) -> float:
    """Milliseconds that a lone call takes longer by way of the queue that callers share."""
    ask = Coalescer(service.embed_queries, max_size=MOST_TEXTS)
    work = [lambda: service.encode([text]), lambda: ask([text])]
    bare, shared = medians(work, rounds * 40)
    return (shared - bare) * 1e3


def seen(service: EmbeddingService, texts: Sequence[str]) -> tuple[float, float, bool]:
    """Of texts that a store holds: a vector's time made and read, in seconds; whether bits agree.

    The store holds 20,000, the vectors of the others handed in.
    """
    with (
        tempfile.TemporaryDirectory() as folder,
        MemoryStore.open(folder, embedder=service) as store,
    ):
        rows = np.random.default_rng(0).standard_normal((_SEEN, service.dim), np.float32)
        store.add_many({"content": f"number {at}", "embedding": row} for at, row in enumerate(rows))
        store.add_many([*texts])
        hashes = [hash_content(text.encode()) for text in texts]
        found: dict[bytes, Rows] = {}

        def read() -> None:
            with store._session.reader() as repository:
                space = repository.spaces.active()
                assert space is not None
                found.update(repository.vectors.made_before(space, hashes))

        made, taken = medians([lambda: service.encode(texts), read], 5)
        same = np.array_equal(np.array([found[each] for each in hashes]), service.encode(texts))
    return made / len(texts), taken / len(texts), same


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    service = EmbeddingService(
        "mini", device="cpu", strict=True, settings=Settings(encode_threads=1)
    )
    service.load()
    plain = plain_encode()
    print(f"engine: {service.engine}")
    mixed = mixed_texts(options.data, 512)
    for name, texts, least in (
        ("short", short_texts(4 * _CALLERS), 4),
        ("mixed", mixed[: 2 * _CALLERS], 2),
    ):
        others, own = callers(plain, service, texts, options.rounds)
        print(
            f"{_CALLERS} callers at once, {name} texts: {others:.1f}x plain sentence-transformers "
            f"one by one (wanted {least}), {own:.1f}x the same engine one by one"
        )
    late = lone(service, "where is the cat", options.rounds)
    print(f"a lone call by way of the shared queue: {late:+.3f} ms (wanted <= 0.5)")
    made, read, same = seen(service, mixed)
    print(
        f"texts that were seen: {1 / read:,.0f} vectors/s read, {made / read:,.0f}x made anew "
        f"(wanted 1,000), the same bits: {same}"
    )
    hashed, many = HashEmbedder(), mixed_texts(options.data, 4000)
    hashed.embed_documents(many)
    (taken,) = medians([lambda: hashed.embed_documents(many)], options.rounds)
    print(f"hash vectors: {len(many) / taken:,.0f} texts/s (wanted 60,000)")
    done = subprocess.run(
        [sys.executable, "-c", _MISSING], check=True, capture_output=True, text=True
    )
    print(f"a missing model, to its first hash vector: {float(done.stdout):.2f} s (wanted < 1)")


if __name__ == "__main__":
    main()
