"""One KronosMemory from many event loops and threads: calls, opening, closing, ends of loops."""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import gc
import logging
import random
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, TimeoutError
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kronos import KronosMemory, MemoryStore, Ranking
from kronos.aio import calls
from kronos.aio import opening as async_opening
from kronos.concurrency import background
from kronos.embedding.hashing import HashEmbedder
from kronos.errors import KronosError, KronosWarning, ModelLoadError, StoreClosedError
from kronos.serving import session as opening
from kronos.serving.embedders import Embedders
from kronos.serving.options import utc_now
from kronos.settings import Settings
from kronos.store.maintenance import Maintenance
from kronos.store.models import Models

HASH: dict[str, Any] = {"embedding_model": "hash", "embedding_dim": 64}
SOON = Settings(network_timeout_s=0.05)


@pytest.fixture(autouse=True)
def nothing_hangs() -> Iterator[None]:
    """A call that hangs ends the tests, and says where each thread is."""
    faulthandler.dump_traceback_later(120, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[KronosMemory]:
    """An open one, whose loop has ended."""
    memory = KronosMemory(tmp_path / "store", **HASH)
    asyncio.run(memory.connect())
    yield memory
    asyncio.run(memory.close())


def vector(width: int) -> Any:
    """A vector that points somewhere."""
    return np.ones(width, np.float32)


def in_threads(count: int, function: Callable[[int], Any]) -> list[Any]:
    """What a function returns in so many threads at once."""
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(function, range(count)))


class Gated(HashEmbedder):
    """Embeds while its gate is open."""

    def __init__(self) -> None:
        super().__init__(dim=16)
        self.model_id = self.fingerprint = "gated"  # no fallback, to Kronos
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()

    def embed_documents(self, texts: Sequence[str]) -> Any:
        self.entered.set()
        assert self.gate.wait(60)
        return super().embed_documents(texts)


# -- Calls --------------------------------------------------------------------------------------


def test_twenty_threads_that_each_run_a_loop_add_to_one_memory(memory: KronosMemory) -> None:
    ids = in_threads(20, lambda number: asyncio.run(memory.add(f"note {number}")))
    held = {m.id: m.content for m in asyncio.run(memory.list())}
    assert {id: f"note {number}" for number, id in enumerate(ids)} == held


def test_every_verb_works_in_a_loop_of_its_own(memory: KronosMemory, tmp_path: Path) -> None:
    def run(call: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run(call)

    async def everything() -> list[Any]:
        return [each async for each in memory.iterate()]

    first = run(memory.add("bees keep to the roof"))
    second, third = run(memory.add_many(["cats sleep", {"content": "trains run"}]))
    assert run(memory.upsert("bees keep to the roof", importance=0.9)) == first
    assert run(memory.update(second, content="cats are awake")).content == "cats are awake"
    assert run(memory.search("bees on the roof", limit=1))[0].id == first
    assert run(memory.search("bees", mode="lexical"))[0].id == first
    assert len(run(memory.search_many(["bees", "trains"]))) == 2
    assert run(memory.get(first)).importance == 0.9
    assert run(memory.find("nobody")) is None
    run(memory.link(first, second, "near"))
    assert len(run(memory.links(first))) == len(run(memory.trace(second))) == 1
    assert run(memory.unlink(first, second)) == run(memory.touch(first)) == 1
    assert len(run(everything())) == run(memory.count()) == run(memory.stats()).memories == 3
    assert len(run(memory.history(second))) == 2
    assert run(memory.maintenance.index_field("year"))
    assert run(memory.maintenance.indexed_fields()) == ["year"]
    assert run(memory.maintenance.unindex_field("year"))
    run(memory.maintenance.rebuild_fulltext())
    assert run(memory.maintenance.check()).ok
    assert (
        run(memory.duplicates(0.99))
        == run(memory.models.jobs())
        == run(memory.models.failures())
        == []
    )
    assert run(memory.models.plan()).memories == run(memory.reindex()).embedded == 0
    assert run(memory.maintenance.tune()).recall == 1
    assert run(memory.export_to(tmp_path / "all.jsonl")) == 3
    assert len(run(memory.import_from(tmp_path / "all.jsonl"))) == 3
    assert run(memory.maintenance.backup(tmp_path / "copy.db")).exists()
    assert run(memory.delete(third)) == 1
    assert run(memory.maintenance.compact()).expired == 0


def test_loops_that_live_long_and_short_share_one_memory(memory: KronosMemory) -> None:
    async def many(number: int) -> list[str]:
        return list(await asyncio.gather(*(memory.add(f"{number}/{i}") for i in range(40))))

    def short(number: int) -> list[str]:
        return [asyncio.run(memory.add(f"{number}/{i}")) for i in range(10)]

    ids = in_threads(12, lambda n: short(n) if n % 2 else asyncio.run(many(n)))
    assert {id for each in ids for id in each} == {
        m.id for m in asyncio.run(memory.list(limit=1000))
    }


def test_a_thousand_adds_at_once_need_few_threads(memory: KronosMemory) -> None:
    async def scenario() -> int:
        calls: list[asyncio.Task[Any]]
        calls = [asyncio.create_task(memory.add(f"text {i}")) for i in range(1000)]
        calls += [asyncio.create_task(memory.search(f"text {i}")) for i in range(200)]
        most = 0
        while not all(call.done() for call in calls):
            most = max(most, threading.active_count())
            await asyncio.sleep(0.001)
        await asyncio.gather(*calls)
        return most

    assert asyncio.run(scenario()) < 30
    assert asyncio.run(memory.count()) == 1000


@pytest.mark.parametrize("way", ["cancelled", "stopped", "closed"])
def test_a_loop_that_ends_amid_calls_costs_the_others_nothing(
    tmp_path: Path, way: str, caplog: pytest.LogCaptureFixture
) -> None:
    embedder = Gated()
    memory = KronosMemory(tmp_path, embedder=embedder)
    asyncio.run(memory.connect())
    embedder.gate.clear()
    embedder.entered.clear()

    async def call(number: int) -> str:
        return await memory.add(f"text {number}", id=f"m{number}")

    loop = asyncio.new_event_loop()
    calls = [loop.create_task(call(number)) for number in range(3)]
    while not embedder.entered.is_set():  # the first leads, the others wait behind it
        loop.run_until_complete(asyncio.sleep(0.01))
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(lambda: asyncio.run(call(7)))
        time.sleep(0.1)
        if way == "cancelled":
            for each in calls:
                each.cancel()
            loop.run_until_complete(asyncio.gather(*calls, return_exceptions=True))
        if way != "stopped":
            loop.close()
        with caplog.at_level(logging.DEBUG):
            embedder.gate.set()
            assert other.result(30) == "m7"
    assert asyncio.run(call(8)) == "m8"
    held = {m.id for m in asyncio.run(memory.list())}
    assert {"m7", "m8"} <= held <= {"m0", "m1", "m2", "m7", "m8"}
    asyncio.run(memory.close())
    if way == "stopped":  # it may go on, and finds what came of its calls
        assert loop.run_until_complete(asyncio.gather(*calls)) == ["m0", "m1", "m2"]
        loop.close()
    if way == "closed":
        for each in calls:  # asyncio says that they were pending, which is the test's own doing
            each._log_destroy_pending = False  # type: ignore[attr-defined]
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING], caplog.text


def test_no_event_loop_is_kept_by_a_memory_that_it_called(memory: KronosMemory) -> None:
    async def call() -> weakref.ref[asyncio.AbstractEventLoop]:
        await memory.add("text")
        await asyncio.gather(memory.search("text"), memory.add("more"), memory.count())
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(memory.search("text"), 0)
        return weakref.ref(asyncio.get_running_loop())

    loop = asyncio.run(call())
    for _ in range(20):
        gc.collect()
        if loop() is None:
            break
        time.sleep(0.05)  # a thread that worked for it may be about to end
    assert loop() is None


# -- Opening and closing ------------------------------------------------------------------------


def test_connect_and_close_at_once_from_many_loops(tmp_path: Path) -> None:
    memory = KronosMemory(tmp_path, **HASH)

    async def twice(number: int) -> None:
        await asyncio.gather(memory.connect(), memory.connect())

    async def close(number: int) -> None:
        await asyncio.gather(memory.close(), memory.close())

    for _ in range(3):
        in_threads(8, lambda number: asyncio.run(twice(number)))
        asyncio.run(memory.add("text"))
        in_threads(8, lambda number: asyncio.run(close(number)))
        with pytest.raises(StoreClosedError):
            asyncio.run(memory.count())
    asyncio.run(memory.connect())
    assert asyncio.run(memory.count()) == 3
    asyncio.run(memory.close())


def test_a_connect_that_fails_fails_for_all_who_wait_and_can_be_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = KronosMemory(tmp_path, **HASH)
    load = Embedders.asked_for

    def fail(store: MemoryStore) -> Any:
        time.sleep(0.2)
        raise ModelLoadError("not now")

    monkeypatch.setattr(Embedders, "asked_for", fail)

    def connect(_: int) -> Any:
        with contextlib.suppress(ModelLoadError):
            asyncio.run(memory.connect())
            return "opened"

    assert in_threads(6, connect) == [None] * 6
    monkeypatch.setattr(Embedders, "asked_for", load)
    assert in_threads(6, connect) == ["opened"] * 6
    asyncio.run(memory.close())


def test_a_connect_that_all_gave_up_leaves_the_store_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loading, loaded = threading.Event(), threading.Event()
    load = Embedders.asked_for

    def slow(embedders: Embedders) -> Any:
        loading.set()
        assert loaded.wait(30)
        return load(embedders)

    monkeypatch.setattr(Embedders, "asked_for", slow)
    memory = KronosMemory(tmp_path, **HASH)

    async def scenario() -> None:
        calls = [asyncio.create_task(memory.connect()) for _ in range(3)]
        assert await asyncio.to_thread(loading.wait, 30)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        loaded.set()
        with pytest.raises(StoreClosedError):
            await memory.count()
        while memory._opening._turn is not None:
            await asyncio.sleep(0.01)
        with pytest.raises(StoreClosedError):
            memory._store.count()
        await memory.connect()
        assert await memory.count() == 0
        await memory.close()

    asyncio.run(scenario())


def test_close_while_it_is_opened_ends_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loading = threading.Event()
    load = Embedders.asked_for

    def slow(embedders: Embedders) -> Any:
        loading.set()
        time.sleep(0.3)
        return load(embedders)

    monkeypatch.setattr(Embedders, "asked_for", slow)
    memory = KronosMemory(tmp_path, **HASH)

    async def scenario() -> None:
        opening = asyncio.create_task(memory.connect())
        assert await asyncio.to_thread(loading.wait, 30)
        await memory.close()
        with pytest.raises(StoreClosedError, match="while it was opened"):
            await opening
        with pytest.raises(StoreClosedError):
            await memory.count()
        await memory.connect()
        assert await memory.count() == 0
        await memory.close()

    asyncio.run(scenario())


def test_an_opening_that_was_given_up_closes_nothing_that_is_opened_after_it(
    tmp_path: Path,
) -> None:
    memory = KronosMemory(tmp_path, **HASH)
    real, entered, goes_on = memory._store.connect, threading.Event(), threading.Event()

    def slow(**options: Any) -> None:
        if not entered.is_set():
            entered.set()
            assert goes_on.wait(20)
        real(**options)

    memory._store.connect = slow  # type: ignore[method-assign]

    async def scenario() -> None:
        opening = asyncio.create_task(memory.connect())
        while not entered.is_set():
            await asyncio.sleep(0.001)
        closing = asyncio.create_task(memory.close())
        await asyncio.sleep(0.05)
        again = asyncio.create_task(memory.connect())
        await asyncio.sleep(0.2)
        goes_on.set()
        with pytest.raises(StoreClosedError):
            await opening
        await asyncio.gather(closing, again)
        for _ in range(20):
            assert await memory.count() == 0
            await asyncio.sleep(0.01)
        await memory.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("memories", [2, 1200])
@pytest.mark.parametrize("face", ["async", "sync"])
def test_iterating_a_store_that_is_closed_meanwhile_says_so(
    tmp_path: Path, face: str, memories: int
) -> None:
    with MemoryStore.open(tmp_path, **HASH) as store:
        store.add_many(f"text {i}" for i in range(memories))

    async def awaited() -> None:
        memory = KronosMemory(tmp_path, **HASH)
        await memory.connect()
        async for _ in memory.iterate():
            await memory.close()

    def called() -> None:
        store = MemoryStore.open(tmp_path, **HASH)
        for _ in store.iterate():
            store.close()

    with pytest.raises(StoreClosedError):
        asyncio.run(awaited()) if face == "async" else called()


@pytest.mark.parametrize("face", ["async", "sync"])
def test_a_slow_add_many_whose_store_is_closed_meanwhile_says_so(tmp_path: Path, face: str) -> None:
    going_on = threading.Event()

    def texts() -> Iterator[str]:
        for number in range(10_000):
            yield f"text {number}"
            if number == 25:
                going_on.set()
            time.sleep(0.01)

    options: dict[str, Any] = {**HASH, "settings": Settings(batch_size=10)}

    async def scenario() -> None:
        memory = KronosMemory(tmp_path, **options)
        await memory.connect()
        call = asyncio.create_task(memory.add_many(texts()))
        assert await asyncio.to_thread(going_on.wait, 30)
        started = time.monotonic()
        await memory.close()
        assert time.monotonic() - started < 5, "it waits for no iterator of a caller"
        with pytest.raises(StoreClosedError):
            await call

    if face == "async":
        asyncio.run(scenario())
    else:
        store = MemoryStore.open(tmp_path, **options)
        with ThreadPoolExecutor(1) as pool:
            call = pool.submit(store.add_many, texts())
            assert going_on.wait(30)
            store.close()
            with pytest.raises(StoreClosedError):
                call.result(30)
    with MemoryStore.open(tmp_path, **options) as store:
        assert store.count() % 10 == 0, "whole batches"
        assert store.count() > 0


VERBS: dict[str, Callable[[KronosMemory, Path], Coroutine[Any, Any, Any]]] = {
    "add": lambda m, _: m.add("text"),
    "add, handed in": lambda m, _: m.add("text", embedding=vector(64)),
    "add_many": lambda m, _: m.add_many(["a", "b"]),
    "add_many, large": lambda m, _: m.add_many([f"text {i} " * 50 for i in range(3000)]),
    "upsert": lambda m, _: m.upsert("text 3"),
    "get": lambda m, _: m.get("m3"),
    "find": lambda m, _: m.find("m3"),
    "history": lambda m, _: m.history("m3"),
    "update": lambda m, _: m.update("m3", content="new"),
    "update, no text": lambda m, _: m.update("m3", importance=0.1),
    "delete": lambda m, _: m.delete("m4"),
    "touch": lambda m, _: m.touch("m3"),
    "search": lambda m, _: m.search("text"),
    "search, words": lambda m, _: m.search("text", mode="lexical"),
    "search, vector": lambda m, _: m.search(vector(64)),
    "search, near": lambda m, _: m.search(near="m3"),
    "search_many": lambda m, _: m.search_many(["a", "b"]),
    "list": lambda m, _: m.list(),
    "count": lambda m, _: m.count(),
    "link": lambda m, _: m.link("m1", "m2", "near"),
    "unlink": lambda m, _: m.unlink("m1", "m2"),
    "links": lambda m, _: m.links("m1"),
    "trace": lambda m, _: m.trace("m1"),
    "stats": lambda m, _: m.stats(),
    "check": lambda m, _: m.maintenance.check(),
    "tune": lambda m, _: m.maintenance.tune(),
    "duplicates": lambda m, _: m.duplicates(),
    "compact": lambda m, _: m.maintenance.compact(),
    "reindex": lambda m, _: m.reindex(),
    "plan": lambda m, _: m.models.plan(),
    "jobs": lambda m, _: m.models.jobs(),
    "failures": lambda m, _: m.models.failures(),
    "backup": lambda m, folder: m.maintenance.backup(folder / f"{time.time_ns()}.db"),
    "export_to": lambda m, folder: m.export_to(folder / f"{time.time_ns()}.jsonl"),
    "index_field": lambda m, _: m.maintenance.index_field("year"),
    "indexed_fields": lambda m, _: m.maintenance.indexed_fields(),
    "rebuild_fulltext": lambda m, _: m.maintenance.rebuild_fulltext(),
}


@pytest.mark.filterwarnings("ignore:another process reads an older state")
@pytest.mark.parametrize("verb", VERBS)
def test_a_call_amid_which_the_store_is_closed_ends_soon(tmp_path: Path, verb: str) -> None:
    async def scenario(pause: float) -> None:
        memory = KronosMemory(tmp_path / "store", **HASH)
        await memory.connect()
        await memory.add_many(
            [{"content": f"text {i}", "id": f"m{i}"} for i in range(40)], on_conflict="replace"
        )
        calls = [asyncio.create_task(VERBS[verb](memory, tmp_path)) for _ in range(3)]
        await asyncio.sleep(pause)
        started = time.monotonic()
        await asyncio.gather(memory.close(), memory.close())
        ended = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 20)
        assert time.monotonic() - started < 8
        for each in ended:
            assert not isinstance(each, BaseException) or isinstance(each, KronosError), each
        with pytest.raises(StoreClosedError):
            await VERBS[verb](memory, tmp_path)

    for pause in (0, 0.002, 0.02):
        asyncio.run(scenario(pause))
    with MemoryStore.open(tmp_path / "store", **HASH) as store:
        assert store.maintenance.check().problems == ()


def test_the_loop_that_opened_it_may_be_gone_when_it_is_closed(tmp_path: Path) -> None:
    memory = KronosMemory(tmp_path, **HASH)
    asyncio.run(memory.connect())
    asyncio.run(memory.add("kept"))
    asyncio.run(memory.close())
    asyncio.run(memory.close())
    with MemoryStore.open(tmp_path, **HASH) as store:
        assert store.count() == 1
    names = [t.name for t in threading.enumerate() if t.name.startswith("kronos-")]
    for _ in range(100):
        if not names:
            break
        time.sleep(0.05)
        names = [t.name for t in threading.enumerate() if t.name.startswith("kronos-")]
    assert not names


def run_program(program: str, path: Path, timeout: float = 60) -> tuple[str, str]:
    """What a program of its own says."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), str(path)],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=True,
    )
    return done.stdout, done.stderr


@pytest.mark.parametrize("threads_before", [True, False])
def test_it_can_be_closed_as_the_interpreter_ends(tmp_path: Path, threads_before: bool) -> None:
    said, errors = run_program(
        f"""
        import asyncio, atexit, sys
        from kronos import KronosMemory
        memory = KronosMemory(sys.argv[1], embedding_model="hash", embedding_dim=64)
        def close():
            asyncio.run(memory.close())
            print("closed")
        atexit.register(close)
        asyncio.run(memory.connect())
        if {threads_before}:
            asyncio.run(memory.add("kept"))
        """,
        tmp_path,
    )
    assert (said, errors) == ("closed\n", "")
    with MemoryStore.open(tmp_path, **HASH) as store:
        assert store.count() == threads_before


def test_calls_can_be_made_as_the_interpreter_ends(tmp_path: Path) -> None:
    said, errors = run_program(
        """
        import asyncio, atexit, sys
        from kronos import KronosMemory
        memory = KronosMemory(sys.argv[1], embedding_model="hash", embedding_dim=64)
        async def last():
            async with memory:
                id = await memory.add("the last words", metadata={"n": [*range(5000)]})
                print((await memory.search("last words", limit=1))[0].id == id)
                print((await memory.maintenance.check()).ok, await memory.count())
        atexit.register(lambda: asyncio.run(last()))
        """,
        tmp_path,
    )
    assert (said, errors) == ("True\nTrue 1\n", "")


def test_a_program_whose_embedder_is_stuck_comes_to_its_end(tmp_path: Path) -> None:
    started = time.monotonic()
    said, errors = run_program(
        """
        import asyncio, sys, threading
        import kronos.concurrency.threads
        from kronos import KronosMemory
        from kronos.embedding.hashing import HashEmbedder
        kronos.concurrency.threads.SHUTDOWN_TIMEOUT_S = 1.0
        class Stuck(HashEmbedder):
            is_stuck = False
            def embed_documents(self, texts):
                if self.is_stuck:
                    threading.Event().wait()
                return super().embed_documents(texts)
        embedder = Stuck(16)
        async def main():
            memory = KronosMemory(sys.argv[1], embedder=embedder)
            await memory.connect()
            embedder.is_stuck = True
            call = asyncio.create_task(memory.add("text"))
            await asyncio.sleep(0.2)
            print("the end")
        asyncio.run(main())
        """,
        tmp_path,
    )
    assert (said, errors) == ("the end\n", "")
    assert time.monotonic() - started < 30


# -- Stuck embedders ----------------------------------------------------------------------------

DIVERSE = Ranking(diversity=0.5)
PROMPT: dict[str, Callable[[Any], Any]] = {
    "words": lambda m: m.search("bees", mode="lexical"),
    "words, of the past": lambda m: m.search("bees", mode="lexical", as_of=utc_now()),
    "words, diverse": lambda m: m.search("bees", mode="lexical", ranking=DIVERSE),
    "vector": lambda m: m.search(vector(16)),
    "many vectors": lambda m: m.search_many([vector(16), vector(16)]),
    "near": lambda m: m.search(near="a"),
    "get": lambda m: m.get("a"),
    "find": lambda m: m.find("nobody"),
    "list": lambda m: m.list(),
    "count": lambda m: m.count(),
    "history": lambda m: m.history("a"),
    "add, handed in": lambda m: m.add("x", embedding=vector(16)),
    "upsert, handed in": lambda m: m.upsert("y", embedding=[1.0] * 16),
    "add_many, handed in": lambda m: m.add_many([{"content": "z", "embedding": vector(16)}]),
    "update": lambda m: m.update("a", importance=0.2),
    "touch": lambda m: m.touch("a"),
    "link": lambda m: m.link("a", "b", "near"),
    "links": lambda m: m.links("a"),
    "delete": lambda m: m.delete("c"),
    "stats": lambda m: m.stats(),
    "check": lambda m: m.maintenance.check(),
    "jobs": lambda m: m.models.jobs(),
    "compact": lambda m: m.maintenance.compact(),
}
"""What needs no embedder."""
THREE = [{"content": f"bees {id}", "id": id} for id in "abc"]


@pytest.fixture
def short_waits(monkeypatch: pytest.MonkeyPatch) -> float:
    """So long `close` waits in this test."""
    for module in (async_opening, background, calls, opening):
        monkeypatch.setattr(module, "SHUTDOWN_TIMEOUT_S", 0.5)
    return 0.5


@pytest.mark.usefixtures("short_waits")
def test_nothing_that_needs_no_embedder_waits_for_one_in_asyncio(tmp_path: Path) -> None:
    embedder = Gated()
    tenant: ContextVar[int] = ContextVar("tenant")

    async def scenario() -> None:
        memory = KronosMemory(tmp_path, embedder=embedder)
        await memory.connect()
        await memory.add_many(THREE)
        embedder.gate.clear()

        def stuck(number: int) -> Coroutine[Any, Any, Any]:
            tenant.set(number)  # so that none shares its embedding
            ways: list[Callable[[], Coroutine[Any, Any, Any]]] = [
                lambda: memory.search(f"question {number}"),
                lambda: memory.add(f"text {number}"),
                lambda: memory.update("b", content=f"text {number}"),
                lambda: memory.search_many([f"question {number}", "other"]),
            ]
            return ways[number % len(ways) if number < 50 else 0]()

        waiting = [asyncio.create_task(stuck(number)) for number in range(1000)]
        await asyncio.sleep(0.3)
        for name, call in PROMPT.items():
            try:
                await asyncio.wait_for(call(memory), 10)
            except asyncio.TimeoutError:
                pytest.fail(f"{name} waits for the embedder")
        assert not any(call.done() for call in waiting)
        started = time.monotonic()
        await asyncio.gather(memory.close(), memory.close())
        assert time.monotonic() - started < 10
        ended = await asyncio.gather(*waiting, return_exceptions=True)
        assert all(isinstance(each, StoreClosedError) for each in ended)
        # What is stuck holds up nobody who comes later.
        again = Gated()
        memory._store._session.options.embedder = again
        await memory.connect()
        assert await asyncio.wait_for(memory.add("again"), 10)
        await memory.close()
        embedder.gate.set()

    asyncio.run(scenario())


def test_nothing_that_needs_no_embedder_waits_for_one_in_threads(tmp_path: Path) -> None:
    embedder = Gated()
    store = MemoryStore.open(tmp_path, embedder=embedder)
    store.add_many(THREE)
    embedder.gate.clear()
    with ThreadPoolExecutor(60) as pool:
        waiting: list[Future[Any]]
        waiting = [pool.submit(store.search, f"question {n}") for n in range(20)]
        waiting += [pool.submit(store.add, f"text {n}") for n in range(20)]
        waiting += [pool.submit(store.update, "b", content=f"text {n}") for n in range(10)]
        time.sleep(0.2)
        for name, call in PROMPT.items():
            try:
                pool.submit(call, store).result(10)
            except TimeoutError:
                pytest.fail(f"{name} waits for the embedder")
        assert not any(call.done() for call in waiting)
        started = time.monotonic()
        store.close()
        assert time.monotonic() - started < 5
        embedder.gate.set()
        assert all(isinstance(each.exception(30), StoreClosedError) for each in waiting)


def test_a_search_that_needs_no_embedder_leaves_what_is_pending_to_the_background(
    tmp_path: Path,
) -> None:
    embedder = Gated()
    with MemoryStore.open(tmp_path, embedder=embedder) as store:
        store.add_many(THREE)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", KronosWarning)
            lost = MemoryStore.open(tmp_path, embedding_model="no-such/model", settings=SOON)
        with lost:
            lost.add("written by a process that has no such embedder", id="late")
        embedder.gate.clear()
        ways: list[Callable[[], Any]] = [
            lambda: store.search(vector(16)),
            lambda: store.search(near="a"),
            lambda: store.search("bees", mode="lexical", ranking=DIVERSE),
        ]
        with ThreadPoolExecutor(1) as pool:
            for way in ways:
                assert len(pool.submit(way).result(10)) >= 2
        embedder.gate.set()
        store._session.jobs.wait(30)
        assert "late" in {hit.id for hit in store.search(vector(16))}


@pytest.mark.parametrize("face", ["async", "sync"])
def test_close_leaves_a_job_that_is_stuck_to_its_thread(
    tmp_path: Path, short_waits: float, face: str
) -> None:
    with MemoryStore.open(tmp_path, embedding_model="hash", embedding_dim=32) as store:
        store.add_many(THREE)
    embedder = Gated()
    embedder.gate.clear()
    options: dict[str, Any] = {
        "embedder": embedder,
        "on_model_change": "background",
        "settings": Settings(lease_s=1),  # what is stuck keeps its texts for so long
    }
    if face == "async":
        memory = KronosMemory(tmp_path, **options)
        asyncio.run(memory.connect())
    else:
        store = MemoryStore.open(tmp_path, **options)
    assert embedder.entered.wait(30)
    started = time.monotonic()
    asyncio.run(memory.close()) if face == "async" else store.close()
    assert time.monotonic() - started < 10 * short_waits
    embedder.gate.set()
    with MemoryStore.open(tmp_path, embedder=embedder) as store:
        assert store.count() == 3
        assert store.maintenance.check().problems == ()


@pytest.mark.parametrize("face", ["async", "sync"])
def test_close_waits_for_no_model_that_loads_for_ever_and_the_store_opens_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, short_waits: float, face: str
) -> None:
    loading, loaded = threading.Event(), threading.Event()
    load = Embedders.asked_for

    def slow(embedders: Embedders) -> Any:
        loading.set()
        assert loaded.wait(60)
        return load(embedders)

    monkeypatch.setattr(Embedders, "asked_for", slow)
    memory = KronosMemory(tmp_path, **HASH)
    store = MemoryStore(tmp_path, **HASH) if face == "sync" else memory._store

    def connect() -> None:
        asyncio.run(memory.connect()) if face == "async" else store.connect()

    def close() -> None:
        asyncio.run(memory.close()) if face == "async" else store.close()

    with ThreadPoolExecutor(1) as pool:
        opening = pool.submit(connect)
        assert loading.wait(30)
        started = time.monotonic()
        close()
        assert time.monotonic() - started < 20 * short_waits
        monkeypatch.setattr(Embedders, "asked_for", load)
        connect()
        assert store.add("text", id="a") == "a"
        loaded.set()
        assert isinstance(opening.exception(30), StoreClosedError)
    assert store.get("a").content == "text", "what comes too late disturbs nothing"
    close()


@pytest.mark.usefixtures("short_waits")
def test_a_call_that_comes_to_its_second_half_after_the_end_says_so(tmp_path: Path) -> None:
    embedder = Gated()

    async def scenario() -> None:
        memory = KronosMemory(tmp_path, embedder=embedder)
        await memory.connect()
        under_way, store = memory._opening.calls, memory._store
        batch = store._adding.prepare("text", "error")
        serving = store._session.serving
        embedder.gate.clear()
        waiting = [asyncio.create_task(memory.add("stuck")) for _ in range(2)]
        waiting.append(asyncio.create_task(memory.search("stuck")))  # type: ignore[arg-type]
        assert await asyncio.to_thread(embedder.entered.wait, 10)
        await memory.close()
        for late in (
            under_way.add(batch),
            under_way.ask(serving, ["question"]),
            under_way.read(store.count),
            under_way.write(store.delete, "m"),
            under_way.encode(store.count),
            under_way.apart(store.count),
            under_way.long(store.maintenance.check, stop=None),
        ):
            with pytest.raises(StoreClosedError):
                await asyncio.wait_for(late, 10)
        await asyncio.gather(*waiting, return_exceptions=True)
        embedder.gate.set()

    asyncio.run(scenario())


def test_reads_wait_for_no_writer_in_asyncio(tmp_path: Path) -> None:
    async def scenario() -> None:
        settings = Settings(busy_timeout_s=3)
        async with KronosMemory(tmp_path, **HASH, settings=settings) as memory:
            await memory.add_many(THREE)
            with contextlib.closing(sqlite3.connect(tmp_path / "kronos.db")) as other:
                other.execute("BEGIN IMMEDIATE")
                writes: list[asyncio.Task[Any]]
                writes = [asyncio.create_task(memory.delete(f"x{n}")) for n in range(40)]
                writes += [asyncio.create_task(memory.link("a", "b", "x")) for _ in range(40)]
                await asyncio.sleep(0.1)
                started = time.monotonic()
                await asyncio.gather(
                    *(memory.search("bees") for _ in range(8)), memory.list(), memory.count()
                )
                assert time.monotonic() - started < 2
                other.execute("ROLLBACK")
            await asyncio.gather(*writes)

    asyncio.run(scenario())


def test_maintenance_never_takes_the_threads_that_searches_need(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    going_on = threading.Event()
    held_up = ["check", "duplicates", "compact", "backup", "export_to", "import_from", "tune"]
    held_up += ["plan", "reindex", "rebuild_fulltext", "index_field", "stats"]
    for verb in held_up:
        owner = next(each for each in (MemoryStore, Maintenance, Models) if hasattr(each, verb))
        monkeypatch.setattr(owner, verb, lambda *_, **__: going_on.wait(60))

    async def scenario() -> None:
        async with KronosMemory(tmp_path, **HASH) as memory:
            await memory.add_many(THREE)
            verbs: dict[str, Callable[[KronosMemory, Path], Coroutine[Any, Any, Any]]]
            verbs = {**VERBS, "import_from": lambda m, folder: m.import_from(folder / "x.jsonl")}
            held = [
                asyncio.create_task(verbs[verb](memory, tmp_path))
                for verb in held_up
                for _ in range(9)
            ]
            await asyncio.sleep(0.1)
            found = await asyncio.wait_for(
                asyncio.gather(*(memory.search("bees") for _ in range(20)), memory.add("x")), 10
            )
            assert all(len(hits) >= 3 for hits in found[:-1])
            going_on.set()
            await asyncio.gather(*held)

    asyncio.run(scenario())


# -- Anything at once ---------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_threads_that_do_anything_at_once_lose_and_hang_nothing(tmp_path: Path, seed: int) -> None:
    memory = KronosMemory(tmp_path, **HASH)
    acknowledged: dict[str, str] = {}
    unexpected: list[BaseException] = []

    async def act(chance: random.Random, name: str) -> None:
        match chance.randrange(9):
            case 0 | 1 | 2:
                acknowledged[await memory.add(name)] = name
            case 3:
                texts = [f"{name}/{i}" for i in range(chance.randrange(1, 30))]
                acknowledged.update(zip(await memory.add_many(texts), texts, strict=True))
            case 4:
                await asyncio.gather(*(memory.search(name, limit=1) for _ in range(3)))
            case 5:
                async with memory:
                    acknowledged[await memory.add(name)] = name
            case 6:
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(memory.add(name), chance.random() / 100)
            case 7:
                await memory.connect()
            case _:
                await (memory.close() if chance.random() < 0.3 else memory.count())

    async def several(chance: random.Random, name: str) -> None:
        calls = (attempt(chance, f"{name}.{i}") for i in range(chance.randrange(1, 6)))
        await asyncio.gather(*calls)

    async def attempt(chance: random.Random, name: str) -> None:
        try:
            try:
                await act(chance, name)
            except StoreClosedError:
                await memory.connect()
        except KronosError:
            pass
        except BaseException as exc:
            unexpected.append(exc)
            raise

    def life(number: int) -> None:
        chance = random.Random(f"{seed} {number}")
        loop = asyncio.new_event_loop() if number % 3 == 0 else None
        for turn in range(15):
            work = several(chance, f"{number}.{turn}")
            asyncio.run(work) if loop is None else loop.run_until_complete(work)
        if loop is not None:
            loop.close()

    in_threads(9, life)
    assert not unexpected
    asyncio.run(memory.connect())
    held = {m.id: m.content for m in asyncio.run(memory.list(limit=100_000))}
    assert acknowledged.items() <= held.items()
    assert len(acknowledged) > 50
    assert asyncio.run(memory.maintenance.check()).problems == ()
    for text in random.Random(seed).sample([*acknowledged.values()], 5):
        assert text in {hit.content for hit in asyncio.run(memory.search(text, limit=100))}
    asyncio.run(memory.close())
