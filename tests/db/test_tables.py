from __future__ import annotations

from sqlalchemy import Column, Integer
from sqlalchemy.dialects.postgresql.base import PGDialect
from sqlalchemy.dialects.sqlite.base import SQLiteDialect

from kronos.db.tables import metadata

COLUMNS = [column for table in metadata.sorted_tables for column in table.c]
POSTGRESQL = PGDialect()  # type: ignore[no-untyped-call]
COUNTS = {"dim", "attempts"}
"""The whole numbers that stay small."""


def whole_numbers() -> list[Column[int]]:
    return [column for column in COLUMNS if isinstance(column.type, Integer)]


def test_ids_and_seqs_have_64_bits_on_every_database() -> None:
    wide = [column for column in whole_numbers() if column.name not in COUNTS]
    assert {column.type.compile(POSTGRESQL) for column in wide} == {"BIGINT"}
    assert {column.type.compile(SQLiteDialect()) for column in wide} == {"BIGINT", "INTEGER"}


def test_a_column_that_refers_to_another_one_has_its_type() -> None:
    for column in COLUMNS:
        for key in column.foreign_keys:
            mine, other = (each.type.compile(POSTGRESQL) for each in (column, key.column))
            assert mine == other, column
