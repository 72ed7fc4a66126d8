"""Concurrent calls share their work: who comes while others are served goes with the next ones.

Nobody waits for anybody to come: a lone call is served at once. Calls are served in the order in
which they came, and one that fails costs the others nothing. Questions share a batch of the
embedder in this way, writes a transaction. A thread calls a `Combiner` and waits; an event loop
hands its calls over, so that thousands of them wait and hold no thread.
"""

from __future__ import annotations

import functools
import threading
import weakref
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import CancelledError
from contextlib import nullcontext
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

from kronos.concurrency.forking import follow_forks
from kronos.concurrency.threads import Outcome, at_once


class Results(Protocol):
    """A list or an array: one result an item."""

    def __getitem__(self, part: slice, /) -> Any:
        """The results of some items."""


T = TypeVar("T")
R = TypeVar("R", bound=Results)
_NOTHING = nullcontext()
Start: TypeAlias = Callable[[Callable[[], None]], object]
"""Runs a function on a thread."""


class _Call(Generic[T, R]):
    """What one thread asks for, and waits for."""

    __slots__ = ("error", "has_left", "items", "results", "size", "turn")

    def __init__(self, items: Sequence[T], size: int) -> None:
        self._ask(items, size)
        self.turn = threading.Lock()
        """Released when the call is done, or is the one that leads now."""
        self.turn.acquire()

    def _ask(self, items: Sequence[T], size: int) -> None:
        self.items = items
        self.size = size
        self.results: R | None = None
        self.error: BaseException | None = None
        self.has_left = False
        """Its thread was interrupted while another one served it."""

    @property
    def is_done(self) -> bool:
        return self.results is not None or self.error is not None

    @property
    def is_wanted(self) -> bool:
        return True

    def wake(self) -> None:
        """Let it go on: it is done, or leads."""
        self.turn.release()


class _Handed(_Call[T, R]):
    """What an event loop handed over: a thread leads for it, and no thread waits for it."""

    __slots__ = ("lead", "outcome")

    def __init__(
        self, items: Sequence[T], size: int, lead: Callable[[_Handed[T, R]], object]
    ) -> None:
        self._ask(items, size)
        self.lead = lead
        self.outcome: Outcome[R] = Outcome()

    @property
    def is_wanted(self) -> bool:
        return not self.outcome.is_settled

    def wake(self) -> None:
        if self.is_done:
            self.outcome.settle(self.results, self.error)
        else:
            self.lead(self)


class Combiner(Generic[T, R]):
    """Lets calls share a piece of work.

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
            if not self._join(call):
                call.turn.acquire()
            self._lead(call)
        finally:
            if self._leader is call or not call.is_done:
                self._leave(call)
        if call.error is not None:
            raise call.error
        assert call.results is not None
        return call.results

    def hand_over(self, items: Sequence[T], size: int, start: Start) -> Outcome[R]:
        """Have items worked on as a call has, without waiting.

        Args:
            items: they go together.
            size: what they count against `most`.
            start: runs a function on a thread, while nobody else leads.

        Returns:
            What comes of it. Settled before its turn, it is not worked on.
        """
        call = _Handed(items, size, functools.partial(self._lead_elsewhere, start))
        if self._join(call):
            call.wake()
        return call.outcome

    def _join(self, call: _Call[T, R]) -> bool:
        """Stand in the queue: whether the call leads."""
        with self._changing:
            self._queue.append(call)
            if self._leader is not None:
                return False
            self._leader = call
            return True

    def _lead(self, call: _Call[T, R]) -> None:
        while not call.is_done:
            self._serve(self._take())

    def _lead_elsewhere(self, start: Start, call: _Handed[T, R]) -> None:
        try:
            start(functools.partial(self._lead_for, call))
        except Exception as exc:  # the threads were told to end
            call.error = exc
            self._leave(call)
            call.wake()

    def _lead_for(self, call: _Handed[T, R]) -> None:
        """Lead on a thread that waits for no call of its own."""
        try:
            self._lead(call)
        except BaseException as exc:  # such as SystemExit, by an embedder
            call.error = exc
            call.wake()
        finally:
            self._leave(call)

    def _leave(self, call: _Call[T, R]) -> None:
        """Take no more part; whoever led lets the first in the queue lead."""
        with self._changing:
            call.has_left = True
            if call in self._queue:  # interrupted before anybody began with it
                self._queue.remove(call)
            if self._leader is not call:
                return
            while self._queue and not self._queue[0].is_wanted:
                self._queue.popleft()
            leader = self._leader = self._queue[0] if self._queue else None
        if leader is not None:
            leader.wake()

    def _take(self) -> list[_Call[T, R]]:
        taken: list[_Call[T, R]] = []
        size = 0
        with self._changing:
            while self._queue and (not taken or size + self._queue[0].size <= self._most):
                call = self._queue.popleft()
                if call.is_wanted:
                    taken.append(call)
                    size += call.size
                else:
                    call.error = CancelledError()
        return taken

    def _serve(self, calls: list[_Call[T, R]]) -> None:
        try:
            self._work_off(calls)
        except BaseException:  # this thread is interrupted, and the calls are not only its own
            with self._changing:
                left = [call for call in calls if not (call.is_done or call.has_left)]
                self._queue.extendleft(reversed(left))
            raise
        finally:
            with at_once() if len(calls) > 1 else _NOTHING:
                for call in calls:
                    if call.is_done:
                        call.wake()

    def _work_off(self, calls: list[_Call[T, R]]) -> None:
        if not calls:  # all were cancelled
            return
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


class Combiners(Generic[T, R]):
    """A combiner for each key, as long as a call is in it. Threads may share it.

    Args:
        make: makes one.
    """

    def __init__(self, make: Callable[[], Combiner[T, R]]) -> None:
        self._make = make
        self._begin_anew()
        follow_forks(self)

    def _begin_anew(self) -> None:
        self._lock = threading.Lock()
        self._known: weakref.WeakValueDictionary[Hashable, Combiner[T, R]] = (
            weakref.WeakValueDictionary()
        )

    def before_fork(self) -> None:
        """Nothing to do."""

    def after_fork(self, in_child: bool) -> None:
        """Calls of threads that are not there are nobody's in the child."""
        if in_child:
            self._begin_anew()

    def __getitem__(self, key: Hashable) -> Combiner[T, R]:
        """The combiner of a key."""
        with self._lock:
            found = self._known.get(key)
            if found is None:
                found = self._known[key] = self._make()
            return found
