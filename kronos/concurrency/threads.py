"""Daemon threads: pools of them, which of them wait for no embedder, and how a process ends.

The interpreter joins every other kind of thread, those of `concurrent.futures` included: one call
that is stuck in an embedder would keep a program from its end for ever. What these threads do is
waited for too, because a thread that is stopped in the middle of a model's code may crash the
process; but no longer than `LONGEST_WAIT_S`.
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

from kronos.concurrency.forking import WeakList, follow_forks, in_children
from kronos.errors import StoreClosedError

T = TypeVar("T")
_Job: TypeAlias = tuple["Outcome[Any]", Callable[[], Any]]

LONGEST_WAIT_S = 10.0
"""So long `close()`, and the end of the process, wait for what is under way."""


class NeedsEmbedderError(Exception):
    """Work on a thread that never waits for an embedder needs one: another thread must do it."""


_this_thread = threading.local()


def may_wait_for_embedder() -> None:
    """Raise `NeedsEmbedderError` on a thread that never waits for an embedder or a model."""
    if getattr(_this_thread, "is_prompt", False):
        raise NeedsEmbedderError


class Outcome(Generic[T]):
    """What comes of a call: settled once, by whoever is the first. Threads may share it.

    A `concurrent.futures.Future` does as much, and takes longer than all the rest of a call that
    shares its work with others.
    """

    __slots__ = ("_error", "_result", "_settling", "_waiting", "is_settled")

    def __init__(self) -> None:
        self.is_settled = False
        self._settling = threading.Lock()
        """Held for ever by whoever settles it."""
        self._result: T | None = None
        self._error: BaseException | None = None
        self._waiting: list[asyncio.Future[None] | threading.Event] = []

    def settle(self, result: T | None = None, error: BaseException | None = None) -> None:
        """Say what came of it; does nothing when that was said before."""
        if self._settling.acquire(blocking=False):
            self._result, self._error = result, error
            self.is_settled = True
            self._tell()

    def _tell(self) -> None:
        while self._waiting:
            try:
                told = self._waiting.pop()
            except IndexError:  # another thread was faster
                return
            if isinstance(told, threading.Event):
                told.set()
            else:
                _tell(told.get_loop(), told)

    def tell(self, told: asyncio.Future[None] | threading.Event) -> None:
        """Set an event, or the future of an event loop, when it is settled."""
        self._waiting.append(told)
        if self.is_settled:
            self._tell()

    def wait(self, timeout_s: float) -> bool:
        """Wait for it, so many seconds at most: whether it is settled."""
        settled = threading.Event()
        self.tell(settled)
        return settled.wait(timeout_s)

    @property
    def result(self) -> T:
        """The result of one that is settled; raises its error."""
        if self._error is not None:
            raise self._error
        return cast("T", self._result)


async def finished(outcome: Outcome[T]) -> T:
    """Wait for an outcome on whatever event loop runs here, which alone is told of it."""
    told = asyncio.get_running_loop().create_future()
    outcome.tell(told)
    await told
    return outcome.result


def _tell(loop: asyncio.AbstractEventLoop, *told: asyncio.Future[None]) -> None:
    later: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] | None
    later = getattr(_this_thread, "told_later", None)
    if later is not None:
        later.setdefault(loop, []).extend(told)
        return
    with suppress(RuntimeError):  # the loop was closed, and nobody waits any more
        loop.call_soon_threadsafe(_wake, told)


def _wake(told: tuple[asyncio.Future[None], ...]) -> None:
    for each in told:
        if not each.done():
            each.set_result(None)


@contextmanager
def at_once() -> Iterator[None]:
    """Tell each event loop once, at the end, of all that is settled inside.

    The tasks that wait then go on together, and what they ask for next goes together again.
    """
    later: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = {}
    before = getattr(_this_thread, "told_later", None)
    _this_thread.told_later = later
    try:
        yield
    finally:
        _this_thread.told_later = before
        for loop, told in later.items():
            _tell(loop, *told)


def spawn(name: str, function: Callable[[], T]) -> Outcome[T]:
    """Run a function on a thread of its own; here, where the process ends and starts no thread."""
    outcome: Outcome[T] = Outcome()
    thread = threading.Thread(target=_run, args=[outcome, function], name=name, daemon=True)
    try:
        thread.start()
    except RuntimeError:
        _run(outcome, function)
    return outcome


class Pool:
    """Daemon threads that run functions, started when they are needed.

    Threads may share it. In a forked child it is empty.

    Args:
        name: the threads', for people.
        most: so many threads at most.
        is_prompt: its threads never wait for an embedder: a function that needs one ends with
            `NeedsEmbedderError`.
    """

    def __init__(self, name: str, most: int, *, is_prompt: bool = False) -> None:
        self._name = name
        self._most = most
        self._is_prompt = is_prompt
        self._begin_anew()
        follow_forks(self)

    def _begin_anew(self) -> None:
        self._lock = threading.Lock()
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._threads = 0
        self._is_shut = False
        # The threads hold the queue and not the pool, so a pool that is forgotten lets them end.
        weakref.finalize(self, self._jobs.put, None).atexit = False

    def before_fork(self) -> None:
        """Nothing to do."""

    def after_fork(self, in_child: bool) -> None:
        """A child has no threads."""
        if in_child:
            self._begin_anew()

    def submit(self, function: Callable[[], T]) -> Outcome[T]:
        """Run a function on a thread; it is not run when its outcome is settled before.

        Raises:
            StoreClosedError: `shut_down` was called.
        """
        outcome: Outcome[T] = Outcome()
        with self._lock:
            if self._is_shut:
                raise StoreClosedError
            self._jobs.put((outcome, function))
            if self._idle.acquire(blocking=False) or self._threads == self._most:
                return outcome
            has_threads = self._start() or self._threads
        if not has_threads:
            for job in self._take_all():
                _run(*job)
        return outcome

    def _start(self) -> bool:
        thread = threading.Thread(
            target=_work,
            args=[self._jobs, self._idle, self._is_prompt],
            name=f"{self._name}-{self._threads}",
            daemon=True,
        )
        try:
            thread.start()
        except RuntimeError:  # the process ends, or the system gives it no more threads
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
        """Let the threads end after what they run now: what they will never begin with."""
        with self._lock:
            self._is_shut = True
            left = [outcome for outcome, _ in self._take_all()]
            self._jobs.put(None)
        return left


def _work(jobs: queue.SimpleQueue[_Job | None], idle: threading.Semaphore, is_prompt: bool) -> None:
    _this_thread.is_prompt = is_prompt
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
        del job  # what it holds is not kept until the next one comes


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
        del outcome  # the traceback of an error leads here: no circle


class Ending(Protocol):
    """What the end of the process waits for."""

    def end(self, until: float, /) -> None:
        """Come to an end, and wait for that until a moment of `time.monotonic` at most."""


# Threads, and not the outcomes: what nobody waits for any more is under way all the same.
_busy: set[int] = set()
_ending: WeakList[Ending] = WeakList()
in_children(_busy.clear)


def wait_at_exit(other: Ending) -> None:
    """Let the end of the process wait for an object, if it lives then."""
    _ending.add(other)


@atexit.register
def _wait_for_all() -> None:
    until = time.monotonic() + LONGEST_WAIT_S
    for each in _ending:
        each.end(until)
    while _busy and time.monotonic() < until:
        time.sleep(0.005)
