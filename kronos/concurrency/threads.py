"""Daemon threads: pools, threads that never wait for an embedder, and the end of the process.

At exit the interpreter joins all other threads, those of `concurrent.futures` included, so one call
that is stuck in an embedder would keep a program from ending forever. Daemon threads are waited for
too, because stopping a thread in the middle of a model's code may crash the process. But the wait
lasts at most `SHUTDOWN_TIMEOUT_S`.
"""

from __future__ import annotations

import asyncio
import atexit
import queue
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Generic, Protocol, TypeAlias, TypeVar, cast

from kronos.concurrency.forking import WeakList, call_in_children, notify_of_forks
from kronos.errors import StoreClosedError

T = TypeVar("T")
_Job: TypeAlias = tuple["Outcome[Any]", Callable[[], Any]]

SHUTDOWN_TIMEOUT_S = 10.0
"""The longest time that `close()`, and the end of the process, wait for running calls."""


class NeedsEmbedderError(Exception):
    """The work needs an embedder, and its thread never waits for one: use another thread."""


_this_thread = threading.local()


def check_may_wait_for_embedder() -> None:
    """Check that this thread may wait for an embedder or a model.

    Raises:
        NeedsEmbedderError: it never waits for one.
    """
    if getattr(_this_thread, "never_waits", False):
        raise NeedsEmbedderError


class Outcome(Generic[T]):
    """The result or error of a call, settled once: the first `settle` counts. Thread-safe.

    A lighter `concurrent.futures.Future`, whose cost would dominate calls that share their work.
    """

    __slots__ = ("_error", "_result", "_settling", "_waiting", "is_settled")

    def __init__(self) -> None:
        self.is_settled = False
        self._settling = threading.Lock()
        """Acquired by the thread that settles the outcome, and never released."""
        self._result: T | None = None
        self._error: BaseException | None = None
        self._waiting: list[asyncio.Future[None] | threading.Event] = []

    def settle(self, result: T | None = None, error: BaseException | None = None) -> None:
        """Set the result or the error, and notify all that wait; a second call does nothing."""
        if self._settling.acquire(blocking=False):
            self._result, self._error = result, error
            self.is_settled = True
            self._notify_all()

    def _notify_all(self) -> None:
        while self._waiting:
            try:
                waiter = self._waiting.pop()
            except IndexError:  # another thread was faster
                return
            if isinstance(waiter, threading.Event):
                waiter.set()
            else:
                _notify(waiter.get_loop(), waiter)

    def notify(self, waiter: asyncio.Future[None] | threading.Event) -> None:
        """Set an event, or an event loop's future, when the outcome is settled."""
        self._waiting.append(waiter)
        if self.is_settled:
            self._notify_all()

    def wait(self, timeout_s: float) -> bool:
        """Wait at most `timeout_s` seconds: whether the outcome is settled."""
        settled = threading.Event()
        self.notify(settled)
        return settled.wait(timeout_s)

    @property
    def result(self) -> T:
        """The result of a settled outcome; raises its error if it has one."""
        if self._error is not None:
            raise self._error
        return cast("T", self._result)


async def wait_until_settled(outcome: Outcome[T]) -> T:
    """Wait for an outcome on the running event loop, which is notified when it is settled.

    Returns:
        The outcome's result.

    Raises:
        BaseException: the outcome's error.
    """
    settled = asyncio.get_running_loop().create_future()
    outcome.notify(settled)
    await settled
    return outcome.result


def _notify(loop: asyncio.AbstractEventLoop, *futures: asyncio.Future[None]) -> None:
    later: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] | None
    later = getattr(_this_thread, "notified_later", None)
    if later is not None:
        later.setdefault(loop, []).extend(futures)
        return
    with suppress(RuntimeError):  # the loop was closed, so no task waits any more
        loop.call_soon_threadsafe(_wake, futures)


def _wake(futures: tuple[asyncio.Future[None], ...]) -> None:
    for future in futures:
        if not future.done():
            future.set_result(None)


@contextmanager
def notify_together() -> Iterator[None]:
    """Notify each event loop once, at the end, of all outcomes that were settled inside.

    The waiting tasks then resume together, so their next calls share their work again.
    """
    later: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = {}
    before = getattr(_this_thread, "notified_later", None)
    _this_thread.notified_later = later
    try:
        yield
    finally:
        _this_thread.notified_later = before
        for loop, futures in later.items():
            _notify(loop, *futures)


def spawn(name: str, function: Callable[[], T]) -> Outcome[T]:
    """Run a function on its own thread, or here if no thread can be started at process exit."""
    outcome: Outcome[T] = Outcome()
    thread = threading.Thread(target=_run, args=[outcome, function], name=name, daemon=True)
    try:
        thread.start()
    except RuntimeError:
        _run(outcome, function)
    return outcome


class Pool:
    """A pool of daemon threads that run functions, started on demand. Thread-safe.

    In a forked child the pool is empty.

    Args:
        name: a name for the threads, for people.
        max_threads: the pool has at most this many threads.
        never_waits: its threads never wait for an embedder. A function that needs one fails with
            `NeedsEmbedderError`.
    """

    def __init__(self, name: str, max_threads: int, *, never_waits: bool = False) -> None:
        self._name = name
        self._max_threads = max_threads
        self._never_waits = never_waits
        self._reset()
        notify_of_forks(self)

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._threads = 0
        self._is_shut = False
        # The threads reference the queue and not the pool, so they end when the pool is dropped.
        weakref.finalize(self, self._jobs.put, None).atexit = False

    def before_fork(self) -> None:
        """Nothing to do."""

    def after_fork(self, in_child: bool) -> None:
        """Start empty in the child, which has none of the threads."""
        if in_child:
            self._reset()

    def submit(self, function: Callable[[], T]) -> Outcome[T]:
        """Run a function on a thread, unless its outcome is settled before its turn.

        Raises:
            StoreClosedError: `shut_down` was called.
        """
        outcome: Outcome[T] = Outcome()
        with self._lock:
            if self._is_shut:
                raise StoreClosedError
            self._jobs.put((outcome, function))
            if self._idle.acquire(blocking=False) or self._threads == self._max_threads:
                return outcome
            has_threads = self._start() or self._threads
        if not has_threads:
            for job in self._take_all():
                _run(*job)
        return outcome

    def _start(self) -> bool:
        thread = threading.Thread(
            target=_work,
            args=[self._jobs, self._idle, self._never_waits],
            name=f"{self._name}-{self._threads}",
            daemon=True,
        )
        try:
            thread.start()
        except RuntimeError:  # the process is ending, or the system refuses more threads
            return False
        self._threads += 1
        return True

    def _take_all(self) -> list[_Job]:
        taken = []
        with suppress(queue.Empty):
            while (job := self._jobs.get_nowait()) is not None:
                taken.append(job)
        return taken

    def shut_down(self) -> list[Outcome[Any]]:
        """Let the threads end after their current functions.

        Returns:
            The outcomes of functions that will never run.
        """
        with self._lock:
            self._is_shut = True
            left = [outcome for outcome, _ in self._take_all()]
            self._jobs.put(None)
        return left


def _work(
    jobs: queue.SimpleQueue[_Job | None], idle: threading.Semaphore, never_waits: bool
) -> None:
    _this_thread.never_waits = never_waits
    while True:
        try:
            job = jobs.get_nowait()
        except queue.Empty:
            idle.release()
            job = jobs.get()
        if job is None:
            jobs.put(None)  # for the next thread
            return
        _run(*job)
        del job  # does not keep its objects alive until the next job


def _run(outcome: Outcome[T], function: Callable[[], T]) -> None:
    if outcome.is_settled:
        return
    _busy.add(threading.get_ident())
    try:
        result = function()
    except BaseException as exc:
        outcome.settle(error=exc)
    else:
        outcome.settle(result)
    finally:
        _busy.discard(threading.get_ident())
        del outcome  # an error's traceback references this frame: avoids a cycle


class EndsAtExit(Protocol):
    """An object that the end of the process waits for."""

    def end(self, until: float, /) -> None:
        """Stop, and wait for that until `until`, a time of `time.monotonic`."""


# Busy threads, not outcomes: a call that no task waits for may still run.
_busy: set[int] = set()
_ending: WeakList[EndsAtExit] = WeakList()
call_in_children(_busy.clear)


def wait_at_exit(other: EndsAtExit) -> None:
    """Let the end of the process wait for an object, if it is still alive then."""
    _ending.add(other)


@atexit.register
def _wait_for_all() -> None:
    until = time.monotonic() + SHUTDOWN_TIMEOUT_S
    for each in _ending:
        each.end(until)
    while _busy and time.monotonic() < until:
        time.sleep(0.005)
