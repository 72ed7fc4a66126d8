"""The session of an open store: its database, its serving space, and the transactions of calls.

`Session` opens and closes, and follows when another process makes another space the active one. The
services of `kronos.store` work in its transactions; it knows none of their rules.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, TypeVar, cast

from kronos.concurrency.background import Background
from kronos.concurrency.call_context import check_not_cancelled
from kronos.concurrency.coalescing import Coalescer
from kronos.concurrency.forking import Lock
from kronos.concurrency.pacing import sleep_unless
from kronos.concurrency.threads import SHUTDOWN_TIMEOUT_S, check_may_wait_for_embedder
from kronos.db import schema
from kronos.db.database import Database, FileId, file_of
from kronos.embedding.retry import RetryPolicy
from kronos.errors import SpaceChangedError, StorageError, StoreBusyError, StoreClosedError
from kronos.maintenance import check as checks
from kronos.repository.memories import Repository
from kronos.search.field_indexes import FieldIndexes
from kronos.search.key_sets import KeySets
from kronos.serving.accesses import Accesses
from kronos.serving.embedders import Embedders
from kronos.serving.group_commit import FOR_ALL, MOST_ROWS, Change, Write, write_together
from kronos.serving.resolver import ServingResolver
from kronos.validation import check_time

if TYPE_CHECKING:
    from kronos.repository.rows import Rows
    from kronos.search.key_sets import Asked, KeptT
    from kronos.serving.options import OpenOptions
    from kronos.serving.serving import Serving
    from kronos.types import Embedder, ProgressCallback, VectorIndex

T = TypeVar("T")


class Session:
    """An open store. Threads may share it.

    Args:
        options: what the store is opened with.
    """

    def __init__(self, options: OpenOptions) -> None:
        self.options = options
        self.location = options.location
        self.settings = options.settings
        self.clock = options.clock
        self.embedders = Embedders(options)
        self.accesses = Accesses(self.writer_at_once)
        self.own: Embedder | None = None
        """The embedder that was asked for, once the store is open."""
        self.jobs, self.snapshots = Background("job"), Background("snapshot")
        self.key_sets = KeySets()
        # Two: when storing texts has used up a quota, questions still try for themselves.
        self.for_texts, self.for_questions = (
            RetryPolicy(getattr(self.settings, name), name, sleep=self._wait)
            for name in ("embed_retry_s", "search_retry_s")
        )
        self._database: Database | None = None
        self._current: Serving | None = None
        self._latest = datetime.min.replace(tzinfo=timezone.utc)
        """The latest time seen: clocks are put back, and what had expired must stay gone."""
        self._file: FileId | None = None
        """The database file that the key sets are of."""
        self._is_closed = False
        """`close` was called: no call waits any longer for an embedder."""
        # The writers of one process queue here, which is fairer than the database's own waiting.
        self._writing = Lock()
        self.write_all: Coalescer[Write, list[Any]] = Coalescer(
            self._write_together, max_size=MOST_ROWS, for_all=FOR_ALL
        )
        """Makes writes, together with those of other threads: what each returns, or its error."""
        # Held while the store opens, closes or follows a switch: models load under it.
        self._settling = Lock(threading.RLock)
        # Held for moments, inside the other: a thread that `close` gave up changes nothing more.
        self._changing = Lock()

    # -- Opening and closing ----------------------------------------------------------------------

    def open(self, progress: ProgressCallback | None = None) -> None:
        """Open the store; does nothing when it is open. Raises as `MemoryStore.open` does."""
        with self._settling as settling:
            if self._database is not None:
                return
            self._is_closed = False
            database = Database(self.location.database, self.settings)
            try:
                self._prepare(database)
                own, serving, job = self._resolve(self._resolver(database), progress)
                with self._changing:
                    if self._settling is not settling:  # `close` waited no longer
                        raise StoreClosedError("the store was closed while it was opened")
                    self._database, self._current, self.own = database, serving, own
                    self.key_sets = KeySets()
                    self.jobs, self.snapshots = Background("job"), Background("snapshot")
            except BaseException:
                database.close()
                raise
            if job is not None:
                self.jobs.start(job)

    def _prepare(self, database: Database) -> None:
        """Bring the database to this Kronos's schema, and mend what an interruption left."""
        with suppress(StorageError):
            checks.remove_unfinished(self.location.database, self.location.index)
        schema.prepare(database, migrate=self.options.migrate)
        database.hold()
        with suppress(StorageError):  # busy, read-only: `check` says what is left
            schema.finish(database, wait=False)
        with database.read() as connection:
            missing = FieldIndexes.of(self._repository(connection)).missing()
        if missing:  # indexes that a migration or a recovery left out
            with suppress(StorageError), database.write() as connection:
                FieldIndexes.of(self._repository(connection)).ensure()

    def _resolve(
        self, resolver: ServingResolver, progress: ProgressCallback | None
    ) -> tuple[Embedder | None, Serving, Callable[[threading.Event], Callable[[], object]] | None]:
        """The embedder asked for, the serving space, and a job that makes vectors meanwhile."""
        if self.embedders.keeps_model and resolver.is_set_up():
            return None, resolver.follow(()), None
        own = self.embedders.asked_for()
        serving, job = resolver.resolve(
            own,
            alias=self.embedders.alias,
            on_model_change=self.options.on_model_change,
            progress=progress,
        )
        return own, serving, job

    def _wait(self, seconds: float) -> None:
        """Wait for an embedder, until the store is closed, or no task waits for the answer."""

        def check() -> None:
            if self._is_closed:
                raise StoreClosedError
            check_not_cancelled()

        sleep_unless(check, seconds)

    def close(self) -> None:
        """Save the index and close; `MemoryStore.close` says how."""
        self._is_closed = True
        self.jobs.stop()
        self.snapshots.stop()
        with self._settling.hold_within(SHUTDOWN_TIMEOUT_S) as is_settled, self._writing:
            with self._changing:
                if not is_settled:
                    self._settling = Lock(threading.RLock)
                database, self._database = self._database, None
                serving, self._current = self._current, None
                self.own = None
                self.embedders.release()
            if database is None or serving is None:
                return
            try:
                self._note_accesses(database)
                if database.is_in_place:  # else its folder is gone, or another store's
                    serving.replica.save()
            finally:
                database.close()

    def _note_accesses(self, database: Database) -> None:
        if found := self.accesses.take():
            with suppress(StorageError), database.write() as connection:
                self._repository(connection).touch(found)

    # -- The serving space ------------------------------------------------------------------------

    @property
    def serving(self) -> Serving:
        """The serving space.

        Raises:
            StoreClosedError: the store is not open.
        """
        if self._database is None or self._current is None:
            raise StoreClosedError
        return self._current

    @property
    def database(self) -> Database:
        """The database.

        Raises:
            StoreClosedError: the store is not open.
        """
        if self._database is None:
            raise StoreClosedError
        return self._database

    @property
    def resolver(self) -> ServingResolver:
        """Finds the serving space, and makes jobs."""
        return self._resolver(self.database)

    def _resolver(self, database: Database) -> ServingResolver:
        options = self.options
        return ServingResolver(
            database=database,
            folder=self.location.index,
            device=options.device,
            settings=self.settings,
            clock=self.clock,
            load=lambda model, dim: self.embedders.load(model, strict=True, dim=dim),
            embedding_dim=options.embedding_dim,
            strict=options.strict,
            for_texts=self.for_texts,
            for_questions=self.for_questions,
        )

    def follow(self, left: Serving, *loaded: Embedder) -> None:
        """Let the space serve that is the active one now, whichever process made it so.

        Models load outside any lock that readers or writers hold.

        Args:
            left: the serving space that is current no longer.
            loaded: embedders that are loaded already.
        """
        check_may_wait_for_embedder()
        with self._settling:
            if self.serving is not left:
                return  # another thread was here first
            own = [] if self.own is None else [self.own]
            known = None if left.embedder is None else [left.embedder, *loaded, *own]
            database = self.database
            serving = self.resolver.follow(known)
            database.hold()  # a backup of another store may have been restored
            with self._changing:
                if self.serving is not left:  # closed: `close` does not wait for ever
                    raise StoreClosedError
                self._current = serving

    def on_serving(self, work: Callable[[Serving], T]) -> T:
        """Do something for the serving space, anew whenever another one took over meanwhile.

        Args:
            work: raises SpaceChangedError when its space serves no longer, as `index_of` does.
        """
        while True:
            serving = self.serving
            try:
                return work(serving)
            except SpaceChangedError:
                self.follow(serving)

    @contextmanager
    def index_of(self, serving: Serving) -> Iterator[tuple[VectorIndex, Repository]]:
        """A serving space's index, and the rows at the same moment; searches wait meanwhile.

        Raises:
            SpaceChangedError: another space serves now.
        """
        with serving.replica.lock, self.reader() as repository:
            head = repository.head()
            if not serving.is_current(repository, head):
                raise SpaceChangedError
            yield serving.replica.catch_up(repository, head.seq), repository

    # -- Transactions -----------------------------------------------------------------------------

    def _repository(self, connection: Any) -> Repository:
        now = self.clock()
        self._latest = max(now, self._latest)
        return Repository(
            connection,
            now,
            expired_by=self._latest,
            keep_history=self.settings.keep_history,
        )

    @contextmanager
    def reader(self) -> Iterator[Repository]:
        """A transaction that reads one consistent state."""
        with self.database.read() as connection:
            if (file := file_of(connection)) != self._file:  # a copy of the store replaced it
                self.key_sets, self._file = KeySets(), file
            yield self._repository(connection)

    @contextmanager
    def reader_of(self, as_of: datetime | None) -> Iterator[Rows]:
        """The same, of what the store knew at a moment; None is now."""
        moment = check_time(as_of, field="as_of")
        with self.reader() as repository:
            yield repository.as_of(moment)

    @contextmanager
    def writer(self) -> Iterator[Repository]:
        """A write transaction of one's own; small writes share theirs by `write`."""
        with self._writing, self.database.write() as connection:
            yield self._repository(connection)

    @contextmanager
    def writer_at_once(self) -> Iterator[Repository]:
        """The same, for a read that would like to write: StoreBusyError instead of waiting."""
        with self._writing.hold_within(0) as alone:
            if not alone:
                raise StoreBusyError
            with self.database.write(wait=False) as connection:
                yield self._repository(connection)

    def _write_together(self, writes: Sequence[Write]) -> list[Any]:
        with self.writer() as repository:
            return write_together(repository, writes)

    def write(
        self, make: Callable[[Repository], T], serving: Serving | None = None, *, rows: int = 1
    ) -> T:
        """Make a small write, together with those that come at the same time.

        Args:
            make: does it; an error leaves nothing of it.
            serving: the serving space that the vectors in it were made for.
            rows: how many memories it changes; from `MOST_ROWS` on it is made alone.

        Raises:
            SpaceChangedError: another space serves now.
        """
        (outcome,) = self.write_all([Change(make, serving)], rows)
        if isinstance(outcome, Exception):
            raise outcome
        return cast("T", outcome)

    def learn(self, asked: Asked[KeptT]) -> KeptT:
        """Find a key set in a transaction of its own; several threads find it once."""
        with self.key_sets.turn(asked), self.reader() as repository:
            return self.key_sets.learn(repository, asked)
