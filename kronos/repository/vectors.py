"""The vectors of the memories, and the tombstones that tell indexes what to forget.

`StoredVectors` works over one open transaction, as `Repository` does. It owns the dimension rule (a
vector is as wide as its space, and finite) and the rule that a vector stands in a space only while
it was made from its memory's current text: a memory without one is pending.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from sqlalchemy import (
    ColumnElement,
    Connection,
    and_,
    bindparam,
    delete,
    exists,
    func,
    insert,
    or_,
    select,
    update,
)

from kronos.concurrency.pacing import yielding_gil
from kronos.db.numbers import read_numbers
from kronos.db.sql import InsertOrReplace, byte_length, list_parameter
from kronos.db.statements import Prepared, insert_rows
from kronos.db.tables import memories, past_vectors, spaces, store, tombstones, vectors
from kronos.db.vectors import from_rows, to_bytes
from kronos.errors import DimensionMismatchError, VectorError
from kronos.repository.seqs import next_seqs, seqs_up_to
from kronos.repository.spaces import COUNT, IS_SERVING, VECTOR_COUNT, Spaces, count_vectors
from kronos.types import Space
from kronos.validation import not_unit

if TYPE_CHECKING:
    from kronos.types import Keys, Vectors

_HASHES_A_STATEMENT = 1000
_ROWS_A_FETCH = 10_000
_ROWS_A_LOOK = 100


class StoredVectors:
    """The vectors and tombstones, over one open transaction."""

    def __init__(self, connection: Connection, now: int) -> None:
        self._connection = connection
        self._now = now

    # -- Reading --------------------------------------------------------------------------------

    def of(self, space: Space, key: int) -> Vectors | None:
        """The vector of a memory's current text: (dim,) float32; None where it is pending."""
        statement = select(vectors.c.vector).where(
            vectors.c.space_id == space.id, vectors.c.memory_key == key
        )
        blob = self._connection.execute(statement).scalar_one_or_none()
        return None if blob is None else from_rows([blob], space.dim)[0]

    def blobs(self, space_id: int, keys: Sequence[int]) -> dict[int, bytes]:
        """The vectors of keys in a space as float32 little-endian bytes, without pending ones."""
        return dict(_BLOBS.fetch(self._connection, space=space_id, keys=keys))

    def made_before(self, space: Space, hashes: Sequence[bytes]) -> dict[bytes, Vectors]:
        """The vectors of texts that were embedded before, of memories or of their past.

        Args:
            space: the space of the vectors.
            hashes: of the texts.

        Returns:
            (dim,) float32 by hash, bit by bit as they were made; only of known texts.
        """
        found: dict[bytes, bytes] = {}
        for start in range(0, len(hashes), _HASHES_A_STATEMENT):
            part = hashes[start : start + _HASHES_A_STATEMENT]
            values = {f"hash_{place}": content_hash for place, content_hash in enumerate(part)}
            for statement in _made_before(len(part)):
                rows = statement.fetch(self._connection, space=space.id, **values)
                found.update((hash, blob) for hash, blob in rows if blob is not None)
        rows_found = from_rows(list(found.values()), space.dim)
        return dict(zip(found, rows_found, strict=True))

    def count(self, space_id: int) -> int:
        """How many memories have a vector of their current text in a space; 0 where it is gone."""
        rows = _NOTED.fetch(self._connection, space=space_id)
        return int(rows[0][0]) if rows else 0

    # -- What an index needs --------------------------------------------------------------------

    def since(self, space: Space, seq: int) -> Iterator[tuple[Keys, Vectors]]:
        """The vectors that an index of a space at `seq` must add, in parts.

        Yields:
            keys (n,) int64 and vectors (n, dim) float32, ascending by seq.

        Raises:
            CorruptStoreError: a stored vector has another width than its space.
        """
        statement = (
            select(vectors.c.memory_key, vectors.c.vector)
            .where(vectors.c.space_id == space.id, vectors.c.seq > seq)
            .order_by(vectors.c.seq)
        )
        for rows in self._connection.execute(statement).partitions(_ROWS_A_FETCH):
            keys, blobs = zip(*rows, strict=True)
            yield np.array(keys, np.int64), from_rows(blobs, space.dim)

    def behind(self, space: Space, key: int, limit: int) -> tuple[Keys, Vectors]:
        """Some vectors of a space, of memories above a key.

        Returns:
            (n,) int64 keys, ascending, and (n, dim) float32 vectors.

        Raises:
            CorruptStoreError: a stored vector has another width than its space.
        """
        rows = _BEHIND.fetch(self._connection, space=space.id, key=key, limit=limit)
        keys = np.array([key for key, _ in rows], np.int64)
        return keys, from_rows([blob for _, blob in rows], space.dim)

    def tombstones_since(self, space_id: int, seq: int) -> Keys:
        """The keys that an index of a space at `seq` must forget: (n,) int64."""
        found = self._connection.execute(
            select(tombstones.c.memory_key).where(
                tombstones.c.space_id == space_id, tombstones.c.seq > seq
            )
        ).scalars()
        return np.fromiter(found, np.int64)

    def buried(self, space_id: int, seq: int) -> Keys:
        """The keys of deleted memories whose tombstones have a seq up to this one.

        A tombstone of a memory that still lives says that its vector is pending.

        Returns:
            (n,) int64, ascending.
        """
        living = exists().where(memories.c.key == tombstones.c.memory_key)
        gone = select(tombstones.c.memory_key).where(
            tombstones.c.space_id == space_id, tombstones.c.seq <= seq, ~living
        )
        return read_numbers(self._connection, gone)[:, 0]

    def prune(self, space_id: int, seq: int, keys: list[int]) -> None:
        """Delete tombstones for an index that is at a seq; older indexes replay from zero."""
        _PRUNE.run(self._connection, space=space_id, keys=keys, seq=seq)
        self._connection.execute(
            update(spaces)
            .where(spaces.c.id == space_id, spaces.c.pruned_seq < seq)
            .values(pruned_seq=seq)
        )

    # -- What a check needs ---------------------------------------------------------------------

    def misfits(self, space: Space) -> Keys:
        """The keys of a space whose vector cannot be one of their text.

        It has another width, was made from another text, or is not of unit length.
        """
        is_wide = byte_length(vectors.c.vector) == 4 * space.dim
        is_current = vectors.c.content_hash == memories.c.content_hash
        held = (
            select(vectors.c.memory_key, vectors.c.vector)
            .join(memories, memories.c.key == vectors.c.memory_key)
            .where(vectors.c.space_id == space.id)
        )
        unfit = held.with_only_columns(vectors.c.memory_key).where(~(is_wide & is_current))
        found = [np.fromiter(self._connection.execute(unfit).scalars(), np.int64)]
        rows = self._connection.execute(held.where(is_wide, is_current))
        for part in yielding_gil(rows.partitions(_ROWS_A_LOOK)):
            keys, blobs = zip(*part, strict=True)
            found.append(np.array(keys, np.int64)[not_unit(from_rows(blobs, space.dim))])
        return np.concatenate(found)

    def miscounted(self) -> dict[Space, int]:
        """The spaces whose count of vectors is wrong, and the right count."""
        counted = self._counted()
        return {space: count for space, count in counted.items() if count != self.count(space.id)}

    def recount(self) -> None:
        """Count the vectors of each space anew; in a write transaction."""
        for space, count in self._counted().items():
            of = update(spaces).where(spaces.c.id == space.id)
            self._connection.execute(of.values(vectors=count))
        self._connection.execute(update(store).values(active_gain=0))

    def _counted(self) -> dict[Space, int]:
        return {
            space: int(_COUNTED.fetch(self._connection, space=space.id)[0][0])
            for space in Spaces(self._connection, self._now).all()
        }

    # -- Writing --------------------------------------------------------------------------------

    def seqs_of_new(self, space: Space, count: int) -> range:
        """Take the next numbers for new memories, and count their vectors.

        `insert` must follow, of as many rows.
        """
        ((last, is_active),) = _NEXT_NEW.fetch(self._connection, count=count, space=space.id)
        if not is_active:
            COUNT.run(self._connection, space=space.id, change=count)
        return seqs_up_to(last, count)

    def insert(self, space: Space, rows: Sequence[tuple[int, bytes, bytes, int]]) -> None:
        """Insert (key, content hash, vector, seq) rows of keys that have no vector."""
        columns = ("space_id", "memory_key", "content_hash", "vector", "seq")
        insert_rows(self._connection, "vectors", columns, ((space.id, *row) for row in rows))

    def replace(self, space: Space, rows: Sequence[tuple[int, bytes, bytes, int]]) -> None:
        """Put (key, content hash, vector, seq) rows in place of vectors and tombstones."""
        if not rows:
            return
        keys = [row[0] for row in rows]
        self._delete(keys, space.id)
        _UNBURY.run(self._connection, keys=keys, space=space.id)
        self.insert(space, rows)
        count_vectors(self._connection, space.id, len(rows))

    def forget(self, keys: list[int], seq: int, space_id: int | None = None) -> None:
        """Turn the vectors of these keys into tombstones, in one space or in all."""
        if not keys:
            return
        _BURY.run(self._connection, keys=keys, space=space_id, buried=seq)
        self._delete(keys, space_id)

    def make_pending(self, space: Space, keys: Keys) -> None:
        """Drop the vectors of these keys from a space, so that they are made anew."""
        (seq,) = next_seqs(self._connection, 1)
        self.forget(keys.tolist(), seq, space.id)

    def await_new(self, keys: list[int], seq: int) -> None:
        """Let the memories of these keys, whose texts changed, be pending in every space.

        Each space gets a tombstone of this seq, also where no vector stood: it tells every process
        that has the space's embedder that there is another text to embed.
        """
        if not keys:
            return
        _AWAIT.run(self._connection, keys=keys, seq=seq)
        self._delete(keys, None)

    def _delete(self, keys: list[int], space_id: int | None) -> None:
        gone = Counter(id for (id,) in _DELETE.fetch(self._connection, keys=keys, space=space_id))
        for id, count in gone.items():
            count_vectors(self._connection, id, -count)


def checked_blobs(space: Space, rows: Vectors) -> list[bytes]:
    """Vectors as bytes, once they fit their space.

    Args:
        space: the space of the vectors.
        rows: (n, dim) float32.

    Raises:
        DimensionMismatchError: another width than the space's.
        VectorError: a value is NaN or inf.
    """
    if rows.ndim != 2 or rows.shape[1] != space.dim:
        raise DimensionMismatchError(
            f"expected vectors {space.dim} wide for space {space.id} ({space.model}), got "
            f"shape {rows.shape}; change the store's model with `kronos reindex`"
        )
    if not np.isfinite(rows).all():
        raise VectorError(f"a vector for space {space.id} ({space.model}) holds NaN or inf")
    return to_bytes(rows)


_IN_SPACE = vectors.c.space_id == bindparam("space")
_BLOBS = Prepared(
    select(vectors.c.memory_key, vectors.c.vector).where(
        _IN_SPACE, vectors.c.memory_key.in_(list_parameter("keys"))
    )
)
_NOTED = Prepared(select(VECTOR_COUNT).where(spaces.c.id == bindparam("space")))
_COUNTED = Prepared(select(func.count()).select_from(vectors).where(_IN_SPACE))
_BEHIND = Prepared(
    select(vectors.c.memory_key, vectors.c.vector)
    .where(_IN_SPACE, vectors.c.memory_key > bindparam("key"))
    .order_by(vectors.c.memory_key)
    .limit(bindparam("limit"))
)
_PRUNE = Prepared(
    delete(tombstones).where(
        tombstones.c.space_id == bindparam("space"),
        tombstones.c.memory_key.in_(list_parameter("keys")),
        tombstones.c.seq <= bindparam("seq"),
    )
)
_UNBURY = Prepared(
    delete(tombstones).where(
        tombstones.c.space_id == bindparam("space"),
        tombstones.c.memory_key.in_(list_parameter("keys")),
    )
)
_NEXT_NEW = Prepared(
    update(store)
    .values(
        seq=store.c.seq + bindparam("count"),
        active_gain=store.c.active_gain + bindparam("count") * IS_SERVING,
    )
    .returning(store.c.seq, IS_SERVING)
)
_THESE = and_(
    vectors.c.memory_key.in_(list_parameter("keys")),
    or_(bindparam("space").is_(None), _IN_SPACE),
)
_BURY = Prepared(
    insert(tombstones).from_select(
        ["space_id", "memory_key", "seq"],
        select(vectors.c.space_id, vectors.c.memory_key, bindparam("buried")).where(_THESE),
    )
)
_AWAIT = Prepared(
    InsertOrReplace(tombstones).from_select(
        ["space_id", "memory_key", "seq"],
        select(spaces.c.id, memories.c.key, bindparam("seq")).where(
            memories.c.key.in_(list_parameter("keys"))
        ),
    )
)
_DELETE = Prepared(delete(vectors).where(_THESE).returning(vectors.c.space_id))


@functools.lru_cache(maxsize=64)
def _made_before(count: int) -> tuple[Prepared, Prepared]:
    """Read the vectors of texts by their hashes: of past texts, and of memories."""
    hashes: list[ColumnElement[Any]] = [bindparam(f"hash_{place}") for place in range(count)]
    past = select(past_vectors.c.content_hash, past_vectors.c.vector).where(
        past_vectors.c.space_id == bindparam("space"), past_vectors.c.content_hash.in_(hashes)
    )
    # A subquery for each memory, NULL where it is pending. A join might read all vectors of the
    # space to find those of a few texts.
    its = select(vectors.c.vector).where(
        _IN_SPACE,
        vectors.c.memory_key == memories.c.key,
        vectors.c.content_hash == memories.c.content_hash,
    )
    held = select(memories.c.content_hash, its.scalar_subquery()).where(
        memories.c.content_hash.in_(hashes)
    )
    return Prepared(past), Prepared(held)
