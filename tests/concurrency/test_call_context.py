"""An embedder runs in its caller's context, as if the caller had called it directly."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar, copy_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kronos import KronosMemory, MemoryStore
from kronos.concurrency.call_context import CallContext
from kronos.embedding.hashing import HashEmbedder
from kronos.settings import Settings
from kronos.store.adding import Adding

TENANT: ContextVar[str] = ContextVar("tenant", default="nobody")
REQUEST: ContextVar[object] = ContextVar("request")


class OfTenant(HashEmbedder):
    """Embeds for the tenant that the context names; each text begins with its own tenant."""

    def __init__(self, seconds: float = 0.005, see: Callable[[], str] = TENANT.get) -> None:
        super().__init__(dim=16)
        self.model_id = self.fingerprint = "of tenant"
        self.seconds = seconds
        self.see = see
        self.mixed: list[tuple[str, str]] = []
        self.calls: list[int] = []

    def embed_documents(self, texts: Sequence[str]) -> Any:
        time.sleep(self.seconds)
        self.calls.append(len(texts))
        self.mixed += [(text, self.see()) for text in texts if text.split(":")[0] != self.see()]
        return super().embed_documents(texts)


def calls_of(memory: KronosMemory, tenant: str) -> list[Coroutine[Any, Any, Any]]:
    """Calls of one tenant that embed."""
    return [
        *(memory.add(f"{tenant}: text {i}") for i in range(8)),
        *(memory.search(f"{tenant}: question {i}") for i in range(8)),
        memory.add_many([f"{tenant}: one", f"{tenant}: two"]),
        memory.add_many(f"{tenant}: stream {i}" for i in range(5)),
        memory.search_many([f"{tenant}: this", f"{tenant}: that"]),
        memory.upsert(f"{tenant}: upserted"),
        memory.update(f"of {tenant}", content=f"{tenant}: updated"),
    ]


def test_no_text_is_embedded_in_the_context_of_another_task(tmp_path: Path) -> None:
    embedder = OfTenant()

    async def tenant(memory: KronosMemory, name: str) -> None:
        TENANT.set(name)
        await memory.add(f"{name}: first", id=f"of {name}", on_conflict="ignore")
        await asyncio.gather(*calls_of(memory, name))

    async def scenario() -> None:
        async with KronosMemory(tmp_path, embedder=embedder) as memory:
            tenants = [tenant(memory, f"tenant {i}") for i in range(6)]
            elsewhere = [
                asyncio.to_thread(asyncio.run, tenant(memory, f"tenant {i}")) for i in range(3, 9)
            ]
            await asyncio.gather(*tenants, *elsewhere)

    asyncio.run(scenario())
    assert embedder.mixed == []
    assert max(embedder.calls) > 4, "those of one tenant are embedded together"


class Odd:
    """A value that equals everything, and has no hash."""

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        return True


@pytest.mark.parametrize(
    "values",
    [
        [Odd(), Odd()],
        [np.zeros(2), np.zeros(2)],
        [1, True],
        [1, 1.0],
        ["a", b"a"],
        [["a"], ["a"]],
        [0.0, -0.0],
        [float("nan"), float("nan")],
    ],
)
def test_contexts_with_different_values_have_different_keys(values: list[Any]) -> None:
    async def of(value: object) -> CallContext:
        REQUEST.set(value)
        return CallContext(asyncio.get_running_loop())

    async def scenario() -> None:
        one, other = [await asyncio.create_task(of(value)) for value in values]
        assert one.key != other.key
        again = await asyncio.create_task(of(values[1]))
        assert other.key == again.key

    asyncio.run(scenario())


def test_tasks_of_one_request_share_a_batch_and_equal_strings_are_equal_values(
    tmp_path: Path,
) -> None:
    embedder = OfTenant(0.05)

    async def add(memory: KronosMemory, number: int) -> str:
        TENANT.set("".join(["the ", "tenant"]))  # equal, and another object each time
        return await memory.add(f"the tenant: {number}")

    async def scenario() -> None:
        async with KronosMemory(tmp_path, embedder=embedder) as memory:
            await asyncio.gather(*(add(memory, number) for number in range(64)))

    asyncio.run(scenario())
    assert embedder.mixed == []
    assert len(embedder.calls) <= 3


def test_all_tasks_share_the_embedders_of_kronos(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared: list[int] = []
    write = Adding.add_together

    def counted(adding: Adding, batches: Any) -> Any:
        shared.append(len(batches))
        time.sleep(0.02)
        return write(adding, batches)

    monkeypatch.setattr(Adding, "add_together", counted)

    async def add(memory: KronosMemory, number: int) -> str:
        TENANT.set(str(number))
        return await memory.add(f"text {number}")

    async def scenario() -> None:
        async with KronosMemory(tmp_path, embedding_model="hash", embedding_dim=16) as memory:
            await asyncio.gather(*(add(memory, number) for number in range(64)))

    asyncio.run(scenario())
    assert len(shared) <= 3


@pytest.mark.parametrize("kind", ["thread-local", "context"])
def test_no_query_is_embedded_in_the_context_of_another_thread(tmp_path: Path, kind: str) -> None:
    here = threading.local()
    see: Callable[[], str]
    see = TENANT.get if kind == "context" else lambda: getattr(here, "tenant", "nobody")
    embedder = OfTenant(see=see)
    with MemoryStore.open(tmp_path, embedder=embedder) as store:

        def work(name: str) -> None:
            TENANT.set(name)
            here.tenant = name
            store.add(f"{name}: first", id=f"of {name}")
            for number in range(5):
                store.search(f"{name}: question {number}")
                store.search_many([f"{name}: a {number}", f"{name}: b {number}"])
                store.add(f"{name}: text {number}")
                store.update(f"of {name}", content=f"{name}: changed {number}")

        with ThreadPoolExecutor(12) as pool:
            names = [f"tenant {number}" for number in range(12)]
            list(pool.map(lambda name: copy_context().run(work, name), names))
    assert embedder.mixed == []


def test_iterators_and_progress_see_the_context_of_the_task(tmp_path: Path) -> None:
    seen: list[str] = []

    def texts() -> Iterator[str]:
        for number in range(7):
            seen.append(TENANT.get())
            yield f"me: {number}"

    def see(_: object) -> None:
        seen.append(TENANT.get())

    async def scenario() -> None:
        memory = KronosMemory(tmp_path / "s", embedder=OfTenant(), settings=Settings(batch_size=3))
        TENANT.set("me")
        await memory.connect(progress=see)
        await memory.add_many(texts(), progress=see)
        await memory.search_many(texts())
        await memory.maintenance.check(progress=see)
        await memory.duplicates(progress=see)
        await memory.maintenance.compact(progress=see)
        await memory.maintenance.backup(tmp_path / "copy.db", progress=see)
        await memory.export_to(tmp_path / "x.jsonl", progress=see)
        await memory.import_from(tmp_path / "x.jsonl", progress=see)
        await memory.models.plan(progress=see)
        await memory.close()

    asyncio.run(scenario())
    assert set(seen) == {"me"}
    assert len(seen) > 25


@pytest.mark.parametrize("face", ["async", "sync"])
def test_every_worker_of_a_reindex_sees_the_context_of_its_caller(
    tmp_path: Path, face: str
) -> None:
    with MemoryStore.open(tmp_path, embedding_model="hash", embedding_dim=16) as store:
        store.add_many(f"operator: text {number}" for number in range(400))
    embedder = OfTenant(0.001)
    options: dict[str, Any] = {"embedder": embedder, "settings": Settings(batch_size=20)}
    seen: list[str] = []

    async def scenario() -> None:
        async with KronosMemory(tmp_path, **options) as memory:
            await memory.models.rollback()
            await memory.reindex(workers=3, progress=lambda _: seen.append(TENANT.get()))

    def work() -> None:
        TENANT.set("operator")
        if face == "async":
            asyncio.run(scenario())
            return
        with MemoryStore.open(tmp_path, **options) as store:
            store.models.rollback()
            store.reindex(workers=3, progress=lambda _: seen.append(TENANT.get()))

    copy_context().run(work)
    assert embedder.mixed == []
    assert sum(embedder.calls) >= 400


def test_a_background_job_runs_in_the_context_that_opened_the_store(tmp_path: Path) -> None:
    with MemoryStore.open(tmp_path, embedding_model="hash", embedding_dim=16) as store:
        store.add_many(f"opener: text {number}" for number in range(50))
    embedder = OfTenant(0.001)

    async def scenario() -> None:
        TENANT.set("opener")
        memory = KronosMemory(tmp_path, embedder=embedder, on_model_change="background")
        await memory.connect()
        TENANT.set("somebody else")
        await asyncio.to_thread(memory._store._session.jobs.wait, 30)
        await memory.close()

    asyncio.run(scenario())
    assert embedder.mixed == []
    assert sum(embedder.calls) == 50
