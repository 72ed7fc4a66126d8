"""A replica: an index that follows one space by seq. It is never trusted, only followed.

It takes up what SQL committed above the seq it has applied, inside the reader's own transaction, so
the index and the rows that are read beside it are of one moment. Any doubt (a damaged snapshot,
another store, space or width, a count that does not agree, a seq beyond the database's or below the
tombstones that are left) means replay from zero. Deleting every snapshot loses nothing.

When a snapshot is due is the `SnapshotPolicy`'s to say, and when to build is the `IndexPolicy`'s;
`save` and `build` do it while searches go on, and `keep_up` both, where they are due.
"""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kronos.concurrency.forking import Lock
from kronos.errors import (
    CorruptStoreError,
    KronosWarning,
    SnapshotError,
    StorageError,
    VectorError,
)
from kronos.index.policy import IndexPolicy
from kronos.index.snapshot import (
    SnapshotHeader,
    SnapshotIdentity,
    discard_snapshots,
    newest_header,
    newest_seq,
    read_newest,
    write_snapshot,
)
from kronos.index.tuning import Tuned

if TYPE_CHECKING:
    from kronos.index.layered import LayeredIndex
    from kronos.repository.memories import Repository
    from kronos.types import Keys, Space, VectorIndex, Vectors

_LARGE_SHARE = 10
_SAMPLE_BITS = 8
"""A sample has at most two to the power of so many vectors, and at least half of it."""


@dataclass(frozen=True, slots=True)
class SnapshotPolicy:
    """When an index is worth saving.

    A snapshot is as long as the whole index, so between two of them a share of it must have
    changed, or some time must have passed: else each batch of a large store would cost a rewrite.
    """

    changes: int
    """A replay of fewer changes from SQL costs less than a snapshot."""
    interval_s: float
    """After so long that many changes are enough, however large the index is."""

    def is_due(self, changes: int, size: int, seconds: float) -> bool:
        """Whether to save an index of some size, so many changes and seconds after the last one."""
        if changes < self.changes:
            return False
        return changes * _LARGE_SHARE >= size or seconds >= self.interval_s


@dataclass(frozen=True, slots=True)
class IndexState:
    """What kind of index a space has, and how well it finds."""

    kind: str
    effort: int | None = None
    """How hard it is searched; None: every search is exact."""
    recall: float | None = 1.0
    """The recall@10 that was measured last, 0..1; 1 where every search is exact; None: none was."""


@dataclass(frozen=True, slots=True)
class _Sample:
    """Some vectors of an index, which are the same whatever the index went through."""

    keys: Keys
    """Ascending."""
    vectors: Vectors
    full_from: int
    """A key from here on lies behind another point."""

    @classmethod
    def of(cls, index: VectorIndex | None) -> _Sample:
        held = np.empty(0, np.int64) if index is None else index.keys()
        if index is None or not held.size:
            return cls(held, np.empty((0, 0), np.float32), 0)
        step = max(2 ** (int(held[-1]).bit_length() - _SAMPLE_BITS), 1)
        points = np.arange(0, int(held[-1]) + 1, step)
        keys = np.unique(held[np.searchsorted(held, points)])
        return cls(keys, index.vectors_of(keys), int(points[-1]) + step)

    def is_touched_by(self, changed: Keys) -> bool:
        """Whether keys that were written or removed may change it."""
        if not changed.size:
            return False
        return bool(changed.max() >= self.full_from or np.isin(changed, self.keys).any())


class Replica:
    """An index that follows one space.

    Its user holds `lock` from before the transaction begins until the search is done: so no other
    thread can have moved the index beyond what the transaction sees.

    Args:
        space: what it follows.
        store_id: whose space it is.
        folder: where the snapshots lie.
        device: where the index lives.
        policy: when a snapshot is due.
        sync: brings every commit to the disk. A snapshot must not outlive what it holds: a power
            cut would take commits back, and others would be given their seqs.
        mode: the permission bits of the database, which its snapshots get too.
        index_policy: what kind of index it is, and when it is built; None: the default one.
    """

    def __init__(
        self,
        space: Space,
        *,
        store_id: str,
        folder: Path,
        device: str,
        policy: SnapshotPolicy,
        sync: Callable[[], None],
        mode: Callable[[], int | None] = lambda: None,
        index_policy: IndexPolicy | None = None,
    ) -> None:
        self.space = space
        self.lock = Lock()
        self.saving = Lock()
        """Held while snapshots are written or discarded; whoever needs both takes it first."""
        self.complete_seq = 0
        """At this seq nothing was pending in the space, but for texts that cannot be embedded."""
        self.store_id = store_id
        self._folder = folder
        self._device = device
        self._index: LayeredIndex | None = None
        self._applied = 0
        self._policy = policy
        self._index_policy = IndexPolicy() if index_policy is None else index_policy
        self._building = Lock()
        """Held while a new main part is built; taken before any other lock."""
        self._lacks_memory = False
        """A build failed for want of memory: it would fail again."""
        self._built = False
        """A graph was built that no snapshot has yet: the next open would build it again."""
        self._measured = False
        """The index was tuned here, and no snapshot has it yet."""
        self._sync, self._mode = sync, mode
        self._unsaved = 0
        """Changes applied since the last snapshot."""
        self._saved_at = time.monotonic()
        self._sample: _Sample | None = None

    def __len__(self) -> int:
        return 0 if self._index is None else len(self._index)

    @property
    def kind(self) -> str:
        """The kind of index."""
        return _index_class().KINDS[0] if self._index is None else self._index.kind

    def state(self) -> IndexState:
        """What the index is; before it is loaded, what its snapshot says. Called with `lock`."""
        index = self._index
        if index is not None:
            measured = None if index.tuned is None else index.tuned.recall
            effort = index.effort
            return IndexState(index.kind, effort, 1.0 if effort is None else measured)
        header = self._newest_header() if self._index_policy.has_main else None
        if header is None or header.effort is None:
            return IndexState(self.kind)
        return IndexState(header.identity.kind, header.effort, header.recall)

    @property
    def is_saved_as_tuned(self) -> bool:
        """Whether whoever loads the newest snapshot searches as hard as this index is searched."""
        header, state = self._newest_header(), self.state()
        saved = None if header is None else (header.effort, header.recall)
        return saved == (state.effort, state.recall)

    def _newest_header(self) -> SnapshotHeader | None:
        """What the newest snapshot says of itself, when it is one of this index."""
        header = newest_header(self._folder, self.space.id)
        if header is None or header.identity != replace(
            self._identity(), kind=header.identity.kind
        ):
            return None
        return header

    def catch_up(self, repository: Repository, head: int) -> LayeredIndex:
        """Apply what was committed since the last time; the first time, load a snapshot.

        Args:
            repository: over the transaction whose moment the index is to show.
            head: the last seq at that moment.

        Returns:
            The index, equal to the space's vectors at that moment.

        Raises:
            CorruptStoreError: a stored vector does not fit the space.
        """
        if head < self._applied:  # the database was put back to an older state
            self._forget()
        if self._index is None:
            self._index = self._load(repository, head) or self._new_index()
        if self._applied != head:
            if self._applied < repository.spaces.pruned_seq(self.space.id):
                self._forget()
                self._index = self._new_index()  # nobody knows what to forget
            try:
                self._apply(self._index, repository)
            except BaseException:
                self._forget()  # nobody knows how much of it was applied
                raise
            self._applied = head
        return self._index

    def _apply(self, index: VectorIndex, repository: Repository) -> None:
        gone = repository.spaces.tombstones_since(self.space.id, self._applied)
        self._doubt_sample(gone)
        self._unsaved += len(gone)
        index.remove(gone)
        for keys, rows in repository.spaces.vectors_since(self.space, self._applied):
            self._doubt_sample(keys)
            try:
                index.upsert(keys, rows)
            except VectorError as exc:
                raise CorruptStoreError(
                    f"a stored vector of space {self.space.id} is damaged: {exc}. Run `kronos "
                    "doctor --repair`, which has it made anew"
                ) from exc
            self._unsaved += len(keys)

    def sample(self) -> Vectors:
        """Some vectors of the space, the same ones in every process: (n, dim) float32, n <= 256.

        They are those of the first keys from points on that lie evenly between 0 and the highest,
        a power of 2 apart; so it takes many writes until the points are others. Called with `lock`
        held, after `catch_up`.
        """
        if self._sample is None:
            self._sample = _Sample.of(self._index)
        return self._sample.vectors

    def _doubt_sample(self, changed: Keys) -> None:
        """Forget the sample when a change may make it another one."""
        if self._sample is not None and self._sample.is_touched_by(changed):
            self._sample = None

    @property
    def save_is_due(self) -> bool:
        """Whether a snapshot is due by the policy."""
        if not self._unsaved:  # as after most searches, which all ask
            return self._built
        seconds = time.monotonic() - self._saved_at
        return self._built or self._policy.is_due(self._unsaved, len(self), seconds)

    def save(self) -> None:
        """Publish a snapshot, when enough has changed to be worth it; searches go on meanwhile.

        A snapshot is a copy: where it cannot be written, a warning says so and nothing is lost.
        """
        with self.saving:
            with self.lock:
                self._forgo_what_others_saved()
                enough = self._built or self._unsaved >= self._policy.changes
                if self._index is None or not enough:
                    return
                self._take_up_tuning(self._index)
                header = self._header(self._index, self._applied)
                payload = self._index.to_buffers()
                unsaved, self._unsaved, self._saved_at = self._unsaved, 0, time.monotonic()
                built, self._built = self._built, False
                self._measured = False
            if not self._publish(header, payload, built=built):
                with self.lock:
                    self._unsaved += unsaved

    def _forgo_what_others_saved(self) -> None:
        """Count from another process's snapshot, when that is a newer one."""
        newest = newest_seq(self._folder, self.space.id)
        if newest is not None and self._applied - newest < self._unsaved:
            self._unsaved = max(self._applied - newest, 0)

    def _take_up_tuning(self, index: LayeredIndex) -> None:
        """Search as hard as another process found to be enough, unless this one measured since."""
        newest = None if self._measured else self._newest_header()
        if newest is not None and newest.effort is not None and newest.recall is not None:
            index.tune(Tuned(newest.effort, newest.recall))

    def _header(self, index: LayeredIndex, seq: int) -> SnapshotHeader:
        measured = None if index.tuned is None else index.tuned.recall
        return SnapshotHeader(self._identity(), seq, len(index), index.effort, measured)

    def _publish(
        self, header: SnapshotHeader, payload: Sequence[memoryview], *, built: bool
    ) -> bool:
        try:
            self._sync()
            path = write_snapshot(
                self._folder, header, payload, replace_equal=built, mode=self._mode()
            )
            return path is not None
        except StorageError as exc:
            self._warn(f"no index snapshot was saved, so the next open is slower: {exc}")
            return False

    def compact(self, reading: Callable[[], AbstractContextManager[Repository]]) -> int:
        """Give back the memory of deleted vectors, and leave no snapshot that holds one.

        Called with `saving` held. Searches and writes go on meanwhile.

        Args:
            reading: begins a transaction.

        Returns:
            The seq of what is left: whoever was deleted up to it is forgotten.

        Raises:
            StorageError: older snapshots cannot be deleted.
        """
        with self.lock, reading() as repository:
            head = repository.head().seq
            index = self.catch_up(repository, head)
            make = index.begin_compaction()
        compacted = make()
        header = self._header(compacted, head)
        if header.count < self._policy.changes or not self._publish(
            header, compacted.to_buffers(), built=True
        ):
            discard_snapshots(self._folder, self.space.id)
        with self.lock:
            if self._index is index:  # else it was forgotten, and is loaded anew
                self._index, self._applied, self._sample = compacted, head, None
                self._unsaved, self._built = 0, False
        return head

    # -- Builds ----------------------------------------------------------------------------------

    @property
    def build_is_due(self) -> bool:
        """Whether the index is worth building, or its tail worth merging, by the policy."""
        index = self._index
        return index is not None and index.build_is_due and not self._lacks_memory

    def build(self, stopped: Callable[[], bool]) -> None:
        """Build a new main part where one is due; searches and writes go on meanwhile.

        Nothing depends on it but speed: where it is stopped, the index stays as it is.

        Args:
            stopped: asked about once a second whether to stop.
        """
        with self._building:
            with self.lock:
                index = self._index
                if index is None or not self.build_is_due:
                    return
                build = index.begin_build()
            try:
                # What was compacted or forgotten meanwhile is to leave the memory soon.
                if not build.run(lambda: stopped() or self._index is not index):
                    return
            except MemoryError as exc:
                self._lacks_memory = True
                self._warn(
                    f"no memory to build an index of {len(index)} vectors, so searches are "
                    f"slower: {exc}"
                )
                return
            with self.lock:
                if self._index is index and index.finish_build(build):
                    self._built = self._built or build.is_from_scratch

    def tune(self, target: float, stopped: Callable[[], bool] = lambda: False) -> Tuned | None:
        """Measure recall@10 on the space's own vectors, and search as hard as the target needs.

        Searches and writes go on meanwhile. Called after `catch_up`; what is found is saved with
        the index.

        Args:
            target: 0..1.
            stopped: asked now and then whether to stop.

        Returns:
            What was found; None: there is no graph, and every search is exact, or it was stopped.
        """
        while True:
            with self.lock:
                index = self._index
                tuning = None if index is None else index.begin_tuning()
            tuned = None if tuning is None else tuning.run(target, stopped)
            with self.lock:
                if index is None or tuned is None:
                    return None
                if self._index is index:  # else it was compacted, or forgotten, meanwhile
                    index.tune(tuned)
                    self._built = self._measured = True
                    return tuned

    def keep_up(self, stop: threading.Event) -> None:
        """Save and build what is due; called by a thread of its own."""
        if self.save_is_due:
            self.save()
        self.build(stop.is_set)
        if self.save_is_due:
            self.save()

    def discard_beyond(self, head: int) -> None:
        """Delete the snapshots, one of which is newer than the database: it was put back by hand.

        Done when a store opens, before anybody writes: later its seq may have been given out anew.
        """
        self._warn(
            f"an index snapshot is of a later seq than the database, which ends at {head}: the "
            "index is rebuilt from the database"
        )
        with suppress(StorageError):
            discard_snapshots(self._folder, self.space.id)

    def discard(self) -> None:
        """Forget the index and its snapshots; the next `catch_up` replays from zero."""
        self._forget()
        discard_snapshots(self._folder, self.space.id)

    def _forget(self) -> None:
        self._index = self._sample = None
        self._applied = self._unsaved = 0
        self._built = self._measured = False
        self._saved_at = time.monotonic()

    def _load(self, repository: Repository, head: int) -> LayeredIndex | None:
        """The index of the newest snapshot, caught up; None, after a warning, on any doubt."""
        try:
            kinds = _index_class().KINDS
            found = read_newest(self._folder, self._identity(), kinds=kinds)
            if found is None:
                return None
            header, payload, known = found
            if header.seq < repository.spaces.pruned_seq(self.space.id):
                self._discard_quietly()  # sound, and too old to know what to forget
                return None
            if header.seq > head:
                raise SnapshotError(
                    f"the snapshot is at seq {header.seq}, and the database ends at {head}"
                )
            index = _index_class().from_bytes(
                payload,
                self.space.dim,
                device=self._device,
                policy=self._index_policy,
                known=known,
            )
            self._applied = header.seq
            self._apply(index, repository)
            count = repository.spaces.vector_count(self.space.id)
            if len(index) != count:
                raise SnapshotError(f"the index holds {len(index)} vectors, the database {count}")
        except SnapshotError as exc:
            self._warn(f"the index is rebuilt from the database: {exc}")
            self._discard_quietly()
            return None
        self._applied = head
        return index

    def _discard_quietly(self) -> None:
        try:
            self.discard()
        except StorageError as exc:
            self._warn(f"the damaged snapshot could not be deleted: {exc}")

    def _warn(self, message: str) -> None:
        warnings.warn(message, KronosWarning, stacklevel=3)

    def _new_index(self) -> LayeredIndex:
        return _index_class()(self.space.dim, device=self._device, policy=self._index_policy)

    def _identity(self) -> SnapshotIdentity:
        return SnapshotIdentity(
            store_id=self.store_id,
            space_id=self.space.id,
            fingerprint=self.space.fingerprint,
            dim=self.space.dim,
            kind=self.kind,
        )


def _index_class() -> type[LayeredIndex]:
    from kronos.index.layered import LayeredIndex  # FAISS takes 0.3 s to import; reading needs none

    return LayeredIndex
