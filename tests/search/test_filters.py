"""Filters mean in SQL what they mean in plain Python."""

from __future__ import annotations

import operator as ops
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kronos import MemoryStore, NewMemory

MISSING = object()
VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 1.0, 0.5, 2**53, 2**63 - 1, "", "1", "a", "B", "é", "1.0", [1],
    {"x": 1},
]  # fmt: skip
RECORDS: list[dict[str, Any]] = [
    {},
    *({"k": value} for value in VALUES),
    *({"k": {"deep": value}} for value in VALUES),
    {"a b": 1, "ü": 2, "k-1": 3, "k": {"deep": {"er": 4}}},
]


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> MemoryStore:
    store = MemoryStore.open(
        tmp_path_factory.mktemp("filters"), embedding_model="hash", embedding_dim=16
    )
    store.add_many(
        NewMemory(f"record {i}", id=str(i), metadata=record) for i, record in enumerate(RECORDS)
    )
    return store


def kind(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return repr(value)
    return "number" if isinstance(value, int | float) else type(value).__name__


def equal(found: Any, wanted: Any) -> bool:
    return found is not MISSING and kind(found) == kind(wanted) and bool(found == wanted)


def holds(found: Any, operator: str, wanted: Any) -> bool:
    """The oracle: what one comparison means."""
    if operator == "$exists":
        return (found is not MISSING) is bool(wanted)
    if operator in ("$eq", "$ne"):
        return equal(found, wanted) == (operator == "$eq")
    if operator in ("$in", "$nin"):
        return any(equal(found, each) for each in wanted) == (operator == "$in")
    if found is MISSING or kind(found) != kind(wanted):
        return False
    compare = {"$gt": ops.gt, "$gte": ops.ge, "$lt": ops.lt, "$lte": ops.le}[operator]
    return bool(compare(found, wanted))


def matches(record: dict[str, Any], where: dict[str, dict[str, Any]]) -> bool:
    for key, tests in where.items():
        found: Any = record
        for name in key.split("."):
            found = found.get(name, MISSING) if isinstance(found, dict) else MISSING
        if not all(holds(found, operator, wanted) for operator, wanted in tests.items()):
            return False
    return True


scalars = st.sampled_from([value for value in VALUES if not isinstance(value, list | dict)])
ordered = st.sampled_from([v for v in VALUES if kind(v) in ("number", "str")])
tests = st.one_of(
    st.tuples(st.sampled_from(["$eq", "$ne"]), scalars),
    st.tuples(st.sampled_from(["$gt", "$gte", "$lt", "$lte"]), ordered),
    st.tuples(st.sampled_from(["$in", "$nin"]), st.lists(scalars, max_size=3)),
    st.tuples(st.just("$exists"), st.booleans()),
)
keys = st.sampled_from(["k", "k.deep", "k.deep.er", "a b", "ü", "k-1", "nothing"])
wheres = st.dictionaries(keys, st.lists(tests, min_size=1, max_size=2).map(dict), max_size=2)


@settings(
    max_examples=500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(where=wheres)
def test_a_random_filter_equals_the_oracle(
    filled: MemoryStore, where: dict[str, dict[str, Any]]
) -> None:
    expected = {str(i) for i, record in enumerate(RECORDS) if matches(record, where)}
    assert {memory.id for memory in filled.list(where=where, limit=1000)} == expected
    assert filled.count(where=where) == len(expected)
    assert {hit.id for hit in filled.search("record", where=where, limit=1000)} == expected


def test_a_plain_value_means_equal(filled: MemoryStore) -> None:
    for value in (1, "a", None, True):
        plain = filled.list(where={"k": value})
        assert plain
        assert plain == filled.list(where={"k": {"$eq": value}})


def test_true_is_not_one_and_text_is_no_number(filled: MemoryStore) -> None:
    (true,) = filled.list(where={"k": True})
    assert true.metadata == {"k": True}
    ones = [memory.metadata["k"] for memory in filled.list(where={"k": 1})]
    assert [repr(one) for one in ones] == ["1", "1.0"]
