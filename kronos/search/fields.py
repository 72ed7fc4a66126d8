"""Metadata fields that have an index of their own, so that filters on them read no other rows.

`Fields` speaks over one open transaction, as `Repository` does. A field is a path into the metadata
as filters write it, whose index is made on the very expression that filters compare. The rows of
`fields` are the truth and their indexes follow: a migration that writes `memories` anew drops them,
and `ensure` makes what is missing.
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
    column,
    delete,
    insert,
    select,
    table,
)
from sqlalchemy.schema import CreateIndex, DropIndex

from kronos.db.tables import fields, memories
from kronos.errors import FilterError, InputError
from kronos.search.filters import RECORD_FIELDS, field_expression, parse_path

if TYPE_CHECKING:
    from kronos.repository.memories import Repository

_PREFIX = "metadata."
_PARTS_OF_SCHEMA = table("sqlite_master", column("type"), column("name"))


class Fields:
    """The fields and their indexes, over one open transaction.

    Args:
        connection: in a transaction; in a write transaction for all that changes something.
        now: the time, in microseconds since 1970 UTC.
    """

    def __init__(self, connection: Connection, now: int) -> None:
        self._connection = connection
        self._now = now

    def add(self, path: str) -> bool:
        """Give a field an index; it is made from every memory before this returns.

        Args:
            path: a metadata key, with dots to go down; "metadata.year" and "year" are the same.

        Returns:
            Whether it had none before.

        Raises:
            InputError: it is no path, or a field of the record.
        """
        path = checked_path(path)
        number = self._number_of(path)
        is_new = number is None
        if number is None:
            row = insert(fields).values(path=path, created_at=self._now).returning(fields.c.id)
            number = int(self._connection.execute(row).scalar_one())
        self._create(number, path)
        return is_new

    def remove(self, path: str) -> bool:
        """Take a field's index away; filters on it go on, and read more rows.

        Returns:
            Whether it had one.

        Raises:
            InputError: it is no path, or a field of the record.
        """
        path = checked_path(path)
        number = self._number_of(path)
        if number is None:
            return False
        self._connection.execute(DropIndex(_index(number, path), if_exists=True))
        self._connection.execute(delete(fields).where(fields.c.id == number))
        return True

    def all(self) -> list[str]:
        """The paths of the fields, in alphabetical order."""
        return list(
            self._connection.execute(select(fields.c.path).order_by(fields.c.path)).scalars()
        )

    def ensure(self) -> list[str]:
        """Make the indexes that are missing; nothing is written when none is.

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
        its = select(_PARTS_OF_SCHEMA.c.name).where(_PARTS_OF_SCHEMA.c.type == "index")
        there = set(self._connection.execute(its).scalars())
        return [(number, path) for number, path in found if _name(number) not in there]

    def _number_of(self, path: str) -> int | None:
        its = select(fields.c.id).where(fields.c.path == path)
        return self._connection.execute(its).scalar_one_or_none()

    def _create(self, number: int, path: str) -> None:
        self._connection.execute(CreateIndex(_index(number, path), if_not_exists=True))


def fields_of(repository: Repository) -> Fields:
    """The fields, over a repository's transaction."""
    return Fields(repository.connection, repository.now)


def checked_path(path: object) -> str:
    """Check the path of a field, and write it in the one way in which it is kept.

    Returns:
        Without "metadata." before it, but where filters would then read something else.

    Raises:
        InputError: it is no path, or a field of the record.
    """
    if isinstance(path, str) and path in RECORD_FIELDS:
        raise InputError(
            f"{path} is a field of the record and needs no index of this kind: fields of the "
            f"metadata have one; the metadata key is {_PREFIX}{path}",
            field="path",
        )
    try:
        short = ".".join(parse_path(path))
    except FilterError as exc:
        raise InputError(
            f"path must be a metadata key, not {path!r}: use keys without quotes, brackets, '$' or "
            "backslashes, and dots to go down",
            field="path",
        ) from exc
    is_plain = short not in RECORD_FIELDS and not short.startswith(_PREFIX)
    return short if is_plain else _PREFIX + short


def _name(number: int) -> str:
    return f"ix_memories_field_{number}"


def _index(number: int, path: str) -> Index:
    # On a table of its own: an index belongs to its table at once, and `memories` is the schema of
    # every store.
    rows = Table(memories.name, MetaData(), Column(memories.c.metadata.name, Text))
    return Index(_name(number), field_expression(parse_path(path), rows))
