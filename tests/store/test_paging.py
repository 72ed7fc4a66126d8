"""Pages of a list: each memory once, whatever is deleted, comes back or expires meanwhile."""

from __future__ import annotations

from datetime import timedelta
from itertools import chain
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kronos import F, MemoryStore, NewMemory
from kronos.errors import NotFoundError
from tests.conftest import Clock, Opener


def pages(store: MemoryStore, size: int, **options: Any) -> list[list[str]]:
    """The ids of all pages."""
    found: list[list[str]] = []
    after = None
    while page := store.list(limit=size, after=after, **options):
        found.append([memory.id for memory in page])
        after = page[-1].id
    return found


def test_a_page_of_the_past_goes_on_behind_an_id_that_came_back(
    store: MemoryStore, clock: Clock
) -> None:
    store.add_many([NewMemory(f"t{number}", id=f"m{number}") for number in range(4)])
    then = clock.now
    clock.tick(1)
    store.delete("m1")
    store.add("anew", id="m1")
    assert [memory.id for memory in store.list(as_of=then, after="m1")] == ["m2", "m3"]
    assert pages(store, 2, as_of=then) == [["m0", "m1"], ["m2", "m3"]]
    # What was not there then has its place all the same.
    late = store.add("later")
    assert store.list(as_of=then, after=late) == []


def test_a_page_goes_on_behind_an_id_that_came_back_meanwhile(store: MemoryStore) -> None:
    store.add_many([NewMemory(f"t{number}", id=f"m{number}") for number in range(4)])
    assert [memory.id for memory in store.list(limit=2)] == ["m0", "m1"]
    store.delete("m1")
    store.add("anew", id="m1")
    assert [memory.id for memory in store.list(limit=2, after="m1")] == ["m2", "m3"]
    assert [memory.id for memory in store.list(limit=2, after="m3")] == ["m1"]
    assert store.list(limit=2, after="m1") == []
    store.delete("m3")
    store.maintenance.compact()  # and forgets that there was one
    assert [memory.id for memory in store.list(after="m3")] == ["m1"]
    with pytest.raises(NotFoundError, match="nobody"):
        store.list(after="nobody")


def test_an_id_is_there_once_though_the_clock_was_put_back(
    store: MemoryStore, clock: Clock
) -> None:
    store.add("first", id="a")
    store.add("another", id="b")
    clock.tick(100)
    store.delete("a")
    clock.tick(-50)
    store.add("second", id="a")
    between = clock.now + timedelta(seconds=10)
    for listed in (store.list(as_of=between), [*store.iterate(as_of=between)]):
        assert sorted(memory.id for memory in listed) == ["a", "b"]
        assert {memory.content for memory in listed} == {"another", "second"}
    assert store.count(as_of=between) == 2
    assert store.get("a", as_of=between).content == "second"
    assert [hit.id for hit in store.search("second", as_of=between, mode="lexical")] == ["a"]
    store.delete("a")
    store.add("third", id="a")
    assert store.count(as_of=between) == 2


@pytest.mark.parametrize("where", [None, F.n >= 0])
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_who_lives_throughout_is_listed_once_and_the_list_ends(
    open_store: Opener, clock: Clock, where: Any, data: st.DataObject
) -> None:
    store = open_store()
    store.delete(namespace="*")
    ids = [f"m{number}" for number in range(12)]
    space = data.draw(st.sampled_from(["default", "default/a"]))
    store.add_many(
        NewMemory(id, id=id, namespace=space, metadata={"n": number})
        for number, id in enumerate(ids)
    )
    store.add_many([NewMemory("x", namespace="other", metadata={"n": 1}) for _ in range(5)])
    throughout = set(ids)
    size = data.draw(st.integers(1, 5))
    seen: list[str] = []
    after = None
    for _ in range(60):
        page = store.list(limit=size, after=after, where=where)
        if not page:
            break
        seen += [memory.id for memory in page]
        after = page[-1].id
        for _ in range(data.draw(st.integers(0, 2))):
            # The end of the page more often than others.
            id = data.draw(st.sampled_from([after, *ids]))
            store.delete(id)
            throughout.discard(id)
            if data.draw(st.booleans()):
                store.add(id, id=id, namespace=space, metadata={"n": 1})
    else:
        pytest.fail("it does not end")
    assert all(seen.count(id) == 1 for id in throughout)


def test_a_page_is_full_though_a_scope_is_rare_or_most_have_expired(
    store: MemoryStore, clock: Clock
) -> None:
    soon = clock.now + timedelta(seconds=1)
    store.add_many(
        NewMemory(
            f"t{number}",
            id=f"m{number}",
            namespace=["default", "other", "rare/a", "rare/b"][
                0 if number < 1500 else 1 if number % 100 else 2 + number % 200 // 100
            ],
            metadata={"last": number == 2999},
            expires_at=soon if number < 1400 else None,
        )
        for number in range(3000)
    )
    clock.tick(2)
    rare = [f"m{number}" for number in range(1500, 3000, 100)]
    assert [*chain(*pages(store, 4, namespace="rare"))] == rare
    assert [*chain(*pages(store, 100, namespace="default"))] == [f"m{n}" for n in range(1400, 1500)]
    assert pages(store, 4, namespace="*", where=F.last == True) == [["m2999"]]  # noqa: E712
    assert [memory.id for memory in store.iterate(namespace="rare")] == rare
    assert store.count(namespace="rare") == len(rare)
    assert store.count(namespace="*") == 1600
