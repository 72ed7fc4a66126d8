"""Reindexing: jobs that bring the store's space, or another model's, up to date."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from kronos.embedding.registry import absolute_model
from kronos.errors import InputError, ModelLoadError
from kronos.reindex.job import ReindexJob
from kronos.reindex.run import Work
from kronos.repository.jobs import JobOptions
from kronos.types import Embedder, ProgressCallback, ReindexReport, Space
from kronos.validation import check_limit, check_number

if TYPE_CHECKING:
    from kronos.serving.session import Session


class Reindexing:
    """Runs reindex jobs.

    Args:
        session: the open store.
    """

    def __init__(self, session: Session) -> None:
        self._session = session

    def reindex(
        self,
        model: str | None = None,
        *,
        workers: int = 1,
        batch_size: int | None = None,
        rate: float | None = None,
        max_seconds: float | None = None,
        activate: bool = True,
        allow_failed: bool = False,
        keep_old: bool = False,
        stop: threading.Event | None = None,
        progress: ProgressCallback | None = None,
    ) -> ReindexReport:
        """Embed what is pending, or change the embedding model.

        The new vectors are made beside the old ones in committed batches; searches and writes go on
        meanwhile. It is a job that other processes may share: a call with the same model joins
        in. A run that was stopped or killed goes on where it was.

        Args:
            model: a preset, a model's name, a folder or "hash"; None keeps the model that the store
                has.
            workers: threads that share the model.
            batch_size: texts that a worker has in hand, at most, half of them embedded while the
                others are stored; None is twice the settings'.
            rate: texts a second, at most, of this call's workers together.
            max_seconds: take up no more texts after so long; the job stays open.
            activate: make the new space the active one at the end.
            allow_failed: do so even if there are texts that the model cannot embed.
            keep_old: drop no retired space after the switch.
            stop: set it to stop soon; the job stays open.
            progress: called after every committed batch.

        Raises:
            ModelLoadError: the model cannot be had; nothing was changed.
            NoEmbedderError: no model is named, and the store's vectors were handed in.
            EmbeddingError: the embedder fails on any text; what was embedded before is kept.
            InputError: a number is out of its range.
        """
        work = self.work(workers, batch_size, rate, max_seconds)
        options = JobOptions(activate=activate, allow_failed=allow_failed, keep_old=keep_old)
        embedder, alias = self.target(model)
        job = self._session.resolver.job(
            embedder, alias=alias, options=options, work=work, stop=stop
        )
        return self.run(job, progress)

    def work(
        self,
        workers: int = 1,
        batch_size: int | None = None,
        rate: float | None = None,
        max_seconds: float | None = None,
    ) -> Work:
        """Check how a job is to be worked on; arguments as for `MemoryStore.reindex`."""
        for name, value in (("rate", rate), ("max_seconds", max_seconds)):
            if value is not None and check_number(value, field=name) <= 0:
                raise InputError(f"{name} must be a number above 0, not {value!r}", field=name)
        return Work.of(
            self._session.settings,
            workers=check_limit(workers, field="workers"),
            batch_size=None if batch_size is None else check_limit(batch_size, field="batch_size"),
            rate=rate,
            max_seconds=max_seconds,
        )

    def run(self, job: ReindexJob, progress: ProgressCallback | None) -> ReindexReport:
        """Run a job, and follow where it leads."""
        report = job.run(progress)
        serving = self._session.serving
        with self._session.reader() as repository:
            moved = not serving.is_current(repository, repository.head())
        if moved:
            self._session.follow(serving, *job.loaded)
        return report

    def target(self, model: str | None) -> tuple[Embedder, str | None]:
        """The embedder of a model, or the store's own, and the name it is had by."""
        serving = self._session.serving
        if model is not None:
            return self._session.embedders.load(model, strict=True), absolute_model(model)
        if serving.is_fallback:  # a fallback's space never becomes the active one
            raise _lost(serving.degraded)
        if serving.embedder is None and serving.space.alias is not None:
            return self._kept_model(serving.space, serving.space.alias), serving.space.alias
        return serving.require_embedder("name a model"), serving.space.alias

    def _kept_model(self, space: Space, alias: str) -> Embedder:
        """What a store opened without an embedder would be opened with."""
        service = self._session.embedders.load(alias, strict=False, dim=space.dim)
        if service.fallback_reason and service.fingerprint != space.fingerprint:
            raise _lost(service.fallback_reason)
        return service


def _lost(reason: str | None) -> ModelLoadError:
    return ModelLoadError(
        "the store's own model cannot be used, so nothing can be embedded with it: "
        f"{reason}. Name another model to change to"
    )
