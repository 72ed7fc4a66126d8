"""Filters mean the same in SQL as in plain Python, and malformed filters are refused."""

from __future__ import annotations

import copy
import itertools
import json
import operator
import pickle
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta, timezone
from functools import reduce
from typing import Any

import pytest
from sqlalchemy import Index, insert, not_, select
from sqlalchemy.dialects.sqlite.base import SQLiteDialect
from sqlalchemy.schema import CreateIndex

from kronos import MemoryStore, NewMemory
from kronos.db.database import Database
from kronos.db.sql import list_encoder
from kronos.db.sqlite_driver import driver
from kronos.db.tables import memories, versions
from kronos.errors import FilterError
from kronos.search import filters
from kronos.search.filters import F, Filter, canonical, parse
from kronos.search.filters.compiler import compile_filter, field_expression
from kronos.search.filters.expression import MAX_COMPARISONS, MAX_DEPTH
from kronos.search.filters.operands import MAX_PATTERN, OPERATORS
from kronos.search.filters.parser import CONNECTIVES
from kronos.search.filters.paths import RECORD_FIELDS, parse_path
from kronos.settings import Settings
from kronos.types import Memory
from kronos.validation import check_item
from tests.conftest import examples
from tests.search.oracle import matches

UTC = timezone.utc
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
MEMORIES = 120
FILTERS = examples(2_000, 10_000)

NUMBERS = [
    0, 1, -1, 2, 1.0, 0.5, -0.0, 0.1 + 0.2, 0.3, 2**53, 2**53 + 1, 2.0**53, 2.0**53 + 2, 2**63 - 1,
    2.0**63, -(2**63), -(2**63) + 1, -(2.0**63), 1e300, 5e-324, 123456789.125,
]  # fmt: skip
TEXTS = [
    "", "1", "1.0", "a", "A", "ab", "aB", "b", "a%", "a_b", "a\\b", "%", "é", "É", "e\u0301", "ss",
    "\uffff", "\U0001f600", "true", "null", "[1]", "\x01", "a\nb", "team/a", "zz" * 20, "\u00df",
]  # fmt: skip
SCALARS = [None, True, False, *NUMBERS, *TEXTS]
PATTERNS = [
    "", "%", "_", "a%", "%b", "%a%", "A_", "__", "a\\%", "a\\_b", "a\\\\b", "%\\%", "_%", "%%", "é",
    "É", "\\a", "%\U0001f600%", "1%", "%_b", "_\nb", "Z%Z", "\ufffd", "e_", "memory%1_", "%é%",
]  # fmt: skip
PATHS = [
    "k", "k", "k", "year", "tags", "user.name", "user.age", "user.k.k", "metadata.id", "metadata.k",
    "a b", "ü", "k-1", "a?b", "a:b", "x%y", "it__is", "metadata.metadata.id", "metadata", "nothing",
    "k.deep", "tags.0", "id.id",
]  # fmt: skip
NAMES = ["", "team", "team/a", "team/b", "Team"]


def random_value(rng: random.Random, depth: int = 0) -> Any:
    draw = rng.random()
    if draw < 0.7 or depth == 3:
        return rng.choice(SCALARS)
    if draw < 0.87:
        return [random_value(rng, depth + 1) for _ in range(rng.randrange(4))]
    return {name: random_value(rng, depth + 1) for name in ("k", "deep") if rng.random() < 0.6}


def random_metadata(rng: random.Random) -> dict[str, Any]:
    keys = ["k", "year", "tags", "id", "a b", "ü", "k-1", "a?b", "a:b", "x%y", "it__is"]
    found = {key: random_value(rng) for key in keys if rng.random() < 0.6}
    if rng.random() < 0.7:
        found["year"] = rng.randrange(2015, 2026)
    if rng.random() < 0.7:
        found["user"] = {
            "name": rng.choice(TEXTS), "age": rng.choice(NUMBERS), "k": random_value(rng)
        }  # fmt: skip
    if rng.random() < 0.5:
        found["metadata"] = {"id": random_value(rng)}
        found["id"] = {"id": rng.choice(SCALARS)}
    return found


def random_time(rng: random.Random) -> datetime:
    return NOON + timedelta(hours=rng.randrange(-3, 3), microseconds=rng.randrange(2))


def random_row(rng: random.Random, number: int) -> dict[str, Any]:
    record = check_item(
        NewMemory(
            rng.choice(["memory", "é a%", "\U0001f600 b", "x\ny"]) + f" {number}",
            id=f"{rng.choice('aAé%_')}{number}",
            metadata=random_metadata(rng),
            importance=rng.choice([0, 0.1, 0.25, 0.5, 1]),
            parent_id=rng.choice([None, None, "a", "A", "p%"]),
            expires_at=rng.choice([None, random_time(rng)]),
            created_at=random_time(rng),
            updated_at=random_time(rng),
        ),
        namespace=rng.choice(NAMES[1:]),
        settings=Settings(),
    )
    columns = {column.name for column in memories.columns}
    names = columns - {"key", "seq", "recorded_at"}
    return {name: getattr(record, name) for name in names} | {"key": number, "seq": number}


def as_memory(row: Mapping[str, Any]) -> Memory:
    def time(value: int | None) -> datetime | None:
        epoch = datetime(1970, 1, 1, tzinfo=UTC)
        return None if value is None else epoch + timedelta(microseconds=value)

    return Memory(
        id=row["id"],
        namespace=row["namespace"],
        content=row["content"],
        metadata=json.loads(row["metadata"]),
        importance=row["importance"],
        created_at=time(row["created_at"]),  # type: ignore[arg-type]
        updated_at=time(row["updated_at"]),  # type: ignore[arg-type]
        parent_id=row["parent_id"],
        expires_at=time(row["expires_at"]),
    )


class Rows:
    """A database of memories, and the same memories as values."""

    def __init__(self, database: Database, rows: Sequence[dict[str, Any]]) -> None:
        self.database = database
        self.held = [as_memory(row) for row in rows]

    def found(self, where: Any) -> set[str]:
        return self.answer(compile_filter(where))

    def answer(self, condition: Any) -> set[str]:
        with self.database.read() as connection:
            return set(connection.execute(select(memories.c.id).where(condition)).scalars())

    def expected(self, where: Any) -> set[str]:
        return {memory.id for memory in self.held if matches(where, memory)}

    def check(self, where: Any) -> set[str]:
        """Compare SQL with the oracle, for the filter as written and as parsed."""
        found = self.found(where)
        assert found == self.expected(where), where
        assert found == self.expected(parse(where)), where
        return found

    def plan(self, where: Any) -> str:
        statement = select(memories.c.key).where(compile_filter(where))  # type: ignore[arg-type]
        with self.database.read() as connection:
            compiled = statement.compile(connection, compile_kwargs={"render_postcompile": True})
            encode = list_encoder(connection.dialect)
            found = (compiled.params[name] for name in compiled.positiontup or ())
            values = tuple(encode(each) if isinstance(each, list) else each for each in found)
            rows = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {compiled}", values)
            return "\n".join(row[3] for row in rows)


def open_rows(path: Any, rows: Sequence[dict[str, Any]]) -> Rows:
    database = Database(path / "rows.db", Settings())
    with database.write() as connection:
        memories.create(connection)
        connection.execute(insert(memories), list(rows))
    return Rows(database, rows)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rows]:
    rng = random.Random(1)
    opened = open_rows(
        tmp_path_factory.mktemp("rows"), [random_row(rng, number) for number in range(MEMORIES)]
    )
    yield opened
    opened.database.close()


# -- Random filters -----------------------------------------------------------------------------


def random_operand(rng: random.Random, name: str, draw: Callable[[], Any]) -> Any:
    if name == "$exists":
        return rng.random() < 0.5
    if name in ("$in", "$nin"):
        return [draw() for _ in range(rng.choice([0, 1, 2, 3, 8]))]
    return rng.choice(PATTERNS) if name == "$like" else draw()


ORDERINGS = ["$gt", "$gte", "$lt", "$lte"]
EQUALITIES = ["$eq", "$ne", "$in", "$nin", "$exists"]


def random_comparison(rng: random.Random) -> tuple[str, dict[str, Any]]:
    """A field, an operator, and a value that the operator takes."""
    key = rng.choice(PATHS) if rng.random() < 0.7 else rng.choice(RECORD_FIELDS)
    name = rng.choice([*EQUALITIES, *ORDERINGS, "$contains", "$like"])
    if key in ("created_at", "updated_at", "expires_at", "importance"):
        name = rng.choice([*EQUALITIES, *ORDERINGS])

    def draw() -> Any:
        if key in ("parent_id", "expires_at") and name in EQUALITIES and rng.random() < 0.3:
            return None
        if key == "importance":
            return rng.choice([0, 0.1, 0.25, 1, 1.0, *NUMBERS])
        if key in ("created_at", "updated_at", "expires_at"):
            return random_moment(rng)
        if key == "id":
            return rng.choice([*TEXTS, f"a{rng.randrange(99)}", f"é{rng.randrange(99)}"])
        if key in RECORD_FIELDS:
            return rng.choice([*TEXTS, *NAMES])
        if key == "year" and rng.random() < 0.7:
            return rng.randrange(2014, 2027)
        return rng.choice(SCALARS if name not in ORDERINGS else [*NUMBERS, *TEXTS])

    return key, {name: random_operand(rng, name, draw)}


def random_moment(rng: random.Random) -> Any:
    time = random_time(rng).astimezone(timezone(timedelta(hours=rng.randrange(-12, 13))))
    return rng.choice([time, time.isoformat(), time.astimezone(UTC).isoformat()[:-6] + "Z"])


def random_where(rng: random.Random, depth: int = 0) -> dict[str, Any]:
    where: dict[str, Any] = {}
    for _ in range(rng.choice([1, 1, 1, 2])):
        draw = rng.random()
        if draw < 0.4 and depth < 3:
            inner = [random_where(rng, depth + 1) for _ in range(rng.choice([1, 2, 2, 3, 4]))]
            name = rng.choice(["$and", "$or", "$or", "$not"])
            where[name] = inner[0] if name == "$not" else inner
            continue
        key, tests = random_comparison(rng)
        if "$eq" in tests and rng.random() < 0.5:
            where[key] = tests["$eq"]
        elif rng.random() < 0.2:
            where[key] = {"$not": {**tests, "$ne": None}} if "." in key else {"$not": tests}
        elif isinstance(where.get(key), dict):
            where[key].update(tests)
        else:
            where[key] = tests
    return where


def built(where: Mapping[str, Any]) -> Filter:
    """The same filter, made with the builder."""
    return joined(operator.and_, [built_entry(key, wanted) for key, wanted in where.items()])


def joined(connect: Callable[[Any, Any], Any], members: Sequence[Filter]) -> Filter:
    made: Filter = reduce(connect, members)
    return made


def built_entry(key: str, wanted: Any) -> Filter:
    if key == "$not":
        return ~built(wanted)
    if key in ("$and", "$or"):
        connect = operator.and_ if key == "$and" else operator.or_
        return joined(connect, [built(each) for each in wanted])
    if not isinstance(wanted, Mapping):
        return filters.Comparison(key, "$eq", wanted)
    return joined(operator.and_, [built_comparison(key, *each) for each in wanted.items()])


def built_comparison(key: str, name: str, value: Any) -> Filter:
    if name == "$not":
        return ~built_entry(key, value)
    field = F[key]
    makers: dict[str, Callable[[Any], Filter]] = {
        "$eq": lambda v: field == v, "$ne": lambda v: field != v,
        "$gt": lambda v: field > v, "$gte": lambda v: field >= v,
        "$lt": lambda v: field < v, "$lte": lambda v: field <= v,
        "$in": field.in_, "$nin": field.not_in, "$exists": field.exists,
        "$contains": field.contains, "$like": field.like,
    }  # fmt: skip
    return makers[name](value)


def test_random_filters_find_what_the_oracle_finds(rows: Rows) -> None:
    rng = random.Random(20260101)
    sizes: list[int] = []
    used: set[str] = set()
    texts: dict[str, set[str]] = {}
    for number in range(FILTERS):
        if number == FILTERS // 2:  # indexes must not change the results
            with rows.database.write() as connection:
                for position, key in enumerate(["k", "year", "tags", "metadata.id", "user.age"]):
                    create_index(connection, f"ix_random_{position}", key)
        where = random_where(rng)
        found = rows.found(where)
        assert found == rows.expected(where), where
        tree = built(where)
        assert tree == parse(where)
        text = canonical(tree)
        assert texts.setdefault(text, found) == found
        if number % 20 == 0:
            rows.check(tree)
            # Never NULL: a filter that does not hold is false, so its opposite holds.
            condition = compile_filter(where)
            assert rows.answer(not_(condition)) == {m.id for m in rows.held} - found  # type: ignore[arg-type]
        sizes.append(len(found))
        used.update(name for name in (*OPERATORS, *CONNECTIVES) if name in f"{where}{tree}")
    assert used == {*OPERATORS, *CONNECTIVES}
    assert sum(0 < size < MEMORIES for size in sizes) > FILTERS * 0.5


@pytest.mark.parametrize("value", SCALARS, ids=ascii)
def test_every_pair_of_values_compares_as_in_python(rows: Rows, value: Any) -> None:
    for name in (*EQUALITIES[:2], *ORDERINGS, "$contains"):
        if name not in ORDERINGS or not (value is None or isinstance(value, bool)):
            for key in ("k", "tags", "user.name", "user.age"):
                rows.check({key: {name: value}})


def test_like_follows_its_definition(rows: Rows) -> None:
    rng = random.Random(7)
    with rows.database.read() as connection:
        for _ in range(5_000):
            text = "".join(rng.choices("aAbé%_\\\uffff\ufffd", k=rng.randrange(8)))
            pattern = "".join(rng.choices(["a", "B", "é", "%", "_", "\\%", "\\\\", "\\a"], k=5))
            sql = "SELECT ? LIKE ? ESCAPE '\\'"
            (found,) = connection.exec_driver_sql(sql, (text, pattern)).one()
            memory = as_memory({**random_row(rng, 0), "content": text})
            assert matches({"content": {"$like": pattern}}, memory) is bool(found), (text, pattern)


# -- Meaning, by example ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rows]:
    written: list[dict[str, Any]] = [
        {},
        {"k": None}, {"k": True}, {"k": 1}, {"k": 1.0}, {"k": "1"}, {"k": [1, "x", None, True]},
        {"k": {"x": 1}}, {"k": 2**53 + 1}, {"k": "Axx"}, {"id": "mine", "metadata": {"id": 5}},
    ]  # fmt: skip
    rng = random.Random(3)
    rows = [
        random_row(rng, number)
        | {
            "id": str(number),
            "metadata": json.dumps(each),
            "parent_id": "p" if number % 2 else None,
        }
        | {"created_at": number * 1_000_000, "expires_at": None}
        for number, each in enumerate(written)
    ]
    opened = open_rows(tmp_path_factory.mktemp("few"), rows)
    yield opened
    opened.database.close()


ALL = frozenset(range(11))


@pytest.mark.parametrize(
    ("where", "ids"),
    [
        ({"k": 1}, {3, 4}),
        ({"k": True}, {2}),
        ({"k": None}, {1}),
        ({"k": "1"}, {5}),
        ({"k": {"$ne": 1}}, ALL - {3, 4}),
        ({"k": {"$in": []}}, set()),
        ({"k": {"$nin": []}}, ALL),
        ({"k": {"$in": [True, None, "1"]}}, {1, 2, 5}),
        ({"k": {"$nin": [True, None, "1"]}}, ALL - {1, 2, 5}),
        ({"k": {"$exists": True}}, ALL - {0, 10}),
        ({"k": {"$exists": False}}, {0, 10}),
        ({"k": {"$gt": 0}}, {3, 4, 8}),
        ({"k": {"$gt": 2.0**53}}, {8}),
        ({"k": float(2**53)}, set()),
        ({"k": {"$not": {"$gt": 0}}}, ALL - {3, 4, 8}),
        ({"$not": {"k": 1}}, ALL - {3, 4}),
        ({"k": {"$contains": "x"}}, {6, 9}),
        ({"k": {"$contains": 1}}, {6}),
        ({"k": {"$contains": None}}, {6}),
        ({"k": {"$contains": False}}, set()),
        ({"k": {"$contains": ""}}, {5, 9}),
        ({"k": {"$like": "a%"}}, {9}),
        ({"k.x": 1}, {7}),
        ({"id": "10"}, {10}),
        ({"metadata.id": "mine"}, {10}),
        ({"metadata.metadata.id": 5}, {10}),
        ({"metadata": {"$exists": True}}, {10}),
        ({"parent_id": None}, {0, 2, 4, 6, 8, 10}),
        ({"parent_id": {"$ne": "p"}}, {0, 2, 4, 6, 8, 10}),
        ({"parent_id": {"$gt": ""}}, {1, 3, 5, 7, 9}),
        ({"parent_id": {"$exists": True}}, {1, 3, 5, 7, 9}),
        ({"parent_id": {"$nin": [None]}}, {1, 3, 5, 7, 9}),
        ({"expires_at": {"$lt": NOON}}, set()),
        ({"expires_at": {"$not": {"$lt": NOON}}}, ALL),
        ({"created_at": {"$gte": "1970-01-01T00:00:09Z"}}, {9, 10}),
        ({"created_at": "1970-01-01T02:00:03+02:00"}, {3}),
        ({"created_at": {"$in": [datetime(1970, 1, 1, 0, 0, 4, tzinfo=UTC)]}}, {4}),
        ({"k": 1, "created_at": {"$lt": "1970-01-01T00:00:04Z"}}, {3}),
        ({"$or": [{"k": 1}, {"k": True}], "parent_id": "p"}, {3}),
        ({"$and": [{"k": {"$ne": 1}}, {"$not": {"k": None}}], "parent_id": "p"}, {5, 7, 9}),
    ],
    ids=lambda value: ascii(value)[:60],
)
def test_filters_match_as_defined(few: Rows, where: Any, ids: set[int]) -> None:
    assert few.check(where) == {str(number) for number in ids}


def test_list_count_and_search_take_filters(store: MemoryStore) -> None:
    store.add_many(NewMemory(f"record {n}", id=str(n), metadata={"n": n}) for n in range(9))
    where = {"n": {"$gte": 3, "$lt": 8}, "$not": {"n": {"$in": [4, 5]}}}
    assert [memory.id for memory in store.list(where=where)] == ["3", "6", "7"]
    assert store.count(where=where) == 3
    assert {hit.id for hit in store.search("record", where=where)} == {"3", "6", "7"}


def test_filters_work_on_past_versions() -> None:
    condition = compile_filter(
        {"k": {"$contains": 1}, "id": "a", "n": {"$gt": 1}, "expires_at": None}, versions
    )
    statement = select(versions.c.key).where(condition)  # type: ignore[arg-type]
    text = str(statement.compile(dialect=SQLiteDialect()))
    assert "memories" not in text
    assert text.count("FROM versions") == 1


def test_a_filter_means_the_same_inside_a_larger_condition(few: Rows) -> None:
    either = compile_filter((F.k == 1) | (F.k == "1"))
    with few.database.read() as connection:
        statement = select(memories.c.id).where(memories.c.id == "5").where(either)  # type: ignore[arg-type]
        assert connection.execute(statement).scalars().all() == ["5"]
        opposite = select(memories.c.id).where(memories.c.id < "6", not_(either))  # type: ignore[arg-type]
        assert set(connection.execute(opposite).scalars()) == {"0", "1", "10", "2"}


# -- Limits -------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [100, 20_000])
def test_long_lists_are_one_parameter(few: Rows, count: int) -> None:
    values = [*range(1, count), "Axx", None]
    assert few.check({"k": {"$in": values}}) == {"1", "3", "4", "9"}
    assert few.check({"k": {"$nin": values}}) == {"0", "2", "5", "6", "7", "8", "10"}
    assert few.check({"id": {"$in": [str(number) for number in range(5, count)]}}) == {
        "5", "6", "7", "8", "9", "10"
    }  # fmt: skip
    condition = compile_filter({"k": {"$in": values}})
    compiled = condition.compile(dialect=SQLiteDialect())  # type: ignore[union-attr]
    assert max(len(str(value)) for value in compiled.params.values()) > count
    assert len(compiled.params) < 10


def chain(depth: int) -> Filter:
    found: Filter = F.k == 0
    for level in range(depth):
        found = (F.k == level) | found if level % 2 else (F.k != level) & found
    return found


def bush(depth: int, fill: int) -> Filter:
    """Pairs of pairs, each at the end of a chain."""
    if depth == 0:
        return F.tags.contains("x")
    inner = bush(depth - 1, fill)
    made = inner & bush(depth - 1, fill) if depth % 2 else inner | bush(depth - 1, fill)
    for level in range(fill):
        other = F.k.contains(level)
        made = made | other if (depth + level) % 2 else made & other
    return made


def wide_chain(depth: int, members: int) -> Filter:
    found: Filter = F.tags.contains("x")
    for level in range(depth):
        tests = [F.tags.contains(number) for number in range(members)]
        position = (0, members // 2, members)[level % 3]
        row = (*tests[:position], found, *tests[position:])
        found = filters.Or(row) if level % 2 else filters.And(row)
    return found


def random_tree(rng: random.Random, tests: int, depth: int, conjunction: bool) -> Filter:
    if tests == 1 or depth == 0:
        return rng.choice([F.k == 1, F.tags.contains("a"), ~F.k.like("a%"), F.parent_id == "p"])
    count = rng.randint(2, min(tests, rng.choice([2, 2, 3, 40])))
    cuts = sorted(rng.sample(range(1, tests), count - 1)) if tests > count else range(1, count)
    sizes = [end - start for start, end in itertools.pairwise([0, *cuts, tests])]
    if rng.random() < 0.5:
        sizes = [1] * (count - 1) + [tests - count + 1]
    members = [random_tree(rng, size, depth - 1, not conjunction) for size in sizes]
    made: Filter = (filters.And if conjunction else filters.Or)(tuple(members))
    return ~made if depth > 20 and rng.random() < 0.1 else made


LARGEST = {
    "a row": filters.Or(tuple(F.k == number for number in range(MAX_COMPARISONS))),
    "a row in a row": filters.And(
        (*(F.k != n for n in range(500)), ~filters.Or(tuple(F.k == n for n in range(500))))
    ),
    "a chain": chain(MAX_DEPTH),
    "a chain turned over": ~chain(MAX_DEPTH - 1),
    "negations": reduce(lambda made, _: ~made, range(MAX_DEPTH), F.k == 1),
    "pairs": bush(9, 0),
    "pairs in chains": bush(6, 3),
    "a wide chain": wide_chain(MAX_DEPTH, 31),
}


@pytest.mark.parametrize("tree", LARGEST.values(), ids=LARGEST.keys())
def test_the_database_accepts_the_largest_filters(few: Rows, tree: Filter) -> None:
    few.check(tree)


def test_the_database_accepts_random_large_filters(few: Rows) -> None:
    rng = random.Random(5)
    for _ in range(10):
        few.check(random_tree(rng, rng.choice([50, 300, 900]), 25, rng.random() < 0.5))


def test_the_largest_filters_use_little_of_pythons_stack(few: Rows) -> None:
    limit = sys.getrecursionlimit()
    frame, depth = sys._getframe(), 0
    while frame.f_back is not None:
        frame, depth = frame.f_back, depth + 1
    sys.setrecursionlimit(depth + 700)
    try:
        for tree in LARGEST.values():
            few.found(tree)
    finally:
        sys.setrecursionlimit(limit)


def nested(depth: int, name: str) -> dict[str, Any]:
    where: dict[str, Any] = {"k": 1}
    for _ in range(depth):
        where = {"$not": where} if name == "$not" else {name: [where, {"k": 2}]}
    return where


def test_filters_that_are_too_deep_are_refused_before_they_are_read() -> None:
    assert parse(nested(MAX_DEPTH, "$not")) is not None
    cyclic: dict[str, Any] = {"k": 1}
    cyclic["$or"] = [cyclic, cyclic]
    shared: Any = {"k": 1}
    for _ in range(MAX_DEPTH - 1):
        shared = {"$or": [{"$and": [shared, shared]}, shared]}
    operators: Any = {"$eq": 1}
    for _ in range(50):
        operators = {"$not": operators}
    deep: list[Any] = [
        nested(MAX_DEPTH + 1, "$not"), nested(100_000, "$and"), cyclic, shared, {"k": operators}
    ]  # fmt: skip
    for where in deep:
        with pytest.raises(FilterError, match=r"nested deeper|more than 1000 comparisons"):
            parse(where)
    deepest = reduce(lambda made, _: ~made, range(MAX_DEPTH), F.k == 1)
    with pytest.raises(FilterError, match="nested deeper"):
        filters.Not(deepest)
    largest = reduce(operator.or_, [F.k == number for number in range(MAX_COMPARISONS)])
    with pytest.raises(FilterError, match="more than 1000 comparisons"):
        largest | largest


# -- Refusals -----------------------------------------------------------------------------------

REFUSED: list[Any] = [
    {"') OR 1=1 --": 1}, {'$."a"': 1}, {"a.b[0]": 1}, {"a..b": 1}, {"": 1}, {3: 1}, {None: 1},
    {"a\\": 1}, {"metadata.": 1}, {"a.$b": 1}, {"a\nb": 1}, {"\ud800": 1}, {"a\0": 1}, {"a'b": 1},
    {"$regex": 1}, {"$": 1}, {"$where": "1"}, {"$nor": [{"a": 1}]}, {"$eq": 1},
    {"$or": []}, {"$and": []}, {"$or": {}}, {"$or": "abc"}, {"$or": {"a": 1}}, {"$or": [{}]},
    {"$or": [1]}, {"$and": [None]}, {"$not": {}}, {"$not": [{"a": 1}]}, {"$not": None},
    {"$or": b"a"}, {"a": {}}, {"a": {"$regex": "x"}}, {"a": {"b": 1}}, {"a": {3: 1}},
    {"a": {"$or": [{"a": 1}]}}, {"a": {"$not": 1}}, {"a": {"$not": {}}}, {"a": {"$not": {"b": 1}}},
    {"'": {}},
    {"a": {"$gt": True}}, {"a": {"$gt": None}}, {"a": {"$lte": [1]}}, {"a": {"$gt": {"b": 1}}},
    {"a": {"$in": 3}}, {"a": {"$in": "abc"}}, {"a": {"$in": b"abc"}}, {"a": {"$in": {1: 2}}},
    {"a": {"$in": [[1]]}}, {"a": {"$nin": [float("nan")]}}, {"a": {"$in": [2**63]}},
    {"a": {"$exists": 1}}, {"a": {"$exists": None}}, {"a": {"$exists": 10**5000}},
    {"a": {"$like": 1}}, {"a": {"$like": "x\\"}}, {"a": {"$like": "\\\\\\"}},
    {"a": {"$like": "x" * (MAX_PATTERN + 1)}}, {"a": {"$like": "x\0"}},
    {"a": {"$contains": [1]}}, {"a": {"$contains": "\ud800"}}, {"a": {"$contains": {"x": 1}}},
    {"a": float("nan")}, {"a": float("-inf")}, {"a": 2**63}, {"a": -(2**63) - 1}, {"a": 10**5000},
    {"a": "\ud800"}, {"a": "x\0"}, {"a": b"x"}, {"a": [1]}, {"a": NOON}, {"a": (1,)}, {"a": {1}},
    {"a": F.b}, {"a": F.b == 1},
    {"id": 1}, {"id": None}, {"content": True}, {"namespace": {"$in": ["a", 1]}}, {"parent_id": 3},
    {"parent_id": {"$gt": None}}, {"expires_at": {"$lt": None}}, {"importance": None},
    {"importance": "1"}, {"importance": True}, {"importance": {"$like": "1"}}, {"id": {"$like": 1}},
    {"parent_id": {"$contains": None}}, {"expires_at": {"$like": None}},
    {"importance": {"$contains": 1}}, {"content": {"$contains": 1}}, {"importance": float("nan")},
    {"created_at": None}, {"created_at": 1}, {"created_at": "2020-01-01"}, {"created_at": "soon"},
    {"created_at": datetime(2020, 1, 1)}, {"created_at": {"$contains": "2020"}},
    {"created_at": "0001-01-01T00:00:00+12:00"},
    {"updated_at": {"$in": [NOON, "2020-01-01T00:00"]}}, {"expires_at": {"$exists": "yes"}},
    ["a"], "a", 3, [], F, F.a,
]  # fmt: skip


@pytest.mark.parametrize("where", REFUSED, ids=lambda where: ascii(type(where))[:30])
def test_malformed_filters_are_refused(where: Any) -> None:
    with pytest.raises(FilterError) as caught:
        compile_filter(where)
    assert caught.value.field.startswith("where")
    assert len(str(caught.value)) < 500


def test_errors_name_the_field_and_the_valid_choices() -> None:
    for where, field, words in [
        ({"year": {"$gte": None}}, "where.year", "$gte takes a number"),
        ({"year": {"$regex": "x"}}, "where.year", "$eq, $ne, $gt"),
        ({"$nor": []}, "where.$nor", "$and, $or, $not"),
        ({"$or": [{"user.name": b"x"}]}, "where.user.name", "bytes"),
        ({"id": 5}, "where.id", "takes text, not int"),
        ({"parent_id": {"$contains": None}}, "where.parent_id", "$contains takes text, not None"),
        ({"k": 10**5000}, "where.k", "64 bits"),
    ]:
        with pytest.raises(FilterError) as caught:
            parse(where)  # type: ignore[arg-type]
        assert caught.value.field == field
        assert words in str(caught.value)


@pytest.mark.parametrize("key", ["') OR 1=1 --", '"', "a..b", "", "a[0]", "$"])
def test_the_builder_refuses_the_same_keys(key: str) -> None:
    for field in (F[key], F.a[key]):
        with pytest.raises(FilterError):
            field.exists()
    with pytest.raises(FilterError):
        parse_path(key)
    with pytest.raises(FilterError):
        filters.Comparison(key, "$eq", 1)


def test_none_and_an_empty_dict_are_no_filter() -> None:
    empty: dict[str, Any] = {}
    for where in (None, empty):
        assert parse(where) is None
        assert compile_filter(where) is None
    assert canonical(None) == "null"


# -- Filters as values and the builder ----------------------------------------------------------


def test_dicts_and_the_builder_make_the_same_filters() -> None:
    pairs: list[tuple[Any, Any]] = [
        ({"year": 2020}, F.year == 2020),
        ({"year": {"$gte": 2020, "$lt": 2030}}, (F.year >= 2020) & (F.year < 2030)),
        ({"user.name": "x"}, F.user.name == "x"),
        ({"a key": {"$ne": 1}}, F["a key"] != 1),
        ({"a.b.c": {"$gt": 1}}, F.a["b.c"] > 1),
        ({"tags": {"$contains": "x"}}, F.tags.contains("x")),
        ({"title": {"$like": "a%"}}, F.title.like("a%")),
        ({"year": {"$in": [1, 2]}}, F.year.in_([1, 2])),
        ({"year": {"$in": (1, 2)}}, F["metadata.year"].in_(range(1, 3))),
        ({"year": {"$nin": [1]}}, F.year.not_in([1])),
        ({"year": {"$exists": True}}, F.year.exists()),
        ({"year": {"$exists": False}}, F.year.exists(False)),
        ({"metadata.id": 1}, F.metadata.id == 1),
        ({"id": "1"}, F.id == "1"),
        ({"$or": [{"a": 1}, {"b": 2}], "c": 3}, ((F.a == 1) | (F.b == 2)) & (F.c == 3)),
        ({"a": {"$not": {"$gt": 1}}}, ~(F.a > 1)),
        ({"$not": {"a": 1, "b": 2}}, ~((F.a == 1) & (F.b == 2))),
        ({"$and": [{"a": 1}, {"b": 2, "c": 3}]}, (F.a == 1) & (F.b == 2) & (F.c == 3)),
        ({"$or": [F.a == 1, {"b": 2}]}, (F.a == 1) | (F.b == 2)),
        ({"created_at": {"$lt": "2026-01-01T12:00:00Z"}}, F.created_at < NOON),
        ({"a": 1}, F.a == 1),
        ({"a": {"$gt": 1}}, F.a > 1),
    ]
    for where, tree in pairs:
        assert parse(where) == parse(tree) == tree
        assert hash(parse(where)) == hash(tree)


def test_python_operators_that_cannot_make_filters_raise() -> None:
    one, other = F.a == 1, F.b == 2
    for use in (
        lambda: one and other,
        lambda: one or other,
        lambda: not one,
        lambda: 1 < F.a < 5,
    ):
        with pytest.raises(TypeError, match=r"& \| ~"):
            use()
    with pytest.raises(TypeError, match="exists"):
        bool(F.a)
    with pytest.raises(TypeError, match="contains"):
        _ = "x" in F.tags
    with pytest.raises(TypeError):
        one & True  # type: ignore[operator]
    with pytest.raises(TypeError):
        hash(F.a)
    with pytest.raises(FilterError):
        list(F.a)  # type: ignore[call-overload]
    for name in ("_a", "__len__"):
        with pytest.raises(AttributeError):
            getattr(F.a, name)
        with pytest.raises(AttributeError):
            getattr(F, name)
    assert F["_a"].contains(1) == parse({"_a": {"$contains": 1}})
    assert F.user["like"].exists() == parse({"user.like": {"$exists": True}})


def test_constructors_refuse_invalid_filters() -> None:
    for make in (
        lambda: filters.Comparison('a"', "$eq", 1),
        lambda: filters.Comparison("a", "=", 1),
        lambda: filters.Comparison("a", "$eq", object()),
        lambda: filters.And(()),
        lambda: filters.Or((F.a == 1, "b")),  # type: ignore[arg-type]
        lambda: filters.Not(None),  # type: ignore[arg-type]
    ):
        with pytest.raises(FilterError):
            make()


def test_filters_can_be_copied_and_pickled() -> None:
    tree = ((F.a == 1) | F.created_at.exists()) & ~(F.created_at > NOON)
    assert copy.deepcopy(tree) == tree
    assert pickle.loads(pickle.dumps(tree)) == tree
    assert repr(F.a.b) == "F['a.b']"
    assert "metadata.a" in repr(tree)


def test_values_of_subclasses_become_plain_values() -> None:
    import enum

    import numpy as np

    class Colour(str, enum.Enum):
        RED = "red"

    class Level(enum.IntEnum):
        HIGH = 3

    for value, plain in [(Colour.RED, "red"), (Level.HIGH, 3), (np.float64(0.5), 0.5)]:
        test = F.k == value
        assert isinstance(test, filters.Comparison)
        assert type(test.value) is type(plain)
        assert canonical(test) == canonical(F.k == plain)
    for value in (np.int64(3), np.bool_(True), np.array([1])):
        with pytest.raises(FilterError, match="None, bool, int, float or str"):
            _ = F.k == value


def test_different_filters_have_different_canonical_texts() -> None:
    different = [
        None, F.k == 1, F.k == True, F.k == 1.0, F.k == "1", F.k == None, F.k == "null",  # noqa: E711, E712
        F.k == False, F.k == 0, F.k == "true", F.k != 1, F.k > 1, F.k >= 1, F.j == 1,  # noqa: E712
        F.k.in_([1]), F.k.in_([True]), F.k.in_(["1"]), F.k.in_([1, 2]), F.k.in_([2, 1]),
        F.k.in_([]), F.k.not_in([1]), F.k.exists(), F.k.exists(False), F.k.contains(1),
        F.k.contains("1"),
        F.k.like("1"), ~(F.k == 1), (F.k == 1) & (F.j == 1), (F.j == 1) & (F.k == 1),
        (F.k == 1) | (F.j == 1), ~((F.k == 1) & (F.j == 1)), F.id == "1", F.metadata.id == "1",
        F.created_at == NOON, F.created_at == NOON + timedelta(microseconds=1),
        F.updated_at == NOON, F.created_at.exists(), F.k == 2**53, F.k == 2**53 + 1,
        F.k == 2.0**53, F.k == "é",
        F["k.j"] == 1, ((F.a == 1) | (F.b == 1)) & (F.c == 1),
        (F.a == 1) | ((F.b == 1) & (F.c == 1)),
    ]  # fmt: skip
    assert len({canonical(each) for each in different}) == len(different)
    assert len(set(different)) == len(different)


def test_equal_filters_have_equal_canonical_texts() -> None:
    east = NOON.astimezone(timezone(timedelta(hours=5)))
    for one, other in [
        (F.created_at == NOON, F.created_at == east),
        (F.created_at == NOON, F.created_at == east.isoformat()),
        (F.k == 1, F.metadata.k == 1),
        (F.k == 1, filters.And((F.k == 1,))),
        (filters.Not(filters.Or((F.k == 1,))), ~(F.k == 1)),
        ((F.a == 1) & ((F.b == 1) & (F.c == 1)), ((F.a == 1) & (F.b == 1)) & (F.c == 1)),
    ]:
        assert canonical(one) == canonical(other)
        assert one == other


def test_paths_are_parsed_with_and_without_the_prefix() -> None:
    assert parse_path("year") == parse_path("metadata.year") == ("year",)
    assert parse_path("user.first name") == ("user", "first name")
    assert parse_path("metadata") == ("metadata",)
    assert parse_path("metadata.id") == ("id",)
    with pytest.raises(FilterError, match=r"metadata\.id"):
        parse_path("id")


# -- Indexes ------------------------------------------------------------------------------------


def create_index(connection: Any, name: str, key: str) -> None:
    index = Index(name, field_expression(parse_path(key)))
    try:
        connection.execute(CreateIndex(index))
    finally:
        memories.indexes.discard(index)


@pytest.fixture(params=["by hand", "by field_expression"])
def indexed(request: pytest.FixtureRequest, tmp_path: Any) -> Iterator[Rows]:
    rng = random.Random(2)
    opened = open_rows(tmp_path, [random_row(rng, number) for number in range(50)])
    with opened.database.write() as connection:
        if request.param == "by hand":
            sql = "CREATE INDEX ix_year ON memories (json_extract(metadata, '$.\"year\"'))"
            connection.exec_driver_sql(sql)
        else:
            create_index(connection, "ix_year", "year")
    yield opened
    opened.database.close()


@pytest.mark.parametrize(
    ("where", "used"),
    [
        ({"year": 2020}, "ix_year (<expr>=?)"),
        ({"year": "x"}, "ix_year (<expr>=?)"),
        ({"year": {"$in": [2020, 2021, "x"]}}, "ix_year (<expr>=?)"),
        ({"year": {"$in": list(range(5_000))}}, "ix_year (<expr>=?)"),
        ({"year": {"$gt": 2020}}, "ix_year (<expr>>?)"),
        ({"year": {"$gte": 2020}}, "ix_year (<expr>>?)"),
        ({"year": {"$lt": 2020}}, "ix_year (<expr><?)"),
        ({"year": {"$lte": 2020}}, "ix_year (<expr><?)"),
        ({"year": {"$gte": 2018, "$lt": 2021}}, "ix_year (<expr>>? AND <expr><?)"),
        ({"lang": "en", "year": {"$gte": 2018}, "tags": {"$contains": 1}}, "ix_year (<expr>>?)"),
        ({"$not": {"$or": [{"k": 1}, {"year": {"$not": {"$eq": 2020}}}]}}, "ix_year (<expr>=?)"),
        ({"metadata.year": 2020, "$or": [{"a": 1}, {"b": 2}]}, "ix_year (<expr>=?)"),
        ({"id": "a1"}, "(id=?)"),
        ({"id": {"$in": ["a1", "a2"]}}, "(id=?)"),
        ({"parent_id": "a"}, "(parent_id=?)"),
        ({"parent_id": None}, "(parent_id=?)"),
    ],
    ids=lambda value: ascii(value)[:60],
)
def test_a_filter_uses_an_index(indexed: Rows, where: Any, used: str) -> None:
    assert used in indexed.plan(where)
    indexed.check(where)


def test_several_comparisons_of_a_field_use_its_index(indexed: Rows) -> None:
    plan = indexed.plan({"$or": [{"year": 2020}, {"year": {"$gt": 2024}}]})
    assert plan.count("ix_year") == 2, (plan, driver.sqlite_version)
