"""Linked memories, memories near another one, and several queries at once."""

from __future__ import annotations

import itertools
from datetime import timedelta
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kronos import F, MemoryStore, NewMemory, Ranking
from kronos.errors import InputError, NoEmbedderError, NotFoundError
from kronos.search.filters import parse
from tests.conftest import Clock, Opener
from tests.search.oracle import matches

# -- Linked memories ------------------------------------------------------------------------------


def test_linked_memories_stay_within_the_namespace_and_the_filter(store: MemoryStore) -> None:
    one = store.add("the budget of a", namespace="tenant/a", metadata={"public": True})
    secret = store.add("a secret", namespace="tenant/a", metadata={"public": False})
    other = store.add("of another tenant", namespace="tenant/b", metadata={"public": True})
    near = store.add("and the plan", namespace="tenant/a/sub", metadata={"public": True})
    for number, target in enumerate([secret, other, near]):
        store.link(one, target, "mentions", 1 - number / 10)
    asked: dict[str, Any] = {
        "query": "budget",
        "mode": "lexical",
        "namespace": "tenant/a",
        "where": {"public": True},
        "expand": 1,
    }
    assert [hit.id for hit in store.search(**asked)] == [one, near]
    (many,) = store.search_many([asked.pop("query")], **asked)
    assert [hit.id for hit in many] == [one, near]
    asked["query"] = "budget"
    outside = store.search(**asked, expand_outside=True)
    assert [hit.id for hit in outside] == [one, secret, other, near]
    # A memory outside the filter is not a hit, but links lead through it.
    far = store.add("far away", namespace="tenant/a", metadata={"public": True})
    store.link(secret, far, "knows")
    asked["expand"] = 2
    assert {hit.id for hit in store.search(**asked)} == {one, near, far}
    for wrong in ("yes", 1, None):
        with pytest.raises(InputError, match="expand_outside"):
            store.search(**{**asked, "expand_outside": wrong})


def test_a_linked_memory_scores_below_its_hit_even_below_zero(open_store: Opener) -> None:
    store = open_store(embedding_model=None, embedding_dim=4)
    vectors = {"far": [-1, 0.1, 0, 0.0], "side": [0, 1, 0, 0.0], "near": [1, 0.1, 0, 0.0]}
    store.add_many(NewMemory(name, id=name, embedding=row) for name, row in vectors.items())
    store.add_many(
        NewMemory(f"linked {name}", id=f"to {name}", embedding=[0, 0, 0, 1.0], namespace="else")
        for name in vectors
    )
    for name in vectors:
        store.link(name, f"to {name}", "says")
    hits = store.search([1, 0, 0, 0.0], expand=1, expand_outside=True)
    own = {hit.id: hit.score for hit in hits if hit.via is None}
    linked = {hit.via: hit.score for hit in hits if hit.via is not None}
    assert own.keys() == linked.keys() == vectors.keys()
    assert own["far"] < 0
    assert all(linked[name] < own[name] for name in vectors)
    # `min_score` also applies to linked memories.
    floor = linked["near"]
    cut = store.search([1, 0, 0, 0.0], expand=1, min_score=floor, namespace="*")
    assert {hit.id for hit in cut} == {"near", "to near"}


def test_allowed_linked_memories_are_found_among_many_others(store: MemoryStore) -> None:
    hit = store.add("bees")
    ids = store.add_many(
        [NewMemory(f"linked {number}", namespace="elsewhere") for number in range(1100)]
    )
    last = store.add("the one that may be found")
    for id in ids:
        store.link(hit, id, "says", 1.0)
    store.link(hit, last, "says", 0.1)
    hits = store.search("bees", mode="lexical", expand=1, limit=5)
    assert [each.id for each in hits] == [hit, last]


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_linked_memories_always_meet_the_selection(
    open_store: Opener, clock: Clock, data: st.DataObject
) -> None:
    store = open_store()
    store.delete(namespace="*")
    ids = [f"m{number}" for number in range(10)]
    spaces = data.draw(st.lists(st.sampled_from(["a", "a/b", "c"]), min_size=10, max_size=10))
    store.add_many(
        NewMemory(
            "bees" if number < 4 else "other",
            id=id,
            namespace=spaces[number],
            metadata={"n": number % 3},
            parent_id=data.draw(st.sampled_from([None, *ids])),
        )
        for number, id in enumerate(ids)
    )
    then = clock.now
    clock.tick(1)
    for _ in range(data.draw(st.integers(0, 12))):
        source, target = data.draw(st.lists(st.sampled_from(ids), min_size=2, max_size=2))
        if source != target:
            store.link(source, target, "says", data.draw(st.floats(0, 1)))
    store.update("m5", metadata={"n": 7})
    where = data.draw(st.sampled_from([None, F.n >= 1, F.n == 7]))
    namespace = data.draw(st.sampled_from(["*", "a", "c"]))
    as_of = data.draw(st.sampled_from([None, then]))
    options: dict[str, Any] = {
        "namespace": namespace,
        "where": where,
        "as_of": as_of,
        "expand": data.draw(st.integers(1, 3)),
        "mode": "lexical",
    }
    hits = store.search("bees", limit=10, **options)
    scores = {hit.id: hit.score for hit in hits}
    for hit in hits:
        inside = namespace == "*" or f"{hit.memory.namespace}/".startswith(f"{namespace}/")
        assert inside
        assert matches(parse(where), hit.memory)
        assert hit.via is None or hit.score < scores[hit.via]
    outside = store.search("bees", limit=10, **options, expand_outside=True)
    assert [hit.id for hit in outside if hit.via is None] == [
        hit.id for hit in hits if hit.via is None
    ]
    assert {hit.id for hit in hits} <= {hit.id for hit in outside}


# -- Near a memory ---------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["hybrid", "dense", "lexical"])
def test_near_at_a_moment_uses_the_text_of_that_moment(
    store: MemoryStore, clock: Clock, mode: Any
) -> None:
    id = store.add("cats and kittens purr")
    kittens = store.add("kittens and cats sleep")
    stocks = store.add("stocks and bonds fall")
    then = clock.now
    clock.tick(1)
    store.update(id, content="stocks and bonds rise")
    assert store.search(near=id, mode=mode, limit=1)[0].id == stocks
    assert store.search(near=id, mode=mode, limit=1, as_of=then)[0].id == kittens
    assert id not in {hit.id for hit in store.search(near=id, mode=mode, as_of=then)}
    store.delete(id)
    with pytest.raises(NotFoundError):
        store.search(near=id, mode=mode)
    assert store.search(near=id, mode=mode, limit=1, as_of=then)[0].id == kittens
    with pytest.raises(NotFoundError, match="2025"):
        store.search(near=id, as_of=then - timedelta(days=300))


def test_near_at_a_moment_embeds_a_text_without_a_vector(open_store: Opener, clock: Clock) -> None:
    store = open_store(embedding_dim=32)
    id = store.add("cats and kittens purr")
    kittens = store.add("kittens and cats sleep")
    store.add("stocks and bonds fall")
    then = clock.now
    clock.tick(1)
    store.update(id, content="stocks and bonds rise")
    store.close()
    changed = open_store(embedding_dim=64)
    assert changed.search(near=id, limit=1, as_of=then)[0].id == kittens


def test_near_without_an_embedder_uses_stored_vectors(open_store: Opener, clock: Clock) -> None:
    store = open_store(embedding_model=None, embedding_dim=4)
    store.add_many(
        NewMemory(f"text {n}", id=f"m{n}", embedding=row) for n, row in enumerate(np.eye(4) + 0.1)
    )
    then = clock.now
    clock.tick(1)
    new = NewMemory("another", id="m0", embedding=[0.1, 1, 0, 0.0])
    store.add_many([new], on_conflict="replace")
    assert store.search(near="m0", limit=1)[0].id == "m1"
    scores = [hit.score for hit in store.search(near="m0", as_of=then)]
    assert scores == pytest.approx([scores[0]] * 3)
    with store._session.writer() as repository:
        entry = repository.entry("m1")
        assert entry is not None
        repository.vectors.make_pending(store._session.serving.space, np.array([entry.key]))
    with pytest.raises(NoEmbedderError, match="'m1' has no vector"):
        store.search(near="m1")
    assert store.search(near="m1", mode="lexical")


# -- Several queries, and none ---------------------------------------------------------------------


def test_hits_of_different_queries_share_no_memory_object(store: MemoryStore) -> None:
    store.add_many(
        {"content": f"bees {n}", "metadata": {"n": [n], "deep": {"er": {"x": n}}}}
        for n in range(30)
    )
    modes: list[Any] = ["dense", "hybrid", "lexical"]
    for mode in modes:
        answers = store.search_many(["bees 1", "bees 2", "bees 1"], mode=mode, limit=20)
        hits = [*itertools.chain(*answers)]
        assert len({id(hit.memory) for hit in hits}) == len(hits)
        for hit in hits:
            assert len(hit.memory.metadata["n"]) == 1
            hit.memory.metadata["n"].append("changed")
            hit.memory.metadata["deep"]["er"]["x"] = "changed"
        assert store.search("bees 1", mode=mode)[0].memory.metadata["n"] != ["changed"]


@pytest.mark.parametrize("options", [{}, {"query": None}, {"query": None, "mode": "lexical"}])
def test_a_search_without_a_query_says_what_it_takes(
    store: MemoryStore, options: dict[str, Any]
) -> None:
    store.add("bees")
    with pytest.raises(InputError, match=r"takes a query.*or near=") as caught:
        store.search(**options)
    assert caught.value.field == "query"
    with pytest.raises(InputError, match="takes a query"):
        store.search_many(["bees", None])  # type: ignore[list-item]


def test_diversity_without_an_embedder_uses_the_vectors_of_the_index(open_store: Opener) -> None:
    store = open_store(embedding_model=None, embedding_dim=4)
    rows = [[1, 0, 0, 0.0], [1, 0.01, 0, 0.0], [0.5, 1, 0, 0.0]]
    store.add_many(NewMemory(f"bees {n}", id=f"m{n}", embedding=row) for n, row in enumerate(rows))
    hits = store.search("bees", mode="lexical", ranking=Ranking(diversity=0.9), limit=2)
    assert {hit.id for hit in hits} == {"m0", "m2"}
