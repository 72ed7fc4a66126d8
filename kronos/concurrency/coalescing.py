"""Concurrent calls share work: calls that arrive while others are served form the next group.

No call waits for others to arrive: a lone call is served at once. Calls are served in the order of
arrival, and a call that fails costs the others nothing. Queries share a batch of the embedder in
this way, and writes share a transaction. A thread calls a `Coalescer` and waits. An event loop
submits its calls instead, so thousands of them can wait without holding a thread.
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

from kronos.concurrency.forking import notify_of_forks
from kronos.concurrency.threads import Outcome, notify_together


class Results(Protocol):
    """A list or an array that holds one result for each item."""

    def __getitem__(self, part: slice, /) -> Any:
        """The results of a slice of the items."""


T = TypeVar("T")
R = TypeVar("R", bound=Results)
_NOTHING = nullcontext()
Start: TypeAlias = Callable[[Callable[[], None]], object]
"""Runs a function on a thread."""


class _Call(Generic[T, R]):
    """A thread's call, which the thread waits for."""

    __slots__ = ("error", "has_left", "items", "results", "size", "turn")

    def __init__(self, items: Sequence[T], size: int) -> None:
        self._set_up(items, size)
        self.turn = threading.Lock()
        """Released when the call is done or when it becomes the leader."""
        self.turn.acquire()

    def _set_up(self, items: Sequence[T], size: int) -> None:
        self.items = items
        self.size = size
        self.results: R | None = None
        self.error: BaseException | None = None
        self.has_left = False
        """Whether its thread was interrupted while another thread served it."""

    @property
    def is_done(self) -> bool:
        return self.results is not None or self.error is not None

    @property
    def is_cancelled(self) -> bool:
        return False

    def wake(self) -> None:
        """Tell the call that it is done or leads now."""
        self.turn.release()


class _SubmittedCall(_Call[T, R]):
    """An event loop's call. A pool thread leads for it, and no thread waits for it."""

    __slots__ = ("lead", "outcome")

    def __init__(
        self, items: Sequence[T], size: int, lead: Callable[[_SubmittedCall[T, R]], object]
    ) -> None:
        self._set_up(items, size)
        self.lead = lead
        self.outcome: Outcome[R] = Outcome()

    @property
    def is_cancelled(self) -> bool:
        return self.outcome.is_settled

    def wake(self) -> None:
        if self.is_done:
            self.outcome.settle(self.results, self.error)
        else:
            self.lead(self)


class Coalescer(Generic[T, R]):
    """Lets concurrent calls share a piece of work.

    The first call to arrive leads: it serves the waiting calls. When it is done itself, it hands
    the lead to the first call that arrived meanwhile.

    Args:
        work: takes items and returns one result for each; one thread at a time calls it.
        max_size: the total size up to which calls are grouped; a call is never split.
        for_all: errors that every call of a group gets. After any other error each call of the
            group is tried alone.
    """

    def __init__(
        self,
        work: Callable[[Sequence[T]], R],
        *,
        max_size: int,
        for_all: tuple[type[Exception], ...] = (),
    ) -> None:
        self._work = work
        self._max_size = max_size
        self._for_all = for_all
        self._reset()
        notify_of_forks(self)

    def _reset(self) -> None:
        self._changing = threading.Lock()
        self._queue: deque[_Call[T, R]] = deque()
        self._leader: _Call[T, R] | None = None

    def before_fork(self) -> None:
        """Nothing to do."""

    def after_fork(self, in_child: bool) -> None:
        """Drop the calls in the child: their threads do not exist there."""
        if in_child:
            self._reset()

    def __call__(self, items: Sequence[T], size: int | None = None) -> R:
        """Have items worked on, together with those of other calls.

        Args:
            items: they stay in one group.
            size: what they count against `max_size`; None: their number.

        Returns:
            The results, in the order of the items.

        Raises:
            Exception: what `work` raises for these items alone, or for the whole group.
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

    def submit(self, items: Sequence[T], size: int, start: Start) -> Outcome[R]:
        """Have items worked on as by a call, without waiting.

        Args:
            items: they stay in one group.
            size: what they count against `max_size`.
            start: runs a function on a thread; used when no other call leads.

        Returns:
            The outcome. If it is settled before its turn, the items are not worked on.
        """
        call = _SubmittedCall(items, size, functools.partial(self._lead_elsewhere, start))
        if self._join(call):
            call.wake()
        return call.outcome

    def _join(self, call: _Call[T, R]) -> bool:
        """Join the queue: whether the call leads."""
        with self._changing:
            self._queue.append(call)
            if self._leader is not None:
                return False
            self._leader = call
            return True

    def _lead(self, call: _Call[T, R]) -> None:
        while not call.is_done:
            self._serve(self._take())

    def _lead_elsewhere(self, start: Start, call: _SubmittedCall[T, R]) -> None:
        try:
            start(functools.partial(self._lead_for, call))
        except Exception as exc:  # the pool was shut down
            call.error = exc
            self._leave(call)
            call.wake()

    def _lead_for(self, call: _SubmittedCall[T, R]) -> None:
        """Lead on a thread that waits for no call of its own."""
        try:
            self._lead(call)
        except BaseException as exc:  # such as an embedder's SystemExit
            call.error = exc
            call.wake()
        finally:
            self._leave(call)

    def _leave(self, call: _Call[T, R]) -> None:
        """Leave the queue. A leader that leaves hands the lead to the first call in the queue."""
        with self._changing:
            call.has_left = True
            if call in self._queue:  # interrupted before it was served
                self._queue.remove(call)
            if self._leader is not call:
                return
            while self._queue and self._queue[0].is_cancelled:
                self._queue.popleft()
            leader = self._leader = self._queue[0] if self._queue else None
        if leader is not None:
            leader.wake()

    def _take(self) -> list[_Call[T, R]]:
        """Take the next group off the queue."""
        taken: list[_Call[T, R]] = []
        size = 0
        with self._changing:
            while self._queue and (not taken or size + self._queue[0].size <= self._max_size):
                call = self._queue.popleft()
                if call.is_cancelled:
                    call.error = CancelledError()
                else:
                    taken.append(call)
                    size += call.size
        return taken

    def _serve(self, calls: list[_Call[T, R]]) -> None:
        try:
            self._work_for(calls)
        except BaseException:  # this thread is interrupted, and some calls belong to others
            with self._changing:
                left = [call for call in calls if not (call.is_done or call.has_left)]
                self._queue.extendleft(reversed(left))
            raise
        finally:
            with notify_together() if len(calls) > 1 else _NOTHING:
                for call in calls:
                    if call.is_done:
                        call.wake()

    def _work_for(self, calls: list[_Call[T, R]]) -> None:
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
                self._work_for([call])
            return
        start = 0
        for call in calls:
            call.results = results[start : start + len(call.items)]
            start += len(call.items)


class Coalescers(Generic[T, R]):
    """A coalescer for each key, kept while a call uses it. Thread-safe.

    Args:
        make: creates a coalescer.
    """

    def __init__(self, make: Callable[[], Coalescer[T, R]]) -> None:
        self._make = make
        self._reset()
        notify_of_forks(self)

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._known: weakref.WeakValueDictionary[Hashable, Coalescer[T, R]] = (
            weakref.WeakValueDictionary()
        )

    def before_fork(self) -> None:
        """Nothing to do."""

    def after_fork(self, in_child: bool) -> None:
        """Drop the coalescers in the child: the threads of their calls do not exist there."""
        if in_child:
            self._reset()

    def __getitem__(self, key: Hashable) -> Coalescer[T, R]:
        """The coalescer of a key."""
        with self._lock:
            found = self._known.get(key)
            if found is None:
                found = self._known[key] = self._make()
            return found
