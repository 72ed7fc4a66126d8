"""The JSON forms of filters and rankings, which the command line, HTTP and MCP share."""

from __future__ import annotations

import json
import math
import random
from dataclasses import fields
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from kronos import F, Filter, Ranking, filter_schema, ranking_schema
from kronos.errors import FilterError, InputError
from kronos.search.filters import And, Comparison, Not, Or, parse
from kronos.search.filters.paths import NULLABLE_FIELDS, TEXT_FIELDS, TIME_FIELDS
from tests.search.test_filters import random_where

UTC = timezone.utc
FILTERS = Draft202012Validator(filter_schema())
RANKINGS = Draft202012Validator(ranking_schema())


def through_json(value: Any) -> Any:
    return json.loads(json.dumps(value, allow_nan=False))


# -- Filters ------------------------------------------------------------------------------------

TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8)
NUMBERS = st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
SCALARS = st.none() | st.booleans() | NUMBERS | TEXTS
TIMES = st.datetimes(
    datetime(2, 1, 1),
    datetime(9998, 1, 1),
    timezones=st.timedeltas(timedelta(hours=-14), timedelta(hours=14)).map(timezone),
)
NAMES = st.text(
    st.characters(exclude_characters="\"'\\[]$.\x7f", exclude_categories=["Cs", "Cc"]),
    min_size=1,
    max_size=4,
)
PATHS = st.lists(NAMES | st.sampled_from(["metadata", "id"]), min_size=1, max_size=3).map(
    lambda names: "metadata." + ".".join(names)
)
PATTERNS = TEXTS.map(lambda text: text.replace("\\", "\\\\"))


@st.composite
def comparisons(draw: st.DrawFn) -> Filter:
    name = draw(PATHS | st.sampled_from([*TEXT_FIELDS, *TIME_FIELDS, "importance"]))
    values: st.SearchStrategy[Any] = SCALARS
    ordered: st.SearchStrategy[Any] = NUMBERS | TEXTS
    if name in TEXT_FIELDS:
        values = ordered = TEXTS
    elif name in TIME_FIELDS:
        values = ordered = TIMES
    elif name == "importance":
        values = ordered = NUMBERS
    if name in NULLABLE_FIELDS:
        values |= st.none()
    operands = {
        "$eq": values, "$ne": values, "$in": st.lists(values, max_size=3),
        "$nin": st.lists(values, max_size=3), "$exists": st.booleans(), "$gt": ordered,
        "$gte": ordered, "$lt": ordered, "$lte": ordered,
    }  # fmt: skip
    if name not in (*TIME_FIELDS, "importance"):
        operands |= {"$like": PATTERNS, "$contains": SCALARS if "." in name else TEXTS}
    operator = draw(st.sampled_from([*operands]))
    return Comparison(name, operator, draw(operands[operator]))


def joined(inner: st.SearchStrategy[Filter]) -> st.SearchStrategy[Filter]:
    members = st.lists(inner, min_size=1, max_size=3).map(tuple)
    return members.map(And) | members.map(Or) | inner.map(Not)


TREES = st.recursive(comparisons(), joined, max_leaves=8)


@given(TREES)
def test_a_filter_survives_a_round_trip_through_json(tree: Filter) -> None:
    where = tree.to_dict()
    assert Filter.from_dict(through_json(where)) == Filter.from_dict(where) == tree
    assert Filter.from_dict(where).to_dict() == where
    FILTERS.validate(through_json(where))


def test_the_json_form_of_a_filter_is_what_a_person_would_write() -> None:
    noon = datetime(2026, 1, 1, 12, tzinfo=UTC)
    for tree, where in [
        (F.lang == "en", {"lang": "en"}),
        (F.lang != "en", {"lang": {"$ne": "en"}}),
        (F.year.in_([1, 2]), {"year": {"$in": [1, 2]}}),
        ((F.year >= 2020) & (F.lang == "en"), {"year": {"$gte": 2020}, "lang": "en"}),
        ((F.a > 1) & (F.a < 5), {"$and": [{"a": {"$gt": 1}}, {"a": {"$lt": 5}}]}),
        ((F.a == 1) | (F.b == 2), {"$or": [{"a": 1}, {"b": 2}]}),
        (~(F.a == 1), {"$not": {"a": 1}}),
        (F.created_at < noon, {"created_at": {"$lt": "2026-01-01T12:00:00+00:00"}}),
        (F.metadata.id == 1, {"metadata.id": 1}),
        (F.metadata.metadata.a == 1, {"metadata.metadata.a": 1}),
        (F.user.id == 1, {"user.id": 1}),
        (Or((And((F.a == 1,)),)), {"a": 1}),
    ]:
        assert tree.to_dict() == where
        assert Filter.from_dict(where) == tree


def test_every_filter_that_the_parser_accepts_fits_the_schema() -> None:
    rng = random.Random(3)
    for _ in range(500):
        where = json.loads(json.dumps(random_where(rng), default=datetime.isoformat))
        parse(where)
        FILTERS.validate(where)


@pytest.mark.parametrize(
    "where",
    [
        [], "a", 3, None, {"": 1}, {"a..b": 1}, {"a[0]": 1}, {"$where": "1"}, {"$eq": 1},
        {"a.$b": 1}, {"a'b": 1}, {"$or": []}, {"$and": {}}, {"$or": {"a": 1}}, {"$or": [1]},
        {"$or": [{}]}, {"$not": {}}, {"$not": [{"a": 1}]}, {"a": {}}, {"a": {"$regex": "x"}},
        {"a": {"b": 1}}, {"a": [1]}, {"a": {"$not": 1}}, {"a": {"$not": {}}},
        {"a": {"$gt": True}}, {"a": {"$lte": None}}, {"a": {"$in": 3}}, {"a": {"$in": [[1]]}},
        {"a": {"$exists": 1}}, {"a": {"$like": 1}}, {"a": {"$like": "x" * 1001}},
        {"a": {"$contains": [1]}}, {"id": 1}, {"id": None}, {"namespace": {"$in": ["a", 1]}},
        {"parent_id": {"$gt": None}}, {"parent_id": {"$contains": None}}, {"content": True},
        {"importance": "1"}, {"importance": True}, {"importance": {"$like": "1"}},
        {"created_at": None}, {"created_at": 1}, {"created_at": {"$contains": "2020"}},
        {"expires_at": {"$lt": None}}, {"expires_at": {"$not": {"$eq": 1}}},
    ],
    ids=ascii,
)  # fmt: skip
def test_filters_that_the_schema_refuses_are_refused_by_the_parser(where: Any) -> None:
    assert not FILTERS.is_valid(where)
    with pytest.raises(FilterError) as caught:
        Filter.from_dict(where)
    assert caught.value.field.startswith("where")


def test_an_empty_dict_is_no_filter() -> None:
    FILTERS.validate({})
    assert parse({}) is None
    with pytest.raises(FilterError, match="not empty"):
        Filter.from_dict({})
    with pytest.raises(FilterError, match="not a filter"):
        Filter.from_dict(F.a == 1)  # type: ignore[arg-type]


# -- Rankings -----------------------------------------------------------------------------------

WEIGHTS = st.floats(0, 1e6) | st.integers(0, 10**6)
OPTIONS = {
    "similarity": WEIGHTS,
    "recency": WEIGHTS,
    "importance": WEIGHTS,
    "half_life": st.sampled_from(["7d", " 1.5 h ", "30m", "4w"])
    | st.floats(1e-6, 1e15)
    | st.timedeltas(timedelta(microseconds=1)),
    "recency_of": st.sampled_from(["created", "updated", "accessed"]),
    "namespaces": st.dictionaries(
        st.sampled_from(["a", "a/b", "team é"]), st.floats(-1e6, 1e6), max_size=3
    ),
    "diversity": st.floats(0, 1),
    "rerank": st.none() | TEXTS.filter(bool),
    "rerank_top": st.integers(1, 10**6),
    "now": st.none() | TIMES,
}


@given(st.fixed_dictionaries({}, optional=OPTIONS))
def test_a_ranking_survives_a_round_trip_through_json(options: Any) -> None:
    ranking = Ranking(**options)
    written = through_json(ranking.to_dict())
    RANKINGS.validate(written)
    assert Ranking.from_dict(written) == ranking
    assert Ranking.from_dict(written).half_life_s == ranking.half_life_s
    assert Ranking.from_dict(options) == ranking


def test_the_schema_describes_every_option_of_a_ranking() -> None:
    properties = ranking_schema()["properties"]
    names = [option.name for option in fields(Ranking) if option.init]
    assert [*properties] == names
    assert OPTIONS.keys() == properties.keys()
    assert {name: each["default"] for name, each in properties.items()} == Ranking().to_dict()
    assert Ranking.from_dict({}) == Ranking()


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"recent": 1}, "recent"),
        ({"half_life_s": 5.0}, "half_life_s"),
        ({"similarity": -1}, "similarity"),
        ({"similarity": None}, "similarity"),
        ({"similarity": "1"}, "similarity"),
        ({"recency": 2e6}, "recency"),
        ({"importance": True}, "importance"),
        ({"half_life": "soon"}, "half_life"),
        ({"half_life": 0}, "half_life"),
        ({"half_life": None}, "half_life"),
        ({"recency_of": "yesterday"}, "recency_of"),
        ({"recency_of": ["created"]}, "recency_of"),
        ({"namespaces": ["a"]}, "namespaces"),
        ({"namespaces": {"a": "much"}}, "namespaces"),
        ({"namespaces": {"a": -2e6}}, "namespaces"),
        ({"diversity": 2}, "diversity"),
        ({"rerank": ""}, "rerank"),
        ({"rerank": 1}, "rerank"),
        ({"rerank_top": 0}, "rerank_top"),
        ({"rerank_top": 1.5}, "rerank_top"),
        ({"now": 5}, "now"),
    ],
    ids=ascii,
)
def test_rankings_that_the_schema_refuses_are_refused_by_field(options: Any, field: str) -> None:
    assert not RANKINGS.is_valid(options)
    with pytest.raises(InputError) as caught:
        Ranking.from_dict(options)
    assert caught.value.field.startswith(f"ranking.{field}")


def test_from_dict_checks_more_than_the_schema() -> None:
    for options, field in [
        ({"now": "2026-01-01T00:00:00"}, "ranking.now"),
        ({"now": "soon"}, "ranking.now"),
        ({"namespaces": {"a//b": 1}}, "ranking.namespaces"),
        ({"similarity": math.nan}, "ranking.similarity"),
        (["similarity"], "ranking"),
        (None, "ranking"),
    ]:
        with pytest.raises(InputError) as caught:
            Ranking.from_dict(options)  # type: ignore[arg-type]
        assert caught.value.field == field


def test_half_lives_of_equal_length_are_equal() -> None:
    week = Ranking(half_life="7d")
    assert week == Ranking(half_life=timedelta(days=7)) == Ranking(half_life=604_800)
    assert week != Ranking(half_life="8d")


# -- Schemas ------------------------------------------------------------------------------------


@pytest.mark.parametrize("schema", [filter_schema, ranking_schema])
def test_a_schema_is_valid_json_that_the_caller_may_change(schema: Any) -> None:
    first = schema()
    Draft202012Validator.check_schema(through_json(first))
    first.clear()
    again = schema()
    again["description"] = "changed"
    for each in (*again.get("$defs", {}).values(), *again.get("properties", {}).values()):
        each.clear()
    assert schema() != again
    assert Draft202012Validator(schema()).is_valid({})
