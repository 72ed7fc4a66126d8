"""Links and where they lead, against walks in plain Python over the same memories."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, delete, insert, select, update

from kronos.db import schema
from kronos.db.database import Database
from kronos.db.tables import links as link_rows
from kronos.db.tables import memories as memory_rows
from kronos.errors import InputError, NotFoundError
from kronos.repository.fulltext import Fulltext
from kronos.repository.links import Direction, Links, Neighbour, Reached
from kronos.settings import Settings
from kronos.types import Link
from kronos.validation import to_datetime

NOW = 1_000_000
Edge = tuple[int, int, str, float]


@dataclass
class Graph:
    """Memories by number, from 1 on: their parents, those that are gone, and links."""

    size: int
    edges: list[Edge] = field(default_factory=list)
    parents: dict[int, int] = field(default_factory=dict)
    dead: set[int] = field(default_factory=set)

    def live(self) -> list[int]:
        return [key for key in range(1, self.size + 1) if key not in self.dead]

    def steps(self, *, down: bool) -> dict[int, list[tuple[int, str, float]]]:
        """From each live memory: where one gets, by what ("": a parent), with which weight."""
        found: dict[int, list[tuple[int, str, float]]] = {key: [] for key in self.live()}
        pairs = [(parent, child, "", 1.0) for child, parent in self.parents.items()]
        for source, target, relation, weight in pairs + self.edges:
            if source in found and target in found:
                near, far = (source, target) if down else (target, source)
                found[near].append((far, relation, min(max(weight, 0.0), 1.0)))
        return found


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    database = Database(tmp_path_factory.mktemp("links") / "kronos.db", Settings())
    schema.prepare(database)
    yield database
    database.close()


@pytest.fixture
def connection(database: Database) -> Iterator[Connection]:
    with database.write() as connection:
        empty(connection)
        yield connection


def empty(connection: Connection) -> None:
    connection.execute(delete(link_rows))
    connection.execute(delete(memory_rows))


def name(key: int) -> str:
    return f"m{key}"


def fill(connection: Connection, graph: Graph) -> Links:
    """Store a graph; what is dead expires at the very moment of the question."""
    plain = {
        "content": "x",
        "content_hash": b"x",
        "metadata": "{}",
        "importance": 0.5,
        "created_at": 0,
        "updated_at": 0,
        "recorded_at": 0,
    }
    rows = [
        {
            **plain,
            "key": key,
            "id": name(key),
            "namespace": f"space/{key % 3}",
            "parent_id": name(graph.parents[key]) if key in graph.parents else None,
            "expires_at": NOW if key in graph.dead else NOW + 1 if key % 2 else None,
            "seq": key,
        }
        for key in range(1, graph.size + 1)
    ]
    connection.execute(insert(memory_rows), rows)
    Fulltext(connection).add(1, graph.size)
    names = ("source_key", "target_key", "relation", "weight", "created_at")
    if graph.edges:
        values = [dict(zip(names, (*edge, 0), strict=True)) for edge in graph.edges]
        connection.execute(insert(link_rows), values)
    return Links(connection, NOW, NOW)


def walked(graph: Graph, start: int, depth: int, *, down: bool) -> list[Reached]:
    """What `trace` must find in one direction: a breadth-first walk."""
    steps, back = graph.steps(down=down), graph.steps(down=not down)
    depths, level = {start: 0}, [start]
    for number in range(1, depth + 1):
        level = sorted({far for near in level for far, _, _ in steps[near]} - depths.keys())
        depths.update(dict.fromkeys(level, number))
        if not level:
            break
    found = []
    for key, number in depths.items():
        if key == start:
            continue
        before = [
            # A parent first, then the oldest memory, then the first relation.
            (relation != "", near, relation)
            for near, relation, _ in back[key]
            if depths.get(near) == number - 1
        ]
        _, near, relation = min(before)
        found.append(Reached(key, number, relation or "parent", name(near)))
    return sorted(found, key=lambda reached: (reached.depth, reached.key))


def walked_both(graph: Graph, start: int, depth: int) -> list[Reached]:
    up, down = (walked(graph, start, depth, down=each) for each in (False, True))
    best = {reached.key: reached for reached in down}
    for reached in up:
        if reached.key not in best or reached.depth <= best[reached.key].depth:
            best[reached.key] = reached
    return sorted(best.values(), key=lambda reached: (reached.depth, reached.key))


def near(graph: Graph, seeds: Sequence[int], hops: int, limit: int) -> list[Neighbour]:
    """What `neighbours` must find: every way of so many hops, and the best to each memory."""
    up, down = graph.steps(down=False), graph.steps(down=True)
    best: dict[int, tuple[float, int, int]] = {}
    level = {(seed, rank): 1.0 for rank, seed in enumerate(seeds) if seed in up}
    for hop in range(1, hops + 1):
        further: dict[tuple[int, int], float] = {}
        for (key, rank), weight in level.items():
            for far, _, along in up[key] + down[key]:
                if far not in seeds:
                    there = (far, rank)
                    further[there] = max(further.get(there, -1.0), weight * along)
        for (key, rank), weight in further.items():
            best[key] = min(best.get(key, (9.0, 0, 0)), (-weight, hop, rank))
        level = further
    order = sorted((*ranks, key) for key, ranks in best.items())[:limit]
    return [Neighbour(key, -weight, seeds[rank], hop) for weight, hop, rank, key in order]


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    size = draw(st.integers(1, 8))
    keys = st.integers(1, size)
    pairs = st.tuples(keys, keys, st.sampled_from(["a", "b", "parent"]))
    # Powers of two: products are exact, in whichever order they are taken.
    weights = st.sampled_from([-1.0, 0.0, 0.25, 0.5, 1.0, 7.0])
    edges = draw(st.dictionaries(pairs.filter(lambda pair: pair[0] != pair[1]), weights))
    parents = draw(st.dictionaries(keys, st.integers(1, size + 1)))
    dead = draw(st.sets(keys, max_size=size // 3))
    return Graph(size, [(*pair, weight) for pair, weight in edges.items()], parents, dead)


# -- Links ------------------------------------------------------------------------------------


def test_a_link_has_a_relation_and_a_weight_and_a_new_one_replaces_the_weight(
    connection: Connection,
) -> None:
    links = fill(connection, Graph(3))
    links.add("m1", "m2", "caused", 0.5)
    later = Links(connection, NOW + 5, NOW)
    later.add("m1", "m2", "caused", 2)
    later.add("m1", "m2", "näher an", -0.25)
    later.add("m2", "m1", "caused")
    first, second = to_datetime(NOW), to_datetime(NOW + 5)
    there = Link("m1", "m2", "caused", 2.0, first)
    nearer = Link("m1", "m2", "näher an", -0.25, second)
    back = Link("m2", "m1", "caused", 1.0, second)
    assert links.of("m1") == [there, nearer, back]
    assert links.of("m2") == [back, there, nearer]
    assert links.of("m3") == []


def test_links_are_given_outgoing_first_then_the_oldest_then_by_memory_and_relation(
    connection: Connection,
) -> None:
    graph = Graph(5)
    fill(connection, graph)
    for moment, source, target, relation in [
        (3, 1, 2, "a"),
        (2, 1, 4, "b"),
        (2, 1, 4, "a"),
        (2, 1, 3, "z"),
        (1, 5, 1, "a"),
    ]:
        Links(connection, moment, NOW).add(name(source), name(target), relation)
    links = Links(connection, NOW, NOW).of("m1")
    found = [(link.source_id, link.target_id, link.relation) for link in links]
    assert found == [
        ("m1", "m3", "z"),
        ("m1", "m4", "a"),
        ("m1", "m4", "b"),
        ("m1", "m2", "a"),
        ("m5", "m1", "a"),
    ]


def test_removing_takes_one_relation_or_all_of_one_direction(connection: Connection) -> None:
    graph = Graph(3, [(1, 2, "a", 1), (1, 2, "b", 1), (2, 1, "a", 1), (1, 3, "a", 1)], dead={3})
    links = fill(connection, graph)
    assert links.remove("m1", "m2", "c") == 0
    assert links.remove("m1", "m2", "a") == 1
    assert links.remove("m1", "m2") == 1
    assert links.remove("m1", "m2") == 0
    assert links.remove("m1", "nobody") == 0
    assert [link.source_id for link in links.of("m1")] == ["m2"]
    assert links.remove("m1", "m3") == 1, "also to a memory that has expired"


def test_only_live_memories_can_be_linked_and_the_missing_one_is_named(
    connection: Connection,
) -> None:
    links = fill(connection, Graph(3, dead={3}))
    with pytest.raises(NotFoundError, match=r"'m3', the source"):
        links.add("m3", "m1", "a")
    with pytest.raises(NotFoundError, match=r"'m9', the target"):
        links.add("m1", "m9", "a")
    with pytest.raises(NotFoundError, match="'m3'"):
        links.of("m3")
    with pytest.raises(NotFoundError, match="'m3'"):
        links.trace("m3", "both", 1)
    assert connection.execute(select(link_rows)).all() == []


@pytest.mark.parametrize(
    ("relation", "weight", "refused"),
    [
        ("", 1.0, "relation"),
        (" ", 1.0, "relation"),
        ("x" * 201, 1.0, "relation"),
        ("a\0b", 1.0, "relation"),
        ("a\nb", 1.0, "relation"),
        ("\ud800", 1.0, "relation"),
        (None, 1.0, "relation"),
        ("a", float("nan"), "weight"),
        ("a", float("inf"), "weight"),
        ("a", True, "weight"),
        ("a", "1", "weight"),
    ],
)
def test_a_bad_relation_or_weight_is_refused_by_name(
    connection: Connection, relation: Any, weight: Any, refused: str
) -> None:
    links = fill(connection, Graph(2))
    with pytest.raises(InputError) as found:
        links.add("m1", "m2", relation, weight)
    assert found.value.field == refused
    assert links.of("m1") == []


def test_a_memory_is_not_linked_to_itself(connection: Connection) -> None:
    links = fill(connection, Graph(1))
    with pytest.raises(InputError, match="itself"):
        links.add("m1", "m1", "a")


def test_the_longest_relation_is_taken(connection: Connection) -> None:
    links = fill(connection, Graph(2))
    links.add("m1", "m2", "é" * 200)
    assert links.of("m1")[0].relation == "é" * 200


def test_a_deleted_memory_takes_its_links_along(connection: Connection) -> None:
    links = fill(connection, Graph(3, [(1, 2, "a", 1), (2, 3, "a", 1), (1, 3, "a", 1)]))
    connection.execute(delete(memory_rows).where(memory_rows.c.key == 2))
    assert [(link.source_id, link.target_id) for link in links.of("m1")] == [("m1", "m3")]
    assert len(connection.execute(select(link_rows)).all()) == 1


def test_links_to_an_expired_memory_are_not_seen(connection: Connection) -> None:
    links = fill(connection, Graph(3, [(1, 2, "a", 1), (3, 1, "a", 1)], dead={2}))
    assert [link.source_id for link in links.of("m1")] == ["m3"]


# -- Lineage ----------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(graph=graphs(), depth=st.integers(1, 9), data=st.data())
def test_a_trace_is_the_breadth_first_walk_over_parents_and_links(
    database: Database, graph: Graph, depth: int, data: st.DataObject
) -> None:
    if not graph.live():
        return
    start = data.draw(st.sampled_from(graph.live()))
    with database.write() as connection:
        empty(connection)
        links = fill(connection, graph)
        assert links.trace(name(start), "ancestors", depth) == walked(
            graph, start, depth, down=False
        )
        assert links.trace(name(start), "descendants", depth) == walked(
            graph, start, depth, down=True
        )
        assert links.trace(name(start), "both", depth) == walked_both(graph, start, depth)


def test_both_directions_do_not_lead_to_siblings(connection: Connection) -> None:
    links = fill(connection, Graph(4, [(1, 4, "a", 1)], {2: 1, 3: 1}))
    assert links.trace("m2", "both", 9) == [Reached(1, 1, "parent", "m2")]


def test_a_parent_that_is_no_memory_leads_nowhere(connection: Connection) -> None:
    links = fill(connection, Graph(1, parents={1: 7}))
    assert links.trace("m1", "both", 9) == []


def test_a_walk_does_not_pass_through_what_has_expired(connection: Connection) -> None:
    graph = Graph(4, [(1, 2, "a", 1), (2, 3, "a", 1), (3, 4, "a", 1)], dead={2})
    links = fill(connection, graph)
    assert links.trace("m1", "descendants", 9) == []
    assert [reached.key for reached in links.trace("m4", "ancestors", 9)] == [3]
    connection.execute(update(memory_rows).values(expires_at=None))
    assert [reached.key for reached in links.trace("m1", "descendants", 9)] == [2, 3, 4]


@pytest.mark.parametrize(
    ("direction", "depth", "refused"),
    [("up", 1, "direction"), (None, 1, "direction"), ("both", 0, "depth"), ("both", 1.5, "depth")],
)
def test_a_bad_direction_or_depth_is_refused_by_name(
    connection: Connection, direction: Any, depth: Any, refused: str
) -> None:
    links = fill(connection, Graph(1))
    with pytest.raises(InputError) as found:
        links.trace("m1", direction, depth)
    assert found.value.field == refused


def complete(size: int) -> Iterable[Edge]:
    numbers = range(1, size + 1)
    return ((one, other, "a", 1.0) for one in numbers for other in numbers if one != other)


def chain(first: int, last: int) -> Iterable[Edge]:
    return ((key, key + 1, "a", 1.0) for key in range(first, last))


@pytest.mark.parametrize("direction", ["ancestors", "descendants", "both"])
@pytest.mark.parametrize(
    "graph",
    [
        pytest.param(Graph(10_000, parents={key: key - 1 for key in range(2, 10_001)}), id="line"),
        pytest.param(Graph(10_000, list(chain(1, 10_000))), id="chain"),
        pytest.param(Graph(300, list(complete(300))), id="complete"),
        pytest.param(Graph(2, [(1, 2, "a", 1), (2, 1, "a", 1)]), id="circle"),
        pytest.param(
            Graph(10_300, [*complete(300), *chain(300, 10_300)]), id="a chain behind a circle"
        ),
        pytest.param(
            Graph(5000, [(k, k * 7919 * (j + 2) % 5000 + 1, f"{j}", 1.0) for k in range(1, 5001)
                         for j in range(4) if k * 7919 * (j + 2) % 5000 + 1 != k]),
            id="20,000 scattered links",
        ),
    ],
)  # fmt: skip
def test_a_trace_costs_what_it_reaches_also_in_circles(
    connection: Connection, graph: Graph, direction: Direction
) -> None:
    links = fill(connection, graph)
    start = graph.size // 2 if graph.size > 300 else 1
    began = time.perf_counter()
    found = links.trace(name(start), direction, 1_000_000)
    seconds = time.perf_counter() - began
    # A second at most where measured; walks that go round and round take minutes.
    assert seconds < 15
    expected = (
        walked_both(graph, start, 20_000)
        if direction == "both"
        else walked(graph, start, 20_000, down=direction == "descendants")
    )
    assert found == expected


# -- Neighbours -------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(graph=graphs(), hops=st.integers(1, 4), limit=st.integers(1, 9), data=st.data())
def test_neighbours_are_those_on_the_best_of_all_ways(
    database: Database, graph: Graph, hops: int, limit: int, data: st.DataObject
) -> None:
    numbers = st.integers(1, graph.size)
    seeds = data.draw(st.lists(numbers, unique=True, min_size=1, max_size=4))
    with database.write() as connection:
        empty(connection)
        links = fill(connection, graph)
        assert links.neighbours(seeds, hops, limit) == near(graph, seeds, hops, limit)


def test_neighbours_know_the_first_seed_that_leads_to_them(connection: Connection) -> None:
    graph = Graph(4, [(1, 3, "a", 0.5), (3, 2, "a", 0.5), (1, 4, "a", 0.1), (4, 2, "a", 5.0)])
    links = fill(connection, graph)
    assert links.neighbours([2, 1], 1, 9) == [
        Neighbour(4, 1.0, 2, 1),
        Neighbour(3, 0.5, 2, 1),
    ]
    assert links.neighbours([1, 2], 1, 1) == [Neighbour(4, 1.0, 2, 1)]
    assert links.neighbours([], 2, 9) == []


def test_a_longer_way_that_is_better_is_taken(connection: Connection) -> None:
    graph = Graph(3, [(1, 3, "a", 0.1)], {2: 1, 3: 2})
    links = fill(connection, graph)
    assert links.neighbours([1], 1, 9) == [Neighbour(2, 1.0, 1, 1), Neighbour(3, 0.1, 1, 1)]
    assert links.neighbours([1], 2, 9) == [Neighbour(2, 1.0, 1, 1), Neighbour(3, 1.0, 1, 2)]


@pytest.mark.parametrize(
    ("hops", "limit", "refused"), [(0, 1, "hops"), (True, 1, "hops"), (1, 0, "limit")]
)
def test_a_bad_number_of_hops_or_neighbours_is_refused(
    connection: Connection, hops: int, limit: int, refused: str
) -> None:
    links = fill(connection, Graph(1))
    with pytest.raises(InputError) as found:
        links.neighbours([1], hops, limit)
    assert found.value.field == refused


def test_hops_end_where_nothing_better_is_found(connection: Connection) -> None:
    graph = Graph(40, [*chain(1, 40), (40, 1, "a", 0.5), (7, 7 + 3, "b", -2.0)])
    links = fill(connection, graph)
    assert links.neighbours([1], 10**9, 99) == near(graph, [1], 60, 99)
    assert len(links.neighbours([1], 10**9, 99)) == 39


def test_weights_are_multiplied_exactly(connection: Connection) -> None:
    weights = [0.1, 0.7, 1 / 3, 0.9999999999999999]
    edges = [(key, key + 1, "a", weight) for key, weight in enumerate(weights, 1)]
    links = fill(connection, Graph(5, edges))
    found = {each.key: each.weight for each in links.neighbours([1], 9, 9)}
    product = 1.0
    for key, weight in enumerate(weights, 2):
        product *= weight
        assert found[key] == product
