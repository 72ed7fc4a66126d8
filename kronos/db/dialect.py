"""What only SQLite has: its connections, PRAGMAs, locks, backups, error codes and JSON functions.

This is the one seam between Kronos and a particular database. Everything else in `kronos.db`, the
repository and the filters is plain SQLAlchemy; another database gets a class and functions with
the names that stand here.
"""

from __future__ import annotations

import errno
import functools
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    ClauseElement,
    ColumnElement,
    Connection,
    FromClause,
    Select,
    Text,
    UnaryExpression,
    bindparam,
    func,
    literal_column,
    select,
)
from sqlalchemy.dialects import sqlite
from sqlalchemy.sql import operators

from kronos.concurrency.large_values import to_json
from kronos.concurrency.progress import Steps
from kronos.errors import (
    ConfigurationError,
    CorruptStoreError,
    InputError,
    ReadOnlyStoreError,
    StoppedError,
    StorageError,
    StorageFullError,
    StoreBusyError,
)
from kronos.files import behind_links, beside, make_folder, mode_of, publishing, sync
from kronos.settings import Settings

if TYPE_CHECKING:
    import sqlite3


def _newest_driver() -> Any:
    """Python's own SQLite, or that of the package pysqlite3 when it is installed and newer."""
    import sqlite3

    try:
        from pysqlite3 import dbapi2
    except ImportError:
        return sqlite3
    return dbapi2 if dbapi2.sqlite_version_info > sqlite3.sqlite_version_info else sqlite3


driver: Any = _newest_driver()
"""The module that every connection comes from: two libraries on one file in one process would
break each other's locks."""
ERRORS: tuple[type[Exception], type[Exception]] = (driver.Error, UnicodeDecodeError)
"""What the driver raises; the second, where a damaged schema stands in its message."""

# The "WAL-reset bug": when two connections write and checkpoint at the same instant, a later
# checkpoint may skip committed pages. https://sqlite.org/wal.html#walresetbug
_FIRST_WITH_BUG, _FIRST_WITHOUT_BUG = (3, 7, 0), (3, 51, 3)
_FIXED_BRANCHES = {(3, 44): 6, (3, 50): 7}
# No file system block, no log page: with less than this left, a disk counts as full.
_FREE_BYTES = 2**16
_LONGEST_TIMEOUT_S = 86_400.0
_ROWS_A_STATEMENT = 250
# 32 MiB: a checkpoint costs two syncs or three, and with SQLite's own 4 MiB each batch of 1,000
# vectors would pay for one. In a large store a batch touches a thousand pages of the index of
# hashes: the same ones come again and again, and are written back once a checkpoint.
_PAGES_A_CHECKPOINT = 4096
# 16 MiB a connection: with SQLite's own 2 MiB a batch of 1,000 writes pages before it ends, and
# reads them again.
_CACHE_KIB = 16_384
# Of a backup, between two looks at whether it is to stop: 32 MiB.
_PAGES_A_COPY = 4096
# A tenth of a second at most, between two looks at whether a long statement is to stop.
_INSTRUCTIONS_A_LOOK = 200_000
# 4 MiB: other writers wait no longer than for one of these.
_PAGES_A_VACUUM = 512
# Of a new file. A page of 4096 bytes holds two vectors of 384 numbers, a quarter of it stays empty;
# one of 8192 holds five: the file is a sixth smaller.
_BYTES_A_PAGE = 8192
_PAGES_A_STEP = 256
# SQLite's own limit is 281 TB; a sparse file costs nothing, but not every file system takes it.
_LONGEST_FILE = 2**42
_JSON = json.JSONEncoder(ensure_ascii=False, allow_nan=False)


class _Code(IntEnum):
    """SQLite's primary result codes; the module sqlite3 names them only from Python 3.11 on."""

    BUSY = 5
    LOCKED = 6
    READONLY = 8
    INTERRUPT = 9
    IOERR = 10
    CORRUPT = 11
    FULL = 13
    CANTOPEN = 14
    NOTADB = 26


# Python 3.10 hands on SQLite's message but not its code.
_CODES_BY_MESSAGE = {
    "is locked": _Code.BUSY,
    "readonly database": _Code.READONLY,
    "interrupted": _Code.INTERRUPT,
    "disk I/O error": _Code.IOERR,
    "malformed": _Code.CORRUPT,
    "disk is full": _Code.FULL,
    "unable to open": _Code.CANTOPEN,
    "not a database": _Code.NOTADB,
}
WAY_OUT_OF_DAMAGE = (
    "Put a backup back with `kronos restore`, or save what can be read with `kronos recover`"
)
# What fails around a file, whatever stands in it. Amid a file IOERR is a place of the disk that
# cannot be read any more, which is passed over as damage is.
_NO_DAMAGE = (
    *(_Code.BUSY, _Code.LOCKED, _Code.READONLY),
    *(_Code.IOERR, _Code.FULL, _Code.CANTOPEN),
)
# A value in the file that Kronos never wrote; SQLite calls none of these a damaged file.
_DAMAGED_VALUES = ("malformed JSON", "Could not decode to UTF-8")
_CODES_BY_ERRNO = {
    errno.ENOSPC: _Code.FULL,
    errno.EDQUOT: _Code.FULL,
    errno.EACCES: _Code.READONLY,
    errno.EPERM: _Code.READONLY,
    errno.EROFS: _Code.READONLY,
    errno.EIO: _Code.IOERR,
}


@dataclass(frozen=True, slots=True)
class SQLite:
    """One SQLite file: how to connect to it, lock it, copy it, and what its errors mean."""

    path: Path
    settings: Settings

    def begin_read(self, connection: Connection) -> None:
        """Begin a transaction that sees the state of its first statement."""
        self._run(connection, "BEGIN")

    def begin_write(self, connection: Connection) -> None:
        """Begin a transaction that is alone in writing."""
        # IMMEDIATE: a deferred BEGIN fails under load when it turns from reading into writing.
        self._run(connection, "BEGIN IMMEDIATE")

    def begin_write_at_once(self, connection: Connection) -> None:
        """Begin the same, without waiting for another writer."""
        self._run(connection, "PRAGMA busy_timeout=0")
        try:
            self.begin_write(connection)
        except StoreBusyError as exc:
            raise StoreBusyError(f"{self.path} is locked by another writer") from exc
        finally:
            self._run(connection, f"PRAGMA busy_timeout={self._timeout_s * 1000:.0f}")

    def begin_migration(self, connection: Connection) -> None:
        """Begin the same without foreign keys; the connection must not be used for anything else.

        Rebuilding a table that others refer to would empty its ON DELETE CASCADE children, and
        inside a transaction the switch has no effect. A table that is rebuilt takes the name of the
        old one while views still speak of it, which SQLite lets pass in its older way alone.
        """
        self._run(connection, "PRAGMA foreign_keys=OFF")
        self._run(connection, "PRAGMA legacy_alter_table=ON")
        self._run(connection, "BEGIN IMMEDIATE")

    def commit(self, connection: Connection) -> None:
        """End a transaction; SQLAlchemy has one of its own only where statements went through it.

        Raises the driver's errors, as `rollback` does.
        """
        if connection.in_transaction():
            connection.commit()
        else:
            _driver(connection).commit()

    def rollback(self, connection: Connection) -> None:
        """End a transaction, and undo what it wrote."""
        if connection.in_transaction():
            connection.rollback()
        else:
            _driver(connection).rollback()

    def _run(self, connection: Connection, statement: str) -> None:
        # Past SQLAlchemy's cursor, which takes longer than the statement: searches pay for it.
        try:
            _driver(connection).execute(statement)
        except ERRORS as exc:
            raise self.fault(exc) from exc

    @property
    def file(self) -> Path:
        """The database file itself, where `path` is a link to it: SQLite keeps its log there."""
        return behind_links(self.path)

    def file_id(self) -> tuple[int, int] | None:
        """What tells the file at the path from every other one: its device and its number there.

        None where there is no file that can be reached.
        """
        try:
            found = os.stat(self.path)
        except OSError:
            return None
        return found.st_dev, found.st_ino

    def connect(self, *, create: bool = True) -> sqlite3.Connection:
        """Open a connection.

        A database in a folder that cannot be written is opened as a file that nobody changes.

        Args:
            create: make what is missing of the folder and the file.

        Raises:
            ConfigurationError: the path cannot be a file's.
            ReadOnlyStoreError: the folder does not exist and cannot be created.
        """
        if create:
            self._make_folder()
        name = f"{self.path.as_uri()}?mode={'rwc' if create else 'rw'}"
        connection = self._connect(name)
        try:
            self._configure(connection)
        except BaseException as exc:
            connection.close()
            if isinstance(exc, ERRORS) and self._can_only_be_read(exc):
                return self._connect(f"{self.path.as_uri()}?immutable=1")
            raise
        return connection

    def _make_folder(self) -> None:
        try:
            make_folder(self.path.parent)
            is_folder = self.path.is_dir()
        except OSError as exc:
            if _code(exc) is None:
                raise self._no_path(str(exc)) from exc
            raise self.fault(exc) from exc
        if is_folder:
            raise self._no_path("it is a folder")

    def _no_path(self, why: str) -> ConfigurationError:
        return ConfigurationError(
            f"the database cannot be kept at {self.path}: {why}", field="storage_path"
        )

    def _connect(self, name: str) -> sqlite3.Connection:
        # isolation_level=None: the driver begins no transactions of its own.
        connection: sqlite3.Connection = driver.connect(
            name,
            uri=True,
            timeout=self._timeout_s,
            isolation_level=None,
            check_same_thread=False,
        )
        return connection

    @property
    def _timeout_s(self) -> float:
        return min(self.settings.busy_timeout_s, _LONGEST_TIMEOUT_S)

    def _configure(self, connection: sqlite3.Connection) -> None:
        connection.execute(f"PRAGMA synchronous={self.settings.durability.upper()}")
        connection.execute("PRAGMA foreign_keys=ON")
        connection.execute(f"PRAGMA wal_autocheckpoint={_PAGES_A_CHECKPOINT}")
        connection.execute(f"PRAGMA cache_size=-{_CACHE_KIB}")
        # What is deleted inside a page is overwritten at once; whole free pages go in `vacuum`.
        connection.execute("PRAGMA secure_delete=FAST")
        # `kronos.db.schema` refuses another program's file: until then it stays as it is.
        empty, ours = connection.execute(
            "SELECT count(*) = 0, total(name IN ('store', 'alembic_version')) = 2"
            " FROM sqlite_master"
        ).fetchone()
        if empty:
            connection.execute(f"PRAGMA page_size={_BYTES_A_PAGE}")
            # What `vacuum` needs to give pages back bit by bit; on a full one it would be a write.
            connection.execute("PRAGMA auto_vacuum=INCREMENTAL")
        if empty or ours:
            self._enter_wal(connection)

    def _enter_wal(self, connection: sqlite3.Connection) -> None:
        """Switch to the write-ahead log, which stays on for everyone who opens the file."""
        deadline = time.monotonic() + self.settings.busy_timeout_s
        while True:
            try:
                connection.execute("PRAGMA journal_mode=WAL")
                return
            except driver.OperationalError as exc:
                # SQLite does not wait here, however long the busy timeout: of several processes
                # on a fresh file some are refused at once.
                if _code(exc) != _Code.BUSY or time.monotonic() >= deadline:
                    raise
                time.sleep(0.005)

    @property
    def _log(self) -> Path:
        return beside(self.file)[0]

    def _can_only_be_read(self, error: Exception) -> bool:
        return (
            _code(error) in (_Code.READONLY, _Code.CANTOPEN)
            and self.path.is_file()
            and not _is_writable(self.file.parent)
            # What lies in the log alone would not be seen.
            and not (self._log.exists() and self._log.stat().st_size)
        )

    def watch(self, connection: Connection, is_stopped: Callable[[], bool] | None) -> None:
        """Interrupt what a connection does, once somebody wants it to stop; None: never."""
        _driver(connection).set_progress_handler(is_stopped, _INSTRUCTIONS_A_LOOK)

    def fault(self, error: BaseException | None) -> StorageError | StoppedError:
        """Translate an error of the driver or the system; its transaction is rolled back."""
        match _code(error):
            case _Code.INTERRUPT:
                return StoppedError()
            case _Code.BUSY | _Code.LOCKED:
                return StoreBusyError(
                    f"{self.path} is locked by another writer; waited "
                    f"{self.settings.busy_timeout_s:g} s (busy_timeout_s). Nothing was written: "
                    "try again"
                )
            case _Code.FULL:
                return self._full(error)
            case _Code.IOERR:
                if self._is_full():
                    return self._full(error)
                return StorageError(
                    f"the disk failed on {self.path}: {error}. The transaction was rolled back; "
                    "check the disk, its quota and the limits of this process"
                )
            case _Code.READONLY:
                return self._read_only(error)
            case _Code.CANTOPEN if not _is_writable(self.file.parent):
                return self._read_only(error)
            case _Code.CORRUPT | _Code.NOTADB:
                return CorruptStoreError(
                    f"{self.path} is damaged or no SQLite database: {error}. {WAY_OUT_OF_DAMAGE}"
                )
            case _:
                return StorageError(f"the database {self.path} failed: {error}")

    def _is_full(self) -> bool:
        try:
            return shutil.disk_usage(self.file.parent).free < _FREE_BYTES
        except OSError:
            return False

    def _full(self, error: BaseException | None) -> StorageFullError:
        return StorageFullError(
            f"no space is left for {self.path}: {error}. What was written before is intact; free "
            "some space and try again"
        )

    def _read_only(self, error: BaseException | None) -> ReadOnlyStoreError:
        return ReadOnlyStoreError(
            f"{self.path} cannot be written: {error}. Give this user the right to write the file "
            "and its folder"
        )

    def size_bytes(self) -> int:
        """The bytes of the database on disk, its write-ahead log included."""
        return sum(file.stat().st_size for file in (self.path, self._log) if file.exists())

    def sync(self) -> None:
        """Bring every commit to the disk; with durability "full" they are there already.

        Raises:
            StorageError: the disk failed.
        """
        try:
            # SQLite locks the database and its shared memory, not the log: closing it frees none.
            with suppress(FileNotFoundError):
                sync(self._log)
            sync(self.file.parent)
        except OSError as exc:
            raise self.fault(exc) from exc

    def vacuum(self, steps: Steps) -> bool:
        """Give the free pages of the file back to the disk, while others read and write.

        A database that was made before pages could be given back bit by bit is written anew once,
        which takes as much space again and keeps writers waiting.

        Returns:
            Whether the write-ahead log was emptied.

        Raises:
            StorageError: the database or the disk failed.
        """
        try:
            with closing(self.connect(create=False)) as connection:
                if connection.execute("PRAGMA auto_vacuum").fetchone() == (0,):
                    connection.execute("PRAGMA auto_vacuum=INCREMENTAL")
                    connection.execute("VACUUM")
                (free,) = connection.execute("PRAGMA freelist_count").fetchone()
                for _ in range(0, free, _PAGES_A_VACUUM):
                    steps.advance()
                    # Not `execute`, which takes one step of a statement, and with it one page.
                    connection.executescript(f"PRAGMA incremental_vacuum({_PAGES_A_VACUUM})")
                # What was given back stands in the log until it is copied; a reader of an older
                # state may keep the log from being cut, then the next writer's end will do it.
                (busy, _, _) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
                return not busy
        except ERRORS as exc:
            raise self.fault(exc) from exc

    def backup(self, connection: Connection, target: Path, steps: Steps) -> None:
        """Copy the database as a connection sees it into a new file, which is there whole or not.

        Raises:
            InputError: the file exists.
            StorageError: the copy could not be written.
            StoppedError: nobody wants it any more.
        """
        try:
            with publishing(target, mode=self.mode, replace=False) as part:
                self.copy(connection, part, steps)
        except FileExistsError:
            raise InputError(
                f"{target} exists: name a new file for the backup", field="path"
            ) from None
        except OSError as exc:
            raise self.fault(exc) from exc

    @property
    def mode(self) -> int | None:
        """The permission bits of the database, which every copy of it gets too."""
        return mode_of(self.path)

    def rebuild_indexes(self, connection: Connection) -> None:
        """Make the database's own indexes anew from its tables."""
        connection.exec_driver_sql("REINDEX")

    def overwrite(self, source: Path, prepare: Callable[[], None]) -> None:
        """Make the database, in one transaction, what another file holds; readers go on meanwhile.

        Args:
            source: a database that nobody else uses, with pages as long as this one's.
            prepare: called once nobody else can write to the database any more, and before anything
                of it is replaced; it may read the database and change the source. An error leaves
                the database as it is.

        Raises:
            StoreBusyError: other writers did not end in time.
            StorageError: the database or the disk failed; the database is as it was.
        """
        try:
            with (
                closing(driver.connect(source)) as found,
                closing(self._connect(f"{self.path.as_uri()}?mode=rw")) as connection,
            ):
                connection.execute("PRAGMA synchronous=FULL")
                (pages,) = found.execute("PRAGMA page_count").fetchone()
                found.backup(
                    connection,
                    # Never all at once: the first step takes the lock, the last one commits.
                    pages=max(1, min(_PAGES_A_STEP, pages // 2)),
                    progress=self._once_locked(prepare),
                    sleep=0.01,
                )
        except ERRORS as exc:
            raise self.fault(exc) from exc

    def _once_locked(self, prepare: Callable[[], None]) -> Callable[[int, int, int], None]:
        """What a backup calls after each step: it prepares after the first one that was made."""
        deadline = time.monotonic() + self.settings.busy_timeout_s
        is_prepared = False

        def stepped(status: int, remaining: int, total: int) -> None:
            nonlocal is_prepared
            if status in (_Code.BUSY, _Code.LOCKED):
                if time.monotonic() > deadline:  # `backup` itself would wait for ever
                    raise driver.OperationalError("database is locked")
            elif not is_prepared:
                is_prepared = True
                prepare()

        return stepped

    def salvage(self, table: str) -> Iterator[dict[str, Any]]:
        """Read what can be read of a table of a damaged database, from both its ends.

        Yields:
            Rows by column; a row may come twice.

        Raises:
            StorageError: the disk failed, so that nobody can tell what is damaged.
        """
        try:
            with closing(driver.connect(self.path, isolation_level=None)) as connection:
                connection.text_factory = lambda raw: raw.decode("utf-8", "surrogateescape")
                yield from _walk(connection, table, upwards=True)
                yield from _walk(connection, table, upwards=False)
        except ERRORS as exc:
            raise self.fault(exc) from exc

    def copy(self, connection: Connection, target: Path, steps: Steps) -> None:
        """Copy the database as a connection sees it into a file, which is its caller's to name."""

        def note(status: int, remaining: int, total: int) -> None:
            steps.report(total - remaining, total)

        try:
            # The state that is copied is settled before its first part is, not anew with each.
            self._run(connection, "SELECT count(*) FROM sqlite_master")
            with closing(driver.connect(target)) as copy:
                _driver(connection).backup(copy, pages=_PAGES_A_COPY, progress=note)
            sync(target)
        except (*ERRORS, OSError) as exc:
            raise self.fault(exc) from exc

    def integrity_problems(self, connection: Connection) -> list[str]:
        """What SQLite's own checks find wrong, rows that refer to nothing included."""
        rows = connection.exec_driver_sql("PRAGMA integrity_check").scalars()
        return [row for row in rows if row != "ok"] + self.foreign_key_problems(connection)

    def page_bytes(self) -> int:
        """The bytes of a page of the file, which is settled when it is made.

        Raises:
            StorageError: the file cannot be read as a database.
        """
        try:
            with closing(self._connect(f"{self.path.as_uri()}?mode=rw")) as connection:
                connection.execute("PRAGMA schema_version").fetchone()  # reads the file, as nothing
                (found,) = connection.execute("PRAGMA page_size").fetchone()  # has until then
                return int(found)
        except ERRORS as exc:
            raise self.fault(exc) from exc

    def become_one_file(self, page_bytes: int | None = None) -> None:
        """Leave no log beside the file, which nobody else has open.

        Args:
            page_bytes: how long its pages are to be; None: as they are.

        Raises:
            StorageError: the database or the disk failed.
        """
        try:
            with closing(self._connect(f"{self.path.as_uri()}?mode=rw")) as connection:
                connection.execute("PRAGMA journal_mode=DELETE")
                if page_bytes not in (None, *connection.execute("PRAGMA page_size").fetchone()):
                    connection.execute(f"PRAGMA page_size={page_bytes}")
                    connection.execute("VACUUM")
        except ERRORS as exc:
            raise self.fault(exc) from exc

    def foreign_key_problems(self, connection: Connection) -> list[str]:
        """Rows that refer to a row that is not there."""
        rows = connection.exec_driver_sql("PRAGMA foreign_key_check")
        return [
            f"row {row} of {table} refers to a missing row of {parent}"
            for table, row, parent, _ in rows
        ]


def fetch(connection: Connection, statement: str, values: Sequence[Any] = ()) -> list[Any]:
    """Read rows past SQLAlchemy, which takes longer than the statement: searches pay for it.

    What the driver raises is translated by the transaction.
    """
    rows: list[Any] = _driver(connection).execute(statement, values).fetchall()
    return rows


def define(connection: Connection, name: str, function: Callable[..., Any]) -> None:
    """Let SQL on a connection call a Python function: a pure one, of so many arguments."""
    arguments = function.__code__.co_argcount
    _driver(connection).create_function(name, arguments, function, deterministic=True)


@contextmanager
def savepoint(connection: Connection) -> Iterator[None]:
    """A part of a write transaction: an error undoes it, and leaves what was written before."""
    run = _driver(connection).execute
    run("SAVEPOINT part")
    try:
        yield
    except BaseException:
        run("ROLLBACK TO part")
        run("RELEASE part")
        raise
    run("RELEASE part")


class Prepared:
    """A Core statement that is compiled once, and run past SQLAlchemy; see `fetch`.

    Args:
        statement: its parameters are named by `bindparam`; see `listed` for lists.
    """

    def __init__(self, statement: ClauseElement) -> None:
        self._statement = statement

    @functools.cached_property
    def _compiled(self) -> tuple[str, dict[str, Any]]:
        compiled = self._statement.compile(dialect=sqlite.dialect(paramstyle="named"))
        return str(compiled), dict(compiled.params)

    def run(self, connection: Connection, **values: Any) -> int:
        """Write: how many rows were written."""
        return self._execute(connection, values).rowcount

    def fetch(self, connection: Connection, **values: Any) -> list[Any]:
        """Read, or write and read what was written: all rows."""
        return self._execute(connection, values).fetchall()

    def _execute(self, connection: Connection, values: dict[str, Any]) -> sqlite3.Cursor:
        text, constants = self._compiled
        given = {
            name: _as_list(value) if isinstance(value, list) else value
            for name, value in values.items()
        }
        return _driver(connection).execute(text, {**constants, **given})


def _as_list(values: Sequence[Any]) -> str:
    return to_json(values, _JSON)


def listed(name: str) -> Select[Any]:
    """A list of a `Prepared` statement, for `IN`: however long, it is one parameter."""
    return select(func.json_each(bindparam(name)).table_valued("value").c.value)


def insert_rows(
    connection: Connection, table: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]
) -> None:
    """Insert rows past SQLAlchemy, whose parameters take as long as the insert; see `fetch`."""
    names, marks = ", ".join(columns), ", ".join("?" * len(columns))
    _driver(connection).executemany(
        f"INSERT INTO {table} ({names}) VALUES ({marks})",  # noqa: S608  (names of our own)
        rows,
    )


def update_rows(
    connection: Connection, table: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]
) -> None:
    """Update rows past SQLAlchemy; see `fetch`.

    Args:
        connection: in a write transaction.
        table: one with a `key`.
        columns: which are set; a value of `recorded_at` never goes back.
        rows: the values, in the order of the columns, and behind them the key.
    """
    for start in range(0, len(rows), _ROWS_A_STATEMENT):
        part = rows[start : start + _ROWS_A_STATEMENT]
        text = _update(table, tuple(columns), len(part))
        _driver(connection).execute(text, [value for row in part for value in row])


@functools.lru_cache(maxsize=64)
def _update(table: str, columns: tuple[str, ...], count: int) -> str:
    # Many rows a statement: between two statements FTS5 writes what its triggers have in hand,
    # which takes eight times as long.
    new = {name: f"made.{name}" for name in columns}
    if "recorded_at" in new:
        new["recorded_at"] = f"max({table}.recorded_at, made.recorded_at)"
    marks = ", ".join("?" * (len(columns) + 1))
    # S608: names of our own, and question marks.
    return (
        f"WITH made ({', '.join(columns)}, key) AS"  # noqa: S608
        f" (VALUES {', '.join([f'({marks})'] * count)})"
        f" UPDATE {table} SET {', '.join(f'{name} = {value}' for name, value in new.items())}"
        f" FROM made WHERE {table}.key = made.key"
    )


def json_type(column: ColumnElement[Any], path: tuple[str, ...]) -> ColumnElement[str | None]:
    """The JSON type of what stands at a path of a JSON column.

    Args:
        column: JSON objects as text.
        path: keys from the outermost inwards; none holds quotes or control characters.

    Returns:
        An expression: "null", "true", "false", "integer", "real", "text", "array" or "object"; SQL
        NULL where nothing stands.
    """
    found: ColumnElement[str | None] = func.json_type(column, _json_path(path))
    return found


def json_value(column: ColumnElement[Any], path: tuple[str, ...]) -> ColumnElement[Any]:
    """The number or text at a path of a JSON column, as SQL compares it; see `json_type`.

    An index on this expression answers comparisons with it.
    """
    return func.json_extract(column, _json_path(path))


def json_text(column: ColumnElement[Any], path: tuple[str, ...]) -> ColumnElement[Any]:
    """What stands at a path of a JSON column as a text, twice; see `json_type`.

    Two texts are equal where type and value are: "[1,1]", "[1.0,1.0]", "[true,true]" and
    '["1","1"]' are four. What is missing reads as null.
    """
    # With two paths `json_extract` gives an array, in which the types can be told apart.
    place = _json_path(path)
    return func.json_extract(column, place, place)


def has_element(
    column: ColumnElement[Any],
    path: tuple[str, ...],
    condition: Callable[[ColumnElement[Any], ColumnElement[Any]], ColumnElement[bool]],
) -> ColumnElement[bool]:
    """Whether an array at a path of a JSON column has some element.

    Args:
        column: as `json_type` takes it; what stands at the path must be an array.
        path: as `json_type` takes it.
        condition: takes the JSON type and the value of an element, and says which is meant.
    """
    element = func.json_each(column, _json_path(path)).table_valued("type", "value")
    meant = condition(element.c.type, element.c.value)
    one: ColumnElement[int] = literal_column("1")
    found = select(one).select_from(element).where(meant)
    return found.correlate_except(element).exists()


def json_list(values: Sequence[float | str]) -> Select[Any]:
    """The values as rows, for `IN`: however many, they are one parameter."""
    return select(func.json_each(_as_list(values)).table_valued("value").c.value)


class _Unindexed:
    """The columns of a table, as expressions that no index serves."""

    def __init__(self, rows: FromClause, but: str) -> None:
        self._rows = rows
        self._but = but

    @property
    def c(self) -> _Unindexed:
        """The columns, by name."""
        return self

    def __getitem__(self, name: str) -> ColumnElement[Any]:
        column = self._rows.c[name]
        return column if name == self._but else UnaryExpression(column, operator=_PLUS)

    __getattr__ = __getitem__


def unindexed(rows: FromClause, *, but: str) -> FromClause:
    """The same columns, which no index but that of one is used for: so rows come in its order."""
    return _Unindexed(rows, but)  # type: ignore[return-value]  # has what a condition asks for


def holds_text(text: ColumnElement[Any], part: str) -> ColumnElement[bool]:
    """Whether a text holds another one, letter by letter."""
    found: ColumnElement[bool] = func.instr(text, part) > 0
    return found


def fill_in_vectors(
    connection: Connection, space_id: int, seq: int, rows: Sequence[tuple[bytes, bytes]]
) -> int:
    """Store the vectors of texts: one for every memory that holds the text now and lacks one.

    Args:
        connection: in a write transaction.
        space_id: the space that the vectors belong to.
        seq: the number of this change.
        rows: a text's hash and its vector.

    Returns:
        How many memories got one.
    """
    stored = 0
    for start in range(0, len(rows), _ROWS_A_STATEMENT):
        part = rows[start : start + _ROWS_A_STATEMENT]
        values = tuple(value for row in part for value in row)
        done = connection.exec_driver_sql(_fill_in(len(part)), (*values, space_id, seq, space_id))
        stored += done.rowcount
    return stored


@functools.lru_cache(maxsize=16)
def _fill_in(count: int) -> str:
    # Many rows a statement: SQLite then works for long without Python's lock, and a thread that
    # embeds goes on meanwhile. Past SQLAlchemy's parameters, which take longer than the insert.
    return _FILL_IN.format(rows=", ".join(["(?, ?)"] * count))


# WITH stands inside: of a statement that begins with it the driver counts no rows. CROSS JOIN: look
# up the memories by their hashes, not the hashes by memory.
_FILL_IN = """
    INSERT INTO vectors (space_id, memory_key, seq, content_hash, vector)
    WITH made (hash, blob) AS (VALUES {rows})
    SELECT ?, memories.key, ?, made.hash, made.blob
    FROM made CROSS JOIN memories
    WHERE memories.content_hash = made.hash AND NOT EXISTS (
        SELECT 1 FROM vectors WHERE vectors.space_id = ? AND vectors.memory_key = memories.key
    )
"""


_PLUS: Any = operators.custom_op("+")


def _json_path(path: tuple[str, ...]) -> ColumnElement[str]:
    # Quoted into the statement, not bound: SQLite uses an index on an expression only where it sees
    # at once that it is the same one.
    text = "$" + "".join(f'."{key}"' for key in path)
    return bindparam(None, text, Text(), literal_execute=True, unique=True)


def _driver(connection: Connection) -> sqlite3.Connection:
    found: Any = connection.connection.dbapi_connection
    assert isinstance(found, driver.Connection)
    return found  # type: ignore[no-any-return]


def _code(error: BaseException | None) -> int | None:
    """The primary result code of an error; None when it has none that Kronos knows."""
    if isinstance(error, OSError):
        return _CODES_BY_ERRNO.get(error.errno or 0)
    text = str(error)
    if isinstance(error, UnicodeDecodeError) or any(part in text for part in _DAMAGED_VALUES):
        return _Code.CORRUPT
    code: int | None = getattr(error, "sqlite_errorcode", None)
    if code is not None:
        return code & 0xFF
    return next((code for part, code in _CODES_BY_MESSAGE.items() if part in text), None)


def is_damage(error: BaseException | None) -> bool:
    """Whether an error of the driver says that what is stored is damaged."""
    return _code(error) in (_Code.CORRUPT, _Code.NOTADB)


def version() -> str:
    """The version of the SQLite library that is used."""
    return str(driver.sqlite_version)


def may_lose_commits(found: tuple[int, int, int] | None = None) -> bool:
    """Whether a version of SQLite, the one in use if none is given, has the WAL-reset bug."""
    found = found or driver.sqlite_version_info
    assert found is not None
    if not _FIRST_WITH_BUG <= found < _FIRST_WITHOUT_BUG:
        return False
    fixed = _FIXED_BRANCHES.get(found[:2])
    return fixed is None or found[2] < fixed


def pad(path: Path) -> None:
    """Give a file that was cut off its old length: SQLite reads nothing of a short one."""
    with path.open("r+b") as file:
        header = file.read(32)
        page, pages = int.from_bytes(header[16:18], "big"), int.from_bytes(header[28:32], "big")
        # A page of 65,536 bytes is written as 1.
        length = pages * (2**16 if page == 1 else page)
        if path.stat().st_size < length <= _LONGEST_FILE:
            file.truncate(length)


def _is_writable(folder: Path) -> bool:
    effective = os.access in os.supports_effective_ids
    return os.access(folder, os.W_OK, effective_ids=effective)


_LAST_ROW = 2**63 - 1


def _walk(connection: sqlite3.Connection, table: str, *, upwards: bool) -> Iterator[dict[str, Any]]:
    """A table's rows in the order of their numbers; where a page is damaged, leap ahead."""
    order, beyond = ("ASC", ">") if upwards else ("DESC", "<")
    place, leap = (-1 if upwards else _LAST_ROW), 0
    while abs(leap) <= _LAST_ROW:
        start = min(max(place + leap, -1), _LAST_ROW)
        try:
            rows = connection.execute(
                f"SELECT rowid, * FROM {table} NOT INDEXED"  # noqa: S608  (a name of our own)
                f" WHERE rowid {beyond} ? ORDER BY rowid {order}",
                [start],
            )
            names = [column[0] for column in rows.description]
            for row in rows:
                # A damaged tree may lead back to where one was: only a new place is progress.
                if (row[0] > place) if upwards else (row[0] < place):
                    place, leap = row[0], 0
                    yield dict(zip(names[1:], row[1:], strict=True))
            return
        except ERRORS as exc:
            is_first = place in (-1, _LAST_ROW)
            if _code(exc) in _NO_DAMAGE and (is_first or _code(exc) != _Code.IOERR):
                raise
            if start in (-1, _LAST_ROW) and leap:
                return
            leap = 2 * leap or (1 if upwards else -1)
