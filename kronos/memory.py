"""KronosMemory: the store, async. The verbs of `MemoryStore`, on threads of their own.

Encoding has threads to itself, so it neither blocks the event loop nor keeps reads waiting. `add`
calls that are under way at the same time share one encoding and one transaction, searches share one
encoding; a lone call waits for nobody. A cancelled call is done or not done, never half.
"""

from __future__ import annotations

import asyncio
import builtins
import functools
import os
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from types import EllipsisType, TracebackType
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from kronos.errors import StoreClosedError, naming_stored
from kronos.forking import follow_forks
from kronos.store import MemoryStore
from kronos.types import (
    CompactReport,
    DuplicateGroup,
    Failure,
    Hits,
    Job,
    Link,
    Memory,
    Progress,
    RecoveryReport,
    ReindexPlan,
    ReindexReport,
    Report,
    Stats,
    Step,
    TuneReport,
    Version,
)
from kronos.writing import FOR_ALL, MOST_ROWS

if TYPE_CHECKING:
    from pathlib import Path

    from kronos.links import Direction
    from kronos.repository import Batch
    from kronos.search.filters import Where
    from kronos.search.ranking import Ranking
    from kronos.settings import Settings
    from kronos.types import (
        Embedder,
        Metadata,
        OnConflict,
        OnModelChange,
        ProgressCallback,
        SearchMode,
        Tokenizer,
        Vectors,
    )
    from kronos.validation import Item

P = ParamSpec("P")
T = TypeVar("T")

_WORKERS = 4
_ENCODERS = 32
_FEW = 8
"""So many items are checked on the event loop, as one of `add` is."""


class KronosMemory:
    """A store of memories that are found by meaning, for asyncio.

    Use it as `async with KronosMemory(path) as memory:`, or call `connect` and `close`. All verbs,
    arguments, errors and results are those of `MemoryStore`, which documents them.

    Args:
        storage_path: a folder, made when it is missing, or a SQLAlchemy URL.
        namespace: the store's own namespace, which calls mean that name none.
        embedding_model: a preset of `EMBEDDING_MODELS`, a model's name, a folder, "hash" for the
            lexical hash embedder, or None for a store of vectors that are handed in.
        embedder: an object with the `Embedder` protocol, in place of `embedding_model`.
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
    ) -> None:
        self._store = MemoryStore(
            storage_path,
            namespace=namespace,
            embedding_model=embedding_model,
            embedder=embedder,
            device=device,
            embedding_dim=embedding_dim,
            on_model_change=on_model_change,
            strict=strict,
            settings=settings,
            migrate=migrate,
        )
        self._threads: _Threads | None = None
        self._coalescer: _Coalescer | None = None
        self._opening = asyncio.Lock()
        follow_forks(self)

    def before_fork(self) -> None:
        """Nothing to do: the store waits for what its threads are in the middle of."""

    def after_fork(self, in_child: bool) -> None:
        """A child has none of the threads, and runs another event loop."""
        if in_child:
            self._opening = asyncio.Lock()
            if self._threads is not None:
                self._threads = _Threads()
                self._coalescer = _Coalescer(self._store, self._threads)

    async def connect(self, *, progress: ProgressCallback | None = None) -> None:
        """Open the store; does nothing when it is open."""
        async with self._opening:
            if self._threads is not None:
                return
            threads = _Threads()
            try:
                await threads.work(self._store.connect, progress=progress)
            except BaseException:
                threads.shutdown()
                raise
            self._threads = threads
            self._coalescer = _Coalescer(self._store, threads)

    async def close(self) -> None:
        """Finish what is under way, save the index and close."""
        threads, self._threads = self._threads, None
        adding, self._coalescer = self._coalescer, None
        if threads is not None and adding is not None:
            try:
                await adding.drain()
                await threads.work(self._store.close)
            finally:
                threads.shutdown()

    async def __aenter__(self) -> KronosMemory:
        await self.connect()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    @property
    def _open(self) -> _Threads:
        if self._threads is None:
            raise StoreClosedError
        return self._threads

    @property
    def _adding(self) -> _Coalescer:
        if self._coalescer is None:
            raise StoreClosedError
        return self._coalescer

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
        on_conflict: OnConflict = "error",
    ) -> str:
        """Store one memory; see `MemoryStore.add`."""
        adding = self._adding
        item = {
            "content": content,
            "metadata": metadata,
            "namespace": namespace,
            "importance": importance,
            "parent_id": parent_id,
            "expires_at": expires_at,
            "id": id,
        }
        batch = self._store._prepare(item, on_conflict)
        return (await adding.add(batch))[0]

    async def add_many(
        self,
        items: Iterable[Item],
        *,
        on_conflict: OnConflict = "error",
        progress: ProgressCallback | None = None,
    ) -> builtins.list[str]:
        """Store many memories; see `MemoryStore.add_many`."""
        threads, adding = self._open, self._adding
        ids: builtins.list[str] = []
        batches = self._store._batches(items, on_conflict)
        is_short = isinstance(items, list | tuple) and len(items) <= _FEW
        with naming_stored(ids):
            while True:
                # A few are checked sooner than a thread takes them up.
                batch = _next(batches) if is_short else await threads.work(_next, batches)
                if batch is None:
                    return ids
                ids += await adding.add(batch)
                if progress is not None:
                    progress(Progress(len(ids), None))

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
    ) -> str:
        """Store one memory in the place of another; see `MemoryStore.upsert`."""
        adding = self._adding
        item = {
            "content": content,
            "metadata": metadata,
            "namespace": namespace,
            "importance": importance,
            "parent_id": parent_id,
            "expires_at": expires_at,
            "id": id,
        }
        batch = self._store._prepare(item, "replace", match_content=True)
        return (await adding.add(batch))[0]

    async def get(self, id: str, *, as_of: datetime | None = None) -> Memory:
        """Read a memory; see `MemoryStore.get`."""
        return await self._open.work(self._store.get, id, as_of=as_of)

    async def find(self, id: str, *, as_of: datetime | None = None) -> Memory | None:
        """Read a memory, or None; see `MemoryStore.find`."""
        return await self._open.work(self._store.find, id, as_of=as_of)

    async def history(self, id: str) -> builtins.list[Version]:
        """What a memory was, and is; see `MemoryStore.history`."""
        return await self._open.work(self._store.history, id)

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
        threads, store = self._open, self._store
        change = store._check_change(id, content, metadata, importance, expires_at)
        change = await threads.encode(store._encode_change, change)
        return await threads.work(store._update, change)

    async def delete(
        self,
        ids: str | Iterable[str] | None = None,
        *,
        where: Where | None = None,
        namespace: str | None = None,
    ) -> int:
        """Delete memories; see `MemoryStore.delete`."""
        return await self._open.work(self._store.delete, ids, where=where, namespace=namespace)

    async def touch(self, ids: str | Iterable[str]) -> int:
        """Note that memories are made use of; see `MemoryStore.touch`."""
        return await self._open.work(self._store.touch, ids)

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
        threads, store = self._open, self._store
        wanted = store._wanted(
            limit=limit,
            namespace=namespace,
            where=where,
            mode=mode,
            min_score=min_score,
            ranking=ranking,
            group_by=group_by,
            near=near,
            as_of=as_of,
            expand=expand,
            expand_outside=expand_outside,
            explain=explain,
        )
        question = await threads.encode(store._ask, [query], wanted)
        return (await threads.work(store._search, question))[0]

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
        threads, store = self._open, self._store
        wanted = store._wanted(
            limit=limit,
            namespace=namespace,
            where=where,
            mode=mode,
            min_score=min_score,
            ranking=ranking,
            group_by=group_by,
            near=None,
            as_of=as_of,
            expand=expand,
            expand_outside=expand_outside,
            explain=explain,
        )
        asked = store._check_queries(queries)
        if not asked:
            return []
        question = await threads.encode(store._ask, asked, wanted)
        return await threads.work(store._search, question)

    async def duplicates(
        self, threshold: float = 0.95, *, where: Where | None = None, namespace: str | None = None
    ) -> builtins.list[DuplicateGroup]:
        """Find memories that say nearly the same; see `MemoryStore.duplicates`."""
        return await self._open.work(
            self._store.duplicates, threshold, where=where, namespace=namespace
        )

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
        return await self._open.work(
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
        threads, store = self._open, self._store
        selection = store._selection(where, namespace)
        key = -1
        while part := await threads.work(store._fetch, selection, as_of, key):
            for _, memory in part:
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
        return await self._open.work(
            self._store.count, where=where, namespace=namespace, as_of=as_of
        )

    async def link(
        self, source_id: str, target_id: str, relation: str, weight: float = 1.0
    ) -> None:
        """Link a memory to another one; see `MemoryStore.link`."""
        await self._open.work(self._store.link, source_id, target_id, relation, weight)

    async def unlink(self, source_id: str, target_id: str, relation: str | None = None) -> int:
        """Remove links; see `MemoryStore.unlink`."""
        return await self._open.work(self._store.unlink, source_id, target_id, relation)

    async def links(self, id: str) -> builtins.list[Link]:
        """The links from and to a memory; see `MemoryStore.links`."""
        return await self._open.work(self._store.links, id)

    async def trace(
        self, id: str, direction: Direction = "ancestors", depth: int = 10
    ) -> builtins.list[Step]:
        """Where a memory comes from, or what came of it; see `MemoryStore.trace`."""
        return await self._open.work(self._store.trace, id, direction, depth)

    async def index_field(self, path: str) -> bool:
        """Give a metadata key an index; see `MemoryStore.index_field`."""
        return await self._open.work(self._store.index_field, path)

    async def unindex_field(self, path: str) -> bool:
        """Take a metadata key's index away; see `MemoryStore.unindex_field`."""
        return await self._open.work(self._store.unindex_field, path)

    async def indexed_fields(self) -> builtins.list[str]:
        """The metadata keys with an index; see `MemoryStore.indexed_fields`."""
        return await self._open.work(self._store.indexed_fields)

    async def rebuild_words(self, tokenizer: Tokenizer | None = None) -> None:
        """Make the word index anew; see `MemoryStore.rebuild_words`."""
        await self._open.work(self._store.rebuild_words, tokenizer)

    async def stats(self) -> Stats:
        """Count what the store holds; see `MemoryStore.stats`."""
        return await self._open.work(self._store.stats)

    async def check(self, *, repair: bool = False) -> Report:
        """Compare everything that must agree; see `MemoryStore.check`."""
        return await self._open.work(self._store.check, repair=repair)

    async def tune(self, target: float = 0.98) -> TuneReport:
        """Measure how well searches find, and search as hard as need be; see `MemoryStore.tune`.

        A call that is cancelled ends what is built, and changes nothing.
        """
        return await self._job(functools.partial(self._store._tune, target), None)

    async def reindex(
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
        """Embed what is pending, or change the embedding model; see `MemoryStore.reindex`.

        `progress` is called on a worker thread. A call that is cancelled lets the job finish its
        batch; the job stays open.
        """
        return await self._job(
            functools.partial(
                self._store.reindex,
                model,
                workers=workers,
                batch_size=batch_size,
                rate=rate,
                max_seconds=max_seconds,
                activate=activate,
                allow_failed=allow_failed,
                keep_old=keep_old,
                progress=progress,
            ),
            stop,
        )

    async def plan_reindex(self, model: str | None = None) -> ReindexPlan:
        """Say what `reindex` would do; see `MemoryStore.plan_reindex`."""
        return await self._open.work(self._store.plan_reindex, model)

    async def resume_reindex(
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
        """Go on with the newest unfinished job; see `MemoryStore.resume_reindex`."""
        return await self._job(
            functools.partial(
                self._store.resume_reindex,
                workers=workers,
                batch_size=batch_size,
                rate=rate,
                max_seconds=max_seconds,
                allow_failed=allow_failed,
                progress=progress,
            ),
            stop,
        )

    async def activate_reindex(
        self,
        *,
        allow_failed: bool | None = None,
        stop: threading.Event | None = None,
        progress: ProgressCallback | None = None,
    ) -> ReindexReport:
        """Switch to the newest unfinished job's space; see `MemoryStore.activate_reindex`."""
        return await self._job(
            functools.partial(
                self._store.activate_reindex, allow_failed=allow_failed, progress=progress
            ),
            stop,
        )

    async def rollback(
        self,
        *,
        stop: threading.Event | None = None,
        progress: ProgressCallback | None = None,
    ) -> ReindexReport:
        """Go back to the space before; see `MemoryStore.rollback`."""
        return await self._job(functools.partial(self._store.rollback, progress=progress), stop)

    async def cancel_reindex(self) -> Job:
        """End the newest unfinished job; see `MemoryStore.cancel_reindex`."""
        return await self._open.work(self._store.cancel_reindex)

    async def jobs(self) -> builtins.list[Job]:
        """The reindex jobs, the newest first; see `MemoryStore.jobs`."""
        return await self._open.work(self._store.jobs)

    async def failures(self) -> builtins.list[Failure]:
        """Texts that could not be embedded; see `MemoryStore.failures`."""
        return await self._open.work(self._store.failures)

    async def compact(
        self, *, keep_spaces: int | None = None, forget_before: datetime | None = None
    ) -> CompactReport:
        """Drop what nobody wants any more; see `MemoryStore.compact`."""
        return await self._open.work(
            self._store.compact, keep_spaces=keep_spaces, forget_before=forget_before
        )

    async def backup(self, path: str | os.PathLike[str]) -> Path:
        """Copy the database while others read and write; see `MemoryStore.backup`."""
        return await self._open.work(self._store.backup, path)

    async def export_to(
        self,
        path: str | os.PathLike[str],
        *,
        vectors: bool = False,
        where: Where | None = None,
        namespace: str | None = "*",
    ) -> int:
        """Write memories to a file; see `MemoryStore.export_to`."""
        return await self._open.work(
            self._store.export_to, path, vectors=vectors, where=where, namespace=namespace
        )

    async def import_from(
        self,
        path: str | os.PathLike[str],
        *,
        on_conflict: OnConflict = "ignore",
        progress: ProgressCallback | None = None,
    ) -> builtins.list[str]:
        """Bring back what `export_to` wrote; see `MemoryStore.import_from`."""
        return await self._open.encode(
            self._store.import_from, path, on_conflict=on_conflict, progress=progress
        )

    @staticmethod
    async def restore(
        path: str | os.PathLike[str],
        storage_path: str | os.PathLike[str],
        *,
        settings: Settings | None = None,
    ) -> Path | None:
        """Put a backup in the place of a store's database; see `MemoryStore.restore`."""
        return await asyncio.to_thread(MemoryStore.restore, path, storage_path, settings=settings)

    @staticmethod
    async def recover(
        storage_path: str | os.PathLike[str], *, settings: Settings | None = None
    ) -> RecoveryReport:
        """Save what can be read of a damaged database; see `MemoryStore.recover`."""
        return await asyncio.to_thread(MemoryStore.recover, storage_path, settings=settings)

    async def _job(self, run: Callable[..., T], stop: threading.Event | None) -> T:
        """Run a job on a thread of its own: it may take hours, and the workers are few."""
        self._open  # noqa: B018 - StoreClosedError
        stop = stop or threading.Event()
        executor = ThreadPoolExecutor(1, thread_name_prefix="kronos-job")
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(executor, functools.partial(run, stop=stop))
        except asyncio.CancelledError:
            stop.set()
            raise
        finally:
            executor.shutdown(wait=False)


class _Threads:
    """Where the work is done: threads that encode, and a few that read and write.

    Texts are encoded by one thread at a time; questions that come meanwhile wait on the others, and
    are encoded together.
    """

    def __init__(self) -> None:
        self._encoder = ThreadPoolExecutor(_ENCODERS, thread_name_prefix="kronos-encode")
        self._workers = ThreadPoolExecutor(_WORKERS, thread_name_prefix="kronos-work")

    async def encode(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a function on a thread that encodes."""
        return await self._run(self._encoder, functools.partial(function, *args, **kwargs))

    async def work(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a function on a worker thread."""
        return await self._run(self._workers, functools.partial(function, *args, **kwargs))

    async def _run(self, executor: Executor, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(executor, function)

    def shutdown(self) -> None:
        """Let the threads end."""
        self._encoder.shutdown(wait=False)
        self._workers.shutdown(wait=False)


@dataclass(frozen=True, slots=True, eq=False)
class _Waiting:
    """A call of `add`, waiting for its batch to be written."""

    batch: Batch
    done: asyncio.Future[list[str]]

    def settle(self, outcome: list[str] | Exception) -> None:
        """Give the call its ids or its error, unless it was cancelled meanwhile."""
        if self.done.cancelled():
            return
        if isinstance(outcome, Exception):
            self.done.set_exception(outcome)
        else:
            self.done.set_result(outcome)


class _Coalescer:
    """Lets `add` calls that are under way at once share an encoding and a transaction.

    The first call starts a flush at once; calls that come while it encodes and writes wait
    in the queue and go together in the next one. Each call's batch is written whole or not at all,
    also when another call's is refused.
    """

    def __init__(self, store: MemoryStore, threads: _Threads) -> None:
        self._store = store
        self._threads = threads
        self._queue: deque[_Waiting] = deque()
        self._flushing: asyncio.Task[None] | None = None

    async def add(self, batch: Batch) -> list[str]:
        """Write a batch: its ids."""
        done: asyncio.Future[list[str]] = asyncio.get_running_loop().create_future()
        self._queue.append(_Waiting(batch, done))
        if self._flushing is None:
            self._flushing = asyncio.create_task(self._flush())
        return await done

    async def drain(self) -> None:
        """Wait until nothing is under way."""
        while self._flushing is not None:
            await asyncio.shield(self._flushing)

    async def _flush(self) -> None:
        try:
            while self._queue:
                if calls := self._take():
                    await self._write(calls)
        finally:
            self._flushing = None

    def _take(self) -> list[_Waiting]:
        """The next calls, up to a batch's worth of records."""
        taken: list[_Waiting] = []
        records = 0
        while self._queue and records < MOST_ROWS:
            waiting = self._queue.popleft()
            if not waiting.done.cancelled():  # cancelled while it waited: not done at all
                taken.append(waiting)
                records += len(waiting.batch.records)
        return taken

    async def _write(self, calls: list[_Waiting]) -> None:
        try:
            outcomes = await self._outcomes(calls)
        except BaseException:  # the event loop is ending
            for call in calls:
                call.done.cancel()
            raise
        for call, outcome in zip(calls, outcomes, strict=True):
            call.settle(outcome)

    async def _outcomes(self, calls: list[_Waiting]) -> list[list[str] | Exception]:
        """Each call's ids, or why it was not written."""
        batches = [call.batch for call in calls]
        try:
            return await self._threads.encode(self._store._add_together, batches)
        except Exception as exc:
            if len(calls) == 1 or isinstance(exc, FOR_ALL):
                return [exc] * len(calls)
            # One text that cannot be embedded must not fail the calls that shared its batch.
            return [outcome for call in calls for outcome in await self._outcomes([call])]


def _next(batches: Iterator[Batch]) -> Batch | None:
    # StopIteration cannot be raised into a future.
    return next(batches, None)
