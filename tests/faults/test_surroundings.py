"""A folder that can only be read, a clock put back, files that are gone: typed, and right."""

from __future__ import annotations

import os
import shutil
import sqlite3
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from kronos import MemoryStore
from kronos.embedding.hashing import HashEmbedder
from kronos.errors import (
    CorruptStoreError,
    EmbedderMismatchError,
    KronosWarning,
    ReadOnlyStoreError,
)
from tests.conftest import Clock, Opener
from tests.db.test_faults import open_folder, unwritable

__all__ = ["open_folder"]

OPTIONS: dict[str, Any] = {"embedding_model": "hash", "embedding_dim": 32}


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="no such rights on this system")
def test_a_store_that_can_only_be_read_answers_and_names_what_it_cannot(open_folder: Path) -> None:
    folder = open_folder / "store"
    with MemoryStore.open(folder, **OPTIONS) as store:
        ids = store.add_many(f"text {n}" for n in range(1500))
        store.search("text")
    with unwritable(folder), MemoryStore.open(folder, **OPTIONS) as store:
        assert store.get(ids[3]).content == "text 3"
        assert store.search("text 7", limit=1)[0].id == ids[7]
        assert (store.count(), len(store.list(limit=9))) == (1500, 9)
        assert store.maintenance.check().problems == ()
        assert store.stats().memories == 1500
        for write in (
            lambda: store.add("x"),
            lambda: store.update(ids[0], content="x"),
            lambda: store.delete(ids[0]),
            store.maintenance.compact,
        ):
            with pytest.raises(ReadOnlyStoreError, match="be written"):
                write()
        assert store.search("text 7", limit=1)[0].id == ids[7]
        with pytest.raises(EmbedderMismatchError):
            MemoryStore.open(folder, embedder=HashEmbedder(16), on_model_change="error")
        with pytest.raises(ReadOnlyStoreError):
            MemoryStore.open(folder, embedder=HashEmbedder(16))
    with MemoryStore.open(folder, **OPTIONS) as store:
        store.add("it takes a write again")


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="no such rights on this system")
def test_a_store_that_can_only_be_read_opens_with_texts_that_wait(open_folder: Path) -> None:
    folder = open_folder / "store"
    with MemoryStore.open(folder, **OPTIONS) as store:
        store.add_many(["first text", "second text"])
        with store._session.writer() as repository:
            space = repository.spaces.active()
            assert space is not None
            keys = repository.keys(None, None)
            repository.vectors.make_pending(space, keys[:1])
    with unwritable(folder):
        with pytest.warns(KronosWarning, match="have no vector yet"):
            store = MemoryStore.open(folder, **OPTIONS)
        assert [hit.content for hit in store.search("first text", mode="dense")] == ["second text"]
        assert [problem.kind for problem in store.maintenance.check().problems] == ["pending"]
        store.close()
    with MemoryStore.open(folder, **OPTIONS) as store:
        assert store.search("first text", limit=1)[0].content == "first text"


def test_what_had_expired_stays_gone_when_the_clock_is_put_back(
    open_store: Opener, clock: Clock
) -> None:
    store = open_store()
    store.add("soon gone", id="a", expires_at=clock.now + timedelta(hours=1))
    store.add("stays", id="b")
    clock.tick(7200)
    assert store.find("a") is None
    clock.tick(-7000)
    assert store.find("a") is None
    assert [hit.id for hit in store.search("soon gone")] == ["b"]
    assert [memory.id for memory in store.list()] == ["b"]
    assert store.count() == 1


def test_order_is_by_seq_whatever_the_clock_says(open_store: Opener, clock: Clock) -> None:
    store, reader = open_store(), open_store()
    for number in range(20):
        store.add(f"text {number}", id=f"m{number:02}")
        clock.tick(-3600)
        assert reader.search(f"text {number}", limit=1)[0].id == f"m{number:02}"
    assert [memory.id for memory in reader.list()] == [f"m{number:02}" for number in range(20)]
    store.update("m00", content="changed while the clock ran back")
    assert reader.search("changed while the clock ran back", limit=1)[0].id == "m00"


def test_a_lost_log_of_a_closed_store_costs_nothing(open_store: Opener) -> None:
    store = open_store()
    store.add_many(f"text {n}" for n in range(30))
    store.close()
    for name in ("kronos.db-wal", "kronos.db-shm"):
        (store.location.folder / name).unlink(missing_ok=True)
    assert open_store().count() == 30


def test_a_lost_shared_memory_file_costs_nothing(open_store: Opener, tmp_path: Path) -> None:
    store = open_store()
    store.add_many(f"text {n}" for n in range(30))
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("kronos.db", "kronos.db-wal"):  # and no -shm, as after a power cut
        shutil.copy(store.location.folder / name, copy)
    with MemoryStore.open(copy, **{**OPTIONS, "embedding_dim": 64}) as again:
        assert again.count() == 30
        assert again.maintenance.check().problems == ()


def test_a_damaged_database_is_named_with_the_command_that_mends_it(open_store: Opener) -> None:
    store = open_store()
    store.add_many(f"text {n} " + "x" * 500 for n in range(300))
    store.close()
    path = store.location.database
    whole = bytearray(path.read_bytes())
    whole[: 20 * 8192] = b"\xa5" * (20 * 8192)
    path.write_bytes(whole)
    with pytest.raises(CorruptStoreError, match="kronos recover"):
        open_store()
    assert path.read_bytes() == bytes(whole), "nothing was written to it"


def redefine_index(path: Path, before: str, after: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA writable_schema=ON")
        connection.execute(
            "UPDATE sqlite_master SET sql = replace(sql, ?, ?) "
            "WHERE name = 'ix_memories_content_hash'",
            [before, after],
        )
        connection.commit()


def test_a_damaged_index_of_sqlite_is_made_anew_after_a_backup(open_store: Opener) -> None:
    store = open_store()
    store.add_many({"content": f"text {n}", "id": f"m{n}"} for n in range(50))
    path = store.location.database
    store.close()
    redefine_index(path, "(content_hash)", "(content)")
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("REINDEX ix_memories_content_hash")
    redefine_index(path, "(content)", "(content_hash)")  # the definition is right, its rows are not
    store = open_store()
    problems = store.maintenance.check().problems
    assert problems
    assert all("index" in problem.detail for problem in problems)
    report = store.maintenance.check(repair=True)
    assert report.ok
    assert all(problem.repaired for problem in report.problems)
    assert list(path.parent.glob("kronos.db.before-repair-*"))
    assert store.maintenance.check().problems == ()
    assert store.count() == 50
