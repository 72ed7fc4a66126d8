"""Statements that run past SQLAlchemy, whose own execution takes longer than most of them.

A `Prepared` statement is compiled for a kind of database when it first runs on one. The transaction
translates what the driver raises; see `kronos.db.database`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from sqlalchemy import ClauseElement, Connection, Dialect
from sqlalchemy.sql.compiler import SQLCompiler

from kronos.db.sql import FillInVectors, InsertRows, ListType, UpdateRows, list_encoder

_ROWS_A_STATEMENT = 250


def driver_of(connection: Connection) -> Any:
    """The driver's connection below SQLAlchemy's."""
    return connection.connection.dbapi_connection


def fetch(connection: Connection, text: str, values: Sequence[Any] = ()) -> list[Any]:
    """Run SQL text of one database, and read all its rows."""
    rows: list[Any] = driver_of(connection).execute(text, values).fetchall()
    return rows


@contextmanager
def savepoint(connection: Connection) -> Iterator[None]:
    """A part of a write transaction: an error undoes it, and keeps what was written before."""
    run = driver_of(connection).execute
    run("SAVEPOINT part")
    try:
        yield
    except BaseException:
        run("ROLLBACK TO part")
        run("RELEASE part")
        raise
    run("RELEASE part")


class _Compiled(NamedTuple):
    text: str
    constants: dict[str, Any]
    lists: list[tuple[str, Callable[[Sequence[Any]], Any]]]
    """The parameters that are lists, and how to encode them."""


class Prepared:
    """A Core statement that is compiled once for each kind of database.

    Args:
        statement: its parameters are named by `bindparam`, or by `list_parameter` for lists.
    """

    def __init__(self, statement: ClauseElement) -> None:
        self._statement = statement
        self._compiled: dict[str, _Compiled] = {}

    def run(self, connection: Connection, **values: Any) -> int:
        """Write; returns how many rows were written."""
        count: int = self._execute(connection, values).rowcount
        return count

    def fetch(self, connection: Connection, **values: Any) -> list[Any]:
        """Read, or write and read what was written: all rows."""
        rows: list[Any] = self._execute(connection, values).fetchall()
        return rows

    def _execute(self, connection: Connection, values: dict[str, Any]) -> Any:
        dialect = connection.dialect
        compiled = self._compiled.get(dialect.name) or self._compile(dialect)
        for name, encode in compiled.lists:
            values[name] = encode(values[name])
        if compiled.constants:
            values.update(compiled.constants)
        return driver_of(connection).execute(compiled.text, values)

    def _compile(self, dialect: Dialect) -> _Compiled:
        compiled = self._statement.compile(dialect=_with_names(dialect))
        assert isinstance(compiled, SQLCompiler)
        constants = {
            name: value
            for name, value in compiled.params.items()
            if not compiled.binds[name].required
        }
        lists = [
            (name, list_encoder(dialect))
            for name in compiled.params
            if isinstance(compiled.binds[name].type, ListType)
        ]
        made = self._compiled[dialect.name] = _Compiled(str(compiled), constants, lists)
        return made


def _with_names(dialect: Dialect) -> Dialect:
    """The dialect with named parameters; its driver takes these too."""
    kind: Any = type(dialect)
    named: Dialect = kind(paramstyle="named") if dialect.positional else dialect
    return named


class _ByPosition:
    """The text of a statement whose parameters have no names, for each kind of database."""

    def __init__(self, statement: ClauseElement) -> None:
        self._statement = statement
        self._texts: dict[str, str] = {}

    def text(self, connection: Connection) -> str:
        dialect = connection.dialect
        found = self._texts.get(dialect.name)
        if found is None:
            found = self._texts[dialect.name] = str(self._statement.compile(dialect=dialect))
        return found


def insert_rows(
    connection: Connection, table: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]
) -> None:
    """Insert rows, whose values stand in the order of the columns."""
    text = _insert(table, tuple(columns)).text(connection)
    driver_of(connection).cursor().executemany(text, rows)


@functools.lru_cache(maxsize=16)
def _insert(table: str, columns: tuple[str, ...]) -> _ByPosition:
    return _ByPosition(InsertRows(table, columns))


def update_rows(
    connection: Connection, table: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]
) -> None:
    """Update rows.

    Args:
        connection: in a write transaction.
        table: one with a `key`.
        columns: which are set; a value of `recorded_at` never goes back.
        rows: the values in the order of the columns, then the key.
    """
    for start in range(0, len(rows), _ROWS_A_STATEMENT):
        part = rows[start : start + _ROWS_A_STATEMENT]
        text = _update(table, tuple(columns), len(part)).text(connection)
        driver_of(connection).execute(text, [value for row in part for value in row])


@functools.lru_cache(maxsize=64)
def _update(table: str, columns: tuple[str, ...], count: int) -> _ByPosition:
    return _ByPosition(UpdateRows(table, columns, count))


def fill_in_vectors(
    connection: Connection, space_id: int, seq: int, rows: Sequence[tuple[bytes, bytes]]
) -> int:
    """Store the vectors of texts: one for every memory that holds the text now and lacks one.

    Args:
        connection: in a write transaction.
        space_id: the space of the vectors.
        seq: the number of this change.
        rows: a text's hash and its vector.

    Returns:
        How many memories got a vector.
    """
    stored = 0
    for start in range(0, len(rows), _ROWS_A_STATEMENT):
        part = rows[start : start + _ROWS_A_STATEMENT]
        values = [value for row in part for value in row]
        text = _fill_in(len(part)).text(connection)
        stored += driver_of(connection).execute(text, [*values, space_id, seq, space_id]).rowcount
    return stored


@functools.lru_cache(maxsize=16)
def _fill_in(count: int) -> _ByPosition:
    # Many rows a statement: the database then works for long without Python's lock, and a thread
    # that embeds goes on meanwhile.
    return _ByPosition(FillInVectors(count))
