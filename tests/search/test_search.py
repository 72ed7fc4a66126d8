"""Searches, compared with exact scoring in plain Python: with filters, and in every mode."""

from __future__ import annotations

import math
import random
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kronos import F, MemoryStore, NewMemory, Ranking
from kronos.errors import FilterError, InputError, NoEmbedderError, NotFoundError
from kronos.search.request import CANDIDATES
from kronos.settings import Settings
from tests.conftest import Clock, Opener
from tests.search.oracle import matches

DIM = 16
TEXTS = [
    "Ada keeps bees on the roof of the house.",
    "The server room is on the third floor.",
    "Bees make honey, and honey never spoils.",
    "A recipe for sourdough bread with rye flour.",
    "The invoice number is KX-4711 and is due in May.",
]
HOSTILE = [
    '"AND OR NOT ( * ^ " -x col:',
    "content : bees",
    "NEAR(bees honey, 2)",
    '"""',
    "'; DROP TABLE memories; --",
    "* * *",
    "^bees + honey",
    "{content}: bees",
    "a" * 5_000,
    "bees " * 2_000,
    "(((((((((",
    "\u200d\u202e",
    "the and of",
]


class Vectored:
    """A store with given vectors, and the dict that it must equal."""

    def __init__(self, store: MemoryStore, seed: int) -> None:
        self.store = store
        self.random = random.Random(seed)
        self.draw = np.random.default_rng(seed)
        self.rows: dict[str, np.ndarray] = {}

    def vector(self) -> np.ndarray:
        vector: np.ndarray = self.draw.normal(size=DIM).astype(np.float32)
        vector /= np.linalg.norm(vector)
        return vector

    def add(self, count: int) -> None:
        items = []
        for _ in range(count):
            id = f"m{len(self.rows)}-{self.random.random()}"
            self.rows[id] = self.vector()
            items.append(
                NewMemory(
                    f"text of {id}",
                    id=id,
                    namespace=self.random.choice(["default", "default/a", "other"]),
                    metadata={
                        "n": self.random.randrange(1000),
                        "tags": self.random.sample(["x", "y", "z"], 2),
                    },
                    importance=self.random.random(),
                    embedding=self.rows[id],
                )
            )
        self.store.add_many(items)

    def best(self, query: np.ndarray, where: Any, namespace: str, k: int) -> list[str]:
        scope = {"*": "", "default": "default"}[namespace]
        live = {
            memory.id: float(self.rows[memory.id] @ query)
            for memory in self.store.iterate(namespace="*")
            if matches(where, memory)
            and (not scope or f"{memory.namespace}/".startswith(f"{scope}/"))
        }
        return sorted(live, key=lambda id: -live[id])[:k]


@pytest.fixture
def vectored(open_store: Opener) -> Vectored:
    return Vectored(open_store(embedding_model=None, embedding_dim=DIM), 7)


@pytest.mark.parametrize("share", [0.001, 0.01, 0.1, 0.3, 0.5, 0.95])
def test_a_filtered_search_finds_what_exact_scoring_finds(vectored: Vectored, share: float) -> None:
    vectored.add(2000)
    where = {"n": {"$lt": max(int(1000 * share), 1)}}
    for _ in range(2):
        query = vectored.vector()
        for namespace in ("*", "default"):
            for k in (10, 200):
                hits = vectored.store.search(
                    query.tolist(), where=where, namespace=namespace, limit=k
                )
                assert [hit.id for hit in hits] == vectored.best(query, where, namespace, k)


def test_a_filter_that_excludes_the_nearest_still_gives_k_hits(vectored: Vectored) -> None:
    vectored.add(1000)
    query = vectored.vector()
    ranked = vectored.best(query, None, "*", 1000)
    for id in ranked[400:]:
        vectored.store.update(id, metadata={"far": True})
    where = {"far": True}
    hits = vectored.store.search(query.tolist(), where=where, namespace="*", limit=20)
    assert [hit.id for hit in hits] == ranked[400:420]


def test_filters_follow_writes_between_searches(vectored: Vectored) -> None:
    vectored.add(300)
    store, query = vectored.store, vectored.vector()
    wheres = [F.n < 500, F.tags.contains("x"), F.importance >= 0.5, (F.n >= 100) & ~(F.n > 900)]
    for _ in range(12):
        ids = [*vectored.rows]
        vectored.random.shuffle(ids)
        live = [id for id in ids if store.find(id) is not None]
        store.update(live[0], metadata={"n": vectored.random.randrange(1000), "tags": ["x"]})
        store.update(live[1], importance=vectored.random.random())
        store.delete(live[2])
        vectored.add(3)
        for where in wheres:
            found = [hit.id for hit in store.search(query.tolist(), where=where, namespace="*")]
            assert found == vectored.best(query, where, "*", 10)


def test_k_hits_come_back_if_most_of_the_nearest_have_expired(
    vectored: Vectored, clock: Clock
) -> None:
    vectored.add(400)
    query = vectored.vector()
    where = {"n": {"$lt": 800}}
    for id in vectored.best(query, where, "*", 100):
        vectored.store.update(id, expires_at=clock.now + timedelta(seconds=1))
    warm = vectored.store.search(query.tolist(), where=where, namespace="*")
    assert len(warm) == 10
    clock.tick(2)
    hits = vectored.store.search(query.tolist(), where=where, namespace="*", limit=50)
    assert [hit.id for hit in hits] == vectored.best(query, where, "*", 50)
    assert len(hits) == 50


def test_a_cached_filter_follows_writes_of_another_process(open_store: Opener) -> None:
    one, other = open_store(), open_store()
    id = one.add("bees on the roof", metadata={"n": 1})
    assert [hit.id for hit in one.search("bees", where={"n": 1})] == [id]
    other.update(id, metadata={"n": 2})
    second = other.add("bees in the garden", metadata={"n": 1})
    assert [hit.id for hit in one.search("bees", where={"n": 1})] == [second]
    assert [hit.id for hit in one.search("bees", where={"n": 2})] == [id]


def test_a_restored_database_has_its_own_matches(open_store: Opener, tmp_path: Path) -> None:
    store = open_store()
    id = store.add("bees on the roof", metadata={"n": 1})
    kept = store.maintenance.backup(tmp_path / "kept.db")
    store.update(id, metadata={"n": 2})
    assert store.search("bees", where={"n": 1}) == []
    MemoryStore(tmp_path / "store").maintenance.restore(kept)
    assert [hit.id for hit in store.search("bees", where={"n": 1})] == [id]
    assert store.search("bees", where={"n": 2}) == []


# -- Words --------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["lexical", "hybrid"])
@pytest.mark.parametrize("query", HOSTILE)
def test_any_text_is_a_valid_query(store: MemoryStore, query: str, mode: Any) -> None:
    store.add_many(TEXTS)
    hits = store.search(query, mode=mode)
    assert all(math.isfinite(hit.score) for hit in hits)
    if "bees" in query:
        assert "ees" in hits[0].content


def test_words_find_names_and_numbers_in_any_case_and_without_accents(store: MemoryStore) -> None:
    store.add_many([*TEXTS, "Der Größte heißt Éloïse."])
    for query, text in [("kx-4711", TEXTS[4]), ("ELOISE", "Der"), ("bee", TEXTS[0][:3])]:
        assert store.search(query, mode="lexical")[0].content.startswith((text, "Bees"))
    assert store.search("zebra", mode="lexical") == []


def test_word_scores_are_those_of_bm25_in_python(store: MemoryStore) -> None:
    texts = ["bees bees hive", "bees roof", "roof roof roof garden wall", "hive"]
    store.add_many(texts)
    found = {hit.content: hit.score for hit in store.search("bees and roof", mode="lexical")}
    assert found == pytest.approx(_bm25(texts, ["bees", "roof"]), rel=1e-6)


def test_adjacent_words_score_higher(store: MemoryStore) -> None:
    store.add_many([f"filler {row}" for row in range(30)])
    apart, together = store.add_many(["this bowl is super large", "this large super bowl is"])
    hits = store.search("the super bowl", mode="lexical")
    assert [hit.id for hit in hits] == [together, apart]
    assert hits[0].score > 1.1 * hits[1].score


def _bm25(texts: list[str], terms: list[str]) -> dict[str, float]:
    split = {text: text.split() for text in texts}
    mean = sum(map(len, split.values())) / len(texts)
    scores: dict[str, float] = {}
    for text, words in split.items():
        score = 0.0
        for term in terms:
            held = sum(term in others for others in split.values())
            weight = max(math.log((len(texts) - held + 0.5) / (held + 0.5)), 0.1)
            count = words.count(term)
            score += weight * count * 2.2 / (count + 1.2 * (0.25 + 0.75 * len(words) / mean))
        if score:
            scores[text] = score
    return scores


def test_words_need_no_model(open_store: Opener) -> None:
    store = open_store(embedding_model=None, embedding_dim=4)
    store.add_many(NewMemory(text, embedding=[1.0, 0, 0, row]) for row, text in enumerate(TEXTS))
    lexical = store.search("honey bees", mode="lexical")
    assert [hit.content for hit in lexical] == [TEXTS[2], TEXTS[0]]
    assert {hit.embedder for hit in lexical} == {"words"}
    # Without an embedder the default mode uses words alone, and dense search is refused.
    assert store.search("honey bees") == lexical
    with pytest.raises(NoEmbedderError):
        store.search("honey bees", mode="dense")


def test_word_search_follows_filter_and_namespace(store: MemoryStore) -> None:
    for row, text in enumerate(TEXTS):
        store.add(text, metadata={"row": row}, namespace="default/a" if row else "other")
    found = store.search("bees honey floor", mode="lexical", where=F.row >= 2)
    assert [hit.content for hit in found] == [TEXTS[2]]
    assert len(store.search("bees", mode="lexical", namespace="*")) == 2
    assert len(store.search("bees", mode="lexical")) == 1


def test_words_of_changed_and_deleted_texts_are_gone(store: MemoryStore) -> None:
    kept, changed, deleted = store.add_many(["bees one", "bees two", "bees three"])
    store.update(changed, content="wasps two")
    store.update(kept, importance=0.1)
    store.delete(deleted)
    assert [hit.id for hit in store.search("bees", mode="lexical")] == [kept]
    assert [hit.id for hit in store.search("wasps", mode="lexical")] == [changed]
    assert store.maintenance.check().ok


@pytest.mark.parametrize(
    ("tokenizer", "finds"),
    [
        ("porter", {"running": True, "runs": True, "unnin": False}),
        ("unicode61", {"running": True, "runs": False, "unnin": False}),
        ("trigram", {"running": True, "runs": False, "unnin": True}),
    ],
)
def test_a_store_keeps_the_tokenizer_it_was_made_with(
    open_store: Opener, tokenizer: Any, finds: dict[str, bool]
) -> None:
    store = open_store(settings=Settings(tokenizer=tokenizer))
    store.add("The children were running home.")
    assert {word: bool(store.search(word, mode="lexical")) for word in finds} == finds
    # The tokenizer belongs to the store, not to the call that opens it.
    assert {word: bool(open_store().search(word, mode="lexical")) for word in finds} == finds
    store.maintenance.rebuild_fulltext("porter")
    assert store.search("runs", mode="lexical")
    store.add("He runs.")
    assert len(store.search("running", mode="lexical")) == 2
    with pytest.raises(InputError, match="tokenizer"):
        store.maintenance.rebuild_fulltext("latin")  # type: ignore[arg-type]


def test_only_the_rarest_words_of_a_query_are_looked_up(
    open_store: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kronos.search.lexical.MOST_ROWS", 5)
    store = open_store()
    store.add_many([f"common word number {row}" for row in range(20)] + ["common rare pearl"])
    assert [h.content for h in store.search("common pearl", mode="lexical")] == [
        "common rare pearl"
    ]
    assert len(store.search("common", mode="lexical", limit=50)) == 21


# -- Modes, scores, shares ------------------------------------------------------------------------


def test_hybrid_finds_memories_that_only_words_find(open_store: Opener) -> None:
    store = open_store(embedding_model=None, embedding_dim=4)
    store.add_many([NewMemory("the invoice KX-4711", embedding=[0, 1, 0, 0.0])])
    store.add_many([NewMemory(f"filler {row}", embedding=[0, 0, 1, 0.0]) for row in range(200)])
    assert store.search("kx 4711")[0].content == "the invoice KX-4711"


@pytest.mark.parametrize("mode", ["hybrid", "dense", "lexical"])
def test_shares_add_up_to_the_score(store: MemoryStore, mode: Any) -> None:
    store.add_many(TEXTS)
    ranking = Ranking(similarity=0.8, recency=0.2, importance=0.1, namespaces={"default": 0.05})
    hits = store.search("bees and honey", mode=mode, ranking=ranking, explain=True)
    assert hits.explanation is not None
    assert hits.explanation.mode == mode
    assert {step.name for step in hits.explanation.steps} >= {"filter", "signals", "rows"}
    expected = {"recency", "importance", "namespace"}
    expected |= {
        "hybrid": {"vectors", "words", "agreement"},
        "dense": {"vectors"},
        "lexical": {"words"},
    }[mode]
    for hit in hits:
        assert hit.shares is not None
        assert set(hit.shares) == expected
        assert sum(hit.shares.values()) == pytest.approx(hit.score)
    plain = store.search("bees and honey", mode=mode)
    assert plain.explanation is None
    assert plain[0].shares is None


def test_the_explanation_says_how_a_filter_was_applied(vectored: Vectored) -> None:
    vectored.add(600)
    query = vectored.vector().tolist()

    def plan(where: Any) -> str:
        found = vectored.store.search(query, where=where, namespace="*", explain=True)
        assert found.explanation is not None
        return next(s.detail for s in found.explanation.steps if s.name == "vectors")

    assert plan({"n": {"$lt": 20}}).endswith("that match, alone")
    assert plan({"n": {"$lt": 900}}).endswith("that match, alone")
    assert plan(None) == "index of 600"


def test_the_score_of_dense_search_is_the_cosine(store: MemoryStore) -> None:
    store.add_many(TEXTS)
    for text in TEXTS:
        hit = store.search(text, mode="dense")[0]
        assert (hit.content, hit.embedder) == (text, "hash")
        assert hit.score == pytest.approx(1, abs=1e-5)


def test_search_many_gives_the_hits_of_single_searches(open_store: Opener) -> None:
    asked: list[int] = []

    class Counting:
        model_id, fingerprint, dim = "counting", "counting", 8

        def embed_documents(self, texts: Any) -> Any:
            return np.array([[len(t), *map(ord, t[:7].ljust(7))] for t in texts], np.float32)

        def embed_queries(self, texts: Any) -> Any:
            asked.append(len(texts))
            return self.embed_documents(texts)

    store = open_store(embedder=Counting())
    store.add_many(NewMemory(f"{text} {n}", metadata={"n": n}) for n in range(60) for text in TEXTS)
    queries = ["bees", "the third floor", "KX-4711", "bread"]
    for mode in ("hybrid", "dense", "lexical"):
        for where in (None, F.n < 5, F.n < 50):
            options: dict[str, Any] = {"mode": mode, "where": where, "limit": 7}
            one_by_one = [store.search(query, **options) for query in queries]
            asked.clear()
            assert store.search_many(queries, **options) == one_by_one
            assert asked == ([] if mode == "lexical" else [4])
    assert store.search_many([]) == []
    vectors = [[1.0] * 8, [2.0, -1.0] * 4]
    assert store.search_many(vectors) == [store.search(vector) for vector in vectors]
    for bad in ("bees", ["bees", [1.0] * 8], 7):
        with pytest.raises(InputError, match="queries"):
            store.search_many(bad)  # type: ignore[arg-type]


# -- Ranking ------------------------------------------------------------------------------------


@pytest.mark.parametrize("similarity", [0.0, 0.3, 1.0])
def test_a_ranking_is_exact_with_any_weights(
    vectored: Vectored, clock: Clock, similarity: float
) -> None:
    for _ in range(30):
        vectored.add(20)
        clock.tick(3600)
    ranking = Ranking(
        similarity=similarity,
        recency=0.7,
        half_life="10h",
        importance=0.4,
        namespaces={"other": 0.2, "default": -0.1, "default/a": 0.1},
    )
    query = vectored.vector()

    def score(memory: Any) -> float:
        age = (clock.now - memory.created_at).total_seconds()
        place = {"other": 0.2, "default": -0.1, "default/a": 0.1}[memory.namespace]
        cosine = float(vectored.rows[memory.id] @ query)
        recency = math.exp(-age / 36_000 * math.log(2))
        return float(similarity * cosine + 0.7 * recency + 0.4 * memory.importance + place)

    everything = sorted(vectored.store.iterate(namespace="*"), key=score, reverse=True)
    hits = vectored.store.search(query.tolist(), ranking=ranking, namespace="*", limit=15)
    assert [hit.id for hit in hits] == [memory.id for memory in everything[:15]]
    assert [hit.score for hit in hits] == pytest.approx([score(m) for m in everything[:15]])


def test_recency_counts_back_from_now_of_the_ranking(store: MemoryStore, clock: Clock) -> None:
    old = store.add("bees on the roof")
    clock.tick(86_400)
    new = store.add("bees on the roofs")
    ranking = {"similarity": 0.0, "recency": 1.0, "half_life": timedelta(days=1)}
    then = clock.now + timedelta(days=1)
    hits = store.search("bees", ranking=Ranking(**ranking, now=then))  # type: ignore[arg-type]
    assert {hit.id: hit.score for hit in hits} == pytest.approx({new: 0.5, old: 0.25})
    # A memory that is newer than `now` counts as new.
    hits = store.search("bees", ranking=Ranking(**ranking, now=then - timedelta(9)))  # type: ignore[arg-type]
    assert [hit.score for hit in hits] == [1, 1]
    assert [hit.id for hit in hits] == [old, new]


def test_recency_of_access_puts_the_last_used_first(open_store: Opener, clock: Clock) -> None:
    store = open_store()
    one, two, three = store.add_many(["bees one", "bees two", "bees three"])
    ranking = Ranking(similarity=0, recency=1, recency_of="accessed", half_life="1h")
    clock.tick(3600)
    assert store.touch([two, "nobody"]) == 1
    clock.tick(3600)
    assert store.touch(three) == 1
    hits = store.search("bees", ranking=ranking)
    assert [hit.id for hit in hits] == [three, two, one]
    assert [hit.score for hit in hits] == pytest.approx([1, 0.5, 0.25])
    tracking = open_store(settings=Settings(track_access=True))
    clock.tick(3600)
    tracking.get(one)
    assert store.search("bees", ranking=ranking)[0].id == one
    clock.tick(3600)
    assert [hit.id for hit in tracking.search("two", mode="lexical")] == [two]
    assert store.search("bees", ranking=ranking)[0].id == two


def test_diversity_is_maximal_marginal_relevance(vectored: Vectored) -> None:
    vectored.add(40)
    query = vectored.vector()
    ranked = vectored.best(query, None, "*", 25)
    chosen: list[str] = []
    while len(chosen) < 5:

        def marginal(id: str) -> float:
            likest = max((float(vectored.rows[id] @ vectored.rows[c]) for c in chosen), default=0)
            return 0.4 * float(vectored.rows[id] @ query) - 0.6 * max(likest, 0)

        chosen.append(max((id for id in ranked if id not in chosen), key=marginal))
    ranking = Ranking(diversity=0.6)
    hits = vectored.store.search(query.tolist(), ranking=ranking, namespace="*", limit=5)
    assert [hit.id for hit in hits] == chosen
    plain = vectored.store.search(query.tolist(), namespace="*", limit=5)
    assert [hit.id for hit in plain] == ranked[:5]
    assert chosen != ranked[:5]


def test_group_by_gives_one_hit_for_each_group_and_k_groups(vectored: Vectored) -> None:
    items = []
    for row in range(300):
        id = f"r{row}"
        vectored.rows[id] = vectored.vector()
        group = {"doc": {"id": row % 12}} if row < 240 else {}
        items.append(NewMemory(id, id=id, metadata=group, embedding=vectored.rows[id]))
    vectored.store.add_many(items)
    query = vectored.vector()
    seen: set[Any] = set()
    expected = []
    for id in vectored.best(query, None, "*", 300):
        row = int(id[1:])
        place = row % 12 if row < 240 else id
        if place not in seen:
            seen.add(place)
            expected.append(id)
    for limit in (5, 30, 72, 100):
        hits = vectored.store.search(query.tolist(), group_by="doc.id", limit=limit)
        assert [hit.id for hit in hits] == expected[:limit]
    with pytest.raises(FilterError):
        vectored.store.search(query.tolist(), group_by="a['b']")


def test_parents_and_namespaces_can_be_groups(store: MemoryStore) -> None:
    parent = store.add("a book about bees", namespace="default/books")
    for row in range(3):
        store.add(f"bees, page {row}", parent_id=parent, namespace="default/pages")
    by_parent = store.search("bees page", group_by="parent_id")
    assert sorted(hit.memory.parent_id or "" for hit in by_parent) == ["", parent]
    by_place = store.search("bees page", group_by="namespace")
    assert {hit.memory.namespace for hit in by_place} == {"default/books", "default/pages"}
    assert len(by_place) == 2


@pytest.mark.parametrize("mode", ["hybrid", "dense", "lexical"])
def test_near_finds_similar_memories_but_not_the_memory_itself(
    store: MemoryStore, mode: Any
) -> None:
    ids = store.add_many([*TEXTS, "Bees keep to the roof."])
    hits = store.search(near=ids[0], mode=mode, limit=2)
    assert hits[0].id == ids[5]
    assert ids[0] not in [hit.id for hit in hits]
    with pytest.raises(NotFoundError):
        store.search(near="nobody", mode=mode)
    with pytest.raises(InputError, match="near"):
        store.search("bees", near=ids[0])


def test_near_is_as_exact_as_a_search_with_the_vector(vectored: Vectored) -> None:
    vectored.add(200)
    id = next(iter(vectored.rows))
    found = vectored.store.search(near=id, namespace="*", limit=20)
    assert [hit.id for hit in found] == vectored.best(vectored.rows[id], None, "*", 21)[1:]


def test_equal_scores_are_in_the_order_of_adding(open_store: Opener) -> None:
    store = open_store(embedding_model=None, embedding_dim=4)
    ids = store.add_many(NewMemory("bees", embedding=[1, 0, 0, 0.0]) for _ in range(150))
    for mode, query in (("dense", [1, 0, 0, 0.0]), ("lexical", "bees")):
        hits = store.search(query, mode=mode, limit=150)  # type: ignore[arg-type]
        assert [hit.id for hit in hits] == ids
        some = Ranking(importance=0.5)
        hits = store.search(query, mode=mode, limit=30, ranking=some)  # type: ignore[arg-type]
        assert [hit.id for hit in hits] == ids[:30]


def test_min_score_applies_to_the_ranked_score(vectored: Vectored) -> None:
    vectored.add(2 * CANDIDATES)
    query = vectored.vector()
    ranking = Ranking(importance=0.5)
    every = vectored.store.search(query.tolist(), ranking=ranking, namespace="*", limit=200)
    floor = every[20].score
    cut = vectored.store.search(
        query.tolist(), ranking=ranking, namespace="*", limit=200, min_score=floor
    )
    assert cut == every[:21]


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"similarity": -1}, "similarity"),
        ({"recency": math.nan}, "recency"),
        ({"half_life": "soon"}, "half_life"),
        ({"half_life": 0}, "half_life"),
        ({"half_life": timedelta(0)}, "half_life"),
        ({"recency_of": "yesterday"}, "recency_of"),
        ({"diversity": 2}, "diversity"),
        ({"namespaces": {"a//b": 1}}, "namespaces"),
        ({"namespaces": ["a"]}, "namespaces"),
        ({"namespaces": {"a": "much"}}, "namespaces"),
        ({"rerank": ""}, "rerank"),
        ({"rerank_top": 0}, "rerank_top"),
        ({"importance": True}, "importance"),
    ],
)
def test_an_invalid_ranking_is_refused_by_field(options: Any, field: str) -> None:
    with pytest.raises(InputError, match=f"ranking.{field}"):
        Ranking(**options)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"mode": "psychic"}, "mode"),
        ({"ranking": {"recency": 1}}, "ranking"),
        ({"expand": -1}, "expand"),
        ({"expand": 99}, "expand"),
        ({"min_score": "high"}, "min_score"),
        ({"as_of": "yesterday"}, "as_of"),
        ({"limit": 0}, "limit"),
        ({"query": None}, "query"),
        ({"query": [0.1] * 64, "mode": "lexical"}, "query"),
        ({"query": " "}, "query"),
    ],
)
def test_an_invalid_search_is_refused_by_field(
    store: MemoryStore, options: dict[str, Any], field: str
) -> None:
    store.add("bees")
    with pytest.raises(InputError) as caught:
        store.search(**{"query": "bees", **options})
    assert field in (caught.value.field or "")


# -- Links --------------------------------------------------------------------------------------


def test_expand_adds_linked_memories_after_the_hits(store: MemoryStore) -> None:
    bees, queen, hive, far = store.add_many(["bees", "the sovereign", "a wooden box", "a forest"])
    child = store.add("what came of it", parent_id=bees)
    store.link(bees, queen, "led by", 0.5)
    store.link(hive, bees, "houses", 0.9)
    store.link(hive, far, "stands in")
    hits = store.search("bees", mode="lexical", expand=1)
    assert [(hit.id, hit.via) for hit in hits] == [
        (bees, None),
        (child, bees),
        (hive, bees),
        (queen, bees),
    ]
    scores = [hit.score for hit in hits]
    assert scores == sorted(scores, reverse=True)
    assert [hit.rank for hit in hits] == [0, 1, 2, 3]
    assert far in [hit.id for hit in store.search("bees", mode="lexical", expand=2)]
    assert [hit.id for hit in store.search("bees", mode="lexical", limit=1, expand=1)] == [
        bees,
        child,
    ]
    store.delete(hive)
    assert hive not in [hit.id for hit in store.search("bees", mode="lexical", expand=2)]
