"""A backup goes into any place, beside writers, and no acknowledged write is lost by it."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import sqlite3
import threading
import warnings
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kronos.db.backup as backup_module
from kronos import MemoryStore, NewMemory, Settings
from kronos.db import schema
from kronos.db.database import Database
from kronos.errors import (
    InputError,
    KronosError,
    KronosWarning,
    SchemaTooNewError,
    StoreBusyError,
    StoreReplacedError,
)
from kronos.repository.memories import Repository
from tests.embedders import Named

A, B = Named("A"), Named("B")
ASSETS = Path(__file__).parent / "assets"


def ids_of(store: MemoryStore) -> list[str]:
    return [memory.id for memory in store.list(limit=10**6, namespace="*")]


def in_file(path: Path, folder: Path) -> set[str]:
    """The ids in a database, which is copied: to open it would write."""
    folder.mkdir()
    for end in ("", "-wal"):
        if path.with_name(path.name + end).exists():
            shutil.copy(path.with_name(path.name + end), folder / f"kronos.db{end}")
    with MemoryStore.open(folder, embedding_model=None, settings=Settings()) as store:
        return set(ids_of(store))


def assert_right(store: MemoryStore, embedder: Named) -> None:
    """Every memory's vector in the active space is its embedder's own."""
    with store._session.reader() as repository:
        space = repository.spaces.active()
        assert space is not None
        assert space.fingerprint == embedder.fingerprint
        for page in repository.walk(None, None, 500):
            for key, memory in page:
                row = repository.vectors.of(space, key)
                assert row is not None
                assert np.allclose(row, embedder.one(memory.content), atol=1e-6)


# -- Which store, which space -------------------------------------------------------------------


def test_a_backup_of_another_store_restored_under_an_open_one_mixes_no_spaces(
    tmp_path: Path,
) -> None:
    with MemoryStore.open(tmp_path / "b", embedder=B) as other:
        other.add("text of B", id="b")
        saved = other.maintenance.backup(tmp_path / "b.bak")
    store = MemoryStore.open(tmp_path / "a", embedder=A)
    store.add("text of A")
    store.search("text of A", mode="dense")
    MemoryStore(tmp_path / "a").maintenance.restore(saved)
    with pytest.warns(KronosWarning, match="hash"):
        (hit,) = store.search("text of B", mode="dense")
    assert hit.score == pytest.approx(1.0, abs=1e-5)
    assert hit.embedder != "A"
    store.add("new", id="n")
    store.update("b", content="changed")
    assert store.stats().degraded is not None
    with store._session.reader() as repository:
        space = repository.spaces.active()
        assert space is not None
        assert repository.vectors.count(space.id) == 0, "no vector of A's stands in B's space"
    assert store.maintenance.check().ok is False  # pending in B's space, and said so
    store.close()
    with MemoryStore.open(tmp_path / "a", embedder=B) as again:
        assert_right(again, B)
        assert again.maintenance.check().ok


def test_a_reindex_of_a_store_that_is_replaced_meanwhile_writes_into_no_other_space(
    tmp_path: Path,
) -> None:
    with MemoryStore.open(tmp_path / "b", embedder=B) as other:
        other.add_many(f"text {n}" for n in range(30))
        saved = other.maintenance.backup(tmp_path / "b.bak")
    restored: list[bool] = []

    def put_back(texts: Any) -> None:
        if "text 7" in texts and not restored:
            restored.append(True)
            MemoryStore(tmp_path / "a").maintenance.restore(saved)

    with MemoryStore.open(tmp_path / "a", embedder=B) as first:
        first.add_many(f"text {n}" for n in range(30))
    changing = Named("C", meets=put_back)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with suppress(KronosError):  # what it says is not the matter; any other error is a fault
            MemoryStore.open(tmp_path / "a", embedder=changing).close()
    assert restored
    with MemoryStore.open(tmp_path / "a", embedder=B) as store:
        assert_right(store, B)


def test_a_job_of_a_store_that_is_replaced_by_one_with_a_job_of_the_same_number_is_cancelled(
    tmp_path: Path,
) -> None:
    stopped = threading.Event()
    stopped.set()
    with MemoryStore.open(tmp_path / "b", embedder=B) as other:
        other.add_many(f"text {n}" for n in range(30))
        other._session.embedders.load = lambda model, **_: Named("D")  # type: ignore[method-assign,assignment]
        other.reindex("D", stop=stopped)
        (job,) = other.models.jobs()
        saved = other.maintenance.backup(tmp_path / "b.bak")
    restored: list[bool] = []

    def put_back(texts: Any) -> None:
        if not restored:
            restored.append(True)
            MemoryStore(tmp_path / "a").maintenance.restore(saved)

    with MemoryStore.open(tmp_path / "a", embedder=A) as store:
        store.add_many(f"other {n}" for n in range(30))
        store._session.embedders.load = lambda model, **_: Named("C", meets=put_back)  # type: ignore
        with pytest.warns(KronosWarning, match="hash vectors answer"):
            report = store.reindex("C", workers=2, batch_size=4)
        assert restored
        assert (report.state, report.activated, report.pending) == ("cancelled", False, 0)
        assert store.models.jobs()[0].id == job.id, "as its own had"
    with MemoryStore.open(tmp_path / "a", embedder=B) as store:
        assert_right(store, B)
        (found,) = store.models.jobs()
        assert replace(found, space=job.space) == job
        assert store.maintenance.check().ok


# -- Beside writers -----------------------------------------------------------------------------


def test_numbers_are_never_given_twice_by_a_restore_beside_writers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever writes at the worst moment waits, and comes after."""
    one, two = (MemoryStore.open(tmp_path / "s", embedder=A) for _ in range(2))
    one.add_many([NewMemory(f"old {n}", id=f"o{n}") for n in range(3)])
    saved = one.maintenance.backup(tmp_path / "x.bak")
    one.add("after the backup", id="later")
    begin = backup_module._begin_above
    refused: list[bool] = []

    def meanwhile(part: Path, last: int, settings: Settings) -> None:
        hurried = Settings(busy_timeout_s=0.05)
        with MemoryStore.open(tmp_path / "s", embedder=A, settings=hurried) as third:
            try:
                third.add("at the worst moment", id="worst")
            except StoreBusyError:
                refused.append(True)
        one.search("x", mode="dense")
        begin(part, last, settings)

    monkeypatch.setattr(backup_module, "_begin_above", meanwhile)
    aside = MemoryStore(tmp_path / "s").maintenance.restore(saved)
    assert refused
    assert aside is not None
    for n in range(6):
        two.add(f"after {n}", id=f"a{n}")
    for store in (one, two):
        assert ids_of(store) == ["o0", "o1", "o2", *(f"a{n}" for n in range(6))]
        for n in range(6):
            assert store.search(f"after {n}", mode="dense", limit=1)[0].id == f"a{n}"
        assert store.maintenance.check().problems == ()
        store.close()
    assert in_file(aside, tmp_path / "aside") == {"o0", "o1", "o2", "later"}


def test_a_pending_memory_that_a_restore_brings_back_is_embedded(tmp_path: Path) -> None:
    """What an open process knows of being complete does not outlive a restore."""
    settings = Settings(network_timeout_s=0.1)
    store = MemoryStore.open(tmp_path / "s", embedder=A)
    store.add("one", id="one")
    with pytest.warns(KronosWarning, match="hash"):
        fallback = MemoryStore.open(
            tmp_path / "s", embedding_model="no-such/model", settings=settings
        )
    fallback.add("two, which waits for the model", id="two")
    saved = fallback.maintenance.backup(tmp_path / "x.bak")
    fallback.close()
    assert [hit.id for hit in store.search("two, which waits for the model", limit=1)] == ["two"]
    store.delete("two")
    MemoryStore(tmp_path / "s").maintenance.restore(saved)
    hit = store.search("two, which waits for the model", mode="dense", limit=1)[0]
    assert (hit.id, hit.embedder) == ("two", "A")
    store.close()


def _write_for_ever(folder: str, name: str, log: str) -> None:
    with (
        MemoryStore.open(folder, embedder=A, settings=Settings(busy_timeout_s=30)) as store,
        open(log, "w", buffering=1) as acknowledged,
    ):
        number = 0
        while True:
            id = store.add(f"{name} wrote {number}", id=f"{name}-{number}")
            acknowledged.write(f"{id}\n")
            number += 1


@pytest.mark.parametrize("damaged", [False, True])
def test_every_acknowledged_write_is_in_the_store_or_in_a_copy_set_aside(
    tmp_path: Path, damaged: bool
) -> None:
    folder = tmp_path / "s"
    with MemoryStore.open(folder, embedder=A) as store:
        store.add_many(f"text {n}" for n in range(500))
        saved = store.maintenance.backup(tmp_path / "x.bak")
        if damaged:
            with store._session.writer() as repository:  # a dangling row
                repository.connection.exec_driver_sql("INSERT INTO tombstones VALUES (1, 5, 5)")
    context = multiprocessing.get_context("fork")
    logs = [tmp_path / f"log-{name}" for name in "pq"]
    writers = [
        context.Process(target=_write_for_ever, args=(str(folder), name, str(log)), daemon=True)
        for name, log in zip("pq", logs, strict=True)
    ]
    for writer in writers:
        writer.start()
    asides = []
    for _ in range(4):
        written = [log.read_text().count("\n") if log.exists() else 0 for log in logs]
        while any(
            log.read_text().count("\n") <= before + 5 if log.exists() else True
            for log, before in zip(logs, written, strict=True)
        ):
            assert all(writer.is_alive() for writer in writers)
        asides.append(
            MemoryStore(folder, settings=Settings(busy_timeout_s=30)).maintenance.restore(saved)
        )
    for writer in writers:
        writer.kill()
        writer.join()
    acknowledged = {line for log in logs for line in log.read_text().split("\n")[:-1]}
    kept: set[str] = set()
    for number, aside in enumerate(asides):
        assert aside is not None
        kept |= in_file(aside, tmp_path / f"aside{number}")
    with MemoryStore.open(folder, embedder=A) as store:
        assert acknowledged <= kept | set(ids_of(store))
        assert_right(store, A)
        assert store.maintenance.check().ok


def test_a_restore_over_a_damaged_database_is_followed_by_open_stores(tmp_path: Path) -> None:
    store = MemoryStore.open(tmp_path / "s", embedder=A)
    store.add("one", id="one")
    saved = store.maintenance.backup(tmp_path / "x.bak")
    with closing(sqlite3.connect(tmp_path / "s/kronos.db")) as connection:
        connection.execute("INSERT INTO tombstones VALUES (99, 5, 5)")
        connection.commit()
    MemoryStore(tmp_path / "s").maintenance.restore(saved)
    store.add("three", id="three")
    assert ids_of(store) == ["one", "three"]
    with MemoryStore.open(tmp_path / "s", embedder=A) as new:
        assert ids_of(new) == ["one", "three"]
    assert store.maintenance.check().ok
    store.close()


@pytest.mark.parametrize("header", [b"no database file", bytes(16)])
def test_a_restore_over_a_file_that_is_no_database_is_followed_too(
    tmp_path: Path, header: bytes
) -> None:
    store = MemoryStore.open(tmp_path / "s", embedder=A)
    store.add("one", id="one")
    saved = store.maintenance.backup(tmp_path / "x.bak")
    store.maintenance.compact()  # nothing is left in the log
    with (tmp_path / "s/kronos.db").open("r+b") as file:
        file.write(header)
    aside = MemoryStore(tmp_path / "s").maintenance.restore(saved)
    assert aside is not None
    assert aside.read_bytes()[:16] == header
    store.add("three", id="three")
    assert ids_of(store) == ["one", "three"]
    with MemoryStore.open(tmp_path / "s", embedder=A) as new:
        assert ids_of(new) == ["one", "three"]
    store.close()


def test_of_two_restores_at_once_both_are_right(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    with MemoryStore.open(folder, embedder=A) as store:
        store.add_many([NewMemory(f"text {n}", id=f"m{n}") for n in range(50)])
        saved = store.maintenance.backup(tmp_path / "x.bak")
        store.add("later", id="later")
    for round in range(6):
        place = folder if round % 2 else tmp_path / f"new{round}"
        outcomes: list[Any] = []

        def put_back(place: Path = place, outcomes: list[Any] = outcomes) -> None:
            try:
                outcomes.append(MemoryStore(place).maintenance.restore(saved))
            except Exception as exc:
                outcomes.append(exc)

        threads = [threading.Thread(target=put_back) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        failed = [each for each in outcomes if isinstance(each, Exception)]
        assert failed == []
        with MemoryStore.open(place, embedder=A) as store:
            assert ids_of(store) == [f"m{n}" for n in range(50)]
            assert store.maintenance.check().ok
        assert [file.name for file in place.iterdir() if ".part" in file.name] == []


def test_of_two_backups_to_one_name_at_once_one_is_refused(tmp_path: Path) -> None:
    with MemoryStore.open(tmp_path / "s", embedder=A) as store:
        store.add_many(f"text {n}" for n in range(300))
        for round in range(5):
            outcomes: list[Any] = []
            target = tmp_path / f"{round}.bak"

            def save(target: Path = target, outcomes: list[Any] = outcomes) -> None:
                try:
                    outcomes.append(store.maintenance.backup(target))
                except InputError as exc:
                    outcomes.append(exc)

            threads = [threading.Thread(target=save) for _ in range(3)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert sum(each == target for each in outcomes) == 1
            MemoryStore(tmp_path / f"back{round}").maintenance.restore(target)
            with MemoryStore.open(tmp_path / f"back{round}", embedder=A) as again:
                assert again.count() == 300
        assert [file.name for file in tmp_path.iterdir() if ".part" in file.name] == []


# -- What is put back ---------------------------------------------------------------------------


def test_a_backup_of_a_newer_schema_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    with MemoryStore.open(tmp_path / "s", embedder=A) as store:
        store.add("one", id="one")
        saved = store.maintenance.backup(tmp_path / "x.bak")
        with closing(sqlite3.connect(saved)) as connection:
            connection.execute("UPDATE alembic_version SET version_num = '0099'")
            connection.commit()
        with pytest.raises(SchemaTooNewError):
            MemoryStore(tmp_path / "s").maintenance.restore(saved)
        assert ids_of(store) == ["one"]
        assert [file.name for file in (tmp_path / "s").glob("*before-restore*")] == []


@pytest.mark.parametrize("asset", sorted(path.name for path in ASSETS.glob("0*.db")))
def test_a_backup_of_an_older_schema_is_upgraded_on_its_way(tmp_path: Path, asset: str) -> None:
    store = MemoryStore.open(tmp_path / "s", embedding_model=None, embedding_dim=4)
    store.add_many([NewMemory("one", id="own", embedding=[1, 0, 0, 0])])
    MemoryStore(tmp_path / "s").maintenance.restore(ASSETS / asset)
    held = ids_of(store)
    assert held
    assert "own" not in held
    store.search("text", mode="lexical")
    store.link(held[0], held[1], "knows")
    assert schema.current(Database(store.location.database, Settings())) == schema.head()
    assert [p.name for p in (tmp_path / "s").iterdir() if "backup-" in p.name] == []
    store.close()


@pytest.mark.parametrize("page_bytes", [512, 4096, 65536])
def test_a_backup_with_pages_of_another_size_is_restored(tmp_path: Path, page_bytes: int) -> None:
    store = MemoryStore.open(tmp_path / "s", embedder=A)
    store.add_many([NewMemory(f"text {n}", id=f"m{n}") for n in range(40)])
    saved = store.maintenance.backup(tmp_path / "x.bak")
    with closing(sqlite3.connect(saved, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode=DELETE")
        connection.execute(f"PRAGMA page_size={page_bytes}")
        connection.execute("VACUUM")
        assert connection.execute("PRAGMA page_size").fetchone() == (page_bytes,)
    store.add("later", id="later")
    MemoryStore(tmp_path / "s").maintenance.restore(saved)
    assert ids_of(store) == [f"m{n}" for n in range(40)]
    assert store.search("text 7", mode="dense", limit=1)[0].id == "m7"
    assert store.maintenance.check().ok
    store.close()


@pytest.mark.skipif(os.name != "posix", reason="permission bits")
def test_copies_of_a_private_store_stay_private(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    settings = Settings(snapshot_changes=1)
    before = os.umask(0o022)
    try:
        store = MemoryStore.open(folder, embedder=A, settings=settings)
        store.add("a secret", id="one")
        (folder / "kronos.db").chmod(0o600)
        saved = store.maintenance.backup(tmp_path / "x.bak")
        store.export_to(tmp_path / "all.jsonl")
        store.search("x", mode="dense")
        store.close()
        aside = MemoryStore(folder).maintenance.restore(saved)
        MemoryStore(tmp_path / "new").maintenance.restore(saved)
        report = MemoryStore(folder).maintenance.recover()
        with (folder / "kronos.db").open("r+b") as file:
            file.write(b"nothing of a database")
        damaged = MemoryStore(folder).maintenance.restore(saved)
        with MemoryStore.open(folder, embedder=A, settings=settings) as again:
            again.search("x", mode="dense")
        assert aside is not None
        assert damaged is not None
        private = [
            *(saved, aside, damaged, report.aside, tmp_path / "all.jsonl"),
            *(folder / "kronos.db", tmp_path / "new/kronos.db"),
            *(folder / "index").glob("*.kronos"),
        ]
        assert len(private) == 8
        assert {path.name: oct(path.stat().st_mode & 0o777) for path in private} == {
            path.name: "0o600" for path in private
        }
    finally:
        os.umask(before)


# -- Recover ------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokenizer", ["trigram", "unicode61", "porter"])
def test_recover_keeps_how_texts_are_cut_into_words(tmp_path: Path, tokenizer: Any) -> None:
    settings = Settings(tokenizer=tokenizer)
    with MemoryStore.open(tmp_path / "s", embedder=A, settings=settings) as store:
        store.add("the lighthouse keepers", id="one")
        expected = [len(store.search(q, mode="lexical")) for q in ("ghthou", "keeper", "keepers")]
    MemoryStore(tmp_path / "s").maintenance.recover()
    with MemoryStore.open(tmp_path / "s", embedder=A) as store:
        assert store.stats().tokenizer == tokenizer
        found = [len(store.search(q, mode="lexical")) for q in ("ghthou", "keeper", "keepers")]
        assert found == expected


def test_the_log_of_a_database_behind_a_link_is_recovered_and_restored_too(tmp_path: Path) -> None:
    store = MemoryStore.open(tmp_path / "disk", embedder=A)
    store.add_many([NewMemory(f"text {n}", id=f"m{n}") for n in range(5)])
    folder, far = tmp_path / "s", tmp_path / "far"
    folder.mkdir()
    far.mkdir()
    for end in ("", "-wal"):  # as a killed process leaves them
        shutil.copy(tmp_path / f"disk/kronos.db{end}", far / f"real.db{end}")
    (folder / "kronos.db").symlink_to(far / "real.db")
    saved = store.maintenance.backup(tmp_path / "x.bak")
    store.close()
    report = MemoryStore(folder).maintenance.recover()
    assert report.memories == 5
    assert (folder / "kronos.db").is_symlink(), "the link stays, and leads to the new database"
    with MemoryStore.open(folder, embedder=A) as linked:
        assert len(ids_of(linked)) == 5
        linked.add("six", id="six")
        MemoryStore(folder).maintenance.restore(saved)
        assert len(ids_of(linked)) == 5
        linked.maintenance.compact()
    assert (folder / "kronos.db").is_symlink()
    assert [file.name for file in folder.iterdir() if file.name.startswith("kronos.db")] == [
        "kronos.db"
    ]


# -- A store whose file went away ----------------------------------------------------------------


def verbs(store: MemoryStore, tmp_path: Path) -> Iterator[tuple[str, Any]]:
    """Everything that a program may call."""
    yield from {
        "add": lambda: store.add("new"),
        "add_many": lambda: store.add_many(["new", "newer"]),
        "upsert": lambda: store.upsert("one"),
        "update": lambda: store.update("one", content="changed"),
        "update metadata": lambda: store.update("one", importance=0.1),
        "delete": lambda: store.delete("one"),
        "delete where": lambda: store.delete(where={"n": 1}),
        "touch": lambda: store.touch("one"),
        "link": lambda: store.link("one", "two", "knows"),
        "unlink": lambda: store.unlink("one", "two"),
        "get": lambda: store.get("one"),
        "find": lambda: store.find("one"),
        "list": store.list,
        "iterate": lambda: list(store.iterate()),
        "count": store.count,
        "history": lambda: store.history("one"),
        "links": lambda: store.links("one"),
        "trace": lambda: store.trace("one"),
        "search": lambda: store.search("one"),
        "search words": lambda: store.search("one", mode="lexical"),
        "search vectors": lambda: store.search("one", mode="dense"),
        "search_many": lambda: store.search_many(["one"]),
        "duplicates": store.duplicates,
        "index_field": lambda: store.maintenance.index_field("n"),
        "unindex_field": lambda: store.maintenance.unindex_field("n"),
        "indexed_fields": store.maintenance.indexed_fields,
        "rebuild_words": store.maintenance.rebuild_fulltext,
        "export_to": lambda: store.export_to(tmp_path / "x.jsonl"),
        "backup": lambda: store.maintenance.backup(tmp_path / "x.bak"),
        "stats": store.stats,
        "check": store.maintenance.check,
        "repair": lambda: store.maintenance.check(repair=True),
        "tune": store.maintenance.tune,
        "compact": store.maintenance.compact,
        "reindex": store.reindex,
        "plan_reindex": store.models.plan,
        "jobs": store.models.jobs,
        "failures": store.models.failures,
        "resume": store.models.resume,
        "activate": store.models.activate,
        "rollback": store.models.rollback,
        "cancel": store.models.cancel,
    }.items()


def vanish(folder: Path) -> None:
    shutil.rmtree(folder)


def lose_database(folder: Path) -> None:
    for file in folder.glob("kronos.db*"):
        file.unlink()


def become_a_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("a file now")


def be_made_anew(folder: Path) -> None:
    shutil.rmtree(folder)
    with MemoryStore.open(folder, embedder=A) as other:
        other.add("somebody else's", id="else")


def be_swapped(folder: Path) -> None:
    with MemoryStore.open(folder.with_name("other"), embedder=A) as other:
        other.add("somebody else's", id="else")
    folder.rename(folder.with_name("gone"))
    folder.symlink_to(folder.with_name("other"))


LOSSES = [vanish, lose_database, become_a_file, be_made_anew, be_swapped]


@pytest.mark.parametrize("lose", LOSSES)
def test_a_store_whose_file_went_away_says_so_and_acknowledges_nothing(
    tmp_path: Path, lose: Any
) -> None:
    folder = tmp_path / "s"
    store = MemoryStore.open(folder, embedder=A, settings=Settings(busy_timeout_s=0.2))
    store.add_many([NewMemory("one", id="one"), NewMemory("two", id="two")])
    store.search("one")
    lose(folder)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for name, call in verbs(store, tmp_path):
        with pytest.raises(StoreReplacedError) as caught:
            call()
        assert str(store.location.database) in str(caught.value), name
    store.close()
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert after == before, "nothing was written"
    if lose in (be_made_anew, be_swapped):
        with MemoryStore.open(folder, embedder=A) as other:
            assert ids_of(other) == ["else"]


def test_a_store_that_was_moved_and_put_back_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    store = MemoryStore.open(folder, embedder=A)
    store.add("one", id="one")
    folder.rename(tmp_path / "elsewhere")
    with pytest.raises(StoreReplacedError, match="removed"):
        store.add("two", id="two")
    (tmp_path / "elsewhere").rename(folder)
    store.add("three", id="three")
    assert ids_of(store) == ["one", "three"]
    assert store.search("three", mode="dense", limit=1)[0].id == "three"
    store.close()


def test_a_copy_of_the_store_in_its_place_is_followed_and_not_its_old_index(
    tmp_path: Path,
) -> None:
    """Restored by copying a folder: the same store at an older seq, written to by others since."""
    folder = tmp_path / "s"
    store = MemoryStore.open(folder, embedder=A)
    store.add_many([NewMemory(f"text {n}", id=f"m{n}") for n in range(20)])
    store.maintenance.backup(tmp_path / "copy.db")
    store.add_many([NewMemory(f"later {n}", id=f"l{n}") for n in range(5)])
    store.search("later 1", where={"n": {"$exists": False}})
    for file in folder.glob("kronos.db*"):
        file.unlink()
    shutil.copy(tmp_path / "copy.db", folder / "kronos.db")
    with MemoryStore.open(folder, embedder=A) as other:
        other.add_many([NewMemory(f"other {n}", id=f"x{n}") for n in range(9)])
    assert ids_of(store) == [*(f"m{n}" for n in range(20)), *(f"x{n}" for n in range(9))]
    for n in range(9):
        hits = store.search(f"other {n}", mode="dense", limit=1, where={"n": {"$exists": False}})
        assert hits[0].id == f"x{n}"
    assert not any(hit.id.startswith("l") for hit in store.search("later 1", limit=30))
    store.add("new", id="new")
    assert store.maintenance.check().ok
    store.close()


def test_a_write_that_ends_in_a_file_that_went_away_is_not_acknowledged(tmp_path: Path) -> None:
    folder = tmp_path / "s"

    store = MemoryStore.open(folder, embedder=A)
    store.add("one")

    def lose_it_meanwhile(repository: Repository) -> None:
        repository.touch(["one"])
        shutil.rmtree(folder)

    with pytest.raises(StoreReplacedError, match="went with it"):
        store._session.write(lose_it_meanwhile)
    store.close()
