"""Models: changing the embedding model, the jobs that do it, and the spaces that they make.

The new vectors are made beside the old ones; searches and writes go on meanwhile.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from kronos.concurrency.progress import Steps
from kronos.reindex.plan import estimate
from kronos.serving.model_change import ModelChange
from kronos.types import Failure, Job, ProgressCallback, ReindexPlan, ReindexReport, SpaceStats

if TYPE_CHECKING:
    from kronos.serving.session import Session
    from kronos.store.reindexing import Reindexing


class Models:
    """The models of a store: `store.models`.

    Args:
        session: the open store.
        reindexing: runs its jobs.
    """

    def __init__(self, session: Session, reindexing: Reindexing) -> None:
        self._session = session
        self._reindexing = reindexing

    def plan(
        self,
        model: str | None = None,
        *,
        progress: ProgressCallback | None = None,
        stop: threading.Event | None = None,
    ) -> ReindexPlan:
        """Say what `reindex` would do: the model is loaded and tried, and nothing is written.

        Args:
            model: as for `MemoryStore.reindex`.
            progress: called after each part of the sample that is embedded.
            stop: set it to stop soon.

        Raises:
            ModelLoadError: the model cannot be had.
            NoEmbedderError: no model is named, and the store has no embedder.
            StoppedError: `stop` was set.
        """
        steps = Steps(progress, stop)
        embedder, _ = self._reindexing.target(model)
        with self._session.database.stoppable(lambda: steps.is_stopped):
            return estimate(
                self._session.database,
                embedder,
                clock=self._session.clock,
                retry=self._session.for_texts,
                steps=steps,
            )

    def resume(
        self,
        *,
        workers: int = 1,
        batch_size: int | None = None,
        rate: float | None = None,
        max_seconds: float | None = None,
        allow_failed: bool | None = None,
        stop: threading.Event | None = None,
        progress: ProgressCallback | None = None,
    ) -> ReindexReport:
        """Go on with the newest unfinished job, as it was asked for.

        Texts that failed are tried again. Arguments are as for `MemoryStore.reindex`.

        Raises:
            NotFoundError: no job is unfinished.
            ModelLoadError: the job's model cannot be had, or is a program's own embedder.
        """
        work = self._reindexing.work(workers, batch_size, rate, max_seconds)
        job = self._change.resume(work, allow_failed=allow_failed, stop=stop)
        return self._reindexing.run(job, progress)

    def activate(
        self,
        *,
        allow_failed: bool | None = None,
        stop: threading.Event | None = None,
        progress: ProgressCallback | None = None,
    ) -> ReindexReport:
        """Make the space of the newest unfinished job the active one, and embed what it lacks.

        Args:
            allow_failed: activate it even if its model cannot embed some texts.
            stop: as for `MemoryStore.reindex`.
            progress: as for `MemoryStore.reindex`.

        Raises:
            NotFoundError: no job is unfinished.
        """
        job = self._change.activate(self._reindexing.work(), allow_failed=allow_failed, stop=stop)
        return self._reindexing.run(job, progress)

    def rollback(
        self, *, stop: threading.Event | None = None, progress: ProgressCallback | None = None
    ) -> ReindexReport:
        """Go back to the space that was the active one before; embeds only what changed since.

        Raises:
            NotFoundError: no retired space was kept.
            ModelLoadError: something changed, and the space's model cannot be had.
        """
        job = self._change.rollback(self._reindexing.work(), stop=stop)
        return self._reindexing.run(job, progress)

    def cancel(self) -> Job:
        """End the newest unfinished job, wherever its workers are; `compact` drops what it made.

        Raises:
            NotFoundError: no job is unfinished.
        """
        return self._change.cancel()

    def jobs(self) -> list[Job]:
        """The reindex jobs, the newest first; the oldest finished ones are forgotten."""
        return self._change.jobs()

    def failures(self) -> list[Failure]:
        """Texts that an embedder could not embed, at most 100 a space, and why."""
        return self._change.failures()

    def spaces(self) -> list[SpaceStats]:
        """The spaces, the oldest first, and how far each has come."""
        with self._session.reader() as repository:
            return repository.pending.stats()

    @property
    def _change(self) -> ModelChange:
        at_hand = [self._session.own, self._session.serving.embedder]
        known = [embedder for embedder in at_hand if embedder is not None]
        return ModelChange(self._session.resolver, known)
