"""The questions that cached sets of keys answer: which memories match, now or at a moment.

See `kronos.search.key_sets` for how answers are found, cached, and follow the changes.
"""

from __future__ import annotations

import json
from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from kronos.concurrency.forking import Lock
from kronos.db.numbers import read_numbers
from kronos.repository.rows import NO_GROUP
from kronos.search.key_sets import ALONE, KeySet, KeySets, NotAtHand, Table
from kronos.search.selection import EVERY_MEMORY

if TYPE_CHECKING:
    from kronos.repository.memories import Repository
    from kronos.repository.rows import Numbers, SomeKeys
    from kronos.search.selection import Selection

_numbering = Lock()
"""Held while groups get their numbers."""


@dataclass(slots=True)
class Matching:
    """The memories of a selection, as they are."""

    selection: Selection
    listed: bool = False
    """List the keys also if the selection is every memory of the store."""

    moment = None

    @property
    def name(self) -> Hashable:
        """See `Asked`."""
        # With a filter the keys are always listed.
        return ("matching", *self.selection.name, self.listed and self.selection.filter is None)

    def find(self, repository: Repository, sets: KeySets) -> KeySet:
        """See `Asked`."""
        scope, condition = self.selection.scope, self.selection.condition
        seq, expired_by = repository.head().seq, repository.expired_by
        if not self.listed and condition is None and repository.is_whole_store(scope):
            return KeySet(None, seq, expired_by)
        return KeySet(Table.of(repository.table(scope, condition)), seq, expired_by)

    def follow(self, repository: Repository, sets: KeySets, known: KeySet, head: int) -> KeySet:
        """See `Asked`."""
        if known.table is None:
            if not repository.is_whole_store(self.selection.scope):
                raise NotAtHand(self)
            return replace(known, seq=head)
        return _revised(self, repository, known, head)

    def rows(self, repository: Repository, changed: SomeKeys, known: KeySet) -> Numbers:
        """The rows of the changed memories that are in the selection."""
        return repository.table(self.selection.scope, self.selection.condition, among=changed)


@dataclass(frozen=True, slots=True)
class Known:
    """The memories of a selection at a moment; see `Rows.known_then`.

    The store held then what it holds now, except for what has changed since.
    """

    selection: Selection
    moment: int
    """Microseconds since 1970 UTC."""

    @property
    def name(self) -> Hashable:
        """See `Asked`."""
        return ("known", *self.selection.name, self.moment)

    def find(self, repository: Repository, sets: KeySets) -> KeySet:
        """See `Asked`."""
        today = sets.learn(repository, Matching(self.selection))
        if today.table is None:
            today = sets.learn(repository, Matching(EVERY_MEMORY, listed=True))
        assert today.table is not None
        keys = today.table.keys
        unchanged = np.column_stack([np.zeros_like(keys), np.ones_like(keys)])
        changed = repository.differences(self.moment)
        gone = read_numbers(repository.connection, changed)[:, 0]
        table = Table(keys, unchanged).revised(gone, self.rows(repository, changed, today))
        return KeySet(table, today.seq, today.expired_by)

    def follow(self, repository: Repository, sets: KeySets, known: KeySet, head: int) -> KeySet:
        """See `Asked`."""
        return _revised(self, repository, known, head)

    def rows(self, repository: Repository, changed: SomeKeys, known: KeySet) -> Numbers:
        """The rows of the changed memories that were in the selection."""
        scope, condition = self.selection.scope, self.selection.condition
        return repository.as_of(self.moment).known_then(scope, condition, changed)


@dataclass(frozen=True, slots=True)
class Grouped:
    """The memories of a selection, now or at a moment, and the group of each."""

    selection: Selection
    moment: int | None
    path: tuple[str, ...]
    """As `kronos.search.candidates.group_path` returns it."""

    @property
    def name(self) -> Hashable:
        """See `Asked`."""
        return ("grouped", *self.selection.name, self.moment, self.path)

    def find(self, repository: Repository, sets: KeySets) -> KeySet:
        """See `Asked`."""
        empty = KeySet(None, repository.head().seq, repository.expired_by, {})
        return replace(empty, table=Table.of(self.rows(repository, None, empty)))

    def follow(self, repository: Repository, sets: KeySets, known: KeySet, head: int) -> KeySet:
        """See `Asked`."""
        return _revised(self, repository, known, head)

    def rows(self, repository: Repository, changed: SomeKeys | None, known: KeySet) -> Numbers:
        """The rows of the changed memories, or of all: (n, 2) key and group."""
        assert known.groups is not None
        rows = repository.as_of(self.moment)
        scope, condition = self.selection.scope, self.selection.condition
        found, names = rows.groups(scope, condition, self.path, changed)
        with _numbering:
            numbers = [_number(_normal(name, self.path), known.groups) for name in names]
        found[:, 1] = np.array(numbers, np.int64)[found[:, 1]]
        return found


def _revised(
    asked: Matching | Known | Grouped, repository: Repository, known: KeySet, head: int
) -> KeySet:
    assert known.table is not None
    changed = repository.changes(known.seq)
    gone = read_numbers(repository.connection, changed)[:, 0]
    if not gone.size:
        return replace(known, seq=head)
    rows = asked.rows(repository, changed, known)
    return replace(known, seq=head, table=known.table.revised(gone, rows))


def _normal(name: str | None, path: tuple[str, ...]) -> str | None:
    """The name of a group; objects have one name whatever the order of their keys."""
    if name is None or name == NO_GROUP or not path[0]:
        return None if name == NO_GROUP and path[0] else name
    if not name.startswith(("[{", "[[")):
        return name
    return json.dumps(json.loads(name)[0], sort_keys=True)


def _number(name: str | None, known: dict[str, int]) -> int:
    return ALONE if name is None else known.setdefault(name, len(known))
