"""Whole databases: backups taken while writers run, put back, and what a damaged one still holds.

The database that stood there before is never deleted: it is kept aside, beside the new one. A
database that was put back or recovered takes a seq above every one that was given out before, and
says that all its tombstones are pruned; so no index and no snapshot of another time is followed.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Table, func, insert, select, update

from kronos.db import schema, words
from kronos.db.dialect import PART, pad
from kronos.db.engine import Database
from kronos.db.tables import (
    accesses,
    fields,
    links,
    memories,
    past_vectors,
    spaces,
    store,
    vectors,
    versions,
)
from kronos.db.vectors import from_rows
from kronos.errors import ConfigurationError, CorruptStoreError, InputError, StorageError
from kronos.files import locked, make_folder, sync
from kronos.settings import Location, Settings
from kronos.types import RecoveryReport
from kronos.validation import hash_content, not_unit, to_datetime

_A_LOST_SEQ = 10**12
"""How far to go beyond the highest seq that is known, where the last one cannot be read."""
_NO_SEQ = 2**62
"""No store gets so far: a number from there on is damage."""
_ROWS_AT_ONCE = 500
_HASH = 32
"""Bytes of a text's hash."""


def restore(backup: Path, location: Location, settings: Settings) -> Path | None:
    """Put a backup in the place of a store's database; other processes may have it open.

    Args:
        backup: what `MemoryStore.backup` wrote.
        location: the store; it need not exist.
        settings: how long to wait for writers.

    Returns:
        Where the database from before is kept; None when there was none.

    Raises:
        InputError: the backup does not exist.
        CorruptStoreError: the backup is damaged; nothing was changed.
        ConfigurationError: it is no Kronos store's.
        SchemaTooNewError: a newer Kronos made it.
        StoreBusyError: other writers did not end in time.
        StorageError: the disk failed; the store is as it was.
    """
    if not backup.is_file():
        raise InputError(f"there is no backup at {backup}", field="backup")
    with _storage_errors(location, settings), _prepared(backup, location, settings) as made:
        prepared, part = made
        _refuse_damaged(prepared)
        if not location.database.exists():
            _begin_anew(prepared, 0)
            return _replace_files(part, location.database)
        with closing(Database(location.database, settings)) as present:
            last = _last_seq(present)
            if last is None:
                _begin_anew(prepared, _A_LOST_SEQ)
                return _replace_files(part, location.database)
            aside = beside(location.database, "before-restore")
            present.backup(aside)
            _begin_anew(prepared, last)
            prepared.close()
            present.dialect.overwrite(part)
            return aside


def recover(location: Location, settings: Settings) -> RecoveryReport:
    """Make a new database of what can still be read of a damaged one, which is kept aside.

    No other process may have the store open. Memories whose text is not the one that was written
    are left out and named; vectors that cannot be read are made anew when the store is opened.

    Raises:
        InputError: there is no database.
        StorageError: nothing of a store can be read in it, or the disk failed; it is as it was.
    """
    if not location.database.is_file():
        raise InputError(f"there is no database at {location.database}", field="storage_path")
    part, copy = _part(location.database), _part(location.database, "salvage")
    with _storage_errors(location, settings), _in_the_making(part), _in_the_making(copy):
        # Not the files themselves: reading a log may write to the database.
        for old, new in zip(_files(location.database)[::2], _files(copy)[::2], strict=True):
            if old.exists():
                shutil.copyfile(old, new)
        pad(copy)
        with closing(Database(part, settings)) as fresh:
            schema.prepare(fresh)
            with fresh.write() as connection:
                report = _Salvage(connection, copy, settings).run()
                words.rebuild(connection, words.tokenizer(connection))
                if report is None:
                    raise CorruptStoreError(
                        f"nothing of a Kronos store can be read in {location.database}: put a "
                        "backup back with `kronos restore`"
                    )
            _finish(fresh)
        aside = _replace_files(part, location.database)
    assert aside is not None  # it was read
    return RecoveryReport(aside, *report)


@contextmanager
def _prepared(
    backup: Path, location: Location, settings: Settings
) -> Iterator[tuple[Database, Path]]:
    """A copy of a backup, beside the store."""
    part = _part(location.database)
    make_folder(location.database.parent)
    with closing(Database(backup, settings)) as source, _in_the_making(part):
        with source.read() as connection:
            source.dialect.copy(connection, part)
        with closing(Database(part, settings)) as prepared:
            yield prepared, part


@contextmanager
def _in_the_making(part: Path) -> Iterator[None]:
    """A place for a file that is moved or deleted at the end; nobody else deletes it meanwhile."""
    _remove(part)
    part.touch()
    try:
        with locked(part):
            yield
    finally:
        with contextlib.suppress(OSError):
            _remove(part)


@contextmanager
def _storage_errors(location: Location, settings: Settings) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise Database(location.database, settings).dialect.fault(exc) from exc


def _refuse_damaged(prepared: Database) -> None:
    if schema.current(prepared) is None:
        raise ConfigurationError("the backup is an empty database", field="backup")
    problems = prepared.problems()
    if problems:
        raise CorruptStoreError(f"the backup is damaged: {problems[0].detail}. Nothing was changed")


def _begin_anew(prepared: Database, last: int) -> None:
    """Let a database begin above a seq, and tell every index that it must start from zero."""
    with prepared.write() as connection:
        seq = max(last, connection.execute(select(store.c.seq)).scalar_one()) + 1
        connection.execute(update(store).values(seq=seq))
        connection.execute(update(spaces).values(pruned_seq=seq))
    _finish(prepared)


def _finish(database: Database) -> None:
    """Bring all of a database into its one file."""
    database.vacuum()
    database.close()


def _last_seq(database: Database) -> int | None:
    """The last seq of a database; None when it cannot be read or is no whole one."""
    try:
        if schema.current(database) is None or database.problems():
            return None
        with database.read() as connection:
            return int(connection.execute(select(store.c.seq)).scalar_one())
    except (StorageError, ConfigurationError):
        return None


def _part(database: Path, name: str = "new") -> Path:
    return database.with_name(f"{database.name}.{name}{PART}")


def beside(database: Path, why: str) -> Path:
    """A name for a copy of a database, in its folder, with the time."""
    moment = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%S.%fZ")
    return database.with_name(f"{database.name}.{why}-{moment}")


def _files(database: Path) -> list[Path]:
    return [database.with_name(database.name + end) for end in ("-wal", "-shm", "")]


def _remove(database: Path) -> None:
    for file in _files(database):
        file.unlink(missing_ok=True)


def _replace_files(part: Path, database: Path) -> Path | None:
    """Put a new database into the place of one that is damaged or gone.

    Returns:
        Where what was there is kept, its log with it; None when nothing was.
    """
    aside = beside(database, "damaged")
    pairs = zip(_files(database)[::2], _files(aside)[::2], strict=True)
    found = [(old, new) for old, new in pairs if old.exists()]
    for old, new in found:
        _keep(old, new)
    sync(database.parent)
    # First of all: SQLite would replay a log into whatever database it lies beside.
    for log in _files(database)[:2]:
        log.unlink(missing_ok=True)
    sync(database.parent)
    _put_in_place(part, database)
    return aside if found else None


def _keep(old: Path, new: Path) -> None:
    """Give a file a second name; where a file can have but one, a copy."""
    try:
        os.link(old, new)
    except OSError:
        shutil.copyfile(old, new)
        sync(new)


def _put_in_place(part: Path, database: Path) -> None:
    part.replace(database)
    sync(database.parent)


class _Salvage:
    """Copies what can be read of a damaged database, and no row that contradicts another."""

    def __init__(self, connection: Connection, damaged: Path, settings: Settings) -> None:
        self._connection = connection
        self._dialect = Database(damaged, settings).dialect
        self._highest = 0

    def run(self) -> tuple[int, tuple[str, ...], int] | None:
        """Memories found, ids of those that are damaged, and vectors found; None: nothing was."""
        found_spaces = self._copy(spaces, "id", self._is_space)
        damaged: dict[str, None] = {}
        hashes: dict[int, bytes] = {}

        def is_memory(row: dict[str, Any]) -> bool:
            if not _passes(_is_whole, row):
                # A damaged id that is no UTF-8 could not be printed.
                damaged[str(row.get("id")).encode(errors="backslashreplace").decode()] = None
                return False
            self._saw(row["seq"])
            hashes[row["key"]] = row["content_hash"]
            return True

        found = self._copy(memories, "key", is_memory)
        dims = {id: dim for id, dim in self._connection.execute(select(spaces.c.id, spaces.c.dim))}

        def is_vector(row: dict[str, Any]) -> bool:
            self._saw(row["seq"])
            (vector,) = from_rows([row["vector"]], dims.get(row["space_id"], -1))
            is_current = hashes.get(row["memory_key"]) == row["content_hash"]
            return is_current and not not_unit(vector[None, :]).any()

        rows = self._copy(vectors, ("space_id", "memory_key"), is_vector)
        self._copy_the_rest(hashes, dims)
        if not found and not found_spaces:
            return None
        self._take_store_row()
        return found, tuple(damaged), rows

    def _copy_the_rest(self, hashes: dict[int, bytes], dims: dict[int, int]) -> None:
        """What memories were, where they lead, when they were found; none of it is missed."""

        def is_version(row: dict[str, Any]) -> bool:
            self._saw(row["key"])
            to_datetime(row["replaced_at"])
            row["seq"] = row["key"]
            return _is_whole(row | {"key": row["memory_key"]})

        def is_link(row: dict[str, Any]) -> bool:
            ends = row["source_key"] in hashes and row["target_key"] in hashes
            return ends and math.isfinite(row["weight"]) and bool(row["relation"]) and _is_text(row)

        def is_past_vector(row: dict[str, Any]) -> bool:
            (vector,) = from_rows([row["vector"]], dims.get(row["space_id"], -1))
            return len(row["content_hash"]) == _HASH and not not_unit(vector[None, :]).any()

        self._copy(versions, "key", is_version)
        self._copy(past_vectors, ("space_id", "content_hash"), is_past_vector)
        self._copy(links, ("source_key", "target_key", "relation"), is_link)
        self._copy(
            accesses,
            "memory_key",
            lambda row: row["memory_key"] in hashes and bool(to_datetime(row["accessed_at"])),
        )
        self._copy(fields, "id", lambda row: bool(row["path"]) and _is_text(row))

    def _is_space(self, row: dict[str, Any]) -> bool:
        self._saw(row["id"])
        to_datetime(row["created_at"])
        return bool(row["dim"] > 0) and _is_text(row)

    def _copy(
        self, table: Table, key: str | tuple[str, ...], check: Callable[[dict[str, Any]], bool]
    ) -> int:
        """Copy the rows of a table that pass a check, each once."""
        names = [column.name for column in table.c]
        keys = (key,) if isinstance(key, str) else key
        seen: set[tuple[Any, ...]] = set()
        waiting: list[dict[str, Any]] = []
        for row in self._dialect.salvage(table.name):
            mark = tuple(row.get(name) for name in keys)
            if mark in seen or not _passes(check, row):
                continue
            seen.add(mark)
            waiting.append({name: row[name] for name in names if name in row})
            if len(waiting) == _ROWS_AT_ONCE:
                self._insert(table, waiting)
        self._insert(table, waiting)
        return len(seen)

    def _insert(self, table: Table, rows: list[dict[str, Any]]) -> None:
        if rows:
            self._connection.execute(insert(table).prefix_with("OR IGNORE"), rows)
            rows.clear()

    def _take_store_row(self) -> None:
        known: dict[str, Any] = {}
        for row in self._dialect.salvage("store"):
            if _passes(self._is_store, row):
                known = {"uuid": row["uuid"], "created_at": row["created_at"]}
        seq = self._highest + _A_LOST_SEQ
        self._connection.execute(update(store).values(seq=seq, **known))
        its = select(func.count()).where(vectors.c.space_id == spaces.c.id).scalar_subquery()
        self._connection.execute(update(spaces).values(pruned_seq=seq, vectors=its))

    def _is_store(self, row: dict[str, Any]) -> bool:
        self._saw(row["seq"])
        to_datetime(row["created_at"])
        return bool(row["uuid"]) and _is_text(row)

    def _saw(self, seq: Any) -> None:
        if not isinstance(seq, int) or not 0 <= seq < _NO_SEQ:
            raise ValueError(f"no seq: {seq!r}")
        self._highest = max(self._highest, seq)


def _passes(check: Callable[[dict[str, Any]], bool], row: dict[str, Any]) -> bool:
    """Whether a row is as Kronos writes it; a check that cannot even be made says no."""
    try:
        return check(row)
    except (
        *(AttributeError, KeyError, TypeError, ValueError),
        *(OverflowError, RecursionError, CorruptStoreError),
    ):
        return False


def _is_whole(row: dict[str, Any]) -> bool:
    """Whether a memory is as it was written."""
    for name in ("created_at", "updated_at", "expires_at"):
        if name != "expires_at" or row[name] is not None:
            to_datetime(row[name])
    is_current = hash_content(row["content"].encode()) == row["content_hash"]
    is_known = 0 < row["key"] <= row["seq"] and 0 <= row["importance"] <= 1
    return (
        is_current and is_known and isinstance(json.loads(row["metadata"]), dict) and _is_text(row)
    )


def _is_text(row: dict[str, Any]) -> bool:
    """Whether all texts of a row can be written."""
    for value in row.values():
        if isinstance(value, str):
            value.encode()  # UnicodeEncodeError is a ValueError
    return True
