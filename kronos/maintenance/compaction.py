"""Compaction: it deletes old spaces, expired memories and all traces of deleted ones.

It deletes only what can be made again or has expired. Read transactions find it, and small write
transactions delete it, with pauses between them, so that other writers hardly wait.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from kronos.concurrency.pacing import MEMORIES_PER_TRANSACTION, Pace, write_in_batches
from kronos.concurrency.progress import Steps
from kronos.errors import KronosWarning
from kronos.index.snapshot import discard_other_snapshots
from kronos.reindex.cleanup import drop_spaces
from kronos.repository.memories import Repository
from kronos.types import CompactReport

if TYPE_CHECKING:
    from datetime import datetime

    from kronos.db.database import Database
    from kronos.following.replica import Replica
    from kronos.repository.history import PastVector
    from kronos.types import Keys


def compact(
    database: Database,
    keep: int,
    replica: Replica,
    folder: Path,
    *,
    forget_before: int | None,
    clock: Callable[[], datetime],
    steps: Steps,
) -> CompactReport:
    """Delete what is not needed any more, and return the free space of the file to the disk.

    Args:
        database: the database; other processes may read and write meanwhile.
        keep: retired spaces to keep.
        replica: the serving index; it frees the memory of deleted vectors.
        folder: where the snapshots are.
        forget_before: also delete versions that were replaced before this moment, in microseconds
            since 1970 UTC; None: no such versions.
        clock: the time, UTC.
        steps: takes one step per transaction, and per part of the file that is freed.

    Returns:
        What was deleted.

    Raises:
        StorageError: the database or the disk failed; nothing else was lost.
        StoppedError: the call was stopped; the next call deletes the rest.
    """
    before = database.size_bytes()
    rows = _Rows(database, clock, steps)
    dropped = drop_spaces(
        database, keep, leftovers=True, spared=replica.space, clock=clock, steps=steps
    )
    expired = rows.delete_expired()
    rows.forget_versions(forget_before)
    with replica.saving:
        head = replica.compact(rows.reading)
    rows.forget_deletions(head)
    # Snapshots of other spaces may hold deleted vectors. They are needed only after a switch, and
    # can then be replayed from SQL.
    discard_other_snapshots(folder, {replica.space.id})
    if not database.vacuum(steps):
        warnings.warn(
            "another process reads an older state, so the write-ahead log still holds deleted "
            "data: run `kronos compact` again when that process has finished",
            KronosWarning,
            stacklevel=2,
        )
    return CompactReport(tuple(dropped), expired, before, database.size_bytes())


class _Rows:
    """Finds rows to delete while others write, and deletes them in small transactions."""

    def __init__(self, database: Database, clock: Callable[[], datetime], steps: Steps) -> None:
        self._database = database
        self._clock = clock
        self._steps = steps

    @contextmanager
    def reading(self) -> Iterator[Repository]:
        """Begin a read transaction."""
        with self._database.read() as connection:
            yield Repository(connection, self._clock())

    @contextmanager
    def _writing(self) -> Iterator[Repository]:
        """Begin a write transaction; it takes one step."""
        with self._database.write() as connection:
            yield Repository(connection, self._clock(), keep_history=False)
        self._steps.advance()

    def delete_expired(self) -> int:
        """Delete expired memories. Returns how many."""
        with self.reading() as repository:
            expired = repository.expired()

        def delete(keys: Keys) -> int:
            with self._writing() as repository:
                return repository.delete_expired(keys)

        return write_in_batches(expired, delete)

    def forget_versions(self, before: int | None) -> None:
        """Delete the versions of deleted memories, versions before a moment, and their words."""
        with self.reading() as repository:
            unwanted = repository.history.unwanted(before=before)

        def forget(keys: Keys) -> int:
            with self._writing() as repository:
                repository.history.forget(keys.tolist())
            return len(keys)

        write_in_batches(unwanted, forget)
        self._forget_vectors()
        self._merge_fulltext()
        with self._writing() as repository:
            if unwanted.size or repository.has_deletions():
                repository.history.begin_anew()

    def _forget_vectors(self) -> None:
        after: PastVector = (0, b"")
        pace = Pace()
        while True:
            with self.reading() as repository:
                found = repository.history.unused_vectors(after, MEMORIES_PER_TRANSACTION)
            if not found:
                return
            with pace, self._writing() as repository:
                repository.history.forget_vectors(found)
            after = found[-1]

    def _merge_fulltext(self) -> None:
        """Remove the words of deleted texts from the full-text index, in small steps."""
        begins, pace = True, Pace()
        while True:
            with pace, self._writing() as repository:
                if not repository.fulltext.merge(begins=begins):
                    return
            begins = False

    def forget_deletions(self, seq: int) -> None:
        """Delete the records of deletions, which an index at this seq does not need any more."""
        with self.reading() as repository:
            buried = {
                space.id: repository.vectors.buried(space.id, seq)
                for space in repository.spaces.all()
            }
        for space_id, keys in buried.items():
            write_in_batches(keys, functools.partial(self._prune, space_id, seq))
        forgotten, pace = MEMORIES_PER_TRANSACTION, Pace()
        while forgotten == MEMORIES_PER_TRANSACTION:
            with pace, self._writing() as repository:
                forgotten = repository.forget_deletions(MEMORIES_PER_TRANSACTION)

    def _prune(self, space_id: int, seq: int, keys: Keys) -> int:
        with self._writing() as repository:
            repository.vectors.prune(space_id, seq, keys.tolist())
        return len(keys)
