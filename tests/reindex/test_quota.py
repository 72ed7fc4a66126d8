"""Embedders that fail temporarily: every call retries, and no failure is recorded."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kronos import KronosMemory, MemoryStore, NewMemory, Settings
from kronos.embedding import retry
from kronos.errors import (
    DuplicateIdError,
    EmbeddingError,
    InputError,
    KronosError,
    KronosWarning,
    StoreBusyError,
    StoreClosedError,
    TransientEmbeddingError,
)
from kronos.types import Job
from tests.conftest import Opener
from tests.embedding.failures import TRANSIENT
from tests.reindex.test_reindex import Turned, assert_all_vectors_are_of

SLOW = ("plain 429", "aws throttles with 400", "aws slow down")
"""Kinds whose error asks for a pause of a given length."""
SWIFT = sorted(set(TRANSIENT) - set(SLOW))
LIMIT_S = 0.3


class Api(Turned):
    """Allows two calls in 0.3 s, and says when to retry."""

    def __init__(self, dim: int = 8) -> None:
        super().__init__(dim, "api")
        self.times: list[float] = []
        self.refused: list[float] = []
        self.lock = threading.Lock()

    def embed_documents(self, texts: Sequence[str]) -> Any:
        with self.lock:
            now = time.monotonic()
            self.times = [each for each in self.times if now - each < LIMIT_S]
            if len(self.times) >= 2:
                self.refused.append(now)
                raise RuntimeError(f"429, Retry-After: {LIMIT_S}")
            self.times.append(now)
        return super().embed_documents(texts)


class Down(Turned):
    """Unreachable until `works` is set."""

    def __init__(self, message: str = "HTTP 503: temporarily unavailable") -> None:
        super().__init__(48, "down")
        self.message = message
        self.works = threading.Event()
        self.asked = threading.Event()
        self.calls = 0

    def _check(self) -> None:
        self.calls += 1
        self.asked.set()
        if not self.works.is_set():
            raise RuntimeError(self.message)

    def embed_documents(self, texts: Sequence[str]) -> Any:
        self._check()
        return super().embed_documents(texts)

    def embed_queries(self, texts: Sequence[str]) -> Any:
        self._check()
        return super().embed_queries(texts)


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits that grow from one millisecond."""
    monkeypatch.setattr(retry, "_FIRST_WAIT_S", 0.001)


TEXTS = [f"text number {number}" for number in range(60)]
SHORT = Settings(embed_retry_s=0.2, search_retry_s=0.2, batch_size=8)


# -- A quota ------------------------------------------------------------------------------------


def test_add_many_under_a_quota_stores_all(open_store: Opener) -> None:
    embedder = Api()
    with open_store(embedder=embedder) as store:
        ids = store.add_many(f"t{number}" for number in range(6000))
        assert len(set(ids)) == store.count() == 6000
        assert len(embedder.refused) <= 4, "each refusal is followed by a pause"


@pytest.mark.parametrize("workers", [1, 3])
def test_a_reindex_and_an_open_under_a_quota_finish(open_store: Opener, workers: int) -> None:
    with open_store() as store:
        store.add_many(f"t{number}" for number in range(6000))
    embedder = Api()
    with open_store(embedder=embedder) as store:
        assert (store.models.failures(), store.stats().spaces[-1].pending) == ([], 0)
        assert [job.last_error for job in store.models.jobs()] == [None]
    embedder = Api(16)
    with open_store() as store:
        store._session.embedders.load = lambda model, **_: embedder  # type: ignore[method-assign,assignment]
        report = store.reindex("api", workers=workers)
        assert (report.state, report.embedded, report.failed) == ("done", 6000, 0)
        assert store.models.failures() == []
    pauses = [other - one for one, other in pairwise(embedder.refused)]
    assert len([each for each in pauses if each < LIMIT_S]) <= workers


def test_workers_share_a_pause(open_store: Opener) -> None:
    """While one of them waits, the others do not call the embedder."""
    with open_store() as store:
        store.add_many(f"t{number}" for number in range(400))
        embedder = Down("429, Retry-After: 0.5")
        asked: list[float] = []
        check = embedder._check

        def counted() -> None:
            asked.append(time.monotonic())
            check()

        embedder._check = counted  # type: ignore[method-assign]
        store._session.embedders.load = lambda model, **_: embedder  # type: ignore[method-assign,assignment]
        store.reindex("down", workers=4, batch_size=20, max_seconds=1.4)
        rounds = sorted(asked)
        groups = [rounds[:1]]
        for moment in rounds[1:]:
            groups[-1].append(moment) if moment - groups[-1][0] < 0.4 else groups.append([moment])
        assert len(groups) <= 3
        assert all(len(group) <= 4 for group in groups)


@given(
    probability=st.floats(0, 0.8),
    bad=st.sets(st.sampled_from(TEXTS), max_size=6),
    random=st.randoms(use_true_random=False),
)
@settings(max_examples=10, deadline=None)
def test_after_a_job_exactly_the_bad_texts_are_failures(
    tmp_path_factory: pytest.TempPathFactory,
    probability: float,
    bad: set[str],
    random: Any,
) -> None:
    class Random(Turned):
        def embed_documents(self, texts: Sequence[str]) -> Any:
            if random.random() < probability:
                raise TRANSIENT[random.choice(SWIFT)]()
            if bad.intersection(texts):
                raise ValueError("cannot read this")
            return super().embed_documents(texts)

    folder = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retry, "_FIRST_WAIT_S", 1e-4)
        patch.setattr(retry, "_LONGEST_WAIT_S", 1e-3)
        options: dict[str, Any] = {"embedding_model": "hash", "embedding_dim": 64}
        with MemoryStore.open(folder, **options, settings=SHORT) as store:
            ids = dict(zip(store.add_many(TEXTS), TEXTS, strict=True))
            store._session.embedders.load = lambda model, **_: Random(48)  # type: ignore[method-assign,assignment]
            state = "open"
            while state == "open":
                try:
                    state = store.reindex("random").state
                except TransientEmbeddingError:
                    assert store.models.jobs()[0].state == "open"
                    assert {ids[f.memory_ids[0]] for f in store.models.failures()} <= bad
            assert state == ("failed" if bad else "done")
            assert {ids[failure.memory_ids[0]] for failure in store.models.failures()} == bad


# -- When the patience is over ------------------------------------------------------------------


def test_a_job_whose_patience_is_over_stays_open_and_fails_no_text(
    open_store: Opener,
) -> None:
    embedder = Down()
    with open_store(settings=SHORT) as store:
        store.add_many(TEXTS)
        store._session.embedders.load = lambda model, **_: embedder  # type: ignore[method-assign,assignment]
        with pytest.raises(TransientEmbeddingError, match=r"embed_retry_s is 0\.2"):
            store.reindex("down")
        (job,) = store.models.jobs()
        assert (job.state, job.failed, job.pending, job.workers) == ("open", 0, 60, 0)
        assert "temporarily unavailable" in str(job.last_error)
        assert embedder.calls < 12
        embedder.works.set()
        assert store.reindex("down").state == "done"
        (job,) = store.models.jobs()
        assert (job.last_error, job.attempts) == (None, 2)
        assert_all_vectors_are_of(store, Turned(48))


def test_a_store_opens_with_pending_texts_while_its_embedder_is_unreachable(
    open_store: Opener,
) -> None:
    embedder = Down()
    embedder.works.set()
    with open_store(embedder=embedder, settings=SHORT) as store:
        ids = store.add_many(TEXTS)
        with store._session.writer() as repository:
            space = repository.spaces.active()
            assert space is not None
            repository.vectors.make_pending(space, repository.keys(None, None)[:5])
    embedder.works.clear()
    with pytest.warns(KronosWarning, match=r"no vector yet.*temporarily unavailable"):
        store = open_store(embedder=embedder, settings=SHORT)
    assert store.search("number 3", mode="lexical", limit=1)[0].id == ids[3]
    vector = Turned(48, "down").embed_queries([TEXTS[30]])[0]
    assert store.search(vector, limit=1)[0].id == ids[30], "a question that needs no embedder"
    assert store.models.failures() == []
    embedder.works.set()
    store._session.jobs.wait(30)  # the query left the pending texts to a job
    assert store.search(TEXTS[0], mode="dense", limit=1)[0].id == ids[0]
    assert store.stats().spaces[0].pending == 0


def test_a_query_waits_less_than_a_text(open_store: Opener, hasty: None) -> None:
    embedder = Down()
    patient = Settings(embed_retry_s=60, search_retry_s=0.3)
    store = open_store(embedder=embedder, settings=patient)
    started = time.monotonic()
    with pytest.raises(TransientEmbeddingError, match=r"search_retry_s is 0\.3"):
        store.search("anything")
    assert 0.3 <= time.monotonic() - started < 3
    repair = threading.Timer(0.5, embedder.works.set)
    repair.start()
    store.add("a text that waits")
    assert store.search("a text that waits")[0].content == "a text that waits"


def test_zero_patience_means_no_retry(open_store: Opener) -> None:
    embedder = Down()
    store = open_store(embedder=embedder, settings=Settings(embed_retry_s=0, search_retry_s=0))
    for ask in (lambda: store.add("x"), lambda: store.search("x")):
        before = embedder.calls
        with pytest.raises(TransientEmbeddingError, match="unavailable"):
            ask()
        assert embedder.calls == before + 1


def test_queries_that_share_a_batch_fail_together(open_store: Opener, hasty: None) -> None:
    store = open_store(embedder=Down(), settings=SHORT)

    def ask(number: int) -> bool:
        with pytest.raises(TransientEmbeddingError):
            store.search(f"question {number}")
        return True

    started = time.monotonic()
    with ThreadPoolExecutor(12) as pool:
        assert all(pool.map(ask, range(12)))
    assert time.monotonic() - started < 3, "none of them waits for each of the others"


# -- Meanwhile ----------------------------------------------------------------------------------


class Stuck(Turned):
    """Blocks every call until the gate is open."""

    def __init__(self) -> None:
        super().__init__(48, "stuck")
        self.gate = threading.Event()
        self.entered = threading.Semaphore(0)

    def embed_documents(self, texts: Sequence[str]) -> Any:
        self.entered.release()
        self.gate.wait()
        return super().embed_documents(texts)

    def embed_queries(self, texts: Sequence[str]) -> Any:
        self.entered.release()
        self.gate.wait()
        return super().embed_queries(texts)


@pytest.mark.parametrize("way", ["stuck", "refused"])
def test_calls_without_an_embedder_do_not_wait_for_one(open_store: Opener, way: str) -> None:
    embedder: Any = Stuck() if way == "stuck" else Down()
    opens = embedder.gate if way == "stuck" else embedder.works
    vector = np.eye(1, 48)[0]
    store = open_store(embedder=embedder, settings=Settings(embed_retry_s=60, search_retry_s=60))
    old = store.add_many([NewMemory("an old text", embedding=vector)])[0]
    waits: list[Callable[[], object]] = [
        lambda: store.add("a new text"),
        lambda: store.search("a question"),
        lambda: store.search_many(["another", "question"]),
        lambda: store.update(old, content="changed"),
    ]
    with ThreadPoolExecutor(4) as pool:
        try:
            waiting = [pool.submit(wait) for wait in waits]
            time.sleep(0.3)
            started = time.monotonic()
            assert store.search("old", mode="lexical")[0].id == old
            assert store.search(vector, limit=1)[0].id == old
            assert store.add_many([NewMemory("ready", embedding=vector)])
            assert store.update(old, metadata={"a": 1}).metadata == {"a": 1}
            assert store.delete(store.add_many([NewMemory("gone", embedding=vector)])) == 1
            assert store.stats().memories == store.count() == 2
            assert time.monotonic() - started < 1.5
            assert not any(each.done() for each in waiting)
        finally:
            opens.set()
        for each in waiting:
            each.result(timeout=30)
    assert store.get(old).content == "changed"


def test_closing_a_store_ends_waiting_calls(open_store: Opener) -> None:
    embedder = Down("429, Retry-After: 50")
    store = open_store(embedder=embedder)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(store.add, "a text")
        assert embedder.asked.wait(10)
        time.sleep(0.1)
        started = time.monotonic()
        store.close()
        with pytest.raises(StoreClosedError):
            waiting.result(timeout=10)
        assert time.monotonic() - started < 2


@contextmanager
def ending(end: Callable[[], object]) -> Iterator[None]:
    """Let threads end, whatever a test finds."""
    try:
        yield
    finally:
        end()


def waiting_job(store: MemoryStore) -> Job:
    """The job of a store, once its row says that it waits."""
    for _ in range(100):
        for job in store.models.jobs():
            if "waits" in str(job.last_error):
                return job
        time.sleep(0.05)
    raise AssertionError(store.models.jobs())


@pytest.mark.parametrize("end", ["stop", "max_seconds", "close"])
def test_a_waiting_job_says_so_keeps_its_texts_and_stops_at_once(
    open_store: Opener, end: str
) -> None:
    embedder = Down("429, Retry-After: 50")
    stop = threading.Event()
    store, other = open_store(settings=Settings(lease_s=0.6)), open_store()
    store.add_many(TEXTS)
    store._session.embedders.load = lambda model, **_: embedder  # type: ignore[method-assign,assignment]
    options: dict[str, Any] = {"stop": stop}
    if end == "max_seconds":
        options["max_seconds"] = 2.0
    with ThreadPoolExecutor(1) as pool, ending(stop.set):
        run = pool.submit(store.reindex, "down", **options)
        job = waiting_job(other)
        assert job.last_error == (
            "waits 50.0 s before the next try: the embedder down failed: 429, Retry-After: 50"
        )
        time.sleep(1)
        assert other.models.jobs()[0].workers == 1, "the lease was renewed"
        started = time.monotonic()
        if end == "stop":
            stop.set()
        elif end == "close":
            store.close()
        if end == "close":
            with pytest.raises(StoreClosedError):
                run.result(timeout=10)
        else:
            assert run.result(timeout=10).state == "open"
        assert time.monotonic() - started < 2
    assert other.models.failures() == []
    assert other.models.jobs()[0].workers == 0 or end == "close"


def test_a_waiting_background_job_does_not_delay_close(open_store: Opener) -> None:
    with open_store() as store:
        store.add_many(TEXTS)
    embedder = Down("429, Retry-After: 50")
    store = open_store(embedder=embedder, on_model_change="background")
    assert embedder.asked.wait(10)
    started = time.monotonic()
    store.close()
    assert time.monotonic() - started < 3


def test_a_job_that_waited_continues_and_clears_its_last_error(
    open_store: Opener, hasty: None
) -> None:
    embedder = Down()
    store, other = open_store(), open_store()
    store.add_many(TEXTS)
    store._session.embedders.load = lambda model, **_: embedder  # type: ignore[method-assign,assignment]
    with ThreadPoolExecutor(1) as pool, ending(embedder.works.set):
        run = pool.submit(store.reindex, "down")
        waiting_job(other)
        embedder.works.set()
        assert run.result(timeout=30).state == "done"
    assert other.models.jobs()[0].last_error is None


def test_the_async_face_waits_too(tmp_path: Path, hasty: None) -> None:
    async def run() -> None:
        failures: Iterator[Exception] = iter([TRANSIENT[kind]() for kind in SWIFT[:6]])

        class Briefly(Turned):
            def embed_documents(self, texts: Sequence[str]) -> Any:
                for failure in failures:
                    raise failure
                return super().embed_documents(texts)

        async with KronosMemory(tmp_path, embedder=Briefly(48)) as memory:
            ids = await asyncio.gather(*(memory.add(f"text {number}") for number in range(5)))
            assert len(set(ids)) == await memory.count() == 5

    asyncio.run(run())


def test_a_cancelled_call_is_not_retried(tmp_path: Path) -> None:
    """Otherwise 32 cancelled adds would block all embedding threads for two minutes."""
    embedder = Down()

    async def run() -> None:
        async with KronosMemory(tmp_path, embedder=embedder) as memory:
            adds = [asyncio.create_task(memory.add(f"text {n}")) for n in range(40)]
            while embedder.calls < 2:
                await asyncio.sleep(0.01)
            for task in adds:
                task.cancel()
            await asyncio.gather(*adds, return_exceptions=True)
            embedder.works.set()
            await asyncio.wait_for(memory.add("the last one"), 20)
            assert [each.content for each in await memory.list()] == ["the last one"]

    asyncio.run(run())


# -- What was stored before an error -------------------------------------------------------------


def broken(count: int, error: BaseException) -> Iterator[str]:
    for number in range(count):
        yield f"text {number}"
    raise error


class Custom(Exception):
    def __init__(self, one: int, other: int) -> None:
        super().__init__(f"{one} and {other}")


ERRORS: dict[str, tuple[Callable[[], Any], type[BaseException]]] = {
    "the iterable": (lambda: broken(20, Custom(1, 2)), Custom),
    "an interrupt": (lambda: broken(20, KeyboardInterrupt()), KeyboardInterrupt),
    "an item": (lambda: [*TEXTS[:20], ""], InputError),
    "an id": (lambda: [*TEXTS[:20], NewMemory("x", id="there")], DuplicateIdError),
    "the embedder": (lambda: [*TEXTS[:20], "HTTP 503"], TransientEmbeddingError),
    "a text": (lambda: [*TEXTS[:20], "poison"], EmbeddingError),
}


class Touchy(Turned):
    """Fails on some texts, temporarily or permanently."""

    def embed_documents(self, texts: Sequence[str]) -> Any:
        if "HTTP 503" in texts:
            raise TransientEmbeddingError("later")
        if "poison" in texts:
            raise ValueError("cannot read this")
        return super().embed_documents(texts)


@pytest.mark.parametrize("kind", ERRORS)
def test_an_error_of_add_many_names_what_is_stored(open_store: Opener, kind: str) -> None:
    items, expected = ERRORS[kind]
    store = open_store(embedder=Touchy(48), settings=SHORT)
    store.add("there already", id="there")
    with pytest.raises(expected) as caught:
        store.add_many(items())
    ids = caught.value.stored_ids  # type: ignore[attr-defined]
    assert [store.get(id).content for id in ids] == TEXTS[:16] or [
        store.get(id).content for id in ids
    ] == [f"text {number}" for number in range(16)]
    assert store.count() == 17
    if hasattr(caught.value, "__notes__"):
        assert "16 memories of this call are stored" in caught.value.__notes__[-1]


@pytest.mark.parametrize("kind", sorted(set(ERRORS) - {"an interrupt"}))
def test_an_error_of_the_async_face_names_what_is_stored(tmp_path: Path, kind: str) -> None:
    items, expected = ERRORS[kind]

    async def run() -> None:
        async with KronosMemory(tmp_path, embedder=Touchy(48), settings=SHORT) as memory:
            await memory.add("there already", id="there")
            with pytest.raises(expected) as caught:
                await memory.add_many(items())
            ids = caught.value.stored_ids  # type: ignore[attr-defined]
            assert len(ids) == 16
            assert [await memory.find(id) is not None for id in ids] == [True] * 16

    asyncio.run(run())


def test_an_error_of_progress_names_what_is_stored(open_store: Opener) -> None:
    store = open_store(settings=SHORT)

    def stop(_progress: object) -> None:
        raise Custom(3, 4)

    with pytest.raises(Custom) as caught:
        store.add_many(TEXTS, progress=stop)
    assert len(caught.value.stored_ids) == store.count() == 8  # type: ignore[attr-defined]


def test_an_error_of_an_import_names_what_is_stored(open_store: Opener, tmp_path: Path) -> None:
    source = open_store()
    source.add_many([*TEXTS[:20], "poison", *TEXTS[20:]])
    source.export_to(tmp_path / "all.jsonl")
    with MemoryStore.open(tmp_path / "other", embedder=Touchy(48), settings=SHORT) as store:
        with pytest.raises(EmbeddingError) as caught:
            store.import_from(tmp_path / "all.jsonl")
        assert len(caught.value.stored_ids) == store.count() == 16
        assert all(store.find(id) for id in caught.value.stored_ids)


def test_an_error_before_anything_was_stored_names_nothing(store: MemoryStore) -> None:
    with pytest.raises(InputError) as caught:
        store.add_many([""])
    assert caught.value.stored_ids == []
    assert KronosError("x").stored_ids == []


def test_calls_that_share_an_error_do_not_share_their_ids(open_store: Opener) -> None:
    """Writers in one transaction get the same error, but each one has stored other ids."""
    patient = Settings(batch_size=1, busy_timeout_s=1.0)
    store = open_store(settings=patient)
    ready = threading.Barrier(4)
    failed: dict[int, KronosError] = {}
    stored: dict[int, list[str]] = {}
    locked = threading.Event()

    def items(number: int) -> Iterator[str]:
        for step in range(number + 1):
            yield f"text {number}.{step}"
        ready.wait()
        locked.wait()
        yield "one too many"

    def write(number: int) -> None:
        try:
            store.add_many(items(number))
        except StoreBusyError as exc:
            failed[number] = exc
            stored[number] = exc.stored_ids

    with ThreadPoolExecutor(3) as pool:
        done = [pool.submit(write, number) for number in range(3)]
        ready.wait()
        with store._session.database.write():
            locked.set()
            for each in done:
                each.result(timeout=30)
    for number in range(3):
        contents = [store.get(id).content for id in stored[number]]
        assert contents == [f"text {number}.{step}" for step in range(number + 1)]


# -- The end of a job ---------------------------------------------------------------------------


def test_no_job_is_done_while_long_texts_are_pending(open_store: Opener) -> None:
    """Five texts of 12 MB, added while the job runs: they do not all fit into one read."""
    store = open_store()
    store.add_many(TEXTS)
    long = [f"{number} " + "x" * (12 * 2**20) for number in range(5)]
    embedder = Turned(48)
    added: list[str] = []

    def write_meanwhile(_progress: object) -> None:
        if not added:
            added.extend(store.add_many(long))

    other = open_store()
    other._session.embedders.load = lambda model, **_: embedder  # type: ignore[method-assign,assignment]
    report = other.reindex("turned", progress=write_meanwhile)
    assert (report.state, report.pending) == ("done", 0)
    assert len(added) == 5


class Leisurely(Turned):
    """Takes a fixed time for each text."""

    def __init__(self, seconds: float) -> None:
        super().__init__(48, "leisurely")
        self.seconds = seconds

    def embed_documents(self, texts: Sequence[str]) -> Any:
        time.sleep(self.seconds * len(texts))
        return super().embed_documents(texts)


@pytest.mark.parametrize("seconds", [0.4, 0.02])
def test_the_last_texts_of_a_job_keep_no_writer_waiting(open_store: Opener, seconds: float) -> None:
    quick = Settings(busy_timeout_s=2)
    writer, worker = open_store(settings=quick), open_store()
    writer.add_many(TEXTS[:6])
    worker._session.embedders.load = lambda model, **_: Leisurely(seconds)  # type: ignore[method-assign,assignment]
    longest, written = 0.0, 0
    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(worker.reindex, "leisurely", activate=False)
        while not run.done() and written < 20:
            started = time.monotonic()
            writer.add(f"written meanwhile {written}")
            longest = max(longest, time.monotonic() - started)
            written += 1
            time.sleep(0.15)
        report = run.result(timeout=120)
    assert report.state == "ready"
    assert longest < 1.5
    assert written == 20 or seconds < 0.1, "a slow embedder is not asked under the lock"


def test_a_stalled_embedder_releases_the_write_lock(open_store: Opener) -> None:
    """The embedder was fast so far, and hangs on the texts that are embedded under the lock."""
    store = open_store(settings=Settings(busy_timeout_s=2))
    store.add_many(TEXTS)
    stalls = threading.Event()

    class Stalling(Turned):
        def embed_documents(self, texts: Sequence[str]) -> Any:
            if any("meanwhile" in text for text in texts) and not stalls.is_set():
                stalls.set()
                time.sleep(2.5)
            return super().embed_documents(texts)

    other = open_store()
    added: list[str] = []
    other._session.embedders.load = lambda model, **_: Stalling(48)  # type: ignore[method-assign,assignment]

    def write_meanwhile(_progress: object) -> None:
        if not added:
            added.append(store.add("written meanwhile"))

    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(other.reindex, "stalling", progress=write_meanwhile)
        assert stalls.wait(30)
        started = time.monotonic()
        store.add("written while the embedder hangs")
        assert time.monotonic() - started < 1.5
        assert run.result(timeout=60).state == "done"
    assert other.stats().spaces[-1].pending == 0
