"""A SQLite database as a file: copies of it, replacing it, and reading a damaged one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection

from kronos.db.sqlite_driver import ERRORS, Code, code_of, driver, sqlite_of
from kronos.errors import InputError
from kronos.files import behind_links, mode_of, publishing, sync

if TYPE_CHECKING:
    import sqlite3

    from kronos.concurrency.progress import Steps
    from kronos.errors import StoppedError, StorageError

# Of a backup, between two checks of whether it is to stop: 32 MiB.
_PAGES_A_COPY = 4096
_PAGES_A_STEP = 256
# SQLite's own limit is 281 TB; a sparse file costs nothing, but not every file system takes it.
_LONGEST_FILE = 2**42
_LAST_ROW = 2**63 - 1
# Failures around a file, whatever it holds. In the middle of a file IOERR is a place of the disk
# that cannot be read any more, which is passed over as damage is.
_NO_DAMAGE = (
    *(Code.BUSY, Code.LOCKED, Code.READONLY),
    *(Code.IOERR, Code.FULL, Code.CANTOPEN),
)


@dataclass(frozen=True, slots=True)
class SQLiteFiles:
    """One SQLite file; see `kronos.db.dialect.Files`.

    Args:
        path: the file, or a link to it.
        busy_timeout_s: how long to wait for other writers.
        fault: translates an error of the driver or the system.
    """

    path: Path
    busy_timeout_s: float
    fault: Callable[[BaseException | None], StorageError | StoppedError]

    @property
    def file(self) -> Path:
        """The file itself, where the path is a link to it: SQLite keeps its log there."""
        return behind_links(self.path)

    def _open(self) -> sqlite3.Connection:
        connection: sqlite3.Connection = driver.connect(
            f"{self.path.as_uri()}?mode=rw",
            uri=True,
            timeout=self.busy_timeout_s,
            isolation_level=None,
        )
        return connection

    def page_bytes(self) -> int:
        """The bytes of a page of the file; raises as `Dialect.page_bytes` does."""
        try:
            with closing(self._open()) as connection:
                connection.execute("PRAGMA schema_version").fetchone()  # reads the file, which
                (found,) = connection.execute("PRAGMA page_size").fetchone()  # this does not
                return int(found)
        except ERRORS as exc:
            raise self.fault(exc) from exc

    # -- Copies ---------------------------------------------------------------------------------

    def backup(self, connection: Connection, target: Path, steps: Steps) -> None:
        """Copy the database as a connection sees it to a new file, whole or not at all.

        Raises:
            InputError: the file exists.
            StorageError: the copy could not be written.
            StoppedError: the call was stopped.
        """
        try:
            with publishing(target, mode=mode_of(self.path), replace=False) as part:
                self.copy(connection, part, steps)
        except FileExistsError:
            raise InputError(
                f"{target} exists: name a new file for the backup", field="path"
            ) from None
        except OSError as exc:
            raise self.fault(exc) from exc

    def copy(self, connection: Connection, target: Path, steps: Steps) -> None:
        """Copy the database as a connection sees it into a file that the caller has made."""

        def note(status: int, remaining: int, total: int) -> None:
            steps.report(total - remaining, total)

        source = sqlite_of(connection)
        try:
            # A read settles the state that is copied before its first part is, not with each part.
            source.execute("SELECT count(*) FROM sqlite_master")
            with closing(driver.connect(target)) as copy:
                source.backup(copy, pages=_PAGES_A_COPY, progress=note)
            sync(target)
        except (*ERRORS, OSError) as exc:
            raise self.fault(exc) from exc

    # -- Replacing ------------------------------------------------------------------------------

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
        try:
            with (
                closing(driver.connect(source)) as found,
                closing(self._open()) as connection,
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
        """The callback of a backup's steps: it prepares after the first step that was made."""
        deadline = time.monotonic() + self.busy_timeout_s
        is_prepared = False

        def stepped(status: int, remaining: int, total: int) -> None:
            nonlocal is_prepared
            if status in (Code.BUSY, Code.LOCKED):
                if time.monotonic() > deadline:  # `backup` itself would wait without end
                    raise driver.OperationalError("database is locked")
            elif not is_prepared:
                is_prepared = True
                prepare()

        return stepped

    def become_one_file(self, page_bytes: int | None = None) -> None:
        """Leave no log beside the file, which no other process has open.

        Args:
            page_bytes: the wanted length of its pages; None keeps them.

        Raises:
            StorageError: the database or the disk failed.
        """
        try:
            with closing(self._open()) as connection:
                connection.execute("PRAGMA journal_mode=DELETE")
                if page_bytes not in (None, *connection.execute("PRAGMA page_size").fetchone()):
                    connection.execute(f"PRAGMA page_size={page_bytes}")
                    connection.execute("VACUUM")
        except ERRORS as exc:
            raise self.fault(exc) from exc

    # -- Damaged files --------------------------------------------------------------------------

    def restore_length(self) -> None:
        """Give a file that was cut off its old length: SQLite reads nothing of a short one."""
        with self.path.open("r+b") as file:
            header = file.read(32)
            page, pages = int.from_bytes(header[16:18], "big"), int.from_bytes(header[28:32], "big")
            # A page of 65,536 bytes is written as 1.
            length = pages * (2**16 if page == 1 else page)
            if self.path.stat().st_size < length <= _LONGEST_FILE:
                file.truncate(length)

    def salvage(self, table: str) -> Iterator[dict[str, Any]]:
        """Read what can be read of a table of a damaged database, from both its ends.

        Yields:
            Rows by column; a row may come twice.

        Raises:
            StorageError: the disk failed, so that nothing tells what is damaged.
        """
        try:
            with closing(driver.connect(self.path, isolation_level=None)) as connection:
                connection.text_factory = lambda raw: raw.decode("utf-8", "surrogateescape")
                yield from _walk(connection, table, upwards=True)
                yield from _walk(connection, table, upwards=False)
        except ERRORS as exc:
            raise self.fault(exc) from exc


def _walk(connection: sqlite3.Connection, table: str, *, upwards: bool) -> Iterator[dict[str, Any]]:
    """A table's rows in the order of their numbers; at a damaged page, leap ahead."""
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
                # A damaged tree may lead back to earlier rows: only a new place is progress.
                if (row[0] > place) if upwards else (row[0] < place):
                    place, leap = row[0], 0
                    yield dict(zip(names[1:], row[1:], strict=True))
            return
        except ERRORS as exc:
            is_first = place in (-1, _LAST_ROW)
            if code_of(exc) in _NO_DAMAGE and (is_first or code_of(exc) != Code.IOERR):
                raise
            if start in (-1, _LAST_ROW) and leap:
                return
            leap = 2 * leap or (1 if upwards else -1)
