"""Lists, counts and deletes: which memories a call means, and how they are gone through.

A page of all memories, or of many, is read in the order of the keys. Where a look at some rows does
not fill it, the keys that match are found once, and kept (`kronos.search.kept`); the next page, and
a count, cost what changed meanwhile. So does a page of the past.
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from kronos.concurrency.forking import Lock
from kronos.concurrency.pacing import in_parts
from kronos.errors import NotFoundError
from kronos.search.kept import KeptT, Known, Matching, NotAtHand
from kronos.serving.group_commit import MOST_ROWS
from kronos.store.maintenance import Upkeep

if TYPE_CHECKING:
    from kronos.repository.memories import Repository
    from kronos.search.kept import Asked
    from kronos.search.plan import Selection
    from kronos.store.finding import Held
    from kronos.types import Keys, Memory


T = TypeVar("T")

_LOOKED_AT = 1000
"""So many rows, beyond those that are wanted, are looked at for a page."""
_ENDS_KEPT = 1000


class Reading(Upkeep):
    """How memories are listed and counted; `MemoryStore` is the class to use."""

    @functools.cached_property
    def _ends(self) -> _Ends:
        return _Ends()

    # -- What is kept ----------------------------------------------------------------------------

    def _learn(self, asked: Asked[KeptT]) -> KeptT:
        """Find what is asked for in a transaction of its own; several threads find it once."""
        with self._key_sets.turn(asked), self._reader() as repository:
            return self._key_sets.learn(repository, asked)

    def _with_sets(self, read: Callable[[Repository, Held], T]) -> T:
        """Read in a transaction; what is not at hand in it is learnt before it is tried again."""
        held: Held = {}
        while True:
            try:
                with self._reader() as repository:
                    return read(repository, held)
            except NotAtHand as missing:
                held[missing.asked.name] = self._learn(missing.asked)

    def _at_hand(self, repository: Repository, held: Held, asked: Asked[KeptT]) -> KeptT:
        """What is asked for, as it is in a transaction of `_with_sets`; what has expired is out."""
        head = repository.head().seq
        known: KeptT | None = held.get(asked.name)
        return self._key_sets.at_hand(repository, head, asked, held=known, exact=True)

    # -- Pages and counts ------------------------------------------------------------------------

    def _page(
        self, selection: Selection, moment: int | None, after: int, limit: int
    ) -> list[tuple[int, Memory]]:
        """The next memories behind a key, with their keys, in the order in which they came."""

        def read(repository: Repository, held: Held) -> list[tuple[int, Memory]]:
            rows = repository if moment is None else repository.as_of(moment)
            place = after
            while True:
                keys = self._keys_behind(repository, held, selection, moment, place, limit)
                found = rows.by_keys(keys)
                if found or not keys.size:
                    return [(key, found[key]) for key in keys.tolist() if key in found]
                place = int(keys[-1])  # what these were is being forgotten just now

        return self._with_sets(read)

    def _keys_behind(
        self,
        repository: Repository,
        held: Held,
        selection: Selection,
        moment: int | None,
        after: int,
        limit: int,
    ) -> Keys:
        scope, condition = selection.scope, selection.condition
        if moment is None:
            last = repository.key_ahead(after, limit + _LOOKED_AT)
            keys = repository.behind(after, scope, condition, limit, last=last)
            if keys.size == limit or last is None:
                return keys
        known = self._at_hand(repository, held, _asked(selection, moment)).keys
        if known is None:  # what has expired was in the way
            return repository.behind(after, None, None, limit)
        start = int(np.searchsorted(known, after, "right"))
        return known[start : start + limit]

    def _list(
        self, selection: Selection, moment: int | None, after: str | None, limit: int
    ) -> list[Memory]:
        """A page, from behind the memory with which another one ended."""
        place = -1 if after is None else self._place_of(after, moment)
        page = self._page(selection, moment, place, limit)
        if page and moment is None:
            key, memory = page[-1]
            self._ends.note(memory.id, key)
        return [memory for _, memory in page]

    def _place_of(self, id: str, moment: int | None) -> int:
        """The key of a memory with which a page ended, be it gone by now."""
        key = self._ends.find(id) if moment is None else None
        if key is not None:
            return key
        with self._reader() as repository:
            if moment is not None:
                key = repository.as_of(moment).key_of(id)
            key = repository.key_of(id) if key is None else key
        if key is None:
            raise NotFoundError(f"no memory has, or had, the id {id!r}")
        return key

    def _count(self, selection: Selection, moment: int | None) -> int:
        def read(repository: Repository, held: Held) -> int:
            known = self._at_hand(repository, held, _asked(selection, moment))
            return repository.count() if known.keys is None else known.count

        return self._with_sets(read)

    def _keys_of(self, selection: Selection) -> Keys:
        """The keys that a selection means, now."""
        asked = Matching(selection, listed=True)
        known = self._with_sets(lambda repository, held: self._at_hand(repository, held, asked))
        assert known.keys is not None
        return known.keys

    # -- Deletes ---------------------------------------------------------------------------------

    def _delete_matching(self, selection: Selection) -> int:
        """Delete what a selection means, and still means when its turn comes; how many."""
        scope, condition = selection.scope, selection.condition

        def delete(keys: Keys) -> int:
            return self._write(
                lambda repository: repository.delete_keys(keys, scope, condition), rows=MOST_ROWS
            )

        return in_parts(self._keys_of(selection), delete)

    def _delete_ids(self, ids: Sequence[str]) -> int:
        def delete(part: Sequence[str]) -> int:
            return self._write(lambda repository: repository.delete_ids(part), rows=len(part))

        return in_parts(ids, delete)


def _asked(selection: Selection, moment: int | None) -> Matching | Known:
    return Matching(selection) if moment is None else Known(selection, moment)


class _Ends:
    """Where the last pages ended: the keys of their last memories, by id.

    An id that was deleted and came back stands at the end of all; who read a page that ended with
    it goes on where it was.
    """

    def __init__(self) -> None:
        self._keys: OrderedDict[str, int] = OrderedDict()
        self._lock = Lock()

    def note(self, id: str, key: int) -> None:
        """Remember where a page ended."""
        with self._lock:
            self._keys[id] = key
            self._keys.move_to_end(id)
            if len(self._keys) > _ENDS_KEPT:
                self._keys.popitem(last=False)

    def find(self, id: str) -> int | None:
        """Where the last page that ended with this memory did so."""
        with self._lock:
            return self._keys.get(id)
