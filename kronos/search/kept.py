"""Which memories a call means, kept from call to call.

What a filter matches, what the store held at a moment, and which memories form a group are found
once, in a transaction that no search waits for. From then on they follow the changes by seq, as an
index does, and cost what changed. Whoever holds a lock takes only what is at hand, or a few changes
away (`at_hand`), and has the rest found before it takes the lock (`learn`).
"""

from __future__ import annotations

import json
import weakref
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np

from kronos.concurrency.forking import Lock
from kronos.db.numbers import read_numbers
from kronos.index.base import find_positions
from kronos.repository.rows import NO_GROUP
from kronos.search.plan import EVERY_MEMORY

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from kronos.repository.memories import Repository
    from kronos.repository.rows import Numbers, SomeKeys
    from kronos.search.plan import Selection
    from kronos.types import Keys

_MOST_SETS = 64
_MOST_KEYS = 8_000_000
"""So many sets, and numbers in them all (64 MB), are kept; those used last."""
_FEW = 1000
"""So many changes are followed while others wait; who is further behind does so beforehand."""
_ALONE = -1
"""The group of a memory that is in none: it is one by itself."""


_numbering = Lock()


class NotAtHand(Exception):
    """A set is to be found first, while nobody waits."""

    def __init__(self, asked: Asked[Any]) -> None:
        super().__init__()
        self.asked = asked


class Table:
    """Keys, and numbers beside each of them; never changed.

    Args:
        keys: (n,) int64, ascending.
        beside: (n, columns) int64.
    """

    def __init__(self, keys: Keys, beside: Numbers) -> None:
        self.keys = _fixed(keys)
        self.beside = beside

    @classmethod
    def of(cls, rows: Numbers) -> Table:
        """Of rows of a key and what stands beside it, ascending."""
        return cls(rows[:, 0].copy(), rows[:, 1:].copy())

    def revised(self, gone: Keys, rows: Numbers) -> Table:
        """The same without some keys, and with other rows; itself where nothing comes of that."""
        positions = find_positions(self.keys, np.unique(gone))[0]
        before = np.column_stack([self.keys[positions], self.beside[positions]])
        if np.array_equal(before, rows):
            return self
        keys, beside = np.delete(self.keys, positions), np.delete(self.beside, positions, axis=0)
        # A merge: to sort half a million keys anew takes 217 ms.
        places = np.searchsorted(keys, rows[:, 0])
        return Table(np.insert(keys, places, rows[:, 0]), np.insert(beside, places, rows[:, 1:], 0))

    # Of what was known at a moment; see `Rows.known_then`.

    @cached_property
    def held(self) -> Keys:
        """Those whose text is the one of today, ascending."""
        return _fixed(self.keys[self.beside[:, 1] == 1])

    @cached_property
    def present(self) -> Keys:
        """Those whose row is the one of today, ascending."""
        return _fixed(self.keys[self.beside[:, 0] == 0])

    @cached_property
    def past(self) -> tuple[Keys, Keys]:
        """The others: the keys of their versions, ascending, and their own."""
        then = self.beside[:, 0] != 0
        order = np.argsort(self.beside[then, 0])
        return self.beside[then, 0][order], self.keys[then][order]


@dataclass(frozen=True, slots=True, eq=False)
class KeySet:
    """Keys as they were at a seq."""

    table: Table | None
    """None: every memory."""
    seq: int
    expired_by: int
    """What has expired until then is not in it; some may have since."""
    groups: dict[str, int] | None = None
    """The numbers of groups, by their names."""

    @property
    def size(self) -> int:
        """How many numbers there are to keep."""
        return 0 if self.table is None else self.table.keys.size + self.table.beside.size

    @property
    def keys(self) -> Keys | None:
        """(n,) int64, ascending; None for every memory."""
        return None if self.table is None else self.table.keys

    @property
    def count(self) -> int:
        """How many keys there are; 0 for every memory."""
        return 0 if self.table is None else self.table.keys.size

    def leading(self, keys: Keys) -> NDArray[np.bool_]:
        """Which of some keys, in their order, are in the set, and the first of their group."""
        assert self.table is not None
        positions, leading = find_positions(self.table.keys, keys)
        if self.groups is None:
            return leading
        groups = self.table.beside[positions, 0]
        first = groups == _ALONE
        first[np.unique(groups, return_index=True)[1]] = True
        leading[leading] = first
        return leading

    def others(self, keys: Keys) -> Keys:
        """All that are not among some keys, nor in a group with one of them: ascending."""
        assert self.table is not None
        if self.groups is None:
            return self.table.keys
        positions = find_positions(self.table.keys, keys)[0]
        groups = self.table.beside[:, 0]
        seen = np.zeros(len(self.groups) + 1, np.bool_)  # the last one is that of `_ALONE`
        seen[groups[positions]] = True
        seen[_ALONE] = False
        left = ~seen[groups]
        left[positions] = False
        return self.table.keys[left]


class Kept(Protocol):
    """What is kept."""

    @property
    def seq(self) -> int:
        """Of which seq it is."""

    @property
    def size(self) -> int:
        """How many numbers there are to keep."""


KeptT = TypeVar("KeptT", bound=Kept)


class Asked(Protocol[KeptT]):
    """What is asked for: it finds it anew, and follows the changes."""

    @property
    def name(self) -> Hashable:
        """What tells it from others."""

    @property
    def moment(self) -> int | None:
        """The moment that it is of, in microseconds since 1970 UTC; None: now."""

    def find(self, repository: Repository, sets: KeySets) -> KeptT:
        """Find it, however long it takes."""

    def follow(self, repository: Repository, sets: KeySets, known: KeptT, head: int) -> KeptT:
        """Bring what is known up to the transaction's seq."""


@dataclass(slots=True)
class Matching:
    """The memories that a selection means, as they are."""

    selection: Selection
    listed: bool = False
    """Also where every memory is meant: their keys."""

    moment = None

    @property
    def name(self) -> Hashable:
        """See `Asked`."""
        # Under a filter they are listed anyhow.
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
        """The rows of some keys, of those that are meant."""
        return repository.table(self.selection.scope, self.selection.condition, among=changed)


@dataclass(frozen=True, slots=True)
class Known:
    """The memories that a selection meant at a moment; see `Rows.known_then`.

    What the store held then is what it holds now, but for what was changed since.
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
        """The rows of some keys, of those that were meant."""
        scope, condition = self.selection.scope, self.selection.condition
        return repository.as_of(self.moment).known_then(scope, condition, changed)


@dataclass(frozen=True, slots=True)
class Grouped:
    """The memories that a selection means, or meant at a moment, and the group of each."""

    selection: Selection
    moment: int | None
    path: tuple[str, ...]
    """As `kronos.search.answer.group_path` gives it."""

    @property
    def name(self) -> Hashable:
        """See `Asked`."""
        return ("grouped", *self.selection.name, self.moment, self.path)

    def find(self, repository: Repository, sets: KeySets) -> KeySet:
        """See `Asked`."""
        none = KeySet(None, repository.head().seq, repository.expired_by, {})
        return replace(none, table=Table.of(self.rows(repository, None, none)))

    def follow(self, repository: Repository, sets: KeySets, known: KeySet, head: int) -> KeySet:
        """See `Asked`."""
        return _revised(self, repository, known, head)

    def rows(self, repository: Repository, changed: SomeKeys | None, known: KeySet) -> Numbers:
        """The rows of some keys, all if none are named: key and group."""
        assert known.groups is not None
        rows = repository if self.moment is None else repository.as_of(self.moment)
        scope, condition = self.selection.scope, self.selection.condition
        found, names = rows.groups(scope, condition, self.path, changed)
        with _numbering:
            known_as = [_group(_normal(name, self.path), known.groups) for name in names]
        found[:, 1] = np.array(known_as, np.int64)[found[:, 1]]
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
    """The name of a group; objects are equal whatever the order of their keys."""
    if name is None or name == NO_GROUP or not path[0]:
        return None if name == NO_GROUP and path[0] else name
    if not name.startswith(("[{", "[[")):
        return name
    return json.dumps(json.loads(name)[0], sort_keys=True)


def _group(name: str | None, known: dict[str, int]) -> int:
    return _ALONE if name is None else known.setdefault(name, len(known))


def _fixed(keys: Keys) -> Keys:
    keys.flags.writeable = False  # an index remembers where the keys of one set lie
    return keys


class KeySets:
    """The sets that were asked for last. Threads may share it."""

    def __init__(self) -> None:
        self._sets: OrderedDict[Hashable, Kept] = OrderedDict()
        self._turns: weakref.WeakValueDictionary[Hashable, Lock] = weakref.WeakValueDictionary()
        self._lock = Lock()

    def at_hand(
        self,
        repository: Repository,
        head: int,
        asked: Asked[KeptT],
        *,
        held: KeptT | None = None,
        exact: bool = False,
    ) -> KeptT:
        """What is known, brought up to a transaction's seq.

        Args:
            repository: over the transaction.
            head: its seq.
            asked: what is wanted.
            held: what `learn` gave for it a moment ago.
            exact: leave out what has expired meanwhile.

        Raises:
            NotAtHand: it is not known, or there is much to follow: `learn` it first.
        """
        known: Any = self._get(asked) if held is None else held
        if known is None:
            raise NotAtHand(asked)
        if known.seq != head:
            is_far = held is None and head - known.seq > _FEW
            if is_far or not repository.told_since() <= known.seq < head:
                raise NotAtHand(asked)
            known = self._put(asked, asked.follow(repository, self, known, head))
        if exact:
            known = self._put(asked, _exact(repository, asked, known))
        found: KeptT = known
        return found

    def learn(self, repository: Repository, asked: Asked[KeptT]) -> KeptT:
        """Find what is asked for, or follow it, in a transaction that nobody waits for; exact."""
        head = repository.head().seq
        known: Any = self._get(asked)
        # A database that was put back has other rows at the seqs that were seen.
        if known is None or not repository.told_since() <= known.seq <= head:
            return self._put(asked, asked.find(repository, self))
        try:
            found = asked.follow(repository, self, known, head)
        except NotAtHand:
            found = asked.find(repository, self)
        exact: KeptT = _exact(repository, asked, found)
        return self._put(asked, exact)

    def turn(self, asked: Asked[Any]) -> Lock:
        """Whoever learns holds it: what several threads ask for at once is found once."""
        with self._lock:
            return self._turns.setdefault(asked.name, Lock())

    def knows(self, asked: Asked[Any]) -> bool:
        """Whether it was found before, and is kept."""
        return asked.name in self._sets

    def forget(self, asked: Asked[Any]) -> None:
        """Have it found anew."""
        with self._lock:
            self._sets.pop(asked.name, None)

    def _get(self, asked: Asked[Any]) -> Kept | None:
        name = asked.name  # of a large filter it takes long to tell
        with self._lock:
            known = self._sets.get(name)
            if known is not None:
                self._sets.move_to_end(name)
            return known

    def _put(self, asked: Asked[KeptT], found: KeptT) -> KeptT:
        name = asked.name
        with self._lock:
            if self._sets.get(name) is not found:
                self._sets[name] = found
                self._sets.move_to_end(name)
                self._evict()
        return found

    def _evict(self) -> None:
        size = sum(each.size for each in self._sets.values())
        while len(self._sets) > 1 and (len(self._sets) > _MOST_SETS or size > _MOST_KEYS):
            size -= self._sets.popitem(last=False)[1].size


def _exact(repository: Repository, asked: Asked[Any], known: Any) -> Any:
    """Without what has expired meanwhile; what was known at a moment stays."""
    if asked.moment is not None or known.table is None or known.expired_by >= repository.expired_by:
        return known
    gone = repository.expired_since(known.expired_by)
    none = np.empty((0, 1 + known.table.beside.shape[1]), np.int64)
    table = known.table.revised(gone, none) if gone.size else known.table
    return replace(known, table=table, expired_by=repository.expired_by)
