"""Adapts an `AsyncEmbedder` to an `Embedder`: threads call it, and event loops do its work.

Its coroutines run where a direct call would run them: on the event loop of the task that waits for
the call, in a copy of that task's context. So a client that belongs to that loop, such as an
aiohttp session, works as usual. When all waiting tasks are cancelled, the coroutine is too. If no
task waits (in a background job), or the loop ends meanwhile, coroutines run on the adapter's own
event loop, which lives until `close`.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import CancelledError, Future, wait
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from kronos.concurrency.call_context import callers, check_not_cancelled
from kronos.concurrency.forking import Lock, notify_of_forks
from kronos.errors import KronosError, StoreClosedError

if TYPE_CHECKING:
    from kronos.types import AsyncEmbedder, Embedder, Vectors

_CHECK_INTERVAL_S = 0.1
_LONGEST_STANDSTILL_S = 1.0
"""A loop that has not run for this long, as between two `run_until_complete`, counts as ended."""


def returns_awaitable(method: object) -> bool:
    """Whether a function returns an awaitable, as far as that is known without calling it."""
    while isinstance(method, functools.partial):
        method = method.func
    called = getattr(method, "__call__", None)  # noqa: B004 - may be a callable object
    return inspect.iscoroutinefunction(method) or inspect.iscoroutinefunction(called)


class AsyncEmbedderAdapter:
    """An `Embedder` over an embedder whose methods may return awaitables. Thread-safe.

    Args:
        embedder: an `AsyncEmbedder`, or an `Embedder`, whose methods run on the calling thread.
    """

    def __init__(self, embedder: Embedder | AsyncEmbedder) -> None:
        self._embedder = embedder
        self._own = _OwnLoop()
        self._is_open = True
        self.is_async = any(
            map(returns_awaitable, (embedder.embed_documents, embedder.embed_queries))
        )
        """Whether an event loop runs its methods. For a plain function that returns a coroutine,
        this is known only after its first call."""

    @property
    def model_id(self) -> str:
        """The embedder's name, for people."""
        return self._embedder.model_id

    @property
    def fingerprint(self) -> str:
        """Equal only for embedders whose vectors can be compared."""
        return self._embedder.fingerprint

    @property
    def dim(self) -> int:
        """The width of a vector."""
        return self._embedder.dim

    def __getattr__(self, name: str) -> Any:
        # Optional attributes beyond the protocol, such as `max_tokens` or `revision`.
        value = getattr(self._embedder, name)
        if returns_awaitable(value):
            raise AttributeError(f"{name} of {type(self._embedder).__name__} must be awaited")
        return value

    def embed_documents(self, texts: Sequence[str], /) -> Vectors:
        """Embed texts to be stored: (n, dim) float32."""
        return self._call(self._embedder.embed_documents, texts)

    def embed_queries(self, texts: Sequence[str], /) -> Vectors:
        """Embed queries: (n, dim) float32."""
        return self._call(self._embedder.embed_queries, texts)

    def _call(self, method: Callable[[Sequence[str]], Any], texts: Sequence[str]) -> Vectors:
        if returns_awaitable(method):
            return self._await(method, texts)
        made: Vectors = method(texts)
        if not inspect.isawaitable(made):
            return made
        self.is_async = True
        return self._await(method, texts, made)

    def _await(
        self,
        method: Callable[[Sequence[str]], Any],
        texts: Sequence[str],
        made: Awaitable[Any] | None = None,
    ) -> Vectors:
        async def call(made: Awaitable[Any] | None) -> Any:
            return await (method(texts) if made is None else made)

        waiting = callers()
        loop = waiting[0].loop if waiting else None
        if loop is not None and loop.is_running():
            with suppress(_LoopEndedError):
                return _run(call(made), loop, self._check_needed)
            made = None  # it was cancelled with its loop
        self._check_needed()
        try:
            return _run(call(made), self._own.running(), self._check_needed)
        except _LoopEndedError:
            raise StoreClosedError from None

    def _check_needed(self) -> None:
        if not self._is_open:
            raise StoreClosedError
        check_not_cancelled()

    def open(self) -> None:
        """Allow calls, also again after `close`."""
        self._is_open = True

    def close(self) -> None:
        """Cancel running coroutines, and end the adapter's own event loop."""
        self._is_open = False
        self._own.close()


class _LoopEndedError(Exception):
    """The event loop ended before the coroutine did."""


def _run(
    coroutine: Coroutine[Any, Any, Any],
    loop: asyncio.AbstractEventLoop,
    check: Callable[[], None],
) -> Vectors:
    """Run a coroutine on another thread's event loop, until it ends or `check` raises."""
    try:
        future = asyncio.run_coroutine_threadsafe(coroutine, loop)
    except RuntimeError:  # closed since it was checked
        coroutine.close()
        raise _LoopEndedError from None
    seen_running = time.monotonic()
    while not wait([future], _CHECK_INTERVAL_S).done:
        if loop.is_running():
            seen_running = time.monotonic()
        elif loop.is_closed() or time.monotonic() - seen_running > _LONGEST_STANDSTILL_S:
            _give_up(future, coroutine, loop)
            raise _LoopEndedError
        try:
            check()
        except KronosError:
            _give_up(future, coroutine, loop)
            raise
    try:
        return future.result()  # type: ignore[no-any-return]
    except CancelledError:  # as `asyncio.run` does at its end
        raise _LoopEndedError from None


def _give_up(
    future: Future[Any], coroutine: Coroutine[Any, Any, Any], loop: asyncio.AbstractEventLoop
) -> None:
    if not loop.is_closed():
        with suppress(RuntimeError):  # closed just now
            future.cancel()
    elif inspect.getcoroutinestate(coroutine) == inspect.CORO_CREATED:
        coroutine.close()  # else Python warns that it was never awaited


class _OwnLoop:
    """An event loop on its own thread, started on first use."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        notify_of_forks(self)

    def before_fork(self) -> None:
        """Nothing to do."""

    def after_fork(self, in_child: bool) -> None:
        """Forget the loop in the child, where its thread does not exist."""
        if in_child:
            self._loop = self._thread = None

    def running(self) -> asyncio.AbstractEventLoop:
        """The running loop."""
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(
                    target=_serve, args=[self._loop], name="kronos-await", daemon=True
                )
                self._thread.start()
            return self._loop

    def close(self) -> None:
        """Cancel the loop's tasks, and end it."""
        with self._lock:
            loop, self._loop = self._loop, None
            thread, self._thread = self._thread, None
        if loop is not None and thread is not None:
            loop.call_soon_threadsafe(loop.stop)
            thread.join(_LONGEST_STANDSTILL_S)


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        loop.close()
