"""A reindex job on a thread of its own, while a store serves."""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING

from kronos.errors import KronosError

if TYPE_CHECKING:
    from kronos.reindex import ReindexJob

logger = logging.getLogger("kronos")

_LAST_WAIT_S = 30.0


class Background:
    """At most one job at a time."""

    def __init__(self) -> None:
        self.stop_event = threading.Event()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    @property
    def busy(self) -> bool:
        """Whether a job is running."""
        return self._thread is not None and self._thread.is_alive()

    def start(self, make: Callable[[threading.Event], ReindexJob]) -> None:
        """Run a job, unless one is running.

        Args:
            make: gives the job, which is to stop when the event is set.
        """
        with self._lock:
            if not self.busy and not self.stop_event.is_set():
                job = make(self.stop_event)
                # A daemon, for a program that ends without closing its store: the job stays open.
                self._thread = threading.Thread(
                    target=_run, args=[job], name="kronos-background", daemon=True
                )
                self._thread.start()
                weakref.finalize(self, _stop, self.stop_event, self._thread)

    def wait(self, timeout_s: float | None = None) -> None:
        """Wait until no job is running."""
        if (thread := self._thread) is not None:
            thread.join(timeout_s)

    def stop(self) -> None:
        """Let the job finish its batch; it can be resumed."""
        self.stop_event.set()
        self.wait()


def _run(job: ReindexJob) -> None:
    try:
        job.run()
    except KronosError as exc:  # its row says so too
        logger.warning("the reindex job %s stopped: %s", job.id, exc)
    except RuntimeError as exc:  # the interpreter ends, and starts no more threads
        logger.debug("the reindex job %s stopped: %s", job.id, exc)


def _stop(event: threading.Event, thread: threading.Thread) -> None:
    """What happens when nobody called `stop`: at the latest when the interpreter ends."""
    event.set()
    thread.join(_LAST_WAIT_S)
