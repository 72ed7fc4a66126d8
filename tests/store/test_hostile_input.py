"""Whatever a caller hands in is stored exactly, or refused by name with nothing written."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from kronos import MemoryStore, NewMemory
from kronos.db.tables import memories
from kronos.errors import (
    ContentError,
    DimensionMismatchError,
    FilterError,
    IdentifierError,
    InputError,
    MetadataError,
    VectorError,
)
from kronos.validation import to_microseconds
from tests.conftest import Opener


def nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(depth - 1):
        value = {"a": value}
    return value


def cyclic() -> dict[str, Any]:
    value: dict[str, Any] = {}
    value["self"] = value
    return value


EXACT_TEXTS = {
    "emoji and joiners": "👩‍👩‍👧‍👦 was here 🇩🇪",
    "right to left": "שלום עולם",
    "combining": "é vs é",
    "line ends": "a\r\nb\rc\n\n d\t",
    "control characters": "\x01\x1b[31mred\x7f",
    "10 MB": "word " * 2_000_000,
    "one long word": "x" * 100_000,
    "quotes": "'; DROP TABLE memories; --",
    "a byte order mark": "\ufeffhello",
    "beyond the BMP": "\U0010ffff",
}


@pytest.mark.parametrize("text", EXACT_TEXTS.values(), ids=EXACT_TEXTS.keys())
def test_odd_texts_come_back_exactly(store: MemoryStore, text: str) -> None:
    assert store.get(store.add(text)).content == text


REFUSED_TEXTS = {
    "empty": "",
    "blank": " \n\t\u2003",
    "NUL": "a\0b",
    "lone surrogate": "a\ud800b",
    "bytes": b"abc",
    "None": None,
    "a number": 3,
    "more than the limit": "x" * (16 * 2**20 + 1),
}


@pytest.mark.parametrize("text", REFUSED_TEXTS.values(), ids=REFUSED_TEXTS.keys())
def test_texts_that_cannot_be_kept_are_refused_by_name(store: MemoryStore, text: Any) -> None:
    with pytest.raises(ContentError) as caught:
        store.add(text)
    assert caught.value.field == "content"
    with pytest.raises(ContentError) as caught:
        store.add_many(["fine", NewMemory(text)])
    assert caught.value.field == "items[1].content"
    assert store.count(namespace="*") == 0


EXACT_METADATA: dict[str, dict[str, Any]] = {
    "all types": {"a": None, "b": True, "c": -1, "d": 1.5, "e": "x", "f": [1, [2]], "g": {"h": {}}},
    "the largest numbers": {"max": 2**63 - 1, "min": -(2**63), "float": 1.7976931348623157e308},
    "tiny and negative zero": {"tiny": 5e-324, "zero": -0.0},
    "odd keys": {"": 1, "') OR 1=1 --": 2, '$."a"': 3, "a.b[0]": 4, "🙂": 5, "a\nb": 6},
    "odd strings": {"s": "\u2028\x01 \ufeff \U0010ffff"},
    "deepest": nested(32),
}


@pytest.mark.parametrize("metadata", EXACT_METADATA.values(), ids=EXACT_METADATA.keys())
def test_odd_metadata_comes_back_equal(store: MemoryStore, metadata: dict[str, Any]) -> None:
    found = store.get(store.add("text", metadata=metadata)).metadata
    assert found == metadata
    assert repr(found) == repr(metadata)


REFUSED_METADATA = {
    "NaN": {"x": float("nan")},
    "infinity": {"x": [1, float("inf")]},
    "too large an int": {"x": 2**70},
    "nested 1,000 deep": nested(1000),
    "nested 33 deep": nested(33),
    "bytes": {"x": b"abc"},
    "a cycle": cyclic(),
    "a set": {"x": {1}},
    "a tuple": {"x": (1, 2)},
    "a date": {"x": datetime.now(timezone.utc)},
    "a numpy array": {"x": np.zeros(3)},
    "int keys": {1: "x"},
    "NUL in a key": {"a\0b": 1},
    "a surrogate in a value": {"a": "\udfff"},
    "a million keys": {str(i): i for i in range(1_000_000)},
    "a megabyte of text": {"x": "y" * 2**20},
    "a list": [1],
    "a str": "abc",
}


@pytest.mark.parametrize("metadata", REFUSED_METADATA.values(), ids=REFUSED_METADATA.keys())
def test_metadata_that_would_not_come_back_is_refused(store: MemoryStore, metadata: Any) -> None:
    with pytest.raises(MetadataError) as caught:
        store.add("text", metadata=metadata)
    assert caught.value.field.startswith("metadata")
    assert len(str(caught.value)) < 500
    assert store.count(namespace="*") == 0


EXACT_IDS = ["../../etc/passwd", "/abs", "CON", "x" * 256, "'; --", "ü🙂", "a b", "%00", "*"]


@pytest.mark.parametrize("id", EXACT_IDS)
def test_odd_ids_come_back_exactly(store: MemoryStore, id: str) -> None:
    assert store.add("text", id=id) == id
    assert store.get(id).id == id
    assert store.delete(id) == 1


REFUSED_IDS: list[Any] = ["", " ", "x" * 257, "a\0b", "a\nb", "\ud800", b"a", 3]


@pytest.mark.parametrize("id", REFUSED_IDS)
def test_malformed_ids_are_refused_everywhere(store: MemoryStore, id: Any) -> None:
    for call in (
        lambda: store.add("text", id=id),
        lambda: store.add("text", parent_id=id),
        lambda: store.get(id),
        lambda: store.find(id),
        lambda: store.update(id, importance=1),
        lambda: store.delete([id]),
        lambda: store.list(after=id),
    ):
        with pytest.raises(IdentifierError):
            call()
    assert store.count(namespace="*") == 0


REFUSED_NAMESPACES: list[Any] = [
    "", "/a", "a/", "a//b", "../x", "a/../b", ".", "a*", "x" * 257, "a\0", "\udc00", 3,
]  # fmt: skip


@pytest.mark.parametrize("namespace", REFUSED_NAMESPACES)
def test_malformed_namespaces_are_refused_everywhere(store: MemoryStore, namespace: Any) -> None:
    for call in (
        lambda: store.add("text", namespace=namespace),
        lambda: store.search("text", namespace=namespace),
        lambda: store.list(namespace=namespace),
        lambda: store.count(namespace=namespace),
        lambda: store.delete(namespace=namespace),
    ):
        with pytest.raises(IdentifierError) as caught:
            call()
        assert caught.value.field == "namespace"


def test_nothing_is_written_outside_the_store(open_store: Opener, tmp_path: Any) -> None:
    store = open_store()
    for id in EXACT_IDS:
        store.add("text", id=id, metadata={"../x": "../../y"})
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


REFUSED_FILTERS: list[Any] = [
    {"') OR 1=1 --": 1},
    {'$."a"': 1},
    {"a.b[0]": 1},
    {"a..b": 1},
    {"": 1},
    {3: 1},
    {"a": {"$regex": "x"}},
    {"a": {}},
    {"a": {"$gt": True}},
    {"a": {"$gt": None}},
    {"a": {"$in": 3}},
    {"a": {"$in": "abc"}},
    {"a": {"$exists": 1}},
    {"a": float("nan")},
    {"a": 2**63},
    {"a": "\ud800"},
    {"a": "x\0"},
    {"a": b"x"},
    {"a": [1]},
    ["a"],
    "a",
]


@pytest.mark.parametrize("where", REFUSED_FILTERS, ids=repr)
def test_filters_that_mean_nothing_are_refused(store: MemoryStore, where: Any) -> None:
    store.add("text", metadata={"a": 1})
    for call in (
        lambda: store.search("text", where=where),
        lambda: store.list(where=where),
        lambda: store.count(where=where),
        lambda: store.delete(where=where),
    ):
        with pytest.raises(FilterError) as caught:
            call()
        assert caught.value.field.startswith("where")
    assert store.count() == 1


def unit(dim: int) -> Any:
    return np.eye(1, dim, dtype=np.float32)[0]


BAD_VECTORS: dict[str, tuple[Any, type[InputError]]] = {
    "too short": (unit(7), DimensionMismatchError),
    "two-dimensional": (np.eye(8), DimensionMismatchError),
    "NaN": ([float("nan"), *[1.0] * 7], VectorError),
    "infinity": ([float("inf"), *[1.0] * 7], VectorError),
    "beyond float32": ([1e300] * 8, VectorError),
    "zero": ([0.0] * 8, VectorError),
    "text": ("abcdefgh", VectorError),
    "complex": ([1j] * 8, VectorError),
    "bools": ([True] * 8, VectorError),
    "ragged": ([[1.0], [1.0, 2.0]], VectorError),
}


@pytest.mark.parametrize(("vector", "error"), BAD_VECTORS.values(), ids=BAD_VECTORS.keys())
def test_bad_vectors_are_refused_before_anything_is_written(
    open_store: Opener, vector: Any, error: type[InputError]
) -> None:
    store = open_store(embedding_model=None, embedding_dim=8)
    with pytest.raises(error) as caught:
        store.add_many([NewMemory("a", embedding=unit(8)), NewMemory("b", embedding=vector)])
    assert caught.value.field == "items[1].embedding"
    assert store.count() == 0
    if not isinstance(vector, str):
        with pytest.raises(error):
            store.search(vector)


@pytest.mark.parametrize(
    "vector",
    [
        np.arange(1, 9, dtype=np.float64),
        np.arange(1, 9, dtype=np.int64),
        np.arange(1, 17, dtype=np.float32)[::2],
        list(range(1, 9)),
        np.full(8, 1e30, np.float32),
        np.full(8, 1e-30, np.float32),
    ],
    ids=["float64", "ints", "strided", "a list", "huge", "tiny"],
)
def test_vectors_of_other_kinds_are_scaled_to_unit_length(open_store: Opener, vector: Any) -> None:
    store = open_store(embedding_model=None, embedding_dim=8)
    store.add_many([NewMemory("a", embedding=vector)])
    (hit,) = store.search(vector)
    assert hit.score == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("importance", 1.5),
        ("importance", float("nan")),
        ("importance", True),
        ("importance", "high"),
        ("expires_at", datetime(2030, 1, 1)),
        ("expires_at", "2030-01-01"),
        ("on_conflict", "merge"),
        ("content", ["a"]),
    ],
)
def test_other_fields_are_refused_by_name(store: MemoryStore, field: str, value: Any) -> None:
    with pytest.raises(InputError) as caught:
        store.add(**{"content": "text", **{field: value}})
    assert caught.value.field == field
    assert store.count() == 0


@pytest.mark.parametrize(
    ("items", "field"),
    [
        ("a text", "items"),
        (3, "items"),
        ({"content": "x"}, "items"),
        ([3], "items[0]"),
        ([{"content": "x", "colour": 1}], "items[0].colour"),
        ([{"metadata": {}}], "items[0].content"),
    ],
)
def test_items_that_are_no_memories_are_refused(store: MemoryStore, items: Any, field: str) -> None:
    with pytest.raises(InputError) as caught:
        store.add_many(items)
    assert caught.value.field == field


@pytest.mark.parametrize(
    "options",
    [{"limit": 0}, {"limit": True}, {"limit": "3"}, {"mode": "magic"}, {"min_score": "x"}],
)
def test_search_options_are_refused_by_name(store: MemoryStore, options: dict[str, Any]) -> None:
    with pytest.raises(InputError) as caught:
        store.search("text", **options)
    assert caught.value.field == next(iter(options))


@pytest.mark.parametrize("query", ["", " ", "\ud800", "a\0"])
def test_a_query_that_is_no_text_is_refused(store: MemoryStore, query: str) -> None:
    with pytest.raises(ContentError) as caught:
        store.search(query)
    assert caught.value.field == "query"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
any_text = st.text(st.characters(), max_size=40)  # surrogates included
anything = st.none() | st.booleans() | st.integers() | st.floats() | any_text | st.binary()
fine_text = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=40
).filter(str.strip)


def mostly(fine: st.SearchStrategy[Any], *odd: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """What is asked for, and every sixth time something else: an item has up to eight fields."""
    return st.integers(0, 5).flatmap(lambda number: fine if number else st.one_of(*odd))


hostile_items = st.fixed_dictionaries(
    {"content": mostly(fine_text, any_text, anything)},
    optional={
        "id": mostly(fine_text, any_text, anything),
        "namespace": mostly(st.sampled_from(["a", "a/b"]), st.just("../x"), any_text, anything),
        "metadata": mostly(
            st.dictionaries(fine_text, st.integers(-(2**63), 2**63 - 1) | fine_text, max_size=3),
            st.dictionaries(any_text, json_values, max_size=3),
            json_values,
        ),
        "importance": mostly(st.floats(0, 1), anything),
        "parent_id": mostly(fine_text, any_text, anything),
        "expires_at": mostly(st.datetimes(timezones=st.just(timezone.utc)), anything),
        "embedding": mostly(
            st.lists(st.floats(-1e6, 1e6), min_size=64, max_size=64),
            st.lists(st.floats(), max_size=70),
            anything,
        ),
    },
)


def outcome(store: MemoryStore, item: dict[str, Any]) -> str:
    """Hand an item in: "stored", or the field by which it was refused."""
    before = store.stats().seq
    try:
        (added,) = store.add_many([item], on_conflict="replace")
    except InputError as exc:
        refused = exc.field
    else:
        check_stored(store, added, item)
        return "stored"
    item_, _, field = refused.partition(".")
    assert item_ == "items[0]", refused
    assert store.stats().seq == before, "something was written"
    return field.partition(".")[0].partition("[")[0]


def check_stored(store: MemoryStore, added: str, item: dict[str, Any]) -> None:
    """Compare what the database holds with what was handed in, and search for it."""
    with store._session.reader() as repository:
        held = repository._connection.execute(select(memories).where(memories.c.id == added)).one()
    assert held.content == item["content"]
    assert item.get("id") in (None, added)
    assert held.namespace == (item.get("namespace") or "default")
    assert json.loads(held.metadata) == (item.get("metadata") or {})
    assert held.importance == item.get("importance", 0.5)
    assert held.parent_id == item.get("parent_id")
    expires = item.get("expires_at")
    assert held.expires_at == (None if expires is None else to_microseconds(expires))
    if expires is None and "embedding" not in item:
        best = store.search(item["content"], limit=1, namespace="*", mode="dense")[0]
        assert best.score == pytest.approx(1, abs=1e-5)


@settings(
    max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(item=hostile_items)
def test_any_input_is_stored_exactly_or_refused(store: MemoryStore, item: dict[str, Any]) -> None:
    assert outcome(store, item)


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(query=any_text, key=any_text, value=json_values)
def test_any_question_is_answered_or_refused(
    store: MemoryStore, query: str, key: str, value: Any
) -> None:
    field = "none"
    try:
        store.search(query, where={key: value})
    except InputError as exc:
        field = exc.field
    assert field
