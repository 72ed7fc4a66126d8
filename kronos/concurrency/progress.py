"""How a long call reports its progress, and how it is stopped.

Every verb that may take long has `progress` and `stop`. `stop` means the same for all of them: the
call soon ends with `StoppedError`, and the step it was about to do is done completely or not at
all. Reindex jobs are the one exception: they stay open and report how far they came.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, TypeVar

from kronos.errors import StoppedError
from kronos.types import Progress

if TYPE_CHECKING:
    import threading

    from kronos.types import ProgressCallback

T = TypeVar("T")

_ITEMS_PER_REPORT = 100


class Steps:
    """The steps of one long call. Without arguments it neither reports nor stops.

    Args:
        progress: called after each step.
        stop: an event that is set to end the call.
        total: the number of steps; None when it is unknown.

    Raises:
        StoppedError: the call was stopped before it began.
    """

    def __init__(
        self,
        progress: ProgressCallback | None = None,
        stop: threading.Event | None = None,
        total: int | None = None,
    ) -> None:
        self.total = total
        self.done = 0
        self._progress = progress
        self._stop = stop
        self.check_stopped()

    @property
    def is_stopped(self) -> bool:
        """Whether the call was told to stop."""
        return self._stop is not None and self._stop.is_set()

    def check_stopped(self) -> None:
        """Raise `StoppedError` if the call was told to stop."""
        if self.is_stopped:
            raise StoppedError

    def advance(self, steps: int = 1) -> None:
        """Report that more steps are done.

        Args:
            steps: how many more.

        Raises:
            StoppedError: the call was told to stop.
        """
        self.report(self.done + steps, self.total)

    def report(self, done: int, total: int | None) -> None:
        """Report how many steps are done, of how many in all; raises as `advance` does."""
        self.done, self.total = done, total
        if self._progress is not None:
            self._progress(Progress(done, total))
        if done != total:
            self.check_stopped()

    def track(self, items: Iterable[T]) -> Iterator[T]:
        """Iterate over items, each of which is a step, and report at intervals."""
        for count, item in enumerate(items, self.done + 1):
            yield item
            if count % _ITEMS_PER_REPORT == 0 or count == self.total:
                self.report(count, self.total)
