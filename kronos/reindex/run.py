"""One process's run of a job: what its workers share.

`JobRun` holds the job's rows, the embedder, the progress callback, and whether to stop.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kronos.errors import KronosError
from kronos.reindex.pacing import LONGEST_PAUSE_S, RateLimiter, StoppableSleep
from kronos.reindex.pending import repository_over, store_embedded
from kronos.repository.jobs import CANCELLED, Advance, Position
from kronos.types import Progress

if TYPE_CHECKING:
    from datetime import datetime

    from kronos.db.database import Database
    from kronos.embedding.embedder_calls import Embedded
    from kronos.embedding.retry import RetryPolicy
    from kronos.repository.memories import Repository
    from kronos.repository.pending import PendingText
    from kronos.settings import Settings
    from kronos.types import Embedder, ProgressCallback, Space

_LOCKED_S = 0.5
_LOCKED_SHARE = 0.25
"""The default for `Work.locked_s` is at most this share of the busy timeout."""


@dataclass(frozen=True, slots=True)
class Work:
    """How this process works on a job."""

    workers: int = 1
    """Threads; they share the embedder."""
    batch_size: int = 2000
    """Texts per worker that are embedded and not yet stored, at most. A kill loses no more."""
    rate: float | None = None
    """Texts per second of all workers of this process, at most."""
    max_seconds: float | None = None
    """Start on no more texts after this time."""
    lease_s: float = 60.0
    """How long a worker keeps its claim on texts after its last sign of life."""
    keep_spaces: int = 1
    """Retired spaces to keep after a switch."""
    locked_s: float = _LOCKED_S
    """How long the last texts may be embedded while other writers wait."""

    @classmethod
    def of(cls, settings: Settings, **options: Any) -> Work:
        """The settings' defaults, overridden by the options that are not None."""
        given = {name: value for name, value in options.items() if value is not None}
        defaults = {
            "batch_size": 2 * settings.batch_size,  # one half is embedded, the other one stored
            "lease_s": settings.lease_s,
            "keep_spaces": settings.keep_spaces,
            "locked_s": min(_LOCKED_S, _LOCKED_SHARE * settings.busy_timeout_s),
        }
        return cls(**{**defaults, **given})


class JobRun:
    """What the workers of one process share.

    Args:
        database: where the job's rows are.
        job_id: the job.
        space: the space to fill.
        embedder: returns the space's embedder; called when there is something to embed.
        work: how to work.
        clock: the time, UTC.
        retry: with an embedder that fails temporarily.
        stop: set it to stop the job soon; the job can be resumed.
    """

    def __init__(
        self,
        database: Database,
        job_id: int,
        space: Space,
        embedder: Callable[[], Embedder],
        work: Work,
        *,
        clock: Callable[[], datetime],
        retry: RetryPolicy,
        stop: threading.Event | None,
    ) -> None:
        self.database = database
        self.job_id = job_id
        self.space = space
        self.work = work
        self.clock = clock
        self.embedded = 0
        """Texts embedded so far by this process."""
        self.progress: ProgressCallback | None = None
        self.loaded: list[Embedder] = []
        """The embedder, once it is loaded."""
        self.limiter = RateLimiter(work.rate, lambda: self.stopping, self.sleep)
        self._source = embedder
        self._loading = threading.Lock()
        self._retry = retry
        self._has_note = False
        """The job's row holds an error or a wait that is over with the next stored batch."""
        self._stop = stop or threading.Event()
        self._halt = threading.Event()
        self._started = time.monotonic()
        self._reporting = threading.Lock()

    # -- Stopping -------------------------------------------------------------------------------

    @property
    def seconds(self) -> float:
        """Seconds since the run began."""
        return time.monotonic() - self._started

    @property
    def stopping(self) -> bool:
        """Whether to start on no more texts."""
        limit = self.work.max_seconds
        late = limit is not None and self.seconds >= limit
        return late or self._stop.is_set() or self._halt.is_set()

    def halt(self) -> None:
        """Stop all workers of this process."""
        self._halt.set()

    def sleep(self, seconds: float) -> None:
        """Sleep, at most for a short pause, or until the caller asks the job to stop."""
        self._stop.wait(min(seconds, LONGEST_PAUSE_S))

    # -- The embedder ---------------------------------------------------------------------------

    def embedder(self) -> Embedder:
        """The space's embedder, loaded once for all workers."""
        with self._loading:
            if not self.loaded:
                self.loaded.append(self._source())
            return self.loaded[0]

    def retry_policy(self) -> tuple[RetryPolicy, StoppableSleep]:
        """How to wait for an embedder that fails temporarily; the job's row says so meanwhile."""
        sleep = StoppableSleep(lambda: self.stopping, self._retry.sleep)
        return self._retry.with_sleep(sleep, self.note), sleep

    # -- The job's rows -------------------------------------------------------------------------

    def reading(self) -> AbstractContextManager[Repository]:
        """Begin a read transaction."""
        return repository_over(self.database.read(), self.clock)

    def writing(self) -> AbstractContextManager[Repository]:
        """Begin a write transaction."""
        return repository_over(self.database.write(), self.clock)

    def position(self, repository: Repository) -> Position:
        """How far the job has come; a job whose space is gone is cancelled."""
        # A restored backup of another store may have another job with the same id.
        if not repository.spaces.has(self.space):
            return CANCELLED
        return repository.jobs.position(self.job_id)

    def note(self, text: str) -> None:
        """Record in the job's row what it waits for, or what stopped it."""
        with suppress(KronosError), self.writing() as repository:
            if self.position(repository).state == "open":
                self._has_note = True  # in the transaction, or `store` may clear it too early
                repository.jobs.note_error(self.job_id, text)

    def store(
        self, repository: Repository, texts: Sequence[PendingText], embedded: Embedded
    ) -> Advance:
        """Store the outcome for some texts, in a write transaction."""
        if self._has_note:
            self._has_note = False
            repository.jobs.note_error(self.job_id, None)
        stored = store_embedded(repository.pending, self.space, texts, embedded)
        return repository.jobs.advance(self.job_id, done=stored, embedded=len(embedded.positions))

    def report(self, embedded: int, advance: Advance) -> None:
        """Report progress after a commit."""
        with self._reporting:
            self.embedded += embedded
            if self.progress is not None:
                self.progress(Progress(advance.done, advance.total))
