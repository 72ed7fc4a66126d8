"""Whole databases: backups taken while writers run, put back, and what a damaged one still holds.

The database that stood there before is never deleted: it is kept aside, beside the new one. Nobody
can write between the moment at which it is copied and the one at which it is replaced, so each
acknowledged write is in the new database or in the copy. A database that was put back or recovered
takes a seq above every one that was given out before, and says that all its tombstones are pruned;
so no index and no snapshot of another time is followed.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Table, func, insert, select, update

from kronos import files
from kronos.concurrency.progress import Steps
from kronos.db import schema
from kronos.db.database import Database
from kronos.db.dialect import pad
from kronos.db.fulltext import fts5 as words
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
from kronos.errors import (
    ConfigurationError,
    CorruptStoreError,
    InputError,
    ReadOnlyStoreError,
    StorageError,
    StoreBusyError,
)
from kronos.settings import Location, Settings, Tokenizer
from kronos.types import RecoveryReport
from kronos.validation import hash_content, not_unit, to_datetime

_A_LOST_SEQ = 10**12
"""How far to go beyond the highest seq that is known, where the last one cannot be trusted."""
_NO_SEQ = 2**62
"""No store gets so far: a number from there on is damage."""
_ROWS_AT_ONCE = 500
_BYTES_AT_ONCE = 2**20
_HASH = 32
"""Bytes of a text's hash."""


def restore(backup: Path, location: Location, settings: Settings) -> Path | None:
    """Put a backup in the place of a store's database; other processes may have it open.

    Args:
        backup: what `MemoryStore.backup` wrote. One of an older schema is upgraded on its way.
        location: the store; it need not exist.
        settings: how long to wait for writers, and for another restore.

    Returns:
        Where the database from before is kept; None when there was none.

    Raises:
        InputError: the backup does not exist.
        CorruptStoreError: the backup is damaged; nothing was changed.
        ConfigurationError: it is no Kronos store's.
        SchemaTooNewError: a newer Kronos made it.
        StoreBusyError: other writers, or another restore, did not end in time.
        StorageError: the disk failed; the store is as it was.
    """
    if not backup.is_file():
        raise InputError(f"there is no backup at {backup}", field="backup")
    with _replacing(location, settings) as place, files.making(place.file) as part:
        with closing(Database(backup, settings)) as source, source.read() as connection:
            source.dialect.copy(connection, part, Steps())
        with closing(Database(part, settings)) as prepared:
            _refuse_unfit(prepared)
        mode = files.mode_of(backup)
        return place.put(part, "before-restore", mode=mode)


def recover(location: Location, settings: Settings) -> RecoveryReport:
    """Make a new database of what can still be read of a damaged one, which is kept aside.

    No other process should have the store open: what it writes meanwhile is in the copy that is
    kept aside alone. Memories whose text is not the one that was written
    are left out and named; vectors that cannot be read are made anew when the store is opened.

    Raises:
        InputError: there is no database.
        StorageError: nothing of a store can be read in it, or the disk failed; it is as it was.
    """
    if not location.database.is_file():
        raise InputError(f"there is no database at {location.database}", field="storage_path")
    with (
        _replacing(location, settings) as place,
        files.making(place.file) as part,
        files.making(place.file) as copy,
    ):
        # Not the files themselves: reading a log may write to the database.
        _copy_files(place.file, copy)
        pad(copy)
        with closing(Database(part, settings)) as fresh:
            schema.prepare(fresh)
            with fresh.write() as connection:
                report = _Salvage(connection, copy, settings).run()
                if report is None:
                    raise CorruptStoreError(
                        f"nothing of a Kronos store can be read in {location.database}: put a "
                        "backup back with `kronos restore`"
                    )
                words.rebuild(connection, _tokenizer_of(Database(copy, settings)))
        aside = place.put(part, "damaged", is_exact=True)
    assert aside is not None  # it was read
    return RecoveryReport(aside, *report)


class _Place:
    """Where a database is to be replaced.

    Args:
        location: the store.
        settings: how long to wait for writers.
    """

    def __init__(self, location: Location, settings: Settings) -> None:
        self._settings = settings
        self._present = Database(location.database, settings)
        self.file = self._present.dialect.file
        """The database file, be it that the store's own is a link to it."""

    def put(
        self, part: Path, why: str, *, mode: int | None = None, is_exact: bool = False
    ) -> Path | None:
        """Let a database take this place.

        Args:
            part: the database, which nobody else has open.
            why: what the copy of the one before is named by.
            mode: the permission bits of a database where there was none.
            is_exact: copy the one before byte by byte, and not page by page.

        Returns:
            The copy; None where there was none before.
        """
        aside = beside(self.file, why)
        if not self.file.exists():
            self._set_log_aside(aside)
            self._make_empty(mode)
        with closing(self._present):
            try:
                self._overwrite(part, aside, is_exact=is_exact)
            except (CorruptStoreError, ReadOnlyStoreError):
                # SQLite cannot even begin with it, so nobody writes to it either.
                if not os.access(self.file, os.W_OK):
                    raise
                self._exchange(part, aside)
        return aside if aside.exists() or files.beside(aside)[0].exists() else None

    def _make_empty(self, mode: int | None) -> None:
        """Make an empty file, so that there is but one way to replace a database."""
        with suppress(FileExistsError):  # somebody made a store meanwhile
            self.file.touch(exist_ok=False)
            if mode is not None:
                self.file.chmod(mode)

    def _overwrite(self, part: Path, aside: Path, *, is_exact: bool) -> None:
        """Replace it in one transaction, which whoever has it open follows."""
        is_sound = not self._present.problems()  # reads all: before anybody waits for us
        Database(part, self._settings).dialect.become_one_file(self._present.dialect.page_bytes())

        def keep_and_prepare() -> None:
            last = self._last_seq()
            if last != 0:
                self._keep(aside, is_exact=is_exact or last is None)
            lost = 0 if is_sound and last is not None else _A_LOST_SEQ
            _begin_above(part, (last or 0) + lost, self._settings)

        self._present.dialect.overwrite(part, keep_and_prepare)

    def _last_seq(self) -> int | None:
        """The last seq of the database, 0 for an empty one; None when it cannot be told."""
        with suppress(StorageError, ConfigurationError):
            if schema.current(self._present) is None:
                return 0
            with self._present.read() as connection:
                last = connection.execute(select(store.c.seq)).scalar_one()
            if isinstance(last, int) and 0 < last < _NO_SEQ:
                return last
        return None

    def _keep(self, aside: Path, *, is_exact: bool) -> None:
        """Copy what is there, while nobody can write to it."""
        if not is_exact:
            with suppress(CorruptStoreError):
                self._present.backup(aside)
                return
        with files.making(aside) as part:
            _copy_files(self.file, part)
            for made, kept in zip(_with_log(part), _with_log(aside), strict=True):
                if made.exists():
                    files.publish(made, kept, mode=self._present.dialect.mode)

    def _exchange(self, part: Path, aside: Path) -> None:
        """Put another file in the place of one that SQLite cannot open."""
        _begin_above(part, _A_LOST_SEQ, self._settings)
        Database(part, self._settings).dialect.become_one_file()
        mode = self._present.dialect.mode
        _give_second_name(self.file, aside)
        self._set_log_aside(aside)
        # A file of its own, of which this process has no descriptor: to close one would drop the
        # locks that SQLite holds for another thread. Nobody discards it: the folder is locked.
        new = files.part_of(self.file)
        shutil.copyfile(part, new)
        files.publish(new, self.file, mode=mode)

    def _set_log_aside(self, aside: Path) -> None:
        """Take the log away: SQLite would replay it into whatever database it lies beside."""
        log, shared, _ = files.beside(self.file)
        if log.exists():
            _give_second_name(log, files.beside(aside)[0])
            files.sync(self.file.parent)
        for file in (log, shared):
            file.unlink(missing_ok=True)
        files.sync(self.file.parent)


@contextmanager
def _replacing(location: Location, settings: Settings) -> Iterator[_Place]:
    """Be the one who replaces a store's database."""
    place = _Place(location, settings)
    try:
        files.make_folder(place.file.parent)
        with files.locked(place.file.parent, wait_s=settings.busy_timeout_s) as alone:
            if not alone:
                raise StoreBusyError(
                    f"another process restores or recovers {location.database}; waited "
                    f"{settings.busy_timeout_s:g} s (busy_timeout_s). Nothing was changed"
                )
            yield place
    except OSError as exc:
        raise Database(location.database, settings).dialect.fault(exc) from exc


def _refuse_unfit(prepared: Database) -> None:
    """Refuse a copy of a backup that is no whole store's; upgrade one of an older schema."""
    if schema.current(prepared) is None:
        raise ConfigurationError("the backup is an empty database", field="backup")
    problems = prepared.problems()
    if problems:
        raise CorruptStoreError(f"the backup is damaged: {problems[0].detail}. Nothing was changed")
    schema.upgrade(prepared, keep=False)
    schema.check(prepared)
    schema.finish(prepared)


def _tokenizer_of(damaged: Database) -> Tokenizer:
    """How a damaged database cut texts into words; the default where that is lost."""
    for row in damaged.dialect.salvage("sqlite_master"):
        if row.get("name") == words.MEMORY_WORDS and isinstance(row.get("sql"), str):
            return words.tokenizer_in(row["sql"])
    return words.DEFAULT_TOKENIZER


def _begin_above(part: Path, last: int, settings: Settings) -> None:
    """Let a database begin above a seq, and tell every index that it must start from zero."""
    with closing(Database(part, settings)) as prepared, prepared.write() as connection:
        seq = max(last, connection.execute(select(store.c.seq)).scalar_one()) + 1
        connection.execute(update(store).values(seq=seq))
        connection.execute(update(spaces).values(pruned_seq=seq))


def beside(database: Path, why: str) -> Path:
    """A name for a copy of a database, in its folder, with the time."""
    moment = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%S.%fZ")
    return database.with_name(f"{database.name}.{why}-{moment}")


def _with_log(database: Path) -> tuple[Path, Path]:
    """The files that hold a database: its own, and its log."""
    return database, files.beside(database)[0]


def _copy_files(database: Path, copy: Path) -> None:
    """Copy a database and its log byte by byte; a descriptor of each stays open.

    To close any descriptor of a file drops every lock that this process has on it, and with them
    those of SQLite, whoever in this process has it open: others would then take the log away.
    """
    for old, new in zip(_with_log(database), _with_log(copy), strict=True):
        if old.exists():
            descriptor = os.open(old, os.O_RDONLY)
            with open(descriptor, "rb", closefd=False) as source, new.open("wb") as target:
                shutil.copyfileobj(source, target, _BYTES_AT_ONCE)


def _give_second_name(old: Path, new: Path) -> None:
    """Keep a file under another name; where a file can have but one, a copy."""
    try:
        os.link(old, new)
    except OSError as exc:
        if exc.errno not in files.ONE_NAME:
            raise
        shutil.copyfile(old, new)
        shutil.copymode(old, new)
        files.sync(new)


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
            row.pop("folded", None)  # made anew: damage to it costs nothing
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
