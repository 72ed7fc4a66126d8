"""Transferring: memories are exported to files, and imported from them."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

from kronos.concurrency.progress import Steps
from kronos.files import expanded
from kronos.search.filters import Where
from kronos.transfer.export import export_rows, read_export, write_export
from kronos.types import OnConflict, ProgressCallback

if TYPE_CHECKING:
    from kronos.serving.session import Session
    from kronos.store.adding import Adding
    from kronos.store.browsing import Browsing


class Transferring:
    """Writes and reads export files.

    Args:
        session: the open store.
        browsing: finds the memories that a filter means.
        adding: takes in what is imported.
    """

    def __init__(self, session: Session, browsing: Browsing, adding: Adding) -> None:
        self._session = session
        self._browsing = browsing
        self._adding = adding

    def export_to(
        self,
        path: str | os.PathLike[str],
        *,
        vectors: bool = False,
        where: Where | None = None,
        namespace: str | None = "*",
        progress: ProgressCallback | None = None,
        stop: threading.Event | None = None,
    ) -> int:
        """Write memories, as they are at one moment, to a file that `import_from` brings back.

        Args:
            path: ends with .jsonl or .parquet, which says the format; a file there is replaced. It
                has the access rights of the database.
            vectors: with the vectors of the active space, so that a store of the same model need
                not embed them anew.
            where: a filter, a dict or built with `F`.
            namespace: this one and all below it; "*" is every one, None the store's own.
            progress: called now and then with the memories that are written.
            stop: set it to stop soon.

        Returns:
            How many memories the file holds.

        Raises:
            InputError: the path, the filter or the namespace is refused.
            MissingDependencyError: Parquet needs pyarrow.
            StorageError: the file could not be written; no part of it is left.
            StoppedError: `stop` was set; likewise.
        """
        selection = self._browsing.selection(where, namespace)
        target = expanded(path).absolute()
        scope, condition = selection.scope, selection.condition
        with self._session.reader() as repository:
            space = repository.spaces.active() if vectors else None
            steps = Steps(progress, stop, total=repository.keys(scope, condition).size)
            found = steps.track(export_rows(repository, scope, condition, space))
            mode = self._session.database.dialect.mode
            return write_export(target, found, space, mode=mode)

    def import_from(
        self,
        path: str | os.PathLike[str],
        *,
        on_conflict: OnConflict = "ignore",
        progress: ProgressCallback | None = None,
        stop: threading.Event | None = None,
    ) -> list[str]:
        """Bring back what `export_to` wrote: ids, times and metadata as they were.

        Vectors are taken over when this store's embedder made them; else the texts are embedded.

        Args:
            path: the file.
            on_conflict: for an id that exists: "error", "replace" or "ignore".
            progress: called after every batch.
            stop: set it to stop soon.

        Returns:
            The ids of the memories in the file.

        Raises:
            InputError: the file is no export, or not as it was written: nothing of it is stored. Or
                this store refuses a memory in it: the batches before that one are stored, and the
                error names their ids, as `stored_ids`.
            DuplicateIdError: an id exists and `on_conflict` is "error"; likewise.
            StoppedError: `stop` was set. The batches before are stored; "ignore" passes them over
                the next time.
        """
        found = read_export(expanded(path).absolute(), self._session.serving.space)
        items = Steps(None, stop).track(found)
        return self._adding.add_many(items, on_conflict=on_conflict, progress=progress)
