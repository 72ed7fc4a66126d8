"""How fast a job works: the size of a batch, the rate limit, and waits that end when it stops."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

from kronos.concurrency.pacing import sleep_unless
from kronos.errors import StoreBusyError

T = TypeVar("T")

LONGEST_PAUSE_S = 0.5
# A part takes about this long with any embedder, so that a job stops soon after it is asked to.
_SECONDS_A_PART = 5.0
_FIRST_PART = 64
# The default batch size of models: a part that is no multiple of it ends with a half-empty batch,
# which costs as much as a full one.
_MODEL_BATCH = 32
# A worker claims this many parts at once and sorts them by length. Towards the end it claims a
# smaller share of the rest, so that all workers finish at about the same time.
_PARTS_A_CLAIM = 8
_SHARE_A_CLAIM = 4
_BUSY_PATIENCE_S = 60.0


class JobStopped(Exception):
    """The job is to stop; raised by a wait for an embedder."""


class Pace:
    """How many texts to embed at once: as many as take a few seconds and fit into memory.

    Args:
        most: the upper limit.
        rate: texts per second at most; None: no limit.
    """

    def __init__(self, most: int, rate: float | None) -> None:
        self._seconds_a_text: float | None = None
        self._most = most if rate is None else max(1, min(most, int(rate)))
        self.part_size = min(self._most, _FIRST_PART)

    def claim_size(self, remaining: int) -> int:
        """How many texts to claim, if this many memories remain."""
        share = min(_PARTS_A_CLAIM * self.part_size, remaining // _SHARE_A_CLAIM)
        return max(self.part_size, share)

    def fits(self, texts: int, seconds: float) -> bool:
        """Whether the texts can be embedded in that time, as measured so far."""
        return self._seconds_a_text is not None and texts * self._seconds_a_text <= seconds

    def record(self, texts: int, seconds: float, fits: int | None) -> None:
        """Adapt to a part that was embedded.

        Args:
            texts: its size.
            seconds: how long the embedder worked on it.
            fits: how many texts fit into memory at once, after it ran out; None: it did not.
        """
        self._seconds_a_text = seconds / texts
        if fits is not None:
            self._most = max(1, min(self._most, fits))
        if seconds > 0 and texts >= self.part_size // 2:
            wanted = int(texts / seconds * _SECONDS_A_PART)
            self.part_size = min(max(wanted, self.part_size // 2), 2 * self.part_size)
        self.part_size = max(1, min(self.part_size, self._most))
        if self.part_size > _MODEL_BATCH:
            self.part_size -= self.part_size % _MODEL_BATCH


class RateLimiter:
    """Limits the texts per second of all workers of a process together.

    Args:
        rate: the limit; None: no limit.
        stopping: whether the job stops.
        sleep: waits for up to the given seconds.
    """

    def __init__(
        self, rate: float | None, stopping: Callable[[], bool], sleep: Callable[[float], object]
    ) -> None:
        self._rate = rate
        self._stopping = stopping
        self._sleep = sleep
        self._lock = threading.Lock()
        self._free_at = time.monotonic()

    def wait_for(self, texts: int) -> None:
        """Wait until this many texts are allowed, or the job stops."""
        if self._rate is None:
            return
        with self._lock:
            due = max(self._free_at, time.monotonic())
            self._free_at = due + texts / self._rate
        while not self._stopping() and (left := due - time.monotonic()) > 0:
            self._sleep(left)


class StoppableSleep:
    """Sleeps between two calls of an embedder; raises `JobStopped` as soon as the job stops.

    Args:
        stopping: whether the job stops.
        sleep: sleeps for the given seconds.
    """

    def __init__(self, stopping: Callable[[], bool], sleep: Callable[[float], object]) -> None:
        self._stopping = stopping
        self._sleep = sleep
        self.seconds = 0.0
        """Seconds slept so far; they do not count for the embedder's pace."""

    def __call__(self, seconds: float) -> None:
        """Sleep.

        Raises:
            JobStopped: the job stops.
        """
        started = time.perf_counter()
        sleep_unless(self._check, seconds, self._sleep)
        self.seconds += time.perf_counter() - started

    def _check(self) -> None:
        if self._stopping():
            raise JobStopped


def retry_while_busy(action: Callable[[], T]) -> T:
    """Repeat a write while other writers hold the database: a job can wait longer than a caller.

    Raises:
        StoreBusyError: they still hold it after a minute.
    """
    started = time.monotonic()
    while True:
        try:
            return action()
        except StoreBusyError:
            if time.monotonic() - started > _BUSY_PATIENCE_S:
                raise
