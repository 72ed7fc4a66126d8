"""The best hit of each group, compared with plain Python over all hits; also with expired ones."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kronos import F, MemoryStore, NewMemory, Ranking
from kronos.errors import FilterError
from tests.conftest import Clock, Opener

DIM = 8
WORDS = ["bees", "hive", "roof", "train", "bread", "river"]
VALUES: list[Any] = [
    None,
    0,
    1,
    1.0,
    True,
    False,
    "1",
    "",
    'ein "Wort" \\ ä',
    1e300,
    5e-324,
    2**62,
    [1, 2],
    [1.0, 2],
    {"a": 1, "b": [True, {"c": None}]},
    {"b": [True, {"c": None}], "a": 1},
    {"a": 1, "b": [True, {"c": 0}]},
    {},
    [],
]


def group_of(memory: Any, key: str) -> Any:
    """The group of a memory; None if it has none."""
    if key in ("namespace", "parent_id"):
        return getattr(memory, key)
    value: Any = memory.metadata
    for name in key.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return None if value is None else json.dumps(value, sort_keys=True)


def best_of_each(hits: Any, key: str, limit: int) -> list[tuple[str, float]]:
    seen: set[Any] = set()
    found = []
    for hit in hits:
        group = group_of(hit.memory, key)
        if group is None or group not in seen:
            seen.add(group)
            found.append((hit.id, hit.score))
    return found[:limit]


class Grouped:
    """A store in which most groups are large, and some are far from every query."""

    def __init__(self, store: MemoryStore, clock: Clock, seed: int, count: int, share: int) -> None:
        self.store = store
        self.draw = draw = np.random.default_rng(seed)
        self.count = count
        near = draw.normal(size=DIM)
        items = []
        for number in range(count):
            lone = number >= count - len(VALUES)
            # The vectors of small groups point the other way.
            vector = -near + 0.1 * draw.normal(size=DIM) if lone else near + draw.normal(size=DIM)
            value = VALUES[count - 1 - number] if lone else ["a", "b", 7][number % 3]
            metadata: dict[str, Any] = {"n": number, "deep": {"er": value}}
            if value is not None:
                metadata["g"] = value
            items.append(
                NewMemory(
                    " ".join(draw.choice(WORDS, 3)),
                    id=f"m{number}",
                    namespace=["default", "default/a", "other"][number % 3 if lone else 0],
                    metadata=metadata,
                    importance=float(draw.random()),
                    parent_id=f"m{number % 2}" if number % 4 else None,
                    expires_at=clock.now + timedelta(seconds=1) if number % share else None,
                    embedding=vector.astype(np.float32),
                )
            )
        store.add_many(items)
        self.query = near.tolist()
        clock.tick(2)


OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "where": st.sampled_from([F.n >= 100, F.g.exists(), ~(F.n < 700)]),
        "namespace": st.sampled_from(["*", "default", "default/a"]),
        "min_score": st.sampled_from([0.0, 0.4, -0.5]),
        "ranking": st.sampled_from([Ranking(importance=0.3), Ranking(recency=0.2, importance=0.1)]),
    },
)


@pytest.mark.parametrize("share", [1, 40])
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_grouped_hits_are_the_best_of_all_hits(
    grouped: dict[int, Grouped], share: int, data: st.DataObject
) -> None:
    held = grouped[share]
    key = data.draw(st.sampled_from(["g", "deep.er", "metadata.g", "namespace", "parent_id", "x"]))
    limit = data.draw(st.sampled_from([1, 2, 3, 5, 10, 30]))
    options: dict[str, Any] = {"namespace": "*", **data.draw(OPTIONS)}
    mode: Any = data.draw(st.sampled_from(["dense", "lexical", "near"]))
    if mode == "near":
        asked: dict[str, Any] = {"near": f"m{data.draw(st.sampled_from([0, 40, 80, 120]))}"}
    elif mode == "dense":
        asked = {"query": held.query}
    else:
        asked = {"query": data.draw(st.sampled_from(["bees", "hive train", "nothing"]))}
        asked["mode"] = "lexical"
    every = held.store.search(**asked, **options, limit=2 * held.count)
    hits = held.store.search(**asked, **options, limit=limit, group_by=key)
    wanted = best_of_each(every, key.removeprefix("metadata."), limit)
    assert [hit.score for hit in hits] == pytest.approx([score for _, score in wanted], abs=1e-6)
    if len({score for _, score in wanted}) == len(wanted):
        assert [hit.id for hit in hits] == [id for id, _ in wanted]


@pytest.fixture(scope="module")
def grouped(tmp_path_factory: pytest.TempPathFactory) -> Any:
    held = {}
    for share in (1, 40):
        clock = Clock()
        store = MemoryStore.open(
            tmp_path_factory.mktemp("grouped"),
            embedding_model=None,
            embedding_dim=DIM,
            clock=clock,
        )
        held[share] = Grouped(store, clock, share, 900, share)
    yield held
    for each in held.values():
        each.store.close()


@pytest.mark.parametrize("mode", ["hybrid", "dense", "lexical"])
def test_groups_follow_writes(open_store: Opener, mode: Any) -> None:
    store = open_store()
    store.add_many(
        {"content": f"bees {number}", "metadata": {"g": number % 3}} for number in range(600)
    )
    far = store.add("a far away train", metadata={"g": "far"})
    store.delete(far)

    def groups() -> list[Any]:
        hits = store.search("bees", group_by="g", limit=10, mode=mode)
        every = store.search("bees", limit=2000, mode=mode)
        if mode != "hybrid":  # with many equal scores, hybrid may choose any of them
            assert [(hit.id, hit.score) for hit in hits] == best_of_each(every, "g", 10)
        return sorted(json.dumps(hit.memory.metadata.get("g"), sort_keys=True) for hit in hits)

    assert groups() == ["0", "1", "2"]
    added = store.add("bees of a new group", metadata={"g": {"b": 1, "a": 2}})
    other = store.add("bees of the same", metadata={"g": {"a": 2, "b": 1}})
    assert groups() == ["0", "1", "2", '{"a": 2, "b": 1}']
    store.update(added, metadata={"g": 1})
    assert groups() == ["0", "1", "2", '{"a": 2, "b": 1}']
    store.delete(other)
    assert groups() == ["0", "1", "2"]


def test_few_groups_cost_no_more_than_a_plain_search(open_store: Opener) -> None:
    """With fewer groups than hits wanted, a search still reads only the rows of hits."""
    store = open_store(embedding_model=None, embedding_dim=DIM)
    draw = np.random.default_rng(0)
    store.add_many(
        NewMemory(
            f"bees {n}", metadata={"doc": n % 5}, embedding=draw.normal(size=DIM).astype(np.float32)
        )
        for n in range(3000)
    )
    query = draw.normal(size=DIM).tolist()
    store.search(query, group_by="doc", limit=10)
    hits = store.search(query, group_by="doc", limit=10, explain=True)
    assert len(hits) == 5
    assert hits.explanation is not None
    assert sum(step.count for step in hits.explanation.steps if step.name == "rows") == 5
    assert sum(step.count for step in hits.explanation.steps if step.name == "vectors") <= 100


@pytest.mark.parametrize("key", ["a[b", "content", "id", "", "a..b", 5, None, "a$", "importance"])
def test_a_malformed_group_key_is_refused_as_group_by(store: MemoryStore, key: Any) -> None:
    store.add("bees")
    if key is None:
        assert store.search("bees", group_by=None)
        return
    with pytest.raises(FilterError, match="group_by must be a metadata key") as caught:
        store.search("bees", group_by=key)
    assert caught.value.field == "group_by"
