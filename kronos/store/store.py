"""MemoryStore: the store, synchronous.

Each verb belongs to one service, which documents it and does the work; the services share a
`Session`. `models` and `maintenance` are objects of their own. `KronosMemory` has the same verbs
for asyncio.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import datetime
from types import TracebackType
from typing import Any, NoReturn, TypeVar

from kronos.embedding.registry import DEFAULT_MODEL
from kronos.errors import StoreCopyError
from kronos.serving.options import OpenOptions, utc_now
from kronos.serving.session import Session
from kronos.settings import Place, Settings
from kronos.store.adding import Adding
from kronos.store.browsing import Browsing
from kronos.store.changing import Changing
from kronos.store.comparing import Comparing
from kronos.store.linking import Linking
from kronos.store.maintenance import Maintenance
from kronos.store.models import Models
from kronos.store.reindexing import Reindexing
from kronos.store.searching import Searching
from kronos.store.statistics import Statistics
from kronos.store.transferring import Transferring
from kronos.store.verbs import verb
from kronos.types import Embedder, OnModelChange, ProgressCallback

Store = TypeVar("Store", bound="MemoryStore")


class MemoryStore:
    """A store of memories that are found by meaning.

    Threads may share one store. `MemoryStore.open` opens it at once; as a context manager it closes
    itself.

    Args:
        storage_path: a folder, made when it is missing, or a SQLAlchemy URL.
        namespace: the store's own namespace, which calls mean that name none.
        embedding_model: a preset of `EMBEDDING_MODELS`, a model's name, a folder, "hash" for the
            lexical hash embedder, None for a store whose vectors callers give, or "keep" for
            the model that the store has ("mini" for a new store): it is never changed. If it cannot
            be loaded, hash vectors answer, with a warning.
        embedder: an object with the `Embedder` protocol, instead of `embedding_model`.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps", or several with commas.
        embedding_dim: the width of hash vectors, and of given vectors in a new store. A model's
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
        self._session = session = Session(
            OpenOptions(
                storage_path=storage_path,
                namespace=namespace,
                embedding_model=embedding_model,
                embedder=embedder,
                device=device,
                embedding_dim=embedding_dim,
                on_model_change=on_model_change,
                strict=strict,
                settings=Settings.from_env() if settings is None else settings,
                migrate=migrate,
                clock=clock,
            )
        )
        self._browsing = browsing = Browsing(session)
        self._adding = adding = Adding(session)
        self._changing = Changing(session, browsing)
        self._linking = Linking(session)
        self._searching = Searching(session)
        self._comparing = Comparing(session, browsing)
        self._transferring = Transferring(session, browsing, adding)
        self._statistics = Statistics(session)
        self._reindexing = Reindexing(session)
        self.models = Models(session, self._reindexing)
        """Changes of the embedding model: plans, jobs, rollback."""
        self.maintenance = Maintenance(session)
        """Checks, compaction, tuning, backups, and indexes of words and fields."""

    add = verb("_adding", Adding.add)
    add_many = verb("_adding", Adding.add_many)
    upsert = verb("_adding", Adding.upsert)

    update = verb("_changing", Changing.update)
    delete = verb("_changing", Changing.delete)
    touch = verb("_changing", Changing.touch)

    get = verb("_browsing", Browsing.get)
    find = verb("_browsing", Browsing.find)
    list = verb("_browsing", Browsing.list)
    iterate = verb("_browsing", Browsing.iterate)
    count = verb("_browsing", Browsing.count)
    history = verb("_browsing", Browsing.history)

    search = verb("_searching", Searching.search)
    search_many = verb("_searching", Searching.search_many)
    duplicates = verb("_comparing", Comparing.duplicates)

    link = verb("_linking", Linking.link)
    unlink = verb("_linking", Linking.unlink)
    links = verb("_linking", Linking.links)
    trace = verb("_linking", Linking.trace)

    reindex = verb("_reindexing", Reindexing.reindex)
    stats = verb("_statistics", Statistics.stats)
    export_to = verb("_transferring", Transferring.export_to)
    import_from = verb("_transferring", Transferring.import_from)

    @property
    def location(self) -> Place:
        """Where the store's files are."""
        return self._session.location

    @property
    def namespace(self) -> str:
        """The store's own namespace, which calls mean that name none."""
        return self._session.options.namespace

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
        self._session.open(progress)

    def close(self) -> None:
        """Save the index and close; does nothing when the store is closed.

        A job in the background finishes its batch; it goes on when the store is opened again. A
        call that waits for an embedder ends with StoreClosedError. What does not come to an end
        within ten seconds, because an embedder or a model that loads holds it up, is left to its
        thread, and finds the store closed. The models that the store loaded are given back, unless
        another one uses them.
        """
        self._session.close()

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
