"""SQLite: its connections, locks and settings, and what its errors mean."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import URL, Connection, Engine, create_engine
from sqlalchemy.pool import NullPool

# Imported for its effect: SQLAlchemy learns how SQLite writes the elements of `kronos.db.sql`.
from kronos.db import sqlite_sql  # noqa: F401
from kronos.db.dialect import WAY_OUT_OF_DAMAGE
from kronos.db.sqlite_driver import (
    ERRORS,
    Code,
    code_of,
    driver,
    may_lose_commits,
    sqlite_of,
    version,
)
from kronos.db.sqlite_files import SQLiteFiles
from kronos.db.statements import driver_of
from kronos.errors import (
    ConfigurationError,
    CorruptStoreError,
    ReadOnlyStoreError,
    StoppedError,
    StorageError,
    StorageFullError,
    StoreBusyError,
)
from kronos.files import beside, make_folder, mode_of, sync
from kronos.settings import Settings
from kronos.types import Problem

if TYPE_CHECKING:
    import sqlite3

    from kronos.concurrency.progress import Steps

# File system blocks and log pages are smaller: with less than this left, a disk counts as full.
_FREE_BYTES = 2**16
_LONGEST_TIMEOUT_S = 86_400.0
# 32 MiB: a checkpoint costs two or three syncs, and with SQLite's own 4 MiB each batch of 1,000
# vectors would pay for one. In a large store a batch touches a thousand pages of the index of
# hashes: the same ones again and again, which are then written back once a checkpoint.
_PAGES_A_CHECKPOINT = 4096
# 16 MiB a connection: with SQLite's own 2 MiB a batch of 1,000 writes pages before it ends, and
# reads them again.
_CACHE_KIB = 16_384
# At most a tenth of a second between two checks of whether a long statement is to stop.
_INSTRUCTIONS_A_LOOK = 200_000
# 4 MiB: other writers wait no longer than for one of these.
_PAGES_A_VACUUM = 512
# Of a new file. A page of 4096 bytes holds two vectors of 384 numbers and stays a quarter empty;
# one of 8192 holds five, and the file is a sixth smaller.
_BYTES_A_PAGE = 8192


@dataclass(frozen=True, slots=True)
class SQLite:
    """One SQLite file; see `kronos.db.dialect.Dialect`."""

    path: Path
    settings: Settings

    @property
    def errors(self) -> tuple[type[Exception], ...]:
        """The exceptions that the driver raises."""
        return ERRORS

    @property
    def url(self) -> str:
        """The database as a `storage_path` names it."""
        return f"sqlite:///{self.path}"

    @property
    def files(self) -> SQLiteFiles:
        """The database as a file."""
        return SQLiteFiles(self.path, self._timeout_s, self.fault)

    def begin_read(self, connection: Connection) -> None:
        """Begin a transaction that sees the state of its first statement."""
        self._run(connection, "BEGIN")

    def begin_write(self, connection: Connection) -> None:
        """Begin a transaction that alone may write."""
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
        """Begin the same without foreign keys; the connection must not be used afterwards.

        A rebuild of a table that others refer to would empty its ON DELETE CASCADE children, and
        inside a transaction the switch has no effect. A rebuilt table takes the name of the old one
        while views still name it, which SQLite allows only with `legacy_alter_table`.
        """
        self._run(connection, "PRAGMA foreign_keys=OFF")
        self._run(connection, "PRAGMA legacy_alter_table=ON")
        self._run(connection, "BEGIN IMMEDIATE")

    def commit(self, connection: Connection) -> None:
        """End a transaction. Raises the driver's errors, as `rollback` does."""
        # SQLAlchemy has a transaction of its own only when statements went through it.
        if connection.in_transaction():
            connection.commit()
        else:
            driver_of(connection).commit()

    def rollback(self, connection: Connection) -> None:
        """End a transaction and undo what it wrote."""
        if connection.in_transaction():
            connection.rollback()
        else:
            driver_of(connection).rollback()

    def _run(self, connection: Connection, statement: str) -> None:
        # Past SQLAlchemy's cursor, which takes longer than the statement: searches pay for it.
        try:
            driver_of(connection).execute(statement)
        except ERRORS as exc:
            raise self.fault(exc) from exc

    def file_id(self) -> tuple[int, int] | None:
        """The identity of the file at the path: its device and its number there.

        None when no file can be reached.
        """
        try:
            found = os.stat(self.path)
        except OSError:
            return None
        return found.st_dev, found.st_ino

    # -- Connections ----------------------------------------------------------------------------

    def engine(self, connect: Callable[[], Any]) -> Engine:
        """A SQLAlchemy engine whose connections a function makes, and which keeps none."""
        return create_engine(
            URL.create("sqlite+pysqlite", database=str(self.path)),
            creator=connect,
            module=driver,
            poolclass=NullPool,
        )

    def connect(self, *, create: bool = True) -> sqlite3.Connection:
        """Open a connection.

        A database in a folder that cannot be written is opened as a file that never changes.

        Args:
            create: make the folder and the file when they are missing.

        Raises:
            ConfigurationError: the path cannot be a file's.
            ReadOnlyStoreError: the folder is missing and cannot be made.
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
            if code_of(exc) is None:
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
        # Deleted rows inside a page are overwritten at once; whole free pages go in `vacuum`.
        connection.execute("PRAGMA secure_delete=FAST")
        # `kronos.db.schema` refuses another program's file: until then it stays as it is.
        empty, ours = connection.execute(
            "SELECT count(*) = 0, total(name IN ('store', 'alembic_version')) = 2"
            " FROM sqlite_master"
        ).fetchone()
        if empty:
            connection.execute(f"PRAGMA page_size={_BYTES_A_PAGE}")
            # `vacuum` needs this to give pages back in steps; on a full file it would be a write.
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
                # that open a new file some are refused at once.
                if code_of(exc) != Code.BUSY or time.monotonic() >= deadline:
                    raise
                time.sleep(0.005)

    @property
    def _log(self) -> Path:
        return beside(self.files.file)[0]

    def _can_only_be_read(self, error: Exception) -> bool:
        return (
            code_of(error) in (Code.READONLY, Code.CANTOPEN)
            and self.path.is_file()
            and not _is_writable(self.files.file.parent)
            # Commits that only the log holds would not be seen.
            and not (self._log.exists() and self._log.stat().st_size)
        )

    def watch(self, connection: Connection, is_stopped: Callable[[], bool] | None) -> None:
        """Interrupt a connection's statement once a function says so; None: never."""
        sqlite_of(connection).set_progress_handler(is_stopped, _INSTRUCTIONS_A_LOOK)

    # -- Errors ---------------------------------------------------------------------------------

    def fault(self, error: BaseException | None) -> StorageError | StoppedError:
        """Translate an error of the driver or the system; its transaction is rolled back."""
        match code_of(error):
            case Code.INTERRUPT:
                return StoppedError()
            case Code.BUSY | Code.LOCKED:
                return StoreBusyError(
                    f"{self.path} is locked by another writer; waited "
                    f"{self.settings.busy_timeout_s:g} s (busy_timeout_s). Nothing was written: "
                    "try again"
                )
            case Code.FULL:
                return self._full(error)
            case Code.IOERR:
                if self._is_full():
                    return self._full(error)
                return StorageError(
                    f"the disk failed on {self.path}: {error}. The transaction was rolled back; "
                    "check the disk, its quota and the limits of this process"
                )
            case Code.READONLY:
                return self._read_only(error)
            case Code.CANTOPEN if not _is_writable(self.files.file.parent):
                return self._read_only(error)
            case Code.CORRUPT | Code.NOTADB:
                return CorruptStoreError(
                    f"{self.path} is damaged or no SQLite database: {error}. {WAY_OUT_OF_DAMAGE}"
                )
            case _:
                return StorageError(f"the database {self.path} failed: {error}")

    def _is_full(self) -> bool:
        try:
            return shutil.disk_usage(self.files.file.parent).free < _FREE_BYTES
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

    # -- The database as a whole ----------------------------------------------------------------

    @property
    def mode(self) -> int | None:
        """The permission bits of the database, which every copy of its content gets too."""
        return mode_of(self.path)

    def size_bytes(self) -> int:
        """The bytes of the database on disk, its write-ahead log included."""
        return sum(file.stat().st_size for file in (self.path, self._log) if file.exists())

    def page_bytes(self) -> int:
        """The bytes of a page of the file, which is settled when it is made.

        Raises:
            StorageError: the file cannot be read as a database.
        """
        return self.files.page_bytes()

    def sync(self) -> None:
        """Bring every commit to the disk; with durability "full" all are there already.

        Raises:
            StorageError: the disk failed.
        """
        try:
            # SQLite locks the database and its shared memory, not the log: closing it frees none.
            with suppress(FileNotFoundError):
                sync(self._log)
            sync(self.files.file.parent)
        except OSError as exc:
            raise self.fault(exc) from exc

    def vacuum(self, steps: Steps) -> bool:
        """Give the free pages of the file back to the disk, while others read and write.

        A file that was made before pages could be given back in steps is rewritten once, which
        takes as much space again and keeps writers waiting.

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
                # Pages that were given back stay in the log until it is copied. A reader of an
                # older state may keep the log from being cut; the next writer's end does it then.
                (busy, _, _) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
                return not busy
        except ERRORS as exc:
            raise self.fault(exc) from exc

    def integrity_problems(self, connection: Connection) -> list[str]:
        """What SQLite's own checks find wrong, rows that refer to nothing included."""
        rows = connection.exec_driver_sql("PRAGMA integrity_check").scalars()
        return [row for row in rows if row != "ok"] + self.foreign_key_problems(connection)

    def foreign_key_problems(self, connection: Connection) -> list[str]:
        """Rows that refer to a missing row."""
        rows = connection.exec_driver_sql("PRAGMA foreign_key_check")
        return [
            f"row {row} of {table} refers to a missing row of {parent}"
            for table, row, parent, _ in rows
        ]

    def rebuild_indexes(self, connection: Connection) -> None:
        """Rebuild the database's own indexes from its tables."""
        connection.exec_driver_sql("REINDEX")

    def advice(self) -> list[Problem]:
        """Known faults of the SQLite library in use."""
        if not may_lose_commits():
            return []
        return [
            Problem(
                "sqlite",
                f"SQLite {version()} has the WAL-reset bug: two processes that write at the same "
                "instant can, very rarely, damage the database. SQLite 3.51.3 or later does not "
                "have it: run `pip install 'kronos-memory[sqlite]'`",
            )
        ]


def _is_writable(folder: Path) -> bool:
    effective = os.access in os.supports_effective_ids
    return os.access(folder, os.W_OK, effective_ids=effective)
