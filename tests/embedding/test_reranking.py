"""Cross-encoders: a tiny one with random weights, loaded from its folder, reranks hits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kronos import MemoryStore, Ranking
from kronos.embedding.reranking import Reranker, load_reranker
from kronos.errors import EmbeddingError, InputError, ModelLoadError
from kronos.settings import Settings
from tests.conftest import Opener


def load(folder: Path) -> Reranker:
    return load_reranker(str(folder), device="cpu", cache_dir=None, settings=Settings())


def test_hits_are_ordered_by_the_rerankers_scores(open_store: Opener, cross_encoder: Path) -> None:
    store = open_store()
    texts = ["the cat sleeps", "a warm stone", "the rate rose", "a river in the sun", "of cat and"]
    store.add_many(texts)
    query = "cat on a stone"
    verdicts = dict(zip(texts, load(cross_encoder).score(query, texts).tolist(), strict=True))
    assert len(set(verdicts.values())) == len(texts)
    assert all(0 <= verdict <= 1 for verdict in verdicts.values())
    ranking = Ranking(rerank=str(cross_encoder), importance=0.0)
    hits = store.search(query, ranking=ranking, limit=3, explain=True)
    expected = sorted(texts, key=lambda text: -verdicts[text])[:3]
    assert [hit.content for hit in hits] == expected
    assert [hit.score for hit in hits] == pytest.approx([verdicts[text] for text in expected])
    assert all(hit.shares == {"rerank": hit.score} for hit in hits)
    assert hits.explanation is not None
    assert hits.explanation.steps[-1].name == "rerank"
    # Only the best candidates are read, and what else counts is added to the verdict.
    few = store.search(query, ranking=Ranking(rerank=str(cross_encoder), rerank_top=2), limit=2)
    assert {hit.content for hit in few} == {hit.content for hit in store.search(query, limit=2)}
    gained = store.search(
        query, ranking=Ranking(rerank=str(cross_encoder), importance=0.4), limit=5
    )
    assert [hit.score for hit in gained] == pytest.approx(
        sorted((verdict + 0.2 for verdict in verdicts.values()), reverse=True)
    )


def test_groups_and_variety_come_after_the_reranker(
    open_store: Opener, cross_encoder: Path
) -> None:
    store = open_store()
    texts = ["the cat sleeps", "a warm stone", "the rate rose", "a river in the sun"]
    for row, text in enumerate(texts):
        store.add(text, metadata={"g": row % 2})
    verdicts = load(cross_encoder).score("cat", texts)
    best = [max((0, 2), key=lambda row: verdicts[row]), max((1, 3), key=lambda row: verdicts[row])]
    ranking = Ranking(rerank=str(cross_encoder))
    hits = store.search("cat", ranking=ranking, group_by="g")
    assert {hit.content for hit in hits} == {texts[row] for row in best}
    diverse = store.search(
        "cat", ranking=Ranking(rerank=str(cross_encoder), diversity=0.5), limit=3
    )
    assert len(diverse) == 3
    with pytest.raises(InputError, match="no words"):
        store.search([1.0] * 64, ranking=ranking)


def test_the_limit_of_hits_is_reached_whatever_the_depth_of_reranking(
    open_store: Opener, cross_encoder: Path
) -> None:
    store = open_store()
    store.add_many({"content": f"apple pie {n}", "metadata": {"g": n % 20}} for n in range(120))
    for limit, top in ((100, 50), (10, 5), (120, 1), (200, 50)):
        ranking = Ranking(rerank=str(cross_encoder), rerank_top=top)
        hits = store.search("apple pie", limit=limit, ranking=ranking)
        assert len(hits) == min(limit, 120)
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    ranking = Ranking(rerank=str(cross_encoder), rerank_top=10)
    modes: list[Any] = ["hybrid", "lexical", "dense"]
    for mode in modes:
        hits = store.search("apple pie", limit=20, ranking=ranking, group_by="g", mode=mode)
        assert {hit.memory.metadata["g"] for hit in hits} == {*range(20)}
        assert len(hits) == 20


def test_min_score_compares_the_rerankers_score(open_store: Opener, cross_encoder: Path) -> None:
    store = open_store()
    store.add_many(f"the cat and the stone {n}" for n in range(30))
    ranking = Ranking(rerank=str(cross_encoder), similarity=0.5, importance=0.2)
    every = store.search("no such words", ranking=ranking, limit=30)
    assert len(every) == 30
    floor = every[12].score
    cut = store.search("no such words", ranking=ranking, limit=30, min_score=floor)
    assert [hit.id for hit in cut] == [hit.id for hit in every if hit.score >= floor]


def test_variety_after_the_reranker_needs_no_embedder(
    open_store: Opener, cross_encoder: Path
) -> None:
    from kronos import NewMemory

    store = open_store(embedding_model=None, embedding_dim=4)
    rows = [[1, 0, 0, 0.0], [1, 0.01, 0, 0.0], [0, 1, 0, 0.0], [0, 0.99, 0.1, 0.0]]
    store.add_many(
        NewMemory(f"the cat {n}", id=f"m{n}", embedding=row) for n, row in enumerate(rows)
    )
    hits = store.search("cat", ranking=Ranking(rerank=str(cross_encoder), diversity=0.99), limit=2)
    assert len({int(hit.id[1:]) // 2 for hit in hits}) == 2


def test_a_missing_reranker_is_named(store: MemoryStore, tmp_path: Path) -> None:
    store.add("bees")
    (tmp_path / "empty").mkdir()
    for name in ("nobody/has-this-model", str(tmp_path / "empty"), "./nowhere/at-all"):
        with pytest.raises(ModelLoadError, match="reranker"):
            store.search("bees", ranking=Ranking(rerank=name))
    assert len(store.search("bees")) == 1


def test_a_failing_reranker_is_named() -> None:
    class Broken:
        def predict(self, *_: object, **__: object) -> object:
            raise RuntimeError("out of luck")

    class Hollow:
        def predict(self, pairs: list[object], **_: object) -> object:
            return np.full(len(pairs), np.nan)

    for model, why in ((Broken(), "out of luck"), (Hollow(), "NaN")):
        with pytest.raises(EmbeddingError, match=why):
            Reranker(model, "broken", 8).score("a", ["b"])
    assert Reranker(Broken(), "unused", 8).score("a", []).shape == (0,)
