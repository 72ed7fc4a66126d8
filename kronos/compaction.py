"""Giving back what nobody wants: old spaces, all that is left of deleted memories, bytes on disk.

Only what can be made anew, or has expired, is dropped, in transactions so small that other writers
hardly wait.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from kronos.errors import KronosWarning
from kronos.history import History
from kronos.index.snapshot import discard_other_snapshots
from kronos.repository import Repository
from kronos.types import CompactReport

if TYPE_CHECKING:
    from datetime import datetime

    from kronos.db.engine import Database
    from kronos.replica import Replica
    from kronos.types import Space

_VECTORS_A_TRANSACTION = 2000
_MEMORIES_A_TRANSACTION = 500


def drop_spaces(
    database: Database,
    keep: int,
    *,
    leftovers: bool = False,
    clock: Callable[[], datetime],
) -> list[Space]:
    """Drop the spaces that nobody wants any more, in small transactions.

    Args:
        database: where they are.
        keep: so many retired spaces are kept, those that were the active one last.
        leftovers: drop those too that never became active and that no job builds.
        clock: the time, UTC.

    Returns:
        The spaces that are gone.
    """
    dropped: list[Space] = []
    while True:
        with database.write() as connection:
            spaces = Repository(connection, clock()).spaces
            # Looked at anew each time: somebody may want the space again.
            unwanted = spaces.droppable(keep, leftovers=leftovers)
            if not unwanted:
                return dropped
            if spaces.drop_some(unwanted[0], _VECTORS_A_TRANSACTION):
                dropped.append(unwanted[0])


def compact(
    database: Database,
    keep: int,
    replica: Replica,
    folder: Path,
    *,
    forget_before: int | None,
    clock: Callable[[], datetime],
) -> CompactReport:
    """Drop what nobody wants, and give the free space of the file back to the disk.

    Args:
        database: what to compact; others may read and write meanwhile.
        keep: so many retired spaces are kept.
        replica: the index that serves; it gives back what deleted vectors took.
        folder: where the snapshots lie.
        forget_before: forget what memories were before this moment too, in microseconds.
        clock: the time, UTC.

    Raises:
        StorageError: the database or the disk failed; nothing that is wanted was lost.
    """
    before = database.size_bytes()
    dropped = drop_spaces(database, keep, leftovers=True, clock=clock)
    expired = _delete_expired(database, clock)
    _forget_the_past(database, forget_before, clock)
    with replica.saving, replica.lock, database.read() as connection:
        repository = Repository(connection, clock())
        head = repository.pulse().seq
        replica.compact(repository, head)
    _forget_the_deleted(database, head, replica.space.id, folder, clock)
    if not database.vacuum():
        warnings.warn(
            "another process reads an older state, so the write-ahead log still holds what was "
            "deleted: run `kronos compact` again when it has ended",
            KronosWarning,
            stacklevel=2,
        )
    return CompactReport(tuple(dropped), expired, before, database.size_bytes())


def _delete_expired(database: Database, clock: Callable[[], datetime]) -> int:
    expired = 0
    while True:
        with database.write() as connection:
            repository = Repository(connection, clock(), keep_history=False)
            some = repository.delete_expired(_MEMORIES_A_TRANSACTION)
        expired += some
        if some < _MEMORIES_A_TRANSACTION:
            return expired


def _forget_the_past(database: Database, before: int | None, clock: Callable[[], datetime]) -> None:
    """Forget what deleted memories were, what others were long ago, and every word of both."""
    steps: list[Callable[[History], int]] = [
        lambda history: history.forget(_MEMORIES_A_TRANSACTION, before=before),
        lambda history: history.forget_vectors(_MEMORIES_A_TRANSACTION),
    ]
    for step in steps:
        some = _MEMORIES_A_TRANSACTION
        while some == _MEMORIES_A_TRANSACTION:
            with database.write() as connection:
                some = step(Repository(connection, clock()).history)
    with database.write() as connection:
        Repository(connection, clock()).words.optimize()


def _forget_the_deleted(
    database: Database, seq: int, serving: int, folder: Path, clock: Callable[[], datetime]
) -> None:
    """Prune the tombstones up to a seq, and every snapshot that may hold what they stand for.

    The snapshot of the space that serves is of that seq; one of another space would be read only
    after a switch, and then be replayed from SQL.
    """
    with database.write() as connection:
        spaces = Repository(connection, clock()).spaces
        for space in spaces.all():
            spaces.prune(space.id, seq)
    discard_other_snapshots(folder, {serving})
