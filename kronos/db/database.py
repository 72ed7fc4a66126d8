"""Connections and transactions: each transaction is one consistent view of one database.

A reader sees the state of its first statement, whatever writers do meanwhile. A writer holds the
write lock from its first statement on. An error of the driver rolls the transaction back, and
leaves it as an error of `kronos.errors`. Each transaction checks that the file it has open is still
the one at its path, so no write is acknowledged into a file that was moved away. Except for the
store's id, nothing here knows what the rows mean.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, cast

from sqlalchemy import Connection, select
from sqlalchemy.exc import DBAPIError

from kronos.concurrency.forking import Gate, notify_of_forks
from kronos.concurrency.progress import Steps
from kronos.db.choice import dialect_for
from kronos.db.statements import Prepared
from kronos.db.tables import store
from kronos.errors import (
    CorruptStoreError,
    StoppedError,
    StorageError,
    StoreBusyError,
    StoreClosedError,
    StoreReplacedError,
)
from kronos.settings import Settings
from kronos.types import Problem

# Kept for the next transactions; more are opened when more threads ask at once.
_MOST_IDLE = 8

FileId: TypeAlias = tuple[int, int]
"""The identity of a file on this machine: its device and its number there."""
_FILE = "kronos_file"


@dataclass(frozen=True, slots=True)
class _Held:
    """The store that must be at the path."""

    file: FileId | None
    store_id: str | None


class Database:
    """One database; threads may share it. Nothing is opened before the first transaction.

    A process may be forked at any time: the fork waits until no other thread is in a transaction,
    and both sides then connect anew.

    Args:
        path: the database file; it and its folder are created when they are missing.
        settings: durability, and how long a writer waits for another one.
    """

    def __init__(self, path: Path, settings: Settings) -> None:
        # Absolute, so that every connection opens the same file wherever the process goes.
        self.path = path.absolute()
        self.dialect = dialect_for(self.path, settings)
        self._failures: tuple[type[Exception], ...] = (DBAPIError, *self.dialect.errors)
        self._closed = False
        self._gate = Gate()
        # Connections are kept here and not in SQLAlchemy's pool, whose check-out and check-in take
        # twice as long as to begin and to end a transaction.
        self._idle: deque[Connection] = deque()
        self._held: _Held | None = None
        self._this_thread = threading.local()
        self._engine = self.dialect.engine(lambda: self.dialect.connect(create=self._held is None))
        notify_of_forks(self)

    def hold(self) -> None:
        """From now on the file must be the store that it is now, or that store copied or restored.

        Transactions raise StoreReplacedError as long as it is not; no file is created.
        """
        with self.read() as connection:
            self._held = _Held(file_of(connection), self._store_id(connection))

    def require_in_place(self) -> None:
        """Raise StoreReplacedError when the file that was held is no longer at its path."""
        if not self.is_in_place:
            raise self._replaced()

    @property
    def is_in_place(self) -> bool:
        """Whether the file that was held last is still the one at its path."""
        return self._held is None or self._held.file == self.dialect.file_id()

    def before_fork(self) -> None:
        """Close every connection, once no other thread is in a transaction.

        A database may take its locks for a process: a child that inherits an open file believes
        that it holds its parent's locks, and when the parent closes the file, the log goes with
        what the child wrote.
        """
        self._gate.close()
        self._disconnect()

    def after_fork(self, in_child: bool) -> None:
        """Let transactions begin again."""
        if in_child:
            self._gate, self._idle = Gate(), deque()
        else:
            self._gate.reopen()

    def read(self) -> AbstractContextManager[Connection]:
        """A transaction that reads one consistent state and never waits for a writer.

        Raises:
            StoreClosedError: `close` was called.
            ConfigurationError: the path cannot be a database's.
            StoreReplacedError: the file of the store was removed, or is another store's now.
            StorageError: the database or the disk failed; the subclass says how.
        """
        return self._transaction(self.dialect.begin_read)

    def write(self, *, wait: bool = True) -> AbstractContextManager[Connection]:
        """A transaction that is alone in writing: committed at the end, rolled back by an error.

        Args:
            wait: for other writers; False raises at once when there is one.

        Raises:
            StoreBusyError: another writer did not end within `Settings.busy_timeout_s`.
            ReadOnlyStoreError: the database cannot be written.
            StorageFullError: the disk is full.
            StorageError: as `read` does, and the rest.
        """
        begin = self.dialect.begin_write if wait else self.dialect.begin_write_at_once
        return self._transaction(begin, writes=True)

    def migration(self) -> AbstractContextManager[Connection]:
        """A write transaction in which tables may be rebuilt: foreign keys are not enforced.

        The caller checks `dialect.foreign_key_problems` before the end. Raises as `write`.
        """
        return self._transaction(self.dialect.begin_migration, kept=False, writes=True)

    def scratch(self) -> AbstractContextManager[Connection]:
        """A transaction that reads, on a connection of its own: temporary tables go with it.

        Raises as `read`.
        """
        return self._transaction(self.dialect.begin_read, kept=False)

    @contextmanager
    def stoppable(self, is_stopped: Callable[[], bool]) -> Iterator[None]:
        """Let this thread's transactions be interrupted, also during a long statement.

        Args:
            is_stopped: asked now and then; once it is true, the transaction is rolled back and
                raises `StoppedError`.
        """
        self._this_thread.is_stopped = is_stopped
        try:
            yield
        finally:
            self._this_thread.is_stopped = None

    def _transaction(
        self, begin: Callable[[Connection], None], *, kept: bool = True, writes: bool = False
    ) -> AbstractContextManager[Connection]:
        """A transaction, on a connection that is kept for the next one unless the driver failed."""
        return _Transaction(self, begin, self._idle if kept else None, writes)

    def _begin(
        self, begin: Callable[[Connection], None], idle: deque[Connection] | None
    ) -> Connection:
        """Begin a transaction on the file that is at the path at that moment."""
        while True:
            connection = self._connection(idle)
            try:
                begin(connection)
            except BaseException as exc:
                self._put_back(connection, idle if isinstance(exc, StoreBusyError) else None)
                raise
            if self._is_at_its_path(connection):
                return connection
            connection.close()
            self._disconnect()

    def _is_at_its_path(self, connection: Connection) -> bool:
        return self._held is None or file_of(connection) == self.dialect.file_id()

    def _connection(self, idle: deque[Connection] | None) -> Connection:
        if idle:
            with suppress(IndexError):  # another thread took the last one
                return idle.pop()
        while True:
            before = self.dialect.file_id()
            if before is None and self._held is not None:
                raise self._replaced()
            connection = self._engine.connect()
            connection.info[_FILE] = self.dialect.file_id()
            if before in (None, file_of(connection)):
                break
            connection.close()  # it was replaced while it was opened
        try:
            self._check_held(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _check_held(self, connection: Connection) -> None:
        """Accept another file if it holds the same store: copied, or restored."""
        held, found = self._held, file_of(connection)
        if held is None or held.file == found:
            return
        if self._store_id(connection) != held.store_id:
            raise self._replaced()
        self._held = _Held(found, held.store_id)

    def _store_id(self, connection: Connection) -> str | None:
        """The id of the store in a database; None where it holds no store."""
        try:
            rows = _STORE_ID.fetch(connection)
        except self._failures:
            return None
        return str(rows[0][0]) if rows else None

    def _replaced(self, so: str = "nothing was written") -> StoreReplacedError:
        gone = self.dialect.file_id() is None
        return StoreReplacedError(
            f"{self.path} was {'removed' if gone else 'replaced'} while the store was open, and "
            f"{so}. Put the store's own file back, or close this store and open it anew"
        )

    def _fault(self, error: BaseException | None) -> StorageError | StoppedError:
        """Translate an error; any error on a file that is gone means that it is gone."""
        if self._held is not None and self.dialect.file_id() is None:
            return self._replaced()
        return self.dialect.fault(error.orig if isinstance(error, DBAPIError) else error)

    def _put_back(self, connection: Connection, idle: deque[Connection] | None) -> None:
        if idle is None or len(idle) >= _MOST_IDLE:
            connection.close()
            return
        idle.append(connection)
        if self._closed:
            self._disconnect()

    def _disconnect(self) -> None:
        """Close the connections that are in no transaction."""
        with suppress(IndexError):
            while True:
                self._idle.pop().close()

    def backup(self, target: Path, steps: Steps | None = None) -> None:
        """Copy the database, as it is committed now, to a new file, while others read and write.

        Raises:
            StorageError: the copy could not be made; no part of it is left.
            StoppedError: likewise.
        """
        with self.read() as connection:
            self.dialect.files.backup(connection, target, steps or Steps())

    def problems(self) -> list[Problem]:
        """What the database's own checks find wrong; reads the whole file."""
        try:
            with self.read() as connection:
                found = self.dialect.integrity_problems(connection)
        except CorruptStoreError as exc:
            found = [str(exc)]
        return [Problem("database", detail) for detail in found]

    def size_bytes(self) -> int:
        """The bytes of the database on disk, its log included."""
        return self.dialect.size_bytes()

    def sync(self) -> None:
        """Bring every commit of every process to the disk.

        Raises:
            StorageError: the disk failed.
        """
        self.require_in_place()
        self.dialect.sync()

    def vacuum(self, steps: Steps | None = None) -> bool:
        """Give the room of deleted rows back to the disk, while others read and write.

        Returns:
            Whether the log holds none of them any more: a reader of an older state keeps them.

        Raises:
            StorageError: the database or the disk failed; nothing is lost.
        """
        if self._closed:
            raise StoreClosedError
        with self._gate:
            self.require_in_place()
            return self.dialect.vacuum(steps or Steps())

    def close(self) -> None:
        """Close every connection; does nothing when the database is closed."""
        self._closed = True
        self._disconnect()


class _Transaction(AbstractContextManager[Connection]):
    """One transaction of a database. A class, as each search pays for a generator's microseconds.

    Args:
        database: which is asked for a connection.
        begin: one of the dialect's ways.
        idle: where the connection comes from and goes back to; None: a new one, closed at the end.
        writes: whether the file must still be in its place when all is written.
    """

    __slots__ = ("_begin", "_connection", "_database", "_idle", "_is_stopped", "_writes")

    def __init__(
        self,
        database: Database,
        begin: Callable[[Connection], None],
        idle: deque[Connection] | None,
        writes: bool,
    ) -> None:
        self._database = database
        self._begin = begin
        self._idle = idle
        self._writes = writes

    def __enter__(self) -> Connection:
        database = self._database
        if database._closed:
            raise StoreClosedError
        database._gate.__enter__()
        try:
            connection = self._connection = database._begin(self._begin, self._idle)
        except BaseException as exc:
            database._gate.__exit__()
            if isinstance(exc, database._failures):
                raise database._fault(exc) from exc
            raise
        self._is_stopped = getattr(database._this_thread, "is_stopped", None)
        if self._is_stopped is not None:
            database.dialect.watch(connection, self._is_stopped)
        return connection

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        try:
            self._end(error)
        except self._database._failures as exc:
            # After a failed commit or fsync the state of the connection is unknown.
            self._connection.invalidate()
            self._idle = None
            raise self._database._fault(exc) from exc
        finally:
            self._database._put_back(self._connection, self._idle)
            self._database._gate.__exit__()

    def _end(self, error: BaseException | None) -> None:
        database, connection = self._database, self._connection
        if self._is_stopped is not None:
            database.dialect.watch(connection, None)
        if error is not None:
            database.dialect.rollback(connection)
            if isinstance(error, database._failures):
                raise error
            return
        database.dialect.commit(connection)
        if self._writes and not database._is_at_its_path(connection):
            raise database._replaced("what this call wrote went with it")


def file_of(connection: Connection) -> FileId | None:
    """The file that a connection of a `Database` has open."""
    return cast("FileId | None", connection.info.get(_FILE))


_STORE_ID = Prepared(select(store.c.uuid))
