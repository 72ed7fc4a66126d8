"""Opening and closing a `KronosMemory`, from any event loop and any thread.

At most one thread opens or closes at a time; others that ask for the same wait for it. Between two
calls nothing here belongs to an event loop.
"""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kronos.aio.calls import Calls
from kronos.concurrency.call_context import CallContext
from kronos.concurrency.forking import notify_of_forks
from kronos.concurrency.threads import SHUTDOWN_TIMEOUT_S, Outcome, spawn, wait_until_settled
from kronos.embedding.async_adapter import AsyncEmbedderAdapter
from kronos.embedding.hashing import HashEmbedder
from kronos.embedding.service import EmbeddingService
from kronos.errors import StoreClosedError
from kronos.store.store import MemoryStore

if TYPE_CHECKING:
    from kronos.types import AsyncEmbedder, Embedder, ProgressCallback

_CLOSED_MEANWHILE = "the store was closed while it was opened"


@dataclass(eq=False)
class _Turn:
    """The store is being opened, or closed."""

    context: CallContext
    opens: bool
    done: Outcome[None] = field(default_factory=Outcome)
    """What those who wait for it are told."""
    ended: Outcome[None] = field(default_factory=Outcome)
    """Its thread does nothing more."""
    waiting: int = 0
    """Tasks that wait for it."""

    def wait_for(self, tasks: int) -> None:
        """Count tasks that begin or stop to wait; when none waits, the turn is not wanted."""
        self.waiting += tasks
        self.context.caller.is_cancelled = self.waiting == 0


class AsyncOpening:
    """Opens and closes a store for event loops and threads.

    Args:
        store: what is opened; it is not open.
        embedder: a program's own embedder, in the form that threads call; None where it has none.
    """

    def __init__(self, store: MemoryStore, embedder: AsyncEmbedderAdapter | None) -> None:
        self._store = store
        self._awaited = embedder
        self._calls: Calls | None = None
        """There while the store is open."""
        self._begin_anew()
        notify_of_forks(self)

    def _begin_anew(self) -> None:
        self._changing = threading.Lock()
        """Held for moments, to change the two."""
        self._turn: _Turn | None = None

    def before_fork(self) -> None:
        """Nothing to do: the store waits for what its threads are in the middle of."""

    def after_fork(self, in_child: bool) -> None:
        """A child has none of the threads, and runs another event loop."""
        if in_child:
            self._begin_anew()
            if self._calls is not None:
                self._calls = Calls(self._store)

    async def connect(self, *, progress: ProgressCallback | None = None) -> None:
        """Open the store; see `KronosMemory.connect`."""
        while True:
            with self._changing:
                if self._turn is None and self._calls is not None:
                    return
                turn, start = self._turn, None
                if turn is None:
                    turn, start = self._begin(self._open, progress, opens=True)
                opens = turn.opens
                turn.wait_for(1)
            if opens:
                return await self._come_to_end(turn, start)
            with suppress(Exception):  # the task that closes is told of it
                await self._come_to_end(turn, start)

    async def close(self) -> None:
        """Close the store; see `KronosMemory.close`."""
        with self._changing:
            turn, start = self._turn, None
            if turn is None and self._calls is None:
                return
            if turn is None or turn.opens:
                calls, self._calls = self._calls, None
                turn, start = self._begin(self._close, calls, turn, opens=False)
            turn.wait_for(1)
        await self._come_to_end(turn, start)

    def _begin(
        self, work: Callable[..., None], *args: object, opens: bool
    ) -> tuple[_Turn, Callable[[], object]]:
        """A turn, and what starts it, once `_changing` is free."""
        turn = self._turn = _Turn(CallContext(asyncio.get_running_loop()), opens)
        function = functools.partial(self._carry_out, turn, functools.partial(work, turn, *args))
        return turn, functools.partial(spawn, "kronos-open" if opens else "kronos-close", function)

    async def _come_to_end(self, turn: _Turn, start: Callable[[], object] | None) -> None:
        try:
            if start is not None:
                start()
            await wait_until_settled(turn.done)
        finally:
            with self._changing:
                turn.wait_for(-1)

    def _carry_out(self, turn: _Turn, work: Callable[[], None]) -> None:
        error: BaseException | None = None
        try:
            turn.context.run(work)
        except BaseException as exc:
            error = exc
        with self._changing:
            if self._turn is turn:
                self._turn = None
            elif turn.opens:
                error = StoreClosedError(_CLOSED_MEANWHILE)
        turn.done.settle(error=error)
        turn.ended.settle()

    def _open(self, turn: _Turn, progress: ProgressCallback | None) -> None:
        if self._turn is not turn:
            return  # `close` was called before this thread came to it
        if self._awaited is not None:
            self._awaited.open()
        self._store.connect(progress=progress)
        with self._changing:
            if self._turn is turn and turn.waiting:
                self._calls = Calls(self._store)
                return
            turn.opens = turn.opens and self._turn is not turn
        self._store.close()  # no task waits for it any more

    def _close(self, turn: _Turn, calls: Calls | None, opening: _Turn | None) -> None:
        if opening is not None:
            opening.context.caller.is_cancelled = True
            opening.ended.wait(SHUTDOWN_TIMEOUT_S)  # two threads at the store would undo each other
        if calls is None:
            self._store.close()
        else:
            calls.close(self._store.close)
        if opening is not None:  # if it has not ended, an embedder blocks it
            opening.done.settle(error=StoreClosedError(_CLOSED_MEANWHILE))
        if self._awaited is not None:
            self._awaited.close()

    @property
    def calls(self) -> Calls:
        """How event loops call the store.

        Raises:
            StoreClosedError: the store is not open.
        """
        if (calls := self._calls) is None:
            raise StoreClosedError
        return calls


def awaited(embedder: Embedder | AsyncEmbedder | None) -> AsyncEmbedderAdapter | None:
    """A program's own embedder as one that threads can call; None for any other one."""
    methods = (getattr(embedder, "embed_documents", None), getattr(embedder, "embed_queries", None))
    if isinstance(embedder, EmbeddingService | HashEmbedder) or not all(map(callable, methods)):
        return None
    return AsyncEmbedderAdapter(embedder)  # type: ignore[arg-type]
