"""Embedders that are awaited: on whose event loop they run, and what becomes of them."""

from __future__ import annotations

import asyncio
import functools
import gc
import threading
import time
import warnings
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kronos import AsyncEmbedder, KronosMemory, MemoryStore
from kronos.aio import calls
from kronos.concurrency import background
from kronos.embedding import async_adapter
from kronos.embedding.hashing import HashEmbedder
from kronos.errors import (
    ConfigurationError,
    DimensionMismatchError,
    EmbeddingError,
    StoreClosedError,
)
from kronos.serving import session as opening

TENANT: ContextVar[str] = ContextVar("tenant", default="nobody")
HASH = HashEmbedder(16)


class Api:
    """A hosted embedder, asked by awaiting."""

    def __init__(self, name: str = "api") -> None:
        self.model_id = self.fingerprint = name
        self.dim = 16
        self.max_tokens = 512
        self.loops: list[asyncio.AbstractEventLoop] = []
        self.sizes: list[int] = []
        self.seconds = 0.001

    async def embed_documents(self, texts: Sequence[str]) -> Any:
        self.loops.append(asyncio.get_running_loop())
        self.sizes.append(len(texts))
        await asyncio.sleep(self.seconds)
        return HASH.embed_documents(texts)

    async def embed_queries(self, texts: Sequence[str]) -> Any:
        return await self.embed_documents(texts)


class Session:
    """What an HTTP client is like: made on an event loop, and of use on that one alone."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()

    async def post(self, texts: Sequence[str]) -> Any:
        if asyncio.get_running_loop() is not self.loop:
            raise RuntimeError("this session is bound to a different event loop")
        async with asyncio.timeout(5) if hasattr(asyncio, "timeout") else asyncio.Lock():
            await asyncio.sleep(0.001)
        return HASH.embed_documents(texts)


class Client(Api):
    """An embedder around a session."""

    def __init__(self, session: Session | None = None) -> None:
        super().__init__()
        self.session = session

    async def embed_documents(self, texts: Sequence[str]) -> Any:
        if self.session is None:
            self.session = Session()
        return await self.session.post(texts)


async def use_every_way(memory: KronosMemory) -> None:
    """Call every verb that embeds."""
    id = await memory.add("bees keep to the roof")
    await memory.add_many(["cats sleep", {"content": "trains run"}])
    await memory.add_many(text for text in ("a stream", "of texts"))
    await memory.upsert("bees keep to the roof", importance=0.7)
    await memory.update(id, content="bees fly")
    assert (await memory.search("bees fly", limit=1))[0].id == id
    assert len(await memory.search_many(["bees", "cats"])) == 2
    assert len(await asyncio.gather(*(memory.search(f"cat {i}") for i in range(20)))) == 20
    assert (await memory.models.plan()).memories == 0
    assert (await memory.reindex()).pending == 0
    assert (await memory.stats()).max_tokens == 512


def test_an_embedder_that_is_awaited_works(tmp_path: Path) -> None:
    api = Api()
    assert isinstance(api, AsyncEmbedder)

    async def scenario() -> None:
        async with KronosMemory(tmp_path, embedder=api) as memory:
            await use_every_way(memory)
        assert set(api.loops) == {asyncio.get_running_loop()}, "as a direct call would run"

    asyncio.run(scenario())


def test_a_session_of_the_callers_own_loop_works(tmp_path: Path) -> None:
    async def scenario() -> None:
        client = Client(Session())
        async with KronosMemory(tmp_path, embedder=client) as memory:
            await use_every_way(memory)

    asyncio.run(scenario())


def test_opening_awaits_on_the_loop_that_opens(tmp_path: Path) -> None:
    with MemoryStore.open(tmp_path, embedding_model="hash", embedding_dim=16) as store:
        store.add_many(f"text {number}" for number in range(300))

    async def scenario() -> None:
        async with KronosMemory(tmp_path, embedder=Client(Session())) as memory:
            assert (await memory.stats()).embedder == "api"
            assert (await memory.search("text 7", limit=1))[0].content == "text 7"
            assert (await memory.models.rollback()).activated

    asyncio.run(scenario())


def test_calls_of_many_loops_run_each_on_its_own(tmp_path: Path) -> None:
    api = Api()
    memory = KronosMemory(tmp_path, embedder=api)
    asyncio.run(memory.connect())
    used: list[asyncio.AbstractEventLoop] = []

    async def call(number: int) -> str:
        used.append(asyncio.get_running_loop())
        id = await memory.add(f"text {number}")
        assert (await memory.search(f"text {number}", limit=1))[0].id == id
        return id

    with ThreadPoolExecutor(12) as pool:
        ids = set(pool.map(lambda number: asyncio.run(call(number)), range(40)))
    assert len(ids) == asyncio.run(memory.count()) == 40
    assert set(api.loops) == set(used)
    asyncio.run(memory.close())


def test_those_of_one_loop_and_context_are_embedded_together_and_no_others(tmp_path: Path) -> None:
    mixed: list[tuple[str, str]] = []

    class OfTenant(Api):
        async def embed_documents(self, texts: Sequence[str]) -> Any:
            mixed.extend(
                (text, TENANT.get()) for text in texts if not text.startswith(TENANT.get())
            )
            return await super().embed_documents(texts)

    api = OfTenant()
    api.seconds = 0.02

    async def tenant(memory: KronosMemory, name: str) -> None:
        TENANT.set(name)
        await asyncio.gather(*(memory.add(f"{name} says {i}") for i in range(30)))
        await asyncio.gather(*(memory.search(f"{name} asks {i}") for i in range(30)))

    async def scenario() -> None:
        async with KronosMemory(tmp_path, embedder=api) as memory:
            await asyncio.gather(*(tenant(memory, f"tenant {i}") for i in range(4)))

    asyncio.run(scenario())
    assert mixed == []
    assert len(api.sizes) < 40


# -- Whose they are, and who refuses them -------------------------------------------------------


def as_partial(api: Any) -> Any:
    """With methods that nobody can tell to be awaited."""
    api.embed_documents = functools.partial(
        lambda method, texts: method(texts), api.embed_documents
    )
    return api


class Called(Api):
    """Its methods are objects that are called."""

    class Method:
        async def __call__(self, texts: Sequence[str]) -> Any:
            return HASH.embed_documents(texts)

    embed_documents = Method()
    embed_queries = Method()


class Half(Api):
    """Only questions are awaited."""

    def embed_documents(self, texts: Sequence[str]) -> Any:
        return HASH.embed_documents(texts)

    async def embed_queries(self, texts: Sequence[str]) -> Any:
        await asyncio.sleep(0)
        return HASH.embed_queries(texts)


KINDS: list[Callable[[], Any]] = [Api, Called, Half, lambda: as_partial(Api())]


@pytest.mark.parametrize("make", KINDS)
def test_any_embedder_that_is_awaited_somewhere_works(tmp_path: Path, make: Any) -> None:
    async def scenario() -> None:
        async with KronosMemory(tmp_path, embedder=make()) as memory:
            await use_every_way(memory)

    asyncio.run(scenario())


@pytest.mark.parametrize("make", KINDS[:3])
def test_the_sync_store_refuses_it_by_name_when_it_opens(tmp_path: Path, make: Any) -> None:
    with pytest.raises(
        ConfigurationError, match=r"embed_\w+ is a coroutine function.*KronosMemory"
    ):
        MemoryStore.open(tmp_path, embedder=make())


@pytest.mark.parametrize("missing", ["model_id", "fingerprint", "dim", "embed_queries"])
def test_one_that_lacks_a_part_is_refused_by_name(tmp_path: Path, missing: str) -> None:
    parts = {name: value for name, value in vars(Api()).items() if name != missing}
    methods = {"embed_documents": Api.embed_documents, "embed_queries": Api.embed_queries}
    broken = type("Broken", (), {**parts, **{n: m for n, m in methods.items() if n != missing}})()
    with pytest.raises(ConfigurationError, match=missing):
        asyncio.run(KronosMemory(tmp_path, embedder=broken).connect())


def test_what_goes_wrong_in_it_is_told_and_costs_nobody_else_anything(tmp_path: Path) -> None:
    class Failing(Api):
        async def embed_documents(self, texts: Sequence[str]) -> Any:
            if "poison" in texts:
                raise ValueError("the API refuses it")
            if "narrow" in texts:
                return np.ones((len(texts), 3))
            return await super().embed_documents(texts)

    async def scenario() -> None:
        async with KronosMemory(tmp_path, embedder=Failing()) as memory:
            results = await asyncio.gather(
                memory.add("one"),
                memory.add("poison"),
                memory.add("narrow"),
                memory.add("two"),
                memory.search("poison"),
                memory.search("one"),
                return_exceptions=True,
            )
            assert isinstance(results[1], EmbeddingError)
            assert "the API refuses it" in str(results[1])
            assert isinstance(results[2], DimensionMismatchError)
            assert isinstance(results[4], EmbeddingError)
            assert {m.content for m in await memory.list()} == {"one", "two"}

    asyncio.run(scenario())


# -- Cancelled, stuck, and where nobody waits ---------------------------------------------------


class Stuck(Api):
    """Waits for ever, and notes when it is cancelled."""

    def __init__(self) -> None:
        super().__init__()
        self.is_stuck = False
        self.entered = threading.Event()
        self.cancelled = threading.Event()

    async def embed_documents(self, texts: Sequence[str]) -> Any:
        if self.is_stuck:
            self.entered.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.cancelled.set()
                raise
        return await super().embed_documents(texts)


@pytest.fixture
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """`close` does not wait long in this test, and nothing hangs for ever."""
    for module in (background, calls, opening):
        monkeypatch.setattr(module, "SHUTDOWN_TIMEOUT_S", 0.5)


@pytest.mark.parametrize("verb", ["add", "search", "update", "add_many", "reindex"])
def test_a_call_that_is_cancelled_cancels_what_it_awaits(tmp_path: Path, verb: str) -> None:
    stuck = Stuck()

    async def scenario() -> None:
        async with KronosMemory(tmp_path, embedder=stuck) as memory:
            await memory.add("a text", id="a")
            verbs: dict[str, Callable[[], Coroutine[Any, Any, Any]]] = {
                "add": lambda: memory.add("text"),
                "search": lambda: memory.search("text"),
                "update": lambda: memory.update("a", content="changed"),
                "add_many": lambda: memory.add_many(["text", "text"]),
                "reindex": lambda: memory.models.rollback(),
            }
            if verb == "reindex":
                await memory.reindex("hash")
                await memory.update("a", content="changed meanwhile")
            stuck.is_stuck = True
            call = asyncio.create_task(verbs[verb]())
            assert await asyncio.to_thread(stuck.entered.wait, 10)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            assert await asyncio.to_thread(stuck.cancelled.wait, 10)
            stuck.is_stuck = False
            assert await asyncio.wait_for(memory.add("the next one"), 20)

    asyncio.run(scenario())


def test_one_of_two_that_share_an_embedding_may_be_cancelled(tmp_path: Path) -> None:
    api = Api()

    async def scenario() -> None:
        async with KronosMemory(tmp_path, embedder=api) as memory:
            api.seconds = 0.5
            first = asyncio.create_task(memory.add("zero"))
            await asyncio.sleep(0.1)
            pair = [asyncio.create_task(memory.add(text)) for text in ("one", "two")]
            await first
            await asyncio.sleep(0.1)
            pair[0].cancel()
            assert await pair[1]
            assert {"zero", "two"} <= {m.content for m in await memory.list()}

    asyncio.run(scenario())
    assert api.sizes[-1] == 2


@pytest.mark.usefixtures("short_waits")
def test_what_needs_no_embedder_does_not_wait_for_it(tmp_path: Path) -> None:
    stuck = Stuck()

    async def scenario() -> None:
        memory = KronosMemory(tmp_path, embedder=stuck)
        await memory.connect()
        id = await memory.add("bees")
        stuck.is_stuck = True
        waiting = [asyncio.create_task(memory.search(f"text {i}")) for i in range(200)]
        waiting += [asyncio.create_task(memory.search_many([f"text {i}"])) for i in range(50)]  # type: ignore[arg-type]
        assert await asyncio.to_thread(stuck.entered.wait, 10)
        prompt = [
            memory.search("bees", mode="lexical"),
            memory.search(np.ones(16, np.float32)),
            memory.search(near=id),
            memory.get(id),
            memory.add("handed in", embedding=[1.0] * 16),
        ]
        await asyncio.wait_for(asyncio.gather(*prompt), 10)
        started = time.monotonic()
        await memory.close()
        assert time.monotonic() - started < 10
        ended = await asyncio.gather(*waiting, return_exceptions=True)
        assert all(isinstance(each, StoreClosedError) for each in ended)
        assert await asyncio.to_thread(stuck.cancelled.wait, 10)

    asyncio.run(scenario())


def test_a_job_in_the_background_outlives_the_loop_that_opened(tmp_path: Path) -> None:
    with MemoryStore.open(tmp_path, embedding_model="hash", embedding_dim=16) as store:
        store.add_many(f"text {number}" for number in range(200))
    api = Api()
    api.seconds = 0.2
    memory = KronosMemory(tmp_path, embedder=api, on_model_change="background")
    asyncio.run(memory.connect())  # its loop ends at once
    memory._store._session.jobs.wait(30)
    assert asyncio.run(memory.stats()).spaces[-1].pending == 0
    assert asyncio.run(memory.search("text 7", limit=1))[0].embedder == "api"
    asyncio.run(memory.close())
    assert not [t for t in threading.enumerate() if t.name == "kronos-await"]
    asyncio.run(memory.connect())
    assert asyncio.run(memory.add("again"))
    asyncio.run(memory.close())


@pytest.mark.usefixtures("short_waits")
def test_a_stuck_job_in_the_background_is_cancelled_by_close(tmp_path: Path) -> None:
    with MemoryStore.open(tmp_path, embedding_model="hash", embedding_dim=16) as store:
        store.add_many(f"text {number}" for number in range(20))
    stuck = Stuck()
    stuck.is_stuck = True
    memory = KronosMemory(tmp_path, embedder=stuck, on_model_change="background")
    asyncio.run(memory.connect())
    assert stuck.entered.wait(10)
    started = time.monotonic()
    asyncio.run(memory.close())
    assert time.monotonic() - started < 10
    assert stuck.cancelled.wait(10)
    for _ in range(100):
        if not [t for t in threading.enumerate() if t.name == "kronos-await"]:
            break
        time.sleep(0.05)
    else:
        pytest.fail("its event loop still runs")


@pytest.mark.parametrize("way", ["cancelled", "stopped", "closed"])
def test_a_loop_that_ends_amid_an_embedding_costs_the_others_nothing(
    tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(async_adapter, "_LONGEST_STANDSTILL_S", 0.3)
    stuck = Stuck()
    memory = KronosMemory(tmp_path, embedder=stuck)
    asyncio.run(memory.connect())
    stuck.is_stuck = True
    loop = asyncio.new_event_loop()
    call = loop.create_task(memory.add("never"))
    while not stuck.entered.is_set():
        loop.run_until_complete(asyncio.sleep(0.01))
    stuck.is_stuck = False
    if way == "cancelled":
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.gather(call, return_exceptions=True))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if way == "stopped":
            time.sleep(1)
            assert loop.run_until_complete(call), "it was embedded elsewhere meanwhile"
        else:
            for task in asyncio.all_tasks(loop):
                task._log_destroy_pending = False  # type: ignore[attr-defined]
            loop.close()
        del call
        gc.collect()
        assert asyncio.run(asyncio.wait_for(memory.add("others"), 20))
        assert asyncio.run(asyncio.wait_for(memory.search("others", limit=1), 20))
        asyncio.run(memory.close())
    if way == "stopped":
        loop.close()
