"""A store that is open: its database, who answers, and the transactions that calls run in.

`Opened` opens and closes, and follows when another process makes another space the active one. What
is done in its transactions is the work of the classes above it.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, cast

from kronos.concurrency.background import Background
from kronos.concurrency.coalescing import Combiner
from kronos.concurrency.forking import Lock
from kronos.concurrency.surroundings import check_wanted
from kronos.concurrency.threads import LONGEST_WAIT_S, may_wait_for_embedder
from kronos.db import schema
from kronos.db.database import Database, FileId, file_of
from kronos.embedding.checked import check_embedder
from kronos.embedding.patience import Patience
from kronos.embedding.registry import DEFAULT_MODEL, KEPT_MODEL, absolute
from kronos.embedding.service import EmbeddingService
from kronos.errors import (
    ConfigurationError,
    StorageError,
    StoreBusyError,
    StoreClosedError,
    StoreCopyError,
)
from kronos.maintenance import check as checks
from kronos.repository.memories import Repository
from kronos.search.fields import fields_of
from kronos.search.kept import KeySets
from kronos.serving.group_commit import FOR_ALL, MOST_ROWS, Change, Write, write_together
from kronos.serving.resolver import ServingResolver
from kronos.serving.serving import Serving
from kronos.settings import Location, Settings
from kronos.validation import check_limit, check_namespace, check_time

if TYPE_CHECKING:
    from kronos.embedding.reranking import Reranker
    from kronos.repository.rows import Rows
    from kronos.types import Embedder, OnModelChange, ProgressCallback

_LOOKS_UP_S = 0.05
"""So often whoever waits for an embedder looks whether the store was closed."""
Store = TypeVar("Store", bound="Opened")
T = TypeVar("T")


def utc_now() -> datetime:
    """The time, UTC."""
    return datetime.now(timezone.utc)


class Opened:
    """What every call of a store stands on; `MemoryStore` documents the arguments."""

    def __init__(
        self,
        storage_path: str | os.PathLike[str],
        *,
        namespace: str = "default",
        embedding_model: str | None = DEFAULT_MODEL,
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
        self._found: dict[str, None] = {}
        """Ids of memories that reads found, and that no transaction has noted yet."""
        self._key_sets = KeySets()
        self._file: FileId | None = None
        """The database file that the key sets are of."""
        self._rerankers: dict[str, Reranker] = {}
        self._closed = False
        """`close` was called: nobody waits any longer for an embedder."""
        # A pause for a quota that texts have spent is none of the questions': they ask themselves.
        self._for_texts, self._for_questions = (
            Patience(getattr(self._settings, name), name, sleep=self._wait)
            for name in ("embed_retry_s", "search_retry_s")
        )
        self._own: Embedder | None = None
        """The embedder that was asked for, once the store is open."""
        # The writers of one process queue here, which is fairer than SQLite's own waiting.
        self._writing = Lock()
        self._writes: Combiner[Write, list[Any]] = Combiner(
            self._write_together, most=MOST_ROWS, for_all=FOR_ALL
        )
        # Held while the store opens, closes or follows a switch: models load under it.
        self._settling = Lock(threading.RLock)
        # Held for moments, inside of the other: whoever `close` gave up changes nothing any more.
        self._changing = Lock()

    @classmethod
    def open(
        cls: type[Store],
        storage_path: str | os.PathLike[str],
        *,
        progress: ProgressCallback | None = None,
        **options: Any,
    ) -> Store:
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
        with self._settling as settling:
            if self._database is not None:
                return
            self._closed = False
            database = Database(self.location.database, self._settings)
            try:
                with suppress(StorageError):
                    checks.remove_unfinished(self.location.database, self.location.index)
                schema.prepare(database, migrate=self._migrate)
                database.hold()
                with suppress(StorageError):  # busy, read-only: `check` says what is left
                    schema.finish(database, wait=False)
                self._mend_field_indexes(database)
                own, serving, job = self._resolve(self._resolver(database), progress)
                with self._changing:
                    if self._settling is not settling:  # `close` waited no longer
                        raise StoreClosedError("the store was closed while it was opened")
                    self._database, self._current, self._own = database, serving, own
                    self._key_sets = KeySets()
                    self._jobs, self._snapshots = Background("job"), Background("snapshot")
            except BaseException:
                database.close()
                raise
            if job is not None:
                self._jobs.start(job)

    def _resolve(
        self, resolver: ServingResolver, progress: ProgressCallback | None
    ) -> tuple[Embedder | None, Serving, Callable[[threading.Event], Callable[[], object]] | None]:
        """The embedder that was asked for, who answers, and a job that makes vectors meanwhile."""
        keeps = self._embedder is None and self._model == KEPT_MODEL
        if keeps and resolver.is_set_up():
            return None, resolver.follow(()), None
        own = self._load(DEFAULT_MODEL, strict=self._strict) if keeps else self._own_embedder()
        serving, job = resolver.resolve(
            own,
            alias=self._alias(),
            on_model_change=self._on_model_change,
            progress=progress,
        )
        return own, serving, job

    def _alias(self) -> str | None:
        """What another process is to ask for, to have the same embedder."""
        if isinstance(self._embedder, EmbeddingService):
            return absolute(os.fspath(self._embedder.model))
        if self._embedder is not None:
            return None
        return absolute(DEFAULT_MODEL if self._model == KEPT_MODEL else self._model)

    def _mend_field_indexes(self, database: Database) -> None:
        """Make the indexes of metadata keys that a migration or a recovery left out."""
        with database.read() as connection:
            missing = fields_of(self._repository(connection)).missing()
        if missing:
            with suppress(StorageError), database.write() as connection:
                fields_of(self._repository(connection)).ensure()

    def _wait(self, seconds: float) -> None:
        """Wait for an embedder, until the store is closed, or nobody waits for the answer."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if self._closed:
                raise StoreClosedError
            check_wanted()
            time.sleep(min(left, _LOOKS_UP_S))

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

    def _resolver(self, database: Database) -> ServingResolver:
        return ServingResolver(
            database=database,
            folder=self.location.index,
            device=self._device,
            settings=self._settings,
            clock=self._clock,
            load=lambda model, dim: self._load(model, strict=True, dim=dim),
            embedding_dim=self._embedding_dim,
            strict=self._strict,
            for_texts=self._for_texts,
            for_questions=self._for_questions,
        )

    def close(self) -> None:
        """Save the index and close; does nothing when the store is closed.

        A job in the background finishes its batch; it goes on when the store is opened again. A
        call that waits for an embedder ends with StoreClosedError. What does not come to an end
        within ten seconds, because an embedder or a model that loads holds it up, is left to its
        thread, and finds the store closed. The models that the store loaded are given back, unless
        another one uses them.
        """
        self._closed = True
        self._jobs.stop()
        self._snapshots.stop()
        with self._settling.soon(LONGEST_WAIT_S) as is_settled, self._writing:
            with self._changing:
                if not is_settled:
                    self._settling = Lock(threading.RLock)
                database, self._database = self._database, None
                serving, self._current = self._current, None
                self._own = None
                self._rerankers.clear()
            if database is None or serving is None:
                return
            try:
                self._note_the_rest(database)
                if database.is_in_place:  # else its folder is gone, or another store's
                    serving.replica.save()
            finally:
                database.close()

    def _note_the_rest(self, database: Database) -> None:
        if self._found:
            with suppress(StorageError), database.write() as connection:
                self._repository(connection).touch([*self._found])
            self._found.clear()

    def __reduce__(self) -> NoReturn:
        raise StoreCopyError(
            "a store cannot be copied, pickled or sent to another process: hand over the path that "
            f"it was opened with, and open it there (its database is {self.location.database})"
        )

    def __enter__(self: Store) -> Store:
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
        return Repository(
            connection,
            now,
            expired_by=self._latest,
            keep_history=self._settings.keep_history,
        )

    @contextmanager
    def _reader(self) -> Iterator[Repository]:
        with self._open_database.read() as connection:
            if (file := file_of(connection)) != self._file:  # a copy of the store is in its place
                self._key_sets, self._file = KeySets(), file
            yield self._repository(connection)

    @contextmanager
    def _reader_of(self, as_of: datetime | None) -> Iterator[Rows]:
        """The same, of what the store knew at a moment."""
        moment = check_time(as_of, field="as_of")
        with self._reader() as repository:
            yield repository if moment is None else repository.as_of(moment)

    @contextmanager
    def _writer(self) -> Iterator[Repository]:
        """A write transaction of one's own; small writes share theirs by `_write`."""
        with self._writing, self._open_database.write() as connection:
            yield self._repository(connection)

    @contextmanager
    def _writer_at_once(self) -> Iterator[Repository]:
        """The same, for what a read would like to write: StoreBusyError instead of waiting."""
        with self._writing.soon(0) as alone:
            if not alone:
                raise StoreBusyError
            with self._open_database.write(wait=False) as connection:
                yield self._repository(connection)

    def _write_together(self, writes: Sequence[Write]) -> list[Any]:
        with self._writer() as repository:
            return write_together(repository, writes)

    def _write(
        self, make: Callable[[Repository], T], serving: Serving | None = None, *, rows: int = 1
    ) -> T:
        """Make a small write, together with those that come at the same time.

        Args:
            make: does it; an error leaves nothing of it.
            serving: who made the vectors in it.
            rows: how many memories it changes; from `MOST_ROWS` on it is made alone.

        Raises:
            SpaceChangedError: the serving serves no longer.
        """
        (outcome,) = self._writes([Change(make, serving)], rows)
        if isinstance(outcome, Exception):
            raise outcome
        return cast("T", outcome)

    def _follow(self, left: Serving, *loaded: Embedder) -> None:
        """Let the active space of now answer, whoever made it so.

        Models load outside any lock that readers or writers hold.
        """
        may_wait_for_embedder()
        with self._settling:
            if self._serving is not left:
                return  # another thread was here first
            own = [] if self._own is None else [self._own]
            known = None if left.embedder is None else [left.embedder, *loaded, *own]
            database = self._open_database
            serving = self._resolver(database).follow(known)
            database.hold()  # a backup of another store may have been restored
            with self._changing:
                if self._serving is not left:  # closed: `close` does not wait for ever
                    raise StoreClosedError
                self._current = serving
