"""The spaces and their vectors, and the seq that orders every change.

`Spaces` speaks over one open transaction, as `Repository` does. It owns the dimension rule (a
vector is as wide as its space, and finite) and the rule that a vector stands in a space only while
it was made from its memory's current text: a memory without one is pending.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from sqlalchemy import (
    ColumnElement,
    Connection,
    Table,
    and_,
    delete,
    exists,
    func,
    insert,
    literal,
    or_,
    select,
    update,
)

from kronos.db.tables import memories, spaces, store, tombstones, vectors
from kronos.db.vectors import from_rows, to_bytes
from kronos.errors import DimensionMismatchError, VectorError
from kronos.types import Space, SpaceStats
from kronos.validation import to_datetime

if TYPE_CHECKING:
    from kronos.types import Keys, Vectors

# SQLite binds at most 32,766 values to a statement; smaller lists compile faster.
_IDS_A_STATEMENT = 1000
_ROWS_A_FETCH = 10_000


@dataclass(frozen=True, slots=True)
class Pending:
    """A memory whose vector is missing in some space."""

    key: int
    content: str
    content_hash: bytes


class Spaces:
    """The spaces and their vectors, over one open transaction."""

    def __init__(self, connection: Connection, now: int) -> None:
        self._connection = connection
        self._now = now

    def all(self) -> list[Space]:
        """All spaces, the oldest first."""
        return [_space(row) for row in self._connection.execute(_SPACES)]

    def active(self) -> Space | None:
        """The space that searches are answered from."""
        return next((space for space in self.all() if space.state == "active"), None)

    def stats(self) -> list[SpaceStats]:
        """All spaces, and how far each has come."""
        return [
            SpaceStats(space, self.vector_count(space.id), self.pending_count(space.id))
            for space in self.all()
        ]

    def find_or_create(self, *, fingerprint: str, model: str, alias: str | None, dim: int) -> Space:
        """The space of a fingerprint; a new, building one when there is none.

        The alias is the one that was last asked for: commands reopen the store with it.

        Raises:
            DimensionMismatchError: the fingerprint is known with another width.
        """
        known = next((s for s in self.all() if s.fingerprint == fingerprint), None)
        if known is None:
            return self._create(fingerprint, model, alias, dim)
        if known.dim != dim:
            raise DimensionMismatchError(
                f"space {known.id} ({known.model}) is {known.dim} wide, but the embedder with the "
                f"same fingerprint makes vectors {dim} wide: one fingerprint must mean one width"
            )
        if alias not in (None, known.alias):
            renamed = update(spaces).where(spaces.c.id == known.id).values(alias=alias)
            self._connection.execute(renamed)
            return replace(known, alias=alias)
        return known

    def _create(self, fingerprint: str, model: str, alias: str | None, dim: int) -> Space:
        self._connection.execute(
            insert(spaces).values(
                fingerprint=fingerprint,
                model=model,
                alias=alias,
                dim=dim,
                state="building",
                created_at=self._now,
            )
        )
        return next(space for space in self.all() if space.fingerprint == fingerprint)

    def activate(self, space: Space) -> Space:
        """Make a space the active one and retire the one before; the caller saw zero pending."""
        self._connection.execute(
            update(spaces).where(spaces.c.state == "active").values(state="retired")
        )
        self._connection.execute(
            update(spaces).where(spaces.c.id == space.id).values(state="active")
        )
        return replace(space, state="active")

    def vector_count(self, space_id: int) -> int:
        """How many memories have a vector of their current text in a space."""
        statement = select(func.count()).where(vectors.c.space_id == space_id)
        return int(self._connection.execute(statement).scalar_one())

    def pending_count(self, space_id: int) -> int:
        """How many memories are pending in a space.

        A vector stands in `vectors` only while its memory does and its text is unchanged, so the
        difference of two counts is the answer.
        """
        total = self._connection.execute(select(func.count()).select_from(memories)).scalar_one()
        return int(total) - self.vector_count(space_id)

    def pending(self, space_id: int, *, after: int, limit: int) -> list[Pending]:
        """The next memories that are pending in a space, by key, from behind `after` on."""
        statement = (
            select(memories.c.key, memories.c.content, memories.c.content_hash)
            .where(memories.c.key > after, ~_has_vector(space_id))
            .order_by(memories.c.key)
            .limit(limit)
        )
        return [Pending(*row) for row in self._connection.execute(statement)]

    def store_vectors(self, space: Space, made: Sequence[Pending], rows: Vectors) -> int:
        """Store vectors of pending memories whose text is still the one they were made from.

        Args:
            space: the space that the vectors belong to.
            made: the memories as they were read when they were embedded.
            rows: (n, dim) float32 unit rows, one a memory.

        Returns:
            How many were stored: the others were edited, deleted or stored meanwhile.
        """
        blobs = checked_blobs(space, rows)
        current = self._pending_hashes(space.id, [item.key for item in made])
        stored = [
            (item, blob)
            for item, blob in zip(made, blobs, strict=True)
            if current.get(item.key) == item.content_hash
        ]
        if stored:
            seqs = next_seqs(self._connection, len(stored))
            self.drop_rows(tombstones, [item.key for item, _ in stored], space.id)
            self.insert_vectors(
                space,
                [
                    (item.key, item.content_hash, blob, seq)
                    for (item, blob), seq in zip(stored, seqs, strict=True)
                ],
            )
        return len(stored)

    def _pending_hashes(self, space_id: int, keys: Sequence[int]) -> dict[int, bytes]:
        found: dict[int, bytes] = {}
        for part in parts(keys):
            statement = select(memories.c.key, memories.c.content_hash).where(
                memories.c.key.in_(part), ~_has_vector(space_id)
            )
            found.update(tuple(row) for row in self._connection.execute(statement))
        return found

    def misfits(self, space: Space) -> Keys:
        """The keys of a space whose vector has another width or was made from another text."""
        found = self._connection.execute(
            select(vectors.c.memory_key)
            .join(memories, memories.c.key == vectors.c.memory_key)
            .where(
                vectors.c.space_id == space.id,
                or_(
                    vectors.c.content_hash != memories.c.content_hash,
                    func.length(vectors.c.vector) != 4 * space.dim,
                ),
            )
        ).scalars()
        return np.fromiter(found, np.int64)

    def make_pending(self, space: Space, keys: Keys) -> None:
        """Drop the vectors of these keys from a space, so that they are made anew."""
        (seq,) = next_seqs(self._connection, 1)
        self.forget_vectors(keys.tolist(), seq, space.id)

    def tombstones_since(self, space_id: int, seq: int) -> Keys:
        """The keys that an index of a space at `seq` must forget: (n,) int64."""
        found = self._connection.execute(
            select(tombstones.c.memory_key).where(
                tombstones.c.space_id == space_id, tombstones.c.seq > seq
            )
        ).scalars()
        return np.fromiter(found, np.int64)

    def vectors_since(self, space: Space, seq: int) -> Iterator[tuple[Keys, Vectors]]:
        """The vectors that an index of a space at `seq` must take up, in parts.

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

    def insert_vectors(self, space: Space, rows: Iterable[tuple[int, bytes, bytes, int]]) -> None:
        """Insert (key, content hash, vector, seq) rows, which must not stand there."""
        names = ("memory_key", "content_hash", "vector", "seq")
        self._connection.execute(
            insert(vectors),
            [{"space_id": space.id, **dict(zip(names, row, strict=True))} for row in rows],
        )

    def forget_vectors(self, keys: Sequence[int], seq: int, space_id: int | None = None) -> None:
        """Turn the vectors of these keys into tombstones, in one space or in every one."""
        for part in parts(keys):
            these: ColumnElement[bool] = vectors.c.memory_key.in_(part)
            if space_id is not None:
                these = and_(these, vectors.c.space_id == space_id)
            gone = select(vectors.c.space_id, vectors.c.memory_key, literal(seq)).where(these)
            self._connection.execute(
                insert(tombstones).from_select(["space_id", "memory_key", "seq"], gone)
            )
            self._connection.execute(delete(vectors).where(these))

    def drop_rows(self, table: Table, keys: Sequence[int], space_id: int) -> None:
        """Delete the rows of these keys in one space from `vectors` or `tombstones`."""
        for part in parts(keys):
            self._connection.execute(
                delete(table).where(table.c.space_id == space_id, table.c.memory_key.in_(part))
            )


_SPACES = select(
    spaces.c.id,
    spaces.c.fingerprint,
    spaces.c.model,
    spaces.c.alias,
    spaces.c.dim,
    spaces.c.state,
    spaces.c.created_at,
    spaces.c.pruned_seq,
).order_by(spaces.c.id)


def next_seqs(connection: Connection, count: int) -> range:
    """Take the next numbers for so many changes, inside the write transaction."""
    statement = update(store).values(seq=store.c.seq + count).returning(store.c.seq)
    last = connection.execute(statement).scalar_one()
    return range(last - count + 1, last + 1)


def checked_blobs(space: Space, rows: Vectors) -> list[bytes]:
    """Vectors as bytes, once they fit their space.

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


def parts(values: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """Cut values into lists that fit a statement."""
    for start in range(0, len(values), _IDS_A_STATEMENT):
        yield values[start : start + _IDS_A_STATEMENT]


def _has_vector(space_id: int) -> ColumnElement[bool]:
    return exists().where(
        vectors.c.space_id == space_id,
        vectors.c.memory_key == memories.c.key,
        vectors.c.content_hash == memories.c.content_hash,
    )


def _space(row: Sequence[Any]) -> Space:
    id, fingerprint, model, alias, dim, state, created_at, pruned_seq = row
    return Space(id, fingerprint, model, alias, dim, state, to_datetime(created_at), pruned_seq)
