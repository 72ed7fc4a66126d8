"""What a database must offer: everything that Kronos asks of one beyond plain SQL.

`Dialect` is the seam between Kronos and a particular database, and `Files` the part of it that only
a database in a file has. How a database spells an expression is in `kronos.db.sql`, how it indexes
texts in `kronos.db.fulltext.base`, and which database a store has is decided in `kronos.db.choice`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

    from kronos.concurrency.progress import Steps
    from kronos.errors import StoppedError, StorageError
    from kronos.types import Problem

WAY_OUT_OF_DAMAGE = (
    "Put a backup back with `kronos restore`, or save what can be read with `kronos recover`"
)


class Dialect(Protocol):
    """One database: how to connect to it, begin transactions, and read its errors."""

    @property
    def errors(self) -> tuple[type[Exception], ...]:
        """The exceptions that the driver raises; `fault` translates them."""

    @property
    def url(self) -> str:
        """The database as a `storage_path` names it."""

    @property
    def files(self) -> Files:
        """The database as a file."""

    # -- Connections and transactions -----------------------------------------------------------

    def engine(self, connect: Callable[[], Any]) -> Engine:
        """A SQLAlchemy engine whose connections a function makes, and which keeps none."""

    def connect(self, *, create: bool = True) -> Any:
        """Open a connection of the driver.

        Args:
            create: make the database when it is missing.

        Raises:
            ConfigurationError: no database can be at this place.
            ReadOnlyStoreError: it is missing and cannot be made.
        """

    def begin_read(self, connection: Connection) -> None:
        """Begin a transaction that sees the state of its first statement."""

    def begin_write(self, connection: Connection) -> None:
        """Begin a transaction that alone may write."""

    def begin_write_at_once(self, connection: Connection) -> None:
        """Begin the same, without waiting for another writer."""

    def begin_migration(self, connection: Connection) -> None:
        """Begin the same without foreign keys; the connection must not be used afterwards."""

    def commit(self, connection: Connection) -> None:
        """End a transaction. Raises the driver's errors, as `rollback` does."""

    def rollback(self, connection: Connection) -> None:
        """End a transaction and undo what it wrote."""

    def watch(self, connection: Connection, is_stopped: Callable[[], bool] | None) -> None:
        """Interrupt a connection's statement once a function says so; None: never."""

    def fault(self, error: BaseException | None) -> StorageError | StoppedError:
        """Translate an error of the driver or the system; its transaction is rolled back."""

    # -- The database as a whole ----------------------------------------------------------------

    def file_id(self) -> tuple[int, int] | None:
        """The identity of the file at the database's path; None when no file can be reached."""

    @property
    def mode(self) -> int | None:
        """The permission bits of the database, which every copy of its content gets too."""

    def size_bytes(self) -> int:
        """The bytes of the database on disk, its log included."""

    def page_bytes(self) -> int:
        """The bytes of a page, the unit in which the database takes room on disk.

        Raises:
            StorageError: the file cannot be read as a database.
        """

    def sync(self) -> None:
        """Bring every commit to the disk.

        Raises:
            StorageError: the disk failed.
        """

    def vacuum(self, steps: Steps) -> bool:
        """Give the room of deleted rows back to the disk, while others read and write.

        Returns:
            Whether the log holds none of them any more.

        Raises:
            StorageError: the database or the disk failed.
        """

    def integrity_problems(self, connection: Connection) -> list[str]:
        """What the database's own checks find wrong, rows that refer to nothing included."""

    def foreign_key_problems(self, connection: Connection) -> list[str]:
        """Rows that refer to a missing row."""

    def rebuild_indexes(self, connection: Connection) -> None:
        """Rebuild the database's own indexes from its tables."""

    def advice(self) -> list[Problem]:
        """Known faults of the installed database library."""


class Files(Protocol):
    """A database that is a file: how it is copied, replaced and salvaged."""

    @property
    def file(self) -> Path:
        """The file itself, where the database's path is a link to it."""

    def backup(self, connection: Connection, target: Path, steps: Steps) -> None:
        """Copy the database as a connection sees it to a new file, whole or not at all.

        Raises:
            InputError: the file exists.
            StorageError: the copy could not be written.
            StoppedError: the call was stopped.
        """

    def copy(self, connection: Connection, target: Path, steps: Steps) -> None:
        """Copy the database as a connection sees it into a file that the caller has made."""

    def overwrite(self, source: Path, prepare: Callable[[], None]) -> None:
        """Replace the database's content by another file's in one transaction; readers go on.

        Args:
            source: a database that no other process uses, with pages as long as this one's.
            prepare: called once no other writer can begin, and before anything is replaced; it may
                read the database and change the source. An error leaves the database as it is.

        Raises:
            StoreBusyError: other writers did not end in time.
            StorageError: the database or the disk failed; the database is as it was.
        """

    def become_one_file(self, page_bytes: int | None = None) -> None:
        """Leave no log beside the file, which no other process has open.

        Args:
            page_bytes: the wanted length of its pages; None keeps them.

        Raises:
            StorageError: the database or the disk failed.
        """

    def restore_length(self) -> None:
        """Give a file that was cut off its old length, so that the rest of it can be read."""

    def salvage(self, table: str) -> Iterator[dict[str, Any]]:
        """Read what can be read of a table of a damaged database.

        Yields:
            Rows by column; a row may come twice.

        Raises:
            StorageError: the disk failed, so that nothing tells what is damaged.
        """
