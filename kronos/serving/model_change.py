"""What a user does to reindex jobs: start one, resume, activate, roll back, cancel, look."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kronos.errors import NotFoundError
from kronos.repository.jobs import JobOptions
from kronos.repository.memories import Repository
from kronos.types import Failure, Job

if TYPE_CHECKING:
    from kronos.reindex.job import ReindexJob
    from kronos.reindex.run import Work
    from kronos.serving.resolver import ServingResolver
    from kronos.types import Embedder, Space

_FAILURES_SHOWN = 100


@dataclass(frozen=True, slots=True)
class ModelChange:
    """The jobs of one store, as a user sees them."""

    resolver: ServingResolver
    known: Sequence[Embedder]
    """Embedders that are loaded."""

    def resume(
        self, work: Work, *, allow_failed: bool | None, stop: threading.Event | None
    ) -> ReindexJob:
        """Go on with the newest job that is not finished; texts that failed are tried again.

        Raises:
            NotFoundError: there is none.
        """
        job = self._unfinished()
        options = JobOptions(allow_failed=allow_failed)
        return self._job(job.space, options, work, stop)

    def activate(
        self, work: Work, *, allow_failed: bool | None, stop: threading.Event | None
    ) -> ReindexJob:
        """Finish the newest unfinished job, and make its space the active one.

        Raises:
            NotFoundError: there is none.
        """
        job = self._unfinished()
        options = JobOptions(activate=True, allow_failed=allow_failed)
        return self._job(job.space, options, work, stop)

    def rollback(self, work: Work, *, stop: threading.Event | None) -> ReindexJob:
        """Go back to the space that was the active one before.

        Raises:
            NotFoundError: there is none.
        """
        with self.resolver.database.read() as connection:
            space = Repository(connection, self.resolver.clock()).spaces.last_retired()
        if space is None:
            raise NotFoundError(
                "there is no space to roll back to: none was kept (see keep_spaces), or the model "
                "never changed; `kronos reindex --model` makes one anew"
            )
        return self._job(space, JobOptions(activate=True), work, stop)

    def cancel(self) -> Job:
        """End the newest unfinished job; what it made is dropped by the next `compact`.

        Raises:
            NotFoundError: there is none.
        """
        with self.resolver.database.write() as connection:
            jobs = Repository(connection, self.resolver.clock()).jobs
            unfinished = jobs.all(unfinished=True)
            if not unfinished:
                raise _no_job()
            jobs.finish(unfinished[0].id, "cancelled", "cancelled by hand")
            return next(job for job in jobs.all() if job.id == unfinished[0].id)

    def jobs(self) -> list[Job]:
        """All jobs that are remembered, the newest first."""
        with self.resolver.database.read() as connection:
            return Repository(connection, self.resolver.clock()).jobs.all()

    def failures(self) -> list[Failure]:
        """The first texts of each space that cannot be embedded."""
        with self.resolver.database.read() as connection:
            repository = Repository(connection, self.resolver.clock())
            return [
                failure
                for space in repository.spaces.all()
                for failure in repository.pending.failures(space.id, limit=_FAILURES_SHOWN)
            ]

    def _unfinished(self) -> Job:
        with self.resolver.database.read() as connection:
            found = Repository(connection, self.resolver.clock()).jobs.all(unfinished=True)
        if not found:
            raise _no_job()
        return found[0]

    def _job(
        self, space: Space, options: JobOptions, work: Work, stop: threading.Event | None
    ) -> ReindexJob:
        return self.resolver.job_of(
            space,
            lambda: self.resolver.embedder_of(space, self.known),
            options=options,
            work=work,
            stop=stop,
        )


def _no_job() -> NotFoundError:
    return NotFoundError(
        "no reindex is unfinished: `kronos reindex --model` starts one, `kronos reindex status` "
        "shows those that are over"
    )
