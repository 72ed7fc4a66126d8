"""Browsing: reading, listing and counting memories, and their history.

A page of all memories, or of many, is read in the order of the keys. Where a look at some rows does
not fill it, the keys that match are found once and cached (`kronos.search.key_sets`): the next page
and a count cost what changed meanwhile. A page of the past works the same way.
"""

from __future__ import annotations

import builtins
from collections import OrderedDict
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from kronos.concurrency.forking import Lock
from kronos.errors import NotFoundError
from kronos.search.filters import Where
from kronos.search.key_sets import KeptT, NotAtHand
from kronos.search.matching import Known, Matching
from kronos.search.selection import Selection
from kronos.types import Keys, Memory, Version
from kronos.validation import check_id, check_limit, check_scope, check_time

if TYPE_CHECKING:
    from kronos.repository.memories import Repository
    from kronos.search.key_sets import Asked
    from kronos.serving.session import Session
    from kronos.store.answering.finding import Held


T = TypeVar("T")

_MEMORIES_A_FETCH = 500
_LOOKED_AT = 1000
"""Rows looked at for a page, beyond those that are wanted."""
_ENDS_KEPT = 1000


class Browsing:
    """Reads memories one by one and in pages.

    Args:
        session: the open store.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._ends = _Ends()

    def selection(self, where: Where | None, namespace: str | None) -> Selection:
        """The memories that a call means; None is the store's own namespace."""
        return Selection.of(check_scope(namespace, self._session.options.namespace), where)

    # -- One by one -------------------------------------------------------------------------------

    def find(self, id: str, *, as_of: datetime | None = None) -> Memory | None:
        """Read a memory, or None when no live memory has this id; see `get`."""
        session = self._session
        id = check_id(id)
        with session.reader_of(as_of) as repository:
            memory = repository.find(id)
        if memory is not None and as_of is None and session.settings.track_access:
            session.accesses.note([id])
        return memory

    def get(self, id: str, *, as_of: datetime | None = None) -> Memory:
        """Read a memory.

        Args:
            id: the memory's id.
            as_of: as the store knew it at this moment, timezone-aware; None is now.

        Raises:
            NotFoundError: no live memory has, or had, this id.
        """
        memory = self.find(id, as_of=as_of)
        if memory is None:
            raise NotFoundError(
                f"no memory has the id {id!r}" if as_of is None else f"none had it: {id!r}"
            )
        return memory

    def history(self, id: str) -> builtins.list[Version]:
        """What a memory was, and is, the oldest first.

        A memory that was deleted has its history until `compact`; one that was deleted and added
        again under its id has both.

        Raises:
            NotFoundError: no memory has, or had, this id.
        """
        id = check_id(id)
        with self._session.reader() as repository:
            versions = repository.versions(id)
        if not versions:
            raise NotFoundError(f"no memory has, or had, the id {id!r}")
        return versions

    # -- Key sets ---------------------------------------------------------------------------------

    def _with_sets(self, read: Callable[[Repository, Held], T]) -> T:
        """Read in a transaction; a key set that is not at hand is found before the next try."""
        held: Held = {}
        while True:
            try:
                with self._session.reader() as repository:
                    return read(repository, held)
            except NotAtHand as missing:
                held[missing.asked.name] = self._session.learn(missing.asked)

    def _at_hand(self, repository: Repository, held: Held, asked: Asked[KeptT]) -> KeptT:
        """A key set as it is in a transaction of `_with_sets`, without what has expired."""
        head = repository.head().seq
        known: KeptT | None = held.get(asked.name)
        return self._session.key_sets.at_hand(repository, head, asked, held=known, exact=True)

    # -- Pages and counts -------------------------------------------------------------------------

    def list(
        self,
        *,
        where: Where | None = None,
        namespace: str | None = None,
        after: str | None = None,
        limit: int = 100,
        as_of: datetime | None = None,
    ) -> builtins.list[Memory]:
        """Read memories in the order in which they were added, a page at a time.

        What others add, change or delete meanwhile moves no memory from one page to another.

        Args:
            where: a filter, a dict or built with `F`.
            namespace: this one and all below it; None is the store's own, "*" every one.
            after: the last id of the page before; its memory may be gone meanwhile.
            limit: how many at most.
            as_of: as the store knew them at this moment; None is now.

        Raises:
            NotFoundError: no memory has, or had, the id `after`.
            FilterError: the filter cannot be understood.
        """
        selection = self.selection(where, namespace)
        id = None if after is None else check_id(after, field="after")
        moment, limit = check_time(as_of, field="as_of"), check_limit(limit)
        place = -1 if id is None else self._place_of(id, moment)
        page = self._page(selection, moment, place, limit)
        if page and moment is None:
            key, memory = page[-1]
            self._ends.note(memory.id, key)
        return [memory for _, memory in page]

    def iterate(
        self,
        *,
        where: Where | None = None,
        namespace: str | None = None,
        as_of: datetime | None = None,
    ) -> Iterator[Memory]:
        """Read all memories, in the order in which they were added; arguments as for `list`.

        They are fetched a page at a time, so any number of them needs little memory and blocks no
        writer.
        """
        selection = self.selection(where, namespace)
        check_time(as_of, field="as_of")
        return self._iterate(selection, as_of)

    def _iterate(self, selection: Selection, as_of: datetime | None) -> Iterator[Memory]:
        key = -1
        while part := self.fetch(selection, as_of, key):
            for _, memory in part:
                self._session.serving  # noqa: B018 - a closed store hands out nothing more
                yield memory
            key = part[-1][0]

    def fetch(
        self, selection: Selection, as_of: datetime | None, key: int
    ) -> builtins.list[tuple[int, Memory]]:
        """The next memories behind a key, with their keys."""
        return self._page(selection, check_time(as_of, field="as_of"), key, _MEMORIES_A_FETCH)

    def count(
        self,
        *,
        where: Where | None = None,
        namespace: str | None = None,
        as_of: datetime | None = None,
    ) -> int:
        """Count memories; arguments as for `list`."""
        selection = self.selection(where, namespace)
        moment = check_time(as_of, field="as_of")

        def read(repository: Repository, held: Held) -> int:
            known = self._at_hand(repository, held, _asked(selection, moment))
            return repository.count() if known.keys is None else known.count

        return self._with_sets(read)

    def _page(
        self, selection: Selection, moment: int | None, after: int, limit: int
    ) -> builtins.list[tuple[int, Memory]]:
        """The next memories behind a key, with their keys, in the order in which they came."""

        def read(repository: Repository, held: Held) -> builtins.list[tuple[int, Memory]]:
            rows = repository.as_of(moment)
            place = after
            while True:
                keys = self._keys_behind(repository, held, selection, moment, place, limit)
                found = rows.by_keys(keys)
                if found or not keys.size:
                    return [(key, found[key]) for key in keys.tolist() if key in found]
                place = int(keys[-1])  # the versions of these are deleted meanwhile

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

    def _place_of(self, id: str, moment: int | None) -> int:
        """The key of the memory with which a page ended; it may be deleted by now."""
        key = self._ends.find(id) if moment is None else None
        if key is not None:
            return key
        with self._session.reader() as repository:
            if moment is not None:
                key = repository.as_of(moment).key_of(id)
            key = repository.key_of(id) if key is None else key
        if key is None:
            raise NotFoundError(f"no memory has, or had, the id {id!r}")
        return key

    def keys_of(self, selection: Selection) -> Keys:
        """The keys that a selection means, now."""
        asked = Matching(selection, listed=True)
        known = self._with_sets(lambda repository, held: self._at_hand(repository, held, asked))
        assert known.keys is not None
        return known.keys


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
