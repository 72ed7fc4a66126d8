"""KronosMemory: the store, async. The verbs of `MemoryStore`, on threads.

Calls that are under way at the same time share their work, whatever their event loops: adds share
an encoding and a transaction, questions an encoding; a lone call waits for nobody. A cancelled call
is done or not done, never half.
"""

from __future__ import annotations

import builtins
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from datetime import datetime
from types import EllipsisType
from typing import TYPE_CHECKING, Any, TypeVar

from kronos.aio.calls import is_small
from kronos.aio.upkeep import AsyncUpkeep
from kronos.errors import naming_stored
from kronos.types import Hits, Link, Memory, NewMemory, Progress, Step, Version

if TYPE_CHECKING:
    from kronos.repository.links import Direction
    from kronos.search.filters import Where
    from kronos.search.ranking import Ranking
    from kronos.types import (
        Metadata,
        OnConflict,
        ProgressCallback,
        SearchMode,
        Vectors,
    )
    from kronos.validation import Item

T = TypeVar("T")


class KronosMemory(AsyncUpkeep):
    """A store of memories that are found by meaning, for asyncio.

    Use it as `async with KronosMemory(path) as memory:`, or call `connect` and `close`. All verbs,
    arguments, errors and results are those of `MemoryStore`, which documents them.

    Any number of event loops and threads may share one. It keeps nothing of a loop between two
    calls, so loops may come and go (`asyncio.run` for each call), and one that ends amid a call
    costs the others nothing. Whatever is large is checked on a thread, what may take long has a
    thread of its own, and a search by words or by a vector waits for no embedder.

    An embedder sees the context variables of the task that calls, as if it had called it directly.
    Texts of several tasks go to a program's own embedder together only where their contexts hold
    the same values; for an `AsyncEmbedder`, only those of one event loop.

    Args:
        storage_path: a folder, made when it is missing, or a SQLAlchemy URL.
        namespace: the store's own namespace, which calls mean that name none.
        embedding_model: a preset of `EMBEDDING_MODELS`, a model's name, a folder, "hash" for the
            lexical hash embedder, "keep" for the model that the store has, or None for a store of
            vectors that are handed in.
        embedder: an object with the `Embedder` or the `AsyncEmbedder` protocol, in place of
            `embedding_model`.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps", or several with commas.
        embedding_dim: the width of hash vectors, and of vectors handed in to a new store. A model's
            width is its own.
        on_model_change: what to do when another embedder made the store's vectors: "rebuild" makes
            them anew before the store opens; "background" does so on a thread while the embedder
            before answers; "error" raises `EmbedderMismatchError`.
        strict: raise `ModelLoadError` where the hash fallback would take over.
        settings: further options; None reads them from the environment.
        migrate: upgrade a database of an older Kronos, after a backup.
    """

    async def add(
        self,
        content: str,
        *,
        metadata: Metadata | None = None,
        namespace: str | None = None,
        importance: float = 0.5,
        parent_id: str | None = None,
        expires_at: datetime | None = None,
        id: str | None = None,
        embedding: Vectors | Sequence[float] | None = None,
        on_conflict: OnConflict = "error",
    ) -> str:
        """Store one memory; see `MemoryStore.add`."""
        item = NewMemory(
            content,
            id=id,
            namespace=namespace,
            metadata=metadata,
            importance=importance,
            parent_id=parent_id,
            expires_at=expires_at,
            embedding=embedding,
        )
        calls = self._open_calls
        batch = await calls.check(self._store._prepare, item, on_conflict)
        return (await calls.add(batch))[0]

    async def add_many(
        self,
        items: Iterable[Item],
        *,
        on_conflict: OnConflict = "error",
        progress: ProgressCallback | None = None,
    ) -> builtins.list[str]:
        """Store many memories; see `MemoryStore.add_many`."""
        batches = self._store._batches(items, on_conflict)
        ids: builtins.list[str] = []
        is_few = isinstance(items, list | tuple) and is_small(items)
        with naming_stored(ids):
            while batch := (
                next(batches, None)
                if is_few
                else await self._look_through(items, lambda _: next(batches, None))
            ):
                ids += await self._open_calls.add(batch)
                if progress is not None:
                    progress(Progress(len(ids), None))
        return ids

    async def _look_through(self, given: Iterable[Any], take: Callable[[Any], T]) -> T:
        """Look through what a caller hands in; an iterator of its own may take long over it."""
        calls = self._open_calls
        is_at_hand = isinstance(given, list | tuple)
        return await (calls.check if is_at_hand else calls.fetch)(take, given)

    async def upsert(
        self,
        content: str,
        *,
        id: str | None = None,
        metadata: Metadata | None = None,
        namespace: str | None = None,
        importance: float = 0.5,
        parent_id: str | None = None,
        expires_at: datetime | None = None,
        embedding: Vectors | Sequence[float] | None = None,
    ) -> str:
        """Store one memory in the place of another; see `MemoryStore.upsert`."""
        item = NewMemory(
            content,
            id=id,
            namespace=namespace,
            metadata=metadata,
            importance=importance,
            parent_id=parent_id,
            expires_at=expires_at,
            embedding=embedding,
        )
        calls = self._open_calls
        batch = await calls.check(self._store._prepare, item, "replace", match_content=True)
        return (await calls.add(batch))[0]

    async def get(self, id: str, *, as_of: datetime | None = None) -> Memory:
        """Read a memory; see `MemoryStore.get`."""
        return await self._open_calls.read(self._store.get, id, as_of=as_of)

    async def find(self, id: str, *, as_of: datetime | None = None) -> Memory | None:
        """Read a memory, or None; see `MemoryStore.find`."""
        return await self._open_calls.read(self._store.find, id, as_of=as_of)

    async def history(self, id: str) -> builtins.list[Version]:
        """What a memory was, and is; see `MemoryStore.history`."""
        return await self._open_calls.read(self._store.history, id)

    async def update(
        self,
        id: str,
        *,
        content: str | EllipsisType = ...,
        metadata: Metadata | EllipsisType | None = ...,
        importance: float | EllipsisType = ...,
        expires_at: datetime | EllipsisType | None = ...,
    ) -> Memory:
        """Change fields of a memory; see `MemoryStore.update`."""
        calls = self._open_calls
        way = calls.write if content is ... else calls.encode
        return await way(
            self._store.update,
            id,
            content=content,
            metadata=metadata,
            importance=importance,
            expires_at=expires_at,
        )

    async def delete(
        self,
        ids: str | Iterable[str] | None = None,
        *,
        where: Where | None = None,
        namespace: str | None = None,
    ) -> int:
        """Delete memories; see `MemoryStore.delete`."""
        return await self._open_calls.write(
            self._store.delete, ids, where=where, namespace=namespace
        )

    async def touch(self, ids: str | Iterable[str]) -> int:
        """Note that memories are made use of; see `MemoryStore.touch`."""
        return await self._open_calls.write(self._store.touch, ids)

    async def search(
        self,
        query: str | Sequence[float] | Vectors | None = None,
        *,
        limit: int = 10,
        namespace: str | None = None,
        where: Where | None = None,
        mode: SearchMode = "hybrid",
        min_score: float | None = None,
        near: str | None = None,
        ranking: Ranking | None = None,
        group_by: str | None = None,
        as_of: datetime | None = None,
        expand: int = 0,
        expand_outside: bool = False,
        explain: bool = False,
    ) -> Hits:
        """Find the memories that match best; see `MemoryStore.search`."""
        (hits,) = await self._search(
            [query],
            limit=limit,
            namespace=namespace,
            where=where,
            mode=mode,
            min_score=min_score,
            near=near,
            ranking=ranking,
            group_by=group_by,
            as_of=as_of,
            expand=expand,
            expand_outside=expand_outside,
            explain=explain,
        )
        return hits

    async def search_many(
        self,
        queries: Iterable[str | Sequence[float] | Vectors],
        *,
        limit: int = 10,
        namespace: str | None = None,
        where: Where | None = None,
        mode: SearchMode = "hybrid",
        min_score: float | None = None,
        ranking: Ranking | None = None,
        group_by: str | None = None,
        as_of: datetime | None = None,
        expand: int = 0,
        expand_outside: bool = False,
        explain: bool = False,
    ) -> builtins.list[Hits]:
        """Answer many questions at once; see `MemoryStore.search_many`."""
        return await self._search(
            await self._look_through(queries, self._store._check_queries),
            limit=limit,
            namespace=namespace,
            where=where,
            mode=mode,
            min_score=min_score,
            near=None,
            ranking=ranking,
            group_by=group_by,
            as_of=as_of,
            expand=expand,
            expand_outside=expand_outside,
            explain=explain,
        )

    async def _search(
        self, asked: Sequence[str | Sequence[float] | Vectors | None], **options: Any
    ) -> builtins.list[Hits]:
        calls, store = self._open_calls, self._store
        wanted = await calls.check(store._wanted, **options)
        if not asked:
            return []
        serving, texts = await calls.check(store._to_embed, asked, wanted)
        made = await calls.ask(serving, texts) if texts else None
        # A reranker is a model too, and slow.
        way = calls.read if wanted.request.ranking.rerank is None else calls.encode
        return await way(store._answer, asked, wanted, made)

    async def list(
        self,
        *,
        where: Where | None = None,
        namespace: str | None = None,
        after: str | None = None,
        limit: int = 100,
        as_of: datetime | None = None,
    ) -> builtins.list[Memory]:
        """Read memories in the order in which they were added; see `MemoryStore.list`."""
        return await self._open_calls.read(
            self._store.list,
            where=where,
            namespace=namespace,
            after=after,
            limit=limit,
            as_of=as_of,
        )

    async def iterate(
        self,
        *,
        where: Where | None = None,
        namespace: str | None = None,
        as_of: datetime | None = None,
    ) -> AsyncIterator[Memory]:
        """Read all memories, `async for`; see `MemoryStore.iterate`."""
        selection = await self._open_calls.check(self._store._selection, where, namespace)
        key = -1
        while part := await self._open_calls.read(self._store._fetch, selection, as_of, key):
            for _, memory in part:
                self._open_calls  # noqa: B018 - closed, it hands out nothing that it had read either
                yield memory
            key = part[-1][0]

    async def count(
        self,
        *,
        where: Where | None = None,
        namespace: str | None = None,
        as_of: datetime | None = None,
    ) -> int:
        """Count memories; see `MemoryStore.count`."""
        return await self._open_calls.read(
            self._store.count, where=where, namespace=namespace, as_of=as_of
        )

    async def link(
        self, source_id: str, target_id: str, relation: str, weight: float = 1.0
    ) -> None:
        """Link a memory to another one; see `MemoryStore.link`."""
        await self._open_calls.write(self._store.link, source_id, target_id, relation, weight)

    async def unlink(self, source_id: str, target_id: str, relation: str | None = None) -> int:
        """Remove links; see `MemoryStore.unlink`."""
        return await self._open_calls.write(self._store.unlink, source_id, target_id, relation)

    async def links(self, id: str) -> builtins.list[Link]:
        """The links from and to a memory; see `MemoryStore.links`."""
        return await self._open_calls.read(self._store.links, id)

    async def trace(
        self, id: str, direction: Direction = "ancestors", depth: int = 10
    ) -> builtins.list[Step]:
        """Where a memory comes from, or what came of it; see `MemoryStore.trace`."""
        return await self._open_calls.read(self._store.trace, id, direction, depth)
