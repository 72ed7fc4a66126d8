"""Putting a whole database in place of another one, while other processes may have it open.

The database that was there before is never deleted: it is kept aside, beside the new one. No other
process can write between the moment at which it is copied and the moment at which it is replaced,
so each acknowledged write is in the new database or in the copy. A database that was put back or
recovered takes a seq above every one that was given out before, and says that all its tombstones
are pruned; so no index and no snapshot of another time is followed.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path

from sqlalchemy import select, update

from kronos import files
from kronos.concurrency.progress import Steps
from kronos.db import schema
from kronos.db.database import Database
from kronos.db.tables import spaces, store
from kronos.errors import (
    ConfigurationError,
    CorruptStoreError,
    InputError,
    ReadOnlyStoreError,
    StorageError,
    StoreBusyError,
)
from kronos.settings import Place, Settings

A_LOST_SEQ = 10**12
"""How far to go beyond the highest known seq, where the last one cannot be trusted."""
NO_SEQ = 2**62
"""No store gets this far: a number from here on is damage."""
_BYTES_AT_ONCE = 2**20


def restore(backup: Path, place: Place, settings: Settings) -> Path | None:
    """Put a backup in place of a store's database; other processes may have it open.

    Args:
        backup: what `MemoryStore.backup` wrote. One of an older schema is upgraded on its way.
        place: the store; it need not exist.
        settings: how long to wait for writers, and for another restore.

    Returns:
        Where the database from before is kept; None when there was none.

    Raises:
        InputError: the backup does not exist.
        CorruptStoreError: the backup is damaged; nothing was changed.
        ConfigurationError: it holds no Kronos store.
        SchemaTooNewError: a newer Kronos made it.
        StoreBusyError: other writers, or another restore, did not end in time.
        StorageError: the disk failed; the store is as it was.
    """
    if not backup.is_file():
        raise InputError(f"there is no backup at {backup}", field="backup")
    with replacing(place, settings) as replacement, files.making(replacement.file) as part:
        with closing(Database(backup, settings)) as source, source.read() as connection:
            source.dialect.files.copy(connection, part, Steps())
        with closing(Database(part, settings)) as prepared:
            _refuse_unfit(prepared)
        mode = files.mode_of(backup)
        return replacement.put(part, "before-restore", mode=mode)


class Replacement:
    """The replacement of one store's database.

    Args:
        place: the store.
        settings: how long to wait for writers.
    """

    def __init__(self, place: Place, settings: Settings) -> None:
        self._settings = settings
        self._present = Database(place.database, settings)
        self.file = self._present.dialect.files.file
        """The database file itself, where the store's own is a link to it."""

    def put(
        self, part: Path, why: str, *, mode: int | None = None, is_exact: bool = False
    ) -> Path | None:
        """Replace the store's database by another one.

        Args:
            part: the other database, which no other process has open.
            why: names the copy of the database from before.
            mode: the permission bits of the database where there was none.
            is_exact: copy the database from before byte by byte, and not page by page.

        Returns:
            The copy; None where there was no database before.
        """
        aside = beside(self.file, why)
        if not self.file.exists():
            self._set_log_aside(aside)
            self._make_empty(mode)
        with closing(self._present):
            try:
                self._overwrite(part, aside, is_exact=is_exact)
            except (CorruptStoreError, ReadOnlyStoreError):
                # The database cannot even be opened, so no other process writes to it either.
                if not os.access(self.file, os.W_OK):
                    raise
                self._exchange(part, aside)
        return aside if aside.exists() or files.beside(aside)[0].exists() else None

    def _make_empty(self, mode: int | None) -> None:
        """Make an empty file, so that there is only one way to replace a database."""
        with suppress(FileExistsError):  # another process made a store meanwhile
            self.file.touch(exist_ok=False)
            if mode is not None:
                self.file.chmod(mode)

    def _overwrite(self, part: Path, aside: Path, *, is_exact: bool) -> None:
        """Replace the content in one transaction, which every process that has it open follows."""
        is_sound = not self._present.problems()  # reads all: before other writers have to wait
        present = self._present.dialect
        Database(part, self._settings).dialect.files.become_one_file(present.page_bytes())

        def keep_and_prepare() -> None:
            last = self._last_seq()
            if last != 0:
                self._keep(aside, is_exact=is_exact or last is None)
            lost = 0 if is_sound and last is not None else A_LOST_SEQ
            _begin_above(part, (last or 0) + lost, self._settings)

        present.files.overwrite(part, keep_and_prepare)

    def _last_seq(self) -> int | None:
        """The last seq of the database, 0 for an empty one; None when it cannot be told."""
        with suppress(StorageError, ConfigurationError):
            if schema.current(self._present) is None:
                return 0
            with self._present.read() as connection:
                last = connection.execute(select(store.c.seq)).scalar_one()
            if isinstance(last, int) and 0 < last < NO_SEQ:
                return last
        return None

    def _keep(self, aside: Path, *, is_exact: bool) -> None:
        """Copy the present database, while no other process can write to it."""
        if not is_exact:
            with suppress(CorruptStoreError):
                self._present.backup(aside)
                return
        with files.making(aside) as part:
            copy_files(self.file, part)
            for made, kept in zip(_with_log(part), _with_log(aside), strict=True):
                if made.exists():
                    files.publish(made, kept, mode=self._present.dialect.mode)

    def _exchange(self, part: Path, aside: Path) -> None:
        """Replace a file that cannot be opened as a database by another file."""
        _begin_above(part, A_LOST_SEQ, self._settings)
        Database(part, self._settings).dialect.files.become_one_file()
        mode = self._present.dialect.mode
        _give_second_name(self.file, aside)
        self._set_log_aside(aside)
        # A file of its own, of which this process has no descriptor: closing one would drop the
        # locks that the database holds for another thread. It stays: the folder is locked.
        new = files.part_of(self.file)
        shutil.copyfile(part, new)
        files.publish(new, self.file, mode=mode)

    def _set_log_aside(self, aside: Path) -> None:
        """Take the log away: it would be replayed into whatever database it lies beside."""
        log, shared, _ = files.beside(self.file)
        if log.exists():
            _give_second_name(log, files.beside(aside)[0])
            files.sync(self.file.parent)
        for file in (log, shared):
            file.unlink(missing_ok=True)
        files.sync(self.file.parent)


@contextmanager
def replacing(place: Place, settings: Settings) -> Iterator[Replacement]:
    """Hold the right to replace a store's database: one process at a time has it.

    Raises:
        StoreBusyError: another process restores or recovers the store.
        StorageError: the disk failed.
    """
    replacement = Replacement(place, settings)
    try:
        files.make_folder(replacement.file.parent)
        with files.locked(replacement.file.parent, wait_s=settings.busy_timeout_s) as alone:
            if not alone:
                raise StoreBusyError(
                    f"another process restores or recovers {place.database}; waited "
                    f"{settings.busy_timeout_s:g} s (busy_timeout_s). Nothing was changed"
                )
            yield replacement
    except OSError as exc:
        raise Database(place.database, settings).dialect.fault(exc) from exc


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


def copy_files(database: Path, copy: Path) -> None:
    """Copy a database and its log byte by byte; a descriptor of each stays open.

    Closing any descriptor of a file drops every lock that this process has on it, also those that
    the database holds for other threads: another process would then take the log away.
    """
    for old, new in zip(_with_log(database), _with_log(copy), strict=True):
        if old.exists():
            descriptor = os.open(old, os.O_RDONLY)
            with open(descriptor, "rb", closefd=False) as source, new.open("wb") as target:
                shutil.copyfileobj(source, target, _BYTES_AT_ONCE)


def _give_second_name(old: Path, new: Path) -> None:
    """Keep a file under another name; where a file can have only one, as a copy."""
    try:
        os.link(old, new)
    except OSError as exc:
        if exc.errno not in files.ONE_NAME:
            raise
        shutil.copyfile(old, new)
        shutil.copymode(old, new)
        files.sync(new)
