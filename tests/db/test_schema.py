from __future__ import annotations

import multiprocessing
import shlex
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest
from sqlalchemy import text

from kronos.db import schema
from kronos.db.database import Database
from kronos.errors import (
    ConfigurationError,
    MigrationError,
    SchemaOutdatedError,
    SchemaTooNewError,
    StorageFullError,
    StoreBusyError,
)
from kronos.settings import Settings
from tests.db.conftest import AFTER_NEXT, HEAD, NEXT, Plant
from tests.db.make_asset import ROWS, contents, fill

FAILING = "op.create_table('half', sa.Column('x', sa.Integer()))\nraise RuntimeError('planted')"


def backups(database: Database) -> list[Path]:
    return sorted(database.path.parent.glob("kronos.db.backup-*"))


def dump(path: Path) -> list[str]:
    connection = sqlite3.connect(path)
    lines = list(connection.iterdump())
    connection.close()
    return lines


# -- Opening ----------------------------------------------------------------------------------


def test_an_empty_database_is_brought_to_head(empty: Database) -> None:
    assert schema.current(empty) is None
    schema.prepare(empty)
    assert schema.current(empty) == schema.head()
    assert backups(empty) == []


def test_opening_again_changes_nothing(database: Database) -> None:
    before = dump(database.path)
    schema.prepare(database)
    schema.prepare(database, migrate=True)
    assert dump(database.path) == before
    assert backups(database) == []


def test_an_older_database_is_refused_with_the_command_that_upgrades_it(
    database: Database, plant: Plant
) -> None:
    plant(NEXT)
    with pytest.raises(SchemaOutdatedError) as caught:
        schema.prepare(database)
    message = str(caught.value)
    assert f"has schema {HEAD}, this Kronos needs {NEXT}" in message
    assert f"kronos db upgrade --store {shlex.quote(str(database.path.parent))}" in message
    assert schema.current(database) == HEAD


def test_an_older_database_is_upgraded_on_demand(database: Database, plant: Plant) -> None:
    plant(NEXT, upgrade="op.create_table('more', sa.Column('x', sa.Integer()))")
    schema.prepare(database, migrate=True)
    assert schema.current(database) == NEXT
    assert len(backups(database)) == 1


def test_a_newer_database_is_refused_and_left_alone(database: Database) -> None:
    with database.write() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    before = dump(database.path)
    refused: list[Callable[[], object]] = [
        lambda: schema.prepare(database),
        lambda: schema.prepare(database, migrate=True),
        lambda: schema.check(database),
        lambda: schema.downgrade(database, "base"),
    ]
    for attempt in refused:
        with pytest.raises(SchemaTooNewError, match=r"9999.*upgrade the package kronos-memory"):
            attempt()
    assert dump(database.path) == before
    assert backups(database) == []


@pytest.mark.parametrize(
    "statements",
    [
        ["CREATE TABLE diary (day TEXT)"],
        ["CREATE TABLE alembic_version (version_num TEXT)", "CREATE TABLE diary (day TEXT)"],
        ["CREATE TABLE store (id INTEGER)"],
    ],
)
def test_the_database_of_another_program_is_refused_and_left_alone(
    tmp_path: Path, statements: list[str]
) -> None:
    path = tmp_path / "kronos.db"
    connection = sqlite3.connect(path)
    for statement in statements:
        connection.execute(statement)
    connection.close()
    before = path.read_bytes()
    database = Database(path, Settings())
    for migrate in (False, True):
        with pytest.raises(ConfigurationError, match="another program"):
            schema.prepare(database, migrate=migrate)
    database.close()
    assert path.read_bytes() == before


def _prepare_at_once(path: str, barrier: Barrier) -> None:
    database = Database(Path(path), Settings(busy_timeout_s=20))
    barrier.wait()
    schema.prepare(database)
    database.close()


def test_four_processes_may_make_the_same_store_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(4)
    path = tmp_path / "store" / "kronos.db"
    workers = [
        context.Process(target=_prepare_at_once, args=(str(path), barrier)) for _ in range(4)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0, 0]
    database = Database(path, Settings())
    assert schema.current(database) == schema.head()
    with database.read() as connection:
        assert connection.execute(text("SELECT count(*) FROM store")).scalar_one() == 1
    database.close()


def test_a_new_store_waits_for_whoever_holds_its_file(tmp_path: Path) -> None:
    # SQLite itself does not wait when it is to switch to the write-ahead log.
    path = tmp_path / "kronos.db"
    holder = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    holder.execute("BEGIN IMMEDIATE")
    release = threading.Timer(0.1, holder.close)
    release.start()
    database = Database(path, Settings())
    schema.prepare(database)
    release.join()
    assert schema.current(database) == schema.head()
    database.close()


def test_threads_may_make_several_stores_at_once(tmp_path: Path) -> None:
    failures: list[BaseException] = []

    def work(name: str) -> None:
        database = Database(tmp_path / name / "kronos.db", Settings())
        try:
            schema.prepare(database)
            fill(database)
            assert contents(database) == ROWS
        except BaseException as exc:
            failures.append(exc)
        finally:
            database.close()

    threads = [threading.Thread(target=work, args=(f"store-{i}",)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_opening_a_store_that_is_up_to_date_does_not_import_alembic(database: Database) -> None:
    script = (
        "import sys; from pathlib import Path; from kronos.db import schema\n"
        "from kronos.db.database import Database; from kronos.settings import Settings\n"
        "schema.prepare(Database(Path(sys.argv[1]), Settings()), migrate=True)\n"
        "sys.exit('alembic' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script, str(database.path)], check=True, timeout=60)


# -- Moving -----------------------------------------------------------------------------------


def test_an_upgrade_leaves_a_backup_that_is_a_store_at_the_old_schema(
    database: Database, plant: Plant
) -> None:
    fill(database)
    before = dump(database.path)
    plant(NEXT, upgrade="op.drop_table('tombstones')")
    backup = schema.upgrade(database)
    assert backup is not None
    assert backups(database) == [backup]
    assert backup.name.startswith(f"kronos.db.backup-{HEAD}-")
    assert dump(backup) == before
    restored = Database(backup, Settings())
    assert schema.current(restored) == HEAD
    assert contents(restored) == ROWS
    restored.close()


def test_a_failing_upgrade_changes_nothing_and_names_the_backup(
    database: Database, plant: Plant
) -> None:
    fill(database)
    database.close()
    database = Database(database.path, Settings())
    before = database.path.read_bytes()
    plant(NEXT, upgrade="op.create_table('whole', sa.Column('x', sa.Integer()))")
    plant(AFTER_NEXT, upgrade=FAILING)
    with pytest.raises(
        MigrationError, match=rf"migrating from schema {HEAD} to {AFTER_NEXT} failed: planted"
    ) as caught:
        schema.upgrade(database)
    (backup,) = backups(database)
    assert str(backup) in str(caught.value)
    assert schema.current(database) == HEAD
    assert contents(database) == ROWS
    database.close()
    assert database.path.read_bytes() == before


def test_a_failing_downgrade_changes_nothing(database: Database, plant: Plant) -> None:
    fill(database)
    plant(NEXT, downgrade=FAILING)
    schema.upgrade(database)
    with pytest.raises(
        MigrationError, match=f"migrating from schema {NEXT} to base failed: planted"
    ):
        schema.downgrade(database, "base")
    assert schema.current(database) == NEXT
    assert contents(database) == ROWS


def test_a_migration_that_leaves_rows_without_their_parents_is_undone(
    database: Database, plant: Plant
) -> None:
    fill(database)
    plant(NEXT, upgrade="op.execute('DELETE FROM memories')")
    with pytest.raises(MigrationError, match="vectors refers to a missing row of memories"):
        schema.upgrade(database)
    assert contents(database) == ROWS


def test_no_migration_begins_without_its_backup(
    database: Database, plant: Plant, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(database)
    plant(NEXT, upgrade="op.drop_table('tombstones')")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StorageFullError):
        schema.upgrade(database)
    assert [file.name for file in database.path.parent.iterdir() if ".part" in file.name] == []
    assert backups(database) == []
    assert schema.current(database) == HEAD
    assert contents(database) == ROWS


def test_a_busy_database_is_not_migrated(database: Database, plant: Plant) -> None:
    plant(NEXT)
    with database.write(), pytest.raises(StoreBusyError):
        schema.upgrade(database)
    assert backups(database) == []


def test_base_has_no_tables_and_the_backup_has_everything(database: Database) -> None:
    fill(database)
    backup = schema.downgrade(database, "base")
    assert backup is not None
    assert schema.current(database) is None
    with pytest.raises(SchemaOutdatedError, match="has schema none"):
        schema.check(database)
    schema.prepare(database)
    assert contents(database)["memories"] == []
    restored = Database(backup, Settings())
    assert contents(restored) == ROWS
    restored.close()


@pytest.mark.parametrize("revision", ["9999", "-1", "", "0001_memories_spaces_vectors", "heads"])
def test_an_unknown_revision_is_refused_with_those_that_exist(
    database: Database, revision: str
) -> None:
    for move in (schema.upgrade, schema.downgrade):
        with pytest.raises(ConfigurationError, match="known are head, base, 0001"):
            move(database, revision)


def test_the_wrong_direction_is_refused_before_anything_happens(
    database: Database, plant: Plant
) -> None:
    with pytest.raises(ConfigurationError, match="use downgrade to reach base"):
        schema.upgrade(database, "base")
    plant(NEXT)
    with pytest.raises(ConfigurationError, match=f"use upgrade to reach {NEXT}"):
        schema.downgrade(database, NEXT)
    assert schema.current(database) == HEAD
    assert backups(database) == []


def test_the_history_tells_what_each_revision_does() -> None:
    first, *_ = schema.history()
    assert first.id == "0001"
    assert first.summary.startswith("The first tables: the store and its seq, memories")
    assert schema.history()[-1].id == schema.head()
