"""`tune` builds the due graph, measures its recall and keeps the result."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kronos import KronosMemory, MemoryStore, NewMemory, Settings, Stats
from kronos.errors import InputError, KronosWarning, StoreClosedError
from kronos.index import tuning
from kronos.index.building import Build
from kronos.index.layered import LayeredIndex
from tests.conftest import Opener
from tests.db.test_faults import open_folder, unwritable
from tests.following.test_replica import DIM, exact, fill, open_vectors, rows, small_graphs

__all__ = ["open_folder", "open_vectors"]

Vectors = Callable[[], MemoryStore]
HNSW, FLAT = "faiss-hnsw", "faiss-flat"


def index_of(store: MemoryStore) -> LayeredIndex:
    index = store._session.serving.replica._index
    assert index is not None
    return index


def said(stats: Stats) -> tuple[str, int | None, float | None]:
    return stats.index_kind, stats.index_effort, stats.index_recall


def forbid_builds(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: object) -> bool:
        raise AssertionError("built anew")

    monkeypatch.setattr(Build, "run", run)


def hold_builds(monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event]:
    """Make builds wait: (an event that one has begun, an event that lets them continue)."""
    begun, go_on = threading.Event(), threading.Event()
    really_run = Build.run

    def run(build: Build, stopped: Callable[[], bool]) -> bool:
        begun.set()
        while not go_on.wait(0.01):
            if stopped():
                return False
        return really_run(build, stopped)

    monkeypatch.setattr(Build, "run", run)
    return begun, go_on


def test_tune_builds_the_due_index_and_the_next_open_uses_it(
    open_vectors: Vectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_graphs(monkeypatch)
    with open_vectors() as store:
        fill(store)
        assert said(store.stats()) == (FLAT, None, 1.0)
        report = store.maintenance.tune(0.95)
        assert (report.vectors, report.index_kind, report.target) == (1500, HNSW, 0.95)
        assert report.effort in tuning.EFFORTS
        assert report.effort < 400, "less than it was before"
        assert report.recall >= 0.95
        assert report.reached
        assert report.saved
        found = (HNSW, report.effort, report.recall)
        assert said(store.stats()) == found
    forbid_builds(monkeypatch)
    with open_vectors() as again:
        assert said(again.stats()) == found, "before the index is loaded"
        again.search(rows(1)[0])
        assert said(again.stats()) == found
        assert index_of(again).policy.search_effort == report.effort
        check = again.maintenance.check()
        assert (check.index_kind, check.index_effort, check.index_recall) == found


def test_a_higher_target_needs_more_effort_and_finds_more(
    open_vectors: Vectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_graphs(monkeypatch)
    store = open_vectors()
    fill(store, 4000)
    low, high = store.maintenance.tune(0.5), store.maintenance.tune(0.999)
    assert low.effort is not None
    assert high.effort is not None
    assert low.effort < high.effort
    assert low.recall < high.recall
    shares = []
    for query in rows(40, seed=99):
        hits = {hit.id for hit in store.search(query)}
        shares.append(len(hits & set(exact(store, query))) / 10)
    assert np.mean(shares) >= 0.99


def test_the_recall_of_a_graph_is_unknown_until_it_is_measured(
    open_vectors: Vectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_graphs(monkeypatch)
    store = open_vectors()
    fill(store)
    store.search(rows(1)[0])
    store._session.snapshots.wait()
    assert said(store.stats()) == (HNSW, 400, None)
    assert store.maintenance.check().index_recall is None
    store.close()
    with open_vectors() as again:
        assert said(again.stats()) == (HNSW, 400, None)
        again.maintenance.tune()
        assert again.maintenance.check().index_recall is not None


def test_a_store_too_small_for_a_graph_is_exact(open_vectors: Vectors) -> None:
    store = open_vectors()
    fill(store, 50)
    report = store.maintenance.tune()
    assert (report.vectors, report.index_kind, report.recall) == (50, FLAT, 1.0)
    assert (report.effort, report.reached, report.saved) == (None, True, True)
    assert store.maintenance.check().index_kind == FLAT
    assert not list(store.location.index.glob("*"))


def test_a_store_without_vectors_is_exact(open_vectors: Vectors) -> None:
    report = open_vectors().maintenance.tune(1)
    assert (report.vectors, report.effort, report.recall) == (0, None, 1.0)


@pytest.mark.parametrize("target", [0, -0.1, 1.001, 98, float("nan"), float("inf"), "0.9", True])
def test_an_invalid_target_is_refused(open_vectors: Vectors, target: Any) -> None:
    with pytest.raises(InputError, match=r"target must be .*") as caught:
        open_vectors().maintenance.tune(target)
    assert caught.value.field == "target"


def test_a_closed_store_is_not_tuned(open_vectors: Vectors, tmp_path: Path) -> None:
    store = open_vectors()
    store.close()
    with pytest.raises(StoreClosedError):
        store.maintenance.tune()
    with pytest.raises(StoreClosedError):
        asyncio.run(KronosMemory(tmp_path / "other").maintenance.tune())


def test_an_unreachable_target_is_reported_and_keeps_the_greatest_effort(
    open_vectors: Vectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_graphs(monkeypatch)
    monkeypatch.setattr(tuning, "EFFORTS", (1, 2))
    store = open_vectors()
    fill(store)
    report = store.maintenance.tune(0.9999)
    assert not report.reached
    assert report.recall < 0.9999
    assert report.effort == index_of(store).policy.search_effort == 2
    assert report.saved


def test_tune_waits_for_a_running_build(
    open_vectors: Vectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_graphs(monkeypatch)
    store = open_vectors()
    fill(store)
    begun, go_on = hold_builds(monkeypatch)
    store.search(rows(1)[0])
    assert begun.wait(60)
    threading.Timer(0.2, go_on.set).start()
    assert store.maintenance.tune().index_kind == HNSW


def test_closing_ends_the_build_and_the_call(
    open_vectors: Vectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_graphs(monkeypatch)
    begun, _ = hold_builds(monkeypatch)
    store = open_vectors()
    fill(store)

    def close() -> None:
        assert begun.wait(60)
        store.close()

    closing = threading.Thread(target=close)
    closing.start()
    with pytest.raises(StoreClosedError):
        store.maintenance.tune()
    closing.join()
    with open_vectors() as again:
        assert said(again.stats()) == (FLAT, None, 1.0)


def test_a_cancelled_call_ends_the_build_and_changes_nothing(
    open_vectors: Vectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_graphs(monkeypatch)
    store = open_vectors()
    fill(store)
    store.close()
    begun, go_on = hold_builds(monkeypatch)

    async def scenario() -> None:
        path = store.location.folder
        async with KronosMemory(path, embedding_model=None) as memory:
            call = asyncio.create_task(memory.maintenance.tune())
            await asyncio.to_thread(begun.wait, 60)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            assert said(await memory.stats())[0] == FLAT
            go_on.set()
            report = await memory.maintenance.tune(0.9)
            assert said(await memory.stats()) == (HNSW, report.effort, report.recall)

    asyncio.run(scenario())


def test_a_save_takes_over_the_measurement_of_another_process(
    open_vectors: Vectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_graphs(monkeypatch)
    server = open_vectors()
    fill(server)
    server.search(rows(1)[0])
    server._session.snapshots.wait()
    with open_vectors() as operator:
        report = operator.maintenance.tune(0.9)
        assert report.saved
    assert said(server.stats()) == (HNSW, 400, None)
    fill(server, 1500, seed=1)
    server.search(rows(1)[0])
    server._session.snapshots.wait()
    server.close()
    found = (HNSW, report.effort, report.recall)
    with open_vectors() as again:
        assert said(again.stats()) == found
        again.search(rows(1)[0])
        assert said(again.stats()) == found


def test_the_latest_measurement_of_this_process_wins(
    open_vectors: Vectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_graphs(monkeypatch)
    one, two = open_vectors(), open_vectors()
    fill(one, 4000)
    low = one.maintenance.tune(0.5)
    high = two.maintenance.tune(0.999)
    assert low.effort != high.effort
    assert said(two.stats()) == (HNSW, high.effort, high.recall)
    assert high.saved
    again = one.maintenance.tune(0.5)
    assert again.saved
    with open_vectors() as third:
        assert said(third.stats()) == (HNSW, again.effort, again.recall)


def test_an_exact_index_setting_overrides_a_snapshot(
    open_store: Opener, open_vectors: Vectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        small_graphs(patch)
        with open_vectors() as store:
            fill(store)
            assert store.maintenance.tune().index_kind == HNSW
    exactly = Settings(index="flat")
    flat = open_store(embedding_model=None, embedding_dim=DIM, settings=exactly)
    assert said(flat.stats()) == (FLAT, None, 1.0)
    assert flat.maintenance.tune().effort is None
    assert said(flat.stats()) == (FLAT, None, 1.0)


def test_a_snapshot_of_another_store_is_ignored(
    open_vectors: Vectors, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    small_graphs(monkeypatch)
    with MemoryStore.open(tmp_path / "other", embedding_model=None, embedding_dim=DIM) as other:
        fill(other)
        other.maintenance.tune()
    (theirs,) = other.location.index.glob("*")
    store = open_vectors()
    store.location.index.mkdir()
    (store.location.index / theirs.name).write_bytes(theirs.read_bytes())
    assert said(store.stats()) == (FLAT, None, 1.0)
    (store.location.index / theirs.name).write_bytes(theirs.read_bytes()[:200])
    assert said(store.stats()) == (FLAT, None, 1.0)


def test_an_index_compacted_while_it_is_measured_is_measured_again(
    open_vectors: Vectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_graphs(monkeypatch)
    store = open_vectors()
    ids = fill(store)
    store.maintenance.tune()
    really_run, runs = tuning.Tuning.run, []

    def run(self: tuning.Tuning, *asked: Any) -> Any:
        tuned = really_run(self, *asked)
        runs.append(tuned)
        if len(runs) == 1:
            store.delete(ids[0])
            store.maintenance.compact()
        return tuned

    monkeypatch.setattr(tuning.Tuning, "run", run)
    report = store.maintenance.tune(0.9)
    assert len(runs) == 2
    assert (report.effort, report.vectors) == (index_of(store).policy.search_effort, 1499)


def test_tune_follows_a_model_change_of_another_process(open_store: Opener) -> None:
    here, there = open_store(), open_store(embedding_model=None)
    here.add_many(f"text {number}" for number in range(20))
    assert there.maintenance.tune().vectors == 20
    with here._session.writer() as repository:
        space = repository.spaces.find_or_create(
            fingerprint="another", model="another", alias=None, dim=8
        )
        repository.spaces.activate(space)
    assert there.maintenance.tune().vectors == 0
    assert there.stats().dim == 8


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="no such rights on this system")
def test_in_a_read_only_folder_tuning_holds_for_this_process(
    open_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_graphs(monkeypatch)
    folder = open_folder / "store"
    options: dict[str, Any] = {"embedding_model": None, "embedding_dim": DIM}
    with MemoryStore.open(folder, **options) as store:
        store.add_many(NewMemory(str(n), embedding=row) for n, row in enumerate(rows(1500)))
    with (  # noqa: PT031 - it warns when it is tuned, and when it is closed
        unwritable(folder),
        pytest.warns(KronosWarning, match="no index snapshot was saved"),
        MemoryStore.open(folder, **options) as store,
    ):
        report = store.maintenance.tune(0.9)
        assert (report.index_kind, report.reached, report.saved) == (HNSW, True, False)
        assert said(store.stats()) == (HNSW, report.effort, report.recall)
    with MemoryStore.open(folder, **options) as store:
        assert store.maintenance.tune(0.9).saved
