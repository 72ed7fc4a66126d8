"""Work on a thread of its own, while a store serves: reindex jobs, snapshots."""

from __future__ import annotations

import contextvars
import functools
import logging
import threading
import time
import weakref
from collections.abc import Callable

from kronos.concurrency.forking import Lock, follow_forks
from kronos.concurrency.surroundings import run_unattended
from kronos.concurrency.threads import LONGEST_WAIT_S, wait_at_exit
from kronos.errors import KronosError

logger = logging.getLogger("kronos")


class Background:
    """At most one task at a time.

    What a task sees of its surroundings (context variables) is what whoever made this object saw,
    and not what the call saw that happened to start the task.

    Args:
        name: the thread's, for people.
    """

    def __init__(self, name: str) -> None:
        self.name = f"kronos-{name}"
        self.stop_event = threading.Event()
        self._thread: threading.Thread | None = None
        self._lock = Lock()
        self._context = contextvars.copy_context()
        # A task does not hold this object: one that is forgotten lets its task come to an end.
        weakref.finalize(self, self.stop_event.set).atexit = False
        follow_forks(self)
        wait_at_exit(self)

    @property
    def busy(self) -> bool:
        """Whether a task is running."""
        return self._thread is not None and self._thread.is_alive()

    def start(self, make: Callable[[threading.Event], Callable[[], object]]) -> None:
        """Run a task, unless one is running.

        Args:
            make: gives the task, which is to stop when the event is set.
        """
        with self._lock:
            if not self.busy and not self.stop_event.is_set():
                task = make(self.stop_event)
                # A daemon, for a program that ends without closing its store.
                self._thread = threading.Thread(
                    target=self._context.copy().run,
                    args=[run_unattended, functools.partial(_run, self.name, task)],
                    name=self.name,
                    daemon=True,
                )
                self._thread.start()

    def before_fork(self) -> None:
        """Nothing to do."""

    def after_fork(self, in_child: bool) -> None:
        """A child has no thread but the one that forked."""
        if in_child:
            self._thread = None

    def wait(self, timeout_s: float | None = None) -> None:
        """Wait until no task is running."""
        if (thread := self._thread) is not None:
            thread.join(timeout_s)

    def stop(self) -> None:
        """Let the task come to its next stop, and wait `LONGEST_WAIT_S` for that at most.

        One that does not come to it, stuck in an embedder, is left to itself.
        """
        self.end(time.monotonic() + LONGEST_WAIT_S)

    def end(self, until: float) -> None:
        """Stop, and wait until a moment of `time.monotonic` at most."""
        self.stop_event.set()
        self.wait(max(0.0, until - time.monotonic()))


def _run(name: str, task: Callable[[], object]) -> None:
    try:
        task()
    except KronosError as exc:  # a job's row says so too
        logger.warning("%s stopped: %s", name, exc)
    except RuntimeError as exc:  # the interpreter ends, and starts no more threads
        logger.debug("%s stopped: %s", name, exc)
