"""The upkeep of a store: its models, its vectors, its files, and whether all of it agrees.

`Upkeep` holds the verbs that an operator calls; most of the work is done by the modules that it
joins, and no rule stands here.
"""

from __future__ import annotations

import builtins
import functools
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from kronos.concurrency.steps import Steps
from kronos.db import backup, schema
from kronos.embedding.hashing import HashEmbedder
from kronos.embedding.registry import HASH_MODEL, absolute
from kronos.embedding.service import EmbeddingService
from kronos.errors import (
    InputError,
    ModelLoadError,
    SpaceChangedError,
    StorageError,
    StoreClosedError,
)
from kronos.files import expanded
from kronos.index.snapshot import discard_other_snapshots
from kronos.maintenance import check as checks
from kronos.maintenance.compaction import compact
from kronos.reindex.job import ReindexJob, Work
from kronos.reindex.plan import estimate
from kronos.repository.jobs import JobOptions
from kronos.search.fields import fields_of
from kronos.serving.model_change import ModelChange
from kronos.serving.session import Opened
from kronos.settings import Location, Settings
from kronos.types import (
    CompactReport,
    Failure,
    Job,
    Problem,
    RecoveryReport,
    ReindexPlan,
    ReindexReport,
    Report,
    Space,
    Stats,
    TuneReport,
)
from kronos.validation import check_limit, check_number, check_time

if TYPE_CHECKING:
    from kronos.repository.memories import Repository
    from kronos.serving.serving import Serving
    from kronos.types import Embedder, ProgressCallback, VectorIndex


_THINGS_TO_CHECK = 5
"""SQLite's file, texts, vectors, words, the index."""


class Upkeep(Opened):
    """The verbs of upkeep; `MemoryStore` is the class to use."""

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
        meanwhile. It is a job that other processes may share: whoever calls this with the same
        model joins in. A run that was stopped or killed goes on where it was.

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
        work = self._work(workers, batch_size, rate, max_seconds)
        embedder, alias = self._target(model)
        options = JobOptions(activate=activate, allow_failed=allow_failed, keep_old=keep_old)
        resolver = self._resolver(self._open_database)
        job = resolver.job(embedder, alias=alias, options=options, work=work, stop=stop)
        return self._run(job, progress)

    def _work(
        self,
        workers: int = 1,
        batch_size: int | None = None,
        rate: float | None = None,
        max_seconds: float | None = None,
    ) -> Work:
        for name, value in (("rate", rate), ("max_seconds", max_seconds)):
            if value is not None and check_number(value, field=name) <= 0:
                raise InputError(f"{name} must be a number above 0, not {value!r}", field=name)
        return Work.of(
            self._settings,
            workers=check_limit(workers, field="workers"),
            batch_size=None if batch_size is None else check_limit(batch_size, field="batch_size"),
            rate=rate,
            max_seconds=max_seconds,
        )

    def _run(self, job: ReindexJob, progress: ProgressCallback | None) -> ReindexReport:
        report = job.run(progress)
        serving = self._serving
        with self._reader() as repository:
            moved = not serving.is_current(repository, repository.head())
        if moved:
            self._follow(serving, *job.loaded)
        return report

    def _target(self, model: str | None) -> tuple[Embedder, str | None]:
        serving = self._serving
        if model is not None:
            return self._load(model, strict=True), absolute(model)
        if serving.is_fallback:  # what answers in its place never becomes the active one
            raise _lost(serving.degraded)
        if serving.embedder is None and serving.space.alias is not None:
            return self._kept_model(serving.space, serving.space.alias), serving.space.alias
        return serving.require_embedder("name a model"), serving.space.alias

    def _kept_model(self, space: Space, alias: str) -> Embedder:
        """What a store opened without an embedder would be opened with."""
        service = self._load(alias, strict=False, dim=space.dim)
        if service.fallback_reason and service.fingerprint != space.fingerprint:
            raise _lost(service.fallback_reason)
        return service

    @property
    def _change(self) -> ModelChange:
        at_hand = [self._own, self._serving.embedder]
        known = [embedder for embedder in at_hand if embedder is not None]
        return ModelChange(self._resolver(self._open_database), known)

    def plan_reindex(
        self,
        model: str | None = None,
        *,
        progress: ProgressCallback | None = None,
        stop: threading.Event | None = None,
    ) -> ReindexPlan:
        """Say what `reindex` would do; the model is loaded and tried, and nothing is written.

        Args:
            model: as for `reindex`.
            progress: called after each part of the sample that is embedded.
            stop: set it to stop soon.

        Raises:
            ModelLoadError: the model cannot be had.
            NoEmbedderError: no model is named, and the store has no embedder.
            StoppedError: `stop` was set.
        """
        steps = Steps(progress, stop)
        embedder, _ = self._target(model)
        with self._open_database.stoppable(lambda: steps.is_stopped):
            return estimate(
                self._open_database,
                embedder,
                clock=self._clock,
                patience=self._for_texts,
                steps=steps,
            )

    def resume_reindex(
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
        """Go on with the newest unfinished job, with what was asked of it; see `reindex`.

        Texts that failed are tried again.

        Raises:
            NotFoundError: no job is unfinished.
            ModelLoadError: the job's model cannot be had, or is a program's own embedder.
        """
        work = self._work(workers, batch_size, rate, max_seconds)
        return self._run(self._change.resume(work, allow_failed=allow_failed, stop=stop), progress)

    def activate_reindex(
        self,
        *,
        allow_failed: bool | None = None,
        stop: threading.Event | None = None,
        progress: ProgressCallback | None = None,
    ) -> ReindexReport:
        """Make the space of the newest unfinished job the active one; what it lacks is embedded.

        Args:
            allow_failed: also without the texts that its model cannot embed.
            stop: as for `reindex`.
            progress: as for `reindex`.

        Raises:
            NotFoundError: no job is unfinished.
        """
        job = self._change.activate(self._work(), allow_failed=allow_failed, stop=stop)
        return self._run(job, progress)

    def rollback(
        self, *, stop: threading.Event | None = None, progress: ProgressCallback | None = None
    ) -> ReindexReport:
        """Go back to the space that was the active one before; embeds only what changed since.

        Raises:
            NotFoundError: no retired space was kept.
            ModelLoadError: something changed, and the space's model cannot be had.
        """
        return self._run(self._change.rollback(self._work(), stop=stop), progress)

    def cancel_reindex(self) -> Job:
        """End the newest unfinished job, wherever its workers are; `compact` drops what it made.

        Raises:
            NotFoundError: no job is unfinished.
        """
        return self._change.cancel()

    def jobs(self) -> builtins.list[Job]:
        """The reindex jobs, the newest first; the oldest finished ones are forgotten."""
        return self._change.jobs()

    def failures(self) -> builtins.list[Failure]:
        """Texts that an embedder could not embed, at most 100 a space, and why."""
        return self._change.failures()

    def compact(
        self,
        *,
        keep_spaces: int | None = None,
        forget_before: datetime | None = None,
        progress: ProgressCallback | None = None,
        stop: threading.Event | None = None,
    ) -> CompactReport:
        """Drop what nobody wants any more, and give the free space back to the disk.

        That are retired spaces beyond `keep_spaces`, what cancelled jobs made, what a fallback made
        that serves no longer, memories that have expired, and all that is left of deleted ones,
        their history included: no byte of their texts, words, metadata and vectors stands in the
        store's files then, but in backups that were taken. What living memories were before stays.
        Others may read and write meanwhile.

        Args:
            keep_spaces: so many retired spaces are kept to roll back to; None is the settings'.
            forget_before: a timezone-aware moment: what living memories were until before it is
                forgotten too; None forgets nothing of theirs.
            progress: called after each transaction, of which nobody knows how many there will be.
            stop: set it to stop soon.

        Raises:
            InputError: `keep_spaces` is no number from 0 on, or `forget_before` no moment.
            StoppedError: `stop` was set. What was dropped is gone; the next call does the rest.
        """
        steps = Steps(progress, stop)
        keep = self._settings.keep_spaces
        if keep_spaces is not None:
            keep = check_limit(keep_spaces, field="keep_spaces", least=0)
        return compact(
            self._open_database,
            keep,
            self._serving.replica,
            self.location.index,
            forget_before=check_time(forget_before, field="forget_before"),
            clock=self._clock,
            steps=steps,
        )

    def tune(self, target: float = 0.98, *, stop: threading.Event | None = None) -> TuneReport:
        """Build the index that is due, measure how well it finds, and search as hard as need be.

        The 10 nearest of up to 200 points are looked for by the graph and by an exact scan: how
        many of these the graph finds is the recall. The points lie beside memories, spread over
        all, about as far from them as questions are. Then the store searches with the least effort
        that reaches the target, and so does whoever opens it next: a snapshot keeps it. Processes
        that have it open take it up when they save the index next. Searches and writes go on
        meanwhile. A store that is too small for a graph is exact.

        Args:
            target: the recall@10 that is wanted, above 0 and at most 1.
            stop: set it to stop soon; then nothing is changed.

        Returns:
            What was measured. A target that is out of reach is no error: the store then searches
            with the greatest effort that was tried; see `TuneReport.reached`.

        Raises:
            InputError: the target is out of its range.
            StoreClosedError: the store is not open, or was closed meanwhile.
            StoppedError: `stop` was set.
        """
        wanted = check_number(target, field="target")
        if not 0 < wanted <= 1:
            raise InputError(
                f"target must be a recall above 0 and at most 1, not {target!r}", field="target"
            )
        steps, interrupted = Steps(None, stop), threading.Event()
        serving, closing = self._caught_up(), self._snapshots.stop_event

        def is_over() -> bool:
            return steps.is_stopped or interrupted.is_set() or closing.is_set()

        # Not in the caller's thread: a build leaves it with fewer of FAISS's threads.
        with ThreadPoolExecutor(1, thread_name_prefix="kronos-tune") as thread:
            work = thread.submit(self._measure, serving, wanted, is_over)
            try:
                report = work.result()
            except BaseException:  # Ctrl-C
                interrupted.set()
                raise
        if report is None:
            steps.go_on()
            raise StoreClosedError
        return report

    def _caught_up(self) -> Serving:
        """Who answers, the index having taken up all that is committed."""
        with self._current_index() as (serving, repository):
            serving.replica.catch_up(repository, repository.head().seq)
            return serving

    @contextmanager
    def _current_index(self) -> Iterator[tuple[Serving, Repository]]:
        """Who answers now, whom another process may have changed; its index is the caller's."""
        while True:
            serving = self._serving
            with serving.replica.saving, serving.replica.lock, self._reader() as repository:
                if serving.is_current(repository, repository.head()):
                    yield serving, repository
                    return
            self._follow(serving)

    @staticmethod
    def _measure(serving: Serving, target: float, stopped: Callable[[], bool]) -> TuneReport | None:
        """What was measured; None: it was stopped."""
        replica = serving.replica
        replica.build(stopped)
        tuned = replica.tune(target, stopped)
        if stopped():
            return None
        if replica.save_is_due:
            replica.save()
        with replica.lock:
            return TuneReport(
                vectors=len(replica),
                index_kind=replica.state().kind,
                target=target,
                recall=1.0 if tuned is None else tuned.recall,
                effort=None if tuned is None else tuned.effort,
                saved=tuned is None or replica.is_saved_as_tuned,
            )

    def stats(self) -> Stats:
        """Say what the store holds, and who answers; no search waits for it."""
        serving = self._serving
        with serving.replica.lock:
            index, indexed = serving.replica.state(), len(serving.replica)
        with self._reader() as repository:
            return Stats(
                store_id=repository.store_id(),
                path=str(self.location.database),
                memories=repository.count(),
                seq=repository.head().seq,
                embedder=None if serving.embedder is None else serving.space.model,
                degraded=serving.degraded,
                dim=serving.space.dim,
                max_tokens=getattr(serving.embedder, "max_tokens", None),
                spaces=tuple(repository.spaces.stats()),
                jobs=tuple(repository.jobs.all(unfinished=True)),
                index_size=indexed,
                index_kind=index.kind,
                database_bytes=self._open_database.size_bytes(),
                schema=schema.current(self._open_database) or "",
                versions=repository.history.count(),
                tokenizer=repository.fulltext.tokenizer,
                indexed_fields=tuple(fields_of(repository).all()),
                index_effort=index.effort,
                index_recall=index.recall,
                engine=_engine_of(serving.embedder),
            )

    def check(
        self,
        *,
        repair: bool = False,
        progress: ProgressCallback | None = None,
        stop: threading.Event | None = None,
    ) -> Report:
        """Compare everything that must agree; others read and write meanwhile.

        Args:
            repair: mend what can be derived from the texts: the index, vectors that do not fit, the
                words, files that nobody needs and, after a backup, the indexes of SQLite.
            progress: called after each of the things that are compared.
            stop: set it to stop soon, amid a long statement too.

        Returns:
            What is wrong, in words, and what of it was repaired; and how well the index finds.

        Raises:
            StoppedError: `stop` was set. What was repaired before is repaired.
        """
        steps = Steps(progress, stop, total=_THINGS_TO_CHECK)
        with self._open_database.stoppable(lambda: steps.is_stopped):
            return self._check(repair, steps)

    def _check(self, repair: bool, steps: Steps) -> Report:
        database, location = self._open_database, self.location
        database.require_in_place()
        advice = [*checks.surroundings(database, location.database.parent)]
        problems = [*checks.damaged_database(database, self._backup_beside, repair=repair)]
        steps.take()
        problems += checks.altered_texts(database, self._clock)
        steps.take()
        if any(problem.kind == "database" and not problem.repaired for problem in problems):
            return Report(tuple(problems), tuple(advice))  # no row can be believed
        problems += checks.wrong_schema(database)
        writing = self._writer if repair else None
        problems += checks.misfit_vectors(self._reader, writing)
        problems += checks.wrong_counts(self._reader, writing)
        problems += checks.missing_field_indexes(self._reader, writing)
        problems += checks.misread_texts(self._reader, writing)
        with self._reader() as repository:
            problems += checks.pending_memories(repository)
            if repair:
                checks.remove_orphans(location.database, location.index, repository)
            advice += checks.orphaned_files(location.database, location.index, repository)
        steps.take()
        try:
            problems += checks.wrong_words(database, writing)
        except StorageError as exc:
            advice.append(Problem("words", f"the words could not be compared: {exc}"))
        steps.take()
        serving, difference = self._compared_index(repair=repair)
        problems += difference
        with serving.replica.lock:
            index = serving.replica.state()
        steps.take()
        return Report(tuple(problems), tuple(advice), index.kind, index.effort, index.recall)

    def _compared_index(self, *, repair: bool) -> tuple[Serving, builtins.list[Problem]]:
        """Who answers, and where its index and the rows do not agree."""
        while True:
            serving = self._serving
            current_index = functools.partial(self._index_of, serving)
            try:
                return serving, [*checks.wrong_index(current_index, serving.replica, repair=repair)]
            except SpaceChangedError:
                self._follow(serving)

    @contextmanager
    def _index_of(self, serving: Serving) -> Iterator[tuple[VectorIndex, Repository]]:
        """The index of who serves, and the rows at the same moment; searches wait meanwhile.

        Raises:
            SpaceChangedError: another space serves now.
        """
        with serving.replica.lock, self._reader() as repository:
            head = repository.head()
            if not serving.is_current(repository, head):
                raise SpaceChangedError
            yield serving.replica.catch_up(repository, head.seq), repository

    def _backup_beside(self) -> Path:
        return self.backup(backup.beside(self.location.database, "before-repair"))

    def backup(
        self,
        path: str | os.PathLike[str],
        *,
        progress: ProgressCallback | None = None,
        stop: threading.Event | None = None,
    ) -> Path:
        """Copy the database, as it is committed now, to a file, while others read and write.

        Args:
            path: a file that does not exist yet, or a folder, in which it gets a name with the
                time.
            progress: called now and then with the pages that are copied.
            stop: set it to stop soon.

        Returns:
            The file. It holds all of the store: texts, metadata, vectors, jobs.

        Raises:
            InputError: the file exists, or its folder does not.
            StorageError: the copy could not be written; no part of it is left.
            StoppedError: `stop` was set; likewise.
        """
        target = expanded(path).absolute()
        if target.is_dir():
            target = backup.beside(target / self.location.database.name, "backup")
        if target.exists() or not target.parent.is_dir():
            why = "exists" if target.exists() else "lies in no folder that exists"
            raise InputError(f"{target} {why}: name a new file for the backup", field="path")
        self._open_database.backup(target, Steps(progress, stop))
        return target

    @staticmethod
    def restore(
        path: str | os.PathLike[str],
        storage_path: str | os.PathLike[str],
        *,
        settings: Settings | None = None,
    ) -> Path | None:
        """Put a backup in the place of a store's database; open stores follow at their next call.

        Args:
            path: what `backup` wrote.
            storage_path: the store, a folder or a SQLAlchemy URL; it need not exist.
            settings: how long to wait for writers; None reads them from the environment.

        Returns:
            Where the database from before is kept; None when there was none.

        Raises:
            InputError: there is no backup at `path`.
            CorruptStoreError: the backup is damaged. After each error the store is as it was.
            StorageError: the store is busy, or the disk failed.
        """
        location = Location.of(storage_path)
        source = expanded(path).absolute()
        aside = backup.restore(source, location, settings or Settings.from_env())
        discard_other_snapshots(location.index, ())
        return aside

    @staticmethod
    def recover(
        storage_path: str | os.PathLike[str], *, settings: Settings | None = None
    ) -> RecoveryReport:
        """Make a new database of what can still be read of a damaged one, which is kept aside.

        No process may have the store open. Vectors that cannot be read are made anew when the store
        is opened.

        Args:
            storage_path: the store, a folder or a SQLAlchemy URL.
            settings: None reads them from the environment.

        Raises:
            InputError: there is no database.
            CorruptStoreError: nothing can be read of it: restore a backup.
        """
        location = Location.of(storage_path)
        report = backup.recover(location, settings or Settings.from_env())
        discard_other_snapshots(location.index, ())
        return report


def _engine_of(embedder: Embedder | None) -> str | None:
    """What computes the vectors, where that is Kronos's to say."""
    if isinstance(embedder, EmbeddingService):
        return embedder.engine
    return HASH_MODEL if isinstance(embedder, HashEmbedder) else None


def _lost(reason: str | None) -> ModelLoadError:
    return ModelLoadError(
        "the store's own model cannot be used, so nothing can be embedded with it: "
        f"{reason}. Name another model to change to"
    )
