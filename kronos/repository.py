"""The rows and their laws: memories, spaces, vectors, tombstones, the seq.

A `Repository` speaks over one open transaction and never begins or ends it: who opened the
transaction ends it. It owns the dimension rule (a vector is as wide as its space, and finite) and
the rule that a vector stands in a space only while it was made from its memory's current text.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    and_,
    bindparam,
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
from kronos.errors import DimensionMismatchError, DuplicateIdError, NotFoundError, VectorError
from kronos.types import Memory, OnConflict, Space, SpaceStats
from kronos.validation import Record, to_datetime, to_microseconds

if TYPE_CHECKING:
    from kronos.types import Keys, Vectors

Condition: TypeAlias = ColumnElement[bool]
"""A boolean SQL expression over `memories`, as `kronos.search.filters` makes them."""

# SQLite binds at most 32,766 values to a statement; smaller lists compile faster.
_IDS_A_STATEMENT = 1000
_ROWS_A_FETCH = 10_000
_MEMORY = (
    memories.c.key,
    memories.c.id,
    memories.c.namespace,
    memories.c.content,
    memories.c.metadata,
    memories.c.importance,
    memories.c.parent_id,
    memories.c.created_at,
    memories.c.updated_at,
    memories.c.expires_at,
)


@dataclass(slots=True)
class Batch:
    """What one caller adds at once: it is written whole or not at all."""

    records: list[Record]
    on_conflict: OnConflict
    space: Space
    """The space of `vectors`, and of the vectors that were handed in."""
    vectors: Vectors | None = None
    """(n, dim) float32 unit rows, one a record; None until the records were embedded."""


@dataclass(frozen=True, slots=True)
class Pending:
    """A memory whose vector is missing in some space."""

    key: int
    content: str
    content_hash: bytes


@dataclass(frozen=True, slots=True)
class Pulse:
    """What an open store compares to learn that something changed."""

    seq: int
    active_space: int | None


@dataclass(frozen=True, slots=True)
class _Write:
    """One record on its way into the rows; `key` is None for a new memory."""

    record: Record
    vector: bytes
    key: int | None
    same_text: bool = False


class Repository:
    """The rows, over one open transaction."""

    def __init__(self, connection: Connection, now: datetime) -> None:
        self._connection = connection
        self._now = to_microseconds(now)

    # -- The store ------------------------------------------------------------------------------

    def store_id(self) -> str:
        """The store's UUID."""
        return str(self._connection.execute(select(store.c.uuid)).scalar_one())

    def pulse(self) -> Pulse:
        """The last seq and the active space."""
        seq, active = self._connection.execute(_PULSE).one()
        return Pulse(seq, active)

    def _next_seqs(self, count: int) -> range:
        statement = update(store).values(seq=store.c.seq + count).returning(store.c.seq)
        last = self._connection.execute(statement).scalar_one()
        return range(last - count + 1, last + 1)

    # -- Memories: reading ----------------------------------------------------------------------

    def find(self, id: str) -> Memory | None:
        """The live memory with this id."""
        row = self._connection.execute(
            select(*_MEMORY).where(memories.c.id == id, self._live())
        ).one_or_none()
        return None if row is None else _memory(row)

    def by_keys(self, keys: Keys) -> dict[int, Memory]:
        """The live memories among these keys."""
        found: dict[int, Memory] = {}
        for part in _parts(keys.tolist()):
            rows = self._connection.execute(_BY_KEYS, {"keys": part, "now": self._now})
            found.update((row[0], _memory(row)) for row in rows)
        return found

    def keys(self, scope: str | None, condition: Condition | None) -> Keys:
        """The keys of the live memories in a scope that meet a condition: (n,) int64, ascending."""
        statement = self._matching(select(memories.c.key), scope, condition)
        found = self._connection.execute(statement.order_by(memories.c.key)).scalars().all()
        return np.fromiter(found, np.int64, len(found))

    def page(
        self, scope: str | None, condition: Condition | None, after: str | None, limit: int
    ) -> list[Memory]:
        """Live memories in the order in which they came, from behind `after` on.

        Raises:
            NotFoundError: no memory has the id `after`.
        """
        statement = self._matching(select(*_MEMORY), scope, condition)
        if after is not None:
            statement = statement.where(memories.c.key > self._key_of(after))
        rows = self._connection.execute(statement.order_by(memories.c.key).limit(limit))
        return [_memory(row) for row in rows]

    def count(self, scope: str | None = None, condition: Condition | None = None) -> int:
        """How many live memories in a scope meet a condition."""
        statement = self._matching(select(func.count()).select_from(memories), scope, condition)
        return int(self._connection.execute(statement).scalar_one())

    def is_whole_store(self, scope: str | None) -> bool:
        """Whether no memory stands outside the scope; three probes of an index."""
        if scope is None:
            return True
        first, last = _below(scope)
        values = {"scope": scope, "first": first, "last": last}
        return not self._connection.execute(_OUTSIDE, values).scalar_one()

    def _matching(
        self, statement: Select[Any], scope: str | None, condition: Condition | None
    ) -> Select[Any]:
        statement = statement.where(self._live())
        if scope is not None:
            first, last = _below(scope)
            name = memories.c.namespace
            statement = statement.where(or_(name == scope, and_(name >= first, name < last)))
        return statement if condition is None else statement.where(condition)

    def _live(self) -> Condition:
        return or_(memories.c.expires_at.is_(None), memories.c.expires_at > self._now)

    def _key_of(self, id: str) -> int:
        key = self._connection.execute(
            select(memories.c.key).where(memories.c.id == id)
        ).scalar_one_or_none()
        if key is None:
            raise _not_found(id)
        return int(key)

    # -- Memories: writing ----------------------------------------------------------------------

    def add(self, batches: Sequence[Batch], space: Space) -> list[list[str] | DuplicateIdError]:
        """Write batches, each whole or not at all.

        Args:
            batches: embedded, all in `space`.
            space: the space that their vectors belong to.

        Returns:
            For each batch the ids of its records, or why it was not written.
        """
        taken = self._existing(batches)
        writes: dict[str, _Write] = {}
        outcomes = [_resolve(batch, self._blobs(batch, space), taken, writes) for batch in batches]
        self._insert([write for write in writes.values() if write.key is None], space)
        self._replace([write for write in writes.values() if write.key is not None], space)
        return outcomes

    def _blobs(self, batch: Batch, space: Space) -> list[bytes]:
        if batch.vectors is None or batch.space.id != space.id:
            raise AssertionError("a batch must be embedded in the space it is written to")
        return self._checked_blobs(batch.vectors, space)

    def _checked_blobs(self, rows: Vectors, space: Space) -> list[bytes]:
        if rows.ndim != 2 or rows.shape[1] != space.dim:
            raise DimensionMismatchError(
                f"expected vectors {space.dim} wide for space {space.id} ({space.model}), got "
                f"shape {rows.shape}; change the store's model with `kronos reindex`"
            )
        if not np.isfinite(rows).all():
            raise VectorError(f"a vector for space {space.id} ({space.model}) holds NaN or inf")
        return to_bytes(rows)

    def _existing(self, batches: Iterable[Batch]) -> dict[str, tuple[int, bytes]]:
        """Key and content hash of the live memories whose ids are asked for; expired ones go."""
        ids = [r.id for batch in batches for r in batch.records if r.id_given]
        found: dict[str, tuple[int, bytes]] = {}
        expired: list[int] = []
        columns = (memories.c.key, memories.c.id, memories.c.content_hash, memories.c.expires_at)
        for part in _parts(ids):
            statement = select(*columns).where(memories.c.id.in_(part))
            for key, id, content_hash, expires_at in self._connection.execute(statement):
                if expires_at is not None and expires_at <= self._now:
                    expired.append(key)
                else:
                    found[id] = (key, content_hash)
        self._delete(expired)
        return found

    def _insert(self, writes: Sequence[_Write], space: Space) -> None:
        if not writes:
            return
        seqs = self._next_seqs(len(writes))
        rows = [
            {
                "key": seq,
                "id": write.record.id,
                "created_at": self._now,
                "updated_at": self._now,
                "seq": seq,
                **_columns(write.record),
            }
            for seq, write in zip(seqs, writes, strict=True)
        ]
        self._connection.execute(insert(memories), rows)
        self._insert_vectors(
            space,
            [
                (seq, write.record.content_hash, write.vector, seq)
                for seq, write in zip(seqs, writes, strict=True)
            ],
        )

    def _replace(self, writes: Sequence[_Write], space: Space) -> None:
        for write in writes:
            assert write.key is not None
            self._edit(
                write.key, _columns(write.record), space, write.vector, same_text=write.same_text
            )

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
        row = self._connection.execute(
            select(memories.c.key, memories.c.content_hash).where(memories.c.id == id, self._live())
        ).one_or_none()
        if row is None:
            raise _not_found(id)
        blob = None
        if vector is not None and space is not None:
            (blob,) = self._checked_blobs(vector, space)
        same_text = values.get("content_hash", row.content_hash) == row.content_hash
        self._edit(row.key, values, space, blob, same_text=same_text)
        changed = select(*_MEMORY).where(memories.c.key == row.key)
        return _memory(self._connection.execute(changed).one())

    def _edit(
        self,
        key: int,
        values: dict[str, Any],
        space: Space | None,
        blob: bytes | None,
        *,
        same_text: bool,
    ) -> None:
        (seq,) = self._next_seqs(1)
        self._connection.execute(
            update(memories)
            .where(memories.c.key == key)
            .values(**values, updated_at=self._now, seq=seq)
        )
        if not same_text:
            self._forget_vectors([key], seq)
        if space is not None and blob is not None:
            content_hash = values["content_hash"]
            self._drop_rows(vectors, [key], space.id)
            self._drop_rows(tombstones, [key], space.id)
            self._insert_vectors(space, [(key, content_hash, blob, seq)])

    def _insert_vectors(self, space: Space, rows: Iterable[tuple[int, bytes, bytes, int]]) -> None:
        """Insert (key, content hash, vector, seq) rows, which must not stand there."""
        names = ("memory_key", "content_hash", "vector", "seq")
        self._connection.execute(
            insert(vectors),
            [{"space_id": space.id, **dict(zip(names, row, strict=True))} for row in rows],
        )

    def delete_ids(self, ids: Sequence[str]) -> int:
        """Delete memories by id; unknown ids are passed over. Returns how many there were."""
        found: list[int] = []
        for part in _parts(ids):
            statement = select(memories.c.key).where(memories.c.id.in_(part))
            found.extend(self._connection.execute(statement).scalars())
        return self._delete(found)

    def delete_matching(self, scope: str | None, condition: Condition | None) -> int:
        """Delete the live memories in a scope that meet a condition. Returns how many."""
        return self._delete(self.keys(scope, condition).tolist())

    def _delete(self, keys: Sequence[int]) -> int:
        if not keys:
            return 0
        (seq,) = self._next_seqs(1)
        self._forget_vectors(keys, seq)
        for part in _parts(keys):
            self._connection.execute(delete(memories).where(memories.c.key.in_(part)))
        return len(keys)

    def _forget_vectors(self, keys: Sequence[int], seq: int, space_id: int | None = None) -> None:
        """Turn the vectors of these keys into tombstones, in one space or in every one."""
        for part in _parts(keys):
            these: Condition = vectors.c.memory_key.in_(part)
            if space_id is not None:
                these = and_(these, vectors.c.space_id == space_id)
            gone = select(vectors.c.space_id, vectors.c.memory_key, literal(seq)).where(these)
            self._connection.execute(
                insert(tombstones).from_select(["space_id", "memory_key", "seq"], gone)
            )
            self._connection.execute(delete(vectors).where(these))

    def _drop_rows(self, table: Any, keys: Sequence[int], space_id: int) -> None:
        for part in _parts(keys):
            self._connection.execute(
                delete(table).where(table.c.space_id == space_id, table.c.memory_key.in_(part))
            )

    # -- Spaces ---------------------------------------------------------------------------------

    def spaces(self) -> list[Space]:
        """All spaces, the oldest first."""
        return [_space(row) for row in self._connection.execute(_SPACES)]

    def active_space(self) -> Space | None:
        """The space that searches are answered from."""
        return next((space for space in self.spaces() if space.state == "active"), None)

    def space_stats(self) -> list[SpaceStats]:
        """All spaces, and how far each has come."""
        return [
            SpaceStats(space, self.vector_count(space.id), self.pending_count(space.id))
            for space in self.spaces()
        ]

    def space_of(self, *, fingerprint: str, model: str, alias: str | None, dim: int) -> Space:
        """The space of a fingerprint; a new, building one when there is none.

        Raises:
            DimensionMismatchError: the fingerprint is known with another width.
        """
        known = next((s for s in self.spaces() if s.fingerprint == fingerprint), None)
        if known is None:
            return self._create_space(fingerprint, model, alias, dim)
        if known.dim != dim:
            raise DimensionMismatchError(
                f"space {known.id} ({known.model}) is {known.dim} wide, but the embedder with the "
                f"same fingerprint makes vectors {dim} wide: one fingerprint must mean one width"
            )
        return known

    def _create_space(self, fingerprint: str, model: str, alias: str | None, dim: int) -> Space:
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
        return next(space for space in self.spaces() if space.fingerprint == fingerprint)

    def activate(self, space: Space) -> Space:
        """Make a space the active one and retire the one before; the caller saw zero pending."""
        self._connection.execute(
            update(spaces).where(spaces.c.state == "active").values(state="retired")
        )
        self._connection.execute(
            update(spaces).where(spaces.c.id == space.id).values(state="active")
        )
        return replace(space, state="active")

    # -- Vectors --------------------------------------------------------------------------------

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
        blobs = self._checked_blobs(rows, space)
        current = self._pending_hashes(space.id, [item.key for item in made])
        stored = [
            (item, blob)
            for item, blob in zip(made, blobs, strict=True)
            if current.get(item.key) == item.content_hash
        ]
        if stored:
            seqs = self._next_seqs(len(stored))
            self._drop_rows(tombstones, [item.key for item, _ in stored], space.id)
            self._insert_vectors(
                space,
                [
                    (item.key, item.content_hash, blob, seq)
                    for (item, blob), seq in zip(stored, seqs, strict=True)
                ],
            )
        return len(stored)

    def _pending_hashes(self, space_id: int, keys: Sequence[int]) -> dict[int, bytes]:
        found: dict[int, bytes] = {}
        for part in _parts(keys):
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
        (seq,) = self._next_seqs(1)
        self._forget_vectors(keys.tolist(), seq, space.id)

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


_PULSE = select(
    store.c.seq, select(spaces.c.id).where(spaces.c.state == "active").scalar_subquery()
)
_OUTSIDE = select(
    or_(
        exists().where(memories.c.namespace < bindparam("scope")),
        exists().where(
            memories.c.namespace > bindparam("scope"), memories.c.namespace < bindparam("first")
        ),
        exists().where(memories.c.namespace >= bindparam("last")),
    )
)
_BY_KEYS = select(*_MEMORY).where(
    memories.c.key.in_(bindparam("keys", expanding=True)),
    or_(memories.c.expires_at.is_(None), memories.c.expires_at > bindparam("now")),
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


def _has_vector(space_id: int) -> Condition:
    return exists().where(
        vectors.c.space_id == space_id,
        vectors.c.memory_key == memories.c.key,
        vectors.c.content_hash == memories.c.content_hash,
    )


def _columns(record: Record) -> dict[str, Any]:
    return {
        "namespace": record.namespace,
        "content": record.content,
        "content_hash": record.content_hash,
        "metadata": record.metadata,
        "importance": record.importance,
        "parent_id": record.parent_id,
        "expires_at": record.expires_at,
    }


def _not_found(id: str) -> NotFoundError:
    return NotFoundError(f"no memory has the id {id!r}")


def _resolve(
    batch: Batch,
    blobs: Sequence[bytes],
    taken: dict[str, tuple[int, bytes]],
    writes: dict[str, _Write],
) -> list[str] | DuplicateIdError:
    """Decide what becomes of a batch's records; `writes` gains them all or stays as it was."""
    mine: dict[str, _Write] = {}
    for record, blob in zip(batch.records, blobs, strict=True):
        known = record.id in taken or record.id in writes or record.id in mine
        if known and batch.on_conflict == "error":
            return DuplicateIdError(
                f"a memory with the id {record.id!r} exists; pass on_conflict='replace' or "
                "'ignore' to allow it"
            )
        if known and batch.on_conflict == "ignore":
            continue
        key, content_hash = taken.get(record.id, (None, None))
        mine[record.id] = _Write(record, blob, key, content_hash == record.content_hash)
    writes.update(mine)
    return [record.id for record in batch.records]


def _below(scope: str) -> tuple[str, str]:
    """The range of the namespaces below a scope: first (inclusive), last (exclusive)."""
    return f"{scope}/", f"{scope}0"  # "0" comes right behind "/"


def _parts(values: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for start in range(0, len(values), _IDS_A_STATEMENT):
        yield values[start : start + _IDS_A_STATEMENT]


def _memory(row: Sequence[Any]) -> Memory:
    _, id, namespace, content, metadata, importance, parent_id, created, updated, expires = row
    return Memory(
        id=id,
        namespace=namespace,
        content=content,
        metadata=json.loads(metadata),
        importance=importance,
        created_at=to_datetime(created),
        updated_at=to_datetime(updated),
        parent_id=parent_id,
        expires_at=None if expires is None else to_datetime(expires),
    )


def _space(row: Sequence[Any]) -> Space:
    id, fingerprint, model, alias, dim, state, created_at, pruned_seq = row
    return Space(id, fingerprint, model, alias, dim, state, to_datetime(created_at), pruned_seq)
