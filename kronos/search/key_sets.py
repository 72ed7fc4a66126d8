"""Sets of keys that are cached, and follow the changes of the store.

Which memories match a filter, what the store held at a moment, and which memories form a group are
found once, in a transaction that no search waits for. From then on the sets follow the changes by
seq, as an index does, at a cost that depends on the changes alone. A call that holds a lock takes
only a set that is at hand or a few changes behind (`at_hand`). Others are found before the call
takes the lock (`learn`). `kronos.search.matching` has the questions that sets answer.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np

from kronos.concurrency.forking import Lock
from kronos.index.base import find_positions

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from kronos.repository.memories import Repository
    from kronos.repository.rows import Numbers
    from kronos.types import Keys

_MOST_SETS = 64
_MOST_KEYS = 8_000_000
"""The limits of the cache: sets, and numbers in them all (64 MB). Sets used last stay."""
_FEW = 1000
"""Changes that a set may follow while others wait; a set further behind is learnt before."""
ALONE = -1
"""The group of a memory that is in no group: it forms one by itself."""


class NotAtHand(Exception):
    """A set must be learnt first, while no other call waits."""

    def __init__(self, asked: Asked[Any]) -> None:
        super().__init__()
        self.asked = asked


class Table:
    """Keys, and numbers beside each of them. It never changes.

    Args:
        keys: (n,) int64, ascending.
        beside: (n, columns) int64.
    """

    def __init__(self, keys: Keys, beside: Numbers) -> None:
        self.keys = _read_only(keys)
        self.beside = beside

    @classmethod
    def of(cls, rows: Numbers) -> Table:
        """Make a table of (n, 1 + columns) rows: a key first, ascending, then its numbers."""
        return cls(rows[:, 0].copy(), rows[:, 1:].copy())

    def revised(self, gone: Keys, rows: Numbers) -> Table:
        """This table without some keys and with other rows; itself if nothing changes.

        Args:
            gone: (n,) in any order.
            rows: as `of` takes them, none with a key that stays.
        """
        positions = find_positions(self.keys, np.unique(gone))[0]
        before = np.column_stack([self.keys[positions], self.beside[positions]])
        if np.array_equal(before, rows):
            return self
        keys, beside = np.delete(self.keys, positions), np.delete(self.beside, positions, axis=0)
        # A merge: sorting all keys again takes much longer.
        places = np.searchsorted(keys, rows[:, 0])
        return Table(np.insert(keys, places, rows[:, 0]), np.insert(beside, places, rows[:, 1:], 0))

    # The columns of a past moment are described in `Rows.known_then`.

    @cached_property
    def held(self) -> Keys:
        """Keys whose text is still the one of the moment, ascending."""
        return _read_only(self.keys[self.beside[:, 1] == 1])

    @cached_property
    def present(self) -> Keys:
        """Keys whose row is still the one of the moment, ascending."""
        return _read_only(self.keys[self.beside[:, 0] == 0])

    @cached_property
    def past(self) -> tuple[Keys, Keys]:
        """The other keys: those of their versions, ascending, and their own."""
        changed = self.beside[:, 0] != 0
        order = np.argsort(self.beside[changed, 0])
        return self.beside[changed, 0][order], self.keys[changed][order]


@dataclass(frozen=True, slots=True, eq=False)
class KeySet:
    """Keys as they were at a seq."""

    table: Table | None
    """None: every memory."""
    seq: int
    expired_by: int
    """Memories that had expired by then are not in the set; others may have expired since."""
    groups: dict[str, int] | None = None
    """The numbers of groups, by name; None if the set has no groups."""

    @property
    def size(self) -> int:
        """How many numbers the set holds."""
        return 0 if self.table is None else self.table.keys.size + self.table.beside.size

    @property
    def keys(self) -> Keys | None:
        """(n,) int64, ascending; None for every memory."""
        return None if self.table is None else self.table.keys

    @property
    def count(self) -> int:
        """How many keys the set has; 0 for every memory."""
        return 0 if self.table is None else self.table.keys.size

    def leading(self, keys: Keys) -> NDArray[np.bool_]:
        """Which of some keys are in the set, and the first of their group among these keys.

        Args:
            keys: (n,) in the order that decides who is first.
        """
        assert self.table is not None
        positions, leading = find_positions(self.table.keys, keys)
        if self.groups is None:
            return leading
        groups = self.table.beside[positions, 0]
        first = groups == ALONE
        first[np.unique(groups, return_index=True)[1]] = True
        leading[leading] = first
        return leading

    def others(self, keys: Keys) -> Keys:
        """The keys of the set, without some keys and all keys in a group with them: ascending."""
        assert self.table is not None
        if self.groups is None:
            return self.table.keys
        positions = find_positions(self.table.keys, keys)[0]
        groups = self.table.beside[:, 0]
        seen = np.zeros(len(self.groups) + 1, np.bool_)  # the last one belongs to `ALONE`
        seen[groups[positions]] = True
        seen[ALONE] = False
        left = ~seen[groups]
        left[positions] = False
        return self.table.keys[left]


class Kept(Protocol):
    """A value that `KeySets` caches."""

    @property
    def seq(self) -> int:
        """The seq of its state."""

    @property
    def size(self) -> int:
        """How many numbers it holds."""


KeptT = TypeVar("KeptT", bound=Kept)


class Asked(Protocol[KeptT]):
    """A question whose answer is cached: it finds the answer, and follows the changes."""

    @property
    def name(self) -> Hashable:
        """Equal for equal questions, and for no others."""

    @property
    def moment(self) -> int | None:
        """The moment of the answer, in microseconds since 1970 UTC; None: now."""

    def find(self, repository: Repository, sets: KeySets) -> KeptT:
        """Find the answer from the start, however long it takes."""

    def follow(self, repository: Repository, sets: KeySets, known: KeptT, head: int) -> KeptT:
        """Bring a known answer up to the seq of the transaction."""


class KeySets:
    """A cache of the sets that were used last. Threads may share it."""

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
        """Return a cached set, brought up to the seq of a transaction.

        Args:
            repository: in the transaction.
            head: the seq of the transaction.
            asked: the question.
            held: what `learn` returned for the question a moment ago.
            exact: leave out memories that have expired meanwhile.

        Raises:
            NotAtHand: the set is unknown, or has too many changes to follow: `learn` it first.
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
        """Find a set, or bring it up to date; it is exact. No other call waits for this one.

        Args:
            repository: in a transaction of its own.
            asked: the question.
        """
        head = repository.head().seq
        known: Any = self._get(asked)
        # A restored database has other rows at the seqs that the set has seen.
        if known is None or not repository.told_since() <= known.seq <= head:
            return self._put(asked, asked.find(repository, self))
        try:
            found = asked.follow(repository, self, known, head)
        except NotAtHand:
            found = asked.find(repository, self)
        exact: KeptT = _exact(repository, asked, found)
        return self._put(asked, exact)

    def turn(self, asked: Asked[Any]) -> Lock:
        """The lock that a thread holds to learn a set, so that several threads find it once."""
        with self._lock:
            return self._turns.setdefault(asked.name, Lock())

    def knows(self, asked: Asked[Any]) -> bool:
        """Whether the answer to a question is cached."""
        return asked.name in self._sets

    def forget(self, asked: Asked[Any]) -> None:
        """Drop the answer to a question, so that it is found again."""
        with self._lock:
            self._sets.pop(asked.name, None)

    def _get(self, asked: Asked[Any]) -> Kept | None:
        name = asked.name  # outside the lock: the name of a large filter takes long to make
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
    """A set without the memories that have expired meanwhile; sets of the past do not change."""
    if asked.moment is not None or known.table is None or known.expired_by >= repository.expired_by:
        return known
    gone = repository.expired_since(known.expired_by)
    none = np.empty((0, 1 + known.table.beside.shape[1]), np.int64)
    table = known.table.revised(gone, none) if gone.size else known.table
    return replace(known, table=table, expired_by=repository.expired_by)


def _read_only(keys: Keys) -> Keys:
    keys.flags.writeable = False  # an index remembers the positions of the keys of a set
    return keys
