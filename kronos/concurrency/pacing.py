"""Long work that others hardly feel: in parts, with a pause where they get their turn.

Writers of other processes ask for SQLite's write lock now and then, up to ten times a second, and
are refused after their timeout: who takes it again at once keeps it from them, however short each
of its transactions is. Python's own lock is alike: a thread that computes, or reads row by row,
has it nearly always when another one asks.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")

MEMORIES_A_TRANSACTION = 250
"""To delete so many takes some hundredths of a second."""
_LONGEST_PAUSE_S = 0.05
_SHARE = 0.5
"""A pause takes so much of the time that the part before it took."""
_TURN_S = _BREAK_S = 0.0002
"""A thread that computes has Python's lock for so long, and then lets others have it for so long;
a search takes it a dozen times."""


class Turns:
    """Writes that follow each other, each in a `with` of its own, and others come in between."""

    def __init__(self) -> None:
        self._began = self._took = 0.0

    def __enter__(self) -> None:
        time.sleep(min(_SHARE * self._took, _LONGEST_PAUSE_S))
        self._began = time.perf_counter()

    def __exit__(self, *failure: object) -> None:
        self._took = time.perf_counter() - self._began


def in_parts(items: Any, work: Callable[[Any], int], size: int = MEMORIES_A_TRANSACTION) -> int:
    """Write about many items, some in each transaction, so that other writers have their turns.

    Args:
        items: an array or a sequence.
        work: writes about some of them in a transaction, and says how many it changed.
        size: how many at once.

    Returns:
        How many were changed in all.
    """
    changed, turns = 0, Turns()
    for start in range(0, len(items), size):
        with turns:
            changed += work(items[start : start + size])
    return changed


def gently(items: Iterable[T]) -> Iterator[T]:
    """Hand items on, and let other threads have Python's lock now and then, if there are any."""
    began = time.perf_counter()
    for item in items:
        if time.perf_counter() - began > _TURN_S:
            if threading.active_count() > 1:
                time.sleep(_BREAK_S)
            began = time.perf_counter()
        yield item
