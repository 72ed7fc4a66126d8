"""How a long call tells how far it has come, and how it is stopped.

Every verb that may take long has `progress` and `stop`. What `stop` means is the same for all:
the call ends soon with `StoppedError`, and what it was about to do is whole or not done at all. The
one exception are reindex jobs, which stay open and report how far they came.
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

_ITEMS_A_STEP = 100


class Steps:
    """The steps of one long call. Without arguments, it neither tells nor stops.

    Args:
        progress: called after each step.
        stop: set by somebody who wants the call to end soon.
        total: how many steps there will be; None when nobody knows.

    Raises:
        StoppedError: the call was to end before it began.
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
        self.go_on()

    @property
    def is_stopped(self) -> bool:
        """Whether the call is to end."""
        return self._stop is not None and self._stop.is_set()

    def go_on(self) -> None:
        """Raise `StoppedError` when the call is to end."""
        if self.is_stopped:
            raise StoppedError

    def take(self, steps: int = 1) -> None:
        """Note that steps are done.

        Raises:
            StoppedError: the call is to end.
        """
        self.reach(self.done + steps, self.total)

    def reach(self, done: int, total: int | None) -> None:
        """Note how many steps are done, of how many; raises as `take` does."""
        self.done, self.total = done, total
        if self._progress is not None:
            self._progress(Progress(done, total))
        if done != total:
            self.go_on()

    def counted(self, items: Iterable[T]) -> Iterator[T]:
        """The items of something, each of which is a step; told about now and then."""
        for count, item in enumerate(items, self.done + 1):
            yield item
            if count % _ITEMS_A_STEP == 0 or count == self.total:
                self.reach(count, self.total)
