"""The memories that lack a vector of their text in a space, and the texts that cannot be embedded.

`Pending` works over one open transaction, as `Repository` does. The unit of work is a text, known
by its hash: memories with equal texts get their vectors together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    bindparam,
    delete,
    exists,
    func,
    select,
)

from kronos.db.sql import InsertOrReplace
from kronos.db.statements import Prepared, fill_in_vectors
from kronos.db.tables import failures, memories, tombstones, vectors
from kronos.repository.seqs import next_seqs
from kronos.repository.spaces import Spaces, count_vectors
from kronos.repository.vectors import StoredVectors, checked_blobs
from kronos.types import Failure, Space, SpaceStats
from kronos.validation import to_datetime

if TYPE_CHECKING:
    from kronos.types import Vectors

_TEXTS_A_FETCH = 500
# Texts of 16 MiB each must not fill the memory.
_CHARS_AT_ONCE = 2**25


@dataclass(frozen=True, slots=True)
class PendingText:
    """A text that some memories hold, all of them without a vector in some space."""

    content_hash: bytes
    content: str


class Pending:
    """The pending memories, over one open transaction."""

    def __init__(self, connection: Connection, now: int) -> None:
        self._connection = connection
        self._now = now
        self._spaces = Spaces(connection, now)
        self._vectors = StoredVectors(connection, now)

    # -- Counting -------------------------------------------------------------------------------

    def stats(self) -> list[SpaceStats]:
        """All spaces, and how many of the memories each of them covers."""
        return [
            SpaceStats(
                space,
                self._vectors.count(space.id),
                self.count(space.id),
                self.failed_count(space.id),
            )
            for space in self._spaces.all()
        ]

    def count(self, space_id: int) -> int:
        """How many memories are pending in a space.

        A vector stands in `vectors` only while its memory does and its text is unchanged, so the
        difference of two counts is the answer.
        """
        ((total,),) = _MEMORIES.fetch(self._connection)
        return int(total) - self._vectors.count(space_id)

    def is_complete(self, space_id: int) -> bool:
        """Whether nothing is pending in a space except texts that cannot be embedded."""
        # Counting is cheap; the texts are looked at only where something is pending.
        return not self.count(space_id) or not self.texts(space_id, limit=1)

    def text_count(self, space_id: int) -> int:
        """How many distinct texts are pending in a space, without those that failed."""
        if self.count(space_id) == self.failed_count(space_id):
            return 0
        statement = select(func.count(func.distinct(memories.c.content_hash))).where(
            ~_has_vector(space_id), ~_has_failed(space_id)
        )
        return int(self._connection.execute(statement).scalar_one())

    def since(self, space_id: int, seq: int, *, limit: int) -> int:
        """How many memories became pending in a space after a seq, counted up to a limit.

        It costs what changed since then, not what the store holds: a pending memory either is new
        (its key is the seq of its first write), or an edit left a tombstone.
        """
        unmet = [~_has_vector(space_id), ~_has_failed(space_id)]
        new = select(memories.c.key).where(memories.c.key > seq, *unmet)
        edited = (
            select(memories.c.key)
            .join(tombstones, tombstones.c.memory_key == memories.c.key)
            .where(tombstones.c.space_id == space_id, tombstones.c.seq > seq, *unmet)
        )
        found = new.union(edited).limit(limit).subquery()
        return int(self._connection.execute(select(func.count()).select_from(found)).scalar_one())

    # -- Texts and their vectors ----------------------------------------------------------------

    def texts(self, space_id: int, *, limit: int, after: bytes = b"") -> list[PendingText]:
        """The next texts that are pending in a space, by hash, without those that failed.

        Args:
            space_id: the space.
            limit: how many at most.
            after: only texts with a hash behind this one.

        Returns:
            Fewer than `limit` also when the texts are very long.
        """
        if self.count(space_id) == self.failed_count(space_id):
            return []  # asking by the hashes would look at every memory
        hashes = memories.c.content_hash
        statement = (
            select(hashes, memories.c.content)
            .where(hashes > after, ~_has_vector(space_id), ~_has_failed(space_id))
            .order_by(hashes)
        )
        found: dict[bytes, PendingText] = {}
        length = 0
        with self._connection.execute(statement) as rows:
            for part in rows.partitions(min(limit, _TEXTS_A_FETCH)):
                for content_hash, content in part:
                    if content_hash not in found:
                        found[content_hash] = PendingText(content_hash, content)
                        length += len(content)
                    if len(found) == limit or length > _CHARS_AT_ONCE:
                        return list(found.values())
        return list(found.values())

    def store(self, space: Space, made: Sequence[PendingText], rows: Vectors) -> int:
        """Store the vectors of texts, for every memory that holds one of them now.

        The compare-and-set: a memory that was edited since its text was read has another hash.

        Args:
            space: the space of the vectors.
            made: the texts as they were read when they were embedded.
            rows: (n, dim) float32 unit rows, one a text.

        Returns:
            How many memories got their vector: others were edited, deleted or served meanwhile.

        Raises:
            SpaceChangedError: the space is gone.
        """
        self._spaces.require(space)
        blobs = checked_blobs(space, rows)
        if not made:
            return 0
        (seq,) = next_seqs(self._connection, 1)
        rows_made = [(text.content_hash, blob) for text, blob in zip(made, blobs, strict=True)]
        stored = fill_in_vectors(self._connection, space.id, seq, rows_made)
        count_vectors(self._connection, space.id, stored)
        _FORGET_TOMBSTONES.run(self._connection, space=space.id, seq=seq)
        return stored

    # -- Texts that cannot be embedded ----------------------------------------------------------

    def record_failures(self, space: Space, errors: Mapping[bytes, str]) -> None:
        """Note why texts, by hash, cannot be embedded in a space: they are not tried again.

        Raises:
            SpaceChangedError: the space is gone.
        """
        self._spaces.require(space)
        rows = [
            {
                "space_id": space.id,
                "content_hash": content_hash,
                "error": error,
                "failed_at": self._now,
            }
            for content_hash, error in errors.items()
        ]
        if rows:
            self._connection.execute(InsertOrReplace(failures), rows)

    def retry_failures(self, space_id: int) -> None:
        """Forget which texts failed in a space, so that they are tried again."""
        self._connection.execute(delete(failures).where(failures.c.space_id == space_id))

    def failed_count(self, space_id: int) -> int:
        """How many pending memories have a text that cannot be embedded in a space."""
        statement = select(func.count()).select_from(_failed(space_id).subquery())
        return int(self._connection.execute(statement).scalar_one())

    def failures(self, space_id: int, *, limit: int) -> list[Failure]:
        """The texts that cannot be embedded in a space, the first ones by hash."""
        held: dict[bytes, list[str]] = {}
        reasons: dict[bytes, tuple[str, int]] = {}
        statement = _failed(space_id).order_by(failures.c.content_hash).limit(limit)
        for id, content_hash, error, failed_at in self._connection.execute(statement):
            held.setdefault(content_hash, []).append(id)
            reasons[content_hash] = (error, failed_at)
        return [
            Failure(space_id, tuple(ids), reasons[key][0], to_datetime(reasons[key][1]))
            for key, ids in held.items()
        ]


# Without WHERE a database may count the pages of its narrowest index.
_MEMORIES = Prepared(select(func.count()).select_from(memories))
_FORGET_TOMBSTONES = Prepared(
    delete(tombstones).where(
        tombstones.c.space_id == bindparam("space"),
        tombstones.c.memory_key.in_(
            select(vectors.c.memory_key).where(
                vectors.c.space_id == bindparam("space"), vectors.c.seq == bindparam("seq")
            )
        ),
    )
)


def _has_vector(space_id: int) -> ColumnElement[bool]:
    # The index over the two columns answers, without a look at the row itself.
    return exists().where(vectors.c.space_id == space_id, vectors.c.memory_key == memories.c.key)


def _has_failed(space_id: int) -> ColumnElement[bool]:
    return exists().where(
        failures.c.space_id == space_id, failures.c.content_hash == memories.c.content_hash
    )


def _failed(space_id: int) -> Select[Any]:
    return (
        select(memories.c.id, memories.c.content_hash, failures.c.error, failures.c.failed_at)
        .join(failures, failures.c.content_hash == memories.c.content_hash)
        .where(failures.c.space_id == space_id, ~_has_vector(space_id))
    )
