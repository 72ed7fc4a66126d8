"""Costs of calls: statements use an index, and no full scan runs while others wait.

The tests record every statement that SQLite executes, and ask SQLite for its query plan. The work
of a call is counted in steps of SQLite's virtual machine, which do not depend on the load of the
machine.
"""

from __future__ import annotations

import itertools
import re
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.costs import Filled, Verb, verbs
from kronos import F, MemoryStore, NewMemory, Settings
from kronos.db.sqlite import SQLite
from kronos.db.sqlite_driver import driver
from kronos.errors import StoreBusyError
from kronos.index.snapshot import write_snapshot
from kronos.repository.pending import Pending
from tests.conftest import Clock, Opener

_LARGE = "memories|versions|vectors|past_vectors|tombstones|links|deletions"
_OURS = re.compile(rf"\b({_LARGE})\b")
# For a plain count SQLite counts pages and reads no rows.
_COUNT = re.compile(
    r"SELECT \(SELECT count\(\*\)( AS \w+)?\s+FROM memories\)"
    r"|SELECT count\(\*\)( AS \w+)?\s+FROM \w+$"
)
_READS_ALL = re.compile(rf"SCAN ({_LARGE}|m|v)\b|AUTOMATIC|MULTI-INDEX|content_hash>\?\)")


class Wire:
    """Records the statements of every connection, and the locks held meanwhile."""

    def __init__(self) -> None:
        self.said: list[tuple[str, bool, bool]] = []
        """A statement, whether the index was locked, and whether the write lock was held."""
        self.is_locked: Callable[[], bool] = lambda: False
        self.steps = 0
        self._writes = False

    def hear(self, statement: str) -> None:
        if statement.startswith("BEGIN"):
            self._writes = "IMMEDIATE" in statement
        elif _OURS.search(statement) and not statement.startswith(("--", "EXPLAIN", "PRAGMA")):
            self.said.append((statement, self.is_locked(), self._writes))
        if statement.startswith(("COMMIT", "ROLLBACK")) and "TO" not in statement:
            self._writes = False

    def count(self) -> int:
        self.steps += 1
        return 0

    @contextmanager
    def hearing(self) -> Iterator[list[tuple[str, bool, bool]]]:
        self.said = []
        yield self.said


@pytest.fixture
def wire(monkeypatch: pytest.MonkeyPatch) -> Wire:
    wire = Wire()
    connect = SQLite.connect

    def heard(self: SQLite, **options: Any) -> sqlite3.Connection:
        connection = connect(self, **options)
        connection.set_trace_callback(wire.hear)
        connection.set_progress_handler(wire.count, 20)
        return connection

    monkeypatch.setattr(SQLite, "connect", heard)
    return wire


def plan(path: Path, statement: str) -> str:
    """SQLite's query plan for a statement."""
    if not re.match(r"\s*(SELECT|WITH|INSERT|UPDATE|DELETE)\b", statement):
        return ""
    connection = driver.connect(path)
    try:
        rows = connection.execute(f"EXPLAIN QUERY PLAN {statement}").fetchall()
    except driver.Error:  # a temporary table of another connection
        return ""
    finally:
        connection.close()
    return "; ".join(row[3] for row in rows)


def costly(store: MemoryStore, said: list[tuple[str, bool, bool]]) -> list[str]:
    """The statements that scan all rows, or all rows of a namespace."""
    found = []
    for statement, *_ in said:
        if not _COUNT.search(statement):
            steps = plan(store.location.database, statement)
            if _READS_ALL.search(steps):
                found.append(f"{statement[:600]}\n    {steps}")
    return found


@pytest.fixture
def filled(wire: Wire, open_store: Opener, clock: Clock) -> MemoryStore:
    """A store with several namespaces, a history, links, and expired memories."""
    store = open_store(settings=Settings(snapshot_changes=50))
    wire.is_locked = lambda: bool(store._session.serving.replica.lock._lock.locked())
    items = [
        NewMemory(
            f"word{number % 50} bees number {number}",
            id=f"m{number}",
            namespace=["default", "other", "default/a", "rare"][(number % 3) if number % 97 else 3],
            metadata={"n": number, "g": number % 4, "rank": number % 90},
            parent_id=f"m{number - 1}" if number % 5 == 1 else None,
            expires_at=clock.now + timedelta(seconds=5) if number % 10 == 0 else None,
        )
        for number in range(1, 1500)
    ]
    store.add_many(items)
    store.maintenance.index_field("rank")
    store.link("m1", "m2", "says")
    clock.tick(10)
    return store


def the_reads(store: MemoryStore, then: datetime) -> dict[str, Callable[[], object]]:
    """Every read verb, in every form."""
    return {
        "get": lambda: store.get("m1"),
        "get as of": lambda: store.get("m1", as_of=then),
        "find": lambda: store.find("nobody"),
        "list all": lambda: store.list(limit=5, namespace="*"),
        "list own": lambda: store.list(limit=5),
        "list rare": lambda: store.list(limit=5, namespace="rare"),
        "list after": lambda: store.list(limit=5, after="m700"),
        "list filter": lambda: store.list(limit=5, where=F.g == 2),
        "list rare filter": lambda: store.list(limit=5, where=F.n == 1490),
        "list indexed": lambda: store.list(limit=5, where=F.rank == 17),
        "list indexed range": lambda: store.list(limit=5, where=F.rank >= 17, namespace="*"),
        "list as of": lambda: store.list(limit=5, as_of=then),
        "list as of, after": lambda: store.list(limit=5, as_of=then, after="m700"),
        "list as of, filter": lambda: store.list(limit=5, as_of=then, where=F.g == 2),
        "iterate": lambda: next(store.iterate()),
        "iterate as of": lambda: next(store.iterate(as_of=then)),
        "count": lambda: store.count(),
        "count all": lambda: store.count(namespace="*"),
        "count filter": lambda: store.count(where=F.g == 2),
        "count as of": lambda: store.count(as_of=then),
        "history": lambda: store.history("m3"),
        "links": lambda: store.links("m1"),
        "dense": lambda: store.search("bees", mode="dense"),
        "lexical": lambda: store.search("bees", mode="lexical"),
        "hybrid": lambda: store.search("bees", namespace="*"),
        "search filter": lambda: store.search("bees", where=F.g == 2),
        "search groups": lambda: store.search("bees", group_by="g"),
        "search own groups": lambda: store.search("bees", group_by="namespace", namespace="*"),
        "search as of": lambda: store.search("bees", as_of=then),
        "search groups as of": lambda: store.search("bees", as_of=then, group_by="g"),
        "search near": lambda: store.search(near="m1"),
        "search near as of": lambda: store.search(near="m3", as_of=then),
        "search many": lambda: store.search_many(["bees", "word3"]),
        "stats": lambda: store.stats(),
        "jobs": lambda: store.models.jobs(),
        "failures": lambda: store.models.failures(),
        "indexed_fields": lambda: store.maintenance.indexed_fields(),
        "plan_reindex": lambda: store.models.plan(),
    }


def test_every_read_seeks_once_its_key_set_is_known(
    filled: MemoryStore, wire: Wire, clock: Clock
) -> None:
    store, then = filled, clock.now
    clock.tick(1)
    store.update("m3", content="another text of bees")
    store.delete("m4")
    reads = the_reads(store, then)
    for read in reads.values():
        read()
    changes: list[Callable[[], object]] = [
        lambda: store.add("bees again", metadata={"g": 2, "rank": 17}),
        lambda: store.update("m5", metadata={"g": 3, "rank": 17}),
        lambda: store.delete("m6"),
    ]
    writes = itertools.cycle(changes)
    for name, read in reads.items():
        for _ in range(2):  # the second time there is nothing to follow
            with wire.hearing() as said:
                read()
            assert costly(store, said) == [], name
            next(writes)()
            clock.tick(1)


def test_a_new_as_of_moment_costs_only_the_changes_since(
    filled: MemoryStore, wire: Wire, clock: Clock
) -> None:
    store = filled
    moments = []
    for number in range(21, 27):
        store.update(f"m{number}", content=f"changed {number}")
        moments.append(clock.now)
        clock.tick(1)
    store.count(as_of=moments[0])
    store.search("bees", as_of=moments[0])
    for moment in moments[1:]:
        with wire.hearing() as said:
            store.list(as_of=moment, limit=5)
            store.search("changed bees", as_of=moment)
        assert costly(store, said) == []


def test_no_full_scan_runs_while_searches_or_writers_wait(
    filled: MemoryStore, wire: Wire, clock: Clock, tmp_path: Path
) -> None:
    store, then = filled, clock.now
    store.search("bees")  # the index is loaded
    clock.tick(1)
    for number in range(31, 40):
        store.update(f"m{number}", content=f"changed {number}")
    store.delete([f"m{number}" for number in range(51, 90)])
    calls: dict[str, Callable[[], object]] = {
        "a new filter": lambda: store.search("bees", where=F.n > 3),
        "a new filter of words": lambda: store.search("bees", where=F.n > 4, mode="lexical"),
        "new groups": lambda: store.search("bees", group_by="g", namespace="*"),
        "a new moment": lambda: store.search("bees", as_of=then),
        "groups of a moment": lambda: store.search("bees", as_of=then, group_by="g"),
        "count": lambda: store.count(where=F.n > 5),
        "list": lambda: store.list(where=F.n == 1499),
        "stats": store.stats,
        "check": store.maintenance.check,
        "duplicates": lambda: store.duplicates(0.9999),
        "delete by a filter": lambda: store.delete(where={"n": {"$lt": 200}}),
        "delete a namespace": lambda: store.delete(namespace="rare"),
        "add": lambda: store.add("one more"),
        "update": lambda: store.update("m301", content="once more"),
        "reindex": lambda: store.reindex(),
        "compact": lambda: store.maintenance.compact(forget_before=clock.now),
        "export": lambda: store.export_to(tmp_path / "all.jsonl"),
    }
    for name, call in calls.items():
        with wire.hearing() as said:
            call()
        waited_for = [each for each in said if each[1] or each[2]]
        assert costly(store, waited_for) == [], name


def test_the_detector_finds_full_scans(filled: MemoryStore, wire: Wire) -> None:
    """So the tests above would fail on a full scan."""
    with wire.hearing() as said:
        filled.count(where=F.n > 77)
    assert len(costly(filled, said)) == 1
    asked = [
        ("SELECT key FROM memories WHERE namespace = 'a' OR namespace > 'b' ORDER BY key", 0, 0),
        ("SELECT key FROM memories WHERE content_hash > x'00'", 0, 0),
        ("DELETE FROM tombstones WHERE seq < 5", 0, 0),
    ]
    assert len(costly(filled, asked)) == 3  # type: ignore[arg-type]
    wire.is_locked = lambda: True
    with wire.hearing() as said:
        filled.get("m1")
    assert all(locked for _, locked, _ in said)


# -- How much a call works ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def sizes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[list[Filled], Wire]]:
    """Two stores, one five times as large as the other; and what counts their steps."""
    wire = Wire()
    with pytest.MonkeyPatch.context() as patch:
        connect = SQLite.connect

        def counted(self: SQLite, **options: Any) -> sqlite3.Connection:
            connection = connect(self, **options)
            connection.set_progress_handler(wire.count, 20)
            return connection

        patch.setattr(SQLite, "connect", counted)
        stores = [Filled(tmp_path_factory.mktemp("costs"), size) for size in (1200, 6000)]
        yield stores, wire
        for each in stores:
            each.store.close()


def test_no_verb_costs_more_in_a_larger_store(sizes: tuple[list[Filled], Wire]) -> None:
    stores, wire = sizes
    grown = {}
    for pair in zip(*map(verbs, stores), strict=True):
        if not pair[0].reads_all:
            small, large = (worked(verb, wire) for verb in pair)
            if large > 1.7 * small + 2000:
                grown[pair[0].name] = (small, large)
    assert grown == {}


def worked(verb: Verb, wire: Wire) -> int:
    """SQLite's steps in the cheapest of several calls; the first call fills the caches."""
    steps = []
    for number in range(1, 5):
        before = wire.steps
        verb.call(number)
        steps.append(20 * (wire.steps - before))
    return min(steps[1:])


def test_pending_counts_read_no_text(filled: MemoryStore, wire: Wire) -> None:
    with filled._session.reader() as repository, wire.hearing() as said:
        space = filled._session.serving.space.id
        assert repository.pending.texts(space, limit=1) == []
        assert repository.pending.text_count(space) == 0
    assert not any(
        "content_hash" in statement for statement, *_ in said if "failures" not in statement
    )


# -- Others go on meanwhile ---------------------------------------------------------------------


def in_time(call: Callable[[], Any], seconds: float = 20) -> Any:
    """The result of a call in another thread, which must not wait for this thread."""
    found: list[Any] = []

    def run() -> None:
        found.append(call())

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    assert found, "it waits"
    return found[0]


def test_searches_continue_while_a_new_filter_is_evaluated(
    filled: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled.search("bees")
    table = type(filled._session.reader().__enter__()).table
    asked: list[int] = []

    def slow(self: Any, scope: Any, condition: Any, *columns: Any, among: Any = None) -> Any:
        if condition is not None and among is None:
            asked.append(len(in_time(lambda: filled.search("bees"))))
            asked.append(len(in_time(lambda: filled.search("bees", where=F.g == 1))))
        return table(self, scope, condition, *columns, among=among)

    filled.search("bees", where=F.g == 1)
    monkeypatch.setattr("kronos.repository.rows.Rows.table", slow)
    assert len(filled.search("bees", where=F.g == 2)) == 10
    assert asked == [10, 10]


def test_searches_continue_while_stats_counts(
    filled: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled.search("bees")
    stats = Pending.stats
    asked: list[int] = []

    def slow(self: Pending) -> Any:
        asked.append(len(in_time(lambda: filled.search("bees"))))
        return stats(self)

    monkeypatch.setattr(Pending, "stats", slow)
    assert filled.stats().memories == filled.count(namespace="*")
    assert asked == [10]


def test_searches_and_writes_continue_while_the_fulltext_index_is_checked(
    filled: MemoryStore, open_store: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kronos.db.fulltext import fts5 as words

    other = open_store(settings=Settings(busy_timeout_s=0.05))
    problems = words.problems
    added: list[str] = []

    def slow(connection: Any) -> Any:
        found = problems(connection)  # from here on a lock would be held
        added.append(in_time(lambda: other.add("meanwhile")))
        filled.search("bees")
        return found

    monkeypatch.setattr(words, "problems", slow)
    assert filled.maintenance.check().ok
    assert len(added) == 1


def test_searches_continue_while_a_compacted_index_is_saved(
    filled: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled.search("bees")
    filled.delete([f"m{number}" for number in range(1, 400)])
    asked: list[Any] = []

    def slow(*arguments: Any, **options: Any) -> Any:
        asked.append(len(in_time(lambda: filled.search("bees"))))
        filled.add("bees, while it is saved", id="late")
        asked.append(in_time(lambda: filled.search("bees while saved", limit=1))[0].id)
        return write_snapshot(*arguments, **options)

    monkeypatch.setattr("kronos.following.snapshots.write_snapshot", slow)
    filled.maintenance.compact()
    assert asked == [10, "late"]
    assert filled.search("bees while saved", limit=1)[0].id == "late"
    assert filled.maintenance.check().problems == ()


def test_other_writers_are_not_refused_while_many_are_deleted(open_store: Opener) -> None:
    store = open_store(settings=Settings(durability="normal"))
    store.add_many(f"text {number}" for number in range(6000))
    over = threading.Event()
    refused: list[Exception] = []
    added = []

    def write() -> None:
        # Through a connection of its own, which waits like another process.
        other = driver.connect(store.location.database, timeout=0.4, isolation_level=None)
        while not over.is_set():
            try:
                other.execute("BEGIN IMMEDIATE")
                other.execute("COMMIT")
                added.append(1)
            except driver.OperationalError as exc:
                refused.append(exc)
            over.wait(0.01)
        other.close()

    thread = threading.Thread(target=write)
    thread.start()
    assert store.delete(namespace="default") == 6000
    over.set()
    thread.join()
    assert refused == []
    assert len(added) > 20
    assert store.count() == 0
    assert store.maintenance.check().ok


def test_an_interrupted_delete_leaves_each_memory_complete_or_deleted(
    open_store: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store()
    store.add_many(f"text {number}" for number in range(1200))
    write, calls = store._session.write, itertools.count(1)

    def busy(*arguments: Any, **options: Any) -> Any:
        if next(calls) == 3:
            raise StoreBusyError("another writer")
        return write(*arguments, **options)

    monkeypatch.setattr(store._session, "write", busy)
    with pytest.raises(StoreBusyError):
        store.delete(where={"missing": {"$exists": False}})
    monkeypatch.undo()
    left = store.count()
    assert 0 < left < 1200
    assert len([*store.iterate()]) == left == len(store.search("text", limit=1200))
    assert store.maintenance.check().problems == ()
    assert store.delete(namespace="default") == left


def test_a_delete_skips_memories_that_no_longer_match(
    open_store: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store()
    ids = store.add_many({"content": f"text {n}", "metadata": {"old": True}} for n in range(600))
    write, calls = store._session.write, itertools.count(1)

    def meanwhile(*arguments: Any, **options: Any) -> Any:
        if next(calls) == 2:
            monkeypatch.undo()
            store.update(ids[-1], metadata={"old": False})
            store.add("new, and as old", id="new", metadata={"old": True})
        return write(*arguments, **options)

    monkeypatch.setattr(store._session, "write", meanwhile)
    assert store.delete(where=F.old == True) == 599  # noqa: E712
    assert sorted(memory.id for memory in store.iterate()) == sorted([ids[-1], "new"])


def test_check_finds_a_wrong_vector_count(store: MemoryStore) -> None:
    store.add_many(["one", "two"])
    with store._session.writer() as repository:
        repository.connection.exec_driver_sql("UPDATE spaces SET vectors = 7")
    report = store.maintenance.check()
    assert [problem.kind for problem in report.problems][:1] == ["vectors"]
    assert store.maintenance.check(repair=True).ok
    assert store.maintenance.check().problems == ()
    assert store.stats().spaces[0].vectors == 2


def test_check_finds_a_wrong_fulltext_index_in_a_copy_and_rebuilds_it(store: MemoryStore) -> None:
    store.add_many(["bees on the roof", "a hive"])
    with store._session.writer() as repository:
        run = repository.connection.exec_driver_sql
        run("INSERT INTO memory_words (memory_words, rowid, content) VALUES ('delete', 3, 'bees')")
    assert "fulltext" in [problem.kind for problem in store.maintenance.check().problems]
    assert store.maintenance.check(repair=True).ok
    assert store.maintenance.check().problems == ()
    assert store.search("bees", mode="lexical")


def test_a_search_is_complete_although_most_memories_have_expired(
    open_store: Opener, clock: Clock, wire: Wire
) -> None:
    """And no expired row is read."""
    store = open_store(embedding_model=None, embedding_dim=4)
    draw = np.random.default_rng(3)
    store.add_many(
        NewMemory(
            f"bees {number}",
            id=f"m{number}",
            expires_at=clock.now + timedelta(seconds=1) if number % 50 else None,
            embedding=[1, number / 4000, 0, 0.0],
        )
        for number in range(4000)
    )
    clock.tick(2)
    query = [1.0, draw.random() / 100, 0.0, 0.0]
    living = {f"m{number}" for number in range(0, 4000, 50)}
    for _ in range(2):
        before = wire.steps
        hits = store.search(query, limit=60)
        worked = wire.steps - before
        assert len(hits) == 60
        assert {hit.id for hit in hits} <= living
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    assert 20 * worked < 40_000  # 4,000 rows would be 100,000 steps
    assert {hit.id for hit in store.search("bees", limit=99)} == living
    assert [memory.id for memory in store.list(limit=2)] == ["m0", "m50"]
    assert store.count() == len(living)
