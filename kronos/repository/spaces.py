"""The spaces and their vectors, and the seq that orders every change.

`Spaces` speaks over one open transaction, as `Repository` does. It owns the dimension rule (a
vector is as wide as its space, and finite) and the rule that a vector stands in a space only while
it was made from its memory's current text: a memory without one is pending. The unit of work is a
text, known by its hash: memories with equal texts get their vectors together.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    and_,
    bindparam,
    case,
    delete,
    exists,
    func,
    insert,
    literal_column,
    or_,
    select,
    update,
)

from kronos.concurrency.pacing import yielding_gil
from kronos.db.dialect import Prepared, fetch, fill_in_vectors, insert_rows, listed
from kronos.db.numbers import read_numbers
from kronos.db.tables import (
    failures,
    jobs,
    leases,
    memories,
    past_vectors,
    spaces,
    store,
    tombstones,
    vectors,
)
from kronos.db.vectors import from_rows, to_bytes
from kronos.errors import DimensionMismatchError, SpaceChangedError, VectorError
from kronos.types import Failure, Space, SpaceStats
from kronos.validation import not_unit, to_datetime

if TYPE_CHECKING:
    from kronos.types import Keys, Vectors

# SQLite binds at most 32,766 values to a statement; smaller lists compile faster.
_IDS_A_STATEMENT = 1000
_ROWS_A_FETCH = 10_000
_ROWS_A_LOOK = 100
_TEXTS_A_FETCH = 500
# Texts of 16 MiB each must not fill the memory.
_CHARS_AT_ONCE = 2**25


UNFINISHED = ("open", "ready", "failed")
"""The states of a job whose space is still wanted."""


@dataclass(frozen=True, slots=True)
class PendingText:
    """A text that some memories hold, all without a vector in some space."""

    content_hash: bytes
    content: str


class Spaces:
    """The spaces and their vectors, over one open transaction."""

    def __init__(self, connection: Connection, now: int) -> None:
        self._connection = connection
        self._now = now

    def all(self) -> list[Space]:
        """All spaces, the oldest first."""
        return [_space(row) for row in self._connection.execute(_SPACES)]

    def get(self, space_id: int) -> Space | None:
        """A space by its id; None when it was dropped."""
        return next((space for space in self.all() if space.id == space_id), None)

    def has(self, space: Space) -> bool:
        """Whether a space is still there: the same one, and not another one with its id."""
        return self.now(space) is not None

    def now(self, space: Space) -> Space | None:
        """A space as it is now; None when it is gone, be it that another one has its id."""
        found = self.get(space.id)
        return found if found is not None and found.fingerprint == space.fingerprint else None

    def require(self, space: Space) -> None:
        """Make sure of it before vectors that were made for a space are stored.

        Raises:
            SpaceChangedError: the space was dropped, or its id is another store's space by now.
        """
        if not self.has(space):
            raise SpaceChangedError(f"space {space.id} ({space.model}) is gone")

    def by_fingerprint(self, fingerprint: str) -> Space | None:
        """The space of an embedder."""
        return next((space for space in self.all() if space.fingerprint == fingerprint), None)

    def active(self) -> Space | None:
        """The space that searches are answered from."""
        return next((space for space in self.all() if space.state == "active"), None)

    def last_retired(self) -> Space | None:
        """The space that was the active one before."""
        return max(
            (s for s in self.all() if s.state != "active" and s.activated_seq is not None),
            key=lambda space: (space.activated_seq, space.id),
            default=None,
        )

    def stats(self) -> list[SpaceStats]:
        """All spaces, and how far each has come."""
        return [
            SpaceStats(
                space,
                self.vector_count(space.id),
                self.pending_count(space.id),
                self.failed_count(space.id),
            )
            for space in self.all()
        ]

    def find_or_create(
        self,
        *,
        fingerprint: str,
        model: str,
        alias: str | None,
        dim: int,
        revision: str | None = None,
    ) -> Space:
        """The space of a fingerprint; a new, building one when there is none.

        The alias and the revision are those last asked for: commands reopen the store with them.

        Raises:
            DimensionMismatchError: the fingerprint is known with another width.
        """
        known = self.by_fingerprint(fingerprint)
        if known is None:
            return self._create(fingerprint, model, alias, dim, revision)
        if known.dim != dim:
            raise DimensionMismatchError(
                f"space {known.id} ({known.model}) is {known.dim} wide, but the embedder with the "
                f"same fingerprint makes vectors {dim} wide: one fingerprint must mean one width"
            )
        asked = replace(known, alias=alias or known.alias, revision=revision or known.revision)
        if asked != known:
            self._set(known, alias=asked.alias, revision=asked.revision)
        return asked

    def _create(
        self, fingerprint: str, model: str, alias: str | None, dim: int, revision: str | None
    ) -> Space:
        (seq,) = next_seqs(self._connection, 1)
        self._connection.execute(
            insert(spaces).values(
                id=seq,
                fingerprint=fingerprint,
                model=model,
                alias=alias,
                dim=dim,
                state="building",
                created_at=self._now,
                pruned_seq=0,
                revision=revision,
            )
        )
        return next(space for space in self.all() if space.id == seq)

    def activate(self, space: Space) -> Space:
        """Make a space the active one and retire the one before; the caller saw zero pending.

        Raises:
            SpaceChangedError: the space is gone.
        """
        self.require(space)
        (seq,) = next_seqs(self._connection, 1)
        self._connection.execute(
            update(spaces)
            .where(spaces.c.state == "active")
            .values(state="retired", vectors=_ALL_VECTORS)
        )
        self._connection.execute(update(store).values(active_gain=0))
        self._set(space, state="active", activated_seq=seq)
        return replace(space, state="active", activated_seq=seq)

    def _set(self, space: Space, **values: Any) -> None:
        self._connection.execute(update(spaces).where(spaces.c.id == space.id).values(**values))

    def droppable(self, keep: int, *, leftovers: bool = False) -> list[Space]:
        """The spaces that nobody wants any more.

        Args:
            keep: so many retired spaces are kept, those that were the active one last.
            leftovers: name those too that never became active and that no job builds: cancelled
                jobs' and fallbacks'.
        """
        wanted = set(
            self._connection.execute(
                select(jobs.c.space_id).where(jobs.c.state.in_(UNFINISHED))
            ).scalars()
        )
        idle = [s for s in self.all() if s.state != "active" and s.id not in wanted]
        retired = sorted(
            (s for s in idle if s.activated_seq is not None),
            key=lambda space: (space.activated_seq, space.id),
            reverse=True,
        )
        return retired[keep:] + [s for s in idle if leftovers and s.activated_seq is None]

    def drop_some(self, space: Space, limit: int) -> bool:
        """Delete some rows of a space, and after the last of them the space; True when it is."""
        parts = (vectors.c.memory_key, past_vectors.c.content_hash, tombstones.c.memory_key)
        for column in parts:
            its = column.table.c.space_id == space.id
            some = select(column).where(its).limit(limit).scalar_subquery()
            gone = self._connection.execute(delete(column.table).where(its, column.in_(some)))
            if column.table is vectors:
                self._count(space.id, -gone.rowcount)
            if gone.rowcount == limit:
                return False
        its_jobs = select(jobs.c.id).where(jobs.c.space_id == space.id).scalar_subquery()
        self._connection.execute(delete(leases).where(leases.c.job_id.in_(its_jobs)))
        for table in (jobs, failures):
            self._connection.execute(delete(table).where(table.c.space_id == space.id))
        self._connection.execute(delete(spaces).where(spaces.c.id == space.id))
        return True

    def vector_of(self, space: Space, key: int) -> Vectors | None:
        """The vector of a memory's current text: (dim,) float32; None where it is pending."""
        statement = select(vectors.c.vector).where(
            vectors.c.space_id == space.id, vectors.c.memory_key == key
        )
        blob = self._connection.execute(statement).scalar_one_or_none()
        return None if blob is None else from_rows([blob], space.dim)[0]

    def made_before(self, space: Space, hashes: Sequence[bytes]) -> dict[bytes, Vectors]:
        """The vectors of texts that were embedded before, of memories or of what they were.

        Args:
            space: whose vectors are wanted.
            hashes: of the texts.

        Returns:
            (dim,) float32 by hash, bit by bit as they were made; of known texts alone.
        """
        found: dict[bytes, bytes] = {}
        for part in parts(hashes):
            for statement in _made_before(len(part)):
                found.update(fetch(self._connection, statement, (space.id, *part)))
        rows = from_rows(list(found.values()), space.dim)
        return dict(zip(found, rows, strict=True))

    def pruned_seq(self, space_id: int) -> int:
        """Tombstones up to this seq are gone: an index that has applied less replays from zero."""
        found = self._connection.execute(_PRUNED, {"space": space_id}).scalar()
        return 0 if found is None else int(found)

    def buried(self, space_id: int, seq: int) -> Keys:
        """The keys of memories that are gone, and whose tombstones have a seq up to this one.

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
        """Forget that memories are gone, for an index that is at a seq; older ones start anew."""
        _PRUNE.run(self._connection, space=space_id, keys=keys, seq=seq)
        self._connection.execute(
            update(spaces)
            .where(spaces.c.id == space_id, spaces.c.pruned_seq < seq)
            .values(pruned_seq=seq)
        )

    def vector_count(self, space_id: int) -> int:
        """How many memories have a vector of their current text in a space; 0 where it is gone."""
        rows = _VECTORS.fetch(self._connection, space=space_id)
        return int(rows[0][0]) if rows else 0

    def _count(self, space_id: int, change: int) -> None:
        """Note that a space has so many vectors more."""
        of = {"space": space_id, "change": change}
        if change and not _COUNT_ACTIVE.run(self._connection, **of):
            _COUNT.run(self._connection, **of)

    def pending_count(self, space_id: int) -> int:
        """How many memories are pending in a space.

        A vector stands in `vectors` only while its memory does and its text is unchanged, so the
        difference of two counts is the answer.
        """
        ((total,),) = fetch(self._connection, _MEMORIES)
        return int(total) - self.vector_count(space_id)

    def pending_texts(self, space_id: int, *, limit: int, after: bytes = b"") -> list[PendingText]:
        """The next texts that are pending in a space, by hash, without those that failed.

        Args:
            space_id: the space.
            limit: how many at most.
            after: only texts with a hash behind this one.

        Returns:
            Fewer than `limit` also when the texts are very long.
        """
        if self.pending_count(space_id) == self.failed_count(space_id):
            return []  # to find that out by the hashes takes a look at every memory
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

    def pending_text_count(self, space_id: int) -> int:
        """How many distinct texts are pending in a space, without those that failed."""
        if self.pending_count(space_id) == self.failed_count(space_id):
            return 0
        statement = select(func.count(func.distinct(memories.c.content_hash))).where(
            ~_has_vector(space_id), ~_has_failed(space_id)
        )
        return int(self._connection.execute(statement).scalar_one())

    def pending_since(self, space_id: int, seq: int, *, limit: int) -> int:
        """How many memories became pending in a space after a seq, counted up to a limit.

        It costs what changed since, not what the store holds: a memory that is pending either is
        new (its key is the seq of its first write), or an edit left a tombstone.
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

    def store_vectors(self, space: Space, made: Sequence[PendingText], rows: Vectors) -> int:
        """Store the vectors of texts, for every memory that holds one of them now.

        The compare-and-set: a memory that was edited since its text was read has another hash.

        Args:
            space: the space that the vectors belong to.
            made: the texts as they were read when they were embedded.
            rows: (n, dim) float32 unit rows, one a text.

        Returns:
            How many memories got their vector: others were edited, deleted or served meanwhile.

        Raises:
            SpaceChangedError: the space is gone.
        """
        self.require(space)
        blobs = checked_blobs(space, rows)
        if not made:
            return 0
        (seq,) = next_seqs(self._connection, 1)
        rows_made = [(text.content_hash, blob) for text, blob in zip(made, blobs, strict=True)]
        stored = fill_in_vectors(self._connection, space.id, seq, rows_made)
        self._count(space.id, stored)
        self._connection.execute(_FORGET_TOMBSTONES, {"space": space.id, "seq": seq})
        return stored

    # -- Texts that cannot be embedded ----------------------------------------------------------

    def record_failures(self, space: Space, errors: Mapping[bytes, str]) -> None:
        """Remember why texts, by hash, cannot be embedded in a space: nobody tries them again.

        Raises:
            SpaceChangedError: the space is gone.
        """
        self.require(space)
        self._forget_failures(space.id, list(errors))
        if errors:
            self._connection.execute(
                insert(failures),
                [
                    {
                        "space_id": space.id,
                        "content_hash": content_hash,
                        "error": error,
                        "failed_at": self._now,
                    }
                    for content_hash, error in errors.items()
                ],
            )

    def _forget_failures(self, space_id: int, hashes: Sequence[bytes]) -> None:
        for part in parts(hashes):
            self._connection.execute(
                delete(failures).where(
                    failures.c.space_id == space_id, failures.c.content_hash.in_(part)
                )
            )

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

    # -- What an index and a check need ---------------------------------------------------------

    def misfits(self, space: Space) -> Keys:
        """The keys of a space whose vector is none that could be of their text.

        It has another width, was made from another text, or is not of unit length.
        """
        is_wide = func.length(vectors.c.vector) == 4 * space.dim
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

    def vectors_behind(self, space: Space, key: int, limit: int) -> tuple[Keys, Vectors]:
        """Some vectors of a space, of memories above a key.

        Returns:
            (n,) int64 keys, ascending, and (n, dim) float32 vectors.

        Raises:
            CorruptStoreError: a stored vector has another width than its space.
        """
        rows = fetch(self._connection, _BEHIND, (space.id, key, limit))
        keys = np.array([key for key, _ in rows], np.int64)
        return keys, from_rows([blob for _, blob in rows], space.dim)

    def miscounted(self) -> dict[Space, int]:
        """The spaces whose number of vectors is not the one that is noted, and what it is."""
        counted = {space.id: count for space, count in self._counted()}
        return {
            space: counted[space.id]
            for space in self.all()
            if counted[space.id] != self.vector_count(space.id)
        }

    def _counted(self) -> list[tuple[Space, int]]:
        statement = "SELECT count(*) FROM vectors WHERE space_id = ?"
        return [
            (space, int(fetch(self._connection, statement, (space.id,))[0][0]))
            for space in self.all()
        ]

    def recount(self) -> None:
        """Count the vectors of each space anew; in a write transaction."""
        for space, count in self._counted():
            self._set(space, vectors=count)
        self._connection.execute(update(store).values(active_gain=0))

    def blobs(self, space_id: int, keys: Sequence[int]) -> dict[int, bytes]:
        """The vectors of keys in a space, as float32 little-endian bytes; pending ones are not."""
        found: dict[int, bytes] = {}
        for part in parts(keys):
            statement = select(vectors.c.memory_key, vectors.c.vector).where(
                vectors.c.space_id == space_id, vectors.c.memory_key.in_(part)
            )
            found.update((key, blob) for key, blob in self._connection.execute(statement))
        return found

    def seqs_of_new(self, space: Space, count: int) -> range:
        """Take the next numbers for new memories, and count their vectors.

        `insert_vectors` must follow, of as many rows.
        """
        ((last, is_active),) = _NEXT_NEW.fetch(self._connection, count=count, space=space.id)
        if not is_active:
            _COUNT.run(self._connection, space=space.id, change=count)
        return _up_to(last, count)

    def insert_vectors(self, space: Space, rows: Sequence[tuple[int, bytes, bytes, int]]) -> None:
        """Insert (key, content hash, vector, seq) rows, which must not stand there."""
        columns = ("space_id", "memory_key", "content_hash", "vector", "seq")
        insert_rows(self._connection, "vectors", columns, ((space.id, *row) for row in rows))

    def forget_vectors(self, keys: list[int], seq: int, space_id: int | None = None) -> None:
        """Turn the vectors of these keys into tombstones, in one space or in every one."""
        if not keys:
            return
        of = {"keys": keys, "space": space_id}
        _BURY.run(self._connection, **of, buried=seq)
        self._forget(keys, space_id)

    def _forget(self, keys: list[int], space_id: int | None) -> None:
        gone = Counter(id for (id,) in _FORGET.fetch(self._connection, keys=keys, space=space_id))
        for id, count in gone.items():
            self._count(id, -count)

    def await_vectors(self, keys: list[int], seq: int) -> None:
        """Let the memories of these keys, whose texts changed, be pending in every space.

        Each space gets a tombstone of this seq, also where no vector stood: by it whoever has the
        space's embedder learns that there is another text to embed.
        """
        if not keys:
            return
        _AWAIT.run(self._connection, keys=keys, seq=seq)
        self._forget(keys, None)

    def replace_vectors(self, space: Space, rows: Sequence[tuple[int, bytes, bytes, int]]) -> None:
        """Put (key, content hash, vector, seq) rows in the place of vectors and tombstones."""
        if not rows:
            return
        keys = [row[0] for row in rows]
        self._forget(keys, space.id)
        _UNBURY.run(self._connection, keys=keys, space=space.id)
        self.insert_vectors(space, rows)
        self._count(space.id, len(rows))


_NEXT = Prepared(update(store).values(seq=store.c.seq + bindparam("count")).returning(store.c.seq))
_THESE = and_(
    vectors.c.memory_key.in_(listed("keys")),
    or_(bindparam("space").is_(None), vectors.c.space_id == bindparam("space")),
)
_BURY = Prepared(
    insert(tombstones).from_select(
        ["space_id", "memory_key", "seq"],
        select(vectors.c.space_id, vectors.c.memory_key, bindparam("buried")).where(_THESE),
    )
)
_AWAIT = Prepared(
    insert(tombstones)
    .prefix_with("OR REPLACE")
    .from_select(
        ["space_id", "memory_key", "seq"],
        select(spaces.c.id, memories.c.key, bindparam("seq")).where(
            memories.c.key.in_(listed("keys"))
        ),
    )
)
_FORGET = Prepared(delete(vectors).where(_THESE).returning(vectors.c.space_id))
# Not bound: for a value that an index may depend on SQLite compiles a statement anew each time.
_IS_ACTIVE = spaces.c.state == literal_column("'active'")
_GAIN = select(store.c.active_gain).scalar_subquery()
_ALL_VECTORS = spaces.c.vectors + case((_IS_ACTIVE, _GAIN), else_=0)
_ACTIVE = select(spaces.c.id).where(_IS_ACTIVE).scalar_subquery()
_SERVES = func.coalesce(bindparam("space") == _ACTIVE, 0)
_NEXT_NEW = Prepared(
    update(store)
    .values(
        seq=store.c.seq + bindparam("count"),
        active_gain=store.c.active_gain + bindparam("count") * _SERVES,
    )
    .returning(store.c.seq, _SERVES)
)
_COUNT_ACTIVE = Prepared(
    update(store).where(_SERVES == 1).values(active_gain=store.c.active_gain + bindparam("change"))
)
_COUNT = Prepared(
    update(spaces)
    .where(spaces.c.id == bindparam("space"))
    .values(vectors=spaces.c.vectors + bindparam("change"))
)
_BEHIND = (
    "SELECT memory_key, vector FROM vectors"
    " WHERE space_id = ? AND memory_key > ? ORDER BY memory_key LIMIT ?"
)
_VECTORS = Prepared(select(_ALL_VECTORS).where(spaces.c.id == bindparam("space")))
# Without WHERE SQLite counts the pages of the narrowest index: .1 ms for a million.
_MEMORIES = "SELECT count(*) FROM memories"
_PRUNE = Prepared(
    delete(tombstones).where(
        tombstones.c.space_id == bindparam("space"),
        tombstones.c.memory_key.in_(listed("keys")),
        tombstones.c.seq <= bindparam("seq"),
    )
)
_UNBURY = Prepared(
    delete(tombstones).where(
        tombstones.c.space_id == bindparam("space"), tombstones.c.memory_key.in_(listed("keys"))
    )
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
    spaces.c.revision,
    spaces.c.activated_seq,
).order_by(spaces.c.id)


_PRUNED = select(spaces.c.pruned_seq).where(spaces.c.id == bindparam("space"))
_FORGET_TOMBSTONES = delete(tombstones).where(
    tombstones.c.space_id == bindparam("space"),
    tombstones.c.memory_key.in_(
        select(vectors.c.memory_key).where(
            vectors.c.space_id == bindparam("space"), vectors.c.seq == bindparam("seq")
        )
    ),
)


def next_seqs(connection: Connection, count: int) -> range:
    """Take the next numbers for so many changes, inside the write transaction."""
    ((last,),) = _NEXT.fetch(connection, count=count)
    return _up_to(last, count)


def _up_to(last: int, count: int) -> range:
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


@functools.lru_cache(maxsize=64)
def _made_before(count: int) -> tuple[str, str]:
    """What reads the vectors of so many texts by their hashes: of the past, and of memories."""
    # S608: names of our own, and question marks. As text for the driver: see `fetch`.
    hashes = ", ".join("?" * count)
    past = (
        "SELECT content_hash, vector FROM past_vectors"  # noqa: S608
        f" WHERE space_id = ? AND content_hash IN ({hashes})"
    )
    # CROSS JOIN: else SQLite goes through all vectors of the space to find those of a few texts.
    held = (
        "SELECT v.content_hash, v.vector FROM memories m CROSS JOIN vectors v"  # noqa: S608
        " ON v.space_id = ? AND v.memory_key = m.key AND v.content_hash = m.content_hash"
        f" WHERE m.content_hash IN ({hashes})"
    )
    return past, held


def _has_vector(space_id: int) -> ColumnElement[bool]:
    # Without a look at the row itself: the index over the two columns answers.
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


def _space(row: Sequence[Any]) -> Space:
    id, fingerprint, model, alias, dim, state, created_at, *rest = row
    return Space(id, fingerprint, model, alias, dim, state, to_datetime(created_at), *rest)
