"""What the store knew at any moment of a long life, against a plain dict that is replayed."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kronos import F, Memory, MemoryStore
from kronos.embedding.hashing import HashEmbedder
from kronos.errors import InputError, NotFoundError
from kronos.settings import Settings
from tests.conftest import Clock, Opener

WORDS = ["cat", "train", "bread", "glacier", "violin", "harbour", "quantum", "spring"]


@dataclass
class Life:
    """A store, and what it held after each write."""

    store: MemoryStore
    clock: Clock
    random: random.Random

    def __post_init__(self) -> None:
        self.now: dict[str, Memory] = {}
        self.then: list[tuple[datetime, dict[str, Memory]]] = []

    def text(self) -> str:
        return " ".join(self.random.choices(WORDS, k=self.random.randint(1, 5)))

    def write(self) -> None:
        """One write; the clock moves on before it, sometimes not at all."""
        self.clock.tick(self.random.choice([0, 0.000001, 1, 60]))
        live = [id for id, memory in self.now.items() if self.lives(memory, self.clock.now)]
        action = self.random.choice(["add", "add", "text", "fields", "delete", "replace", "expire"])
        if action == "add" or not live:
            id = f"m{self.random.randrange(60)}"
            if id in live:
                return
            self.store.add(self.text(), id=id, metadata={"n": self.random.randrange(5)})
        else:
            id = self.random.choice(live)
            if action == "text":
                self.store.update(id, content=self.text())
            elif action == "fields":
                self.store.update(id, metadata={"n": self.random.randrange(5)}, importance=0.7)
            elif action == "replace":
                self.store.add(self.text(), id=id, on_conflict="replace")
            elif action == "expire":
                self.store.update(id, expires_at=self.clock.now + timedelta(seconds=90))
            else:
                self.store.delete(id)
        found = self.store.find(id)
        self.now = {**self.now}
        self.now.pop(id, None)
        if found is not None:
            self.now[id] = found
        if self.then and self.then[-1][0] == self.clock.now:
            self.then.pop()  # of one moment the last state counts
        self.then.append((self.clock.now, self.now))

    def lives(self, memory: Memory, at: datetime) -> bool:
        return memory.expires_at is None or memory.expires_at > at

    def state(self, at: datetime) -> dict[str, Memory]:
        past = [state for moment, state in self.then if moment <= at]
        found = past[-1] if past else {}
        return {id: memory for id, memory in found.items() if self.lives(memory, at)}


def by_id(memories: Any) -> dict[str, Memory]:
    return {memory.id: memory for memory in memories}


def check(life: Life, store: MemoryStore, at: datetime) -> None:
    """Whatever is asked of a moment, the dict of that moment answers the same."""
    expected = life.state(at)
    assert by_id(store.iterate(as_of=at)) == expected
    assert by_id(store.list(as_of=at, limit=1000)) == expected
    assert store.count(as_of=at) == len(expected)
    for id in ("m0", "m7"):
        assert store.find(id, as_of=at) == expected.get(id)
    some = {id: memory for id, memory in expected.items() if memory.metadata.get("n", 0) >= 3}
    assert store.count(as_of=at, where=F.n >= 3) == len(some)

    query = life.text()
    dense = store.search(query, mode="dense", as_of=at, limit=1000)
    assert by_id(hit.memory for hit in dense) == expected
    embedder = HashEmbedder(64)
    (asked,) = embedder.embed_queries([query])
    scores = {
        memory.id: float(row @ asked)
        for memory, row in zip(
            expected.values(),
            embedder.embed_documents([memory.content for memory in expected.values()]),
            strict=True,
        )
    }
    assert {hit.id: hit.score for hit in dense} == pytest.approx(scores, abs=1e-5)
    lexical = store.search(query, mode="lexical", as_of=at, limit=1000)
    wanted = set(query.split())
    assert {hit.id for hit in lexical} == {
        memory.id for memory in expected.values() if wanted & set(memory.content.split())
    }
    hybrid = store.search(query, as_of=at, limit=1000, where=F.n >= 3)
    assert by_id(hit.memory for hit in hybrid) == some
    (few,) = store.search_many([query], mode="dense", as_of=at, limit=3)
    assert [hit.id for hit in few] == [hit.id for hit in dense[:3]]


def test_the_past_of_a_thousand_writes_is_what_was_there(open_store: Opener, clock: Clock) -> None:
    life = Life(open_store(settings=Settings(durability="normal")), clock, random.Random(0))
    begun = clock.now
    for _ in range(1000):
        life.write()
    assert len(life.then) > 500
    moments = [moment for moment, _ in life.random.sample(life.then, 20)]
    moments += [moment + timedelta(microseconds=1) for moment in moments[:5]]
    reopened = open_store()
    for at in [begun - timedelta(days=1), *moments, clock.now, clock.now + timedelta(days=1)]:
        check(life, reopened, at)
    for id in {id for _, state in life.then for id in state}:
        versions = reopened.history(id)
        starts = [version.recorded_at for version in versions]
        assert starts == sorted(starts)
        ends = [version.replaced_at for version in versions[:-1]]
        assert None not in ends
        current = reopened.find(id)
        if current is not None:
            assert versions[-1].memory == current
            assert versions[-1].replaced_at is None


def test_a_changed_model_searches_the_past_as_well(open_store: Opener, clock: Clock) -> None:
    store = open_store(embedding_dim=32)
    id = store.add("a glacier in spring")
    before = clock.now
    clock.tick(60)
    store.update(id, content="a violin in the harbour")
    gone = store.add("quantum bread")
    between = clock.now
    clock.tick(60)
    store.delete(gone)
    store.close()
    changed = open_store(embedding_dim=64)
    assert [h.content for h in changed.search("glacier", mode="dense", as_of=before)] == [
        "a glacier in spring"
    ]
    assert changed.search("glacier", mode="dense", as_of=before)[0].score == pytest.approx(
        float(np.vdot(*HashEmbedder(64).embed_documents(["glacier", "a glacier in spring"])))
    )
    hits = changed.search("quantum bread", as_of=between)
    assert [hit.content for hit in hits] == ["quantum bread", "a violin in the harbour"]
    # Its vectors were kept for the next time, and go with the space.
    with changed._session.reader() as repository:
        from sqlalchemy import func, select

        from kronos.db.tables import past_vectors

        kept = select(func.count()).select_from(past_vectors)
        assert repository._connection.execute(kept).scalar_one() >= 2


def test_a_store_of_vectors_handed_in_has_its_past(open_store: Opener, clock: Clock) -> None:
    from kronos import NewMemory

    store = open_store(embedding_model=None, embedding_dim=4)
    store.add_many([NewMemory("one", id="a", embedding=[1, 0, 0, 0.0])])
    before = clock.now
    clock.tick(1)
    store.add_many([NewMemory("two", id="a", embedding=[0, 1, 0, 0.0])], on_conflict="replace")
    (hit,) = store.search([1, 0, 0, 0.0], as_of=before)
    assert hit.content == "one"
    assert hit.score == pytest.approx(1)
    (hit,) = store.search([1, 0, 0, 0.0])
    assert hit.content == "two"
    assert hit.score == pytest.approx(0)


def test_a_memory_has_one_state_at_a_time_even_when_the_clock_is_put_back(
    store: MemoryStore, clock: Clock
) -> None:
    store.add("first", id="a")
    clock.tick(3600)
    store.update("a", content="second")
    clock.tick(-1800)
    store.update("a", content="third")
    versions = store.history("a")
    assert [version.memory.content for version in versions] == ["first", "second", "third"]
    for earlier, later in itertools.pairwise(versions):
        assert earlier.replaced_at == later.recorded_at
    assert store.get("a").content == "third"
    assert store.get("a", as_of=clock.now).content == "first"


def test_a_deleted_memory_is_remembered_until_compact(
    store: MemoryStore, clock: Clock, tmp_path: Path
) -> None:
    gone = store.add("the glowworm is a beetle", metadata={"secret": "xylophone"})
    kept = store.add("an older truth")
    before = clock.now
    clock.tick(1)
    store.update(kept, content="a newer truth")
    store.delete(gone)
    assert store.get(gone, as_of=before).content == "the glowworm is a beetle"
    assert store.search("glowworm", as_of=before)[0].id == gone
    assert len(store.history(gone)) == 1
    with pytest.raises(NotFoundError):
        store.get(gone)
    store.maintenance.compact()
    assert store.find(gone, as_of=before) is None
    assert store.search("glowworm", as_of=before, mode="lexical") == []
    with pytest.raises(NotFoundError):
        store.history(gone)
    # What a living memory was is no leftover.
    assert store.get(kept, as_of=before).content == "an older truth"
    store.close()
    data = b"".join(path.read_bytes() for path in (tmp_path / "store").rglob("*") if path.is_file())
    for trace in (b"glowworm", b"glowwo", b"xylophone"):
        assert trace not in data
    assert b"older truth" in data


def test_without_history_nothing_is_kept(open_store: Opener, clock: Clock) -> None:
    store = open_store(settings=Settings(keep_history=False))
    id = store.add("first")
    before = clock.now
    clock.tick(1)
    store.update(id, content="second")
    assert [version.memory.content for version in store.history(id)] == ["second"]
    assert store.find(id, as_of=before) is None


def test_pages_go_on_behind_a_memory_that_is_gone(store: MemoryStore) -> None:
    ids = store.add_many([f"text {row}" for row in range(6)])
    first = store.list(limit=2)
    store.delete([memory.id for memory in first])
    store.add("one more")
    rest = store.list(after=first[-1].id, limit=10)
    assert [memory.id for memory in rest][:4] == ids[2:]
    assert len(rest) == 5
    with pytest.raises(NotFoundError):
        store.list(after="nobody")


def test_iterate_reads_everything_once_while_others_write(store: MemoryStore) -> None:
    ids = store.add_many([f"text {row}" for row in range(1200)])
    seen = []
    for position, memory in enumerate(store.iterate()):
        seen.append(memory.id)
        if position == 100:
            store.delete(ids[:50])
            store.update(ids[600], content="changed")
            store.add("new at the end", id="new")
    assert seen == [*ids, "new"]
    for wrong in ("2026-01-01", datetime(2026, 1, 1)):
        with pytest.raises(InputError, match="as_of"):
            store.iterate(as_of=wrong)  # type: ignore[arg-type]


def test_upsert_takes_the_place_of_an_id_or_of_a_text(store: MemoryStore, clock: Clock) -> None:
    id = store.upsert("bees", metadata={"n": 1})
    created = store.get(id).created_at
    clock.tick(5)
    assert store.upsert("bees", metadata={"n": 2}, importance=0.9) == id
    assert store.upsert("bees", namespace="elsewhere") != id
    assert store.upsert("wasps", id=id) == id
    memory = store.get(id)
    assert (memory.content, memory.metadata, memory.created_at) == ("wasps", {}, created)
    assert [version.memory.metadata for version in store.history(id)] == [{"n": 1}, {"n": 2}, {}]
    assert store.count(namespace="*") == 2
    other = store.upsert("bees")
    assert other != id
    assert store.upsert("wasps") == id
    assert store.upsert("hornets", id="named") == "named"
    assert store.maintenance.check().ok
