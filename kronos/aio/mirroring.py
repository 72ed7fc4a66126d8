"""Mirrors: an async face of a synchronous object, verb by verb, with the same signatures.

A verb says where it runs: `reading` (a thread that waits for no embedder and no writer), `writing`
(one that may wait for writers), `apart` (a thread of its own), `as_job` (the same, and to cancel
the task sets `stop`), `detached` (for a store that is not open). `mirroring` marks a verb that is
written out.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, ParamSpec, TypeAlias, TypeVar

from kronos.aio.calls import on_thread
from kronos.aio.opening import AsyncOpening

P = ParamSpec("P")
T = TypeVar("T")
R = TypeVar("R")

_Verb: TypeAlias = Callable[Concatenate[Any, P], T]
_AsyncVerb: TypeAlias = Callable[Concatenate[Any, P], Coroutine[Any, Any, T]]


class Mirror:
    """An async face.

    Args:
        sync: the object that it mirrors.
        opening: whether the store is open, and how it is called.
    """

    def __init__(self, sync: Any, opening: AsyncOpening) -> None:
        self._sync = sync
        self._opening = opening


def mirroring(
    verb: _Verb[P, Any],
) -> Callable[[Callable[..., R]], Callable[Concatenate[Any, P], R]]:
    """Give a function the signature and the documentation of a synchronous verb."""
    return functools.wraps(verb)


def reading(verb: _Verb[P, T]) -> _AsyncVerb[P, T]:
    """Mirror a verb that reads."""
    return _on("read", verb)


def writing(verb: _Verb[P, T]) -> _AsyncVerb[P, T]:
    """Mirror a verb that writes, and embeds nothing."""
    return _on("write", verb)


def apart(verb: _Verb[P, T]) -> _AsyncVerb[P, T]:
    """Mirror a verb that may take long."""
    return _on("apart", verb)


def _on(where: str, verb: _Verb[P, T]) -> _AsyncVerb[P, T]:
    @mirroring(verb)
    async def call(self: Mirror, /, *args: Any, **options: Any) -> T:
        run = getattr(self._opening.calls, where)
        done: T = await run(getattr(self._sync, verb.__name__), *args, **options)
        return done

    return call


def as_job(verb: _Verb[P, T]) -> _AsyncVerb[P, T]:
    """Mirror a verb that takes long and can be stopped; `close` stops it too."""

    @mirroring(verb)
    async def call(self: Mirror, /, *args: Any, stop: Any = None, **options: Any) -> T:
        work: Callable[..., T] = getattr(self._sync, verb.__name__)
        return await self._opening.calls.long(work, *args, stop=stop, **options)

    return call


def detached(verb: _Verb[P, T]) -> _AsyncVerb[P, T]:
    """Mirror a verb that needs no open store."""

    @mirroring(verb)
    async def call(self: Mirror, /, *args: Any, **options: Any) -> T:
        work: Callable[..., T] = getattr(self._sync, verb.__name__)
        return await on_thread(work, *args, **options)

    return call
