"""Connections and transactions: who holds one, holds one consistent view of one database.

A reader sees the state of its first statement, whatever writers do meanwhile. A writer holds the
write lock from its first statement on. Whatever the driver raises inside is rolled back and leaves
as an error of `kronos.errors`. Nothing here knows what the rows mean.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

from sqlalchemy import URL, Connection, create_engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from kronos.db.dialect import ERRORS, SQLite, driver
from kronos.errors import CorruptStoreError, StoreClosedError
from kronos.forking import Gate, follow_forks
from kronos.settings import Settings
from kronos.types import Problem

# Kept for the next transactions; more are opened when more threads ask at once.
_MOST_IDLE = 8


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
        self.dialect = SQLite(self.path, settings)
        self._closed = False
        self._gate = Gate()
        # Connections are kept here and not in SQLAlchemy's pool, whose check-out and check-in take
        # twice as long as to begin and to end a transaction.
        self._idle: deque[Connection] = deque()
        self._engine = create_engine(
            URL.create("sqlite+pysqlite", database=str(self.path)),
            creator=self.dialect.connect,
            module=driver,
            poolclass=NullPool,
        )
        follow_forks(self)

    def before_fork(self) -> None:
        """Close every connection, once no other thread is in a transaction.

        SQLite takes locks for a process: a child that inherits an open file believes to hold its
        parent's, and when the parent closes, the write-ahead log goes with what the child wrote.
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
            StorageError: the database or the disk failed; the subclass says how.
        """
        return self._transaction(self.dialect.begin_read)

    def write(self) -> AbstractContextManager[Connection]:
        """A transaction that is alone in writing: committed at the end, rolled back by an error.

        Raises:
            StoreBusyError: another writer did not end within `Settings.busy_timeout_s`.
            ReadOnlyStoreError: the database cannot be written.
            StorageFullError: the disk is full.
            StorageError: as `read` does, and the rest.
        """
        return self._transaction(self.dialect.begin_write)

    def migration(self) -> AbstractContextManager[Connection]:
        """A write transaction in which tables may be rebuilt: foreign keys are not enforced.

        Whoever uses it looks at `dialect.foreign_key_problems` before the end. Raises as `write`.
        """
        return self._transaction(self.dialect.begin_migration, kept=False)

    def scratch(self) -> AbstractContextManager[Connection]:
        """A transaction that reads, on a connection of its own: temporary tables go with it.

        Raises as `read`.
        """
        return self._transaction(self.dialect.begin_read, kept=False)

    @contextmanager
    def _transaction(
        self, begin: Callable[[Connection], None], *, kept: bool = True
    ) -> Iterator[Connection]:
        if self._closed:
            raise StoreClosedError
        try:
            with self._gate, self._connection(kept=kept) as connection, connection.begin():
                begin(connection)
                yield connection
        except DBAPIError as exc:
            raise self.dialect.fault(exc.orig) from exc
        except ERRORS as exc:
            raise self.dialect.fault(exc) from exc

    @contextmanager
    def _connection(self, *, kept: bool) -> Iterator[Connection]:
        """A connection for one transaction; kept for the next one, unless the driver failed."""
        idle = self._idle if kept else None
        try:
            connection = self._engine.connect() if idle is None else idle.pop()
        except IndexError:
            connection = self._engine.connect()
        try:
            yield connection
        except (DBAPIError, driver.Error):
            # After a failed commit or fsync nobody knows what the connection still holds.
            connection.invalidate()
            idle = None
            raise
        finally:
            self._put_back(connection, idle)

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

    def backup(self, target: Path) -> None:
        """Copy the database, as it is committed now, to a new file, while others read and write.

        Raises:
            StorageError: the copy could not be made; no part of it is left.
        """
        with self.read() as connection:
            self.dialect.backup(connection, target)

    def problems(self) -> list[Problem]:
        """What the database's own checks find wrong; reads the whole file."""
        try:
            with self.read() as connection:
                found = self.dialect.integrity_problems(connection)
        except CorruptStoreError as exc:
            found = [str(exc)]
        return [Problem("database", detail) for detail in found]

    def size_bytes(self) -> int:
        """The bytes of the database on disk, its write-ahead log included."""
        return self.dialect.size_bytes()

    def sync(self) -> None:
        """Bring every commit, whoever made it, to the disk.

        Raises:
            StorageError: the disk failed.
        """
        self.dialect.sync()

    def vacuum(self) -> bool:
        """Give the space of deleted rows back to the disk, while others read and write.

        Returns:
            Whether nothing of them is left in the write-ahead log: a reader of an older state
            keeps it.

        Raises:
            StorageError: the database or the disk failed; nothing is lost.
        """
        if self._closed:
            raise StoreClosedError
        with self._gate:
            return self.dialect.vacuum()

    def close(self) -> None:
        """Close every connection; does nothing when the database is closed."""
        self._closed = True
        self._disconnect()
