"""What a forked child must find: free locks, and nothing that its parent was in the middle of.

Only the thread that forks lives on in the child. A lock that another thread held would stay locked
for ever, so locks are made anew there; and a fork waits until no thread is inside a `Gate`, so what
is changed inside is never seen half done.
"""

from __future__ import annotations

import ctypes
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, Protocol, TypeVar

T = TypeVar("T")

_LONGEST_WAIT_S = 30.0


class ForkAware(Protocol):
    """What wants to know of forks; it is not kept alive by that."""

    def before_fork(self) -> None:
        """Come to rest."""

    def after_fork(self, in_child: bool) -> None:
        """Go on, in the parent or in the child."""


class Lock:
    """A lock that is free in a forked child.

    Args:
        make: `threading.Lock` or `threading.RLock`.
    """

    def __init__(self, make: Callable[[], Any] = threading.Lock) -> None:
        self._make = make
        self._lock = make()
        follow_forks(self)

    def __enter__(self) -> Lock:
        self._lock.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    @contextmanager
    def soon(self, timeout_s: float) -> Iterator[bool]:
        """Hold it, or after so long do without: whether it is held."""
        is_held = self._lock.acquire(timeout=timeout_s)
        try:
            yield is_held
        finally:
            if is_held:
                self._lock.release()

    def before_fork(self) -> None:
        """Nothing to do."""

    def after_fork(self, in_child: bool) -> None:
        """Be free in the child."""
        if in_child:
            self._lock = self._make()


class Gate:
    """Threads pass through it freely, and a fork waits until none is inside."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside: dict[int, int] = {}
        self._forking: int | None = None

    def __enter__(self) -> None:
        thread = threading.get_ident()
        with self._changed:
            while self._forking not in (None, thread) and thread not in self._inside:
                self._changed.wait()
            self._inside[thread] = self._inside.get(thread, 0) + 1

    def __exit__(self, *_: object) -> None:
        thread = threading.get_ident()
        with self._changed:
            left = self._inside.pop(thread, 1) - 1
            if left:
                self._inside[thread] = left
            elif self._forking is not None:
                self._changed.notify_all()

    def close(self) -> None:
        """Wait until no other thread is inside, and let none in."""
        thread = threading.get_ident()
        with self._changed:
            self._forking = thread
            # Not for ever: better a child that may fail than a parent that hangs.
            self._changed.wait_for(lambda: not self._inside.keys() - {thread}, _LONGEST_WAIT_S)

    def reopen(self) -> None:
        """Let threads in again."""
        with self._changed:
            self._forking = None
            self._changed.notify_all()


class WeakList(Generic[T]):
    """Objects that are kept in no order, and not kept alive; threads may add while others iterate.

    A `WeakSet` is no such thing: its iteration is Python code, which fails when another thread adds
    to the set. To add to a plain set, to discard from it and to copy it are one step each.
    """

    def __init__(self) -> None:
        self._references: set[weakref.ref[T]] = set()

    def add(self, member: T) -> None:
        """Take an object in."""
        self._references.add(weakref.ref(member, self._references.discard))

    def __iter__(self) -> Iterator[T]:
        """Those that were there when the iteration began, and live."""
        for reference in [*self._references]:
            if (member := reference()) is not None:
                yield member


_followers: WeakList[ForkAware] = WeakList()
_in_children: list[Callable[[], object]] = []


def follow_forks(follower: ForkAware) -> None:
    """Tell an object of forks for as long as it lives."""
    _followers.add(follower)


def never_free(thing: object) -> None:
    """Let an object stand for ever.

    To take it down in a child may wait for the parent's threads, or free what is the parent's.
    """
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


def in_children(function: Callable[[], object]) -> None:
    """Call a function in every forked child."""
    _in_children.append(function)


def _before() -> None:
    for follower in _followers:
        follower.before_fork()


def _after(in_child: bool) -> None:
    for follower in _followers:
        follower.after_fork(in_child)
    if in_child:
        for function in _in_children:
            function()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before,
        after_in_parent=lambda: _after(False),
        after_in_child=lambda: _after(True),
    )
