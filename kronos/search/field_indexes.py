"""Indexes on metadata fields, so that filters on these fields read only rows that match.

`FieldIndexes` works in one open transaction, as `Repository` does. A field is a path into the
metadata as filters write it, and its index is on the expression that filters compare. The rows of
the table `fields` are the truth and the indexes follow: a migration that rewrites `memories` drops
them, and `ensure` creates the missing ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import (
    Column,
    Connection,
    Index,
    MetaData,
    Table,
    Text,
    delete,
    insert,
    select,
)
from sqlalchemy.schema import CreateIndex, DropIndex

from kronos.db.sql import IndexNames
from kronos.db.statements import Prepared
from kronos.db.tables import fields, memories
from kronos.errors import FilterError, InputError
from kronos.search.filters.compiler import field_expression
from kronos.search.filters.paths import METADATA, RECORD_FIELDS, full_name, parse_path, short_name

if TYPE_CHECKING:
    from kronos.repository.memories import Repository

_INDEX_NAMES = Prepared(IndexNames())


class FieldIndexes:
    """The indexed fields, in one open transaction.

    Args:
        connection: in a transaction; in a write transaction for methods that change something.
        now: the time, in microseconds since 1970 UTC.
    """

    def __init__(self, connection: Connection, now: int) -> None:
        self._connection = connection
        self._now = now

    @classmethod
    def of(cls, repository: Repository) -> FieldIndexes:
        """The indexed fields, in a repository's transaction."""
        return cls(repository.connection, repository.now)

    def add(self, path: str) -> bool:
        """Create the index of a field. It covers every memory when this returns.

        Args:
            path: a metadata key, with dots between levels; "metadata.year" and "year" are the same.

        Returns:
            Whether the field had no index before.

        Raises:
            InputError: the path is malformed, or names a field of the record.
        """
        path = _checked_path(path)
        number = self._number_of(path)
        is_new = number is None
        if number is None:
            row = insert(fields).values(path=path, created_at=self._now).returning(fields.c.id)
            number = int(self._connection.execute(row).scalar_one())
        self._create(number, path)
        return is_new

    def remove(self, path: str) -> bool:
        """Drop the index of a field. Filters on it work as before, and read more rows.

        Returns:
            Whether the field had an index.

        Raises:
            InputError: the path is malformed, or names a field of the record.
        """
        path = _checked_path(path)
        number = self._number_of(path)
        if number is None:
            return False
        self._connection.execute(DropIndex(_index(number, path), if_exists=True))
        self._connection.execute(delete(fields).where(fields.c.id == number))
        return True

    def all(self) -> list[str]:
        """The paths of the indexed fields, in alphabetical order."""
        return list(
            self._connection.execute(select(fields.c.path).order_by(fields.c.path)).scalars()
        )

    def ensure(self) -> list[str]:
        """Create the missing indexes. Writes nothing if none is missing.

        Returns:
            The paths of the fields whose index was missing.
        """
        missing = self._missing()
        for number, path in missing:
            self._create(number, path)
        return [path for _, path in missing]

    def missing(self) -> list[str]:
        """The paths of the fields whose index is missing."""
        return [path for _, path in self._missing()]

    def _missing(self) -> list[tuple[int, str]]:
        rows = self._connection.execute(select(fields.c.id, fields.c.path).order_by(fields.c.path))
        found = [(number, path) for number, path in rows]
        if not found:
            return []
        present = {name for (name,) in _INDEX_NAMES.fetch(self._connection)}
        return [(number, path) for number, path in found if _name(number) not in present]

    def _number_of(self, path: str) -> int | None:
        number = select(fields.c.id).where(fields.c.path == path)
        return self._connection.execute(number).scalar_one_or_none()

    def _create(self, number: int, path: str) -> None:
        self._connection.execute(CreateIndex(_index(number, path), if_not_exists=True))


def _checked_path(path: object) -> str:
    """Check the path of a field, and write it as the table `fields` holds it.

    Raises:
        InputError: the path is malformed, or names a field of the record.
    """
    if isinstance(path, str) and path in RECORD_FIELDS:
        raise InputError(
            f"{path} is a field of the record and needs no index of this kind, which is for fields "
            f"of the metadata; the metadata key is {METADATA}{path}",
            field="path",
        )
    try:
        return short_name(full_name(path))
    except FilterError as exc:
        raise InputError(
            f"path must be a metadata key, not {path!r}: use keys without quotes, brackets, '$' or "
            "backslashes, and dots between levels",
            field="path",
        ) from exc


def _name(number: int) -> str:
    return f"ix_memories_field_{number}"


def _index(number: int, path: str) -> Index:
    # On a copy of the table: SQLAlchemy attaches an index to its table, and `memories` is the
    # schema of every store.
    rows = Table(memories.name, MetaData(), Column(memories.c.metadata.name, Text))
    return Index(_name(number), field_expression(parse_path(path), rows))
