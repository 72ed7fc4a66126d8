"""KronosMemory: the store for asyncio. It has the verbs of `MemoryStore`, and runs them on threads.

Calls that are under way at the same time share their work, whatever their event loops: adds share
an encoding and a transaction, questions an encoding; a lone call waits for no other. A cancelled
call is done or not done, never half.
"""

from __future__ import annotations

import builtins
import os
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from kronos.aio.calls import is_small
from kronos.aio.maintenance import AsyncMaintenance
from kronos.aio.mirroring import Mirror, apart, as_job, mirroring, reading, writing
from kronos.aio.models import AsyncModels
from kronos.aio.opening import AsyncOpening, awaited
from kronos.embedding.registry import DEFAULT_MODEL
from kronos.errors import naming_stored
from kronos.settings import Settings
from kronos.store.store import MemoryStore
from kronos.types import (
    AsyncEmbedder,
    Embedder,
    Hits,
    Memory,
    NewMemory,
    OnConflict,
    OnModelChange,
    Progress,
    ProgressCallback,
)
from kronos.validation import Item

if TYPE_CHECKING:
    from kronos.store.answering.finding import Queried

Memories = TypeVar("Memories", bound="KronosMemory")
T = TypeVar("T")


class KronosMemory(Mirror):
    """A store of memories that are found by meaning, for asyncio.

    Use it as `async with KronosMemory(path) as memory:`, or call `connect` and `close`. All verbs,
    arguments, errors and results are those of `MemoryStore`, which documents them.

    Any number of event loops and threads may share one. It keeps nothing of a loop between two
    calls, so loops may come and go (`asyncio.run` for each call), and one that ends during a call
    does not affect the others. Whatever is large is checked on a thread, what may take long has a
    thread of its own, and a search by words or by a vector waits for no embedder.

    An embedder sees the context variables of the task that calls, as if it had called it directly.
    Texts of several tasks go to a program's own embedder together only where their contexts hold
    the same values; for an `AsyncEmbedder`, only those of one event loop.

    Args:
        storage_path: a folder, made when it is missing, or a SQLAlchemy URL.
        namespace: the store's own namespace, which calls mean that name none.
        embedding_model: a preset of `EMBEDDING_MODELS`, a model's name, a folder, "hash" for the
            lexical hash embedder, "keep" for the model that the store has, or None for a store
            whose vectors callers give.
        embedder: an object with the `Embedder` or the `AsyncEmbedder` protocol, instead of
            `embedding_model`.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps", or several with commas.
        embedding_dim: the width of hash vectors, and of given vectors in a new store. A model's
            width is its own.
        on_model_change: what to do when another embedder made the store's vectors: "rebuild" makes
            them anew before the store opens; "background" does so on a thread while the embedder
            before answers; "error" raises `EmbedderMismatchError`.
        strict: raise `ModelLoadError` where the hash fallback would take over.
        settings: further options; None reads them from the environment.
        migrate: upgrade a database of an older Kronos, after a backup.
    """

    def __init__(
        self,
        storage_path: str | os.PathLike[str],
        *,
        namespace: str = "default",
        embedding_model: str | None = DEFAULT_MODEL,
        embedder: Embedder | AsyncEmbedder | None = None,
        device: str = "auto",
        embedding_dim: int = 384,
        on_model_change: OnModelChange = "rebuild",
        strict: bool = False,
        settings: Settings | None = None,
        migrate: bool = False,
    ) -> None:
        own = awaited(embedder)
        self._store = MemoryStore(
            storage_path,
            namespace=namespace,
            embedding_model=embedding_model,
            embedder=own or embedder,  # type: ignore[arg-type]
            device=device,
            embedding_dim=embedding_dim,
            on_model_change=on_model_change,
            strict=strict,
            settings=settings,
            migrate=migrate,
        )
        super().__init__(self._store, AsyncOpening(self._store, own))
        self.models = AsyncModels(self._store.models, self._opening)
        """Changes of the embedding model: plans, jobs, rollback."""
        self.maintenance = AsyncMaintenance(self._store.maintenance, self._opening)
        """Checks, compaction, tuning, backups, and indexes of words and fields."""

    async def connect(self, *, progress: ProgressCallback | None = None) -> None:
        """Open the store; does nothing when it is open.

        Tasks that call it at once, of any event loops, open it once. When all of them are
        cancelled, the store is closed again as soon as it is open.

        Raises:
            StoreClosedError: `close` was called meanwhile.
            KronosError: as `MemoryStore.open` does.
        """
        await self._opening.connect(progress=progress)

    async def close(self) -> None:
        """Finish what is under way, save the index and close; does nothing when it is closed.

        Any task of any event loop may call it, also several at once. Calls that are under way come
        to their end, or raise `StoreClosedError`; long ones are stopped. It waits for no embedder
        longer than ten seconds. Afterwards `connect` opens the store again.
        """
        await self._opening.close()

    async def __aenter__(self: Memories) -> Memories:
        await self.connect()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    def __reduce__(self) -> NoReturn:
        self._store.__reduce__()

    get = reading(MemoryStore.get)
    find = reading(MemoryStore.find)
    list = reading(MemoryStore.list)
    count = reading(MemoryStore.count)
    history = reading(MemoryStore.history)
    links = reading(MemoryStore.links)
    trace = reading(MemoryStore.trace)

    delete = writing(MemoryStore.delete)
    touch = writing(MemoryStore.touch)
    link = writing(MemoryStore.link)
    unlink = writing(MemoryStore.unlink)

    stats = apart(MemoryStore.stats)
    reindex = as_job(MemoryStore.reindex)
    duplicates = as_job(MemoryStore.duplicates)
    export_to = as_job(MemoryStore.export_to)
    import_from = as_job(MemoryStore.import_from)

    # -- Verbs that share their work with those of other tasks ------------------------------------

    @mirroring(MemoryStore.add)
    async def add(self, content: str, *, on_conflict: OnConflict = "error", **fields: Any) -> str:
        calls = self._opening.calls
        item = NewMemory(content, **fields)
        batch = await calls.check(self._store._adding.prepare, item, on_conflict)
        return (await calls.add(batch))[0]

    @mirroring(MemoryStore.upsert)
    async def upsert(self, content: str, **fields: Any) -> str:
        calls, prepare = self._opening.calls, self._store._adding.prepare
        item = NewMemory(content, **fields)
        batch = await calls.check(prepare, item, "replace", match_content=True)
        return (await calls.add(batch))[0]

    @mirroring(MemoryStore.add_many)
    async def add_many(
        self,
        items: Iterable[Item],
        *,
        on_conflict: OnConflict = "error",
        progress: ProgressCallback | None = None,
    ) -> builtins.list[str]:
        batches = self._store._adding.batches(items, on_conflict)
        ids: builtins.list[str] = []
        is_few = isinstance(items, builtins.list | tuple) and is_small(items)
        with naming_stored(ids):
            while batch := (
                next(batches, None)
                if is_few
                else await self._look_through(items, lambda _: next(batches, None))
            ):
                ids += await self._opening.calls.add(batch)
                if progress is not None:
                    progress(Progress(len(ids), None))
        return ids

    async def _look_through(self, given: Iterable[Any], take: Callable[[Any], T]) -> T:
        """Look through the items given; a caller's own iterator may take long."""
        calls = self._opening.calls
        is_at_hand = isinstance(given, builtins.list | tuple)
        return await (calls.check if is_at_hand else calls.fetch)(take, given)

    @mirroring(MemoryStore.update)
    async def update(self, id: str, **fields: Any) -> Memory:
        calls = self._opening.calls
        way = calls.write if fields.get("content", ...) is ... else calls.encode
        return await way(self._store.update, id, **fields)

    @mirroring(MemoryStore.search)
    async def search(self, query: Queried | None = None, **options: Any) -> Hits:
        (hits,) = await self._search([query], **options)
        return hits

    @mirroring(MemoryStore.search_many)
    async def search_many(self, queries: Iterable[Queried], **options: Any) -> builtins.list[Hits]:
        check = self._store._searching.asking.check_queries
        return await self._search(await self._look_through(queries, check), **options)

    async def _search(
        self, asked: Sequence[Queried | None], *, namespace: str | None = None, **options: Any
    ) -> builtins.list[Hits]:
        calls, searching = self._opening.calls, self._store._searching
        wanted = await calls.check(searching.asking.options, namespace, **options)
        if not asked:
            return []
        serving, texts = await calls.check(searching.asking.to_embed, asked, wanted)
        made = await calls.ask(serving, texts) if texts else None
        # A reranker is a model too, and slow.
        way = calls.read if wanted.request.ranking.rerank is None else calls.encode
        return await way(searching.answering.answer, asked, wanted, made)

    @mirroring(MemoryStore.iterate)
    async def iterate(
        self, *, where: Any = None, namespace: str | None = None, as_of: Any = None
    ) -> AsyncIterator[Memory]:
        opening, browsing = self._opening, self._store._browsing
        selection = await opening.calls.check(browsing.selection, where, namespace)
        key = -1
        while part := await opening.calls.read(browsing.fetch, selection, as_of, key):
            for _, memory in part:
                opening.calls  # noqa: B018 - a closed store hands out nothing more
                yield memory
            key = part[-1][0]
