"""A reindex job: it embeds the pending texts of a space, and switches to that space.

This is the only way in which vectors are made anew. A model change, an interrupted run, a fallback
and texts that waited for a model are all the same case: some space has pending memories.

A job promises:

- Texts are embedded outside any transaction. Each batch is stored by compare-and-set on the texts'
  hashes, in one transaction with its lease. So a killed worker loses its batch and no more, and an
  edit during a job is never overwritten.
- Any number of workers share a job, in this process and in others (see `kronos.repository.jobs`).
- The active space changes in the transaction that sees nothing pending (see `finishing`).
- An embedder that fails temporarily is retried, and no text is marked as failed for it.
- No embedder works inside a write transaction, except on the last few texts, for
  `Work.locked_s` at most.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import TYPE_CHECKING

from kronos.errors import KronosError
from kronos.reindex.run import JobRun
from kronos.reindex.worker import Worker
from kronos.types import ReindexReport

if TYPE_CHECKING:
    from kronos.types import Embedder, ProgressCallback


class ReindexJob:
    """One process's part in a job.

    Args:
        run: the job, and what the workers of this process share.
    """

    def __init__(self, run: JobRun) -> None:
        self.id = run.job_id
        self.space = run.space
        self._run = run

    @property
    def loaded(self) -> list[Embedder]:
        """The embedder in a list, once it is loaded; before that, an empty list."""
        return self._run.loaded

    def run(self, progress: ProgressCallback | None = None) -> ReindexReport:
        """Work on the job until it is over, or this process is to stop.

        Args:
            progress: called after every committed batch, in the thread that stored it.

        Returns:
            What this run did, and the job's state.

        Raises:
            TransientEmbeddingError: the embedder still failed temporarily when the patience was
                over. Stored batches are kept, and the job can be resumed; so also below.
            EmbeddingError: the embedder fails on every text.
            StorageError: the database failed.
        """
        self._run.progress = progress
        try:
            self._work()
        except KronosError as exc:
            self._run.note(str(exc))
            raise
        return self._report()

    def _work(self) -> None:
        workers = self._run.work.workers
        with ThreadPoolExecutor(workers, thread_name_prefix="kronos-reindex") as threads:
            # Each in the caller's context, which an embedder or `progress` may read.
            others = [
                threads.submit(copy_context().run, self._one_worker) for _ in range(workers - 1)
            ]
            try:
                self._one_worker()
            finally:
                if self._run.stopping:
                    self._run.halt()
            for other in others:
                other.result()

    def _one_worker(self) -> None:
        try:
            Worker(self._run).run()
        except BaseException:
            self._run.halt()  # the other workers would fail in the same way
            raise

    def _report(self) -> ReindexReport:
        with self._run.reading() as repository:
            pending = repository.pending
            now = repository.spaces.now(self.space)
            return ReindexReport(
                space=now or self.space,
                state=self._run.position(repository).state,
                embedded=self._run.embedded,
                pending=0 if now is None else pending.count(now.id),
                failed=0 if now is None else pending.failed_count(now.id),
                activated=now is not None and now.state == "active" != self.space.state,
                seconds=self._run.seconds,
            )
