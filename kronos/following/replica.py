"""A replica: an index that follows one space by seq. It is never trusted, only followed.

A replica applies the changes that SQL committed above its own seq, inside the reader's transaction.
So the index and the rows that are read with it show the same moment. Any doubt leads to a replay
from zero: a damaged snapshot, another store, space or width, a wrong count, a seq beyond the
database's, or a seq below the tombstones that are left. Deleting every snapshot loses nothing.

`SnapshotPolicy` says when a snapshot is due, and `IndexPolicy` when a build is. `save` and `build`
do them while searches continue; `keep_up` does both where they are due.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kronos.concurrency.forking import Lock
from kronos.errors import CorruptStoreError, SnapshotError, VectorError
from kronos.following.sample import Sample
from kronos.following.snapshots import SnapshotPolicy, Snapshots, warn
from kronos.index.policy import IndexPolicy
from kronos.index.tuning import TuningResult

if TYPE_CHECKING:
    from kronos.index.layered import LayeredIndex
    from kronos.repository.memories import Repository
    from kronos.types import Keys, Space, VectorIndex, Vectors


@dataclass(frozen=True, slots=True)
class IndexState:
    """What kind of index a space has, and how well it finds."""

    kind: str
    effort: int | None = None
    """How hard it is searched; None: every search is exact."""
    recall: float | None = 1.0
    """The last measured recall@10, 0..1; 1 where every search is exact; None: never measured."""


class Replica:
    """An index that follows one space.

    A caller holds `lock` from before its transaction begins until its search is done. So no other
    thread can move the index beyond what the transaction sees.

    Args:
        space: the space to follow.
        store_id: the store of that space.
        folder: where the snapshots are.
        device: where the index is.
        policy: when a snapshot is due.
        sync: syncs every commit to disk; see `Snapshots`.
        mode: the permission bits of the database, which its snapshots get too.
        index_policy: the kind of index, and when it is built; None: the default.
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
        self.store_id = store_id
        self.lock = Lock()
        """Guards the index."""
        self.saving = Lock()
        """Held while snapshots are written or discarded. Taken before `lock`."""
        self.complete_seq = 0
        """At this seq nothing was pending in the space, except texts that cannot be embedded."""
        self._building = Lock()
        """Held while a new main part is built. Taken before any other lock."""
        self._device = device
        self._index: LayeredIndex | None = None
        self._applied = 0
        """The seq of the index."""
        self._index_policy = IndexPolicy() if index_policy is None else index_policy
        self._lacks_memory = False
        """A build failed because memory ran out; it would fail again."""
        self._snapshots = Snapshots(
            space, store_id=store_id, folder=folder, policy=policy, sync=sync, mode=mode
        )
        self._sample: Sample | None = None

    def __len__(self) -> int:
        return 0 if self._index is None else len(self._index)

    @property
    def kind(self) -> str:
        """The kind of index."""
        return _index_class().KINDS[0] if self._index is None else self._index.kind

    def state(self) -> IndexState:
        """The state of the index; before it is loaded, as its snapshot says. Call with `lock`."""
        index = self._index
        if index is not None:
            measured = None if index.tuned is None else index.tuned.recall
            effort = index.effort
            return IndexState(index.kind, effort, 1.0 if effort is None else measured)
        header = self._snapshots.newest_header() if self._index_policy.has_main else None
        if header is None or header.effort is None:
            return IndexState(self.kind)
        return IndexState(header.identity.kind, header.effort, header.recall)

    @property
    def is_saved_as_tuned(self) -> bool:
        """Whether a process that loads the newest snapshot searches as hard as this one."""
        header, state = self._snapshots.newest_header(), self.state()
        saved = None if header is None else (header.effort, header.recall)
        return saved == (state.effort, state.recall)

    # -- Following ------------------------------------------------------------------------------

    def catch_up(self, repository: Repository, head: int) -> LayeredIndex:
        """Apply what was committed since the last call; the first call loads a snapshot.

        Args:
            repository: over the transaction whose moment the index is to show.
            head: the last seq at that moment.

        Returns:
            The index, equal to the space's vectors at that moment.

        Raises:
            CorruptStoreError: a stored vector does not fit the space.
        """
        if head < self._applied:  # an older state of the database was restored
            self._forget()
        if self._index is None:
            self._index = self._load(repository, head) or self._new_index()
        if self._applied != head:
            if self._applied < repository.spaces.pruned_seq(self.space.id):
                self._forget()
                self._index = self._new_index()  # the tombstones that it needs are gone
            try:
                self._apply(self._index, repository)
            except BaseException:
                self._forget()  # partially applied
                raise
            self._applied = head
        return self._index

    def _apply(self, index: VectorIndex, repository: Repository) -> None:
        gone = repository.vectors.tombstones_since(self.space.id, self._applied)
        self._check_sample(gone)
        self._snapshots.unsaved += len(gone)
        index.remove(gone)
        for keys, rows in repository.vectors.since(self.space, self._applied):
            self._check_sample(keys)
            try:
                index.upsert(keys, rows)
            except VectorError as exc:
                raise CorruptStoreError(
                    f"a stored vector of space {self.space.id} is damaged: {exc}. Run `kronos "
                    "doctor --repair`, which makes it anew"
                ) from exc
            self._snapshots.unsaved += len(keys)

    def _load(self, repository: Repository, head: int) -> LayeredIndex | None:
        """Load the newest snapshot and catch up; None, after a warning, on any doubt."""
        try:
            kinds = _index_class().KINDS
            found = self._snapshots.read(self.kind, kinds)
            if found is None:
                return None
            header, payload, known = found
            if header.seq < repository.spaces.pruned_seq(self.space.id):
                # Not damaged, but older than the tombstones that are left.
                self._discard_quietly()
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
            count = repository.vectors.count(self.space.id)
            if len(index) != count:
                raise SnapshotError(f"the index holds {len(index)} vectors, the database {count}")
        except SnapshotError as exc:
            warn(f"the index is rebuilt from the database: {exc}")
            self._discard_quietly()
            return None
        self._applied = head
        return index

    def _new_index(self) -> LayeredIndex:
        return _index_class()(self.space.dim, device=self._device, policy=self._index_policy)

    def _forget(self) -> None:
        self._index = self._sample = None
        self._applied = 0
        self._snapshots.reset()

    def _discard_quietly(self) -> None:
        self._forget()
        self._snapshots.discard_quietly()

    def discard(self) -> None:
        """Forget the index and delete its snapshots; the next `catch_up` replays from zero.

        Raises:
            StorageError: the snapshots cannot be deleted.
        """
        self._forget()
        self._snapshots.discard()

    def discard_beyond(self, head: int) -> None:
        """Delete snapshots that are newer than the database; see `Snapshots`."""
        self._snapshots.discard_beyond(head)

    def sample(self) -> Vectors:
        """Some vectors of the space, the same in every process: (n, dim) float32, n <= 256.

        Call it with `lock` held, after `catch_up`.
        """
        if self._sample is None:
            self._sample = Sample.of(self._index)
        return self._sample.vectors

    def _check_sample(self, changed: Keys) -> None:
        if self._sample is not None and self._sample.is_changed_by(changed):
            self._sample = None

    # -- Saving ---------------------------------------------------------------------------------

    @property
    def save_is_due(self) -> bool:
        """Whether a snapshot is due by the policy."""
        return self._snapshots.is_due(self.__len__)

    def save(self) -> None:
        """Write a snapshot if enough has changed; searches continue meanwhile."""
        snapshots = self._snapshots
        with self.saving:
            with self.lock:
                snapshots.skip_changes_saved_elsewhere(self._applied)
                if self._index is None or not snapshots.is_worthwhile():
                    return
                self._take_over_tuning(self._index)
                header = snapshots.header(self._index, self._applied)
                payload = self._index.to_buffers()
                unsaved, must_save = snapshots.unsaved, snapshots.must_save
                snapshots.reset()
            if not snapshots.publish(header, payload, replace_equal=must_save):
                with self.lock:
                    snapshots.unsaved += unsaved

    def _take_over_tuning(self, index: LayeredIndex) -> None:
        """Search as hard as the newest snapshot says, unless this process measured since."""
        newest = None if self._snapshots.is_tuned_here else self._snapshots.newest_header()
        if newest is not None and newest.effort is not None and newest.recall is not None:
            index.tune(TuningResult(newest.effort, newest.recall))

    def compact(self, reading: Callable[[], AbstractContextManager[Repository]]) -> int:
        """Free the memory of deleted vectors, and leave no snapshot that holds one.

        Call it with `saving` held. Searches and writes continue meanwhile.

        Args:
            reading: begins a read transaction.

        Returns:
            The seq of the compacted index. It holds no vector that was deleted up to it.

        Raises:
            StorageError: older snapshots cannot be deleted.
        """
        with self.lock, reading() as repository:
            head = repository.head().seq
            index = self.catch_up(repository, head)
            make = index.begin_compaction()
        compacted = make()
        header = self._snapshots.header(compacted, head)
        if not self._snapshots.is_large_enough(header.count) or not self._snapshots.publish(
            header, compacted.to_buffers(), replace_equal=True
        ):
            self._snapshots.discard()
        with self.lock:
            if self._index is index:  # otherwise it was forgotten, and is loaded anew
                self._index, self._applied, self._sample = compacted, head, None
                self._snapshots.unsaved, self._snapshots.must_save = 0, False
        return head

    # -- Building -------------------------------------------------------------------------------

    @property
    def build_is_due(self) -> bool:
        """Whether to build the index, or to merge its tail, by the policy."""
        index = self._index
        return index is not None and index.build_is_due and not self._lacks_memory

    def build(self, stopped: Callable[[], bool]) -> None:
        """Build a new main part if one is due; searches and writes continue meanwhile.

        Only speed depends on it: a build that is stopped leaves the index as it is.

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
                # Also stops for an index that was compacted or forgotten, to free its memory.
                if not build.run(lambda: stopped() or self._index is not index):
                    return
            except MemoryError as exc:
                self._lacks_memory = True
                warn(
                    f"no memory to build an index of {len(index)} vectors, so searches are "
                    f"slower: {exc}"
                )
                return
            with self.lock:
                if self._index is index and index.finish_build(build):
                    self._snapshots.must_save |= build.is_from_scratch

    def tune(
        self, target: float, stopped: Callable[[], bool] = lambda: False
    ) -> TuningResult | None:
        """Measure recall@10 on the space's own vectors, and search as hard as the target needs.

        Searches and writes continue meanwhile. Call it after `catch_up`. The result is saved with
        the index.

        Args:
            target: the wanted recall@10, 0..1.
            stopped: asked now and then whether to stop.

        Returns:
            The result; None if every search is exact, because there is no graph, or if it stopped.
        """
        while True:
            with self.lock:
                index = self._index
                tuning = None if index is None else index.begin_tuning()
            tuned = None if tuning is None else tuning.run(target, stopped)
            with self.lock:
                if index is None or tuned is None:
                    return None
                if self._index is index:  # otherwise it was compacted or forgotten meanwhile
                    index.tune(tuned)
                    self._snapshots.must_save = self._snapshots.is_tuned_here = True
                    return tuned

    def keep_up(self, stop: threading.Event) -> None:
        """Save and build what is due; for a background thread."""
        if self.save_is_due:
            self.save()
        self.build(stop.is_set)
        if self.save_is_due:
            self.save()


def _index_class() -> type[LayeredIndex]:
    from kronos.index.layered import LayeredIndex  # imports FAISS, which is slow, when needed

    return LayeredIndex
