"""Connections and transactions: who holds one, holds one consistent view of one database.

A reader sees the state of its first statement, whatever writers do meanwhile. A writer holds the
write lock from its first statement on. Whatever the driver raises inside is rolled back and leaves
as an error of `kronos.errors`. Nothing here knows what the rows mean.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from sqlalchemy import URL, Connection, Engine, create_engine
from sqlalchemy.exc import DBAPIError

from kronos.db.dialect import ERRORS, SQLite, driver
from kronos.errors import CorruptStoreError, StoreClosedError
from kronos.forking import Gate, follow_forks
from kronos.settings import Settings
from kronos.types import Problem

# Connections kept for the next transaction; more are opened when more threads ask at once.
_POOL_SIZE = 8


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
        self._engine = self._new_engine()
        follow_forks(self)

    def _new_engine(self) -> Engine:
        return create_engine(
            URL.create("sqlite+pysqlite", database=str(self.path)),
            creator=self.dialect.connect,
            module=driver,
            pool_size=_POOL_SIZE,
            max_overflow=-1,
            pool_use_lifo=True,
        )

    def before_fork(self) -> None:
        """Close every connection, once no other thread is in a transaction.

        SQLite takes locks for a process: a child that inherits an open file believes to hold its
        parent's, and when the parent closes, the write-ahead log goes with what the child wrote.
        """
        self._gate.close()
        self._engine.dispose()

    def after_fork(self, in_child: bool) -> None:
        """Let transactions begin again; in the child with a pool whose locks are free."""
        if in_child:
            self._gate, self._engine = Gate(), self._new_engine()
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
        return self._transaction(self.dialect.begin_migration, pooled=False)

    @contextmanager
    def _transaction(
        self, begin: Callable[[Connection], None], *, pooled: bool = True
    ) -> Iterator[Connection]:
        if self._closed:
            raise StoreClosedError
        try:
            with self._gate, self._engine.connect() as connection:
                if not pooled:
                    connection.detach()
                try:
                    with connection.begin():
                        begin(connection)
                        yield connection
                except (DBAPIError, driver.Error):
                    # After a failed commit or fsync nobody knows what the connection still holds.
                    connection.invalidate()
                    raise
        except DBAPIError as exc:
            raise self.dialect.fault(exc.orig) from exc
        except ERRORS as exc:
            raise self.dialect.fault(exc) from exc

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
        self._engine.dispose()
