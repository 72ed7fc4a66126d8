"""What goes wrong with files and disks: a typed error each time, and nothing half done."""

from __future__ import annotations

import os
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import insert

from kronos.db import schema
from kronos.db.database import Database
from kronos.db.tables import store
from kronos.errors import (
    ConfigurationError,
    CorruptStoreError,
    ReadOnlyStoreError,
    StorageError,
    StorageFullError,
)
from kronos.settings import Settings
from tests.db.test_engine import RAISE_SEQ, seq


def test_a_broken_constraint_is_a_storage_error_and_nothing_is_kept(database: Database) -> None:
    with pytest.raises(StorageError, match="UNIQUE"), database.write() as connection:  # noqa: PT012
        connection.execute(RAISE_SEQ)
        connection.execute(insert(store).values(id=1, uuid="x", seq=0, created_at=0))
    assert seq(database) == 0


def test_a_full_disk_is_named_and_the_store_works_again_with_space(database: Database) -> None:
    with pytest.raises(StorageFullError, match="no space"), database.write() as connection:  # noqa: PT012
        connection.execute(RAISE_SEQ)
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        connection.exec_driver_sql(f"PRAGMA max_page_count={pages + 2}")
        connection.exec_driver_sql("CREATE TABLE filler AS SELECT zeroblob(1000000)")
    assert seq(database) == 0
    with database.write() as connection:
        connection.exec_driver_sql("CREATE TABLE filler AS SELECT zeroblob(1000000)")


def test_a_failed_commit_is_no_commit_and_its_connection_is_discarded(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    class FailingConnection(sqlite3.Connection):
        opened = closed = 0

        def commit(self) -> None:
            raise sqlite3.OperationalError("disk I/O error")

        def close(self) -> None:
            type(self).closed += 1
            super().close()

    def connect(name: str, **options: object) -> sqlite3.Connection:
        FailingConnection.opened += 1
        return original(name, factory=FailingConnection, **options)  # type: ignore[call-overload, no-any-return]

    original = sqlite3.connect
    failing = Database(database.path, Settings())
    monkeypatch.setattr(sqlite3, "connect", connect)
    with pytest.raises(StorageError, match="disk I/O error"), failing.write() as connection:
        connection.execute(RAISE_SEQ)
    assert (FailingConnection.opened, FailingConnection.closed) == (1, 1)
    monkeypatch.undo()
    with failing.write() as connection:
        connection.execute(RAISE_SEQ)
    failing.close()
    assert seq(database) == 1


def test_a_garbage_file_is_corrupt_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "kronos.db"
    garbage = b"not a database, but somebody's diary. " * 500
    path.write_bytes(garbage)
    database = Database(path, Settings())
    with pytest.raises(CorruptStoreError, match="damaged or no SQLite database"):
        schema.prepare(database)
    assert [problem.kind for problem in database.problems()] == ["database"]
    database.close()
    assert path.read_bytes() == garbage


def test_a_damaged_page_is_found_by_the_databases_own_checks(database: Database) -> None:
    assert database.problems() == []
    database.close()
    content = bytearray(database.path.read_bytes())
    content[4096:8192] = bytes(4096)
    database.path.write_bytes(content)
    damaged = Database(database.path, Settings())
    assert {problem.kind for problem in damaged.problems()} == {"database"}
    damaged.close()


def test_a_row_that_refers_to_nothing_is_a_problem(database: Database) -> None:
    with database.migration() as connection:
        connection.exec_driver_sql("INSERT INTO tombstones VALUES (7, 1, 1)")
    (problem,) = database.problems()
    assert "tombstones refers to a missing row of spaces" in problem.detail


def test_a_folder_in_the_place_of_the_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "kronos.db").mkdir()
    with (
        pytest.raises(ConfigurationError, match="it is a folder"),
        Database(tmp_path / "kronos.db", Settings()).read(),
    ):
        pass


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("a file")
    for path in (tmp_path / "store" / "kronos.db", tmp_path / "store" / "below" / "kronos.db"):
        with pytest.raises(ConfigurationError) as caught, Database(path, Settings()).read():
            pass
        assert caught.value.field == "storage_path"


def test_a_name_too_long_for_the_system_is_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(ConfigurationError, match="cannot be kept at"),
        Database(tmp_path / ("x" * 300) / "kronos.db", Settings()).read(),
    ):
        pass


@contextmanager
def unwritable(folder: Path) -> Iterator[None]:
    """A folder that this process can read but not write; root becomes somebody else meanwhile."""
    user = os.geteuid()
    folder.chmod(0o555)
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)
        folder.chmod(0o755)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user can reach, as tmp_path is not."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="no such rights on this system")
def test_a_store_in_a_read_only_folder_can_be_read_and_not_written(open_folder: Path) -> None:
    path = open_folder / "a b%#?c.db"
    database = Database(path, Settings())
    schema.prepare(database)
    with database.write() as connection:
        connection.execute(RAISE_SEQ)
    database.close()
    with unwritable(open_folder):
        reader = Database(path, Settings())
        schema.prepare(reader)
        assert seq(reader) == 1
        with pytest.raises(ReadOnlyStoreError, match="be written"), reader.write() as connection:
            connection.execute(RAISE_SEQ)
        assert seq(reader) == 1
        reader.close()


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="no such rights on this system")
def test_a_new_store_in_a_read_only_folder_is_refused(open_folder: Path) -> None:
    with unwritable(open_folder):
        for path in (open_folder / "kronos.db", open_folder / "below" / "kronos.db"):
            database = Database(path, Settings())
            with pytest.raises(ReadOnlyStoreError):
                schema.prepare(database)
            database.close()
