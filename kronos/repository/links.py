"""Links between memories, and where they lead: neighbours, ancestors, descendants.

`Links` works over one open transaction, as `Repository` does. A link goes from one memory to
another, in whatever namespaces they are, with a relation and a weight; between two memories there
is one link of a relation in one direction. A memory's parent is its ancestor, and so is the source
of a link that leads to it. Only live memories are found, and walks do not pass through others.
A walk goes level by level, with one statement for a step in one direction; its cost is bounded by
the memories and links that it reaches, also where links form circles.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

from sqlalchemy import (
    CompoundSelect,
    Connection,
    Select,
    and_,
    bindparam,
    case,
    delete,
    insert,
    literal,
    null,
    select,
    union_all,
    update,
)

from kronos.db.sql import list_parameter
from kronos.db.statements import Prepared
from kronos.db.tables import links, memories
from kronos.errors import InputError, NotFoundError
from kronos.repository.memory_rows import is_live
from kronos.types import Link
from kronos.validation import check_limit, check_number, to_datetime

Direction: TypeAlias = Literal["ancestors", "descendants", "both"]
PARENT = "parent"
"""The relation of a step from a memory to its parent, or back."""
MAX_RELATION = 200
"""Characters of a relation."""


@dataclass(frozen=True, slots=True)
class Reached:
    """A memory that a walk reached."""

    key: int
    depth: int
    """The fewest steps that lead there from the start, at least 1."""
    relation: str
    """Of the last step: "parent", or a link's relation."""
    from_id: str
    """The id of the memory before it on the path."""


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A memory near a given one."""

    key: int
    weight: float
    """The product of the weights on the best path to it, 0..1."""
    seed: int
    """The key at which that path begins."""
    hops: int
    """The length of that path."""


_Step: TypeAlias = tuple[int, str, int, str | None, float]
"""A step from one memory to another, by a link or between parent and child: the key and the id of
the first one, the key of the second one, the relation (None between parent and child), the weight
(0..1)."""


class Links:
    """The links, over one open transaction.

    Args:
        connection: in a transaction.
        now: the time, in microseconds since 1970 UTC.
        expired_by: memories that expired until then are gone.
    """

    def __init__(self, connection: Connection, now: int, expired_by: int) -> None:
        self._connection = connection
        self._now = now
        self._expired_by = expired_by

    # -- Writing --------------------------------------------------------------------------------

    def add(self, source_id: str, target_id: str, relation: str, weight: float = 1.0) -> None:
        """Link a memory to another one; an existing link of this relation gets the weight.

        Raises:
            NotFoundError: one of them is no live memory.
            InputError: they are the same memory, or the relation or the weight is refused.
        """
        relation = check_relation(relation)
        weight = check_number(weight, field="weight")
        ends = {
            "source_key": self._key_of(source_id, "the source of the link"),
            "target_key": self._key_of(target_id, "the target of the link"),
            "relation": relation,
        }
        if ends["source_key"] == ends["target_key"]:
            raise InputError(
                f"a link leads from one memory to another, not from {source_id!r} to itself",
                field="target_id",
            )
        its = and_(*(links.c[name] == value for name, value in ends.items()))
        if not self._connection.execute(update(links).where(its).values(weight=weight)).rowcount:
            row = {**ends, "weight": weight, "created_at": self._now}
            self._connection.execute(insert(links).values(row))

    def remove(self, source_id: str, target_id: str, relation: str | None = None) -> int:
        """Remove a link, or with no relation all links from one memory to the other.

        Returns:
            How many; 0 also when one of the memories does not exist.
        """
        ends = [
            column == select(memories.c.key).where(memories.c.id == id).scalar_subquery()
            for column, id in ((links.c.source_key, source_id), (links.c.target_key, target_id))
        ]
        statement = delete(links).where(*ends)
        if relation is not None:
            statement = statement.where(links.c.relation == check_relation(relation))
        return self._connection.execute(statement).rowcount

    # -- Reading --------------------------------------------------------------------------------

    def of(self, id: str) -> list[Link]:
        """The links from and to a live memory whose other end is live.

        Returns:
            Those from it, then those to it; the oldest first.

        Raises:
            NotFoundError: no live memory has this id.
        """
        key = self._key_of(id)
        rows = self._connection.execute(_OF, {"key": key, "expired_by": self._expired_by}).all()
        return [
            Link(
                id if row.outgoing else row.other,
                row.other if row.outgoing else id,
                row.relation,
                row.weight,
                to_datetime(row.created_at),
            )
            for row in rows
        ]

    def trace(self, id: str, direction: Direction, depth: int) -> list[Reached]:
        """Find the memories that a live memory comes from, or that came of it.

        Args:
            id: where the walk begins; it is not among those found.
            direction: "ancestors" goes to parents and to the sources of links; "descendants" to
                children and to the targets of links; "both" makes the two walks, each of which
                keeps its direction.
            depth: how many steps at most.

        Returns:
            Each memory once, at its smallest depth; ordered by depth, then from the oldest on.

        Raises:
            NotFoundError: no live memory has this id.
            InputError: the direction or the depth is refused.
        """
        if direction not in get_args(Direction):
            raise InputError(
                f"direction must be one of {', '.join(get_args(Direction))}, not {direction!r}",
                field="direction",
            )
        depth = check_limit(depth, field="depth")
        start = self._key_of(id)
        if direction != "both":
            return self._walk(start, depth, down=direction == "descendants")
        found = {reached.key: reached for reached in self._walk(start, depth, down=False)}
        for reached in self._walk(start, depth, down=True):
            known = found.get(reached.key)
            if known is None or reached.depth < known.depth:
                found[reached.key] = reached
        return sorted(found.values(), key=lambda reached: (reached.depth, reached.key))

    def _walk(self, start: int, depth: int, *, down: bool) -> list[Reached]:
        """A breadth-first walk: of equal last steps a parent's counts, then the oldest memory's."""
        level, hop, seen = [start], 0, {start}
        found: list[Reached] = []
        while level and hop < depth:
            hop += 1
            best: dict[int, tuple[bool, int, str, str]] = {}
            for from_key, from_id, key, relation, _ in self._steps(level, down=down):
                step = relation is not None, from_key, relation or PARENT, from_id
                if key not in seen and (key not in best or step < best[key]):
                    best[key] = step
            level = sorted(best)
            seen.update(level)
            found += [Reached(key, hop, *best[key][2:]) for key in level]
        return found

    def neighbours(self, keys: Sequence[int], hops: int, limit: int) -> list[Neighbour]:
        """Find the live memories near some others, by links and parents in either direction.

        A step along a link counts its weight, clipped to 0..1, and one between parent and child 1.
        Each hop goes on from the best `limit` memories of the one before: no step makes a path
        better, so the result is the same as without that bound.

        Args:
            keys: where the paths begin, the most important first; none of them is found.
            hops: how many steps at most.
            limit: how many memories at most.

        Returns:
            The best weight first; of equal ones the fewest hops, then the first of `keys`.

        Raises:
            InputError: hops or limit is refused.
        """
        hops, limit = check_limit(hops, field="hops"), check_limit(limit, field="limit")
        ranks = {int(key): rank for rank, key in reversed([*enumerate(keys)])}
        best: dict[int, Neighbour] = {}
        level = [Neighbour(key, 1.0, key, 0) for key in ranks]
        for hop in range(1, hops + 1):
            reached = self._one_hop(level, hop, ranks, limit)
            # A memory that was reached before on a path as good leads to nothing new.
            level = [n for n in reached if n.key not in best or best[n.key].weight < n.weight]
            if not level:
                break
            best.update((each.key, each) for each in level)
        found = sorted(best.values(), key=lambda n: (-n.weight, n.hops, ranks[n.seed], n.key))
        return found[:limit]

    def _one_hop(
        self, level: Sequence[Neighbour], hop: int, ranks: dict[int, int], limit: int
    ) -> list[Neighbour]:
        """The best memories one step further that are no seeds, the best first."""
        near = {each.key: (-each.weight, ranks[each.seed], each.seed) for each in level}
        best: dict[int, tuple[float, int, int]] = {}
        for down in (True, False):
            for from_key, _, key, _, weight in self._steps([*near], down=down):
                if key not in ranks:
                    before, rank, seed = near[from_key]
                    path = before * weight, rank, seed
                    if key not in best or path < best[key]:
                        best[key] = path
        first = heapq.nsmallest(limit, ((*path, key) for key, path in best.items()))
        return [Neighbour(key, -weight, seed, hop) for weight, _, seed, key in first]

    def _steps(self, keys: list[int], *, down: bool) -> list[_Step]:
        """All steps from live memories, among these, down to descendants or up to ancestors."""
        statement = _STEPS_DOWN if down else _STEPS_UP
        return statement.fetch(self._connection, keys=keys, expired_by=self._expired_by)

    def _key_of(self, id: str, name: str = "") -> int:
        rows = _KEY_OF.fetch(self._connection, id=id, expired_by=self._expired_by)
        if not rows:
            raise NotFoundError(f"no memory has the id {id!r}" + (f", {name}" if name else ""))
        return int(rows[0][0])


def check_relation(value: object) -> str:
    """Check a relation: 1 to 200 characters, no control characters among them.

    Raises:
        InputError: it is something else.
    """
    if not isinstance(value, str):
        raise InputError(f"relation must be a str, not {type(value).__name__}", field="relation")
    if not 0 < len(value) <= MAX_RELATION or not value.strip():
        raise InputError(
            f"relation must have 1 to {MAX_RELATION} characters and not be blank, not {len(value)}",
            field="relation",
        )
    if any(c < " " or "\x7f" <= c < "\xa0" or "\ud800" <= c <= "\udfff" for c in value):
        raise InputError(
            f"relation holds a control character or a lone surrogate: {value!r}", field="relation"
        )
    return str(value)


def _steps(*, down: bool) -> CompoundSelect[Any]:
    """The rows of `_Step` from memories with the keys of a parameter."""
    here, there = memories.alias("here"), memories.alias("there")
    kin = there.c.parent_id == here.c.id if down else there.c.id == here.c.parent_id
    near, far = links.c.source_key, links.c.target_key
    if not down:
        near, far = far, near
    weight = case((links.c.weight < 0, 0.0), (links.c.weight > 1, 1.0), else_=links.c.weight)
    ends = here.c.key, here.c.id, there.c.key
    is_wanted = and_(
        here.c.key.in_(list_parameter("keys")),
        is_live(here, bindparam("expired_by")),
        is_live(there, bindparam("expired_by")),
    )
    by_parent = select(*ends, null(), literal(1.0)).join_from(here, there, kin)
    by_link = select(*ends, links.c.relation, weight).join_from(here, links, near == here.c.key)
    return union_all(
        by_parent.where(is_wanted), by_link.join(there, there.c.key == far).where(is_wanted)
    )


def _links_of(*, outgoing: bool) -> Select[Any]:
    near, far = links.c.source_key, links.c.target_key
    if not outgoing:
        near, far = far, near
    return (
        select(
            literal(outgoing).label("outgoing"),
            memories.c.id.label("other"),
            memories.c.key.label("other_key"),
            links.c.relation,
            links.c.weight,
            links.c.created_at,
        )
        .join_from(links, memories, memories.c.key == far)
        .where(near == bindparam("key"), _LIVE)
    )


_LIVE = is_live(memories, bindparam("expired_by"))
_KEY_OF = Prepared(select(memories.c.key).where(memories.c.id == bindparam("id"), _LIVE))
_STEPS_DOWN, _STEPS_UP = (Prepared(_steps(down=down)) for down in (True, False))
_BOTH_WAYS = union_all(_links_of(outgoing=True), _links_of(outgoing=False)).subquery()
_OF = select(_BOTH_WAYS).order_by(
    _BOTH_WAYS.c.outgoing.desc(),
    _BOTH_WAYS.c.created_at,
    _BOTH_WAYS.c.other_key,
    _BOTH_WAYS.c.relation,
)
