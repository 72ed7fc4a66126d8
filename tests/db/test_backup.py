"""Backups are whole, go back into place under open stores, and damage costs only what it hit."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from kronos import MemoryStore, Settings
from kronos.db.sqlite_driver import may_lose_commits
from kronos.errors import (
    ConfigurationError,
    CorruptStoreError,
    InputError,
    StorageError,
    StoreBusyError,
)
from tests.conftest import Opener


def everything(store: MemoryStore) -> dict[str, object]:
    return {memory.id: memory for memory in store.list(limit=10**6, namespace="*")}


def fill(store: MemoryStore, count: int = 300) -> None:
    store.add_many(
        {"content": f"text number {n} of many", "id": f"m{n}", "metadata": {"n": n}}
        for n in range(count)
    )


def test_a_backup_holds_all_and_goes_back_under_an_open_store(
    open_store: Opener, tmp_path: Path
) -> None:
    store, reader = open_store(), open_store()
    fill(store, 1200)
    store.search("text")
    store._session.snapshots.wait()
    saved = store.maintenance.backup(tmp_path / "saved.db")
    before = everything(store)
    store.delete("m5")
    store.update("m6", content="changed after the backup")
    store.add_many(f"later {n}" for n in range(50))
    assert reader.search("later 7", limit=1)[0].content == "later 7"
    seq = store.stats().seq

    aside = MemoryStore(store.location.folder).maintenance.restore(saved)
    assert aside is not None
    for open_one in (store, reader):
        assert everything(open_one) == before
        assert open_one.search("text number 5 of many", limit=1)[0].id == "m5"
        assert all(hit.id in before for hit in open_one.search("later 7", limit=50))
        assert open_one.maintenance.check().ok
    assert store.stats().seq > seq, "no seq is given out twice"
    store.add("after the restore", id="after")
    assert reader.search("after the restore", limit=1)[0].id == "after"
    for open_one in (store, reader):
        open_one.close()
    with open_store() as again:
        assert len(everything(again)) == 1201
        assert again.search("text number 5 of many", limit=1)[0].id == "m5"

    # What stood there before is whole too.
    MemoryStore(tmp_path / "elsewhere").maintenance.restore(aside)
    with MemoryStore.open(tmp_path / "elsewhere", embedding_model="hash", embedding_dim=64) as old:
        assert old.find("m5") is None
        assert old.search("later 7", limit=1)[0].content == "later 7"


def test_the_log_of_a_database_that_is_gone_is_not_taken_up(
    store: MemoryStore, tmp_path: Path
) -> None:
    fill(store)
    saved, before = store.maintenance.backup(tmp_path / "saved.db"), everything(store)
    store.add_many(f"later {n}" for n in range(50))
    log = store.location.database.with_name("kronos.db-wal")
    lost = tmp_path / "lost"
    lost.mkdir()
    shutil.copy(log, lost)
    aside = MemoryStore(lost).maintenance.restore(saved)
    assert aside is not None
    assert aside.with_name(f"{aside.name}-wal").read_bytes() == log.read_bytes()
    with MemoryStore.open(lost, embedding_model="hash", embedding_dim=64) as found:
        assert everything(found) == before
        assert found.maintenance.check().problems == ()


def test_a_backup_is_consistent_while_a_writer_runs(store: MemoryStore, tmp_path: Path) -> None:
    script = """
import sys
from kronos import MemoryStore
with MemoryStore.open(sys.argv[1], embedding_model="hash", embedding_dim=64) as store:
    print("ready", flush=True)
    number = 0
    while True:
        store.add_many({"content": f"b{number} {i}", "metadata": {"b": number}} for i in range(20))
        store.delete([memory.id for memory in store.list(limit=20)] if number % 3 == 2 else [])
        number += 1
"""
    command = [sys.executable, "-c", script, str(store.location.folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        saved = [store.maintenance.backup(tmp_path / f"{number}.db") for number in range(12)]
        writer.kill()
    for number, backup in enumerate(saved):
        MemoryStore(tmp_path / f"store{number}").maintenance.restore(backup)
        folder = tmp_path / f"store{number}"
        with MemoryStore.open(folder, embedding_model="hash", embedding_dim=64) as copy:
            batches = [memory.metadata["b"] for memory in copy.list(limit=10**6)]
            assert all(batches.count(b) == 20 for b in set(batches)), "half a batch"
            assert copy.maintenance.check().ok


def test_bad_paths_and_bad_backups_are_refused_and_change_nothing(
    open_store: Opener, tmp_path: Path
) -> None:
    store = open_store(settings=Settings(busy_timeout_s=0.2))
    fill(store, 40)
    saved = store.maintenance.backup(tmp_path)
    assert saved.parent == tmp_path
    assert saved.name.startswith("kronos.db.backup-")
    with pytest.raises(InputError, match="exists"):
        store.maintenance.backup(saved)
    with pytest.raises(InputError, match="no folder"):
        store.maintenance.backup(tmp_path / "absent" / "x.db")
    before = everything(store)
    folder = store.location.folder
    with pytest.raises(InputError, match="no backup"):
        MemoryStore(folder).maintenance.restore(tmp_path / "absent.db")
    (tmp_path / "text.db").write_text("no database " * 500)
    with pytest.raises(CorruptStoreError):
        MemoryStore(folder).maintenance.restore(tmp_path / "text.db")
    with closing(sqlite3.connect(tmp_path / "other.db")) as other:
        other.execute("CREATE TABLE notes (x)")
    with pytest.raises(ConfigurationError, match="another program"):
        MemoryStore(folder).maintenance.restore(tmp_path / "other.db")
    damaged = bytearray(saved.read_bytes())
    damaged[5 * 8192 : 6 * 8192] = bytes(8192)
    (tmp_path / "damaged.db").write_bytes(damaged)
    with pytest.raises(CorruptStoreError):
        MemoryStore(folder).maintenance.restore(tmp_path / "damaged.db")
    with store._session.writer(), pytest.raises(StoreBusyError):
        MemoryStore(folder, settings=Settings(busy_timeout_s=0.2)).maintenance.restore(saved)
    assert everything(store) == before
    assert store.maintenance.check().ok
    assert not [name for name in folder.iterdir() if name.name.startswith("kronos.db.new")]


def test_what_a_damaged_database_still_holds_is_saved(open_store: Opener, tmp_path: Path) -> None:
    store = open_store()
    fill(store, 2000)
    before = everything(store)
    folder = store.location.folder
    store.close()
    path = folder / "kronos.db"
    with closing(sqlite3.connect(path)) as connection:
        roots = {row[0] - 1 for row in connection.execute("SELECT rootpage FROM sqlite_master")}
    whole = path.read_bytes()
    # A table is lost with its root; this is about what hangs below.
    pages = [page for page in range(1, len(whole) // 8192) if page not in roots]
    chance = np.random.default_rng(1)
    for attempt in range(12):
        broken = bytearray(whole)
        for page in chance.choice(pages, 3):
            kind = attempt % 3
            at = slice(8192 * int(page), 8192 * int(page) + 8192)
            if kind == 0:
                broken[at] = bytes(8192)
            elif kind == 1:
                broken[at] = chance.bytes(8192)
            else:
                broken[8192 * int(page) + 100] ^= 0xFF
        shutil.rmtree(folder)
        folder.mkdir()
        path.write_bytes(broken)
        try:
            report = MemoryStore(folder).maintenance.recover()
        except CorruptStoreError:
            assert path.read_bytes() == bytes(broken), "the original stays"
            continue
        assert report.aside.read_bytes() == bytes(broken)
        with MemoryStore.open(folder, embedding_model="hash", embedding_dim=64) as saved:
            held = everything(saved)
            assert len(held) == report.memories
            assert all(before[id] == memory for id, memory in held.items()), "never a false one"
            assert len(held) > 1700
            probe = next(iter(held))
            found = saved.search(before[probe].content, limit=1)  # type: ignore[attr-defined]
            assert found[0].id == probe
            assert saved.maintenance.check().problems == ()
            saved.add("it takes a write")
        assert not [*folder.glob("kronos.db.new*"), *folder.glob("kronos.db.salvage*")]


def test_a_log_that_was_not_copied_yet_is_recovered_too(store: MemoryStore) -> None:
    fill(store, 30)
    folder, copy = store.location.folder, store.location.folder.parent / "copy"
    copy.mkdir()
    for name in ("kronos.db", "kronos.db-wal"):
        shutil.copy(folder / name, copy / name)
    assert MemoryStore(copy).maintenance.recover().memories == 30


def test_nothing_can_be_recovered_of_what_is_no_store(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no database"):
        MemoryStore(tmp_path).maintenance.recover()
    (tmp_path / "kronos.db").write_bytes(b"garbage " * 8192)
    with pytest.raises(StorageError):
        MemoryStore(tmp_path).maintenance.recover()
    assert (tmp_path / "kronos.db").read_bytes() == b"garbage " * 8192
    assert [path.name for path in tmp_path.iterdir()] == ["kronos.db"]


@pytest.mark.parametrize(
    ("version", "affected"),
    [
        ((3, 6, 23), False),
        ((3, 40, 1), True),
        ((3, 44, 5), True),
        ((3, 44, 6), False),
        ((3, 50, 6), True),
        ((3, 50, 7), False),
        ((3, 51, 2), True),
        ((3, 51, 3), False),
        ((3, 53, 0), False),
    ],
)
def test_the_releases_with_the_wal_reset_bug_are_known(
    version: tuple[int, int, int], affected: bool
) -> None:
    assert may_lose_commits(version) is affected
