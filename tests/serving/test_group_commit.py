"""Writes that come at once share a commit: whole or refused alone, in order, acknowledged late."""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kronos import KronosMemory, MemoryStore
from kronos.errors import (
    DuplicateIdError,
    InputError,
    KronosError,
    NotFoundError,
    StoreBusyError,
)
from kronos.repository.memories import Repository
from kronos.serving.group_commit import MOST_ROWS, Addition, Change, Write
from kronos.settings import Settings
from tests.conftest import Clock, Opener

THREADS = 64
KILLS = 30
STORES = 5


class Crowd:
    """Calls that come while another writer is at work, in a known order."""

    def __init__(self, store: MemoryStore, pool: ThreadPoolExecutor) -> None:
        self._store = store
        self._pool = pool
        self.calls: list[Future[Any]] = []

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Future[Any]:
        """Let a thread call, and wait until it stands in the queue behind the others."""
        writes = self._store._session.write_all
        self.calls.append(self._pool.submit(function, *args, **kwargs))
        # The first one leads: it has left the queue and waits for the writer.
        while writes._leader is None or len(writes._queue) < len(self.calls) - 1:
            time.sleep(0.001)
        return self.calls[-1]


@contextmanager
def crowd(store: MemoryStore) -> Iterator[Crowd]:
    """The first call waits for a writer, and the others become one group, until the end."""
    with ThreadPoolExecutor(THREADS) as pool:
        with store._session._writing:
            yield (crowd := Crowd(store, pool))
        for call in crowd.calls:
            call.exception(timeout=20)


def commits(store: MemoryStore) -> int:
    """How often the write-ahead log was committed to."""
    log = store.location.database.with_name(store.location.database.name + "-wal").read_bytes()
    with closing(sqlite3.connect(store.location.database)) as connection:
        (page,) = connection.execute("PRAGMA page_size").fetchone()
    frames = range(32, len(log) - page, page + 24)
    # The frame that ends a commit says how large the database is.
    return sum(log[start + 4 : start + 8] != b"\0\0\0\0" for start in frames)


def test_writes_that_come_at_once_share_a_commit(store: MemoryStore) -> None:
    before = commits(store)
    with crowd(store) as all_at_once:
        for number in range(THREADS):
            all_at_once.call(store.add, f"text {number}", id=f"m{number}")
    assert commits(store) - before == 2, "the first call's, and that of all who waited"
    assert [call.result() for call in all_at_once.calls] == [f"m{n}" for n in range(THREADS)]
    assert [memory.id for memory in store.list()] == [f"m{n}" for n in range(THREADS)]
    assert store.maintenance.check().problems == ()


def test_a_lone_write_has_a_commit_of_its_own(store: MemoryStore) -> None:
    before = commits(store)
    store.add("one")
    store.add("two")
    assert commits(store) - before == 2


def test_writes_are_made_in_the_order_in_which_they_came(store: MemoryStore, clock: Clock) -> None:
    with crowd(store) as all_at_once:
        all_at_once.call(store.add, "of somebody else")
        all_at_once.call(store.add, "first", id="x")
        all_at_once.call(store.update, "x", content="second")
        all_at_once.call(store.add, "third", id="x", on_conflict="replace")
        all_at_once.call(store.delete, "x")
        all_at_once.call(store.add, "fourth", id="x")
        all_at_once.call(store.update, "x", metadata={"n": 5})
    assert [call.exception() for call in all_at_once.calls] == [None] * 7
    assert store.get("x").content == "fourth"
    assert store.get("x").metadata == {"n": 5}
    found = [version.memory.content for version in store.history("x")]
    assert found == ["first", "second", "third", "fourth", "fourth"]
    assert store.maintenance.check().problems == ()


def test_a_refused_write_is_refused_alone(store: MemoryStore) -> None:
    store.add("here before", id="old")
    with crowd(store) as all_at_once:
        all_at_once.call(store.add, "of somebody else")
        good = all_at_once.call(store.add, "good", id="good")
        twice = all_at_once.call(store.add, "twice", id="good")
        known = all_at_once.call(store.add, "again", id="old")
        nobody = all_at_once.call(store.update, "nobody", metadata={})
        link = all_at_once.call(store.link, "old", "nobody", "supports")
        gone = all_at_once.call(store.delete, ["good", "nobody"])
        last = all_at_once.call(store.add, "last", id="last")
    assert good.result() == "good"
    assert isinstance(twice.exception(), DuplicateIdError)
    assert isinstance(known.exception(), DuplicateIdError)
    assert isinstance(nobody.exception(), NotFoundError)
    assert isinstance(link.exception(), NotFoundError)
    assert (gone.result(), last.result()) == (1, "last")
    assert {memory.id for memory in store.list()} >= {"old", "last"}
    assert store.find("good") is None


@pytest.mark.parametrize("error", [InputError("refused"), RuntimeError("a bug")])
def test_a_write_that_fails_half_way_leaves_nothing_and_costs_the_others_nothing(
    store: MemoryStore, error: Exception
) -> None:
    store.add("here before", id="old")

    def half(repository: Repository) -> None:
        assert repository.delete_ids(["old"]) == 1
        raise error

    before = store.stats().seq
    with crowd(store) as all_at_once:
        all_at_once.call(store.add, "of somebody else")
        all_at_once.call(store.add, "before it", id="before")
        failed = all_at_once.call(store._session.write, half)
        all_at_once.call(store.add, "behind it", id="behind")
    assert failed.exception() is error
    assert [call.exception() for call in all_at_once.calls].count(None) == 3
    assert store.count() == 4
    assert store.get("old").content == "here before"
    assert len(store.history("old")) == 1
    assert store.stats().seq == before + 3, "no number was lost"
    assert store.maintenance.check().problems == ()


def test_upserts_of_one_text_that_come_at_once_make_one_memory(store: MemoryStore) -> None:
    with crowd(store) as all_at_once:
        all_at_once.call(store.add, "of somebody else")
        calls = [all_at_once.call(store.upsert, "the same text") for _ in range(5)]
    assert len({call.result() for call in calls}) == 1
    assert store.count() == 2


def test_a_large_batch_goes_alone_and_a_small_write_waits_for_one_of_them_at_most(
    store: MemoryStore,
) -> None:
    groups: list[int] = []
    work = store._session.write_all._work

    def counted(writes: Any) -> Any:
        groups.append(len(writes))
        return work(writes)

    store._session.write_all._work = counted
    many = [f"text {number}" for number in range(MOST_ROWS)]
    with crowd(store) as all_at_once:
        all_at_once.call(store.add, "the first one")
        all_at_once.call(store.add, "a small one")
        all_at_once.call(store.add_many, many)
        all_at_once.call(store.add, "another")
        all_at_once.call(store.add, "and another")
    assert groups == [1, 1, 1, 2]
    assert store.count() == MOST_ROWS + 4


def test_a_writer_elsewhere_is_waited_for_once(open_store: Opener) -> None:
    store = open_store(settings=Settings(busy_timeout_s=0.3))
    with closing(sqlite3.connect(store.location.database)) as other:
        other.execute("BEGIN IMMEDIATE")
        started = time.perf_counter()
        with ThreadPoolExecutor(20) as pool:
            calls = [pool.submit(store.add, f"text {number}") for number in range(20)]
            assert all(isinstance(call.exception(), StoreBusyError) for call in calls)
        assert time.perf_counter() - started < 3
    assert store.count() == 0
    assert store.add("the lock is free again")


def test_writes_embedded_for_a_space_that_is_left_meanwhile_are_embedded_anew(
    open_store: Opener,
) -> None:
    store = open_store(embedding_dim=64)
    store.add("here before", id="m3")
    with crowd(store) as all_at_once:
        for number in (0, 1, 2, 4, 5):
            all_at_once.call(store.add, f"text {number}", id=f"m{number}")
        all_at_once.call(store.update, "m3", content="an edit")
        # Another process's change of the model: its writer does not queue with these.
        open_store(embedding_dim=96).close()
    assert [call.exception() for call in all_at_once.calls] == [None] * 6
    stats = store.stats()
    assert stats.dim == 96
    assert next(each for each in stats.spaces if each.space.state == "active").pending == 0
    assert store.search("an edit", mode="dense", limit=1)[0].id == "m3"
    assert store.maintenance.check().problems == ()


# -- The law: together is one by one --------------------------------------------------------------

IDS = ["a", "b", "c"]
TEXTS = ["cats", "trains", "bread"]
some_id, some_text = st.sampled_from(IDS), st.sampled_from(TEXTS)
steps = st.one_of(
    st.tuples(st.just("add"), some_id, some_text, st.sampled_from(["error", "replace", "ignore"])),
    st.tuples(st.just("add"), st.none(), some_text, st.just("error")),
    st.tuples(st.just("upsert"), st.none() | some_id, some_text, st.just("")),
    st.tuples(st.just("update"), some_id, st.none() | some_text, st.just("")),
    st.tuples(st.just("delete"), some_id, some_id, st.just("")),
    st.tuples(st.just("link"), some_id, some_id, st.just("")),
    st.tuples(st.just("break"), some_id, some_id, st.just("")),
)


def as_write(store: MemoryStore, step: tuple[Any, Any, Any, Any]) -> Write:
    kind, first, second, on_conflict = step
    serving = store._session.serving
    if kind in ("add", "upsert"):
        batch = store._adding.prepare(
            {"content": second, "id": first},
            on_conflict or "replace",
            match_content=kind == "upsert",
        )
        # Not `store._encode`, which leaves out what is known now: earlier steps may delete it.
        serving.encode([batch])
        return Addition(batch, serving)
    if kind == "update":
        changed: dict[str, Any] = {"metadata": {"n": 1}} if second is None else {"content": second}
        values = {"content": ..., "metadata": ..., "importance": ..., "expires_at": ...} | changed
        change = store._changing.encode(store._changing.check(first, **values))
        return Change(change.make, change.serving)
    if kind == "delete":
        return Change(lambda repository: repository.delete_ids([first]), None)
    if kind == "link":
        return Change(lambda repository: repository.links.add(first, second, "about"), None)

    def half(repository: Repository) -> None:
        repository.delete_ids([first, second])
        raise InputError("half way")

    return Change(half, None)


def told(outcome: Any) -> Any:
    """An outcome, without ids that nobody chose."""
    if isinstance(outcome, Exception):
        return type(outcome)
    if isinstance(outcome, list):
        return [id if id in IDS else "new" for id in outcome]
    return getattr(outcome, "content", outcome)


def state_of(store: MemoryStore) -> Any:
    """All that can be read of a store, without ids that nobody chose."""
    memories = store.list(limit=1000)
    histories = {
        id: [(v.memory.content, v.memory.metadata) for v in store.history(id)]
        for id in IDS
        if store.find(id) is not None
    }
    links = [sorted((e.source_id, e.target_id) for e in store.links(m.id)) for m in memories]
    found = [(m.id if m.id in IDS else "new", m.content, m.metadata) for m in memories]
    stats = store.stats()
    return found, histories, links, stats.versions, stats.memories


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(steps, min_size=2, max_size=8))
def test_what_is_written_together_comes_out_as_if_written_one_by_one(
    plan: list[tuple[Any, Any, Any, Any]],
) -> None:
    folder = Path(tempfile.mkdtemp())
    options: dict[str, Any] = {
        **{"embedding_model": "hash", "embedding_dim": 32, "clock": Clock()},
        "settings": Settings(durability="normal"),
    }
    try:
        with (
            MemoryStore.open(folder / "together", **options) as together,
            MemoryStore.open(folder / "apart", **options) as apart,
        ):
            for store in (together, apart):
                store.add("cats", id="a")
            at_once = together._session._write_together([as_write(together, step) for step in plan])
            one_by_one = []
            for step in plan:
                try:
                    one_by_one += apart._session._write_together([as_write(apart, step)])
                except KronosError as exc:
                    one_by_one.append(exc)
            assert [told(each) for each in at_once] == [told(each) for each in one_by_one]
            assert state_of(together) == state_of(apart)
            assert together.maintenance.check().problems == ()
    finally:
        shutil.rmtree(folder)


# -- Under stress, and killed ----------------------------------------------------------------------


class Caller:
    """One of many threads: it changes memories of its own, and knows what must be there."""

    def __init__(self, store: MemoryStore, number: int) -> None:
        self._store = store
        self._name = f"t{number}"
        self._chance = random.Random(number)
        self.texts: dict[str, str] = {}

    def run(self, rounds: int) -> None:
        for number in range(rounds):
            self._one(f"{self._name}-{number}")

    def _one(self, new: str) -> None:
        held = self._chance.choice([*self.texts]) if self.texts else None
        match self._chance.randrange(8):
            case 0 if held:
                self._store.update(held, content=f"{new} is the new text")
                self.texts[held] = f"{new} is the new text"
            case 1 if held:
                assert self._store.delete(held) == 1
                del self.texts[held]
            case 2 if held:
                with pytest.raises(DuplicateIdError, match=held):
                    self._store.add("taken", id=held)
            case 3:
                with pytest.raises(NotFoundError, match=f"nobody-{new}"):
                    self._store.update(f"nobody-{new}", metadata={})
            case 4 if held:
                self._store.add(f"{new} replaces", id=held, on_conflict="replace")
                self.texts[held] = f"{new} replaces"
            case _:
                assert self._store.add(f"{new} is a text", id=new) == new
                self.texts[new] = f"{new} is a text"
                # Acknowledged: everybody can see it.
                assert self._store.get(new).content == self.texts[new]


def test_sixty_four_threads_each_get_what_they_wrote_and_their_own_errors(
    store: MemoryStore,
) -> None:
    callers = [Caller(store, number) for number in range(THREADS)]
    before = commits(store)
    with ThreadPoolExecutor(THREADS) as pool:
        for done in [pool.submit(caller.run, 12) for caller in callers]:
            done.result()
    expected = {id: text for caller in callers for id, text in caller.texts.items()}
    assert {memory.id: memory.content for memory in store.iterate()} == expected
    assert commits(store) - before < THREADS * 12 / 2, "they did share commits"
    assert store.maintenance.check().problems == ()
    for id, text in random.Random(0).sample([*expected.items()], 10):
        assert text in {hit.content for hit in store.search(text, limit=20)}, id


def test_threads_and_tasks_share_one_store(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with KronosMemory(tmp_path, embedding_model="hash", embedding_dim=64) as memory:
            threads = [
                asyncio.to_thread(memory._store.add, f"thread {number}") for number in range(20)
            ]
            tasks = [memory.add(f"task {number}") for number in range(20)]
            edits = [memory.add_many([f"few {number}", f"more {number}"]) for number in range(10)]
            await asyncio.gather(*threads, *tasks, *edits)
            assert await memory.count() == 60
            assert (await memory.maintenance.check()).problems == ()

    asyncio.run(scenario())


# Twenty threads add, replace and delete, each says what it has done when the call has returned.
WRITER = """
import json, os, sys, threading
from kronos import MemoryStore

store = MemoryStore.open(sys.argv[1], embedding_model="hash", embedding_dim=32)
def say(**done):
    os.write(1, (json.dumps(done) + "\\n").encode())
def write(thread):
    n = 0
    while True:
        id = f"{sys.argv[2]}-{thread}-{n}"
        store.add(f"{id} first", id=id)
        say(id=id, text=f"{id} first")
        say(id=id, begins=f"{id} second")
        store.add(f"{id} second", id=id, on_conflict="replace")
        say(id=id, text=f"{id} second")
        if n % 4 == 3:
            say(id=id, begins=None)
            store.delete(id)
            say(id=id, text=None)
        n += 1
say(ready=True)
for thread in range(20):
    threading.Thread(target=write, args=(thread,)).start()
"""


@pytest.mark.parametrize("number", range(STORES))
def test_killed_in_the_middle_of_shared_commits_nothing_acknowledged_is_lost(
    tmp_path: Path, number: int
) -> None:
    chance = random.Random(number)
    allowed: dict[str, set[str | None]] = {}
    for life in range(KILLS // STORES):
        command = [sys.executable, "-c", WRITER, str(tmp_path), f"life{life}"]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline(), "the store did not open after a kill"
            time.sleep(chance.uniform(0.02, 0.3))
            process.send_signal(signal.SIGKILL)
            said = process.stdout.read().splitlines(keepends=True)
        for line in said:
            if line.endswith(b"\n") and "id" in (done := json.loads(line)):
                if "begins" in done:
                    allowed[done["id"]].add(done["begins"])
                else:
                    allowed[done["id"]] = {done["text"]}
    with MemoryStore.open(tmp_path, embedding_model="hash", embedding_dim=32) as store:
        held: dict[str, str | None] = {m.id: m.content for m in store.iterate()}
        for id, texts in allowed.items():
            assert held.get(id) in texts, "lost, stale or risen"
        for id in held.keys() - allowed.keys():
            assert held[id] == f"{id} first", "written, and killed before it was acknowledged"
        assert store.maintenance.check().problems == ()
    assert allowed


def test_an_interrupted_leader_leaves_the_others_served(store: MemoryStore) -> None:
    class Interrupted(BaseException):
        """As Control-C."""

    work, interrupted = store._session.write_all._work, threading.Event()

    def once(writes: Any) -> Any:
        if len(writes) > 1 and not interrupted.is_set():
            interrupted.set()
            raise Interrupted
        return work(writes)

    store._session.write_all._work = once
    with crowd(store) as all_at_once:
        for number in range(10):
            all_at_once.call(store.add, f"text {number}", id=f"m{number}")
    failed = [call for call in all_at_once.calls if call.exception() is not None]
    assert len(failed) == 1
    assert isinstance(failed[0].exception(), Interrupted)
    assert store.count() == 9
    assert store.add("and it goes on")
