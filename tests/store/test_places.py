"""A store lies where its user meant it to, or is refused: no name becomes a folder by mistake."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from kronos import MemoryStore
from kronos.errors import ConfigurationError
from kronos.settings import Place


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        *(":memory:", "file::memory:", "file:memory?mode=memory", "sqlite:///:memory:"),
        *("sqlite:notes.db", "sqlite:/notes.db", "sqlite://", "sqlite:///", "sqlite://notes/a.db"),
        *("sqlite:///b.db?mode=ro", "sqlite:///file:b.db?mode=ro&uri=true", "SQLite:x.db"),
        *("file:a.db", "file:///a.db", "FILE:a.db", "sqlite+pysqlite:a.db", "sqlite+aiosqlite:a"),
        *("sqlite+aiosqlite:///a.db", "sqlite://user@host/a.db", "http://host/store", "s3://b/k"),
        *("postgresql:store", "postgres://host/store", "postgresql+psycopg://host/store"),
        *("mysql://host/store", "duckdb:x", "", "  ", "a\0b", b"bytes", 5, None, ["a"]),
    ],
)
def test_what_is_nearly_a_url_is_refused_and_makes_nothing(tmp_path: Path, name: Any) -> None:
    with pytest.raises(ConfigurationError) as caught:
        MemoryStore.open(name, embedding_model="hash")
    assert caught.value.field == "storage_path"
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("name", ["kronos.db", "notes.txt"])
def test_the_path_of_a_file_is_refused_with_the_way_out(tmp_path: Path, name: str) -> None:
    with MemoryStore.open(tmp_path, embedding_model="hash"):
        pass
    (tmp_path / "notes.txt").write_text("no store")
    with pytest.raises(ConfigurationError, match="give its folder"):
        MemoryStore.open(tmp_path / name, embedding_model="hash")


@pytest.mark.parametrize(
    ("name", "database"),
    [
        ("notes", "notes/kronos.db"),
        ("a:b", "a:b/kronos.db"),
        ("2024: notes", "2024: notes/kronos.db"),
        ("with space/ünï", "with space/ünï/kronos.db"),
        ("100% sure?", "100% sure?/kronos.db"),
        ("a#b", "a#b/kronos.db"),
        ("sqlite:///notes.db", "notes.db"),
        ("sqlite+pysqlite:///sub/notes.db", "sub/notes.db"),
    ],
)
def test_other_names_are_taken_as_they_are(tmp_path: Path, name: str, database: str) -> None:
    with MemoryStore.open(name, embedding_model="hash") as store:
        store.add("kept", id="x")
    assert (tmp_path / database).is_file()
    with MemoryStore.open(name, embedding_model="hash") as store:
        assert store.get("x").content == "kept"
    assert Place.of(f"sqlite:///{tmp_path}/x.db").database == tmp_path / "x.db"


def test_a_home_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert Place.of("~/store").folder == tmp_path / "home/store"
    assert Place.of("sqlite:///~/x.db").database == tmp_path / "home/x.db"
    assert Place.of(os.fspath(tmp_path)).folder == tmp_path
