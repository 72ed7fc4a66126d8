"""The memories: how they are read, written, replaced and deleted, together with their vectors.

A `Repository` speaks over one open transaction and never begins or ends it: who opened the
transaction ends it. What is written whole (a batch, an edit, a delete) takes its seq here and
leaves no vector of an older text in any space; the spaces are in `Repository.spaces`.
"""

from __future__ import annotations

import functools
import json
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from sqlalchemy import (
    ColumnElement,
    Connection,
    FromClause,
    Select,
    and_,
    bindparam,
    delete,
    exists,
    func,
    or_,
    select,
)

from kronos.db.dialect import (
    WAY_OUT_OF_DAMAGE,
    Prepared,
    fetch,
    insert_rows,
    listed,
    savepoint,
    update_rows,
)
from kronos.db.engine import FileId, file_of
from kronos.db.tables import accesses, memories, store
from kronos.errors import CorruptStoreError, DuplicateIdError, NotFoundError
from kronos.history import History, PastText, rows_at, still_held
from kronos.jobs import Jobs
from kronos.links import Links, Reached
from kronos.spaces import Spaces, checked_blobs, next_seqs, parts
from kronos.types import DuplicateGroup, Memory, OnConflict, Space, Step, Version
from kronos.validation import Record, hash_content, to_datetime, to_microseconds
from kronos.words import Words

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from kronos.duplicates import KeyGroup
    from kronos.types import Keys, Vectors

    Floats: TypeAlias = NDArray[np.float64]

_ROWS_A_FETCH = 500

Condition: TypeAlias = Callable[[FromClause], ColumnElement[bool]]
"""Makes a boolean SQL expression over rows such as those of `memories`: a filter, compiled."""

_COLUMNS = (
    "key",
    "id",
    "namespace",
    "content",
    "metadata",
    "importance",
    "parent_id",
    "created_at",
    "updated_at",
    "expires_at",
)
_MEMORY = tuple(memories.c[name] for name in _COLUMNS)


@dataclass(slots=True)
class Batch:
    """What one caller adds at once: it is written whole or not at all."""

    records: list[Record]
    ids: list[str]
    """The ids of all that the caller handed in, also of records that need not be written."""
    on_conflict: OnConflict
    space: Space
    """The space of `vectors`, and of the vectors that were handed in."""
    vectors: Vectors | None = None
    """(n, dim) float32 unit rows, one a record; None until the records were embedded."""
    match_content: bool = False
    """A record without an id of its caller's takes the place of a memory with its text."""


@dataclass(frozen=True, slots=True)
class Pulse:
    """What an open store compares to learn that something changed.

    The id of a space alone says little: the first space of every store has the same one.
    """

    seq: int
    store_id: str
    active_space: int | None
    fingerprint: str | None
    """The active space's."""
    file: FileId | None
    """The database file."""


@dataclass(frozen=True, slots=True)
class Signals:
    """What a ranking asks of n memories."""

    times: dict[str, Floats]
    """By "created", "updated" and "accessed": (n,) microseconds since 1970 UTC."""
    importance: Floats
    """(n,) 0..1."""
    namespaces: list[str]


@dataclass(frozen=True, slots=True)
class _Write:
    """One record on its way into the rows; `key` is None for a new memory."""

    record: Record
    vector: bytes
    key: int | None
    same_text: bool = False


@dataclass(frozen=True, slots=True)
class _Edit:
    """What becomes of the row of a memory."""

    key: int
    values: Sequence[Any]
    same_text: bool
    made: tuple[bytes, bytes] | None
    """The hash of its text and its vector; None leaves the vectors as they are."""


class Repository:
    """The rows, over one open transaction.

    Args:
        connection: in a transaction.
        now: the time, UTC.
        expired_by: what has expired until then is gone; None is `now`. It is later than `now` when
            the clock was put back: what is gone must not come back.
        keep_history: keep what memories were, when they are changed or deleted.
    """

    def __init__(
        self,
        connection: Connection,
        now: datetime,
        *,
        expired_by: datetime | None = None,
        keep_history: bool = True,
    ) -> None:
        self._connection = connection
        self._now = to_microseconds(now)
        self._expired_by = self._now if expired_by is None else to_microseconds(expired_by)
        self._keep_history = keep_history
        self._rows: FromClause = memories

    def as_of(self, moment: datetime) -> Repository:
        """The same store as it was known at a moment; for reading memories alone."""
        past = Repository(self._connection, moment)
        past._rows = rows_at(past._now)
        return past

    @property
    def connection(self) -> Connection:
        """The transaction, for what speaks over it beside the repository."""
        return self._connection

    def savepoint(self) -> AbstractContextManager[None]:
        """A part of the transaction: an error undoes it, and leaves what was written before."""
        return savepoint(self._connection)

    @property
    def now(self) -> int:
        """The time of the transaction: microseconds since 1970 UTC."""
        return self._now

    # What speaks of one subject each is made when it is asked for: a search needs little of it.

    @property
    def spaces(self) -> Spaces:
        """The spaces and their vectors."""
        return Spaces(self._connection, self._now)

    @property
    def history(self) -> History:
        """What memories were."""
        return History(self._connection, self._now)

    @property
    def words(self) -> Words:
        """The index of words."""
        return Words(self._connection)

    @property
    def links(self) -> Links:
        """What joins memories."""
        return Links(self._connection, self._now, self._expired_by)

    @property
    def jobs(self) -> Jobs:
        """The reindex jobs."""
        return Jobs(self._connection, self._now)

    # -- The store ------------------------------------------------------------------------------

    def store_id(self) -> str:
        """The store's UUID."""
        return str(self._connection.execute(select(store.c.uuid)).scalar_one())

    def pulse(self) -> Pulse:
        """The last seq, the active space, and whose they are."""
        ((seq, store_id, active, fingerprint),) = fetch(self._connection, _PULSE)
        return Pulse(seq, store_id, active, fingerprint, file_of(self._connection))

    # -- Memories: reading ----------------------------------------------------------------------

    def find(self, id: str) -> Memory | None:
        """The live memory with this id."""
        found = select(*self._memory()).where(self._rows.c.id == id, self._live())
        row = self._connection.execute(found.order_by(self._rows.c.key.desc())).first()
        return None if row is None else _memory(row)

    def find_key(self, id: str) -> tuple[int, Memory] | None:
        """The live memory with this id, and its key."""
        row = self._connection.execute(
            select(*_MEMORY).where(memories.c.id == id, self._live())
        ).first()
        return None if row is None else (int(row[0]), _memory(row))

    def steps(self, reached: Sequence[Reached]) -> list[Step]:
        """What a walk over links came to, with the memories."""
        found = self.by_keys(np.array([each.key for each in reached], np.int64))
        return [
            Step(found[each.key], each.depth, each.relation, each.from_id)
            for each in reached
            if each.key in found
        ]

    def duplicate_groups(self, groups: Sequence[KeyGroup]) -> list[DuplicateGroup]:
        """Groups of keys, with the memories; those that live."""
        found = self.by_keys(np.array([key for each in groups for key in each.keys], np.int64))
        alive = [([key for key in each.keys if key in found], each.score) for each in groups]
        return [
            DuplicateGroup(tuple(found[key] for key in keys), score)
            for keys, score in alive
            if len(keys) > 1
        ]

    def by_keys(self, keys: Keys) -> dict[int, Memory]:
        """The live memories among these keys."""
        found: dict[int, Memory] = {}
        for part in parts(keys.tolist()):
            rows: Sequence[Any]
            if self._rows is memories:
                values = (*part, self._expired_by)
                rows = fetch(self._connection, _by_keys(len(part)), values)
            else:
                past = select(*self._memory()).where(self._rows.c.key.in_(part), self._live())
                rows = self._connection.execute(past).all()
            for row in rows:
                found[row[0]] = _memory(row)
        return found

    def known(self, ids: Sequence[str]) -> set[str]:
        """Those of these ids that a live memory has."""
        rows = _BY_IDS.fetch(self._connection, ids=[*ids])
        return {id for _, id, _, expires_at in rows if not self._is_gone(expires_at)}

    def _is_gone(self, expires_at: int | None) -> bool:
        return expires_at is not None and expires_at <= self._expired_by

    def keys(
        self, scope: str | None, condition: Condition | None, *, since: int | None = None
    ) -> Keys:
        """The keys of the live memories in a scope that meet a condition: (n,) int64, ascending.

        Args:
            scope: a namespace and all below it; None for every one.
            condition: the filter.
            since: of those alone that were written after this seq.
        """
        if condition is not None and self._rows is memories and self.is_whole_store(scope):
            scope = None  # SQLite would go by the namespace, and not by the index of a field
        statement = self._matching(select(self._rows.c.key), scope, condition)
        if since is not None:
            statement = statement.where(memories.c.seq > since)
        found = self._connection.execute(statement).scalars().all()
        return np.sort(np.fromiter(found, np.int64, len(found)))

    def changed_since(self, seq: int) -> Keys:
        """The keys of memories that were written after a seq: (n,) int64, ascending."""
        statement = select(memories.c.key).where(memories.c.seq > seq)
        found = self._connection.execute(statement).scalars().all()
        return np.sort(np.fromiter(found, np.int64, len(found)))

    def signals(self, keys: Keys) -> Signals:
        """What a ranking asks of memories, in the order of their keys."""
        found: dict[int, Sequence[Any]] = {}
        rows = self._rows
        columns = [rows.c[name] for name in ("key", "created_at", "updated_at", "importance")]
        statement = select(
            *columns, rows.c.namespace, func.coalesce(accesses.c.accessed_at, rows.c.created_at)
        ).select_from(rows.outerjoin(accesses, accesses.c.memory_key == rows.c.key))
        for part in parts(keys.tolist()):
            for row in self._connection.execute(statement.where(rows.c.key.in_(part))):
                found[row[0]] = row
        ordered = [found.get(key, _NOBODY) for key in keys.tolist()]

        def column(position: int) -> Floats:
            return np.array([row[position] for row in ordered], np.float64)

        times = {"created": column(1), "updated": column(2), "accessed": column(5)}
        return Signals(times, column(3), [row[4] for row in ordered])

    def known_then(
        self, scope: str | None, condition: Condition | None
    ) -> tuple[Keys, Keys, NDArray[np.bool_]]:
        """Of a repository `as_of` a moment: what was live then, in a scope and under a condition.

        Returns:
            (n,) int64 keys, ascending; (n,) int64 keys of the versions, 0 where the row of today
            held already; and (n,) whether the text is the one of today.
        """
        rows = self._rows
        statement = self._matching(
            select(rows.c.key, func.coalesce(rows.c.version_key, 0), still_held(rows)),
            scope,
            condition,
        )
        found = np.array(self._connection.execute(statement.order_by(rows.c.key)).all(), np.int64)
        found = found.reshape(-1, 3)
        return found[:, 0], found[:, 1], found[:, 2].astype(np.bool_)

    def past_texts(
        self, scope: str | None, condition: Condition | None, space: Space
    ) -> list[PastText]:
        """What of `known_then` has another text today: the texts, and their vectors in a space."""
        return self.history.texts(self._rows, self._tests(scope, condition), space)

    def page(
        self, scope: str | None, condition: Condition | None, after: str | None, limit: int
    ) -> list[Memory]:
        """Live memories in the order in which they came, from behind `after` on.

        Raises:
            NotFoundError: no memory has the id `after`.
        """
        statement = self._matching(select(*self._memory()), scope, condition)
        if after is not None:
            statement = statement.where(self._rows.c.key > self._key_of(after))
        rows = self._connection.execute(statement.order_by(self._rows.c.key).limit(limit))
        return [_memory(row) for row in rows]

    def behind(
        self, key: int, scope: str | None, condition: Condition | None, limit: int
    ) -> list[tuple[int, Memory]]:
        """Live memories in a scope that meet a condition, with their keys, all above a key."""
        statement = self._matching(select(*self._memory()), scope, condition)
        statement = statement.where(self._rows.c.key > key).order_by(self._rows.c.key)
        rows = self._connection.execute(statement.limit(limit))
        return [(row[0], _memory(row)) for row in rows]

    def walk(
        self, scope: str | None, condition: Condition | None, limit: int
    ) -> Iterator[list[tuple[int, Memory]]]:
        """All live memories in a scope that meet a condition, with their keys, so many at once."""
        after = -1
        while found := self.behind(after, scope, condition, limit):
            yield found
            after = found[-1][0]

    def versions(self, id: str) -> list[Version]:
        """What the memories with an id were, and are, the oldest first."""
        return [
            Version(
                _memory([row._mapping[name] for name in _COLUMNS]),
                to_datetime(row.recorded_at),
                None if row.replaced_at is None else to_datetime(row.replaced_at),
            )
            for row in self.history.of(id)
        ]

    def altered(self) -> Iterator[str]:
        """The ids of memories whose text is not the one that was written; reads every row.

        Raises:
            CorruptStoreError: a row cannot be read at all.
        """
        statement = select(*_MEMORY, memories.c.content_hash).order_by(memories.c.key)
        with self._connection.execute(statement) as rows:
            for part in rows.partitions(_ROWS_A_FETCH):
                for *row, content_hash in part:
                    memory = _memory(row)
                    if hash_content(memory.content.encode()) != content_hash:
                        yield memory.id

    def count(self, scope: str | None = None, condition: Condition | None = None) -> int:
        """How many live memories in a scope meet a condition."""
        statement = select(func.count()).select_from(self._rows)
        statement = self._matching(statement, scope, condition)
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
        return statement.where(*self._tests(scope, condition))

    def _tests(self, scope: str | None, condition: Condition | None) -> list[ColumnElement[bool]]:
        tests = [self._live()]
        if scope is not None:
            first, last = _below(scope)
            name = self._rows.c.namespace
            tests.append(or_(name == scope, and_(name >= first, name < last)))
        return tests if condition is None else [*tests, condition(self._rows)]

    def _live(self) -> ColumnElement[bool]:
        expires_at = self._rows.c.expires_at
        return or_(expires_at.is_(None), expires_at > self._expired_by)

    def _memory(self) -> list[ColumnElement[Any]]:
        return [self._rows.c[name] for name in _COLUMNS]

    def _key_of(self, id: str) -> int:
        """The key of a memory, be it gone: a page may have ended with it."""
        found = select(memories.c.key).where(memories.c.id == id)
        key = self._connection.execute(found).scalar_one_or_none()
        if key is None:
            key = self.history.key_of(id)
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
        for batch in batches:
            if batch.match_content:
                self._match_content(batch)
        taken = self._existing(batches)
        blobs = iter(self._blobs(batches, space))
        writes: dict[str, _Write] = {}
        outcomes = [
            _resolve(batch, [*islice(blobs, len(batch.records))], taken, writes)
            for batch in batches
        ]
        self.words.fold(write.record for write in writes.values())
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
        """Key and content hash of the live memories whose ids are asked for; expired ones go."""
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

    def _insert(self, writes: Sequence[_Write], space: Space) -> None:
        if not writes:
            return
        seqs = next_seqs(self._connection, len(writes))
        rows = [
            (seq, seq, self._now, *self._times(write.record), *_values(write.record))
            for seq, write in zip(seqs, writes, strict=True)
        ]
        insert_rows(self._connection, "memories", _NEW, rows)
        self.words.add(seqs[0], seqs[-1])
        self.spaces.insert_vectors(
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

    def _replace(self, writes: Sequence[_Write], space: Space) -> None:
        edits = [
            _Edit(
                write.key,
                _values(write.record),
                write.same_text,
                (write.record.content_hash, write.vector),
            )
            for write in writes
            if write.key is not None
        ]
        self._edit(_GIVEN, edits, space)

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
            values = {**values, "folded": self.words.folded(values["content"])}
        self._edit([*values], [_Edit(key, [*values.values()], same_text, made)], space)
        changed = select(*_MEMORY).where(memories.c.key == key)
        return _memory(self._connection.execute(changed).one())

    def _edit(self, columns: Sequence[str], edits: Sequence[_Edit], space: Space | None) -> None:
        """Change some columns of memories, whose values stand in the edits in this order."""
        if not edits:
            return
        edits = sorted(edits, key=operator.attrgetter("key"))  # as the words want them
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
        self.spaces.await_vectors(changed, seqs[-1])
        if space is not None:
            self.spaces.replace_vectors(
                space,
                [
                    (edit.key, *edit.made, seq)
                    for seq, edit in zip(seqs, edits, strict=True)
                    if edit.made is not None
                ],
            )

    def delete_ids(self, ids: Sequence[str]) -> int:
        """Delete memories by id; unknown ids are passed over. Returns how many there were."""
        return self._delete([row[0] for row in _BY_IDS.fetch(self._connection, ids=[*ids])])

    def delete_matching(self, scope: str | None, condition: Condition | None) -> int:
        """Delete the live memories in a scope that meet a condition. Returns how many."""
        return self._delete(self.keys(scope, condition).tolist())

    def delete_expired(self, limit: int) -> int:
        """Delete some of the memories that have expired. Returns how many."""
        expired = select(memories.c.key).where(~self._live()).limit(limit)
        return self._delete([*self._connection.execute(expired).scalars()])

    def _delete(self, keys: list[int]) -> int:
        if not keys:
            return 0
        if self._keep_history:
            self.history.keep(keys, text_goes=True)
        (seq,) = next_seqs(self._connection, 1)
        self.spaces.forget_vectors(keys, seq)
        _DELETE.run(self._connection, keys=keys)
        return len(keys)

    def touch(self, ids: Sequence[str]) -> int:
        """Note that memories are made use of now. Returns how many live ones there were."""
        rows = _BY_IDS.fetch(self._connection, ids=[*ids])
        keys = [row[0] for row in rows if not self._is_gone(row[3])]
        _FORGET_ACCESSES.run(self._connection, keys=keys)
        accessed = ((key, self._now) for key in keys)
        insert_rows(self._connection, "accesses", ("memory_key", "accessed_at"), accessed)
        return len(keys)


_JSON = json.JSONDecoder()
_NOBODY = (0, 0, 0, 0.0, "", 0)
# What every search asks, as text for the driver: through SQLAlchemy it takes three times as long.
_PULSE = (
    "SELECT seq, uuid, spaces.id, fingerprint"
    " FROM store LEFT JOIN spaces ON spaces.state = 'active'"
)


@functools.lru_cache(maxsize=256)
def _by_keys(count: int) -> str:
    # S608: names of our own, and question marks.
    return (
        f"SELECT {', '.join(_COLUMNS)} FROM memories"  # noqa: S608
        f" WHERE key IN ({', '.join('?' * count)}) AND (expires_at IS NULL OR expires_at > ?)"
    )


_BY_IDS = Prepared(
    select(memories.c.key, memories.c.id, memories.c.content_hash, memories.c.expires_at).where(
        memories.c.id.in_(listed("ids"))
    )
)
_BY_TEXT = Prepared(
    select(memories.c.id)
    .where(
        memories.c.content_hash == bindparam("content_hash"),
        memories.c.namespace == bindparam("namespace"),
        or_(memories.c.expires_at.is_(None), memories.c.expires_at > bindparam("expired_by")),
    )
    .order_by(memories.c.key)
    .limit(1)
)
_DELETE = Prepared(delete(memories).where(memories.c.key.in_(listed("keys"))))
_FORGET_ACCESSES = Prepared(delete(accesses).where(accesses.c.memory_key.in_(listed("keys"))))
_OUTSIDE = select(
    or_(
        exists().where(memories.c.namespace < bindparam("scope")),
        exists().where(
            memories.c.namespace > bindparam("scope"), memories.c.namespace < bindparam("first")
        ),
        exists().where(memories.c.namespace >= bindparam("last")),
    )
)


_GIVEN = (
    "id",
    "namespace",
    "content",
    "content_hash",
    "folded",
    "metadata",
    "importance",
    "parent_id",
    "expires_at",
)
"""Columns that hold what the caller gave, or what was made of it."""
_NEW = ("key", "seq", "recorded_at", "created_at", "updated_at", *_GIVEN)
_values = operator.attrgetter(*_GIVEN)


def _columns(record: Record) -> dict[str, Any]:
    return dict(zip(_GIVEN, _values(record), strict=True))


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
    return batch.ids


def _below(scope: str) -> tuple[str, str]:
    """The range of the namespaces below a scope: first (inclusive), last (exclusive)."""
    return f"{scope}/", f"{scope}0"  # "0" comes right behind "/"


def _memory(row: Sequence[Any]) -> Memory:
    """A row as a memory; CorruptStoreError when it holds what Kronos never wrote."""
    _, id, namespace, content, metadata, importance, parent_id, created, updated, expires = row
    try:
        if not type(id) is type(namespace) is type(content) is str:
            raise TypeError("id, namespace and content must be texts")
        created_at = to_datetime(created)
        return Memory(
            id,
            namespace,
            content,
            _read_json(metadata),
            importance,
            created_at,
            created_at if updated == created else to_datetime(updated),
            parent_id,
            None if expires is None else to_datetime(expires),
        )
    except (TypeError, ValueError, OverflowError, RecursionError) as exc:
        raise CorruptStoreError(
            f"the row of the memory {row[1]!r} is damaged: {exc}. {WAY_OUT_OF_DAMAGE}"
        ) from exc


def _read_json(text: str) -> Any:
    """As `json.loads`, which takes twice as long: it looks for spaces that Kronos never writes."""
    value, end = _JSON.raw_decode(text)
    return value if end == len(text) else json.loads(text)
