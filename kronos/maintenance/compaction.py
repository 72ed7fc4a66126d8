"""Giving back what nobody wants: old spaces, all that is left of deleted memories, bytes on disk.

Only what can be made anew, or has expired, is dropped: it is found in transactions that read, and
dropped in such as are so small, and so far apart, that other writers hardly wait.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from kronos.concurrency.pacing import MEMORIES_A_TRANSACTION, Turns, in_parts
from kronos.concurrency.steps import Steps
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
    """Drop what nobody wants, and give the free space of the file back to the disk.

    Args:
        database: what to compact; others may read and write meanwhile.
        keep: so many retired spaces are kept.
        replica: the index that serves; it gives back what deleted vectors took.
        folder: where the snapshots lie.
        forget_before: forget what memories were before this moment too, in microseconds.
        clock: the time, UTC.
        steps: one for each transaction, and for each part of the file that is given back.

    Raises:
        StorageError: the database or the disk failed; nothing that is wanted was lost.
        StoppedError: what was dropped is gone; the next time goes on with the rest.
    """
    before = database.size_bytes()
    rows = _Rows(database, clock, steps)
    dropped = drop_spaces(
        database, keep, leftovers=True, spared=replica.space, clock=clock, steps=steps
    )
    expired = rows.delete_expired()
    rows.forget_the_past(forget_before)
    with replica.saving:
        head = replica.compact(rows.reading)
    rows.forget_the_deleted(head)
    # Every other snapshot may hold what is forgotten; one of another space would be read only after
    # a switch, and then be replayed from SQL.
    discard_other_snapshots(folder, {replica.space.id})
    if not database.vacuum(steps):
        warnings.warn(
            "another process reads an older state, so the write-ahead log still holds what was "
            "deleted: run `kronos compact` again when it has ended",
            KronosWarning,
            stacklevel=2,
        )
    return CompactReport(tuple(dropped), expired, before, database.size_bytes())


class _Rows:
    """What of the rows nobody wants: found while others write, and deleted bit by bit."""

    def __init__(self, database: Database, clock: Callable[[], datetime], steps: Steps) -> None:
        self._database = database
        self._clock = clock
        self._steps = steps

    @contextmanager
    def reading(self) -> Iterator[Repository]:
        """A transaction that reads."""
        with self._database.read() as connection:
            yield Repository(connection, self._clock())

    @contextmanager
    def _writing(self) -> Iterator[Repository]:
        """A transaction that writes, and a step."""
        with self._database.write() as connection:
            yield Repository(connection, self._clock(), keep_history=False)
        self._steps.take()

    def delete_expired(self) -> int:
        """Delete what has expired. Returns how many."""
        with self.reading() as repository:
            expired = repository.expired()

        def delete(keys: Keys) -> int:
            with self._writing() as repository:
                return repository.delete_expired(keys)

        return in_parts(expired, delete)

    def forget_the_past(self, before: int | None) -> None:
        """Forget what deleted memories were, what others were long ago, and each word of both."""
        with self.reading() as repository:
            unwanted = repository.history.unwanted(before=before)

        def forget(keys: Keys) -> int:
            with self._writing() as repository:
                repository.history.forget(keys.tolist())
            return len(keys)

        in_parts(unwanted, forget)
        self._forget_vectors()
        self._merge_words()
        with self._writing() as repository:
            if unwanted.size or repository.has_deletions():
                repository.history.begin_anew()

    def _forget_vectors(self) -> None:
        after: PastVector = (0, b"")
        turns = Turns()
        while True:
            with self.reading() as repository:
                found = repository.history.unused_vectors(after, MEMORIES_A_TRANSACTION)
            if not found:
                return
            with turns, self._writing() as repository:
                repository.history.forget_vectors(found)
            after = found[-1]

    def _merge_words(self) -> None:
        """Leave no word of a text that is gone, in steps that other writers hardly wait for."""
        begins, turns = True, Turns()
        while True:
            with turns, self._writing() as repository:
                if not repository.fulltext.merge(begins=begins):
                    return
            begins = False

    def forget_the_deleted(self, seq: int) -> None:
        """Forget that memories are gone, for an index that is at a seq."""
        with self.reading() as repository:
            buried = {
                space.id: repository.spaces.buried(space.id, seq)
                for space in repository.spaces.all()
            }
        for space_id, keys in buried.items():
            in_parts(keys, functools.partial(self._prune, space_id, seq))
        forgotten, turns = MEMORIES_A_TRANSACTION, Turns()
        while forgotten == MEMORIES_A_TRANSACTION:
            with turns, self._writing() as repository:
                forgotten = repository.forget_deletions(MEMORIES_A_TRANSACTION)

    def _prune(self, space_id: int, seq: int, keys: Keys) -> int:
        with self._writing() as repository:
            repository.spaces.prune(space_id, seq, keys.tolist())
        return len(keys)
