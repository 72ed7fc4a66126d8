"""Finds the serving space: when a store opens, and when the active space has changed.

A fallback never replaces a real model: when the model that made the store cannot be loaded, a hash
space is built beside the real one and serves. The real one stays active, and its new texts wait as
pending.
"""

from __future__ import annotations

import functools
import threading
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from kronos.concurrency.coalescing import Coalescer
from kronos.embedding.embedder_calls import embed_queries
from kronos.embedding.hashing import HashEmbedder
from kronos.embedding.registry import HASH_MODEL
from kronos.embedding.retry import RetryPolicy
from kronos.embedding.service import EmbeddingService
from kronos.errors import (
    EmbedderMismatchError,
    KronosWarning,
    ModelLoadError,
    NotFoundError,
    ReadOnlyStoreError,
    ReindexError,
    SpaceChangedError,
    TransientEmbeddingError,
)
from kronos.following.replica import Replica
from kronos.following.snapshots import SnapshotPolicy
from kronos.index.policy import IndexPolicy
from kronos.index.snapshot import newest_seq
from kronos.reindex.job import ReindexJob
from kronos.reindex.pending import catch_up
from kronos.reindex.run import JobRun, Work
from kronos.repository.jobs import JobOptions
from kronos.repository.memories import Repository

if TYPE_CHECKING:
    from datetime import datetime

    from kronos.db.database import Database
    from kronos.repository.spaces import Spaces
    from kronos.settings import Settings
    from kronos.types import (
        Embedder,
        OnModelChange,
        ProgressCallback,
        ReindexReport,
        Space,
        Vectors,
    )

from kronos.serving.serving import MOST_TEXTS, Serving, sees_texts_alone

HANDED_IN = "vectors handed in"


@dataclass(frozen=True, slots=True)
class ServingResolver:
    """Finds the serving space: when a store opens, and when its active space has changed."""

    database: Database
    folder: Path
    """Where index snapshots are kept."""
    device: str
    """Where indexes live."""
    settings: Settings
    clock: Callable[[], datetime]
    load: Callable[[str, int], EmbeddingService]
    """Loads a model by name; the number is the width of hash vectors. Raises ModelLoadError."""
    embedding_dim: int
    """The width of hash vectors, and of a new store without an embedder."""
    strict: bool
    """Raise where a fallback would take over."""
    for_texts: RetryPolicy
    """How to retry an embedder while texts are stored, and in jobs."""
    for_questions: RetryPolicy
    """How to retry an embedder while a caller waits for an answer."""

    def resolve(
        self,
        embedder: Embedder | None,
        *,
        alias: str | None,
        on_model_change: OnModelChange,
        progress: ProgressCallback | None,
    ) -> tuple[Serving, Callable[[threading.Event], Callable[[], object]] | None]:
        """Find the serving space when a store opens.

        Args:
            embedder: None serves the active space with vectors that callers give.
            alias: what the caller asked for.
            on_model_change: what to do when another embedder made the active space.
            progress: called while vectors are made.

        Returns:
            The serving space, and a factory of the background task, if one is needed.

        Raises:
            EmbedderMismatchError: another embedder made the vectors, and `on_model_change` is
                "error".
            ReindexError: some texts cannot be embedded, or the job was cancelled.
        """
        active, complete = self._look(embedder)
        if active is None:
            self._begin(embedder, alias)
            active, complete = self._look(embedder)
        assert active is not None
        if embedder is None:
            return self._serve(active, None), None
        reason = embedder.fallback_reason if isinstance(embedder, EmbeddingService) else None
        if active.fingerprint == embedder.fingerprint:
            if not complete:
                active = self._complete(active, embedder, alias, progress)
            return self._serve(active, embedder, degraded=reason), None
        if reason is not None and active.model != HASH_MODEL:
            return self._fall_back(active, embedder, reason, progress), None
        if on_model_change == "error":
            raise _refused_change(active, embedder, alias)
        if on_model_change == "background":
            options = JobOptions(activate=True)
            return (
                self.follow([embedder]),
                lambda stop: self.job(embedder, alias=alias, options=options, stop=stop).run,
            )
        return self._serve(self._rebuild(embedder, alias, progress), embedder), None

    def is_set_up(self) -> bool:
        """Whether the store has an active space; a new one has none."""
        with self.database.read() as connection:
            return Repository(connection, self.clock()).spaces.active() is not None

    def _look(self, embedder: Embedder | None) -> tuple[Space | None, bool]:
        """The active space, and whether nothing is pending in it that could be embedded."""
        with self.database.read() as connection:
            repository = Repository(connection, self.clock())
            active = repository.spaces.active()
            if active is None or embedder is None:
                return active, False
            complete = repository.pending.is_complete(active.id)
        return active, complete

    def _begin(self, embedder: Embedder | None, alias: str | None) -> None:
        """Give a new store its first space, unless another process has."""
        with self.database.write() as connection:
            repository = Repository(connection, self.clock())
            spaces = repository.spaces
            if spaces.active() is None:
                spaces.activate(self._find_or_create(spaces, embedder, alias))
                if repository.fulltext.tokenizer != self.settings.tokenizer:
                    repository.fulltext.rebuild(self.settings.tokenizer)

    def _find_or_create(
        self, spaces: Spaces, embedder: Embedder | None, alias: str | None
    ) -> Space:
        if embedder is None:
            dim = self.embedding_dim
            return spaces.find_or_create(
                fingerprint=f"given:dim={dim}", model=HANDED_IN, alias=None, dim=dim
            )
        return spaces.find_or_create(
            fingerprint=embedder.fingerprint,
            model=embedder.model_id,
            alias=alias,
            dim=int(embedder.dim),  # NumPy's integers are none to a database
            revision=getattr(embedder, "revision", None),
        )

    def _rebuild(
        self, embedder: Embedder, alias: str | None, progress: ProgressCallback | None
    ) -> Space:
        """Bring an embedder's space up to date and make it the active one, before anything else."""
        report = self.job(embedder, alias=alias, options=JobOptions(activate=True)).run(progress)
        if report.space.state != "active":
            raise _not_all_made(report)
        return report.space

    def _complete(
        self,
        active: Space,
        embedder: Embedder,
        alias: str | None,
        progress: ProgressCallback | None,
    ) -> Space:
        """Embed what is pending, if the store can be written and the embedder can be reached.

        Otherwise the space serves as it is: its words can be searched.
        """
        try:
            return self._rebuild(embedder, alias, progress)
        except (ReadOnlyStoreError, TransientEmbeddingError) as exc:
            warnings.warn(
                f"some memories have no vector yet, and searches miss them: {exc}",
                KronosWarning,
                stacklevel=2,
            )
            return active

    def _fall_back(
        self, active: Space, embedder: Embedder, reason: str, progress: ProgressCallback | None
    ) -> Serving:
        """Let hash vectors answer beside the active space, which waits for its model."""
        while True:
            space = self._space_of(embedder, HASH_MODEL)
            try:
                catch_up(
                    self.database,
                    space,
                    embedder,
                    batch_size=self.settings.batch_size,
                    clock=self.clock,
                    retry=self.for_texts,
                    progress=progress,
                )
            except SpaceChangedError:  # a `compact` of another process dropped it meanwhile
                continue
            return self._serve(space, embedder, active=active, degraded=reason)

    def _space_of(self, embedder: Embedder, alias: str | None) -> Space:
        with self.database.write() as connection:
            spaces = Repository(connection, self.clock()).spaces
            return self._find_or_create(spaces, embedder, alias)

    def job(
        self,
        embedder: Embedder,
        *,
        alias: str | None,
        options: JobOptions,
        work: Work | None = None,
        stop: threading.Event | None = None,
    ) -> ReindexJob:
        """A job that brings an embedder's space up to date; the space is made when it is new.

        Raises:
            DimensionMismatchError: the embedder's fingerprint is known with another width.
        """
        with self.database.write() as connection:
            repository = Repository(connection, self.clock())
            space = self._find_or_create(repository.spaces, embedder, alias)
            # In one transaction: a space without a job is dropped by any `compact`.
            job_id = repository.jobs.open(space, options)
        return self._job(job_id, space, lambda: embedder, work, stop)

    def job_of(
        self,
        space: Space,
        embedder: Callable[[], Embedder],
        *,
        options: JobOptions,
        work: Work | None = None,
        stop: threading.Event | None = None,
    ) -> ReindexJob:
        """A job that brings a space up to date; its embedder is asked for when it is needed.

        Raises:
            NotFoundError: the space is gone.
        """
        with self.database.write() as connection:
            repository = Repository(connection, self.clock())
            if not repository.spaces.has(space):
                raise NotFoundError(
                    f"space {space.id} ({space.model}) is gone: another process dropped it. Make "
                    f"it anew with `kronos reindex --model {space.alias or space.model}`"
                )
            job_id = repository.jobs.open(space, options)
        return self._job(job_id, space, embedder, work, stop)

    def _job(
        self,
        job_id: int,
        space: Space,
        embedder: Callable[[], Embedder],
        work: Work | None,
        stop: threading.Event | None,
    ) -> ReindexJob:
        run = JobRun(
            self.database,
            job_id,
            space,
            embedder,
            work or Work.of(self.settings),
            clock=self.clock,
            retry=self.for_texts,
            stop=stop,
        )
        return ReindexJob(run)

    def follow(self, known: Sequence[Embedder] | None) -> Serving:
        """Let the space answer that is the active one now.

        Args:
            known: loaded embedders; none in it for a store that keeps its model. None: this process
                embeds nothing.

        Raises:
            ModelLoadError: the space's embedder, or the model that it stands in for, cannot be
                loaded, and `strict` is set.
        """
        with self.database.read() as connection:
            active = Repository(connection, self.clock()).spaces.active()
        assert active is not None  # a store that was opened has one for ever
        if known is None or active.model == HANDED_IN:
            return self._serve(active, None)
        try:
            embedder = self.embedder_of(active, known)
        except ModelLoadError as exc:
            if self.strict:
                raise
            warnings.warn(
                f"the store's vectors are those of {active.model}, which cannot be used: hash "
                f"vectors answer in its place, and new texts wait for it. The reason: {exc}",
                KronosWarning,
                stacklevel=2,
            )
            return self._fall_back(active, HashEmbedder(self.embedding_dim), str(exc), None)
        fallback = None if known else _why_hash(active)
        if fallback is not None:
            if self.strict:
                raise ModelLoadError(fallback)
            warnings.warn(fallback, KronosWarning, stacklevel=2)
        return self._serve(active, embedder, degraded=fallback)

    def embedder_of(self, space: Space, known: Sequence[Embedder]) -> Embedder:
        """The embedder that made a space: one that is loaded, or the model that was asked for.

        Raises:
            ModelLoadError: the model cannot be had, or has other weights by now, or the embedder is
                a program's own.
        """
        for embedder in known:
            if embedder.fingerprint == space.fingerprint:
                return embedder
        if space.alias is None:
            raise ModelLoadError(
                f"the vectors of space {space.id} were made by {space.model}, which a program "
                "handed in: open the store with embedder= set to it, or change the model with "
                "`kronos reindex --model`"
            )
        # The hash space of a fallback bears the alias of the model that could not be loaded.
        name = HASH_MODEL if space.model == HASH_MODEL else space.alias
        service = self.load(name, space.dim)
        if service.fingerprint != space.fingerprint:
            raise ModelLoadError(
                f"{name} has other weights or settings now than those that made space "
                f"{space.id}: run `kronos reindex --model {name}`"
            )
        return service

    def _serve(
        self,
        space: Space,
        embedder: Embedder | None,
        *,
        active: Space | None = None,
        degraded: str | None = None,
    ) -> Serving:
        """Let a space answer; `active` names the active one when it is another."""
        newest = newest_seq(self.folder, space.id)  # first: others write and save meanwhile
        with self.database.read() as connection:
            repository = Repository(connection, self.clock())
            head = repository.head()
            replica = Replica(
                space,
                store_id=head.store_id,
                folder=self.folder,
                device=self.device,
                policy=SnapshotPolicy(
                    self.settings.snapshot_changes, self.settings.snapshot_interval_s
                ),
                sync=self.database.sync,
                mode=lambda: self.database.dialect.mode,
                index_policy=replace(
                    IndexPolicy.of(self.settings.index),
                    gpu_half=self.settings.gpu_storage == "float16",
                ),
            )
            if not repository.pending.count(space.id):
                replica.complete_seq = head.seq
        if newest is not None and newest > head.seq:
            replica.discard_beyond(head.seq)
        return Serving(
            space,
            embedder,
            replica,
            active or space,
            head.file,
            degraded,
            None if embedder is None else self._ask(embedder),
            self.for_texts,
            self.for_questions,
        )

    def _ask(self, embedder: Embedder) -> Callable[[Sequence[str]], Vectors]:
        """A function that embeds questions, in shared batches where the embedder permits."""
        ask = functools.partial(embed_queries, embedder, retry=self.for_questions)
        if not sees_texts_alone(embedder):
            return ask
        # Who shared a batch has waited: each alone would wait as long again.
        return Coalescer(ask, max_size=MOST_TEXTS, for_all=(TransientEmbeddingError,))


def _why_hash(active: Space) -> str | None:
    """Why the active space has hash vectors instead of those of a model; None if it has not."""
    if active.model != HASH_MODEL or active.alias in (None, HASH_MODEL):
        return None
    return (
        f"the store has hash vectors instead of those of {active.alias}, which could not be loaded "
        f"when the store was made: run `kronos reindex --model {active.alias}` to change to it, or "
        "`kronos reindex --model hash` to keep hash vectors"
    )


def _not_all_made(report: ReindexReport) -> ReindexError:
    return ReindexError(
        f"the store's vectors could not all be made anew with {report.space.model} (its job is "
        f"{report.state}; {report.failed} memories hold a text it cannot embed): `kronos reindex "
        "status` shows them, `kronos reindex activate --allow-failed` goes on without them; opened "
        "with the model it had, the store answers as before"
    )


def _refused_change(active: Space, embedder: Embedder, alias: str | None) -> EmbedderMismatchError:
    same = " (other weights or settings under the same name)"
    return EmbedderMismatchError(
        f"the store's vectors were made by {active.model}, and the embedder at hand is "
        f"{embedder.model_id}{same if active.model == embedder.model_id else ''}: run "
        f"`kronos reindex --model {alias or embedder.model_id}`, or open the store with "
        'on_model_change="rebuild" or "background"'
    )
