"""Bringing a space up to date, and switching to it: the one way by which vectors are made anew.

A model change, an interrupted run and texts that waited for a model are the same thing: some space
has pending memories. A job embeds them outside any transaction, stores each batch by
compare-and-set on the text's hash and commits it, so a killed job goes on where it stopped and an
edit during a job is never overwritten. The active space changes in the transaction that sees
nothing pending.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kronos.embedding.checked import embed_documents
from kronos.repository import Repository
from kronos.spaces import Pending
from kronos.types import Progress, ReindexReport

if TYPE_CHECKING:
    from datetime import datetime

    from kronos.db.engine import Database
    from kronos.types import Embedder, ProgressCallback, Space

# The last texts are embedded inside the write transaction, so that steady writers cannot keep a job
# from its end; so few, that a writer waits well under its busy timeout.
_LAST_TEXTS = 16


@dataclass(slots=True)
class ReindexJob:
    """Brings one space up to date with the texts."""

    database: Database
    space: Space
    embedder: Embedder
    batch_size: int
    """Texts that are embedded and committed at once."""
    clock: Callable[[], datetime]
    embedded: int = 0
    """Texts embedded so far by this job object."""
    _started: float = field(default_factory=time.perf_counter)

    def run(self, activate: bool = True, progress: ProgressCallback | None = None) -> ReindexReport:
        """Embed what is pending, batch by batch, and make the space the active one.

        Args:
            activate: False leaves the active space as it is.
            progress: called after every committed batch.

        Raises:
            EmbeddingError: the embedder failed; the batches before are committed.
        """
        was_active = self.space.state == "active"
        while not self._finish(activate):
            self.fill(progress)
        return ReindexReport(
            space=self.space,
            embedded=self.embedded,
            activated=activate and not was_active,
            seconds=time.perf_counter() - self._started,
        )

    def fill(self, progress: ProgressCallback | None = None) -> None:
        """Go through what is pending once, batch by batch, without a switch. Raises as `run`."""
        total = self.embedded + self._count_pending()
        for stored in self._sweep():
            self.embedded += stored
            if progress is not None:
                progress(Progress(self.embedded, max(total, self.embedded)))

    def _count_pending(self) -> int:
        with self.database.read() as connection:
            return Repository(connection, self.clock()).spaces.pending_count(self.space.id)

    def _sweep(self) -> Iterator[int]:
        """Go through the pending memories once, by key; yields how many each batch stored."""
        after = 0
        while batch := self._pending(after):
            yield self._embed_and_store(batch)
            after = batch[-1].key

    def _pending(self, after: int) -> list[Pending]:
        with self.database.read() as connection:
            repository = Repository(connection, self.clock())
            return repository.spaces.pending(self.space.id, after=after, limit=self.batch_size)

    def _embed_and_store(self, batch: Sequence[Pending]) -> int:
        rows = embed_documents(self.embedder, [item.content for item in batch])
        with self.database.write() as connection:
            return Repository(connection, self.clock()).spaces.store_vectors(
                self.space, batch, rows
            )

    def _finish(self, activate: bool) -> bool:
        """Embed the few last texts and switch, in one transaction; False when many are pending."""
        with self.database.write() as connection:
            repository = Repository(connection, self.clock())
            pending = repository.spaces.pending_count(self.space.id)
            if pending > _LAST_TEXTS:
                return False
            rest = (
                repository.spaces.pending(self.space.id, after=0, limit=pending) if pending else []
            )
            rows = embed_documents(self.embedder, [item.content for item in rest])
            stored = repository.spaces.store_vectors(self.space, rest, rows)
            if activate and self.space.state != "active":
                self.space = repository.spaces.activate(self.space)
        self.embedded += stored
        return True
