"""A replica: an index that follows one space by seq. It is never trusted, only followed.

It takes up what SQL committed above the seq it has applied, inside the reader's own transaction, so
the index and the rows that are read beside it are of one moment. Any doubt (a damaged snapshot,
another store, space or width, a count that does not agree, a seq beyond the database's or below the
tombstones that are left) means replay from zero. Deleting every snapshot loses nothing.
"""

from __future__ import annotations

import threading
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from kronos.errors import KronosWarning, SnapshotError, StorageError
from kronos.index.snapshot import (
    SnapshotHeader,
    SnapshotIdentity,
    discard_snapshots,
    read_newest,
    write_snapshot,
)

if TYPE_CHECKING:
    from kronos.index.faiss import FaissIndex
    from kronos.repository import Repository
    from kronos.types import Keys, Memory, Space, VectorIndex, Vectors

# A replay of fewer changes from SQL costs less than writing a snapshot.
_CHANGES_WORTH_A_SNAPSHOT = 1000


class Replica:
    """An index that follows one space.

    Its user holds `lock` from before the transaction begins until the search is done: so no other
    thread can have moved the index beyond what the transaction sees.
    """

    def __init__(self, space: Space, *, store_id: str, folder: Path, device: str) -> None:
        self.space = space
        self.lock = threading.Lock()
        self.complete_seq = 0
        """At this seq nothing was pending in the space, but for texts that cannot be embedded."""
        self._store_id = store_id
        self._folder = folder
        self._device = device
        self._index: VectorIndex | None = None
        self._applied = 0
        self._unsaved = 0
        """Changes applied since the last snapshot."""

    def __len__(self) -> int:
        return 0 if self._index is None else len(self._index)

    @property
    def kind(self) -> str:
        """The kind of index."""
        return _index_class().kind

    def catch_up(self, repository: Repository, head: int) -> VectorIndex:
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
            try:
                self._apply(self._index, repository)
            except BaseException:
                self._forget()  # nobody knows how much of it was applied
                raise
            self._applied = head
        return self._index

    def _apply(self, index: VectorIndex, repository: Repository) -> None:
        gone = repository.spaces.tombstones_since(self.space.id, self._applied)
        self._unsaved += len(gone)
        index.remove(gone)
        for keys, rows in repository.spaces.vectors_since(self.space, self._applied):
            index.upsert(keys, rows)
            self._unsaved += len(keys)

    def nearest(
        self,
        repository: Repository,
        head: int,
        query: Vectors,
        *,
        limit: int,
        allowed: Keys | None,
    ) -> list[tuple[Memory, float]]:
        """The live memories nearest to a vector, with their scores, best first.

        Args:
            repository: over the transaction of the search.
            head: the last seq that it sees.
            query: (dim,) float32 of unit length.
            limit: how many; as many come back when as many are live and allowed.
            allowed: (n,) int64; only these keys may be found. None: all.
        """
        index = self.catch_up(repository, head)
        wanted = limit
        while True:
            scores, keys = index.search(query[None, :], wanted, allowed=allowed)
            memories = repository.by_keys(keys[0])
            if len(memories) >= limit or keys.shape[1] < wanted:
                break
            wanted *= 2  # expired memories took the places of live ones
        ranked = zip(keys[0].tolist(), scores[0].tolist(), strict=True)
        return [(memories[key], score) for key, score in ranked if key in memories][:limit]

    def save(self) -> None:
        """Publish a snapshot, when enough has changed to be worth it.

        A snapshot is a copy: where it cannot be written, a warning says so and nothing is lost.
        """
        with self.lock:
            if self._index is None or self._unsaved < _CHANGES_WORTH_A_SNAPSHOT:
                return
            header = SnapshotHeader(self._identity(), self._applied, len(self._index))
            try:
                write_snapshot(self._folder, header, self._index.to_bytes())
            except StorageError as exc:
                self._warn(f"no index snapshot was saved, so the next open is slower: {exc}")
            else:
                self._unsaved = 0

    def discard(self) -> None:
        """Forget the index and its snapshots; the next `catch_up` replays from zero."""
        self._forget()
        discard_snapshots(self._folder, self.space.id)

    def _forget(self) -> None:
        self._index = None
        self._applied = self._unsaved = 0

    def _load(self, repository: Repository, head: int) -> VectorIndex | None:
        """The index of the newest snapshot, caught up; None, after a warning, on any doubt."""
        try:
            found = read_newest(self._folder, self._identity())
            if found is None:
                return None
            header, payload = found
            if not self.space.pruned_seq <= header.seq <= head:
                raise SnapshotError(
                    f"the snapshot is at seq {header.seq}, and the database knows "
                    f"{self.space.pruned_seq} to {head}"
                )
            index = _index_class().from_bytes(payload, self.space.dim, device=self._device)
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

    def _new_index(self) -> VectorIndex:
        return _index_class()(self.space.dim, device=self._device)

    def _identity(self) -> SnapshotIdentity:
        return SnapshotIdentity(
            store_id=self._store_id,
            space_id=self.space.id,
            fingerprint=self.space.fingerprint,
            dim=self.space.dim,
            kind=self.kind,
        )


def _index_class() -> type[FaissIndex]:
    from kronos.index.faiss import FaissIndex  # FAISS takes 0.3 s to import; reading needs none

    return FaissIndex
