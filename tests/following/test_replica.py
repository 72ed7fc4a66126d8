"""The index is never trusted, only followed: any doubt ends in a replay and a correct answer."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kronos import MemoryStore, NewMemory, Settings, VectorIndex
from kronos.errors import ConfigurationError, KronosWarning
from kronos.following.snapshots import SnapshotPolicy
from kronos.index.building import Build
from kronos.index.policy import IndexPolicy
from tests.conftest import Opener

DIM = 16
COUNT = 1500  # enough to be worth a snapshot


Rows = np.ndarray[Any, np.dtype[np.float32]]


def rows(count: int, seed: int = 0) -> Rows:
    made: Rows = np.random.default_rng(seed).standard_normal((count, DIM)).astype(np.float32)
    made /= np.linalg.norm(made, axis=1, keepdims=True)
    return made


@pytest.fixture
def open_vectors(open_store: Opener) -> Callable[[], MemoryStore]:
    return lambda: open_store(embedding_model=None, embedding_dim=DIM)


def fill(store: MemoryStore, count: int = COUNT, seed: int = 0) -> list[str]:
    made = rows(count, seed)
    return store.add_many(NewMemory(f"{seed}-{i}", embedding=row) for i, row in enumerate(made))


def exact(store: MemoryStore, query: Rows) -> list[str]:
    """The correct answer, computed from the rows alone."""
    found: list[tuple[float, str]] = []
    with store._session.reader() as repository:
        space = repository.spaces.active()
        assert space is not None
        for keys, vectors in repository.vectors.since(space, 0):
            memories = repository.by_keys(keys)
            scores = (vectors @ query).tolist()
            found += [(s, memories[k].id) for s, k in zip(scores, keys.tolist(), strict=True)]
    return [id for _, id in sorted(found, key=lambda pair: -pair[0])[:10]]


def assert_right(store: MemoryStore) -> None:
    for query in rows(5, seed=99):
        assert [hit.id for hit in store.search(query)] == exact(store, query)


def snapshots(store: MemoryStore) -> list[Path]:
    return sorted(store.location.index.glob("*"))


def saved(open_vectors: Callable[[], MemoryStore]) -> list[Path]:
    with open_vectors() as store:
        fill(store)
        assert_right(store)
    files = snapshots(store)
    assert len(files) == 1
    return files


def test_a_snapshot_is_loaded_and_newer_changes_are_applied(
    open_vectors: Callable[[], MemoryStore],
) -> None:
    saved(open_vectors)
    with open_vectors() as store:
        ids = fill(store, 20, seed=1)
        store.delete(ids[:5])
        assert_right(store)
    with open_vectors() as store:
        assert_right(store)
        assert store.maintenance.check().ok


def test_a_small_change_writes_no_snapshot(open_vectors: Callable[[], MemoryStore]) -> None:
    (before,) = saved(open_vectors)
    with open_vectors() as store:
        fill(store, 20, seed=1)
        assert_right(store)
    assert snapshots(store) == [before]


def test_deleting_the_index_folder_loses_nothing(open_vectors: Callable[[], MemoryStore]) -> None:
    saved(open_vectors)
    with open_vectors() as store:
        shutil.rmtree(store.location.index)
        assert store.count() == COUNT
        assert_right(store)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def garbage(path: Path) -> None:
    path.write_bytes(b"\x5a" * 5000)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def another_store(path: Path) -> None:
    other = path.parents[2] / "other"
    with MemoryStore.open(other, embedding_model=None, embedding_dim=DIM) as store:
        fill(store, seed=7)
        assert_right(store)
    (theirs,) = snapshots(store)
    shutil.copy(theirs, path)


@pytest.mark.parametrize("damage", [truncate, flip, garbage, empty, another_store])
def test_a_foreign_or_damaged_snapshot_is_replaced_by_a_replay(
    open_vectors: Callable[[], MemoryStore], damage: Callable[[Path], None]
) -> None:
    (path,) = saved(open_vectors)
    damage(path)
    with open_vectors() as store, pytest.warns(KronosWarning, match="rebuilt from the database"):
        assert_right(store)
    with open_vectors() as store:
        assert_right(store)


def test_a_database_older_than_its_snapshot_is_replayed(
    open_vectors: Callable[[], MemoryStore], tmp_path: Path
) -> None:
    with open_vectors() as store:
        fill(store, 10, seed=3)
    shutil.copy(store.location.database, tmp_path / "old.db")
    saved(open_vectors)
    shutil.copy(tmp_path / "old.db", store.location.database)
    with pytest.warns(KronosWarning, match="seq"):
        store = open_vectors()
    assert snapshots(store) == []
    assert_right(store)
    assert store.count() == 10


def test_a_snapshot_whose_count_disagrees_is_replayed(
    open_vectors: Callable[[], MemoryStore],
) -> None:
    saved(open_vectors)
    with open_vectors() as store:
        replica = store._session.serving.replica
        assert_right(store)
        assert replica._index is not None
        replica._index.remove(replica._index.keys()[:3])
        replica._snapshots.unsaved, replica._applied = 5000, replica._applied - 1
        for path in snapshots(store):
            path.unlink()
    with open_vectors() as store, pytest.warns(KronosWarning, match="vectors"):
        assert_right(store)


def test_another_store_object_sees_every_commit_at_its_next_search(
    open_vectors: Callable[[], MemoryStore],
) -> None:
    reader, writer = open_vectors(), open_vectors()
    ids: list[str] = []
    for seed in range(5):
        ids += fill(writer, 30, seed=seed)
        assert_right(reader)
        writer.delete(ids.pop(0))
        assert_right(reader)
        assert {hit.id for hit in reader.search(rows(1)[0], limit=1000)} == set(ids)


def test_a_database_restored_under_an_open_store_is_replayed(
    open_vectors: Callable[[], MemoryStore], tmp_path: Path
) -> None:
    store = open_vectors()
    ids = fill(store, 10, seed=3)
    store._session.database.backup(tmp_path / "old.db")
    fill(store, 10, seed=4)
    assert_right(store)
    with (
        sqlite3.connect(tmp_path / "old.db") as old,
        sqlite3.connect(store.location.database) as live,
    ):
        old.backup(live)
    old.close()
    live.close()
    assert_right(store)
    assert {hit.id for hit in store.search(rows(1)[0], limit=99)} == set(ids)


def test_a_partially_applied_index_is_replayed(
    open_vectors: Callable[[], MemoryStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_vectors()
    fill(store, 30)
    assert_right(store)
    fill(store, 30, seed=1)
    replica = store._session.serving.replica
    index = replica._index
    assert index is not None
    monkeypatch.setattr(index, "upsert", lambda keys, vectors: _raise(MemoryError()))
    with pytest.raises(MemoryError):
        store.search(rows(1)[0])
    assert_right(store)
    assert replica._index is not index


def _raise(error: Exception) -> None:
    raise error


def test_check_reports_and_repairs_a_wrong_index(open_vectors: Callable[[], MemoryStore]) -> None:
    store = open_vectors()
    fill(store, 50)
    assert_right(store)
    replica = store._session.serving.replica

    def held() -> VectorIndex:
        assert replica._index is not None
        return replica._index

    keys = held().keys()
    for spoil in (
        lambda: held().remove(keys[:2]),
        lambda: held().upsert(keys[:1], rows(1, seed=5)),
        lambda: held().upsert(keys[-1:] + 99, rows(1, seed=5)),
    ):
        spoil()
        (problem,) = store.maintenance.check().problems
        assert (problem.kind, problem.repaired) == ("index", False)
        report = store.maintenance.check(repair=True)
        assert report.ok
        assert len(report.problems) == 1
        assert store.maintenance.check().problems == ()
        assert_right(store)


def test_check_finds_wrong_vectors_and_makes_them_pending(open_store: Opener) -> None:
    store = open_store()
    store.add_many([f"text {i}" for i in range(5)])
    with store._session.database.write() as connection:
        connection.exec_driver_sql(
            "UPDATE vectors SET content_hash = x'00' WHERE memory_key = "
            "(SELECT min(memory_key) FROM vectors)"
        )
    assert [problem.kind for problem in store.maintenance.check().problems] == ["vectors"]
    assert {problem.kind for problem in store.maintenance.check(repair=True).problems} >= {
        "vectors"
    }
    assert [problem.kind for problem in store.maintenance.check().problems] == ["pending"]
    assert store.reindex().embedded == 1
    assert store.maintenance.check().problems == ()
    assert store.search("text 0")[0].content == "text 0"


def test_a_snapshot_is_written_in_the_background_once_enough_changed(
    open_store: Opener,
) -> None:
    settings = Settings(snapshot_changes=100, snapshot_interval_s=3600)
    store = open_store(embedding_model=None, embedding_dim=DIM, settings=settings)
    fill(store, 99)
    assert_right(store)
    assert snapshots(store) == []
    fill(store, 1, seed=1)
    assert_right(store)
    store._session.snapshots.wait()
    (first,) = snapshots(store)
    fill(store, 1500, seed=2)
    assert_right(store)
    store._session.snapshots.wait()
    (second,) = snapshots(store)
    assert second.name > first.name
    fill(store, 120, seed=3)  # less than a tenth of the index, and before the interval has passed
    assert_right(store)
    store._session.snapshots.wait()
    assert snapshots(store) == [second]
    store.close()
    assert snapshots(store) != [second]


def test_the_snapshot_policy_considers_changes_size_and_time() -> None:
    policy = SnapshotPolicy(changes=100, interval_s=60)
    assert not policy.is_due(99, 0, 1e9)
    assert policy.is_due(100, 1000, 0)
    assert not policy.is_due(100, 1001, 59)
    assert policy.is_due(100, 10**6, 60)


def test_a_process_does_not_repeat_another_processs_snapshot(
    open_vectors: Callable[[], MemoryStore],
) -> None:
    one, two = open_vectors(), open_vectors()
    fill(one)
    assert_right(one)
    assert_right(two)
    one._session.snapshots.wait()
    two._session.snapshots.wait()
    (saved,) = snapshots(one)
    written = saved.stat().st_mtime_ns
    one.close()
    two.close()
    assert [p.stat().st_mtime_ns for p in snapshots(one)] == [written]


def test_an_index_older_than_the_pruned_tombstones_is_replayed(
    open_vectors: Callable[[], MemoryStore],
) -> None:
    one, two = open_vectors(), open_vectors()
    ids = fill(one)
    assert_right(two)
    one.delete(ids[::2])
    one.maintenance.compact()
    with one._session.reader() as repository:
        assert not len(repository.vectors.tombstones_since(one._session.serving.space.id, 0))
    fill(one, 10, seed=5)
    assert_right(two)
    assert len(two._session.serving.replica) == COUNT // 2 + 10
    assert_right(one)
    # The snapshot on disk is newer than its own index.
    two.close()
    assert_right(open_vectors())


def test_a_snapshot_older_than_the_pruned_deletions_is_not_read(
    open_vectors: Callable[[], MemoryStore], tmp_path: Path
) -> None:
    one = open_vectors()
    ids = fill(one)
    assert_right(one)
    one._session.snapshots.wait()
    (old,) = snapshots(one)
    shutil.copy(old, tmp_path / old.name)
    one.delete(ids[::2])
    one.maintenance.compact()
    one.close()
    for path in snapshots(one):
        path.unlink()
    shutil.copy(tmp_path / old.name, old)
    again = open_vectors()
    assert_right(again)
    assert len(again._session.serving.replica) == COUNT // 2


def test_compact_frees_the_memory_of_deleted_vectors(
    open_store: Opener,
) -> None:
    script = """
import os, sys
import numpy as np
from kronos import MemoryStore, NewMemory
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
rng = np.random.default_rng(0)
store = MemoryStore.open(sys.argv[1], embedding_model=None, embedding_dim=1024)
rows = rng.standard_normal((1000, 1024)).astype(np.float32)
ids = []
for part in range(20):
    ids += store.add_many(NewMemory(f"{part} {i}", embedding=r + part) for i, r in enumerate(rows))
store.search(rows[0])
before = resident()
store.delete(ids[200:])
store.maintenance.compact()
after = resident()
assert len(store.search(rows[0], limit=300)) == 200
print(before - after)
"""
    if not Path("/proc/self/statm").exists():
        pytest.skip("needs /proc")
    folder = str(open_store().location.folder.parent / "large")
    done = subprocess.run(
        [sys.executable, "-c", script, folder], capture_output=True, text=True, check=True
    )
    # 19,800 vectors of 4 KiB
    assert int(done.stdout) > 0.5 * 19_800 * 4096


def small_graphs(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    """Let stores build a graph from 1,000 vectors, which are flat by default."""
    policy = IndexPolicy(
        **{"flat_below": 1000, "tail_least": 100, "rows_for_step": 0, "search_effort": 400}
        | changes
    )
    monkeypatch.setattr(IndexPolicy, "of", classmethod(lambda *_: policy))


def test_a_large_index_is_built_in_the_background_and_opened_without_a_build(
    open_vectors: Callable[[], MemoryStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    small_graphs(monkeypatch)
    store = open_vectors()
    fill(store)
    assert store.stats().index_kind == "faiss-flat"
    assert_right(store)
    store._session.snapshots.wait()
    assert store.stats().index_kind == "faiss-hnsw"
    ids = fill(store, 50, seed=1)
    store.delete(ids[:20])
    assert_right(store)
    assert store.maintenance.check().problems == ()
    store.close()
    monkeypatch.setattr(Build, "run", lambda *_: _raise(AssertionError("built anew")))
    with open_vectors() as again:
        assert_right(again)
        assert again.stats().index_kind == "faiss-hnsw"
        assert again.maintenance.check().problems == ()


def test_a_built_snapshot_replaces_a_flat_one_of_the_same_moment(
    open_vectors: Callable[[], MemoryStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    (flat,) = saved(open_vectors)
    size = flat.stat().st_size
    small_graphs(monkeypatch)
    with open_vectors() as store:
        assert_right(store)
        store._session.snapshots.wait()
        assert [path.name for path in snapshots(store)] == [flat.name]
        assert flat.stat().st_size > size


def test_closing_stops_a_build_and_loses_nothing(
    open_vectors: Callable[[], MemoryStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    small_graphs(monkeypatch)
    really_run = Build.run
    monkeypatch.setattr(Build, "run", lambda self, stopped: really_run(self, lambda: True))
    with open_vectors() as store:
        fill(store)
        assert_right(store)
        store._session.snapshots.wait()
        assert_right(store)
        assert store.stats().index_kind == "faiss-flat"
    monkeypatch.setattr(Build, "run", really_run)
    with open_vectors() as store:
        assert_right(store)
        store._session.snapshots.wait()
        assert store.stats().index_kind == "faiss-hnsw"
        assert_right(store)


def test_writes_during_a_build_are_found_and_kept(
    open_vectors: Callable[[], MemoryStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    small_graphs(monkeypatch)
    store = open_vectors()
    ids = fill(store)
    begun, go_on = threading.Event(), threading.Event()
    really_run = Build.run

    def wait(build: Build, stopped: Callable[[], bool]) -> bool:
        done = really_run(build, stopped)
        begun.set()
        assert go_on.wait(60)
        return done

    monkeypatch.setattr(Build, "run", wait)
    assert_right(store)
    assert begun.wait(60)
    store.delete(ids[::3])
    fill(store, 200, seed=4)
    assert_right(store)
    go_on.set()
    store._session.snapshots.wait()
    assert store.stats().index_kind == "faiss-hnsw"
    assert_right(store)
    assert store.maintenance.check().problems == ()


def test_an_index_compacted_during_a_build_keeps_nothing_of_the_old_one(
    open_vectors: Callable[[], MemoryStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    small_graphs(monkeypatch)
    store = open_vectors()
    ids = fill(store)
    begun, go_on = threading.Event(), threading.Event()
    really_run = Build.run

    def wait(build: Build, stopped: Callable[[], bool]) -> bool:
        begun.set()
        assert go_on.wait(60)
        return really_run(build, stopped)

    monkeypatch.setattr(Build, "run", wait)
    assert_right(store)
    assert begun.wait(60)
    with store._session.reader() as repository:
        space = store._session.serving.space
        (old,) = [vectors for _, vectors in repository.vectors.since(space, 0)]
    store.delete(ids[::2])
    store.maintenance.compact()
    go_on.set()
    store._session.snapshots.wait()
    index = store._session.serving.replica._index
    assert index is not None
    data = b"".join(index.to_buffers()) + b"".join(path.read_bytes() for path in snapshots(store))
    assert not [row for row in old[::2] if row.tobytes() in data]
    assert_right(store)


def test_compact_leaves_no_deleted_vector_in_a_graph(
    open_vectors: Callable[[], MemoryStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    small_graphs(monkeypatch)
    store = open_vectors()
    ids = fill(store)
    assert_right(store)
    store._session.snapshots.wait()
    gone = [store._session.serving.replica.sample()[0].tobytes(), rows(COUNT)[7].tobytes()]
    store.delete([ids[0], ids[7]])
    store.maintenance.compact()
    (path,) = snapshots(store)
    assert not [row for row in gone if row in path.read_bytes()]
    assert store.stats().index_kind == "faiss-hnsw"
    assert_right(store)
    assert store.maintenance.check().problems == ()


def test_a_setting_keeps_an_index_flat(open_store: Opener) -> None:
    settings = Settings(index="flat")
    store = open_store(embedding_model=None, embedding_dim=DIM, settings=settings)
    fill(store, 12_000)
    assert_right(store)
    store._session.snapshots.wait()
    assert store.stats().index_kind == "faiss-flat"


@pytest.mark.parametrize(
    "name",
    ["", "hnsw", "HNSW", "HNSW3", "HNSW129,SQ8", "IVF16", "IVF0,Flat", "HNSW16,RaBitQ", None, 16],
)
def test_an_unknown_kind_of_index_is_refused(name: Any) -> None:
    with pytest.raises(ConfigurationError, match='index must be "auto", "flat", "HNSW4" to'):
        Settings(index=name)
    for good in ("HNSW32", "HNSW16,SQ8", "IVF1024,SQfp16", "IVF64,RaBitQ"):
        assert Settings.from_env({"KRONOS_INDEX": good}).index == good


def test_a_tuned_index_stays_tuned(
    open_vectors: Callable[[], MemoryStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    small_graphs(monkeypatch)
    store = open_vectors()
    assert store._session.serving.replica.tune(0.95) is None
    fill(store)
    assert_right(store)
    store._session.snapshots.wait()
    tuned = store._session.serving.replica.tune(0.95)
    assert tuned is not None
    assert tuned.recall >= 0.95
    assert not store._session.serving.replica.is_saved_as_tuned
    measured = ("faiss-hnsw", tuned.effort, tuned.recall)
    store.close()
    with open_vectors() as again:
        assert astuple(again._session.serving.replica.state()) == measured
        again.search(rows(1)[0])
        assert astuple(again._session.serving.replica.state()) == measured
        assert again._session.serving.replica.is_saved_as_tuned


def test_a_build_out_of_memory_warns_once_and_searches_continue(
    open_vectors: Callable[[], MemoryStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    small_graphs(monkeypatch)
    tries: list[int] = []

    def fail(build: Build, stopped: Callable[[], bool]) -> bool:
        tries.append(1)
        raise MemoryError("std::bad_alloc")

    monkeypatch.setattr(Build, "run", fail)
    store = open_vectors()
    fill(store)
    with store._session.reader() as repository, store._session.serving.replica.lock:
        store._session.serving.replica.catch_up(repository, repository.head().seq)
    with pytest.warns(KronosWarning, match="no memory to build an index of 1500 vectors"):
        store._session.serving.replica.build(lambda: False)
    assert_right(store)
    store._session.snapshots.wait()
    assert_right(store)
    assert len(tries) == 1
    assert store.maintenance.check().problems == ()
