"""Background work on its own thread while a store serves: reindex jobs, snapshots."""

from __future__ import annotations

import contextvars
import functools
import logging
import threading
import time
import weakref
from collections.abc import Callable

from kronos.concurrency.call_context import run_without_callers
from kronos.concurrency.forking import Lock, notify_of_forks
from kronos.concurrency.threads import SHUTDOWN_TIMEOUT_S, wait_at_exit
from kronos.errors import KronosError

logger = logging.getLogger("kronos")


class Background:
    """Runs at most one task at a time.

    A task runs in the context (the context variables) of the code that created this object, not of
    the call that happens to start the task.

    Args:
        name: a name for the thread, for people.
    """

    def __init__(self, name: str) -> None:
        self.name = f"kronos-{name}"
        self.stop_event = threading.Event()
        self._thread: threading.Thread | None = None
        self._lock = Lock()
        self._context = contextvars.copy_context()
        # A task holds no reference to this object. When the object is dropped, its task stops.
        weakref.finalize(self, self.stop_event.set).atexit = False
        notify_of_forks(self)
        wait_at_exit(self)

    @property
    def busy(self) -> bool:
        """Whether a task is running."""
        return self._thread is not None and self._thread.is_alive()

    def start(self, make: Callable[[threading.Event], Callable[[], object]]) -> None:
        """Run a task, unless one is running or the object was stopped.

        Args:
            make: takes the stop event and returns the task, which stops when the event is set.
        """
        with self._lock:
            if not self.busy and not self.stop_event.is_set():
                task = make(self.stop_event)
                # A daemon thread, for programs that end without closing their store.
                self._thread = threading.Thread(
                    target=self._context.copy().run,
                    args=[run_without_callers, functools.partial(_run, self.name, task)],
                    name=self.name,
                    daemon=True,
                )
                self._thread.start()

    def before_fork(self) -> None:
        """Nothing to do."""

    def after_fork(self, in_child: bool) -> None:
        """Forget the thread in the child, where only the forking thread lives on."""
        if in_child:
            self._thread = None

    def wait(self, timeout_s: float | None = None) -> None:
        """Wait until no task is running, at most `timeout_s` seconds."""
        if (thread := self._thread) is not None:
            thread.join(timeout_s)

    def stop(self) -> None:
        """Tell the task to stop, and wait for it at most `SHUTDOWN_TIMEOUT_S` seconds.

        A task that does not stop in time, for example inside an embedder, is abandoned.
        """
        self.end(time.monotonic() + SHUTDOWN_TIMEOUT_S)

    def end(self, until: float) -> None:
        """Tell the task to stop, and wait for it until `until`, a time of `time.monotonic`."""
        self.stop_event.set()
        self.wait(max(0.0, until - time.monotonic()))


def _run(name: str, task: Callable[[], object]) -> None:
    try:
        task()
    except KronosError as exc:  # a job's row records the error too
        logger.warning("%s stopped: %s", name, exc)
    except RuntimeError as exc:  # the interpreter is shutting down and starts no more threads
        logger.debug("%s stopped: %s", name, exc)
