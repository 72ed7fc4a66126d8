"""Dropping the spaces that nobody wants any more, so that other writers hardly wait."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from kronos.concurrency.pacing import Turns
from kronos.concurrency.steps import Steps
from kronos.repository.memories import Repository

if TYPE_CHECKING:
    from datetime import datetime

    from kronos.db.database import Database
    from kronos.types import Space

_VECTORS_A_TRANSACTION = 2000


def drop_spaces(
    database: Database,
    keep: int,
    *,
    leftovers: bool = False,
    spared: Space | None = None,
    clock: Callable[[], datetime],
    steps: Steps | None = None,
) -> list[Space]:
    """Drop the spaces that nobody wants any more, in small transactions.

    Args:
        database: where they are.
        keep: so many retired spaces are kept, those that were the active one last.
        leftovers: drop those too that never became active and that no job builds.
        spared: one that is not dropped, because it serves here.
        clock: the time, UTC.
        steps: one for each transaction.

    Returns:
        The spaces that are gone.
    """
    steps = steps or Steps()
    kept = None if spared is None else spared.fingerprint
    dropped: list[Space] = []
    turns = Turns()
    while True:
        with turns, database.write() as connection:
            spaces = Repository(connection, clock()).spaces
            # Looked at anew each time: somebody may want the space again.
            found = spaces.droppable(keep, leftovers=leftovers)
            unwanted = [each for each in found if each.fingerprint != kept]
            if not unwanted:
                return dropped
            if spaces.drop_some(unwanted[0], _VECTORS_A_TRANSACTION):
                dropped.append(unwanted[0])
        steps.take()
