"""The upkeep of a store for asyncio: the verbs of `Upkeep`, and files.

What may take long has a thread of its own, so it never keeps a search waiting. To cancel the task
sets `stop`; `close` stops what is under way.
"""

from __future__ import annotations

import builtins
import os
import threading
from datetime import datetime
from typing import TYPE_CHECKING

from kronos.aio.calls import on_thread
from kronos.aio.opening import AsyncOpened
from kronos.store.store import MemoryStore
from kronos.types import (
    CompactReport,
    DuplicateGroup,
    Failure,
    Job,
    RecoveryReport,
    ReindexPlan,
    ReindexReport,
    Report,
    Stats,
    TuneReport,
)

if TYPE_CHECKING:
    from pathlib import Path

    from kronos.search.filters import Where
    from kronos.settings import Settings
    from kronos.types import OnConflict, ProgressCallback, Tokenizer


class AsyncUpkeep(AsyncOpened):
    """The verbs of upkeep; `KronosMemory` is the class to use."""

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

        A call that is cancelled lets the job finish its batch; the job stays open.
        """
        return await self._open_calls.long(
            self._store.reindex,
            model,
            workers=workers,
            batch_size=batch_size,
            rate=rate,
            max_seconds=max_seconds,
            activate=activate,
            allow_failed=allow_failed,
            keep_old=keep_old,
            stop=stop,
            progress=progress,
        )

    async def plan_reindex(
        self,
        model: str | None = None,
        *,
        progress: ProgressCallback | None = None,
        stop: threading.Event | None = None,
    ) -> ReindexPlan:
        """Say what `reindex` would do; see `MemoryStore.plan_reindex`."""
        return await self._open_calls.long(
            self._store.plan_reindex, model, progress=progress, stop=stop
        )

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
        return await self._open_calls.long(
            self._store.resume_reindex,
            workers=workers,
            batch_size=batch_size,
            rate=rate,
            max_seconds=max_seconds,
            allow_failed=allow_failed,
            stop=stop,
            progress=progress,
        )

    async def activate_reindex(
        self,
        *,
        allow_failed: bool | None = None,
        stop: threading.Event | None = None,
        progress: ProgressCallback | None = None,
    ) -> ReindexReport:
        """Switch to the newest unfinished job's space; see `MemoryStore.activate_reindex`."""
        return await self._open_calls.long(
            self._store.activate_reindex, allow_failed=allow_failed, stop=stop, progress=progress
        )

    async def rollback(
        self,
        *,
        stop: threading.Event | None = None,
        progress: ProgressCallback | None = None,
    ) -> ReindexReport:
        """Go back to the space before; see `MemoryStore.rollback`."""
        return await self._open_calls.long(self._store.rollback, stop=stop, progress=progress)

    async def cancel_reindex(self) -> Job:
        """End the newest unfinished job; see `MemoryStore.cancel_reindex`."""
        return await self._open_calls.write(self._store.cancel_reindex)

    async def jobs(self) -> builtins.list[Job]:
        """The reindex jobs, the newest first; see `MemoryStore.jobs`."""
        return await self._open_calls.read(self._store.jobs)

    async def failures(self) -> builtins.list[Failure]:
        """Texts that could not be embedded; see `MemoryStore.failures`."""
        return await self._open_calls.read(self._store.failures)

    async def stats(self) -> Stats:
        """Count what the store holds; see `MemoryStore.stats`."""
        return await self._open_calls.apart(self._store.stats)

    async def check(
        self,
        *,
        repair: bool = False,
        progress: ProgressCallback | None = None,
        stop: threading.Event | None = None,
    ) -> Report:
        """Compare everything that must agree; see `MemoryStore.check`."""
        return await self._open_calls.long(
            self._store.check, repair=repair, progress=progress, stop=stop
        )

    async def tune(
        self, target: float = 0.98, *, stop: threading.Event | None = None
    ) -> TuneReport:
        """Measure how well searches find, and search as hard as need be; see `MemoryStore.tune`.

        A call that is cancelled ends what is built, and changes nothing.
        """
        return await self._open_calls.long(self._store.tune, target, stop=stop)

    async def duplicates(
        self,
        threshold: float = 0.95,
        *,
        where: Where | None = None,
        namespace: str | None = None,
        progress: ProgressCallback | None = None,
        stop: threading.Event | None = None,
    ) -> builtins.list[DuplicateGroup]:
        """Find memories that say nearly the same; see `MemoryStore.duplicates`."""
        return await self._open_calls.long(
            self._store.duplicates,
            threshold,
            where=where,
            namespace=namespace,
            progress=progress,
            stop=stop,
        )

    async def compact(
        self,
        *,
        keep_spaces: int | None = None,
        forget_before: datetime | None = None,
        progress: ProgressCallback | None = None,
        stop: threading.Event | None = None,
    ) -> CompactReport:
        """Drop what nobody wants any more; see `MemoryStore.compact`."""
        return await self._open_calls.long(
            self._store.compact,
            keep_spaces=keep_spaces,
            forget_before=forget_before,
            progress=progress,
            stop=stop,
        )

    async def index_field(self, path: str) -> bool:
        """Give a metadata key an index; see `MemoryStore.index_field`."""
        return await self._open_calls.apart(self._store.index_field, path)

    async def unindex_field(self, path: str) -> bool:
        """Take a metadata key's index away; see `MemoryStore.unindex_field`."""
        return await self._open_calls.apart(self._store.unindex_field, path)

    async def indexed_fields(self) -> builtins.list[str]:
        """The metadata keys with an index; see `MemoryStore.indexed_fields`."""
        return await self._open_calls.read(self._store.indexed_fields)

    async def rebuild_words(
        self, tokenizer: Tokenizer | None = None, *, stop: threading.Event | None = None
    ) -> None:
        """Make the word index anew; see `MemoryStore.rebuild_words`."""
        await self._open_calls.long(self._store.rebuild_words, tokenizer, stop=stop)

    # -- Files ------------------------------------------------------------------------------------

    async def backup(
        self,
        path: str | os.PathLike[str],
        *,
        progress: ProgressCallback | None = None,
        stop: threading.Event | None = None,
    ) -> Path:
        """Copy the database while others read and write; see `MemoryStore.backup`."""
        return await self._open_calls.long(self._store.backup, path, progress=progress, stop=stop)

    async def export_to(
        self,
        path: str | os.PathLike[str],
        *,
        vectors: bool = False,
        where: Where | None = None,
        namespace: str | None = "*",
        progress: ProgressCallback | None = None,
        stop: threading.Event | None = None,
    ) -> int:
        """Write memories to a file; see `MemoryStore.export_to`."""
        return await self._open_calls.long(
            self._store.export_to,
            path,
            vectors=vectors,
            where=where,
            namespace=namespace,
            progress=progress,
            stop=stop,
        )

    async def import_from(
        self,
        path: str | os.PathLike[str],
        *,
        on_conflict: OnConflict = "ignore",
        progress: ProgressCallback | None = None,
        stop: threading.Event | None = None,
    ) -> builtins.list[str]:
        """Bring back what `export_to` wrote; see `MemoryStore.import_from`."""
        return await self._open_calls.long(
            self._store.import_from, path, on_conflict=on_conflict, progress=progress, stop=stop
        )

    @staticmethod
    async def restore(
        path: str | os.PathLike[str],
        storage_path: str | os.PathLike[str],
        *,
        settings: Settings | None = None,
    ) -> Path | None:
        """Put a backup in the place of a store's database; see `MemoryStore.restore`."""
        return await on_thread(MemoryStore.restore, path, storage_path, settings=settings)

    @staticmethod
    async def recover(
        storage_path: str | os.PathLike[str], *, settings: Settings | None = None
    ) -> RecoveryReport:
        """Save what can be read of a damaged database; see `MemoryStore.recover`."""
        return await on_thread(MemoryStore.recover, storage_path, settings=settings)
