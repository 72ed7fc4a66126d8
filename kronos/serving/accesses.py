"""Accesses: when memories were found, noted without a wait for writers."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from kronos.errors import StorageError, StoreBusyError

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from kronos.repository.memories import Repository

logger = logging.getLogger("kronos")

_MOST_WAITING = 10_000
"""Ids that wait to be noted, at most; the oldest are given up."""


class Accesses:
    """The ids of found memories; a read neither fails by them nor waits for a writer.

    What cannot be noted at once is noted with the next ones, or when the store closes.

    Args:
        writer_at_once: a write transaction that raises StoreBusyError instead of waiting.
    """

    def __init__(self, writer_at_once: Callable[[], AbstractContextManager[Repository]]) -> None:
        self._writer_at_once = writer_at_once
        self._waiting: dict[str, None] = {}

    def note(self, ids: Sequence[str]) -> None:
        """Note that memories were found now."""
        self._waiting.update(dict.fromkeys(ids[:_MOST_WAITING]))
        noted = [*self._waiting]
        if not noted:
            return
        try:
            with self._writer_at_once() as repository:
                repository.touch(noted)
        except StoreBusyError:
            while len(self._waiting) > _MOST_WAITING:
                self._waiting.pop(next(iter(self._waiting)), None)
            return
        except StorageError as exc:
            logger.warning("that memories were found could not be noted: %s", exc)
        for id in noted:
            self._waiting.pop(id, None)

    def take(self) -> list[str]:
        """The ids that wait; they wait no longer."""
        taken = [*self._waiting]
        self._waiting.clear()
        return taken
