"""Dropping spaces that are not needed any more, in small transactions: writers hardly wait."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from kronos.concurrency.pacing import Pace
from kronos.concurrency.progress import Steps
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
    """Drop the spaces that are not needed any more.

    Args:
        database: where the spaces are.
        keep: retired spaces to keep, the most recently active first.
        leftovers: also drop spaces that never became active and that no job fills.
        spared: a space to keep because it serves in this process.
        clock: the time, UTC.
        steps: takes one step per transaction.

    Returns:
        The dropped spaces.
    """
    steps = steps or Steps()
    kept = None if spared is None else spared.fingerprint
    dropped: list[Space] = []
    pace = Pace()
    while True:
        with pace, database.write() as connection:
            spaces = Repository(connection, clock()).spaces
            # Read again in each transaction: a space may be needed again.
            found = spaces.droppable(keep, leftovers=leftovers)
            unwanted = [each for each in found if each.fingerprint != kept]
            if not unwanted:
                return dropped
            if spaces.drop_some(unwanted[0], _VECTORS_A_TRANSACTION):
                dropped.append(unwanted[0])
        steps.advance()
