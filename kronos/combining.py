"""Concurrent calls share their work: who comes while others are served goes with the next ones.

Nobody waits for anybody to come: a lone call is served at once. Calls are served in the order in
which they came, and one that fails costs the others nothing. Questions share a batch of the
embedder in this way, writes a transaction.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Generic, Protocol, TypeVar

from kronos.forking import follow_forks


class Results(Protocol):
    """A list or an array: one result an item."""

    def __getitem__(self, part: slice, /) -> Any:
        """The results of some items."""


T = TypeVar("T")
R = TypeVar("R", bound=Results)


class _Call(Generic[T, R]):
    """What one thread asks for, and waits for."""

    __slots__ = ("error", "has_left", "items", "results", "size", "turn")

    def __init__(self, items: Sequence[T], size: int) -> None:
        self.items = items
        self.size = size
        self.results: R | None = None
        self.error: Exception | None = None
        self.has_left = False
        """Its thread was interrupted while another one served it."""
        self.turn = threading.Lock()
        """Released when the call is done, or is the one that leads now."""
        self.turn.acquire()

    @property
    def is_done(self) -> bool:
        return self.results is not None or self.error is not None


class Combiner(Generic[T, R]):
    """Lets calls from many threads share a piece of work.

    The first call to come leads: it serves those that are there, and when it is done itself hands
    the lead to the first one that came meanwhile.

    Args:
        work: items to as many results; called by one thread at a time.
        most: items of several calls go together up to this size; a call is never cut.
        for_all: errors that every call of a group gets. After any other one each call is tried
            alone.
    """

    def __init__(
        self,
        work: Callable[[Sequence[T]], R],
        *,
        most: int,
        for_all: tuple[type[Exception], ...] = (),
    ) -> None:
        self._work = work
        self._most = most
        self._for_all = for_all
        self._begin_anew()
        follow_forks(self)

    def _begin_anew(self) -> None:
        self._changing = threading.Lock()
        self._queue: deque[_Call[T, R]] = deque()
        self._leader: _Call[T, R] | None = None

    def before_fork(self) -> None:
        """Nothing to do."""

    def after_fork(self, in_child: bool) -> None:
        """Calls of threads that are not there are nobody's in the child."""
        if in_child:
            self._begin_anew()

    def __call__(self, items: Sequence[T], size: int | None = None) -> R:
        """Have items worked on, with those of other calls: the results, in their order.

        Args:
            items: they go together.
            size: what they count against `most`; None is their number.

        Raises:
            Exception: what `work` raises for these items alone, or for all of the group.
        """
        call: _Call[T, R] = _Call(items, len(items) if size is None else size)
        try:
            with self._changing:
                self._queue.append(call)
                leads = self._leader is None
                if leads:
                    self._leader = call
            if not leads:
                call.turn.acquire()
            while not call.is_done:
                self._serve(self._take(), call)
        finally:
            if self._leader is call or not call.is_done:
                self._leave(call)
        if call.error is not None:
            raise call.error
        assert call.results is not None
        return call.results

    def _leave(self, call: _Call[T, R]) -> None:
        """Take no more part; whoever led lets the first in the queue lead."""
        with self._changing:
            call.has_left = True
            if call in self._queue:  # interrupted before anybody began with it
                self._queue.remove(call)
            if self._leader is call:
                self._leader = self._queue[0] if self._queue else None
                if self._leader is not None:
                    self._leader.turn.release()

    def _take(self) -> list[_Call[T, R]]:
        with self._changing:
            taken = [self._queue.popleft()]
            size = taken[0].size
            while self._queue and size + self._queue[0].size <= self._most:
                taken.append(self._queue.popleft())
                size += taken[-1].size
        return taken

    def _serve(self, calls: list[_Call[T, R]], leader: _Call[T, R]) -> None:
        try:
            self._work_off(calls)
        except BaseException:  # this thread is interrupted, and the calls are not only its own
            with self._changing:
                left = [call for call in calls if not (call.is_done or call.has_left)]
                self._queue.extendleft(reversed(left))
            raise
        finally:
            for call in calls:
                if call.is_done and call is not leader:
                    call.turn.release()

    def _work_off(self, calls: list[_Call[T, R]]) -> None:
        try:
            results = self._work([item for call in calls for item in call.items])
        except Exception as exc:
            if len(calls) == 1 or isinstance(exc, self._for_all):
                for call in calls:
                    call.error = exc
                return
            for call in calls:
                self._work_off([call])
            return
        start = 0
        for call in calls:
            call.results = results[start : start + len(call.items)]
            start += len(call.items)
