"""Maintenance: checks and repairs, compaction, tuning, backups, and indexes of words and fields."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from kronos.concurrency.progress import Steps
from kronos.db import backup, recovery
from kronos.errors import InputError, StorageError, StoreClosedError
from kronos.files import expanded
from kronos.index.snapshot import discard_other_snapshots
from kronos.maintenance import check as checks
from kronos.maintenance.compaction import compact
from kronos.search.field_indexes import FieldIndexes
from kronos.settings import Tokenizer
from kronos.types import (
    CompactReport,
    Problem,
    ProgressCallback,
    RecoveryReport,
    Report,
    TuneReport,
)
from kronos.validation import check_limit, check_number, check_time

if TYPE_CHECKING:
    from kronos.serving.serving import Serving
    from kronos.serving.session import Session


_THINGS_TO_CHECK = 5
"""The database's file, texts, vectors, words, the index."""


class Maintenance:
    """The upkeep of a store: `store.maintenance`.

    `restore` and `recover` need no open store.

    Args:
        session: the store.
    """

    def __init__(self, session: Session) -> None:
        self._session = session

    def check(
        self,
        *,
        repair: bool = False,
        progress: ProgressCallback | None = None,
        stop: threading.Event | None = None,
    ) -> Report:
        """Compare everything that must agree; others read and write meanwhile.

        Args:
            repair: repair what can be derived from the texts: the index, vectors that do not fit,
                the full-text index, leftover files and, after a backup, the database's indexes.
            progress: called after each of the things that are compared.
            stop: set it to stop soon, also in the middle of a long statement.

        Returns:
            What is wrong, in words, and what of it was repaired; and how well the index finds.

        Raises:
            StoppedError: `stop` was set. What was repaired before is repaired.
        """
        steps = Steps(progress, stop, total=_THINGS_TO_CHECK)
        with self._session.database.stoppable(lambda: steps.is_stopped):
            return self._check(repair, steps)

    def compact(
        self,
        *,
        keep_spaces: int | None = None,
        forget_before: datetime | None = None,
        progress: ProgressCallback | None = None,
        stop: threading.Event | None = None,
    ) -> CompactReport:
        """Drop what is no longer needed, and give the free space back to the disk.

        It drops retired spaces beyond `keep_spaces`, what cancelled jobs made, what a fallback made
        that serves no longer, memories that have expired, and all that is left of deleted ones,
        their history included. No byte of their texts, words, metadata and vectors stands in the
        store's files then, only in backups that were taken. What living memories were before stays.
        Others may read and write meanwhile.

        Args:
            keep_spaces: retired spaces to keep for a rollback; None is the settings'.
            forget_before: a timezone-aware moment: what living memories were until before it is
                forgotten too; None keeps their whole past.
            progress: called after each transaction; their number is not known in advance.
            stop: set it to stop soon.

        Raises:
            InputError: `keep_spaces` is no number from 0 on, or `forget_before` no moment.
            StoppedError: `stop` was set. What was dropped is gone; the next call does the rest.
        """
        steps = Steps(progress, stop)
        keep = self._session.settings.keep_spaces
        if keep_spaces is not None:
            keep = check_limit(keep_spaces, field="keep_spaces", least=0)
        return compact(
            self._session.database,
            keep,
            self._session.serving.replica,
            self._session.location.index,
            forget_before=check_time(forget_before, field="forget_before"),
            clock=self._session.clock,
            steps=steps,
        )

    def tune(self, target: float = 0.98, *, stop: threading.Event | None = None) -> TuneReport:
        """Build the index if a build is due, measure its recall, and set its search effort.

        The recall is the share of the 10 nearest vectors, found by an exact scan, that the graph
        finds too, for up to 200 sample points. The points lie near memories, about as far from them
        as queries are. The store then searches with the least effort that reaches the target. A
        snapshot keeps it for the next process that opens the store; open processes adopt it at
        their next save. Searches and writes go on meanwhile. A store that is too small for a graph
        is exact.

        Args:
            target: the recall@10 that is wanted, above 0 and at most 1.
            stop: set it to stop soon; then nothing is changed.

        Returns:
            What was measured. A target that is out of reach is no error: the store then searches
            with the greatest effort that was tried; see `TuneReport.reached`.

        Raises:
            InputError: the target is out of its range.
            StoreClosedError: the store is not open, or was closed meanwhile.
            StoppedError: `stop` was set.
        """
        wanted = check_number(target, field="target")
        if not 0 < wanted <= 1:
            raise InputError(
                f"target must be a recall above 0 and at most 1, not {target!r}", field="target"
            )
        steps, interrupted = Steps(None, stop), threading.Event()
        serving = self._session.on_serving(self._catch_up)
        closing = self._session.snapshots.stop_event

        def is_over() -> bool:
            return steps.is_stopped or interrupted.is_set() or closing.is_set()

        # Not in the caller's thread: a build leaves it with fewer of FAISS's threads.
        with ThreadPoolExecutor(1, thread_name_prefix="kronos-tune") as thread:
            work = thread.submit(self._measure, serving, wanted, is_over)
            try:
                report = work.result()
            except BaseException:  # Ctrl-C
                interrupted.set()
                raise
        if report is None:
            steps.check_stopped()
            raise StoreClosedError
        return report

    def backup(
        self,
        path: str | os.PathLike[str],
        *,
        progress: ProgressCallback | None = None,
        stop: threading.Event | None = None,
    ) -> Path:
        """Copy the database, as it is committed now, to a file, while others read and write.

        Args:
            path: a file that does not exist yet, or a folder, in which it gets a name with the
                time.
            progress: called now and then with the pages that are copied.
            stop: set it to stop soon.

        Returns:
            The file. It holds all of the store: texts, metadata, vectors, jobs.

        Raises:
            InputError: the file exists, or its folder does not.
            StorageError: the copy could not be written; no part of it is left.
            StoppedError: `stop` was set; likewise.
        """
        target = expanded(path).absolute()
        if target.is_dir():
            target = backup.beside(target / self._session.location.database.name, "backup")
        if target.exists() or not target.parent.is_dir():
            why = "exists" if target.exists() else "lies in no folder that exists"
            raise InputError(f"{target} {why}: name a new file for the backup", field="path")
        self._session.database.backup(target, Steps(progress, stop))
        return target

    def restore(self, path: str | os.PathLike[str]) -> Path | None:
        """Put a backup in place of the store's database; open stores follow at their next call.

        Args:
            path: what `backup` wrote.

        Returns:
            Where the earlier database is kept; None when there was none.

        Raises:
            InputError: there is no backup at `path`.
            CorruptStoreError: the backup is damaged. After each error the store is as it was.
            StorageError: the store is busy, or the disk failed.
        """
        session = self._session
        aside = backup.restore(expanded(path).absolute(), session.location, session.settings)
        discard_other_snapshots(session.location.index, ())
        return aside

    def recover(self) -> RecoveryReport:
        """Make a new database of what can still be read of a damaged one, which is kept aside.

        No process may have the store open. Vectors that cannot be read are made anew when the store
        is opened.

        Raises:
            InputError: there is no database.
            CorruptStoreError: nothing can be read of it: restore a backup.
        """
        session = self._session
        report = recovery.recover(session.location, session.settings)
        discard_other_snapshots(session.location.index, ())
        return report

    def index_field(self, path: str) -> bool:
        """Give a metadata key an index of its own, so that filters on it are fast.

        Args:
            path: a key, with dots to go down.

        Returns:
            False when it has one already.

        Raises:
            FilterError: the path is refused.
        """
        with self._session.writer() as repository:
            return FieldIndexes.of(repository).add(path)

    def unindex_field(self, path: str) -> bool:
        """Take a metadata key's index away; False when it has none."""
        with self._session.writer() as repository:
            return FieldIndexes.of(repository).remove(path)

    def indexed_fields(self) -> list[str]:
        """The metadata keys that have an index of their own."""
        with self._session.reader() as repository:
            return FieldIndexes.of(repository).all()

    def rebuild_fulltext(
        self, tokenizer: Tokenizer | None = None, *, stop: threading.Event | None = None
    ) -> None:
        """Make the full-text index anew from the texts, with the same tokenizer or another one.

        Args:
            tokenizer: "porter", "unicode61" or "trigram"; None keeps the one that the store has.
            stop: set it to stop soon; then the words stay as they were.

        Raises:
            InputError: there is no such tokenizer.
            StoppedError: `stop` was set.
        """
        if tokenizer not in (None, *get_args(Tokenizer)):
            raise InputError(
                f'tokenizer must be "porter", "unicode61" or "trigram", not {tokenizer!r}',
                field="tokenizer",
            )
        steps = Steps(None, stop)
        with (
            self._session.database.stoppable(lambda: steps.is_stopped),
            self._session.writer() as repository,
        ):
            repository.fulltext.rebuild(tokenizer)

    def _catch_up(self, serving: Serving) -> Serving:
        """Let an index apply all commits; no snapshot is written meanwhile."""
        with serving.replica.saving, self._session.index_of(serving):
            return serving

    @staticmethod
    def _measure(serving: Serving, target: float, stopped: Callable[[], bool]) -> TuneReport | None:
        """What was measured; None: it was stopped."""
        replica = serving.replica
        replica.build(stopped)
        tuned = replica.tune(target, stopped)
        if stopped():
            return None
        if replica.save_is_due:
            replica.save()
        with replica.lock:
            return TuneReport(
                vectors=len(replica),
                index_kind=replica.state().kind,
                target=target,
                recall=1.0 if tuned is None else tuned.recall,
                effort=None if tuned is None else tuned.effort,
                saved=tuned is None or replica.is_saved_as_tuned,
            )

    def _check(self, repair: bool, steps: Steps) -> Report:
        database, location = self._session.database, self._session.location
        database.require_in_place()
        advice = [*checks.environment(database, location.database.parent)]
        problems = [*checks.damaged_database(database, self._backup_beside, repair=repair)]
        steps.advance()
        problems += checks.altered_texts(database, self._session.clock)
        steps.advance()
        if any(problem.kind == "database" and not problem.repaired for problem in problems):
            return Report(tuple(problems), tuple(advice))  # no row can be believed
        problems += checks.wrong_schema(database)
        writing = self._session.writer if repair else None
        problems += checks.wrong_vectors(self._session.reader, writing)
        problems += checks.wrong_counts(self._session.reader, writing)
        problems += checks.missing_field_indexes(self._session.reader, writing)
        problems += checks.outdated_fulltext(self._session.reader, writing)
        with self._session.reader() as repository:
            problems += checks.pending_memories(repository)
            if repair:
                checks.remove_orphans(location.database, location.index, repository)
            advice += checks.orphaned_files(location.database, location.index, repository)
        steps.advance()
        try:
            problems += checks.wrong_fulltext(database, writing)
        except StorageError as exc:
            advice.append(Problem("fulltext", f"the full-text index could not be checked: {exc}"))
        steps.advance()
        compare = functools.partial(self._compare_index, repair=repair)
        serving, difference = self._session.on_serving(compare)
        problems += difference
        with serving.replica.lock:
            index = serving.replica.state()
        steps.advance()
        return Report(tuple(problems), tuple(advice), index.kind, index.effort, index.recall)

    def _compare_index(self, serving: Serving, *, repair: bool) -> tuple[Serving, list[Problem]]:
        """Find where the index and the rows do not agree."""
        index = functools.partial(self._session.index_of, serving)
        return serving, [*checks.wrong_index(index, serving.replica, repair=repair)]

    def _backup_beside(self) -> Path:
        return self.backup(backup.beside(self._session.location.database, "before-repair"))
