"""What databases spell differently in SQL, as SQLAlchemy elements.

An element says what is meant; a module of each database says how it is written there. Nothing here
names a database or holds SQL text.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import (
    Boolean,
    ClauseElement,
    ColumnElement,
    Dialect,
    Executable,
    FromClause,
    Insert,
    Integer,
    Select,
    TableValuedAlias,
    Text,
    bindparam,
    literal_column,
    select,
)
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import UserDefinedType

JsonPath = tuple[str, ...]
"""Keys from the outermost inwards; none holds quotes or control characters."""

# -- JSON ---------------------------------------------------------------------------------------


class JsonType(FunctionElement[Any]):
    """The JSON type at a path; see `json_type`."""

    name = "json_type"
    inherit_cache = True


class JsonValue(FunctionElement[Any]):
    """The value at a path; see `json_value`."""

    name = "json_value"
    inherit_cache = True


class JsonText(FunctionElement[Any]):
    """The value at a path as a text; see `json_text`."""

    name = "json_text"
    inherit_cache = True


class JsonElements(FunctionElement[Any]):
    """The elements of an array at a path, as rows with `type` and `value`; see `has_element`."""

    name = "json_elements"
    inherit_cache = True


class JsonArray(FunctionElement[str]):
    """All values of a column as one JSON array; see `json_array`."""

    name = "json_array"
    type = Text()
    inherit_cache = True


def json_type(column: ColumnElement[Any], path: JsonPath) -> ColumnElement[str | None]:
    """The JSON type of the value at a path of a JSON column.

    Args:
        column: JSON objects as text.
        path: where to look.

    Returns:
        An expression: "null", "true", "false", "integer", "real", "text", "array" or "object"; SQL
        NULL where the path leads to nothing.
    """
    return JsonType(column, _path(path))


def json_value(column: ColumnElement[Any], path: JsonPath) -> ColumnElement[Any]:
    """The number or text at a path of a JSON column, as SQL compares it; see `json_type`.

    An index on this expression answers comparisons with it.
    """
    return JsonValue(column, _path(path))


def json_text(column: ColumnElement[Any], path: JsonPath) -> ColumnElement[Any]:
    """The value at a path of a JSON column as a text, written twice; see `json_type`.

    Two texts are equal where type and value are equal: "[1,1]", "[1.0,1.0]", "[true,true]" and
    '["1","1"]' differ. A missing value reads as null.
    """
    return JsonText(column, _path(path), _path(path))


def has_element(
    column: ColumnElement[Any],
    path: JsonPath,
    condition: Callable[[ColumnElement[Any], ColumnElement[Any]], ColumnElement[bool]],
) -> ColumnElement[bool]:
    """Whether some element of an array at a path of a JSON column meets a condition.

    Args:
        column: as `json_type` takes it; the value at the path must be an array.
        path: as `json_type` takes it.
        condition: takes the JSON type and the value of an element.
    """
    element = JsonElements(column, _path(path)).table_valued("type", "value")
    wanted = condition(element.c.type, element.c.value)
    one: ColumnElement[int] = literal_column("1")
    found = select(one).select_from(element).where(wanted)
    return found.correlate_except(element).exists()


def json_array(column: ColumnElement[Any]) -> ColumnElement[str]:
    """Aggregates a column to one JSON array."""
    return JsonArray(column)


@functools.singledispatch
def path_literal(dialect: Dialect) -> Any:
    """The function that writes a path as a quoted literal; each database registers its own."""
    raise NotImplementedError(f"no JSON paths for {dialect.name}")


class _PathType(UserDefinedType[JsonPath]):
    cache_ok = True

    def literal_processor(self, dialect: Dialect) -> Any:
        return path_literal(dialect)


def _path(path: JsonPath) -> ColumnElement[JsonPath]:
    # Written into the statement, not bound: a database uses an index on an expression only where
    # the statement holds the same expression.
    return bindparam(None, path, _PathType(), literal_execute=True, unique=True)


# -- Lists of values ----------------------------------------------------------------------------


class Elements(FunctionElement[Any]):
    """A list of values as rows; see `value_list`."""

    name = "elements"
    inherit_cache = True


@functools.singledispatch
def list_encoder(dialect: Dialect) -> Any:
    """The function that makes one parameter of a list; each database registers its own."""
    raise NotImplementedError(f"no lists for {dialect.name}")


class ListType(UserDefinedType[Sequence[Any]]):
    """The type of a parameter that is a list of numbers or texts."""

    cache_ok = True

    def bind_processor(self, dialect: Dialect) -> Any:
        """Translate a list for the driver."""
        return list_encoder(dialect)


def value_list(values: Sequence[float | str]) -> Select[Any]:
    """The values as rows, for `IN`: one parameter, however many they are."""
    rows = Elements(bindparam(None, values, ListType(), unique=True)).table_valued("value")
    return select(rows.c.value)


def list_parameter(name: str) -> Select[Any]:
    """A list that is given when a `Prepared` statement runs, as rows for `IN`."""
    return select(list_rows(name).c.value)


def list_rows(name: str) -> TableValuedAlias:
    """The same as rows to join, with a column `value`; a join is faster than `IN`."""
    return Elements(bindparam(name, type_=ListType())).table_valued("value")


# -- Texts and bytes ----------------------------------------------------------------------------


class Position(FunctionElement[int]):
    """Where a text begins in another one, from 1 on; 0 where it does not occur."""

    name = "position"
    type = Integer()
    inherit_cache = True


class Like(FunctionElement[bool]):
    """Whether a text matches a pattern; see `matches_pattern`."""

    name = "matches_pattern"
    type = Boolean()
    inherit_cache = True


class ByteLength(FunctionElement[int]):
    """The length of a BLOB in bytes."""

    name = "byte_length"
    type = Integer()
    inherit_cache = True


class Joined(FunctionElement[str]):
    """All values of a column as one text; see `joined`."""

    name = "joined"
    type = Text()
    inherit_cache = True


def holds_text(text: ColumnElement[Any], part: str) -> ColumnElement[bool]:
    """Whether a text holds another one, letter by letter."""
    return Position(text, part) > 0


def matches_pattern(text: ColumnElement[Any], pattern: str) -> ColumnElement[bool]:
    r"""Whether a whole text matches a LIKE pattern, in which a backslash escapes `%` and `_`.

    A-Z match a-z; other letters match only themselves.
    """
    return Like(text, pattern)


def byte_length(blob: ColumnElement[Any]) -> ColumnElement[int]:
    """The length of a BLOB in bytes."""
    return ByteLength(blob)


def joined(texts: ColumnElement[Any]) -> ColumnElement[str]:
    """Aggregates texts to one text, with a space between two of them."""
    return Joined(texts)


# -- Numbers and plans --------------------------------------------------------------------------


class Greatest(FunctionElement[int]):
    """The greatest of some numbers; see `greatest`."""

    name = "greatest"
    type = Integer()
    inherit_cache = True


class Unindexed(FunctionElement[Any]):
    """A column that no index is used for; see `unindexed`."""

    name = "unindexed"
    inherit_cache = True


def greatest(*numbers: ColumnElement[Any]) -> ColumnElement[int]:
    """The greatest of some numbers; none is NULL."""
    return Greatest(*numbers)


class _UnindexedColumns:
    """The columns of a table, as expressions that no index is used for."""

    def __init__(self, rows: FromClause, but: str) -> None:
        self._rows = rows
        self._but = but

    @property
    def c(self) -> _UnindexedColumns:
        """The columns, by name."""
        return self

    def __getitem__(self, name: str) -> ColumnElement[Any]:
        column = self._rows.c[name]
        return column if name == self._but else Unindexed(column)

    __getattr__ = __getitem__


def unindexed(rows: FromClause, *, but: str) -> FromClause:
    """The same columns, of which only one may use its index: so rows come in that order."""
    return _UnindexedColumns(rows, but)  # type: ignore[return-value]  # has what a condition reads


# -- Writing ------------------------------------------------------------------------------------


class InsertMissing(Insert):
    """An INSERT that skips a row that the table refuses: another one has its key."""

    inherit_cache = True


class InsertOrReplace(Insert):
    """An INSERT that replaces the row that has the same key."""

    inherit_cache = True


class InsertRows(Executable, ClauseElement):
    """The INSERT of one row, by position: values in the order of `columns`.

    Args:
        table: its name.
        columns: their names.
    """

    inherit_cache = False

    def __init__(self, table: str, columns: Sequence[str]) -> None:
        self.table = table
        self.columns = columns


class UpdateRows(Executable, ClauseElement):
    """The UPDATE of several rows, by position: for each row the values, then its key.

    Args:
        table: the name of a table with a `key`.
        columns: the names of those that are set; a value of `recorded_at` never goes back.
        count: how many rows.
    """

    inherit_cache = False

    def __init__(self, table: str, columns: Sequence[str], count: int) -> None:
        self.table = table
        self.columns = columns
        self.count = count


class FillInVectors(Executable, ClauseElement):
    """The INSERT of a vector for every memory that holds one of some texts and lacks one.

    By position: for each text its hash and its vector, then space, seq, and the space again.

    Args:
        count: how many texts.
    """

    inherit_cache = False

    def __init__(self, count: int) -> None:
        self.count = count


class IndexNames(Executable, ClauseElement):
    """The SELECT of the names of all indexes of the database."""

    inherit_cache = True
