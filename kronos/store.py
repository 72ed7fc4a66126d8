"""MemoryStore: the store, synchronous. It joins the parts and owns no rule of theirs.

A text's way in: checked, embedded outside any transaction, then written with its vector and its seq
in one. A question's way: embedded, then in one read transaction the index catches up, ranks, and
the hits are read from SQL. `KronosMemory` drives the same phases (`_prepare`, `_encode`, `_commit`,
`_ask`, `_search`) on threads of its own.
"""

from __future__ import annotations

import builtins
import logging
import math
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from types import EllipsisType, TracebackType
from typing import TYPE_CHECKING, Any

from kronos import doctor, exchange, intake
from kronos.background import Background
from kronos.compaction import compact
from kronos.db import backup, schema
from kronos.db.engine import Database
from kronos.embedding.checked import check_embedder
from kronos.embedding.registry import EMBEDDING_MODELS
from kronos.embedding.service import EmbeddingService
from kronos.errors import (
    ConfigurationError,
    EmbedderMismatchError,
    InputError,
    KronosError,
    ModelLoadError,
    NotFoundError,
    StorageError,
    StoreClosedError,
)
from kronos.estimate import estimate
from kronos.forking import Lock
from kronos.index.snapshot import discard_other_snapshots
from kronos.jobs import JobOptions
from kronos.model_change import ModelChange
from kronos.reindex import ReindexJob, Work, catch_up
from kronos.repository import Batch, Condition, Pulse, Repository
from kronos.search.filters import compile_filter
from kronos.search.plan import allowed_keys
from kronos.serving import Serving, Settler
from kronos.settings import Location, Settings
from kronos.types import (
    CompactReport,
    Failure,
    Hit,
    Job,
    Memory,
    Progress,
    RecoveryReport,
    ReindexPlan,
    ReindexReport,
    Report,
    Space,
    Stats,
)
from kronos.validation import (
    Item,
    check_content,
    check_id,
    check_importance,
    check_limit,
    check_metadata,
    check_namespace,
    check_number,
    check_scope,
    check_time,
    hash_content,
)

if TYPE_CHECKING:
    from kronos.replica import Replica
    from kronos.types import (
        Embedder,
        Metadata,
        OnConflict,
        OnModelChange,
        ProgressCallback,
        SearchMode,
        Vectors,
        Where,
    )


logger = logging.getLogger("kronos")

_TEXTS_IN_A_SEARCH = 64
"""So many texts that another process left pending are embedded by the search that finds them; more
are left to a job in the background."""


class _Moved(Exception):
    """Another space is the active one now."""


class _Behind(Exception):
    """The space that serves lacks texts."""

    def __init__(self, texts: int) -> None:
        super().__init__()
        self.texts = texts


def utc_now() -> datetime:
    """The time, UTC."""
    return datetime.now(timezone.utc)


@dataclass(frozen=True, slots=True)
class Change:
    """New values of a memory's columns; for a new text its vector, and who made it."""

    id: str
    values: dict[str, Any]
    vector: Vectors | None = None
    serving: Serving | None = None


@dataclass(frozen=True, slots=True)
class Question:
    """A query, its vector, and who made the vector."""

    query: str | Sequence[float] | Vectors
    vector: Vectors
    serving: Serving


class MemoryStore:
    """A store of memories that are found by meaning.

    Threads may share one store. `MemoryStore.open` opens it at once; as a context manager it closes
    itself.

    Args:
        storage_path: a folder, made when it is missing, or a SQLAlchemy URL.
        namespace: the store's own namespace, which calls mean that name none.
        embedding_model: a preset of `EMBEDDING_MODELS`, a model's name, a folder, "hash" for the
            lexical hash embedder, or None for a store of vectors that are handed in.
        embedder: an object with the `Embedder` protocol, in place of `embedding_model`.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps".
        embedding_dim: the width of hash vectors, and of vectors handed in to a new store. A model's
            width is its own.
        on_model_change: what to do when another embedder made the store's vectors: "rebuild" makes
            them anew before the store opens; "background" does so on a thread while the embedder
            before answers; "error" raises `EmbedderMismatchError`.
        strict: raise `ModelLoadError` where the hash fallback would take over.
        settings: further options; None reads them from the environment.
        migrate: upgrade a database of an older Kronos, after a backup.
        clock: the time, UTC; for tests.
    """

    def __init__(
        self,
        storage_path: str | os.PathLike[str],
        *,
        namespace: str = "default",
        embedding_model: str | None = "mini",
        embedder: Embedder | None = None,
        device: str = "auto",
        embedding_dim: int = 384,
        on_model_change: OnModelChange = "rebuild",
        strict: bool = False,
        settings: Settings | None = None,
        migrate: bool = False,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        if on_model_change not in ("rebuild", "background", "error"):
            raise ConfigurationError(
                'on_model_change must be "rebuild", "background" or "error", not '
                f"{on_model_change!r}",
                field="on_model_change",
            )
        self.location = Location.of(storage_path)
        self.namespace = check_namespace(namespace)
        self._model = embedding_model
        self._embedder = embedder
        self._device = device
        self._embedding_dim = check_limit(embedding_dim, field="embedding_dim")
        self._on_model_change: OnModelChange = on_model_change
        self._strict = strict
        self._settings = Settings.from_env() if settings is None else settings
        self._migrate = migrate
        self._clock = clock
        self._latest = datetime.min.replace(tzinfo=timezone.utc)
        """The latest time seen: clocks are put back, and what had expired must stay gone."""
        self._database: Database | None = None
        self._current: Serving | None = None
        self._jobs, self._snapshots = Background("job"), Background("snapshot")
        self._own: Embedder | None = None
        """The embedder that was asked for, once the store is open."""
        # The writers of one process queue here, which is fairer than SQLite's own waiting.
        self._writing = Lock()
        # Held while the store opens, closes or follows a switch: models load under it.
        self._settling = Lock(threading.RLock)

    # -- Opening and closing --------------------------------------------------------------------

    @classmethod
    def open(
        cls,
        storage_path: str | os.PathLike[str],
        *,
        progress: ProgressCallback | None = None,
        **options: Any,
    ) -> MemoryStore:
        """Open a store.

        Args:
            storage_path: a folder, made when it is missing, or a SQLAlchemy URL.
            progress: called while vectors are made anew after a model change.
            **options: as for the class.

        Raises:
            SchemaOutdatedError: the database is older than this Kronos, and `migrate` is not set.
            SchemaTooNewError: the database is newer.
            EmbedderMismatchError: another embedder made the vectors, and `on_model_change` is
                "error".
            ReindexError: some texts cannot be embedded with the new model.
            ModelLoadError: the model cannot be had, and `strict` is set.
        """
        store = cls(storage_path, **options)
        store.connect(progress=progress)
        return store

    def connect(self, *, progress: ProgressCallback | None = None) -> None:
        """Open the store; does nothing when it is open. Raises as `open` does."""
        with self._settling:
            if self._database is not None:
                return
            database = Database(self.location.database, self._settings)
            try:
                with suppress(StorageError):
                    doctor.remove_unfinished(self.location.database, self.location.index)
                schema.prepare(database, migrate=self._migrate)
                self._own = self._own_embedder()
                settler = self._settler(database)
                self._current, job = settler.settle(
                    self._own,
                    alias=None if self._embedder else _absolute(self._model),
                    on_model_change=self._on_model_change,
                    progress=progress,
                )
            except BaseException:
                database.close()
                raise
            self._database = database
            self._jobs, self._snapshots = Background("job"), Background("snapshot")
            if job is not None:
                self._jobs.start(job)

    def _load(self, model: str, *, strict: bool, dim: int | None = None) -> EmbeddingService:
        service = EmbeddingService(
            model,
            device=self._device,
            cache_dir=self.location.models,
            embedding_dim=dim or self._embedding_dim,
            strict=strict,
            settings=self._settings,
        )
        service.load()
        return service

    def _own_embedder(self) -> Embedder | None:
        if self._embedder is not None:
            return check_embedder(self._embedder)
        return None if self._model is None else self._load(self._model, strict=self._strict)

    def _settler(self, database: Database) -> Settler:
        return Settler(
            database=database,
            folder=self.location.index,
            device=self._device,
            settings=self._settings,
            clock=self._clock,
            load=lambda model, dim: self._load(model, strict=True, dim=dim),
            embedding_dim=self._embedding_dim,
            strict=self._strict,
        )

    def close(self) -> None:
        """Save the index and close; does nothing when the store is closed.

        A job in the background finishes its batch; it goes on when the store is opened again.
        """
        self._jobs.stop()
        self._snapshots.stop()
        with self._settling, self._writing:
            database, self._database = self._database, None
            serving, self._current = self._current, None
            self._own = None
            if database is None or serving is None:
                return
            try:
                serving.replica.save()
            finally:
                database.close()

    def __enter__(self) -> MemoryStore:
        self.connect()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def _serving(self) -> Serving:
        if self._database is None or self._current is None:
            raise StoreClosedError
        return self._current

    @property
    def _open_database(self) -> Database:
        if self._database is None:
            raise StoreClosedError
        return self._database

    def _repository(self, connection: Any) -> Repository:
        now = self._clock()
        self._latest = max(now, self._latest)
        return Repository(connection, now, expired_by=self._latest)

    @contextmanager
    def _reader(self) -> Iterator[Repository]:
        with self._open_database.read() as connection:
            yield self._repository(connection)

    @contextmanager
    def _writer(self, serving: Serving | None = None) -> Iterator[Repository]:
        """A write transaction; with vectors of a space, only while that space serves."""
        with self._writing, self._open_database.write() as connection:
            repository = self._repository(connection)
            if serving and not serving.is_current(repository, repository.pulse()):
                raise _Moved
            yield repository

    def _follow(self, left: Serving, *loaded: Embedder) -> None:
        """Let the active space of now answer, whoever made it so.

        Models load outside any lock that readers or writers hold.
        """
        with self._settling:
            if self._serving is not left:
                return  # another thread was here first
            own = [] if self._own is None else [self._own]
            known = [] if left.embedder is None else [left.embedder, *loaded, *own]
            self._current = self._settler(self._open_database).follow(known)

    # -- Adding ---------------------------------------------------------------------------------

    def add(
        self,
        content: str,
        *,
        metadata: Metadata | None = None,
        namespace: str | None = None,
        importance: float = 0.5,
        parent_id: str | None = None,
        expires_at: datetime | None = None,
        id: str | None = None,
        on_conflict: OnConflict = "error",
    ) -> str:
        """Store one memory; it is durable and searchable when this returns.

        Args:
            content: the text.
            metadata: a JSON object.
            namespace: None is the store's own.
            importance: 0..1.
            parent_id: the id of the memory that this one came from.
            expires_at: timezone-aware; from then on the memory is never returned.
            id: None makes a new UUID.
            on_conflict: for an id that exists: "error", "replace" or "ignore".

        Returns:
            The memory's id.

        Raises:
            InputError: an argument is refused; its `field` names it.
            DuplicateIdError: the id exists and `on_conflict` is "error".
        """
        item = {
            "content": content,
            "metadata": metadata,
            "namespace": namespace,
            "importance": importance,
            "parent_id": parent_id,
            "expires_at": expires_at,
            "id": id,
        }
        return self._add(self._prepare(item, on_conflict))[0]

    def add_many(
        self,
        items: Iterable[Item],
        *,
        on_conflict: OnConflict = "error",
        progress: ProgressCallback | None = None,
    ) -> builtins.list[str]:
        """Store many memories, `settings.batch_size` of them in a transaction.

        Args:
            items: texts, `NewMemory` objects or dicts with their fields; read as they are needed.
            on_conflict: for an id that exists: "error", "replace" or "ignore".
            progress: called after every batch.

        Returns:
            The ids, in the order of the items.

        Raises:
            InputError: an item is refused. Batches before its own are stored, its own is not.
            DuplicateIdError: an id exists and `on_conflict` is "error"; likewise.
        """
        ids: builtins.list[str] = []
        for batch in self._batches(items, on_conflict):
            ids += self._add(batch)
            if progress is not None:
                progress(Progress(len(ids), None))
        return ids

    def _prepare(self, item: Item, on_conflict: OnConflict) -> Batch:
        return intake.prepare(
            [item],
            on_conflict,
            space=self._serving.space,
            namespace=self.namespace,
            settings=self._settings,
        )

    def _batches(self, items: Iterable[Item], on_conflict: OnConflict) -> Iterator[Batch]:
        return intake.batches(
            items,
            on_conflict,
            space=self._serving.space,
            namespace=self.namespace,
            settings=self._settings,
        )

    def _encode(self, batches: Sequence[Batch]) -> None:
        for batch in batches:
            if batch.on_conflict == "ignore":
                self._drop_known(batch)
        self._serving.encode(batches)

    def _drop_known(self, batch: Batch) -> None:
        """Spare what is there already its embedding; whoever deletes it now comes after us."""
        with self._reader() as repository:
            known = repository.known([r.id for r in batch.records if r.id_given])
        batch.records = [record for record in batch.records if record.id not in known]

    def _commit(self, batches: Sequence[Batch]) -> builtins.list[builtins.list[str] | KronosError]:
        """Write embedded batches in one transaction; each one's ids, or why it was refused."""
        while True:
            serving = self._serving
            moved = [batch for batch in batches if batch.space.id != serving.space.id]
            if moved:  # another space took over since these were embedded
                serving.encode(moved)
            try:
                with self._writer(serving) as repository:
                    return [*repository.add(batches, serving.space)]
            except _Moved:
                self._follow(serving)

    def _add(self, batch: Batch) -> builtins.list[str]:
        self._encode([batch])
        (outcome,) = self._commit([batch])
        if isinstance(outcome, KronosError):
            raise outcome
        return outcome

    # -- Reading --------------------------------------------------------------------------------

    def get(self, id: str) -> Memory:
        """Read a memory.

        Raises:
            NotFoundError: no live memory has this id.
        """
        memory = self.find(id)
        if memory is None:
            raise NotFoundError(f"no memory has the id {id!r}")
        return memory

    def find(self, id: str) -> Memory | None:
        """Read a memory, or None when no live memory has this id."""
        id = check_id(id)
        with self._reader() as repository:
            return repository.find(id)

    def list(
        self,
        *,
        where: Where | None = None,
        namespace: str | None = None,
        after: str | None = None,
        limit: int = 100,
    ) -> builtins.list[Memory]:
        """Read memories in the order in which they were added.

        Args:
            where: a filter on the metadata.
            namespace: this one and all below it; None is the store's own, "*" every one.
            after: the last id of the page before.
            limit: how many at most.

        Raises:
            NotFoundError: no memory has the id `after`.
            FilterError: the filter cannot be understood.
        """
        scope, condition = check_scope(namespace, self.namespace), compile_filter(where)
        after = None if after is None else check_id(after, field="after")
        limit = check_limit(limit)
        with self._reader() as repository:
            return repository.page(scope, condition, after, limit)

    def count(self, *, where: Where | None = None, namespace: str | None = None) -> int:
        """Count memories; arguments as for `list`."""
        scope, condition = check_scope(namespace, self.namespace), compile_filter(where)
        with self._reader() as repository:
            return repository.count(scope, condition)

    # -- Searching ------------------------------------------------------------------------------

    def search(
        self,
        query: str | Sequence[float] | Vectors,
        *,
        limit: int = 10,
        namespace: str | None = None,
        where: Where | None = None,
        mode: SearchMode = "dense",
        min_score: float | None = None,
    ) -> builtins.list[Hit]:
        """Find the memories nearest in meaning.

        Args:
            query: a text, or a vector (dim,) of the active space.
            limit: how many at most; that many come back when that many match.
            namespace: this one and all below it; None is the store's own, "*" every one.
            where: a filter on the metadata.
            mode: "dense": by the cosine similarity of the vectors.
            min_score: leave out hits that score lower.

        Returns:
            Hits, the best first.

        Raises:
            InputError: an argument is refused; its `field` names it.
            NoEmbedderError: the query is a text, and the store has no embedder.
            EmbedderMismatchError: the query is a vector, and meanwhile the store's model changed.
        """
        question = self._ask(query)
        return self._search(
            question,
            limit=limit,
            namespace=namespace,
            where=where,
            mode=mode,
            min_score=min_score,
        )

    def _ask(self, query: str | Sequence[float] | Vectors) -> Question:
        serving = self._serving
        if isinstance(query, str):
            check_content(query, self._settings.max_content_bytes, field="query")
        return Question(query, serving.query_vector(query), serving)

    def _search(
        self,
        question: Question,
        *,
        limit: int,
        namespace: str | None,
        where: Where | None,
        mode: SearchMode,
        min_score: float | None,
    ) -> builtins.list[Hit]:
        if mode != "dense":
            raise InputError(f'mode must be "dense", not {mode!r}', field="mode")
        limit = check_limit(limit)
        floor = -math.inf if min_score is None else check_number(min_score, field="min_score")
        scope, condition = check_scope(namespace, self.namespace), compile_filter(where)
        wait = True
        while True:
            try:
                found = self._nearest(question, limit, scope, condition, complete=wait)
                self._save_when_due(question.serving.replica)
                break
            except _Moved:
                question = self._ask_anew(question)
            except _Behind as behind:
                self._catch_up(question.serving, behind.texts)
                wait = False  # whatever came of it: this search has waited enough
        name = question.serving.space.model
        return [
            Hit(memory, score, name, rank)
            for rank, (memory, score) in enumerate(found)
            if score >= floor
        ]

    def _nearest(
        self,
        question: Question,
        limit: int,
        scope: str | None,
        condition: Condition | None,
        *,
        complete: bool,
    ) -> builtins.list[tuple[Memory, float]]:
        serving, replica = question.serving, question.serving.replica
        with replica.lock, self._reader() as repository:
            pulse = repository.pulse()
            if not serving.is_current(repository, pulse):
                raise _Moved
            if complete and replica.complete_seq < pulse.seq and serving.embedder is not None:
                self._check_complete(serving, repository, pulse)
            allowed = allowed_keys(repository, scope, condition)
            return replica.nearest(
                repository, pulse.seq, question.vector, limit=limit, allowed=allowed
            )

    def _save_when_due(self, replica: Replica) -> None:
        if replica.save_is_due and not self._snapshots.busy:
            self._snapshots.start(lambda _: replica.save)

    def _check_complete(self, serving: Serving, repository: Repository, pulse: Pulse) -> None:
        """See whether a process with another embedder wrote texts that this space lacks."""
        replica = serving.replica
        pending = repository.spaces.pending_since(
            serving.space.id, replica.complete_seq, limit=_TEXTS_IN_A_SEARCH + 1
        )
        if pending:
            raise _Behind(pending)
        replica.complete_seq = pulse.seq

    def _catch_up(self, serving: Serving, texts: int) -> None:
        """Embed what another process left pending: a few at once, many in the background."""
        try:
            if texts > _TEXTS_IN_A_SEARCH and not serving.stands_in:
                self._jobs.start(lambda stop: self._catch_up_job(serving, stop).run)
                return
            catch_up(
                self._open_database,
                serving.space,
                serving.require_embedder("open it with the model that it has"),
                batch_size=self._settings.batch_size,
                clock=self._clock,
            )
        except StorageError as exc:  # busy, full, read-only: a search never fails for that
            logger.warning("texts of another process wait to be embedded: %s", exc)

    def _catch_up_job(self, serving: Serving, stop: threading.Event) -> ReindexJob:
        settler = self._settler(self._open_database)
        embedder = serving.require_embedder("open it with the model that it has")
        return settler.job(embedder, alias=None, options=JobOptions(), stop=stop)

    def _ask_anew(self, question: Question) -> Question:
        """Embed a question for the space that serves now."""
        self._follow(question.serving)
        if not isinstance(question.query, str):
            raise EmbedderMismatchError(
                f"the query is a vector for {question.serving.space.model}, but meanwhile the "
                f"store's model became {self._serving.space.model}: embed it with that one"
            )
        return self._ask(question.query)

    # -- Changing -------------------------------------------------------------------------------

    def update(
        self,
        id: str,
        *,
        content: str | EllipsisType = ...,
        metadata: Metadata | EllipsisType | None = ...,
        importance: float | EllipsisType = ...,
        expires_at: datetime | EllipsisType | None = ...,
    ) -> Memory:
        """Change fields of a memory; what is left out stays.

        Args:
            id: the memory's id.
            content: a new text, which is embedded anew.
            metadata: new metadata, in the place of all that was there.
            importance: 0..1.
            expires_at: timezone-aware; None for never.

        Returns:
            The memory as it is now.

        Raises:
            NotFoundError: no live memory has this id.
            InputError: an argument is refused; its `field` names it.
            NoEmbedderError: a new text, in a store without an embedder.
        """
        change = self._check_change(id, content, metadata, importance, expires_at)
        return self._update(self._encode_change(change))

    def _check_change(
        self,
        id: str,
        content: str | EllipsisType,
        metadata: Metadata | EllipsisType | None,
        importance: float | EllipsisType,
        expires_at: datetime | EllipsisType | None,
    ) -> Change:
        values: dict[str, Any] = {}
        if content is not ...:
            encoded = check_content(content, self._settings.max_content_bytes)
            values |= {"content": content, "content_hash": hash_content(encoded)}
        if metadata is not ...:
            values["metadata"] = check_metadata(metadata, self._settings)
        if importance is not ...:
            values["importance"] = check_importance(importance)
        if expires_at is not ...:
            values["expires_at"] = check_time(expires_at, field="expires_at")
        return Change(check_id(id), values)

    def _encode_change(self, change: Change) -> Change:
        """Embed a change's text, if it has one."""
        if "content" not in change.values:
            return change
        serving = self._serving
        return replace(change, serving=serving, vector=serving.embed([change.values["content"]]))

    def _update(self, change: Change) -> Memory:
        while True:
            if change.serving not in (None, self._serving):  # another space took over
                change = self._encode_change(change)
            serving = change.serving
            try:
                with self._writer(serving) as repository:
                    return repository.update(
                        change.id,
                        change.values,
                        space=None if serving is None else serving.space,
                        vector=change.vector,
                    )
            except _Moved:
                self._follow(self._serving if serving is None else serving)

    def delete(
        self,
        ids: str | Iterable[str] | None = None,
        *,
        where: Where | None = None,
        namespace: str | None = None,
    ) -> int:
        """Delete memories, by id or by what they match.

        Args:
            ids: one id or several, anywhere in the store; unknown ones are passed over.
            where: a filter on the metadata.
            namespace: this one and all below it; None is the store's own, "*" every one.

        Returns:
            How many were deleted.

        Raises:
            InputError: nothing names what to delete, or both ids and a filter do.
        """
        # An empty filter names nothing: it is more often a mistake than a wish.
        matching = bool(where) or namespace is not None
        if (ids is None) != matching:
            raise InputError(
                "delete takes either ids, or where and namespace (namespace='*' for everything)",
                field="ids",
            )
        if ids is not None:
            named = [check_id(id) for id in ([ids] if isinstance(ids, str) else ids)]
            with self._writer() as repository:
                return repository.delete_ids([*dict.fromkeys(named)])
        scope, condition = check_scope(namespace, self.namespace), compile_filter(where)
        with self._writer() as repository:
            return repository.delete_matching(scope, condition)

    # -- The store itself -----------------------------------------------------------------------

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
        settler = self._settler(self._open_database)
        job = settler.job(embedder, alias=alias, options=options, work=work, stop=stop)
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
            moved = not serving.is_current(repository, repository.pulse())
        if moved:
            self._follow(serving, *job.loaded)
        return report

    def _target(self, model: str | None) -> tuple[Embedder, str | None]:
        serving = self._serving
        if model is not None:
            return self._load(model, strict=True), _absolute(model)
        if serving.stands_in:  # what answers in its place never becomes the active one
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
        return ModelChange(self._settler(self._open_database), known)

    def plan_reindex(self, model: str | None = None) -> ReindexPlan:
        """Say what `reindex` would do; the model is loaded and tried, and nothing is written.

        Args:
            model: as for `reindex`.

        Raises:
            ModelLoadError: the model cannot be had.
            NoEmbedderError: no model is named, and the store has no embedder.
        """
        embedder, _ = self._target(model)
        return estimate(self._open_database, embedder, clock=self._clock)

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

    def compact(self, *, keep_spaces: int | None = None) -> CompactReport:
        """Drop what nobody wants any more, and give the free space back to the disk.

        That are retired spaces beyond `keep_spaces`, what cancelled jobs made, what a fallback made
        that serves no longer, memories that have expired, and all that is left of deleted ones: no
        byte of their texts, metadata and vectors stands in the store's files then, but in backups
        that were taken.
        Others may read and write meanwhile.

        Args:
            keep_spaces: so many retired spaces are kept to roll back to; None is the settings'.

        Raises:
            InputError: `keep_spaces` is no number from 0 on.
        """
        keep = self._settings.keep_spaces
        if keep_spaces is not None:
            keep = check_limit(keep_spaces, field="keep_spaces", least=0)
        replica = self._serving.replica
        return compact(self._open_database, keep, replica, self.location.index, clock=self._clock)

    def stats(self) -> Stats:
        """Count what the store holds, and say who answers."""
        serving = self._serving
        with serving.replica.lock, self._reader() as repository:
            return Stats(
                store_id=repository.store_id(),
                path=str(self.location.database),
                memories=repository.count(),
                seq=repository.pulse().seq,
                embedder=None if serving.embedder is None else serving.space.model,
                degraded=serving.degraded,
                dim=serving.space.dim,
                max_tokens=getattr(serving.embedder, "max_tokens", None),
                spaces=tuple(repository.spaces.stats()),
                jobs=tuple(repository.jobs.all(unfinished=True)),
                index_size=len(serving.replica),
                index_kind=serving.replica.kind,
                database_bytes=self._open_database.size_bytes(),
                schema=schema.current(self._open_database) or "",
            )

    def check(self, *, repair: bool = False) -> Report:
        """Compare everything that must agree.

        Args:
            repair: mend what can be derived from the texts: the index, vectors that do not fit,
                files that nobody needs and, after a backup, the indexes of SQLite.

        Returns:
            What is wrong, in words, and what of it was repaired.
        """
        serving, database, location = self._serving, self._open_database, self.location
        advice = [*doctor.surroundings(database, location.database.parent)]
        problems = [
            *doctor.damaged_database(database, self._backup_beside, repair=repair),
            *doctor.altered_texts(database, self._clock),
        ]
        if any(problem.kind == "database" and not problem.repaired for problem in problems):
            return Report(tuple(problems), tuple(advice))  # no row can be believed
        problems += doctor.wrong_schema(database)
        with self._writer() if repair else self._reader() as repository:
            problems += doctor.misfit_vectors(repository, repair=repair)
            problems += doctor.pending_memories(repository)
            if repair:
                doctor.remove_orphans(location.database, location.index, repository)
            advice += doctor.orphaned_files(location.database, location.index, repository)
        with serving.replica.saving, serving.replica.lock, self._reader() as repository:
            problems += doctor.wrong_index(repository, serving.replica, repair=repair)
        return Report(tuple(problems), tuple(advice))

    def export_to(
        self,
        path: str | os.PathLike[str],
        *,
        vectors: bool = False,
        where: Where | None = None,
        namespace: str | None = "*",
    ) -> int:
        """Write memories, as they are at one moment, to a file that `import_from` brings back.

        Args:
            path: ends with .jsonl or .parquet, which says the format; a file there is replaced.
            vectors: with the vectors of the active space, so that a store of the same model need
                not embed them anew.
            where: a filter on the metadata.
            namespace: this one and all below it; "*" is every one, None the store's own.

        Returns:
            How many memories the file holds.

        Raises:
            InputError: the path, the filter or the namespace is refused.
            MissingDependencyError: Parquet needs pyarrow.
            StoreBusyError: another export writes this file now.
            StorageError: the file could not be written; no part of it is left.
        """
        target = Path(path).expanduser().absolute()
        scope, condition = check_scope(namespace, self.namespace), compile_filter(where)
        with self._reader() as repository:
            space = repository.spaces.active() if vectors else None
            found = exchange.rows(repository, scope, condition, space)
            return exchange.write(target, found, space)

    def import_from(
        self,
        path: str | os.PathLike[str],
        *,
        on_conflict: OnConflict = "ignore",
        progress: ProgressCallback | None = None,
    ) -> builtins.list[str]:
        """Bring back what `export_to` wrote: ids, times and metadata as they were.

        Vectors are taken over when this store's embedder made them; else the texts are embedded.

        Args:
            path: the file.
            on_conflict: for an id that exists: "error", "replace" or "ignore".
            progress: called after every batch.

        Returns:
            The ids of the memories in the file.

        Raises:
            InputError: the file is no export, or not as it was written: nothing of it is stored. Or
                this store refuses a memory in it: the batches before that one are stored.
            DuplicateIdError: an id exists and `on_conflict` is "error"; likewise.
        """
        found = exchange.read(Path(path).expanduser().absolute(), self._serving.space)
        return self.add_many(found, on_conflict=on_conflict, progress=progress)

    def _backup_beside(self) -> Path:
        return self.backup(backup.beside(self.location.database, "before-repair"))

    def backup(self, path: str | os.PathLike[str]) -> Path:
        """Copy the database, as it is committed now, to a file, while others read and write.

        Args:
            path: a file that does not exist yet, or a folder, in which it gets a name with the
                time.

        Returns:
            The file. It holds all of the store: texts, metadata, vectors, jobs.

        Raises:
            InputError: the file exists, or its folder does not.
            StorageError: the copy could not be written; no part of it is left.
        """
        target = Path(path).expanduser().absolute()
        if target.is_dir():
            target = backup.beside(target / self.location.database.name, "backup")
        if target.exists() or not target.parent.is_dir():
            why = "exists" if target.exists() else "lies in no folder that exists"
            raise InputError(f"{target} {why}: name a new file for the backup", field="path")
        self._open_database.backup(target)
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
        source = Path(path).expanduser().absolute()
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


def _lost(reason: str | None) -> ModelLoadError:
    return ModelLoadError(
        "the store's own model cannot be used, so nothing can be embedded with it: "
        f"{reason}. Name another model to change to"
    )


def _absolute(model: str | None) -> str | None:
    """A model as another process, in another folder, may ask for it."""
    if model is None or model in EMBEDDING_MODELS or not Path(model).expanduser().is_dir():
        return model
    return str(Path(model).expanduser().absolute())
