"""Work on a thread of its own, while a store serves: reindex jobs, snapshots."""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable

from kronos.errors import KronosError
from kronos.forking import Lock, follow_forks

logger = logging.getLogger("kronos")

_LAST_WAIT_S = 30.0


class Background:
    """At most one task at a time.

    Args:
        name: the thread's, for people.
    """

    def __init__(self, name: str) -> None:
        self.name = f"kronos-{name}"
        self.stop_event = threading.Event()
        self._thread: threading.Thread | None = None
        self._lock = Lock()
        follow_forks(self)

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
                    target=_run, args=[self.name, task], name=self.name, daemon=True
                )
                self._thread.start()
                weakref.finalize(self, _stop, self.stop_event, self._thread)

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
        """Let the task come to its next stop."""
        self.stop_event.set()
        self.wait()


def _run(name: str, task: Callable[[], object]) -> None:
    try:
        task()
    except KronosError as exc:  # a job's row says so too
        logger.warning("%s stopped: %s", name, exc)
    except RuntimeError as exc:  # the interpreter ends, and starts no more threads
        logger.debug("%s stopped: %s", name, exc)


def _stop(event: threading.Event, thread: threading.Thread) -> None:
    """What happens when nobody called `stop`: at the latest when the interpreter ends."""
    event.set()
    thread.join(_LAST_WAIT_S)  # returns at once in a forked child, where the thread is not
