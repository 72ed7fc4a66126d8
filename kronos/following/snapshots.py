"""The snapshots of a replica: when the next one is due, writing it, and reading the newest one.

A snapshot is a copy. If it cannot be written, a warning says so and nothing is lost.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kronos.errors import KronosWarning, StorageError
from kronos.index.snapshot import (
    Snapshot,
    SnapshotHeader,
    SnapshotIdentity,
    discard_snapshots,
    newest_header,
    newest_seq,
    read_newest,
    write_snapshot,
)

if TYPE_CHECKING:
    from kronos.index.layered import LayeredIndex
    from kronos.types import Space

_LARGE_SHARE = 10


@dataclass(frozen=True, slots=True)
class SnapshotPolicy:
    """When to save an index.

    A snapshot is as large as the whole index. So a share of the index must have changed since the
    last one, or some time must have passed; otherwise each batch in a large store would rewrite it.
    """

    changes: int
    """For fewer changes, a replay from SQL is cheaper than a snapshot."""
    interval_s: float
    """After this time `changes` changes are enough, however large the index is."""

    def is_due(self, changes: int, size: int, seconds: float) -> bool:
        """Whether to save an index.

        Args:
            changes: since the last snapshot.
            size: vectors in the index.
            seconds: since the last snapshot.
        """
        if changes < self.changes:
            return False
        return changes * _LARGE_SHARE >= size or seconds >= self.interval_s


class Snapshots:
    """The snapshots of one replica. Not thread-safe: the replica's locks guard it.

    Args:
        space: the replica's space.
        store_id: the store of that space.
        folder: where the snapshots are.
        policy: when a snapshot is due.
        sync: syncs every commit to disk. A snapshot must not outlive the changes in it: after a
            power cut the database would give the same seqs to other changes.
        mode: the permission bits of the database, which its snapshots get too.
    """

    def __init__(
        self,
        space: Space,
        *,
        store_id: str,
        folder: Path,
        policy: SnapshotPolicy,
        sync: Callable[[], None],
        mode: Callable[[], int | None],
    ) -> None:
        self._space = space
        self._store_id = store_id
        self._folder = folder
        self._policy = policy
        self._sync, self._mode = sync, mode
        self.reset()

    def reset(self) -> None:
        """Start to count anew, for an index that is loaded or replayed."""
        self.unsaved = 0
        """Changes that were applied since the last snapshot."""
        self.must_save = False
        """The index was built or tuned since the last snapshot: save it for any number of
        changes, or the next process would repeat that work."""
        self.is_tuned_here = False
        """This process tuned the index, and no snapshot has the result yet."""
        self._saved_at = time.monotonic()

    # -- When to save ---------------------------------------------------------------------------

    def is_due(self, size: Callable[[], int]) -> bool:
        """Whether a snapshot of the index is due by the policy.

        Args:
            size: counts the vectors in the index.
        """
        if not self.unsaved:  # the usual case after a search, and every search asks
            return self.must_save
        seconds = time.monotonic() - self._saved_at
        return self.must_save or self._policy.is_due(self.unsaved, size(), seconds)

    def is_worthwhile(self) -> bool:
        """Whether the index changed enough for a snapshot, at any time."""
        return self.must_save or self.unsaved >= self._policy.changes

    def is_large_enough(self, size: int) -> bool:
        """Whether an index of this size is slower to replay than to load."""
        return size >= self._policy.changes

    def skip_changes_saved_elsewhere(self, applied: int) -> None:
        """Count from the newest snapshot, if another process wrote one since.

        Args:
            applied: the seq of the index.
        """
        newest = newest_seq(self._folder, self._space.id)
        if newest is not None and applied - newest < self.unsaved:
            self.unsaved = max(applied - newest, 0)

    # -- Writing --------------------------------------------------------------------------------

    def identity(self, kind: str) -> SnapshotIdentity:
        """The identity of a snapshot of this replica, for a kind of index."""
        return SnapshotIdentity(
            store_id=self._store_id,
            space_id=self._space.id,
            fingerprint=self._space.fingerprint,
            dim=self._space.dim,
            kind=kind,
        )

    def header(self, index: LayeredIndex, seq: int) -> SnapshotHeader:
        """The header for an index at a seq."""
        measured = None if index.tuned is None else index.tuned.recall
        return SnapshotHeader(self.identity(index.kind), seq, len(index), index.effort, measured)

    def publish(
        self, header: SnapshotHeader, payload: Sequence[memoryview], *, replace_equal: bool
    ) -> bool:
        """Write a snapshot.

        Args:
            header: its header.
            payload: the index's buffers.
            replace_equal: replace a snapshot of the same seq, because this one is built better.

        Returns:
            Whether there is a snapshot of this seq or a newer one now. If not, and no other process
            is writing one, a warning says why.
        """
        try:
            self._sync()
            path = write_snapshot(
                self._folder, header, payload, replace_equal=replace_equal, mode=self._mode()
            )
            return path is not None
        except StorageError as exc:
            warn(f"no index snapshot was saved, so the next open is slower: {exc}")
            return False

    # -- Reading and discarding -----------------------------------------------------------------

    def newest_header(self) -> SnapshotHeader | None:
        """The header of the newest snapshot; None if there is none of this replica."""
        header = newest_header(self._folder, self._space.id)
        if header is None or header.identity != self.identity(header.identity.kind):
            return None
        return header

    def read(self, kind: str, kinds: Collection[str]) -> Snapshot | None:
        """Read and verify the newest snapshot; None if there is none.

        Args:
            kind: the kind of a new index.
            kinds: the kinds that can be loaded.

        Raises:
            SnapshotError: it is damaged, or not of this replica.
        """
        return read_newest(self._folder, self.identity(kind), kinds=kinds)

    def discard(self) -> None:
        """Delete all snapshots of the space.

        Raises:
            StorageError: they cannot be deleted.
        """
        discard_snapshots(self._folder, self._space.id)

    def discard_quietly(self) -> None:
        """The same; a warning instead of an error."""
        try:
            self.discard()
        except StorageError as exc:
            warn(f"the damaged snapshot could not be deleted: {exc}")

    def discard_beyond(self, head: int) -> None:
        """Delete snapshots that are newer than the database, which somebody restored by hand.

        Called when a store opens, before it writes: later, its new changes may have the same seqs.

        Args:
            head: the last seq of the database.
        """
        warn(
            f"an index snapshot has a later seq than the database, which ends at {head}: the "
            "index is rebuilt from the database"
        )
        with suppress(StorageError):
            self.discard()


def warn(message: str) -> None:
    """Issue a KronosWarning."""
    warnings.warn(message, KronosWarning, stacklevel=3)
