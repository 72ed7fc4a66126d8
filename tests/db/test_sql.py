"""The elements that each database spells in its own way, and statements made of them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from sqlalchemy import ColumnElement, Insert, bindparam, column, literal, select
from sqlalchemy.dialects.sqlite.base import SQLiteDialect
from sqlalchemy.exc import UnsupportedCompilationError

from kronos.db.database import Database
from kronos.db.sql import (
    IndexNames,
    InsertMissing,
    InsertOrReplace,
    byte_length,
    greatest,
    holds_text,
    joined,
    json_array,
    json_type,
    json_value,
    list_encoder,
    list_parameter,
    list_rows,
    matches_pattern,
    value_list,
)
from kronos.db.statements import Prepared
from kronos.db.tables import accesses, memories, store

DOCUMENT = {
    "null": None,
    "yes": True,
    "no": False,
    "int": -(2**63),
    "real": 0.5,
    "text": "§ é 🎈",
    "list": [1],
    "deep": {"er": {"key with space": 7}},
    "ключ": 1,
    "": 2,
}


@pytest.mark.parametrize(
    ("path", "kind", "value"),
    [
        (("null",), "null", None),
        (("yes",), "true", 1),
        (("no",), "false", 0),
        (("int",), "integer", -(2**63)),
        (("real",), "real", 0.5),
        (("text",), "text", "§ é 🎈"),
        (("list",), "array", "[1]"),
        (("deep", "er", "key with space"), "integer", 7),
        (("ключ",), "integer", 1),
        (("missing",), None, None),
        (("deep", "missing"), None, None),
        (("text", "of", "text"), None, None),
    ],
)
def test_json_functions_read_what_stands_at_a_path(
    empty: Database, path: tuple[str, ...], kind: str | None, value: Any
) -> None:
    document: ColumnElement[Any] = column("document")
    text = literal(json.dumps(DOCUMENT, ensure_ascii=False)).label("document")
    statement = select(json_type(document, path), json_value(document, path)).select_from(
        select(text).subquery()
    )
    with empty.read() as connection:
        assert tuple(connection.execute(statement).one()) == (kind, value)


def test_json_paths_are_bound_and_never_part_of_the_statement() -> None:
    hostile = ("') OR 1=1 --",)
    compiled = select(json_type(memories.c.metadata, hostile)).compile(dialect=SQLiteDialect())
    assert "1=1" not in str(compiled)
    assert list(compiled.params.values()) == [hostile]


def value_of(database: Database, expression: ColumnElement[Any]) -> Any:
    with database.read() as connection:
        return connection.execute(select(expression)).scalar_one()


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        (holds_text(literal("a bee"), "bee"), True),
        (holds_text(literal("a bee"), "Bee"), False),
        (matches_pattern(literal("A bee"), "a b_e"), True),
        (matches_pattern(literal("Ä bee"), "ä%"), False),
        (matches_pattern(literal("100 %"), r"100 \%"), True),
        (matches_pattern(literal("100 x"), r"100 \%"), False),
        (byte_length(literal("é".encode())), 2),
        (greatest(literal(1), literal(3), literal(2)), 3),
    ],
)
def test_expressions_mean_the_same_on_every_database(
    empty: Database, expression: ColumnElement[Any], value: object
) -> None:
    assert value_of(empty, expression) == value


def test_rows_are_joined_to_one_text_or_array(empty: Database) -> None:
    rows = value_list([3, 1, 2]).subquery()
    assert value_of(empty, joined(rows.c.value)) == "3 1 2"
    assert json.loads(value_of(empty, json_array(rows.c.value))) == [3, 1, 2]


@pytest.mark.parametrize(
    "values",
    [[], [1], [*range(5000)], [2**70, -1], [1.5, True, "ä'\"", 0], ["x" * 100_000], [True, False]],
    ids=lambda values: str(len(values)),
)
def test_a_list_is_one_parameter_and_comes_back_as_it_was(values: list[Any]) -> None:
    assert json.loads(list_encoder(SQLiteDialect())(values)) == values


def test_a_prepared_statement_takes_lists_and_is_compiled_once(empty: Database) -> None:
    found = list_rows("more")
    statement = Prepared(
        select(found.c.value, bindparam("name"), literal("fixed")).where(
            found.c.value.not_in(list_parameter("but"))
        )
    )
    for values in ([1, 2, 3], [2, 3]):
        with empty.read() as connection:
            rows = statement.fetch(connection, more=values, but=[1], name="n")
            assert [tuple(row) for row in rows] == [(2, "n", "fixed"), (3, "n", "fixed")]
    assert [*statement._compiled] == ["sqlite"]


@pytest.mark.parametrize(("again", "kept"), [(InsertMissing, 1), (InsertOrReplace, 2)])
def test_an_insert_may_skip_or_replace_a_row_with_its_key(
    database: Database, again: type[Insert], kept: int
) -> None:
    with database.migration() as connection:
        for time, kind in ((1, InsertMissing), (2, again)):
            connection.execute(kind(accesses), [{"memory_key": 7, "accessed_at": time}])
        assert connection.execute(select(accesses.c.accessed_at)).scalars().all() == [kept]


def test_the_names_of_indexes_are_read(database: Database) -> None:
    with database.read() as connection:
        names = {name for (name,) in Prepared(IndexNames()).fetch(connection)}
    assert {"ix_memories_namespace_key", "uq_spaces_active"} <= names


def test_a_database_without_a_spelling_is_refused() -> None:
    with pytest.raises(UnsupportedCompilationError):
        select(json_value(memories.c.metadata, ("a",)), store.c.seq).compile()
