"""Calls from event loops: which threads run them, and how a task waits for them.

Only the future that one task waits for belongs to an event loop, so loops may come, go, and end in
the middle of a call. A task's context goes with its call to the thread that runs it.

Threads are separated by what they wait for. Reading threads never wait for an embedder or a writer;
others write, embed, or check large arguments; every long call has a thread of its own.
"""

from __future__ import annotations

import asyncio
import functools
import operator
import threading
import time
from collections.abc import Callable, Hashable, Iterable, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass, fields, is_dataclass
from datetime import datetime, timedelta
from types import EllipsisType
from typing import TYPE_CHECKING, Any, ParamSpec, TypeAlias, TypeVar

import numpy as np

from kronos.concurrency.call_context import CallContext
from kronos.concurrency.coalescing import Coalescer, Coalescers
from kronos.concurrency.threads import (
    SHUTDOWN_TIMEOUT_S,
    NeedsEmbedderError,
    Outcome,
    Pool,
    spawn,
    wait_until_settled,
)
from kronos.embedding.async_adapter import AsyncEmbedderAdapter
from kronos.errors import StoppedError, StoreClosedError, TransientEmbeddingError
from kronos.serving.group_commit import FOR_ALL, MOST_ROWS
from kronos.serving.serving import MOST_TEXTS, Serving, sees_texts_alone
from kronos.store.answering.finding import Made

if TYPE_CHECKING:
    from kronos.repository.batches import Batch
    from kronos.store.store import MemoryStore
    from kronos.types import Embedder, Vectors

P = ParamSpec("P")
T = TypeVar("T")

_Outcomes: TypeAlias = "list[list[str] | Exception]"

_READERS = 4
_WRITERS = 16
"""Many, so that the writes of many tasks share a transaction."""
_ENCODERS = 32
_SMALL = 2**14
"""Arguments of this size are checked in about a millisecond; see `is_small`."""
_LOOK_EVERY_S = 0.05


class Calls:
    """The calls of tasks to a store, from when it is opened until it is closed.

    Args:
        store: what they call.
    """

    def __init__(self, store: MemoryStore) -> None:
        self._store = store
        self._reading = Pool("kronos-read", _READERS, never_waits=True)
        self._writing = Pool("kronos-write", _WRITERS)
        self._encoding = Pool("kronos-encode", _ENCODERS)
        # One thread: the more of them compute, the longer each waits for Python's lock, and so
        # does the event loop.
        self._checking = Pool("kronos-check", 1)
        # What needs no embedder, what one of Kronos's own embeds, and what any other one does.
        self._handed_in, self._embedded = self._combined(), self._combined()
        self._adding: Coalescers[_Adding, _Outcomes] = Coalescers(
            lambda: Coalescer(self._add_together, max_size=MOST_ROWS, for_all=FOR_ALL)
        )
        self._asking: Coalescers[_Asking, Vectors] = Coalescers(
            lambda: Coalescer(
                _ask_together, max_size=MOST_TEXTS, for_all=(TransientEmbeddingError,)
            )
        )
        self._waiting: dict[Outcome[Any], CallContext | None] = {}
        """What tasks wait for now, and which."""
        self._fetching: set[Outcome[Any]] = set()
        """Those of them that `close` does not wait for."""
        self._stops: set[Stop] = set()
        self._is_closing = self._is_closed = False

    # -- Where work is done -----------------------------------------------------------------------

    async def read(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Read, on a thread that waits for no embedder; on one that does, where that is needed."""
        try:
            return await self._on(self._reading.submit, function, *args, **kwargs)
        except NeedsEmbedderError:
            return await self.encode(function, *args, **kwargs)

    async def write(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Write, on a thread that may wait for other writers."""
        return await self._on(self._writing.submit, function, *args, **kwargs)

    async def encode(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do what may wait for an embedder."""
        return await self._on(self._encoding.submit, function, *args, **kwargs)

    async def check(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Check arguments: here when they are small, else on a thread."""
        if is_small([args, kwargs]):
            return function(*args, **kwargs)
        return await self._on(self._checking.submit, function, *args, **kwargs)

    async def apart(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do what may take long, on a thread of its own."""
        return await self._on(_spawn, function, *args, **kwargs)

    async def fetch(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Take what a caller's own iterator gives, however long it takes for that."""
        context = CallContext(asyncio.get_running_loop())
        work = functools.partial(function, *args, **kwargs)
        outcome = _spawn(functools.partial(context.run, work))
        self._fetching.add(outcome)
        try:
            return await self._come_of(outcome, context)
        finally:
            self._fetching.discard(outcome)

    async def long(
        self,
        function: Callable[..., T],
        *args: object,
        stop: threading.Event | None,
        **kwargs: object,
    ) -> T:
        """Do what takes long; `stop` stops it, which a cancelled task sets, and so does `close`."""
        own = Stop(stop)
        self._stops.add(own)
        try:
            if self._is_closing:
                raise StoreClosedError
            return await self.apart(function, *args, stop=own, **kwargs)
        except asyncio.CancelledError:
            own.set()
            if stop is not None:
                stop.set()
            raise
        except StoppedError:
            if self._is_closing:
                raise StoreClosedError from None
            raise
        finally:
            self._stops.discard(own)

    async def _on(
        self,
        submit: Callable[[Callable[[], T]], Outcome[T]],
        function: Callable[P, T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        context = CallContext(asyncio.get_running_loop())
        work = functools.partial(function, *args, **kwargs)
        return await self._come_of(submit(functools.partial(context.run, work)), context)

    # -- What tasks share -------------------------------------------------------------------------

    def _combined(self) -> Coalescer[Batch, _Outcomes]:
        return Coalescer(self._store._adding.add_together, max_size=MOST_ROWS, for_all=FOR_ALL)

    async def add(self, batch: Batch) -> list[str]:
        """Embed and write a batch, with those of other tasks: its ids."""
        await asyncio.sleep(0)  # tasks that were woken together go together
        size, embedder = len(batch.records), self._store._session.serving.embedder
        context: CallContext | None = None
        if all(record.embedding is not None for record in batch.records):
            outcome = self._handed_in.submit([batch], size, self._writing.submit)
        elif embedder is None or sees_texts_alone(embedder):
            outcome = self._embedded.submit([batch], size, self._encoding.submit)
        else:
            context = CallContext(asyncio.get_running_loop())
            coalescer = self._adding[_shared_by(embedder, context)]
            adding = _Adding(context, batch)
            outcome = coalescer.submit([adding], size, self._encoding.submit)
        (ids,) = await self._come_of(outcome, context)
        if isinstance(ids, Exception):
            raise ids
        return ids

    def _add_together(self, additions: Sequence[_Adding]) -> _Outcomes:
        batches = [each.batch for each in additions]
        return _for_all(additions, lambda: self._store._adding.add_together(batches))

    async def ask(self, serving: Serving, texts: Sequence[str]) -> Made:
        """Embed the texts of a question, with those of other tasks."""
        await asyncio.sleep(0)
        context: CallContext | None = None
        if isinstance(serving.ask, Coalescer):
            outcome = serving.ask.submit(texts, len(texts), self._encoding.submit)
        else:
            context = CallContext(asyncio.get_running_loop())
            coalescer = self._asking[serving, _shared_by(serving.embedder, context)]
            asking = [_Asking(context, serving, text) for text in texts]
            outcome = coalescer.submit(asking, len(texts), self._encoding.submit)
        return Made(serving, await self._come_of(outcome, context))

    # -- How a task waits -------------------------------------------------------------------------

    async def _come_of(self, outcome: Outcome[T], context: CallContext | None) -> T:
        self._waiting[outcome] = context
        try:
            if self._is_closed:
                raise StoreClosedError
            told = asyncio.get_running_loop().create_future()
            outcome.notify(told)
            await told
            return outcome.result
        except asyncio.CancelledError:
            if context is not None:
                context.caller.is_cancelled = True
            outcome.settle(error=CancelledError())
            raise
        finally:
            del self._waiting[outcome]

    def close(self, close_store: Callable[[], object]) -> None:
        """Wait for the calls that are under way, but not for ever, then close the store.

        Calls that have not ended by then end with `StoreClosedError`.
        """
        self._is_closing = True
        for stop in [*self._stops]:
            stop.set()
        self._end(self._fetching)
        try:
            until = time.monotonic() + SHUTDOWN_TIMEOUT_S
            for outcome in [*self._waiting]:
                outcome.wait(until - time.monotonic())
            close_store()
        finally:
            self._is_closed = True
            for pool in (self._reading, self._writing, self._encoding, self._checking):
                pool.shut_down()
            self._end(self._waiting)

    def _end(self, outcomes: Iterable[Outcome[Any]]) -> None:
        for outcome in [*outcomes]:
            if (context := self._waiting.get(outcome)) is not None:
                context.caller.is_cancelled = True
            outcome.settle(error=StoreClosedError())


@dataclass(slots=True, eq=False)
class _Adding:
    """A batch to be added, for a task."""

    context: CallContext
    batch: Batch


@dataclass(slots=True, eq=False)
class _Asking:
    """A text of a question, for a task."""

    context: CallContext
    serving: Serving
    text: str


def _shared_by(embedder: Embedder | None, context: CallContext) -> Hashable:
    """What calls must have in common for a program's own embedder to embed them together."""
    is_async = isinstance(embedder, AsyncEmbedderAdapter) and embedder.is_async
    return context.key, context.caller.loop if is_async else None


def _ask_together(texts: Sequence[_Asking]) -> Vectors:
    serving = texts[0].serving
    return _for_all(texts, lambda: serving.query_vectors([each.text for each in texts]))


def _for_all(items: Sequence[_Adding] | Sequence[_Asking], work: Callable[[], T]) -> T:
    """Work for several tasks, in the context that they have in common."""
    first, *others = dict.fromkeys(each.context for each in items)
    return first.run(work, *others)


_spawn = functools.partial(spawn, "kronos-long")


async def on_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Do what belongs to no open store, on a thread of its own."""
    context = CallContext(asyncio.get_running_loop())
    work = functools.partial(function, *args, **kwargs)
    return await wait_until_settled(_spawn(functools.partial(context.run, work)))


class Stop(threading.Event):
    """Set when a caller's own event is, or by itself, which leaves the caller's alone.

    Args:
        other: the caller's.
    """

    def __init__(self, other: threading.Event | None) -> None:
        super().__init__()
        self._other = other

    def is_set(self) -> bool:
        """Whether one of the two is set."""
        return super().is_set() or (self._other is not None and self._other.is_set())

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until one of the two is set, at most `timeout` seconds."""
        until = None if timeout is None else time.monotonic() + timeout
        while not self.is_set():
            left = _LOOK_EVERY_S if until is None else until - time.monotonic()
            if left <= 0:
                return False
            super().wait(min(left, _LOOK_EVERY_S))
        return True


_PLAIN = frozenset([int, float, bool, type(None), datetime, timedelta, EllipsisType])


@functools.lru_cache(maxsize=64)
def _parts_of(kind: Any) -> Callable[[object], Sequence[object]] | None:
    """What gives the fields of a dataclass of Kronos's own; None for all else."""
    if not (is_dataclass(kind) and kind.__module__.startswith("kronos.")):
        return None
    names = [field.name for field in fields(kind)]
    get = operator.attrgetter(*names)
    return get if len(names) > 1 else lambda value: [get(value)]


def is_small(values: object) -> bool:
    """Whether checking the arguments here is faster than handing them to a thread.

    It stops looking as soon as they are too large. A value that is no text, number, array, list,
    dict or dataclass of Kronos counts as large.
    """
    room, todo = _SMALL, [values]
    while todo:
        value = todo.pop()
        kind = type(value)
        if kind in _PLAIN:
            room -= 16
        elif kind is str or kind is bytes:
            room -= 16 + len(value) // 8  # type: ignore[arg-type]
        elif kind is np.ndarray:
            room -= 16 + value.size  # type: ignore[attr-defined]
        elif kind in (list, tuple, dict):
            room -= 16 * (1 + len(value))  # type: ignore[arg-type]
            if room >= 0:
                todo += [*value, *value.values()] if kind is dict else value  # type: ignore
        elif (parts_of := _parts_of(kind)) is not None:  # type: ignore[arg-type]
            room -= 16
            todo += parts_of(value)
        else:
            return False
        if room < 0:
            return False
    return True
