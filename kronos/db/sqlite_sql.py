"""How SQLite writes the elements of `kronos.db.sql`."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import Insert
from sqlalchemy.dialects.sqlite.base import SQLiteDialect
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from kronos.concurrency.large_values import to_json
from kronos.db import sql

_FEW = 1000
_JSON = json.JSONEncoder(ensure_ascii=False, allow_nan=False)


def _arguments(
    element: FunctionElement[Any], compiler: SQLCompiler, options: dict[str, Any]
) -> list[str]:
    return [compiler.process(clause, **options) for clause in element.clauses]


def _call(name: str, element: FunctionElement[Any], compiler: SQLCompiler, **options: Any) -> str:
    return f"{name}({', '.join(_arguments(element, compiler, options))})"


for _element, _name in {
    sql.JsonType: "json_type",
    sql.JsonValue: "json_extract",
    # With two paths it gives an array, which shows the types of its members.
    sql.JsonText: "json_extract",
    sql.JsonElements: "json_each",
    sql.JsonArray: "json_group_array",
    sql.Elements: "json_each",
    sql.Position: "instr",
    sql.ByteLength: "length",
    sql.Greatest: "max",
}.items():
    compiles(_element, "sqlite")(functools.partial(_call, _name))


@sql.path_literal.register
def _path_literal(_: SQLiteDialect) -> Callable[[sql.JsonPath], str]:
    def literal(path: sql.JsonPath) -> str:
        text = "$" + "".join(f'."{key}"' for key in path)
        return "'" + text.replace("'", "''") + "'"

    return literal


@sql.list_encoder.register
def _list_encoder(_: SQLiteDialect) -> Callable[[Sequence[Any]], str]:
    return _as_json


def _as_json(values: Sequence[Any]) -> str:
    # Most lists are a few keys, which Python writes as JSON does, and sooner.
    if len(values) < _FEW and type(values) is list and set(map(type, values)) == {int}:
        return str(values)
    return to_json(values, _JSON)


@compiles(sql.Like, "sqlite")
def _like(element: sql.Like, compiler: SQLCompiler, **options: Any) -> str:
    text, pattern = _arguments(element, compiler, options)
    return rf"{text} LIKE {pattern} ESCAPE '\'"


@compiles(sql.Joined, "sqlite")
def _joined(element: sql.Joined, compiler: SQLCompiler, **options: Any) -> str:
    (texts,) = _arguments(element, compiler, options)
    return f"group_concat({texts}, ' ')"


@compiles(sql.Unindexed, "sqlite")
def _unindexed(element: sql.Unindexed, compiler: SQLCompiler, **options: Any) -> str:
    (column,) = _arguments(element, compiler, options)
    return f"+{column}"


@compiles(sql.InsertMissing, "sqlite")
def _insert_missing(element: sql.InsertMissing, compiler: SQLCompiler, **options: Any) -> str:
    return _insert(element.prefix_with("OR IGNORE"), compiler, options)


@compiles(sql.InsertOrReplace, "sqlite")
def _insert_or_replace(element: sql.InsertOrReplace, compiler: SQLCompiler, **options: Any) -> str:
    return _insert(element.prefix_with("OR REPLACE"), compiler, options)


def _insert(element: Insert, compiler: SQLCompiler, options: dict[str, Any]) -> str:
    text: str = compiler.visit_insert(element, **options)  # type: ignore[no-untyped-call]
    return text


# S608 below: the names are our own, the rest are question marks.


@compiles(sql.InsertRows, "sqlite")
def _insert_rows(element: sql.InsertRows, compiler: SQLCompiler, **options: Any) -> str:
    names, marks = ", ".join(element.columns), ", ".join("?" * len(element.columns))
    return f"INSERT INTO {element.table} ({names}) VALUES ({marks})"  # noqa: S608


@compiles(sql.UpdateRows, "sqlite")
def _update_rows(element: sql.UpdateRows, compiler: SQLCompiler, **options: Any) -> str:
    # Many rows a statement: between two statements FTS5 writes what its triggers have collected,
    # which takes several times as long.
    table, columns = element.table, element.columns
    new = {name: f"made.{name}" for name in columns}
    if "recorded_at" in new:
        new["recorded_at"] = f"max({table}.recorded_at, made.recorded_at)"
    marks = ", ".join("?" * (len(columns) + 1))
    return (
        f"WITH made ({', '.join(columns)}, key) AS"  # noqa: S608
        f" (VALUES {', '.join([f'({marks})'] * element.count)})"
        f" UPDATE {table} SET {', '.join(f'{name} = {value}' for name, value in new.items())}"
        f" FROM made WHERE {table}.key = made.key"
    )


@compiles(sql.FillInVectors, "sqlite")
def _fill_in_vectors(element: sql.FillInVectors, compiler: SQLCompiler, **options: Any) -> str:
    return _FILL_IN.format(rows=", ".join(["(?, ?)"] * element.count))


# WITH stands inside: of a statement that begins with it the driver counts no rows. CROSS JOIN: look
# up the memories by the hashes, not the hashes by memory.
_FILL_IN = """
    INSERT INTO vectors (space_id, memory_key, seq, content_hash, vector)
    WITH made (hash, blob) AS (VALUES {rows})
    SELECT ?, memories.key, ?, made.hash, made.blob
    FROM made CROSS JOIN memories
    WHERE memories.content_hash = made.hash AND NOT EXISTS (
        SELECT 1 FROM vectors WHERE vectors.space_id = ? AND vectors.memory_key = memories.key
    )
"""


@compiles(sql.IndexNames, "sqlite")
def _index_names(element: sql.IndexNames, compiler: SQLCompiler, **options: Any) -> str:
    return "SELECT name FROM sqlite_master WHERE type = 'index'"
