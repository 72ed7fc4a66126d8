"""Links between memories, and where they lead: neighbours, ancestors, descendants.

`Links` speaks over one open transaction, as `Repository` does. A link goes from one memory to
another, whatever their namespaces, with a relation and a weight; between two memories there is one
link of a relation in one direction. A memory's parent is its ancestor, and so is the source of a
link that leads to it. Only live memories are found, and no walk passes through one that is not.
A walk is made by the database in one statement, a search for neighbours in one a hop; the work of
either is bounded by the memories and links that it reaches, also where links go in circles.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    FromClause,
    Select,
    Text,
    and_,
    bindparam,
    case,
    cast,
    delete,
    func,
    insert,
    literal,
    null,
    or_,
    select,
    union_all,
    update,
)

from kronos.db.tables import links, memories
from kronos.errors import InputError, NotFoundError
from kronos.types import Link
from kronos.validation import check_limit, check_number, to_datetime

if TYPE_CHECKING:
    from sqlalchemy import CTE

Direction: TypeAlias = Literal["ancestors", "descendants", "both"]
PARENT = "parent"
"""What a step from a memory to its parent, or back, is called."""
MAX_RELATION = 200
"""Characters of a relation."""

# A walk visits each memory once only if UNION takes two ways to it for equal, and UNION compares
# whole rows, the depth with them; SQLite lets nobody look at what was reached before. So a row is
# one text, compared without case: the key, behind a binary counter that is the depth and whose
# digits are "A" for 0 and "a" for 1. Rows leave the queue in the order of their bytes, the lowest
# depth first: of all the ways to a memory a shortest one comes first, and the rest are dropped.
# With (key, depth) as the row, two memories linked in a circle fill every depth there is.
_DIGITS = 24
_DEEPEST = 2**_DIGITS - 1
_ZEROS = "A" * _DIGITS
_WHOLE = 2**62
"""A weight of 1, where weights are whole numbers."""


@dataclass(frozen=True, slots=True)
class Reached:
    """A memory that a walk came to."""

    key: int
    depth: int
    """Steps from the start, at least 1: the fewest that lead there."""
    relation: str
    """Of the last step: "parent", or a link's relation."""
    from_id: str
    """The id of the memory before it on the way."""


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A memory near one that was found."""

    key: int
    weight: float
    """The product of the weights on the best way to it, 0..1."""
    seed: int
    """The key at which that way begins."""
    hops: int
    """The length of that way."""


class Links:
    """The links, over one open transaction.

    Args:
        connection: in a transaction.
        now: the time, in microseconds since 1970 UTC.
        expired_by: what has expired until then is gone.
    """

    def __init__(self, connection: Connection, now: int, expired_by: int) -> None:
        self._connection = connection
        self._now = now
        self._expired_by = expired_by

    # -- Writing --------------------------------------------------------------------------------

    def add(self, source_id: str, target_id: str, relation: str, weight: float = 1.0) -> None:
        """Link a memory to another one; a link of this relation that is there gets the weight.

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
            How many there were; none when there are no such memories.
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
        rows = self._connection.execute(_OF, {"key": key, "now": self._expired_by}).all()
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
        """Find where a live memory comes from, or what came of it.

        Args:
            id: where the walk begins; it is not among what is found.
            direction: "ancestors" goes to parents and to the sources of links; "descendants" to
                children and to the targets of links; "both" makes the two walks, each of which
                keeps its direction.
            depth: how many steps at most.

        Returns:
            Each memory once, at its smallest depth; ordered by depth, then as the memories came.

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

    def neighbours(self, keys: Sequence[int], hops: int, limit: int) -> list[Neighbour]:
        """Find the live memories near some others, by links and parents in either direction.

        A step along a link counts its weight, clipped to 0..1, and one between parent and child 1.
        Each hop goes on from the best `limit` memories of the one before: as no step makes a way
        better, what is found is what would be found without that bound.

        Args:
            keys: where the ways begin, the most important first; none of them is found.
            hops: how many steps at most.
            limit: how many memories at most.

        Returns:
            The best weight first; of equal ones the fewest hops, then the first of `keys`.

        Raises:
            InputError: hops or limit is refused.
        """
        hops, limit = check_limit(hops, field="hops"), check_limit(limit, field="limit")
        best: dict[int, Neighbour] = {}
        level = [(int(key), 1.0, seed) for seed, key in enumerate(keys)]
        for hop in range(1, hops + 1):
            rows = self._one_hop(keys, level, limit)
            # Who was reached before as well or better leads to nothing new.
            level = [row for row in rows if row[0] not in best or best[row[0]].weight < row[1]]
            if not level:
                break
            for key, weight, seed in level:
                best[key] = Neighbour(key, weight, int(keys[seed]), hop)
        ranks = {int(key): rank for rank, key in reversed([*enumerate(keys)])}
        found = sorted(
            best.values(),
            key=lambda each: (-each.weight, each.hops, ranks[each.seed], each.key),
        )
        return found[:limit]

    def _one_hop(
        self, seeds: Sequence[int], level: Sequence[tuple[int, float, int]], limit: int
    ) -> list[tuple[int, float, int]]:
        """The best memories a step further, from keys with their weights and seeds' positions."""
        # Whole numbers: SQLite's reading of decimal fractions may be a last bit too high.
        near = [[key, int(weight * _WHOLE), seed] for key, weight, seed in level]
        values = {
            "seeds": json.dumps([int(key) for key in seeds]),
            "near": json.dumps(near),
            "limit": limit,
            "now": self._expired_by,
        }
        rows = self._connection.execute(_ONE_HOP, values)
        return [(key, weight, seed) for key, weight, seed in rows]

    def _walk(self, start: int, depth: int, *, down: bool) -> list[Reached]:
        values = {
            "start": start,
            "place": f"{_ZEROS}{start}",
            "last": _counter(depth),
            "now": self._expired_by,
        }
        rows = self._connection.execute(_DESCENDANTS if down else _ANCESTORS, values)
        return [
            Reached(key, _number(depth), relation or PARENT, from_id)
            for key, depth, relation, from_id in rows
        ]

    def _key_of(self, id: str, name: str = "") -> int:
        found = self._connection.execute(_KEY_OF, {"id": id, "now": self._expired_by})
        key = found.scalar_one_or_none()
        if key is None:
            raise NotFoundError(f"no memory has the id {id!r}" + (f", {name}" if name else ""))
        return int(key)


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


def _json_list(keys: Sequence[int]) -> str:
    return f"[{','.join(str(int(key)) for key in keys)}]"


def _counter(depth: int) -> str:
    digits = f"{min(depth, _DEEPEST):0{_DIGITS}b}"
    return digits.replace("0", "A").replace("1", "a")


def _number(counter: str) -> int:
    return int(counter.replace("A", "0").replace("a", "1"), 2)


def _live(memory: FromClause) -> ColumnElement[bool]:
    return or_(memory.c.expires_at.is_(None), memory.c.expires_at > bindparam("now"))


@dataclass(frozen=True, slots=True)
class _Way:
    """How one gets from a row to the memories one step further."""

    joined: FromClause
    there: FromClause
    relation: ColumnElement[Any]
    """NULL for a parent."""
    weight: ColumnElement[Any]


def _ways(origin: FromClause, key: ColumnElement[Any], *, down: bool) -> tuple[_Way, _Way]:
    """The steps down to descendants or up to ancestors, from rows that hold a key."""
    here, there = memories.alias("here"), memories.alias("there")
    kin = there.c.parent_id == here.c.id if down else there.c.id == here.c.parent_id
    near, far = links.c.source_key, links.c.target_key
    if not down:
        near, far = far, near
    return (
        _Way(
            origin.join(here, here.c.key == key).join(there, and_(kin, _live(there))),
            there,
            null(),
            literal(1.0),
        ),
        _Way(
            origin.join(links, near == key).join(there, and_(there.c.key == far, _live(there))),
            there,
            links.c.relation,
            case((links.c.weight < 0, 0.0), (links.c.weight > 1, 1.0), else_=links.c.weight),
        ),
    )


def _trace(*, down: bool) -> Select[Any]:
    """Each memory reached, its depth as a counter, and one shortest way's last step."""
    walk = _walk_of(down=down)
    reached = select(
        _key_in(walk.c.place).label("key"), _depth_in(walk.c.place).label("depth")
    ).cte("reached")
    before = reached.alias("before")
    last_steps = [
        select(
            reached.c.key,
            reached.c.depth,
            way.relation.label("relation"),
            way.there.c.key.label("from_key"),
            way.there.c.id.label("from_id"),
        )
        .select_from(way.joined.join(before, before.c.key == way.there.c.key))
        .where(reached.c.depth == _next(before.c.depth))
        for way in _ways(reached, reached.c.key, down=not down)
    ]
    steps = union_all(*last_steps).subquery("steps")
    place = func.row_number().over(
        partition_by=steps.c.key,
        order_by=[steps.c.relation.is_not(None), steps.c.from_key, steps.c.relation],
    )
    ranked = select(steps, place.label("place")).subquery("ranked")
    return (
        select(ranked.c.key, ranked.c.depth, ranked.c.relation, ranked.c.from_id)
        .where(ranked.c.place == 1, ranked.c.key != bindparam("start"))
        .order_by(ranked.c.depth, ranked.c.key)
    )


def _walk_of(*, down: bool) -> CTE:
    start = bindparam("place", type_=Text)
    walk = select(_without_case(start).label("place")).cte("walk", recursive=True)
    depth = _depth_in(walk.c.place)
    by_parent, by_link = (
        select(_without_case(_next(depth).concat(cast(way.there.c.key, Text))))
        .select_from(way.joined)
        .where(depth < bindparam("last"))
        for way in _ways(walk, _key_in(walk.c.place), down=down)
    )
    # Behind the last SELECT it orders the whole, which SQLAlchemy has no other word for in a CTE.
    return walk.union(by_parent, by_link.suffix_with("ORDER BY 1 COLLATE BINARY"))


def _without_case(place: ColumnElement[Any]) -> ColumnElement[Any]:
    # In brackets, or it would bind to the last operand; on every SELECT, as SQLite takes it from
    # the first one that recurs.
    return place.self_group().collate("NOCASE")


def _key_in(place: ColumnElement[Any]) -> ColumnElement[Any]:
    return cast(func.substr(place, _DIGITS + 1), BigInteger)


def _depth_in(place: ColumnElement[Any]) -> ColumnElement[Any]:
    return func.substr(place, 1, _DIGITS)


def _next(depth: ColumnElement[Any]) -> ColumnElement[Any]:
    """The counter after this one: its last 0 becomes 1, and what stands behind becomes 0."""
    to_zero = func.rtrim(depth, "a")
    kept = func.substr(to_zero, 1, func.length(to_zero) - 1)
    return func.substr(kept.concat("a").concat(_ZEROS), 1, _DIGITS)


def _one_hop() -> Select[Any]:
    """From memories with a weight and a seed the best `limit` that are a step further."""
    near = _near()
    ways = [way for down in (True, False) for way in _ways(near, near.c.key, down=down)]
    seeds = func.json_each(bindparam("seeds")).table_valued("value", name="seeds")
    steps = union_all(
        *(
            select(
                way.there.c.key.label("key"),
                (near.c.weight * way.weight).label("weight"),
                near.c.seed.label("seed"),
            )
            .select_from(way.joined)
            .where(way.there.c.key.not_in(select(seeds.c.value)))
            for way in ways
        )
    ).subquery("steps")
    place = func.row_number().over(
        partition_by=steps.c.key, order_by=[steps.c.weight.desc(), steps.c.seed]
    )
    ranked = select(steps, place.label("place")).subquery("ranked")
    return (
        select(ranked.c.key, ranked.c.weight, ranked.c.seed)
        .where(ranked.c.place == 1)
        .order_by(ranked.c.weight.desc(), ranked.c.seed, ranked.c.key)
        .limit(bindparam("limit"))
    )


def _near() -> CTE:
    given = func.json_each(bindparam("near")).table_valued("value", name="given")
    key, weight, seed = (func.json_extract(given.c.value, f"$[{place}]") for place in range(3))
    return (
        select(memories.c.key, (weight / float(_WHOLE)).label("weight"), seed.label("seed"))
        .join_from(given, memories, memories.c.key == key)
        .where(_live(memories))
        .cte("near")
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
        .where(near == bindparam("key"), _live(memories))
    )


_KEY_OF = select(memories.c.key).where(memories.c.id == bindparam("id"), _live(memories))
_ONE_HOP = _one_hop()
_BOTH_WAYS = union_all(_links_of(outgoing=True), _links_of(outgoing=False)).subquery()
_OF = select(_BOTH_WAYS).order_by(
    _BOTH_WAYS.c.outgoing.desc(),
    _BOTH_WAYS.c.created_at,
    _BOTH_WAYS.c.other_key,
    _BOTH_WAYS.c.relation,
)
_ANCESTORS, _DESCENDANTS = _trace(down=False), _trace(down=True)
