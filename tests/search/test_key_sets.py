"""Cached sets of keys: selections, moments and groups, and how they follow the changes."""

from __future__ import annotations

import json
import random
import shutil
import tempfile
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from kronos import F, MemoryStore
from kronos.repository.memories import Repository
from kronos.search import key_sets
from kronos.search.candidates import group_path
from kronos.search.key_sets import KeySet, KeySets, NotAtHand
from kronos.search.matching import Grouped, Known, Matching
from kronos.search.selection import EVERY_MEMORY, Selection
from kronos.settings import Settings
from kronos.validation import to_microseconds
from tests.conftest import Clock, Opener
from tests.search.oracle import matches


def at_hand(store: MemoryStore, sets: KeySets, asked: Any, **options: Any) -> KeySet:
    with store._session.reader() as repository:
        found: KeySet = sets.at_hand(repository, repository.head().seq, asked, **options)
        return found


def learnt(store: MemoryStore, sets: KeySets, asked: Any) -> KeySet:
    with store._session.reader() as repository:
        found: KeySet = sets.learn(repository, asked)
        return found


def test_the_cache_keeps_the_sets_used_last(
    open_store: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_sets, "_MOST_KEYS", 30)
    store, sets = open_store(), KeySets()
    store.add_many([{"content": f"text {n}", "metadata": {"n": n}} for n in range(20)])
    for round_ in range(3):
        for below in (12, 15, 19, 12):
            asked = Matching(Selection.of(None, F.n < below))
            found = learnt(store, sets, asked).keys
            assert found is not None
            with store._session.reader() as repository:
                np.testing.assert_array_equal(found, repository.keys(None, asked.selection))
            assert not found.flags.writeable
            assert at_hand(store, sets, asked).keys is found
        assert len(sets._sets) <= 2
        store.add("another", metadata={"n": round_})


def test_a_write_that_does_not_match_leaves_the_set_unchanged(open_store: Opener) -> None:
    store, sets = open_store(), KeySets()
    ids = store.add_many([{"content": f"text {n}", "metadata": {"n": n}} for n in range(20)])
    asked = Matching(Selection.of(None, F.n < 10))

    before: Any = learnt(store, sets, asked).keys
    store.add("another", metadata={"n": 50})
    assert at_hand(store, sets, asked).keys is before
    store.delete(ids[15])
    assert at_hand(store, sets, asked).keys is before
    store.update(ids[4], importance=0.9)  # it still matches
    assert at_hand(store, sets, asked).keys is before
    store.update(ids[3], metadata={"n": 60})
    store.add("one more", metadata={"n": 1})
    after: Any = at_hand(store, sets, asked).keys
    assert before is not None
    assert set(before.tolist()) ^ set(after.tolist()) == {before[3], after[-1]}
    assert (np.diff(after) > 0).all()


def test_a_set_is_not_searched_for_while_others_wait(
    open_store: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_sets, "_FEW", 5)
    store, sets = open_store(), KeySets()
    store.add_many([{"content": f"text {n}", "metadata": {"n": n}} for n in range(20)])
    asked = Matching(Selection.of(None, F.n < 10))
    with pytest.raises(NotAtHand):
        at_hand(store, sets, asked)
    learnt(store, sets, asked)
    store.add_many([{"content": f"few {n}", "metadata": {"n": n}} for n in range(4)])
    assert at_hand(store, sets, asked).count == 14
    store.add_many([{"content": f"many {n}", "metadata": {"n": n}} for n in range(10)])
    with pytest.raises(NotAtHand):
        at_hand(store, sets, asked)
    held = learnt(store, sets, asked)
    assert held.count == 24
    # A set learnt for a call is followed through any number of changes, even after eviction.
    store.add_many([{"content": f"more {n}", "metadata": {"n": n}} for n in range(10)])
    sets.forget(asked)
    assert at_hand(store, sets, asked, held=held).count == 34


def test_an_older_transaction_does_not_use_a_newer_set(open_store: Opener) -> None:
    store, sets = open_store(), KeySets()
    store.add("one", metadata={"n": 1})
    asked = Matching(Selection.of(None, F.n < 10))
    learnt(store, sets, asked)
    with store._session.reader() as before:
        head = before.head().seq
        store.add("two", metadata={"n": 2})
        assert at_hand(store, sets, asked).count == 2
        with pytest.raises(NotAtHand):
            sets.at_hand(before, head, asked)
        assert sets.learn(before, asked).count == 1
    assert at_hand(store, sets, asked).count == 2


def test_threads_with_the_same_question_find_the_answer_once(
    open_store: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store()
    store.add_many([{"content": f"bees {n}", "metadata": {"n": n}} for n in range(50)])
    asked: list[object] = []
    begun = threading.Event()
    find = Matching.find

    def slow(self: Matching, repository: Repository, sets: KeySets) -> KeySet:
        if self.selection.filter is not None:
            asked.append(self.name)
            begun.wait(0.3)
        return find(self, repository, sets)

    monkeypatch.setattr(Matching, "find", slow)
    threads = [
        threading.Thread(target=lambda: store.search("bees", where={"n": {"$lt": 7}}))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    begun.set()
    for thread in threads:
        thread.join()
    assert len(asked) == 1
    assert len(store.search("bees", where={"n": {"$lt": 7}})) == 7


# -- Any sequence of operations -----------------------------------------------------------------

VALUES = st.sampled_from(
    [
        None,
        1,
        1.0,
        True,
        "1",
        "",
        "ä\\\"'",
        [1],
        [1.0],
        {"a": 1, "b": [2]},
        {"b": [2], "a": 1},
        -1.5,
    ]
)
NAMESPACES = st.sampled_from(["default", "default/a", "default0", "other", "other/b"])
IDS = st.sampled_from([f"m{number}" for number in range(10)])
SELECTIONS = [
    Selection.of(scope, where)
    for scope in (None, "default", "other")
    for where in (None, F.n >= 2, ~F.g.exists())
]
PATHS = [group_path("g"), group_path("g.a"), group_path("namespace"), group_path("parent_id")]


def group_of(memory: Any, path: tuple[str, ...]) -> Any:
    """The group of a memory, in plain Python; None if it has none."""
    if not path[0]:
        return getattr(memory, path[1])
    value: Any = memory.metadata
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return None if value is None else json.dumps(value, sort_keys=True)


class KeySetMachine(RuleBasedStateMachine):
    """Compares sets that follow a store with its memories, read one by one."""

    @initialize()
    def open(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.clock = Clock()
        options: dict[str, Any] = {
            "embedding_model": "hash",
            "embedding_dim": 8,
            "clock": self.clock,
            "settings": Settings(durability="normal"),
        }
        self.store = MemoryStore.open(self.folder, **options)
        self.other = MemoryStore.open(self.folder, **options)
        self.sets = KeySets()
        self.then: list[tuple[Any, dict[str, Any]]] = []
        self.forgotten: list[Any] = []

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()
            self.other.close()
            shutil.rmtree(self.folder)

    def live(self) -> dict[str, Any]:
        return {memory.id: memory for memory in self.store.iterate(namespace="*")}

    @rule(id=IDS, namespace=NAMESPACES, value=VALUES, n=st.integers(0, 4), parent=IDS)
    def put(self, id: str, namespace: str, value: Any, n: int, parent: str) -> None:
        self.other.add(
            f"text {n}",
            id=id,
            namespace=namespace,
            metadata={"n": n} if value is None else {"n": n, "g": value},
            importance=n / 4,
            parent_id=parent if n % 2 else None,
            on_conflict="replace",
        )

    @precondition(lambda self: self.live())
    @rule(data=st.data(), seconds=st.integers(1, 9))
    def let_expire(self, data: st.DataObject, seconds: int) -> None:
        id = data.draw(st.sampled_from(sorted(self.live())))
        self.store.update(id, expires_at=self.clock.now + timedelta(seconds=seconds))

    @rule(chosen=st.lists(IDS, max_size=3))
    def delete(self, chosen: list[str]) -> None:
        self.store.delete(chosen)

    @rule(seconds=st.integers(1, 5))
    def wait(self, seconds: int) -> None:
        self.then.append((self.clock.now, self.live()))
        self.clock.tick(seconds)

    @rule(forgets=st.booleans())
    def compact(self, forgets: bool) -> None:
        """After `forget_before` no call can see the forgotten versions."""
        self.other.maintenance.compact(forget_before=self.clock.now if forgets else None)
        self.forgotten = [moment for moment, _ in self.then[-2:]]
        self.then.clear()

    @rule()
    def restore(self) -> None:
        kept_aside = self.other.maintenance.backup(self.folder / f"{random.random()}.bak")
        self.other.add("lost again", id="m0", on_conflict="replace")
        self.sets_agree()
        MemoryStore(self.folder).maintenance.restore(kept_aside)

    @invariant()
    def sets_agree(self) -> None:
        if not hasattr(self, "store"):
            return
        live = self.live()
        for selection in SELECTIONS:
            expected = {id for id, memory in live.items() if meant(selection, memory)}
            found = self.both(Matching(selection, listed=True))
            assert self.ids(found) == expected
            whole = self.both(Matching(selection))
            assert whole.keys is None or self.ids(whole) == expected
            assert self.store.count(**asked_of(selection)) == len(expected)
        for path in PATHS:
            found = self.both(Grouped(SELECTIONS[1], None, path))
            assert found.table is not None
            assert found.groups is not None
            names: dict[Any, set[int]] = {}
            members = [memory for memory in live.values() if meant(SELECTIONS[1], memory)]
            groups = dict(zip(self.ids_of(found), found.table.beside[:, 0].tolist(), strict=True))
            for memory in members:
                names.setdefault(group_of(memory, path), set()).add(groups[memory.id])
            assert names.pop(None, {-1}) == {-1}
            assert all(len(numbers) == 1 for numbers in names.values())
            assert len({number for numbers in names.values() for number in numbers}) == len(names)

    @invariant()
    def the_past_stays(self) -> None:
        if not hasattr(self, "store"):
            return
        for moment in self.forgotten:
            self.both(Known(SELECTIONS[0], to_microseconds(moment)))
        for moment, state in self.then[-2:]:
            for selection in SELECTIONS[1::3]:
                found = self.both(Known(selection, to_microseconds(moment)))
                assert found.table is not None
                expected = {memory.id for memory in state.values() if meant(selection, memory)}
                assert set(self.ids_of(found, moment)) == expected
                assert len(found.table.keys) == len(expected)
            listed = self.store.list(as_of=moment, namespace="*", limit=3)
            rest = listed and self.store.list(
                as_of=moment, namespace="*", after=listed[-1].id, limit=50
            )
            everything = [*listed, *rest]
            assert {memory.id: memory for memory in everything} == state
            assert len(everything) == len(state)

    def both(self, asked: Any) -> KeySet:
        """Check that a followed set equals one that is found from the start."""
        with self.store._session.reader() as repository:
            head = repository.head().seq
            try:
                followed: KeySet = self.sets.at_hand(repository, head, asked, exact=True)
            except NotAtHand:
                followed = self.sets.learn(repository, asked)
            anew: KeySet = KeySets().learn(repository, asked)
        assert followed.table is not None or anew.table is None
        if followed.table is not None and anew.table is not None:
            np.testing.assert_array_equal(followed.table.keys, anew.table.keys)
            if not isinstance(asked, Grouped):
                np.testing.assert_array_equal(followed.table.beside, anew.table.beside)
        return followed

    def ids(self, found: KeySet) -> set[str]:
        return set(self.ids_of(found))

    def ids_of(self, found: KeySet, moment: Any = None) -> Iterator[str]:
        assert found.keys is not None
        with self.store._session.reader_of(moment) as rows:
            memories = rows.by_keys(found.keys)
        assert len(memories) == found.count
        return iter([memories[key].id for key in found.keys.tolist()])


def meant(selection: Selection, memory: Any) -> bool:
    scope = selection.scope
    inside = scope is None or f"{memory.namespace}/".startswith(f"{scope}/")
    return inside and (selection.filter is None or matches(selection.filter, memory))


def asked_of(selection: Selection) -> dict[str, Any]:
    return {"namespace": selection.scope or "*", "where": selection.filter}


TestKeySets = KeySetMachine.TestCase
TestKeySets.settings = settings(
    max_examples=15,
    stateful_step_count=20,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def test_the_keys_of_every_memory_are_listed_on_request(open_store: Opener) -> None:
    store, sets = open_store(), KeySets()
    store.add_many(["one", "two"])
    assert learnt(store, sets, Matching(EVERY_MEMORY)).keys is None
    assert learnt(store, sets, Matching(EVERY_MEMORY, listed=True)).count == 2
    assert learnt(store, sets, Matching(Selection("default", None))).keys is None
    store.add("three", namespace="elsewhere")
    with pytest.raises(NotAtHand):  # the namespace is no longer the whole store
        at_hand(store, sets, Matching(Selection("default", None)))
    assert learnt(store, sets, Matching(Selection("default", None))).count == 2


def test_forgotten_versions_are_missing_from_cached_moments(
    open_store: Opener, clock: Clock
) -> None:
    store, other = open_store(), open_store()
    id = store.add("what it was")
    kept_one = store.add("what it is")
    then = clock.now
    clock.tick(1)
    store.update(id, content="what it became")
    assert store.count(as_of=then) == 2
    assert len(store.search("what", as_of=then)) == 2
    clock.tick(1)
    other.maintenance.compact(forget_before=clock.now)
    assert store.count(as_of=then) == 1
    assert [memory.id for memory in store.list(as_of=then)] == [kept_one]
    assert [hit.id for hit in store.search("what", as_of=then)] == [kept_one]
