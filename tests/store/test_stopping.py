"""Long calls tell how far they have come, and end soon when somebody wants them to."""

from __future__ import annotations

import asyncio
import inspect
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kronos import KronosMemory, MemoryStore, Progress
from kronos.aio.calls import Stop
from kronos.concurrency.progress import Steps
from kronos.db import sqlite, sqlite_files
from kronos.errors import NotFoundError, StoppedError, StorageError, StoreClosedError
from kronos.search import duplicates
from kronos.settings import Settings
from kronos.store.maintenance import Maintenance
from kronos.store.models import Models

HASH: dict[str, Any] = {"embedding_model": "hash", "embedding_dim": 32}
TEXTS = [f"text {number} of what is long" for number in range(900)]

LONG: dict[str, Callable[..., Any]] = {
    "check": lambda m, _, **o: m.maintenance.check(**o),
    "check, repairing": lambda m, _, **o: m.maintenance.check(repair=True, **o),
    "duplicates": lambda m, _, **o: m.duplicates(0.5, **o),
    "compact": lambda m, _, **o: m.maintenance.compact(**o),
    "backup": lambda m, folder, **o: m.maintenance.backup(folder / "copy.db", **o),
    "export": lambda m, folder, **o: m.export_to(folder / "new.jsonl", vectors=True, **o),
    "import": lambda m, folder, **o: m.import_from(folder / "old.jsonl", **o),
    "plan": lambda m, _, **o: m.models.plan(**o),
}
STOPPABLE: dict[str, Callable[..., Any]] = {
    **LONG,
    "tune": lambda m, _, **o: m.maintenance.tune(**o),
    "words": lambda m, _, **o: m.maintenance.rebuild_fulltext("trigram", **o),
}
REPORTING: dict[str, Callable[..., Any]] = {
    "reindex": lambda m, **o: m.reindex("hash", **o),
    "rollback": lambda m, **o: m.models.rollback(**o),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With a store, an export of 100 other memories, and something for every verb to do."""
    with MemoryStore.open(tmp_path / "other", **HASH) as other:
        other.add_many(f"other {number}" for number in range(300))
        other.export_to(tmp_path / "old.jsonl")
    with MemoryStore.open(tmp_path / "store", embedding_model="hash", embedding_dim=16) as store:
        store.add_many(TEXTS)
        store.delete(memory.id for memory in store.list(limit=50))
    return tmp_path


@pytest.fixture
def store(folder: Path) -> Iterator[MemoryStore]:
    """It has a space that it changed from."""
    settings = Settings(batch_size=100, keep_spaces=0)
    with MemoryStore.open(folder / "store", **HASH, settings=settings) as store:
        yield store


class StopsAfter:
    """A progress callback that stops the call after so many times."""

    def __init__(self, times: int) -> None:
        self.left = times
        self.stop = threading.Event()
        self.seen: list[Progress] = []

    def __call__(self, progress: Progress) -> None:
        self.seen.append(progress)
        self.left -= 1
        if self.left <= 0:
            self.stop.set()


@pytest.mark.parametrize("verb", LONG)
def test_progress_goes_up_to_the_total(
    store: MemoryStore, folder: Path, verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_files, "_PAGES_A_COPY", 16)
    seen: list[Progress] = []
    LONG[verb](store, folder, progress=seen.append)
    done = [progress.done for progress in seen]
    assert done == sorted(done)
    if verb == "plan":
        return  # nothing is pending, so nothing is tried
    assert len(seen) > (0 if verb == "duplicates" else 1)
    if seen[-1].total is not None:
        assert seen[-1].done == seen[-1].total


@pytest.mark.parametrize("face", ["sync", "async"])
@pytest.mark.parametrize("verb", STOPPABLE)
def test_a_call_that_is_stopped_before_it_begins_does_nothing(
    folder: Path, verb: str, face: str
) -> None:
    stop = threading.Event()
    stop.set()
    before = set(folder.iterdir())
    if face == "sync":
        with MemoryStore.open(folder / "store", **HASH) as store, pytest.raises(StoppedError):
            STOPPABLE[verb](store, folder, stop=stop)
    else:

        async def scenario() -> None:
            async with KronosMemory(folder / "store", **HASH) as memory:
                with pytest.raises(StoppedError):
                    await STOPPABLE[verb](memory, folder, stop=stop)

        asyncio.run(scenario())
    assert set(folder.iterdir()) == before


@pytest.mark.parametrize("times", [1, 2, 3])
@pytest.mark.parametrize("verb", LONG)
def test_a_call_that_is_stopped_amid_leaves_nothing_half_done(
    store: MemoryStore, folder: Path, verb: str, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_files, "_PAGES_A_COPY", 16)
    monkeypatch.setattr(duplicates, "near_duplicates", _in_small_tiles(duplicates.near_duplicates))
    monkeypatch.setattr("kronos.store.comparing.near_duplicates", duplicates.near_duplicates)
    stopping = StopsAfter(times)
    held = {memory.id for memory in store.iterate()}
    others = set(folder.iterdir())
    try:
        LONG[verb](store, folder, progress=stopping, stop=stopping.stop)
        ended = True
    except StoppedError:
        ended = False
    assert ended or len(stopping.seen) == times
    assert not ended or verb in ("plan", "compact", "import"), "it has more steps than that"
    now = {memory.id for memory in store.iterate()}
    if verb == "import":
        assert len(now - held) in (100, 200, 300), "whole batches"
    else:
        assert now == held
    assert set(folder.iterdir()) == others, "no part of a file is left"
    assert store.maintenance.check().problems == ()
    LONG[verb](store, folder)  # the next call does the rest
    assert store.maintenance.check().problems == ()


def _in_small_tiles(find: Any) -> Any:
    return lambda *args, **options: find(*args, batch=64, **options)


@pytest.mark.parametrize("verb", REPORTING)
def test_a_job_that_is_stopped_reports_how_far_it_came(folder: Path, verb: str) -> None:
    settings = Settings(batch_size=50)
    with MemoryStore.open(folder / "store", **HASH, settings=settings) as store:
        if verb == "reindex":
            store.models.rollback()
        else:
            store.update(store.list(limit=1)[0].id, content="changed")
        stop = threading.Event()
        stop.set()
        report = REPORTING[verb](store, stop=stop)
        assert report.state == "open"
        assert not report.activated
        assert store.models.resume().activated


def test_a_long_statement_is_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "_INSTRUCTIONS_A_LOOK", 1000)
    with MemoryStore.open(tmp_path, **HASH) as store:
        store.add_many(TEXTS)
        database = store._session.database
        stop = threading.Event()
        endless = (
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n"
        )
        timer = threading.Timer(0.2, stop.set)
        timer.start()
        started = time.monotonic()
        with (
            pytest.raises(StoppedError),
            database.stoppable(stop.is_set),
            database.read() as connection,
        ):
            connection.exec_driver_sql(endless).scalar()
        assert time.monotonic() - started < 5
        deleted = f"DELETE FROM memories WHERE key > 0 AND ({endless}) > 0"
        with (
            pytest.raises(StoppedError),
            database.stoppable(stop.is_set),
            database.write() as connection,
        ):
            connection.exec_driver_sql(deleted)
        assert store.count() == len(TEXTS), "it was rolled back"
        assert store.add("another thread, and this one, go on as before")


def test_what_was_stopped_once_stops_nobody_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "_INSTRUCTIONS_A_LOOK", 1)
    stop = threading.Event()
    with MemoryStore.open(tmp_path, **HASH) as store:
        store.add_many(TEXTS)
        database = store._session.database

        def fail(error: Exception) -> None:
            with database.stoppable(stop.is_set), database.read() as connection:
                connection.exec_driver_sql("SELECT count(*) FROM memories").scalar()
                raise error

        for error in (NotFoundError(), KeyError(), sqlite3.OperationalError("disk I/O error")):
            with pytest.raises((NotFoundError, KeyError, StorageError)):
                fail(error)
        stop.set()
        assert store.count() == len(TEXTS)
        assert store.search("text 7")
        assert store.add("another one")


def test_rebuilding_words_is_stopped_amid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "_INSTRUCTIONS_A_LOOK", 1)
    looks = iter(range(10**9))

    class SetAfterAWhile(threading.Event):
        def is_set(self) -> bool:
            return next(looks) > 300

    with MemoryStore.open(tmp_path, **HASH) as store:
        store.add_many(TEXTS)
        with pytest.raises(StoppedError):
            store.maintenance.rebuild_fulltext("trigram", stop=SetAfterAWhile())
        assert store.stats().tokenizer == "porter"
        assert store.maintenance.check().problems == ()
        assert store.search("text 7", mode="lexical", limit=1)[0].content.startswith("text 7 ")


@pytest.mark.parametrize("end", ["cancel", "close", "stop"])
@pytest.mark.parametrize("verb", STOPPABLE)
def test_cancelling_closing_and_stopping_all_end_a_long_call(
    folder: Path, verb: str, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = {"export": "export_to", "import": "import_from"}.get(verb, verb)
    name = {"check, repairing": "check", "words": "rebuild_fulltext"}.get(name, name)
    owner = next(each for each in (MemoryStore, Maintenance, Models) if hasattr(each, name))
    begun, ended = threading.Event(), threading.Event()

    def long(*_: object, stop: threading.Event, **__: object) -> None:
        begun.set()
        if stop.wait(20):
            ended.set()
            Steps(None, stop)

    long.__name__ = name
    monkeypatch.setattr(owner, name, long)
    stop = threading.Event()

    async def scenario() -> None:
        memory = KronosMemory(folder / "store", **HASH)
        await memory.connect()
        call = asyncio.create_task(STOPPABLE[verb](memory, folder, stop=stop))
        assert await asyncio.to_thread(begun.wait, 10)
        if end == "cancel":
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
        elif end == "close":
            await memory.close()
            with pytest.raises(StoreClosedError):
                await call
        else:
            stop.set()
            with pytest.raises(StoppedError):
                await call
        assert await asyncio.to_thread(ended.wait, 10)
        assert stop.is_set() is (end != "close"), "others may wait for the caller's own event"
        await memory.close()

    asyncio.run(scenario())


def test_an_event_that_follows_another_one() -> None:
    other = threading.Event()
    stop, own = Stop(other), Stop(None)
    assert not stop.is_set()
    assert not stop.wait(0.01)
    threading.Timer(0.1, other.set).start()
    assert stop.wait(10)
    assert stop.is_set()
    threading.Timer(0.1, own.set).start()
    assert own.wait()
    assert Stop(own).wait(0)


VERBS = [
    (face, name)
    for face in (MemoryStore, Models, Maintenance)
    for name, _ in inspect.getmembers(face, inspect.isfunction)
    if not name.startswith("_") and name not in ("connect", "close")
]


@pytest.mark.parametrize(("face", "name"), VERBS)
def test_long_verbs_and_no_others_can_be_stopped(face: type, name: str) -> None:
    takes = inspect.signature(getattr(face, name)).parameters
    long = {"check", "duplicates", "compact", "backup", "export_to", "import_from", "plan"}
    long |= {"reindex", "resume", "activate", "rollback"}
    assert ("stop" in takes) is (name in long | {"tune", "rebuild_fulltext"})
    assert ("progress" in takes) is (name in long | {"add_many"})


def test_steps_without_arguments_neither_tell_nor_stop() -> None:
    steps = Steps()
    steps.advance()
    steps.check_stopped()
    assert list(steps.track("abc")) == ["a", "b", "c"]
    assert np.array_equal([steps.done, steps.is_stopped], [1, 0])
