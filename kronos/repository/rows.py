"""Reading memories: as they are, or as the store knew them at a moment.

`Rows` works over one open transaction, and only reads. A call costs what it finds, or a look at
that many rows, and not what the store holds; the calls that go through all rows that match say so
(`table`, `altered`). Keys are read as numbers, without a Python object for each.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
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
from kronos.db.numbers import read_numbers
from kronos.db.sql import greatest, json_array, json_text, list_rows, unindexed, value_list
from kronos.db.statements import Prepared
from kronos.db.tables import accesses, deletions, memories, spaces, store, versions
from kronos.repository.history import rows_at, still_held
from kronos.repository.memory_rows import COLUMNS, Condition, Entry, Signals, as_memory, is_live
from kronos.types import Memory
from kronos.validation import hash_content

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from kronos.types import Keys

    Numbers: TypeAlias = NDArray[np.int64]

SomeKeys: TypeAlias = Select[Any] | CompoundSelect[Any]
"""Selects keys of memories."""
NO_GROUP = "[null,null]"
"""The name that `Rows.groups` gives to memories that have nothing at the path."""
_KEYS_A_STATEMENT = 1000


class Rows:
    """The memories, over one open transaction.

    Args:
        connection: in a transaction.
        now: the time, in microseconds since 1970 UTC.
        expired_by: memories that expired until then are gone.
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
        """The transaction, for classes that work over it beside the rows."""
        return self._connection

    @property
    def expired_by(self) -> int:
        """Memories that expired until then are gone: microseconds since 1970 UTC."""
        return self._expired_by

    # -- One by one -----------------------------------------------------------------------------

    def find(self, id: str) -> Memory | None:
        """The live memory with this id."""
        found = self.entry(id)
        return None if found is None else found.memory

    def entry(self, id: str) -> Entry | None:
        """The live memory with this id, with its key and the hash of its text."""
        row = self._row_of(id)
        return None if row is None else Entry(int(row[0]), row[-1], as_memory(row[:-1]))

    def _row_of(self, id: str) -> Sequence[Any] | None:
        if self._moment is None:
            found = _BY_ID.fetch(self._connection, id=id, expired_by=self._expired_by)
            return found[0] if found else None
        rows = self._rows()
        columns = (rows.c[name] for name in (*COLUMNS, "content_hash"))
        known = select(*columns).where(rows.c.id == id, is_live(rows, self._expired_by))
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
        """The same as rows: `as_memory` reads one as a memory."""
        found: dict[int, Sequence[Any]] = {}
        for part in _parts(keys.tolist()):
            for row in self._some_rows(part):
                found[row[0]] = row
        return found

    def _some_rows(self, keys: list[int]) -> Sequence[Any]:
        if self._moment is None:
            return _BY_KEYS.fetch(self._connection, keys=keys, expired_by=self._expired_by)
        rows = self._rows(value_list(keys))
        live = is_live(rows, self._expired_by)
        past = select(*(rows.c[name] for name in COLUMNS)).where(live)
        return self._connection.execute(past).all()

    def signals(self, keys: Keys, seen: dict[int, Sequence[Any]]) -> Signals:
        """What a ranking reads of memories, in the order of their keys.

        Args:
            keys: (n,) of the memories.
            seen: rows of some that were read before in this transaction; it gains the others.
        """
        for part in _parts([key for key in keys.tolist() if key not in seen]):
            seen.update((row[0], row) for row in self._some_signals(part))
        ordered = [seen.get(key, _NO_SIGNALS) for key in keys.tolist()]

        def column(position: int) -> NDArray[np.float64]:
            return np.array([row[position] for row in ordered], np.float64)

        times = {"created": column(1), "updated": column(2), "accessed": column(5)}
        return Signals(times, column(3), [row[4] for row in ordered])

    def _some_signals(self, keys: list[int]) -> Sequence[Any]:
        if self._moment is None:
            return _SIGNALS.fetch(self._connection, keys=keys)
        past = _signals_of(self._rows(value_list(keys)))
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
            among: looks only at these.

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
            # With a scope a database might go by the namespace, and not by the index of a field.
            scope = None
        rows = self._rows(among)
        tests = self._tests(rows, scope, condition, among)
        made = (column(rows) for column in columns)
        return read_numbers(self._connection, select(rows.c.key, *made).where(*tests))

    def known_then(
        self, scope: str | None, condition: Condition | None, among: SomeKeys | None = None
    ) -> Numbers:
        """Of rows at a moment: the keys, and which text they held then.

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
            equal only for equal values. Memories without a value are one group, `NO_GROUP` or None.
        """

        def name(rows: FromClause) -> ColumnElement[Any]:
            return json_text(rows.c.metadata, path) if path[0] else rows.c[path[1]]

        def number(rows: FromClause) -> ColumnElement[Any]:
            return func.dense_rank().over(order_by=name(rows)) - 1

        numbers = self.table(scope, condition, number, among=among)
        rows = self._rows(among)
        tests = self._tests(rows, scope, condition, among)
        distinct = select(name(rows).label("name")).where(*tests).distinct().order_by("name")
        listed = select(json_array(distinct.subquery().c.name))
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
        """The keys of memories that differ, or may differ, from what they were at a moment."""
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
        """The seq up to which deletions are forgotten: followers below it must start anew."""
        ((seq,),) = _TOLD_SINCE.fetch(self._connection)
        return int(seq)

    def count(self) -> int:
        """How many live memories there are, in every namespace, now."""
        ((count,),) = _COUNT.fetch(self._connection, expired_by=self._expired_by)
        return int(count)

    def is_whole_store(self, scope: str | None) -> bool:
        """Whether no memory stands outside the scope; three probes of an index."""
        if scope is None:
            return True
        first, last = _below(scope)
        ((is_outside,),) = _OUTSIDE.fetch(self._connection, scope=scope, first=first, last=last)
        return not is_outside

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

        Goes through the memories in the order of their keys until `limit` are found.

        Returns:
            (n,) int64, ascending.
        """
        rows = unindexed(memories, but="key")  # an index would find, and sort, all that match
        tests = [memories.c.key > key, *self._tests(rows, scope, condition)]
        if last is not None:
            tests.append(memories.c.key <= last)
        found = select(memories.c.key).where(*tests).order_by(memories.c.key).limit(limit)
        return read_numbers(self._connection, found)[:, 0]

    def key_ahead(self, key: int, count: int) -> int | None:
        """The key of the memory that comes `count` behind a key; None: there are fewer."""
        found = _AHEAD.fetch(self._connection, key=key, skipped=count - 1)
        return int(found[0][0]) if found else None

    def walk(
        self, scope: str | None, condition: Condition | None, limit: int
    ) -> Iterator[list[tuple[int, Memory]]]:
        """All live memories in a scope that meet a condition, with their keys, `limit` at once."""
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
        """Rows with the columns of `memories`; at a moment, of some keys where any are named."""
        return memories if self._moment is None else rows_at(self._moment, among)

    def _tests(
        self,
        rows: FromClause,
        scope: str | None,
        condition: Condition | None,
        among: SomeKeys | None = None,
    ) -> list[ColumnElement[bool]]:
        tests = [is_live(rows, self._expired_by)]
        if scope is not None:
            first, last = _below(scope)
            name = rows.c.namespace
            tests.append(or_(name == scope, and_(name >= first, name < last)))
        if condition is not None:
            tests.append(condition(rows))
        return tests if among is None else [*tests, rows.c.key.in_(among)]


def _parts(keys: list[int]) -> Iterator[list[int]]:
    for start in range(0, len(keys), _KEYS_A_STATEMENT):
        yield keys[start : start + _KEYS_A_STATEMENT]


def _signals_of(rows: FromClause, source: FromClause | None = None) -> Select[Any]:
    """The signals of rows; `source` is a join of these with others."""
    columns = [rows.c[name] for name in ("key", "created_at", "updated_at", "importance")]
    accessed = func.coalesce(accesses.c.accessed_at, rows.c.created_at)
    source = rows if source is None else source
    joined = source.outerjoin(accesses, accesses.c.memory_key == rows.c.key)
    return select(*columns, rows.c.namespace, accessed).select_from(joined)


def _version_key(rows: FromClause) -> ColumnElement[Any]:
    return func.coalesce(rows.c.version_key, 0)


def _below(scope: str) -> tuple[str, str]:
    """The range of the namespaces below a scope: first (inclusive), last (exclusive)."""
    return f"{scope}/", f"{scope}0"  # "0" comes right behind "/"


_NO_SIGNALS = (0, 0, 0, 0.0, "", 0)
_LIVE = is_live(memories, bindparam("expired_by"))
_COLUMNS = [memories.c[name] for name in COLUMNS]
_BY_ID = Prepared(
    select(*_COLUMNS, memories.c.content_hash).where(memories.c.id == bindparam("id"), _LIVE)
)
_KEYS = list_rows("keys")
_BY_KEYS = Prepared(
    select(*_COLUMNS).join_from(_KEYS, memories, memories.c.key == _KEYS.c.value).where(_LIVE)
)
_SIGNALS = Prepared(_signals_of(memories, _KEYS.join(memories, memories.c.key == _KEYS.c.value)))
_TOLD_SINCE = Prepared(
    select(
        greatest(
            store.c.pruned_seq,
            select(func.coalesce(func.max(spaces.c.pruned_seq), 0)).scalar_subquery(),
        )
    )
)
# Two counts: without WHERE a database may count the pages of its narrowest index.
_ALL = select(func.count()).select_from(memories)
_EXPIRED = _ALL.where(memories.c.expires_at <= bindparam("expired_by"))
_COUNT = Prepared(select(_ALL.scalar_subquery() - _EXPIRED.scalar_subquery()))
_AHEAD = Prepared(
    select(memories.c.key)
    .where(memories.c.key > bindparam("key"))
    .order_by(memories.c.key)
    .limit(1)
    .offset(bindparam("skipped"))
)
_OUTSIDE = Prepared(
    select(
        or_(
            exists().where(memories.c.namespace < bindparam("scope")),
            exists().where(
                memories.c.namespace > bindparam("scope"), memories.c.namespace < bindparam("first")
            ),
            exists().where(memories.c.namespace >= bindparam("last")),
        )
    )
)
