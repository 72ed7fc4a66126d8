"""Giving back what nobody wants any more: the vectors of old spaces, and their bytes on disk.

Only what can be made anew is dropped, in transactions so small that other writers hardly wait.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from kronos.repository import Repository
from kronos.types import CompactReport

if TYPE_CHECKING:
    from datetime import datetime

    from kronos.db.engine import Database
    from kronos.types import Space

_VECTORS_A_TRANSACTION = 2000


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


def compact(database: Database, keep: int, *, clock: Callable[[], datetime]) -> CompactReport:
    """Drop the spaces that nobody wants, and give the free space of the file back to the disk.

    Args:
        database: what to compact; others may read and write meanwhile.
        keep: so many retired spaces are kept.
        clock: the time, UTC.

    Raises:
        StorageError: the database or the disk failed; nothing that is wanted was lost.
    """
    before = database.size_bytes()
    dropped = drop_spaces(database, keep, leftovers=True, clock=clock)
    database.vacuum()
    return CompactReport(tuple(dropped), before, database.size_bytes())
