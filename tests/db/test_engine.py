from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from sqlalchemy import text

from kronos.db import schema
from kronos.db.database import Database
from kronos.errors import StoreBusyError, StoreClosedError
from kronos.settings import Durability, Settings

RAISE_SEQ = text("UPDATE store SET seq = seq + 1")


def seq(database: Database) -> int:
    with database.read() as connection:
        return int(connection.execute(text("SELECT seq FROM store")).scalar_one())


# -- Transactions -----------------------------------------------------------------------------


def test_a_write_is_committed_at_its_end(database: Database) -> None:
    with database.write() as connection:
        connection.execute(RAISE_SEQ)
    assert seq(database) == 1


def test_an_error_inside_a_write_rolls_it_back(database: Database) -> None:
    with pytest.raises(ZeroDivisionError), database.write() as connection:  # noqa: PT012
        connection.execute(RAISE_SEQ)
        raise ZeroDivisionError
    assert seq(database) == 0


def test_each_transaction_has_one_begin_and_it_is_ours(database: Database) -> None:
    # The pool hands out the last connection first, so all of these are one.
    seen: list[str] = []
    with database.read() as connection:
        driver = connection.connection.dbapi_connection
        assert isinstance(driver, sqlite3.Connection)
    driver.set_trace_callback(seen.append)
    seq(database)
    with database.write() as connection:
        connection.execute(RAISE_SEQ)
    with pytest.raises(ZeroDivisionError), database.write():
        raise ZeroDivisionError
    driver.set_trace_callback(None)
    assert seen == [
        "BEGIN",
        "SELECT seq FROM store",
        "COMMIT",
        "BEGIN IMMEDIATE",
        "UPDATE store SET seq = seq + 1",
        "COMMIT",
        "BEGIN IMMEDIATE",
        "ROLLBACK",
    ]


def test_a_reader_sees_one_state_and_never_waits_for_a_writer(database: Database) -> None:
    with database.read() as reader:
        before = reader.execute(text("SELECT seq FROM store")).scalar_one()
        with database.write() as writer:
            writer.execute(RAISE_SEQ)
            assert reader.execute(text("SELECT seq FROM store")).scalar_one() == before
        assert reader.execute(text("SELECT seq FROM store")).scalar_one() == before
    assert seq(database) == before + 1


def test_many_threads_write_and_none_is_lost(database: Database) -> None:
    patient = Database(database.path, Settings(busy_timeout_s=30, durability="normal"))

    def work() -> None:
        for _ in range(25):
            with patient.write() as connection:
                connection.execute(RAISE_SEQ)

    threads = [threading.Thread(target=work) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    patient.close()
    assert seq(database) == 16 * 25


def test_a_writer_gives_up_after_the_busy_timeout(database: Database) -> None:
    with database.write():
        started = time.monotonic()
        with pytest.raises(StoreBusyError, match=r"waited 0\.2 s"), database.write():
            pass
        assert 0.15 < time.monotonic() - started < 2
    with database.write() as connection:
        connection.execute(RAISE_SEQ)
    assert seq(database) == 1


# -- Connections ------------------------------------------------------------------------------


@pytest.mark.parametrize(("durability", "level"), [("full", 2), ("normal", 1)])
def test_every_connection_has_the_settings_in_force(
    tmp_path: Path, durability: Durability, level: int
) -> None:
    database = Database(tmp_path / "k.db", Settings(durability=durability, busy_timeout_s=1.25))
    schema.prepare(database)
    with ExitStack() as stack:
        for _ in range(3):
            connection = stack.enter_context(database.read())
            pragmas = {
                name: connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()
                for name in ("synchronous", "foreign_keys", "journal_mode", "busy_timeout")
            }
            assert pragmas == {
                "synchronous": level,
                "foreign_keys": 1,
                "journal_mode": "wal",
                "busy_timeout": 1250,
            }
    database.close()


def test_foreign_keys_are_off_in_a_migration_and_on_after_it(database: Database) -> None:
    def foreign_keys() -> int:
        return int(connection.exec_driver_sql("PRAGMA foreign_keys").scalar_one())

    with database.migration() as connection:
        assert foreign_keys() == 0
    with database.write() as connection:
        assert foreign_keys() == 1
    with pytest.raises(ZeroDivisionError), database.migration():
        raise ZeroDivisionError
    with database.write() as connection:
        assert foreign_keys() == 1


def test_a_closed_database_says_so(database: Database) -> None:
    database.close()
    database.close()
    with pytest.raises(StoreClosedError), database.read():
        pass
    assert [file.name for file in database.path.parent.iterdir()] == ["kronos.db"]


def test_the_size_is_that_of_the_files(database: Database) -> None:
    with database.write() as connection:
        connection.execute(RAISE_SEQ)
    log = database.path.with_name("kronos.db-wal").stat().st_size
    assert log > 0
    assert database.size_bytes() == database.path.stat().st_size + log


def test_a_relative_path_means_the_folder_where_the_database_was_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    database = Database(Path("here.db"), Settings())
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    schema.prepare(database)
    database.close()
    assert (tmp_path / "here.db").is_file()


def test_nothing_is_made_before_the_first_transaction(tmp_path: Path) -> None:
    Database(tmp_path / "store" / "kronos.db", Settings()).close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name", ["%", "%foo", "%foo%%bar", "a b#?c", "x?mode=memory", "späße", "\"'`", ":memory:"]
)
def test_a_folder_may_have_any_name(tmp_path: Path, name: str) -> None:
    for _ in range(2):
        database = Database(tmp_path / name / "kronos.db", Settings())
        schema.prepare(database)
        with database.write() as connection:
            connection.execute(RAISE_SEQ)
        assert schema.current(database) == schema.head()
        raised = seq(database)
        database.close()
    assert [file.relative_to(tmp_path) for file in tmp_path.rglob("*") if file.is_file()] == [
        Path(name, "kronos.db")
    ]
    assert raised == 2


FORK = """
import os, sys
from pathlib import Path
from sqlalchemy import text
from kronos.db import schema
from kronos.db.database import Database
from kronos.settings import Settings

def write():
    with database.write() as connection:
        connection.execute(text("UPDATE store SET seq = seq + 1"))

database = Database(Path(sys.argv[1]), Settings())
schema.prepare(database)
write()
readable, writable = os.pipe()
child = os.fork()
if child == 0:
    write()
    os.read(readable, 1)  # the parent has closed
    write()
    os._exit(0)
while True:
    with database.read() as connection:
        if connection.execute(text("SELECT seq FROM store")).scalar_one() == 2:
            break
database.close()
os.write(writable, b"x")
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_what_a_forked_child_writes_after_its_parent_closed_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "kronos.db"
    subprocess.run([sys.executable, "-c", FORK, str(path)], check=True, timeout=60)
    database = Database(path, Settings())
    assert seq(database) == 3
    database.close()
