"""Collections in BEIR format, and the two figures that judge a ranking of them."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Collection:
    """Texts, questions, and which texts answer which question."""

    name: str
    documents: dict[str, str]
    queries: dict[str, str]
    relevant: dict[str, dict[str, int]]


def load(folder: Path) -> Collection:
    """Read `corpus.jsonl`, `queries.jsonl` and `qrels/test.tsv`; text = title + " " + text."""
    documents = {
        row["_id"]: f"{row.get('title', '')} {row['text']}".strip()
        for row in _rows(folder / "corpus.jsonl")
    }
    queries = {row["_id"]: row["text"] for row in _rows(folder / "queries.jsonl")}
    relevant: dict[str, dict[str, int]] = {}
    with (folder / "qrels/test.tsv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            relevant.setdefault(row["query-id"], {})[row["corpus-id"]] = int(row["score"])
    return Collection(folder.name, documents, queries, relevant)


def _rows(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines() if line.strip()]


def judge(
    collection: Collection, rankings: Mapping[str, Sequence[str]], k: int = 10
) -> tuple[float, float]:
    """Mean nDCG@k and recall@k over the collection's judged queries.

    Args:
        collection: what is relevant.
        rankings: for each query the ids found, the best first.
        k: the depth.
    """
    gains, recalls = [], []
    for query, relevant in collection.relevant.items():
        found = list(rankings[query])[:k]
        gain = sum(relevant.get(id, 0) / math.log2(rank + 2) for rank, id in enumerate(found))
        ideal = sorted(relevant.values(), reverse=True)[:k]
        best = sum(grade / math.log2(rank + 2) for rank, grade in enumerate(ideal))
        gains.append(gain / best)
        recalls.append(len(set(found) & set(relevant)) / len(relevant))
    return sum(gains) / len(gains), sum(recalls) / len(recalls)
