"""Writing memories: how they are added, replaced and deleted, together with their vectors.

A `Repository` works over one open transaction and never begins or ends it: the caller that opened
the transaction ends it. Reading is `Rows`, which it extends. A change that is written whole (a
batch, an edit, a delete) takes its seq here and leaves no vector of an older text in any space.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
from sqlalchemy import Connection, bindparam, delete, literal_column, select, tuple_

from kronos.db.database import FileId, file_of
from kronos.db.numbers import read_numbers
from kronos.db.sql import list_parameter, value_list
from kronos.db.statements import Prepared, insert_rows, savepoint, update_rows
from kronos.db.tables import accesses, deletions, memories, spaces, store
from kronos.errors import DuplicateIdError, NotFoundError
from kronos.repository.batches import GIVEN, Batch, Edit, Write, resolve, values_of
from kronos.repository.fulltext import Fulltext
from kronos.repository.history import History
from kronos.repository.jobs import Jobs
from kronos.repository.links import Links, Reached
from kronos.repository.memory_rows import COLUMNS, Condition, as_memory, is_live
from kronos.repository.pending import Pending
from kronos.repository.rows import Rows
from kronos.repository.seqs import next_seqs
from kronos.repository.spaces import IS_ACTIVE, Spaces
from kronos.repository.vectors import StoredVectors, checked_blobs
from kronos.types import Memory, Space, Step, Version
from kronos.validation import Record, to_datetime, to_microseconds

if TYPE_CHECKING:
    from kronos.types import Keys, Vectors


@dataclass(slots=True)
class Head:
    """What an open store compares to learn that something changed.

    The id of a space alone does not identify it: the first space of every store has the same one.
    """

    seq: int
    store_id: str
    active_space: int | None
    fingerprint: str | None
    """The active space's."""
    file: FileId | None
    """The database file."""


class Repository(Rows):
    """The rows, over one open transaction.

    Args:
        connection: in a transaction.
        now: the time, UTC.
        expired_by: memories that expired until then are gone; None is `now`. It is later than `now`
            when the clock was put back: an expired memory must not come back.
        keep_history: keep the past of memories that are changed or deleted.
    """

    def __init__(
        self,
        connection: Connection,
        now: datetime,
        *,
        expired_by: datetime | None = None,
        keep_history: bool = True,
    ) -> None:
        known = to_microseconds(now)
        gone = known if expired_by is None else to_microseconds(expired_by)
        super().__init__(connection, known, gone)
        self._keep_history = keep_history

    def savepoint(self) -> AbstractContextManager[None]:
        """A part of the transaction: an error undoes it, and leaves what was written before."""
        return savepoint(self._connection)

    @property
    def now(self) -> int:
        """The time of the transaction: microseconds since 1970 UTC."""
        return self._now

    # Each subject has a class of its own, made when it is asked for: a search needs few of them.

    @property
    def spaces(self) -> Spaces:
        """The spaces."""
        return Spaces(self._connection, self._now)

    @property
    def vectors(self) -> StoredVectors:
        """The vectors and tombstones."""
        return StoredVectors(self._connection, self._now)

    @property
    def pending(self) -> Pending:
        """The memories that lack a vector."""
        return Pending(self._connection, self._now)

    @property
    def history(self) -> History:
        """The past of the memories."""
        return History(self._connection, self._now)

    @property
    def fulltext(self) -> Fulltext:
        """The full-text indexes."""
        return Fulltext(self._connection)

    @property
    def links(self) -> Links:
        """The links between memories."""
        return Links(self._connection, self._now, self._expired_by)

    @property
    def jobs(self) -> Jobs:
        """The reindex jobs."""
        return Jobs(self._connection, self._now)

    # -- The store ------------------------------------------------------------------------------

    def store_id(self) -> str:
        """The store's UUID."""
        return str(self._connection.execute(select(store.c.uuid)).scalar_one())

    def head(self) -> Head:
        """The last seq and the active space, with the identity of the store and the file."""
        ((seq, store_id, active, fingerprint),) = _HEAD.fetch(self._connection)
        return Head(seq, store_id, active, fingerprint, file_of(self._connection))

    # -- Memories: reading ----------------------------------------------------------------------

    def as_of(self, moment: int | None) -> Rows:
        """The same store as it was known at a moment: microseconds since 1970 UTC; None: now."""
        if moment is None:
            return self
        return Rows(self._connection, moment, moment, moment)

    def steps(self, reached: Sequence[Reached]) -> list[Step]:
        """The steps of a walk over links, with the memories that it reached."""
        found = self.by_keys(np.array([each.key for each in reached], np.int64))
        return [
            Step(found[each.key], each.depth, each.relation, each.from_id)
            for each in reached
            if each.key in found
        ]

    def versions(self, id: str) -> list[Version]:
        """All versions of the memories with an id, the oldest first."""
        return [
            Version(
                as_memory([row._mapping[name] for name in COLUMNS]),
                to_datetime(row.recorded_at),
                None if row.replaced_at is None else to_datetime(row.replaced_at),
            )
            for row in self.history.of(id)
        ]

    def known(self, ids: Sequence[str]) -> set[str]:
        """The ids, among these, of live memories."""
        rows = _BY_IDS.fetch(self._connection, ids=[*ids])
        return {id for _, id, _, expires_at in rows if not self._is_gone(expires_at)}

    def _is_gone(self, expires_at: int | None) -> bool:
        return expires_at is not None and expires_at <= self._expired_by

    # -- Memories: writing ----------------------------------------------------------------------

    def add(self, batches: Sequence[Batch], space: Space) -> list[list[str] | DuplicateIdError]:
        """Write batches, each whole or not at all.

        Args:
            batches: embedded, all in `space`.
            space: the space that their vectors belong to.

        Returns:
            For each batch the ids of its records, or why it was not written.
        """
        for batch in batches:
            if batch.match_content:
                self._match_content(batch)
        taken = self._existing(batches)
        blobs = iter(self._blobs(batches, space))
        writes: dict[str, Write] = {}
        outcomes = [
            resolve(batch, [*islice(blobs, len(batch.records))], taken, writes) for batch in batches
        ]
        self.fulltext.fold(write.record for write in writes.values())
        self._insert([write for write in writes.values() if write.key is None], space)
        self._replace([write for write in writes.values() if write.key is not None], space)
        return outcomes

    def _blobs(self, batches: Sequence[Batch], space: Space) -> list[bytes]:
        rows = [batch.vectors for batch in batches if batch.space.id == space.id]
        made = [each for each in rows if each is not None]
        if len(made) != len(batches):
            raise AssertionError("a batch must be embedded in the space it is written to")
        return checked_blobs(space, made[0] if len(made) == 1 else np.concatenate(made))

    def _match_content(self, batch: Batch) -> None:
        """Give records the ids of the memories whose texts they have, in their namespaces."""
        for position, record in enumerate(batch.records):
            if record.id_given:
                continue
            found = _BY_TEXT.fetch(
                self._connection,
                content_hash=record.content_hash,
                namespace=record.namespace,
                expired_by=self._expired_by,
            )
            if found:
                batch.records[position] = replace(record, id=found[0][0], id_given=True)
        batch.ids = [record.id for record in batch.records]

    def _existing(self, batches: Iterable[Batch]) -> dict[str, tuple[int, bytes]]:
        """Key and content hash of the live memories with the batches' ids; deletes expired ones."""
        ids = [r.id for batch in batches for r in batch.records if r.id_given]
        if not ids:
            return {}
        found: dict[str, tuple[int, bytes]] = {}
        expired: list[int] = []
        for key, id, content_hash, expires_at in _BY_IDS.fetch(self._connection, ids=ids):
            if self._is_gone(expires_at):
                expired.append(key)
            else:
                found[id] = (key, content_hash)
        self._delete(expired)
        return found

    def _insert(self, writes: Sequence[Write], space: Space) -> None:
        if not writes:
            return
        seqs = self.vectors.seqs_of_new(space, len(writes))
        rows = [
            (seq, seq, self._now, *self._times(write.record), *values_of(write.record))
            for seq, write in zip(seqs, writes, strict=True)
        ]
        insert_rows(self._connection, "memories", _NEW, rows)
        self.fulltext.add(seqs[0], seqs[-1])
        self.vectors.insert(
            space,
            [
                (seq, write.record.content_hash, write.vector, seq)
                for seq, write in zip(seqs, writes, strict=True)
            ],
        )

    def _times(self, record: Record) -> tuple[int, int]:
        created = self._now if record.created_at is None else record.created_at
        updated = record.updated_at
        if updated is None:
            updated = self._now if record.created_at is None else created
        return created, updated

    def _replace(self, writes: Sequence[Write], space: Space) -> None:
        edits = [
            Edit(
                write.key,
                values_of(write.record),
                write.same_text,
                (write.record.content_hash, write.vector),
            )
            for write in writes
            if write.key is not None
        ]
        self._edit(GIVEN, edits, space)

    def update(
        self,
        id: str,
        values: dict[str, Any],
        *,
        space: Space | None = None,
        vector: Vectors | None = None,
    ) -> Memory:
        """Change fields of a live memory.

        Args:
            id: the memory's id.
            values: column values: metadata as JSON, expires_at in microseconds; content comes with
                content_hash, a space and a vector.
            space: the space of the vector.
            vector: (1, dim) float32, the vector of the new content. The memory becomes pending in
                every other space, unless its text is the one it had.

        Raises:
            NotFoundError: no live memory has this id.
        """
        rows = _BY_IDS.fetch(self._connection, ids=[id])
        if not rows or self._is_gone(rows[0][3]):
            raise _not_found(id)
        key, _, known_hash, _ = rows[0]
        content_hash = values.get("content_hash", known_hash)
        made = None
        if vector is not None and space is not None:
            made = (content_hash, checked_blobs(space, vector)[0])
        same_text = content_hash == known_hash
        if "content" in values:
            values = {**values, "folded": self.fulltext.folded(values["content"])}
        self._edit([*values], [Edit(key, [*values.values()], same_text, made)], space)
        changed = select(*(memories.c[name] for name in COLUMNS)).where(memories.c.key == key)
        return as_memory(self._connection.execute(changed).one())

    def _edit(self, columns: Sequence[str], edits: Sequence[Edit], space: Space | None) -> None:
        """Change some columns of memories; the edits have their values in this order."""
        if not edits:
            return
        # The full-text index takes them fastest in this order.
        edits = sorted(edits, key=operator.attrgetter("key"))
        kept = [edit.key for edit in edits if edit.same_text]
        changed = [edit.key for edit in edits if not edit.same_text]
        if self._keep_history:
            self.history.keep(kept, text_goes=False)
            self.history.keep(changed, text_goes=True)
        seqs = next_seqs(self._connection, len(edits))
        update_rows(
            self._connection,
            "memories",
            (*columns, "updated_at", "recorded_at", "seq"),
            [
                (*edit.values, self._now, self._now, seq, edit.key)
                for seq, edit in zip(seqs, edits, strict=True)
            ],
        )
        self.vectors.await_new(changed, seqs[-1])
        if space is not None:
            self.vectors.replace(
                space,
                [
                    (edit.key, *edit.made, seq)
                    for seq, edit in zip(seqs, edits, strict=True)
                    if edit.made is not None
                ],
            )

    def delete_ids(self, ids: Sequence[str]) -> int:
        """Delete memories by id; returns how many of the ids were known."""
        return self._delete([row[0] for row in _BY_IDS.fetch(self._connection, ids=[*ids])])

    def delete_keys(self, keys: Keys, scope: str | None, condition: Condition | None) -> int:
        """Delete the memories, among these, that are in a scope and meet a condition.

        Returns:
            How many.
        """
        return self._delete(self.keys(scope, condition, among=value_list(keys.tolist())).tolist())

    def expired(self) -> Keys:
        """The keys of the memories that have expired: (n,) int64, ascending."""
        gone = select(memories.c.key).where(memories.c.expires_at <= self._expired_by)
        return read_numbers(self._connection, gone)[:, 0]

    def delete_expired(self, keys: Keys) -> int:
        """Delete the memories, among these, that have expired. Returns how many."""
        gone = select(memories.c.key).where(
            memories.c.key.in_(value_list(keys.tolist())), memories.c.expires_at <= self._expired_by
        )
        return self._delete([*self._connection.execute(gone).scalars()])

    def _delete(self, keys: list[int]) -> int:
        if not keys:
            return 0
        if self._keep_history:
            self.history.keep(keys, text_goes=True)
        (seq,) = next_seqs(self._connection, 1)
        self.vectors.forget(keys, seq)
        insert_rows(
            self._connection, "deletions", ("seq", "memory_key"), [(seq, key) for key in keys]
        )
        _DELETE.run(self._connection, keys=keys)
        return len(keys)

    def has_deletions(self) -> bool:
        """Whether the store notes deletions that followers may still have to learn."""
        return bool(_ANY_DELETION.fetch(self._connection))

    def forget_deletions(self, limit: int) -> int:
        """Delete the notes of deletions that no follower reads any more. Returns how many."""
        return _FORGET_DELETIONS.run(self._connection, limit=limit)

    def touch(self, ids: Sequence[str]) -> int:
        """Note that memories are used now. Returns how many of the ids were live."""
        rows = _BY_IDS.fetch(self._connection, ids=[*ids])
        keys = [row[0] for row in rows if not self._is_gone(row[3])]
        _FORGET_ACCESSES.run(self._connection, keys=keys)
        accessed = ((key, self._now) for key in keys)
        insert_rows(self._connection, "accesses", ("memory_key", "accessed_at"), accessed)
        return len(keys)


_HEAD = Prepared(
    select(store.c.seq, store.c.uuid, spaces.c.id, spaces.c.fingerprint).select_from(
        store.outerjoin(spaces, IS_ACTIVE)
    )
)
_BY_IDS = Prepared(
    select(memories.c.key, memories.c.id, memories.c.content_hash, memories.c.expires_at).where(
        memories.c.id.in_(list_parameter("ids"))
    )
)
_BY_TEXT = Prepared(
    select(memories.c.id)
    .where(
        memories.c.content_hash == bindparam("content_hash"),
        memories.c.namespace == bindparam("namespace"),
        is_live(memories, bindparam("expired_by")),
    )
    .order_by(memories.c.key)
    .limit(1)
)
_DELETE = Prepared(delete(memories).where(memories.c.key.in_(list_parameter("keys"))))
_ANY_DELETION = Prepared(select(literal_column("1")).select_from(deletions).limit(1))
_ONE_DELETION = tuple_(deletions.c.seq, deletions.c.memory_key)
_FORGET_DELETIONS = Prepared(
    delete(deletions).where(
        _ONE_DELETION.in_(
            select(deletions.c.seq, deletions.c.memory_key)
            .where(deletions.c.seq <= select(store.c.pruned_seq).scalar_subquery())
            .limit(bindparam("limit"))
        )
    )
)
_FORGET_ACCESSES = Prepared(
    delete(accesses).where(accesses.c.memory_key.in_(list_parameter("keys")))
)
_NEW = ("key", "seq", "recorded_at", "created_at", "updated_at", *GIVEN)


def _not_found(id: str) -> NotFoundError:
    return NotFoundError(f"no memory has the id {id!r}")
