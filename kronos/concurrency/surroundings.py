"""What a call sees of its caller's surroundings, on whatever thread it is worked on.

A call of an event loop runs on a thread in a copy of its task's context, so context variables
(request ids, spans of a tracer, the tenant whose key an embedder uses) are those of the caller. The
calls of several tasks share an embedder's work only where they agree in all of them.
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

_COMPARED = (str, bytes, int, bool, type(None))
"""Types whose values are compared; of all others only the same object is the same value."""


class Caller:
    """A task that waits for a call.

    Args:
        loop: where it runs; it is not kept alive.
    """

    __slots__ = ("_loop", "is_gone")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = weakref.ref(loop)
        self.is_gone = False
        """It was cancelled: nobody waits any more."""

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """Its event loop; None when that is no more."""
        return self._loop()


_callers: ContextVar[Sequence[Caller]] = ContextVar("kronos_callers", default=())


class Surroundings:
    """Those of the task that makes this object."""

    __slots__ = ("_context", "caller")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.caller = Caller(loop)
        self._context = contextvars.copy_context()

    def run(self, function: Callable[[], T], *others: Surroundings) -> T:
        """Call a function in them, on any thread; on behalf of others that agree with them too."""
        callers = [self.caller, *(other.caller for other in others)]
        return self._context.run(_run_for, callers, function)

    @property
    def name(self) -> Hashable:
        """Equal for surroundings in which every context variable has the same value.

        That holds while both of them live.
        """
        return frozenset(_name(*each) for each in self._context.items())


def _name(variable: ContextVar[object], value: object) -> Hashable:
    kind = type(value)
    return variable, kind, value if kind in _COMPARED else id(value)


def _run_for(callers: Sequence[Caller], function: Callable[[], T]) -> T:
    _callers.set(callers)
    return function()


def run_unattended(function: Callable[[], T]) -> T:
    """Call a function that no task waits for, if one did so far; the event loop stays known."""
    loops = [caller.loop for caller in _callers.get()]
    _callers.set([Caller(loop) for loop in loops if loop is not None])
    return function()


def check_wanted() -> None:
    """Look whether a task still waits for what this thread does for event loops.

    Raises:
        EmbeddingError: every one was cancelled.
    """
    if (waiting := _callers.get()) and all(caller.is_gone for caller in waiting):
        raise EmbeddingError("nobody waits for it any more: its task was cancelled")


def callers() -> Sequence[Caller]:
    """The tasks that wait for what this thread does; empty where it works for no event loop."""
    return _callers.get()
