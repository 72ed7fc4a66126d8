"""KronosMemory: the same verbs, on threads; concurrent adds share work; nothing is half done."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from kronos import KronosMemory, MemoryStore
from kronos.aio.maintenance import AsyncMaintenance
from kronos.aio.models import AsyncModels
from kronos.embedding.hashing import HashEmbedder
from kronos.errors import (
    ConfigurationError,
    ContentError,
    DuplicateIdError,
    EmbeddingError,
    StoreBusyError,
    StoreClosedError,
)
from kronos.settings import Settings
from kronos.store.maintenance import Maintenance
from kronos.store.models import Models

FACES: list[tuple[type, type]] = [
    (MemoryStore, KronosMemory),
    (Models, AsyncModels),
    (Maintenance, AsyncMaintenance),
]


def verbs_of(face: type) -> set[str]:
    return {name for name, _ in inspect.getmembers(face, callable) if not name.startswith("_")}


VERBS = [
    (sync, asynchronous, name)
    for sync, asynchronous in FACES
    for name in sorted(verbs_of(sync) - {"open", "iterate"})
]


@pytest.mark.parametrize(("sync", "asynchronous", "name"), VERBS)
def test_both_faces_have_the_same_signatures_and_documentation(
    sync: type, asynchronous: type, name: str
) -> None:
    verb, mirrored = getattr(sync, name), getattr(asynchronous, name)
    assert inspect.iscoroutinefunction(mirrored)
    assert inspect.signature(verb) == inspect.signature(mirrored)
    documentation = inspect.getdoc(verb)
    assert documentation
    if name not in ("connect", "close"):  # which know of tasks
        assert inspect.getdoc(mirrored) == documentation


@pytest.mark.parametrize(("sync", "asynchronous"), FACES)
def test_both_faces_have_the_same_verbs(sync: type, asynchronous: type) -> None:
    assert verbs_of(asynchronous) == verbs_of(sync) - {"open"}


def test_both_faces_iterate_alike() -> None:
    assert inspect.signature(MemoryStore.iterate) == inspect.signature(KronosMemory.iterate)
    assert inspect.isasyncgenfunction(KronosMemory.iterate)


def test_the_store_has_the_verbs_of_every_day() -> None:
    assert len(verbs_of(MemoryStore) - {"open", "connect", "close"}) <= 24


def test_both_constructors_take_the_same_options() -> None:
    sync = dict(inspect.signature(MemoryStore).parameters)
    asynchronous = dict(inspect.signature(KronosMemory).parameters)
    del sync["clock"]
    # The one difference: an embedder that is awaited.
    assert asynchronous["embedder"].annotation == "Embedder | AsyncEmbedder | None"
    asynchronous["embedder"] = asynchronous["embedder"].replace(annotation="Embedder | None")
    assert sync == asynchronous


class Counting(HashEmbedder):
    """The hash embedder, slowed down; keeps what it was asked for."""

    def __init__(self) -> None:
        super().__init__(dim=64)
        self.calls: list[list[str]] = []
        self.seconds = 0.0
        self.poison: str | None = None

    def embed_documents(self, texts: Sequence[str]) -> Any:
        self.calls.append(list(texts))
        time.sleep(self.seconds)
        if self.poison in texts:
            raise RuntimeError("this text cannot be embedded")
        return super().embed_documents(texts)


def test_all_verbs_work_together(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with KronosMemory(tmp_path, embedding_model="hash") as memory:
            id = await memory.add("the cat sat on the mat", metadata={"a": 1})
            more = await memory.add_many(["trains to Lisbon", {"content": "rye bread"}])
            assert (await memory.get(id)).metadata == {"a": 1}
            assert await memory.find("nobody") is None
            assert [h.id for h in await memory.search("a cat on a mat", limit=1)] == [id]
            assert await memory.count() == 3
            assert [m.id for m in await memory.list()] == [id, *more]
            assert (await memory.update(id, content="dogs bark")).content == "dogs bark"
            assert (await memory.search("dogs bark"))[0].id == id
            assert await memory.delete(more) == 2
            assert (await memory.stats()).memories == 1
            assert (await memory.maintenance.check()).ok
            assert (await memory.reindex()).embedded == 0

    asyncio.run(scenario())


def test_concurrent_adds_share_encodings_and_all_are_stored(tmp_path: Path) -> None:
    embedder = Counting()
    embedder.seconds = 0.02

    async def scenario() -> None:
        async with KronosMemory(tmp_path, embedder=embedder) as memory:
            texts = [f"text number {i}" for i in range(64)]
            ids = await asyncio.gather(*(memory.add(text) for text in texts))
            assert [(await memory.get(id)).content for id in ids] == texts

    asyncio.run(scenario())
    assert len(embedder.calls) <= 3
    assert sum(map(len, embedder.calls)) == 64


def test_one_refused_call_leaves_the_calls_beside_it_alone(tmp_path: Path) -> None:
    embedder = Counting()
    embedder.poison = "poison"

    async def scenario() -> None:
        async with KronosMemory(tmp_path, embedder=embedder) as memory:
            results = await asyncio.gather(
                memory.add("one", id="x"),
                memory.add("two", id="x"),
                memory.add("poison"),
                memory.add(" "),
                memory.add("three"),
                return_exceptions=True,
            )
            assert results[0] == "x"
            assert isinstance(results[1], DuplicateIdError)
            assert isinstance(results[2], EmbeddingError)
            assert isinstance(results[3], ContentError)
            assert [m.content for m in await memory.list()] == ["one", "three"]

    asyncio.run(scenario())


def test_calls_that_share_a_transaction_share_its_failure_and_wait_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        settings = Settings(busy_timeout_s=0.3)
        async with KronosMemory(tmp_path, embedding_model="hash", settings=settings) as memory:
            with contextlib.closing(sqlite3.connect(tmp_path / "kronos.db")) as other:
                other.execute("BEGIN IMMEDIATE")
                started = time.perf_counter()
                results = await asyncio.gather(
                    *(memory.add(f"text {i}") for i in range(20)), return_exceptions=True
                )
                assert time.perf_counter() - started < 3
            assert all(isinstance(result, StoreBusyError) for result in results)
            assert await memory.count() == 0
            assert await memory.add("the lock is free again")

    asyncio.run(scenario())


def test_encoding_does_not_block_the_event_loop(tmp_path: Path) -> None:
    embedder = Counting()
    embedder.seconds = 0.5

    async def scenario() -> float:
        async with KronosMemory(tmp_path, embedder=embedder) as memory:
            adding = asyncio.create_task(memory.add("slow"))
            await asyncio.sleep(0.05)
            assert await memory.count() == 0
            longest, last = 0.0, time.perf_counter()
            while not adding.done():
                await asyncio.sleep(0.005)
                longest, last = max(longest, time.perf_counter() - last), time.perf_counter()
            return longest

    assert asyncio.run(scenario()) < 0.3


def test_a_cancelled_add_is_done_or_not_done(tmp_path: Path) -> None:
    embedder = Counting()
    embedder.seconds = 0.01

    async def scenario() -> None:
        async with KronosMemory(tmp_path, embedder=embedder) as memory:
            tasks = []
            for i in range(200):
                tasks.append(asyncio.create_task(memory.add(f"text {i}", id=f"m{i}")))
                if i % 7 == 0:
                    await asyncio.sleep(0.003)
                if i % 2:
                    tasks[i - 1].cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            stored = {m.id for m in await memory.list(limit=1000)}
            for i, result in enumerate(results):
                if isinstance(result, str):
                    assert f"m{i}" in stored
                else:
                    assert isinstance(result, asyncio.CancelledError)
            assert {h.id for h in await memory.search("text", limit=1000)} == stored
            assert (await memory.maintenance.check()).ok

    asyncio.run(scenario())


def test_close_waits_for_what_is_under_way(tmp_path: Path) -> None:
    embedder = Counting()
    embedder.seconds = 0.1

    async def scenario() -> None:
        memory = KronosMemory(tmp_path, embedder=embedder)
        await memory.connect()
        adding = asyncio.create_task(memory.add("kept"))
        await asyncio.sleep(0.01)
        await memory.close()
        await memory.close()
        id = await adding
        with pytest.raises(StoreClosedError):
            await memory.add("late")
        with pytest.raises(StoreClosedError):
            await memory.count()
        async with KronosMemory(tmp_path, embedder=embedder) as again:
            assert (await again.get(id)).content == "kept"

    asyncio.run(scenario())


def test_connecting_twice_at_once_opens_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[MemoryStore] = []
    connect = MemoryStore.connect

    def counted(store: MemoryStore, **options: Any) -> None:
        opened.append(store)
        connect(store, **options)

    monkeypatch.setattr(MemoryStore, "connect", counted)

    async def scenario() -> None:
        memory = KronosMemory(tmp_path, embedding_model="hash")
        await asyncio.gather(*(memory.connect() for _ in range(8)))
        assert len(opened) == 1
        await memory.add("once")
        await memory.close()

    asyncio.run(scenario())


def test_a_failed_connect_leaves_nothing_open(tmp_path: Path) -> None:
    (tmp_path / "kronos.db").mkdir()  # in the way

    async def scenario() -> None:
        memory = KronosMemory(tmp_path, embedding_model="hash")
        with pytest.raises(ConfigurationError):
            await memory.connect()
        with pytest.raises(StoreClosedError):
            await memory.count()

    asyncio.run(scenario())


def test_an_exception_inside_the_block_still_closes_the_store(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with KronosMemory(tmp_path, embedding_model="hash") as memory:
            await memory.add("kept")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        asyncio.run(scenario())
    with MemoryStore.open(tmp_path, embedding_model="hash") as store:
        assert store.count() == 1
