"""The verbs of the store: what they answer, and what they leave when they fail."""

from __future__ import annotations

import threading
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from kronos import F, MemoryStore, NewMemory
from kronos.db.statements import driver_of
from kronos.errors import (
    ConfigurationError,
    DuplicateIdError,
    EmbedderMismatchError,
    EmbeddingError,
    InputError,
    NoEmbedderError,
    NotFoundError,
    StoreClosedError,
)
from kronos.repository.vectors import _made_before
from kronos.settings import Settings
from tests.conftest import Clock, Opener

TEXTS = [
    "The cat sat on the mat by the door.",
    "Interest rates rose again in the spring.",
    "A recipe for sourdough bread with rye flour.",
    "The train to Lisbon leaves at nine.",
]


def test_an_added_memory_is_read_and_found_with_all_its_fields(
    store: MemoryStore, clock: Clock
) -> None:
    later = clock.now + timedelta(days=1)
    parent = store.add("the parent")
    id = store.add(
        TEXTS[0],
        id="cat",
        metadata={"tags": ["pet"]},
        namespace="home/pets",
        importance=0.9,
        parent_id=parent,
        expires_at=later,
    )
    memory = store.get(id)
    assert (memory.id, memory.namespace, memory.content) == ("cat", "home/pets", TEXTS[0])
    assert (memory.metadata, memory.importance) == ({"tags": ["pet"]}, 0.9)
    assert (memory.parent_id, memory.expires_at) == (parent, later)
    assert (memory.created_at, memory.updated_at) == (clock.now, clock.now)
    (hit,) = store.search("a cat on a mat", namespace="home", limit=1)
    assert hit.memory == memory
    assert (hit.rank, hit.embedder, hit.id, hit.content) == (0, "hash", "cat", TEXTS[0])


def test_a_text_finds_itself_with_score_one(store: MemoryStore) -> None:
    store.add_many(TEXTS)
    for text in TEXTS:
        best = store.search(text, mode="dense")[0]
        assert best.content == text
        assert best.score == pytest.approx(1, abs=1e-5)


def test_hits_are_ordered_and_min_score_cuts_the_tail(store: MemoryStore) -> None:
    store.add_many(TEXTS)
    hits = store.search("the cat by the door")
    scores = [hit.score for hit in hits]
    assert scores == sorted(scores, reverse=True)
    assert [hit.rank for hit in hits] == list(range(len(TEXTS)))
    assert store.search("the cat by the door", min_score=scores[1]) == hits[:2]


def test_add_many_streams_and_keeps_the_order(open_store: Opener) -> None:
    store = open_store(settings=Settings(batch_size=3))
    seen: list[int] = []
    ids = store.add_many(
        (NewMemory(f"text number {i}", id=f"m{i}") for i in range(8)),
        progress=lambda progress: seen.append(progress.done),
    )
    assert ids == [f"m{i}" for i in range(8)]
    assert seen == [3, 6, 8]
    assert [memory.id for memory in store.list()] == ids
    assert store.add_many([]) == []


def test_a_refused_item_keeps_its_whole_batch_out_and_earlier_batches_in(
    open_store: Opener,
) -> None:
    store = open_store(settings=Settings(batch_size=3))
    with pytest.raises(InputError) as caught:
        store.add_many(["a", "b", "c", "d", " ", "f"])
    assert caught.value.field == "items[4].content"
    assert [memory.content for memory in store.list()] == ["a", "b", "c"]


def test_an_id_that_exists_is_an_error_unless_allowed(store: MemoryStore, clock: Clock) -> None:
    store.add("first", id="x")
    created = clock.now
    clock.tick(60)
    with pytest.raises(DuplicateIdError):
        store.add_many([NewMemory("other"), NewMemory("second", id="x")])
    assert store.count() == 1
    assert store.add("second", id="x", on_conflict="ignore") == "x"
    assert store.get("x").content == "first"
    assert store.add("third thing", id="x", namespace="n", on_conflict="replace") == "x"
    memory = store.get("x")
    assert (memory.content, memory.namespace) == ("third thing", "n")
    assert (memory.created_at, memory.updated_at) == (created, clock.now)
    assert [hit.content for hit in store.search("first", namespace="*")] == ["third thing"]


def test_one_id_twice_in_a_call_follows_the_same_rule(store: MemoryStore) -> None:
    twice = [NewMemory("one", id="x"), NewMemory("two", id="x")]
    with pytest.raises(DuplicateIdError):
        store.add_many(twice)
    assert store.count() == 0
    store.add_many(twice, on_conflict="ignore")
    assert store.get("x").content == "one"
    store.add_many(twice, on_conflict="replace")
    assert store.get("x").content == "two"
    assert store.count() == 1


def test_update_changes_what_is_named_and_nothing_else(store: MemoryStore, clock: Clock) -> None:
    store.add(TEXTS[0], id="x", metadata={"a": 1}, importance=0.3)
    before = store.get("x")
    clock.tick(5)
    after = store.update("x", metadata={"b": 2})
    assert after.metadata == {"b": 2}
    assert (after.content, after.importance) == (before.content, 0.3)
    assert (after.created_at, after.updated_at) == (before.created_at, clock.now)
    assert store.get("x") == after


def test_an_edited_text_is_found_by_its_new_words_only(store: MemoryStore) -> None:
    store.add_many([NewMemory(text, id=str(i)) for i, text in enumerate(TEXTS)])
    store.search("warm up the index")
    store.update("0", content="Glaciers retreat in the Alps.")
    assert store.search("glaciers in the alps")[0].id == "0"
    assert store.search(TEXTS[0])[0].score < 0.99


def test_a_memory_that_is_not_there_raises_and_writes_nothing(store: MemoryStore) -> None:
    seq = store.stats().seq
    with pytest.raises(NotFoundError):
        store.get("nobody")
    with pytest.raises(NotFoundError):
        store.update("nobody", content="new text")
    assert store.find("nobody") is None
    assert store.delete("nobody") == 0
    assert store.stats().seq == seq


def test_deleted_memories_are_gone_from_every_verb(store: MemoryStore) -> None:
    ids = store.add_many(TEXTS)
    store.search("warm up the index")
    assert store.delete(ids[:2]) == 2
    assert store.count() == 2
    assert store.find(ids[0]) is None
    assert {hit.id for hit in store.search("the", limit=10)} == set(ids[2:])
    assert store.delete(namespace="*") == 2
    assert store.search("the") == []


def test_delete_needs_to_be_told_what(store: MemoryStore) -> None:
    ids = store.add_many(TEXTS)
    unclear: list[dict[str, Any]] = [
        {},
        {"where": {}},
        {"ids": ids[0], "where": {"a": 1}},
        {"ids": [], "namespace": "x"},
    ]
    for options in unclear:
        with pytest.raises(InputError):
            store.delete(**options)
    for nothing in (F.a == 1, {"a": 1}):
        assert store.delete(where=nothing) == 0
    assert store.delete([]) == 0
    assert store.count() == len(ids)
    assert store.delete([ids[0]] * 2500) == 1
    assert store.delete(where={}, namespace="default") == len(ids) - 1


def test_namespaces_hold_what_is_below_them_and_nothing_beside(open_store: Opener) -> None:
    store = open_store(namespace="team")
    names = ["team", "team/alice", "team/alice/notes", "team-b", "team0", "tea", "z"]
    for name in names:
        store.add(f"text of {name}", id=name, namespace=name)
    store.add("text of nobody", id="own")

    def seen(**options: Any) -> set[str]:
        found = {memory.id for memory in store.list(**options)}
        assert {hit.id for hit in store.search("text", limit=99, **options)} == found
        assert store.count(**options) == len(found)
        return found

    assert seen() == {"team", "team/alice", "team/alice/notes", "own"}
    assert seen(namespace="team/alice") == {"team/alice", "team/alice/notes"}
    assert seen(namespace="team-b") == {"team-b"}
    assert seen(namespace="*") == {*names, "own"}
    assert seen(namespace="nothing") == set()
    assert store.delete(namespace="team/alice") == 2
    assert seen() == {"team", "own"}


def test_ids_are_unique_in_the_whole_store(store: MemoryStore) -> None:
    store.add("one", id="x", namespace="a")
    with pytest.raises(DuplicateIdError):
        store.add("two", id="x", namespace="b")


def test_expired_memories_are_never_returned_and_never_cost_a_hit(
    store: MemoryStore, clock: Clock
) -> None:
    soon = clock.now + timedelta(seconds=10)
    store.add_many(NewMemory("the same words", id=f"old{i}", expires_at=soon) for i in range(30))
    store.add_many(NewMemory(f"the same words {i}", id=f"new{i}") for i in range(5))
    assert store.count() == 35
    clock.tick(10)
    assert {hit.id for hit in store.search("the same words", limit=5)} == {
        f"new{i}" for i in range(5)
    }
    assert store.count() == 5
    assert len(store.list()) == 5
    assert store.find("old0") is None
    with pytest.raises(NotFoundError):
        store.update("old0", importance=1)
    assert store.add("again", id="old0") == "old0"
    assert store.get("old0").created_at == clock.now


def test_pages_follow_each_other_without_gap_or_overlap(store: MemoryStore) -> None:
    ids = store.add_many(f"text {i}" for i in range(25))
    pages: list[str] = []
    after: str | None = None
    while page := store.list(after=after, limit=10):
        pages += [memory.id for memory in page]
        after = page[-1].id
        store.add("written while paging", namespace="elsewhere")
    assert pages == ids
    with pytest.raises(NotFoundError):
        store.list(after="nobody")


def test_a_store_reopens_as_it_was(open_store: Opener, tmp_path: Path) -> None:
    store = open_store()
    store.add_many(TEXTS)
    before = store.list()
    hits = store.search("bread")
    store.close()
    store.close()
    again = open_store()
    assert again.list() == before
    assert again.search("bread") == hits


def test_a_closed_store_says_so(store: MemoryStore) -> None:
    store.close()
    for call in (
        lambda: store.add("x"),
        lambda: store.search("x"),
        lambda: store.count(),
        lambda: store.stats(),
        lambda: store.reindex(),
    ):
        with pytest.raises(StoreClosedError):
            call()


def test_vectors_handed_in_are_found_by_vector(open_store: Opener) -> None:
    store = open_store(embedding_model=None, embedding_dim=4)
    rows = np.eye(4, dtype=np.float32)
    store.add_many(NewMemory(f"axis {i}", embedding=row) for i, row in enumerate(rows))
    hits = store.search([0.1, 0.9, 0.2, 0], limit=2)
    assert [hit.content for hit in hits] == ["axis 1", "axis 2"]
    assert hits[0].score == pytest.approx(0.9 / np.linalg.norm([0.1, 0.9, 0.2, 0]))
    for call in (
        lambda: store.search("a text", mode="dense"),
        lambda: store.add("a text"),
        lambda: store.update(hits[0].id, content="new"),
        lambda: store.reindex(),
    ):
        with pytest.raises(NoEmbedderError):
            call()
    assert store.count() == 4
    assert store.update(hits[0].id, metadata={"a": 1}).metadata == {"a": 1}


class Letters:
    """A caller's own embedder: counts letters; can be told to fail."""

    model_id = "letters"
    dim = 26

    def __init__(self, fingerprint: str = "letters-1") -> None:
        self.fingerprint = fingerprint
        self.fault: Any = None
        self.texts: list[str] = []

    def embed_documents(self, texts: Any) -> Any:
        self.texts += texts
        if isinstance(self.fault, Exception):
            raise self.fault
        if self.fault is not None:
            return self.fault
        return [[text.lower().count(chr(97 + i)) + 0.01 for i in range(26)] for text in texts]

    embed_queries = embed_documents


def test_a_callers_own_embedder_works_everywhere(open_store: Opener) -> None:
    embedder = Letters()
    with open_store(embedder=embedder) as store:
        store.add_many(["zebra zoo", "apple", "apple"])
        assert embedder.texts == ["zebra zoo", "apple"], "equal texts are embedded once"
        hit = store.search("zz")[0]
        assert (hit.content, hit.embedder) == ("zebra zoo", "letters")
        stats = store.stats()
        assert (stats.dim, stats.embedder) == (26, "letters")


def test_what_is_ignored_is_not_embedded(open_store: Opener) -> None:
    embedder = Letters()
    store = open_store(embedder=embedder)
    items = [NewMemory(f"text {i}", id=str(i)) for i in range(5)]
    store.add_many(items[:3])
    embedder.texts.clear()
    assert store.add_many(items, on_conflict="ignore") == ["0", "1", "2", "3", "4"]
    assert embedder.texts == ["text 3", "text 4"]
    assert store.count() == 5


@pytest.mark.parametrize("missing", ["model_id", "fingerprint", "dim", "embed_queries"])
def test_an_object_that_is_no_embedder_is_refused_by_name(open_store: Opener, missing: str) -> None:
    parts = ("model_id", "fingerprint", "dim", "embed_documents", "embed_queries")
    half = SimpleNamespace(**{n: getattr(Letters(), n) for n in parts if n != missing})
    with pytest.raises(ConfigurationError, match=missing):
        open_store(embedder=half)


@pytest.mark.parametrize(
    "fault",
    [
        RuntimeError("boom"),
        np.zeros((1, 26)),
        np.full((1, 26), np.nan),
        np.ones((1, 25)),
        np.ones((2, 26)),
        "nonsense",
    ],
    ids=["raises", "zeros", "NaN", "narrow", "too many", "no array"],
)
def test_what_a_broken_embedder_returns_is_never_stored(open_store: Opener, fault: Any) -> None:
    embedder = Letters()
    store = open_store(embedder=embedder)
    embedder.fault = fault
    with pytest.raises((EmbeddingError, InputError), match="letters"):
        store.add("a text")
    with pytest.raises((EmbeddingError, InputError), match="letters"):
        store.search("a text")
    embedder.fault = None
    assert store.count() == 0
    assert store.search("a text") == []


def test_another_embedder_is_refused_when_told_to(open_store: Opener) -> None:
    open_store(embedder=Letters("letters-1")).add("a text")
    with pytest.raises(EmbedderMismatchError, match="kronos reindex"):
        open_store(embedder=Letters("letters-2"), on_model_change="error")


def test_sixteen_threads_share_a_store(store: MemoryStore) -> None:
    failures: list[BaseException] = []

    def work(name: int) -> None:
        try:
            for i in range(10):
                id = store.add(f"thread {name} wrote number {i}", id=f"{name}-{i}")
                assert store.search(f"thread {name} wrote number {i}", limit=3)
                if i % 3 == 0:
                    assert store.delete(id) == 1
        except BaseException as exc:
            failures.append(exc)

    threads = [threading.Thread(target=work, args=(name,)) for name in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    kept = {f"{name}-{i}" for name in range(16) for i in range(10) if i % 3}
    assert {memory.id for memory in store.list(limit=1000)} == kept
    assert {hit.id for hit in store.search("thread wrote number", limit=1000)} == kept
    assert store.maintenance.check().ok


def test_stats_count_and_name_who_answers(store: MemoryStore) -> None:
    before = store.stats().seq
    ids = store.add_many(TEXTS)
    store.delete(ids[0])
    stats = store.stats()
    assert (stats.memories, stats.embedder, stats.degraded, stats.dim) == (3, "hash", None, 64)
    (entry,) = stats.spaces
    assert (entry.space.state, entry.space.alias) == ("active", "hash")
    assert (entry.vectors, entry.pending) == (3, 0)
    assert stats.database_bytes > 0
    assert stats.seq == before + 5
    assert stats.jobs == ()


def test_a_text_that_was_embedded_before_is_not_embedded_again(
    open_store: Opener, clock: Clock
) -> None:
    asked: list[str] = []

    class Noting:
        model_id, fingerprint, dim = "noting", "noting", 8

        def embed_documents(self, texts: Any) -> Any:
            asked.extend(texts)
            return np.random.default_rng(len(asked)).normal(size=(len(texts), 8))

        embed_queries = embed_documents

    store = open_store(embedder=Noting())
    first, gone = store.add_many(["one text", "another text"])
    store.delete(gone)
    asked.clear()
    second, third, fourth = store.add_many(["one text", "a new text", "another text"])
    assert asked == ["a new text"]
    with store._session.reader() as repository:
        space = store._session.serving.space
        vectors = {
            id: repository.vectors.of(space, repository.entry(id).key)  # type: ignore[union-attr]
            for id in (first, second, third, fourth)
        }
    # Bit by bit the same: of the memory that holds it, and of the one that held it once.
    np.testing.assert_array_equal(vectors[first], vectors[second])
    assert not np.array_equal(vectors[third], vectors[fourth])  # type: ignore[arg-type]
    # What is handed in is taken as it is.
    handed = np.eye(8, dtype=np.float32)[3]
    store.add_many([NewMemory("one text", id="own", embedding=handed)])
    (hit,) = store.search(handed, limit=1)
    assert hit.id == "own"
    assert hit.score == pytest.approx(1)
    assert asked == ["a new text"]


def test_the_vectors_of_texts_that_were_seen_are_looked_up(open_store: Opener) -> None:
    """Without a scan of all vectors, which every single add of a large store would pay for."""
    store = open_store()
    store.add("a text")
    with store._session.reader() as repository:
        run, dialect = driver_of(repository.connection).execute, repository.connection.dialect
        texts = [statement._compile(dialect).text for statement in _made_before(2)]
        values = {"space": 1, "hash_0": b"x", "hash_1": b"y"}
        plans = [run(f"EXPLAIN QUERY PLAN {text}", values).fetchall() for text in texts]
    steps = [row[3] for plan in plans for row in plan if "SUBQUERY" not in row[3]]
    assert len(steps) == 3
    assert all(step.startswith("SEARCH") and step.count("=?") for step in steps)
    assert not any(step.endswith("(space_id=?)") for step in steps)
