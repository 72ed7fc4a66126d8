"""How memories are read: as they are, or as the store knew them at a moment.

`Rows` speaks over one open transaction, and only reads. Whatever it is asked costs what it finds,
or a look at so many rows, and not what the store holds; what goes through all rows that match says
so (`table`, `altered`). Keys are read as numbers, without a Python object for each.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from sqlalchemy import (
    ColumnElement,
    CompoundSelect,
    Connection,
    FromClause,
    Select,
    and_,
    bindparam,
    exists,
    func,
    or_,
    select,
    union_all,
)

from kronos.concurrency.pacing import yielding_gil
from kronos.db.dialect import WAY_OUT_OF_DAMAGE, fetch, json_text, unindexed
from kronos.db.numbers import read_numbers
from kronos.db.tables import accesses, deletions, memories, versions
from kronos.errors import CorruptStoreError
from kronos.repository.history import rows_at, still_held
from kronos.repository.spaces import parts
from kronos.types import Memory
from kronos.validation import hash_content, to_datetime

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from kronos.types import Keys

    Floats: TypeAlias = NDArray[np.float64]
    Numbers: TypeAlias = NDArray[np.int64]

Condition: TypeAlias = Callable[[FromClause], ColumnElement[bool]]
"""Makes a boolean SQL expression over rows such as those of `memories`: a filter, compiled."""
SomeKeys: TypeAlias = Select[Any] | CompoundSelect[Any]
"""Selects keys of memories."""

COLUMNS = (
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
"""What a memory is read from."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A memory, and what it is known by."""

    key: int
    content_hash: bytes
    memory: Memory


@dataclass(frozen=True, slots=True)
class Signals:
    """What a ranking asks of n memories."""

    times: dict[str, Floats]
    """By "created", "updated" and "accessed": (n,) microseconds since 1970 UTC."""
    importance: Floats
    """(n,) 0..1."""
    namespaces: list[str]


class Rows:
    """The memories, over one open transaction.

    Args:
        connection: in a transaction.
        now: the time, in microseconds since 1970 UTC.
        expired_by: what has expired until then is gone.
        moment: as the store knew them at this moment; None: as they are.
    """

    def __init__(
        self, connection: Connection, now: int, expired_by: int, moment: int | None = None
    ) -> None:
        self._connection = connection
        self._now = now
        self._expired_by = expired_by
        self._moment = moment

    @property
    def connection(self) -> Connection:
        """The transaction, for what speaks over it beside the rows."""
        return self._connection

    @property
    def expired_by(self) -> int:
        """What has expired until then is gone: microseconds since 1970 UTC."""
        return self._expired_by

    # -- One by one -----------------------------------------------------------------------------

    def find(self, id: str) -> Memory | None:
        """The live memory with this id."""
        found = self.entry(id)
        return None if found is None else found.memory

    def entry(self, id: str) -> Entry | None:
        """The live memory with this id, and what it is known by."""
        row = self._row_of(id)
        return None if row is None else Entry(int(row[0]), row[-1], as_memory(row[:-1]))

    def _row_of(self, id: str) -> Sequence[Any] | None:
        if self._moment is None:
            found = fetch(self._connection, _BY_ID, (id, self._expired_by))
            return found[0] if found else None
        rows = self._rows()
        columns = (rows.c[name] for name in (*COLUMNS, "content_hash"))
        known = select(*columns).where(rows.c.id == id, self._live(rows))
        return self._connection.execute(known.order_by(rows.c.key.desc()).limit(1)).first()

    def key_of(self, id: str) -> int | None:
        """The key of the memory that has this id, or had it last, expired or not."""
        rows = self._rows()
        found = select(rows.c.key).where(rows.c.id == id).order_by(rows.c.key.desc()).limit(1)
        key = self._connection.execute(found).scalar()
        if key is None:
            past = select(versions.c.memory_key).where(versions.c.id == id)
            key = self._connection.execute(past.order_by(versions.c.key.desc()).limit(1)).scalar()
        return None if key is None else int(key)

    def by_keys(self, keys: Keys) -> dict[int, Memory]:
        """The live memories among these keys."""
        return {key: as_memory(row) for key, row in self.rows_of(keys).items()}

    def rows_of(self, keys: Keys) -> dict[int, Sequence[Any]]:
        """The same as rows: each is read as a memory by `as_memory`, as often as wanted."""
        found: dict[int, Sequence[Any]] = {}
        for part in parts(keys.tolist()):
            for row in self._some_rows(part):
                found[row[0]] = row
        return found

    def _some_rows(self, keys: Sequence[int]) -> Sequence[Any]:
        if self._moment is None:
            return fetch(self._connection, _by_keys(len(keys)), (*keys, self._expired_by))
        rows = self._rows(these(keys))
        past = select(*(rows.c[name] for name in COLUMNS)).where(self._live(rows))
        return self._connection.execute(past).all()

    def signals(self, keys: Keys, seen: dict[int, Sequence[Any]]) -> Signals:
        """What a ranking asks of memories, in the order of their keys.

        Args:
            keys: (n,) of the memories.
            seen: what was read of some before, in this transaction; it gains the others.
        """
        for part in parts([key for key in keys.tolist() if key not in seen]):
            seen.update((row[0], row) for row in self._some_signals(part))
        ordered = [seen.get(key, _NOBODY) for key in keys.tolist()]

        def column(position: int) -> Floats:
            return np.array([row[position] for row in ordered], np.float64)

        times = {"created": column(1), "updated": column(2), "accessed": column(5)}
        return Signals(times, column(3), [row[4] for row in ordered])

    def _some_signals(self, keys: Sequence[int]) -> Sequence[Any]:
        if self._moment is None:
            return fetch(self._connection, _signals(len(keys)), keys)
        rows = self._rows(these(keys))
        columns = [rows.c[name] for name in ("key", "created_at", "updated_at", "importance")]
        accessed = func.coalesce(accesses.c.accessed_at, rows.c.created_at)
        joined = rows.outerjoin(accesses, accesses.c.memory_key == rows.c.key)
        past = select(*columns, rows.c.namespace, accessed).select_from(joined)
        return [tuple(row) for row in self._connection.execute(past)]

    # -- All that match -------------------------------------------------------------------------

    def keys(
        self, scope: str | None, condition: Condition | None, *, among: SomeKeys | None = None
    ) -> Keys:
        """The keys of the live memories in a scope that meet a condition.

        Goes through all of the scope, or through an index that the condition has.

        Args:
            scope: a namespace and all below it; None for every one.
            condition: the filter.
            among: looks at these alone.

        Returns:
            (n,) int64, ascending.
        """
        return np.ascontiguousarray(self.table(scope, condition, among=among)[:, 0])

    def table(
        self,
        scope: str | None,
        condition: Condition | None,
        *columns: Callable[[FromClause], ColumnElement[Any]],
        among: SomeKeys | None = None,
    ) -> Numbers:
        """The same with columns of whole numbers beside the keys: (n, columns) int64."""
        if condition is not None and self._moment is None and self.is_whole_store(scope):
            scope = None  # SQLite would go by the namespace, and not by the index of a field
        rows = self._rows(among)
        tests = self._tests(rows, scope, condition)
        if among is not None:
            tests.append(rows.c.key.in_(among))
        made = (column(rows) for column in columns)
        return read_numbers(self._connection, select(rows.c.key, *made).where(*tests))

    def known_then(
        self, scope: str | None, condition: Condition | None, among: SomeKeys | None = None
    ) -> Numbers:
        """Of rows at a moment: the keys, and what they held then.

        Returns:
            (n, 3) int64: key; the key of the version, 0 where the row of today held already; 1
            where the text is the one of today.
        """
        return self.table(scope, condition, _version_key, still_held, among=among)

    def groups(
        self,
        scope: str | None,
        condition: Condition | None,
        path: tuple[str, ...],
        among: SomeKeys | None = None,
    ) -> tuple[Numbers, list[str | None]]:
        """The keys, and which of them have the same value at a path of the metadata.

        Args:
            scope: as for `keys`.
            condition: as for `keys`.
            path: of a metadata key; ("", name) for a column.
            among: as for `keys`.

        Returns:
            (n, 2) int64, key and the number of its group; and the groups' names, texts that are
            equal for equal values alone. Those without a value are one group, `NO_GROUP` or None.
        """

        def name(rows: FromClause) -> ColumnElement[Any]:
            return json_text(rows.c.metadata, path) if path[0] else rows.c[path[1]]

        def number(rows: FromClause) -> ColumnElement[Any]:
            return func.dense_rank().over(order_by=name(rows)) - 1

        numbers = self.table(scope, condition, number, among=among)
        rows = self._rows(among)
        tests = self._tests(rows, scope, condition)
        if among is not None:
            tests.append(rows.c.key.in_(among))
        distinct = select(name(rows).label("name")).where(*tests).distinct().order_by("name")
        listed = select(func.json_group_array(distinct.subquery().c.name))
        return numbers, json.loads(self._connection.execute(listed).scalar_one())

    def changes(self, seq: int) -> SomeKeys:
        """The keys of memories that were added, changed or deleted after a seq."""
        return union_all(
            select(memories.c.key).where(memories.c.key > seq),
            select(memories.c.key).where(
                memories.c.seq > seq, memories.c.seq != memories.c.key, memories.c.key <= seq
            ),
            select(deletions.c.memory_key).where(deletions.c.seq > seq),
        )

    def differences(self, moment: int) -> SomeKeys:
        """The keys of memories that are, or may be, others now than they were at a moment."""
        first, last = sorted((moment, self._expired_by))
        return union_all(
            select(memories.c.key).where(memories.c.recorded_at > moment),
            select(versions.c.memory_key).where(versions.c.replaced_at > moment),
            select(memories.c.key).where(
                memories.c.expires_at > first, memories.c.expires_at <= last
            ),
        )

    def expired_since(self, moment: int) -> Keys:
        """The keys of memories that have expired since a moment: (n,) int64, ascending."""
        gone = select(memories.c.key).where(
            memories.c.expires_at > moment, memories.c.expires_at <= self._expired_by
        )
        return read_numbers(self._connection, gone)[:, 0]

    def told_since(self) -> int:
        """What was deleted or forgotten up to a seq is not told: who is older begins anew."""
        ((seq,),) = fetch(self._connection, _TOLD_SINCE)
        return int(seq)

    def count(self) -> int:
        """How many live memories there are, in every namespace, now."""
        ((count,),) = fetch(self._connection, _COUNT, (self._expired_by,))
        return int(count)

    def is_whole_store(self, scope: str | None) -> bool:
        """Whether no memory stands outside the scope; three probes of an index."""
        if scope is None:
            return True
        first, last = _below(scope)
        values = {"scope": scope, "first": first, "last": last}
        return not self._connection.execute(_OUTSIDE, values).scalar_one()

    # -- In their order -------------------------------------------------------------------------

    def behind(
        self,
        key: int,
        scope: str | None,
        condition: Condition | None,
        limit: int,
        *,
        last: int | None = None,
    ) -> Keys:
        """The first keys above a key, and up to another one, of live memories that match.

        Goes through the memories in the order of their keys until so many are found.

        Returns:
            (n,) int64, ascending.
        """
        rows = unindexed(memories, but="key")  # else it would find and sort all that match
        tests = [memories.c.key > key, *self._tests(rows, scope, condition)]
        if last is not None:
            tests.append(memories.c.key <= last)
        found = select(memories.c.key).where(*tests).order_by(memories.c.key).limit(limit)
        return read_numbers(self._connection, found)[:, 0]

    def key_ahead(self, key: int, count: int) -> int | None:
        """The key of the memory that comes so many behind a key; None: there are fewer."""
        found = fetch(self._connection, _AHEAD, (key, count - 1))
        return int(found[0][0]) if found else None

    def walk(
        self, scope: str | None, condition: Condition | None, limit: int
    ) -> Iterator[list[tuple[int, Memory]]]:
        """All live memories in a scope that meet a condition, with their keys, so many at once."""
        after = -1
        while (keys := self.behind(after, scope, condition, limit)).size:
            found = self.by_keys(keys)
            yield [(key, found[key]) for key in keys.tolist()]
            after = int(keys[-1])

    def altered(self) -> Iterator[str]:
        """The ids of memories whose text is not the one that was written; reads every row.

        Raises:
            CorruptStoreError: a row cannot be read at all.
        """
        columns = (memories.c[name] for name in COLUMNS)
        statement = select(*columns, memories.c.content_hash).order_by(memories.c.key)
        with self._connection.execute(statement) as rows:
            for *row, content_hash in yielding_gil(rows):
                memory = as_memory(row)
                if hash_content(memory.content.encode()) != content_hash:
                    yield memory.id

    # -- SQL ------------------------------------------------------------------------------------

    def _rows(self, among: SomeKeys | None = None) -> FromClause:
        """What has the columns of `memories`; at a moment, of some keys where any are named."""
        return memories if self._moment is None else rows_at(self._moment, among)

    def _tests(
        self, rows: FromClause, scope: str | None, condition: Condition | None
    ) -> list[ColumnElement[bool]]:
        tests = [self._live(rows)]
        if scope is not None:
            first, last = _below(scope)
            name = rows.c.namespace
            tests.append(or_(name == scope, and_(name >= first, name < last)))
        return tests if condition is None else [*tests, condition(rows)]

    def _live(self, rows: FromClause) -> ColumnElement[bool]:
        expires_at = rows.c.expires_at
        return or_(expires_at.is_(None), expires_at > self._expired_by)


NO_GROUP = "[null,null]"
"""The name that `groups` gives to those that have nothing at the path."""
_JSON = json.JSONDecoder()
_NOBODY = (0, 0, 0, 0.0, "", 0)
# What is asked often, as text for the driver: through SQLAlchemy it takes three times as long.
# S608: names of our own.
_BY_ID = (
    f"SELECT {', '.join(COLUMNS)}, content_hash FROM memories"  # noqa: S608
    " WHERE id = ? AND (expires_at IS NULL OR expires_at > ?)"
)
_TOLD_SINCE = (
    "SELECT max(s.pruned_seq, (SELECT coalesce(max(pruned_seq), 0) FROM spaces)) FROM store s"
)
# Without WHERE SQLite counts the pages of the narrowest index: .1 ms for a million.
_COUNT = (
    "SELECT (SELECT count(*) FROM memories) - (SELECT count(*) FROM memories WHERE expires_at <= ?)"
)
_AHEAD = "SELECT key FROM memories WHERE key > ? ORDER BY key LIMIT 1 OFFSET ?"
_OUTSIDE = select(
    or_(
        exists().where(memories.c.namespace < bindparam("scope")),
        exists().where(
            memories.c.namespace > bindparam("scope"), memories.c.namespace < bindparam("first")
        ),
        exists().where(memories.c.namespace >= bindparam("last")),
    )
)


def these(keys: Sequence[int]) -> Select[Any]:
    """Some keys, as SQL selects them: however many, they are one parameter."""
    listed = func.json_each(json.dumps([*keys])).table_valued("value")
    return select(listed.c.value)


@functools.lru_cache(maxsize=256)
def _by_keys(count: int) -> str:
    # S608: names of our own, and question marks.
    return (
        f"SELECT {', '.join(COLUMNS)} FROM memories"  # noqa: S608
        f" WHERE key IN ({', '.join('?' * count)}) AND (expires_at IS NULL OR expires_at > ?)"
    )


@functools.lru_cache(maxsize=256)
def _signals(count: int) -> str:
    # S608: question marks.
    return (
        "SELECT m.key, m.created_at, m.updated_at, m.importance, m.namespace,"  # noqa: S608
        " coalesce(a.accessed_at, m.created_at)"
        " FROM memories m LEFT JOIN accesses a ON a.memory_key = m.key"
        f" WHERE m.key IN ({', '.join('?' * count)})"
    )


def _version_key(rows: FromClause) -> ColumnElement[Any]:
    return func.coalesce(rows.c.version_key, 0)


def _below(scope: str) -> tuple[str, str]:
    """The range of the namespaces below a scope: first (inclusive), last (exclusive)."""
    return f"{scope}/", f"{scope}0"  # "0" comes right behind "/"


def as_memory(row: Sequence[Any]) -> Memory:
    """Read a row, of `COLUMNS`, as a memory.

    Raises:
        CorruptStoreError: it holds what Kronos never wrote.
    """
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
