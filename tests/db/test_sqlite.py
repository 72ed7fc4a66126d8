"""SQLite: what its errors mean, and files that cannot be opened."""

from __future__ import annotations

import errno
import sqlite3
from pathlib import Path

import pytest

from kronos.db.sqlite import SQLite
from kronos.errors import (
    CorruptStoreError,
    ReadOnlyStoreError,
    StorageError,
    StorageFullError,
    StoreBusyError,
)
from kronos.settings import Settings


@pytest.mark.parametrize(
    ("message", "error"),
    [
        ("database is locked", StoreBusyError),
        ("database table is locked: memories", StoreBusyError),
        ("attempt to write a readonly database", ReadOnlyStoreError),
        ("database or disk is full", StorageFullError),
        ("disk I/O error", StorageError),
        ("database disk image is malformed", CorruptStoreError),
        ("malformed database schema (x)", CorruptStoreError),
        ("file is not a database", CorruptStoreError),
        ("no such table: x", StorageError),
    ],
)
def test_an_error_without_a_code_is_known_by_its_message(
    tmp_path: Path, message: str, error: type[StorageError]
) -> None:
    # Python 3.10 gives no codes.
    fault = SQLite(tmp_path / "kronos.db", Settings()).fault(sqlite3.OperationalError(message))
    assert type(fault) is error


def test_a_code_tells_more_than_a_message(tmp_path: Path) -> None:
    full = sqlite3.OperationalError("something new")
    full.sqlite_errorcode = 13 + (7 << 8)  # type: ignore[misc, attr-defined, unused-ignore]
    assert type(SQLite(tmp_path / "k.db", Settings()).fault(full)) is StorageFullError


@pytest.mark.parametrize(
    ("number", "error"),
    [
        (errno.ENOSPC, StorageFullError),
        (errno.EDQUOT, StorageFullError),
        (errno.EACCES, ReadOnlyStoreError),
        (errno.EROFS, ReadOnlyStoreError),
        (errno.EIO, StorageError),
        (errno.EMFILE, StorageError),
    ],
)
def test_the_systems_errors_are_told_apart(
    tmp_path: Path, number: int, error: type[StorageError]
) -> None:
    fault = SQLite(tmp_path / "kronos.db", Settings()).fault(OSError(number, "words"))
    assert type(fault) is error


def test_a_file_that_cannot_be_opened_is_no_damage(tmp_path: Path) -> None:
    path = tmp_path / "kronos.db"
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("CREATE TABLE memories (key INTEGER PRIMARY KEY)")
    connection.close()
    # Where SQLite wants a file of its own, so that the failure comes with the first read.
    (tmp_path / "kronos.db-wal").mkdir()
    with pytest.raises(StorageError) as caught:
        [*SQLite(path, Settings()).files.salvage("memories")]
    assert not isinstance(caught.value, CorruptStoreError)
