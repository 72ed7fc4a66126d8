"""The context of a caller, which goes with its call to whatever thread works on it.

A call from an event loop runs on a thread in a copy of its task's context. So context variables
(request ids, a tracer's spans, the tenant whose API key an embedder uses) have the caller's values.
Calls of several tasks share an embedder's work only if all their context variables are equal.
"""

from __future__ import annotations

import contextvars
import weakref
from collections.abc import Callable, Hashable, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, TypeVar

from kronos.errors import EmbeddingError

if TYPE_CHECKING:
    import asyncio

T = TypeVar("T")

_COMPARED_BY_VALUE = (str, bytes, int, bool, type(None))
"""Values of these types are compared by value, all others by identity."""


class Caller:
    """A task that waits for a call.

    Args:
        loop: the task's event loop; it is not kept alive.
    """

    __slots__ = ("_loop", "is_cancelled")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = weakref.ref(loop)
        self.is_cancelled = False
        """Whether the task was cancelled and no longer waits."""

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The task's event loop; None once the loop is gone."""
        return self._loop()


_callers: ContextVar[Sequence[Caller]] = ContextVar("kronos_callers", default=())


class CallContext:
    """The context of the task that creates this object.

    Args:
        loop: the task's event loop.
    """

    __slots__ = ("_context", "caller")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.caller = Caller(loop)
        self._context = contextvars.copy_context()

    def run(self, function: Callable[[], T], *others: CallContext) -> T:
        """Call a function in this context, on any thread.

        Args:
            function: what to call.
            others: contexts with an equal `key`, whose callers wait for the same call.
        """
        callers = [self.caller, *(other.caller for other in others)]
        return self._context.run(_run_for, callers, function)

    @property
    def key(self) -> Hashable:
        """Equal for contexts in which every context variable has the same value.

        Keys are comparable only while both contexts are alive.
        """
        return frozenset(_item_key(*item) for item in self._context.items())


def _item_key(variable: ContextVar[object], value: object) -> Hashable:
    kind = type(value)
    return variable, kind, value if kind in _COMPARED_BY_VALUE else id(value)


def _run_for(callers: Sequence[Caller], function: Callable[[], T]) -> T:
    _callers.set(callers)
    return function()


def run_without_callers(function: Callable[[], T]) -> T:
    """Call a function that no task waits for. The event loop of earlier callers stays known."""
    loops = [caller.loop for caller in _callers.get()]
    _callers.set([Caller(loop) for loop in loops if loop is not None])
    return function()


def check_not_cancelled() -> None:
    """Check that a task still waits for the work that this thread does for event loops.

    Raises:
        EmbeddingError: every waiting task was cancelled.
    """
    if (waiting := _callers.get()) and all(caller.is_cancelled for caller in waiting):
        raise EmbeddingError("the call was abandoned: every task that waited for it was cancelled")


def callers() -> Sequence[Caller]:
    """The tasks that wait for this thread's work; empty if it works for no event loop."""
    return _callers.get()
