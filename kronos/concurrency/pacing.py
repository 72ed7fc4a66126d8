"""Pacing: long work pauses now and then, so that other writers and threads get their turns.

Writers of other processes ask for the write lock now and then, up to ten times a second, and
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

MEMORIES_PER_TRANSACTION = 250
"""Memories deleted in one transaction: few enough that other writers wait only briefly."""
_LONGEST_PAUSE_S = 0.05
_PAUSE_SHARE = 0.5
"""The length of a pause, as a share of the time that the write before it took."""
_CHECK_EVERY_S = 0.05
"""How often a sleep that can be ended checks whether to end."""
_GIL_SLICE_S = _GIL_BREAK_S = 0.0002
"""A computing thread holds the GIL for a slice, then leaves it to others for a break."""


class Pace:
    """Spaces out writes that follow each other: each enters it with `with`, after a pause."""

    def __init__(self) -> None:
        self._began = self._took = 0.0

    def __enter__(self) -> None:
        time.sleep(min(_PAUSE_SHARE * self._took, _LONGEST_PAUSE_S))
        self._began = time.perf_counter()

    def __exit__(self, *failure: object) -> None:
        self._took = time.perf_counter() - self._began


def write_in_batches(
    items: Any, work: Callable[[Any], int], size: int = MEMORIES_PER_TRANSACTION
) -> int:
    """Write about many items in batches, with pauses in which other writers get their turns.

    Args:
        items: an array or a sequence.
        work: writes about a batch of items in one transaction; returns how many it changed.
        size: items per batch.

    Returns:
        How many items were changed in all.
    """
    changed, pace = 0, Pace()
    for start in range(0, len(items), size):
        with pace:
            changed += work(items[start : start + size])
    return changed


def sleep_unless(
    check: Callable[[], object], seconds: float, sleep: Callable[[float], object] = time.sleep
) -> None:
    """Sleep, unless a check says otherwise.

    Args:
        check: called before each slice of the sleep; an exception that it raises ends the sleep.
        seconds: how long to sleep.
        sleep: sleeps for a slice.
    """
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        check()
        sleep(min(left, _CHECK_EVERY_S))


def yielding_gil(items: Iterable[T]) -> Iterator[T]:
    """Iterate over items, and release the GIL to other threads, if any, at short intervals."""
    began = time.perf_counter()
    for item in items:
        if time.perf_counter() - began > _GIL_SLICE_S:
            if threading.active_count() > 1:
                time.sleep(_GIL_BREAK_S)
            began = time.perf_counter()
        yield item
