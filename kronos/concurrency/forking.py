"""Fork safety: a forked child finds free locks and no half-finished changes.

Only the thread that forks lives on in the child. A lock that another thread held would stay locked
there forever, so locks are replaced in the child. A fork also waits until no thread is inside a
`Gate`, so the child never sees a change that was only half made.
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

_GATE_TIMEOUT_S = 30.0


class ForkAware(Protocol):
    """An object that `notify_of_forks` notifies; it is not kept alive for that."""

    def before_fork(self) -> None:
        """Come to rest."""

    def after_fork(self, in_child: bool) -> None:
        """Resume, in the parent or in the child."""


class Lock:
    """A lock that is free in a forked child.

    Args:
        make: `threading.Lock` or `threading.RLock`.
    """

    def __init__(self, make: Callable[[], Any] = threading.Lock) -> None:
        self._make = make
        self._lock = make()
        notify_of_forks(self)

    def __enter__(self) -> Lock:
        self._lock.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    @contextmanager
    def hold_within(self, timeout_s: float) -> Iterator[bool]:
        """Hold the lock, or go on without it after `timeout_s` seconds: whether it is held."""
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
    """Threads pass through it freely; a fork waits until none is inside."""

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
            # Not forever: a child that may fail is better than a parent that hangs.
            self._changed.wait_for(lambda: not self._inside.keys() - {thread}, _GATE_TIMEOUT_S)

    def reopen(self) -> None:
        """Let threads in again."""
        with self._changed:
            self._forking = None
            self._changed.notify_all()


class WeakList(Generic[T]):
    """Objects in no order that are not kept alive. Threads may add while others iterate.

    A `WeakSet` cannot do this: it iterates in Python code, which fails when another thread adds to
    the set. Adding to a plain set, discarding from it and copying it are one step each.
    """

    def __init__(self) -> None:
        self._references: set[weakref.ref[T]] = set()

    def add(self, member: T) -> None:
        """Add an object."""
        self._references.add(weakref.ref(member, self._references.discard))

    def __iter__(self) -> Iterator[T]:
        """The members when the iteration began that are still alive."""
        for reference in [*self._references]:
            if (member := reference()) is not None:
                yield member


_followers: WeakList[ForkAware] = WeakList()
_child_callbacks: list[Callable[[], object]] = []


def notify_of_forks(follower: ForkAware) -> None:
    """Notify an object of forks for as long as it lives."""
    _followers.add(follower)


def keep_forever(thing: object) -> None:
    """Never free an object.

    Freeing it in a child may wait for the parent's threads, or free what belongs to the parent.
    """
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


def call_in_children(function: Callable[[], object]) -> None:
    """Call a function in every forked child."""
    _child_callbacks.append(function)


def _before() -> None:
    for follower in _followers:
        follower.before_fork()


def _after(in_child: bool) -> None:
    for follower in _followers:
        follower.after_fork(in_child)
    if in_child:
        for function in _child_callbacks:
            function()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before,
        after_in_parent=lambda: _after(False),
        after_in_child=lambda: _after(True),
    )
