"""Indexes on metadata fields: created, used, dropped, and created again."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, insert, select, text

from kronos.db import schema
from kronos.db.database import Database
from kronos.db.tables import fields as field_rows
from kronos.db.tables import memories
from kronos.errors import InputError
from kronos.search.field_indexes import FieldIndexes
from kronos.search.filters.compiler import compile_filter, field_expression
from kronos.search.filters.paths import parse_path
from kronos.settings import Settings

YEARS = [1999, 2020, 2021.5, "2020", None, True, [2020]]


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(tmp_path / "kronos.db", Settings())
    schema.prepare(database)
    with database.write() as connection:
        for key, year in enumerate(YEARS, 1):
            metadata = json.dumps({"year": year, "a": {"b": key}, "id": f"own {key}"})
            connection.execute(insert(memories).values(**row(key, metadata)))
        connection.execute(insert(memories).values(**row(99, "{}")))
    yield database
    database.close()


@pytest.fixture
def connection(database: Database) -> Iterator[Connection]:
    with database.write() as connection:
        yield connection


def row(key: int, metadata: str) -> dict[str, Any]:
    return {
        "key": key,
        "id": f"m{key}",
        "namespace": "a",
        "content": "x",
        "content_hash": b"x",
        "metadata": metadata,
        "importance": 0.5,
        "created_at": 0,
        "updated_at": 0,
        "seq": key,
        "recorded_at": 0,
    }


def indexes(connection: Connection) -> dict[str, str]:
    found = connection.exec_driver_sql(
        "SELECT name, sql FROM sqlite_master WHERE name LIKE 'ix_memories_field_%'"
    )
    return {name: sql for name, sql in found}


def plan(connection: Connection, sql: str, *values: Any) -> str:
    rows = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {sql}", values)
    return "; ".join(row.detail for row in rows)


def test_comparisons_use_the_index_of_a_field(connection: Connection) -> None:
    asked = "SELECT key FROM memories WHERE json_extract(metadata, '$.\"year\"') >= ?"
    assert plan(connection, asked, 2020) == "SCAN memories"
    found = connection.exec_driver_sql(asked, (2020,)).scalars().all()
    assert FieldIndexes(connection, 5).add("year")
    assert "USING INDEX ix_memories_field_1 (<expr>>?)" in plan(connection, asked, 2020)
    assert sorted(connection.exec_driver_sql(asked, (2020,)).scalars()) == sorted(found)
    assert connection.execute(select(field_rows)).all() == [(1, "year", 5)]


@pytest.mark.parametrize("where", [{"year": 2020}, {"year": {"$gt": 2020}}, {"a.b": {"$lt": 3}}])
def test_a_filter_finds_the_same_with_and_without_an_index(
    connection: Connection, where: dict[str, Any]
) -> None:
    condition: Any = compile_filter(where)
    condition = condition(memories) if callable(condition) else condition
    statement = select(memories.c.key).where(condition)
    before = sorted(connection.execute(statement).scalars())
    for path in ("year", "a.b"):
        FieldIndexes(connection, 0).add(path)
    sql = statement.compile(connection, compile_kwargs={"literal_binds": True})
    assert "INDEX ix_memories_field_" in plan(connection, str(sql))
    assert sorted(connection.execute(statement).scalars()) == before
    assert before


def test_two_spellings_of_a_field_share_one_index(connection: Connection) -> None:
    fields = FieldIndexes(connection, 0)
    assert fields.add("year")
    assert not fields.add("metadata.year")
    assert not fields.add("year")
    assert fields.add("a.b")
    assert fields.all() == ["a.b", "year"]
    assert indexes(connection) == {
        "ix_memories_field_1": "CREATE INDEX ix_memories_field_1 ON memories "
        "(json_extract(metadata, '$.\"year\"'))",
        "ix_memories_field_2": "CREATE INDEX ix_memories_field_2 ON memories "
        '(json_extract(metadata, \'$."a"."b"\'))',
    }


def test_removing_a_field_drops_its_index(connection: Connection) -> None:
    fields = FieldIndexes(connection, 0)
    fields.add("year")
    fields.add("a.b")
    assert fields.remove("metadata.year")
    assert not fields.remove("year")
    assert fields.all() == ["a.b"]
    assert list(indexes(connection)) == ["ix_memories_field_2"]
    assert fields.add("year")
    assert len(indexes(connection)) == 2


def test_missing_indexes_are_created_again(connection: Connection) -> None:
    fields = FieldIndexes(connection, 0)
    for path in ("year", "a.b", "metadata.id"):
        fields.add(path)
    before = indexes(connection)
    assert fields.ensure() == []
    for name in ("ix_memories_field_1", "ix_memories_field_3"):
        connection.exec_driver_sql(f"DROP INDEX {name}")
    assert fields.ensure() == ["metadata.id", "year"]
    assert indexes(connection) == before


def test_adding_a_field_creates_its_missing_index(connection: Connection) -> None:
    fields = FieldIndexes(connection, 0)
    fields.add("year")
    connection.exec_driver_sql("DROP INDEX ix_memories_field_1")
    assert not fields.add("year")
    assert list(indexes(connection)) == ["ix_memories_field_1"]


def test_reading_the_indexed_fields_writes_nothing(database: Database) -> None:
    with database.write() as connection:
        FieldIndexes(connection, 0).add("year")
    with database.read() as connection:
        connection.execute(text("PRAGMA query_only=ON"))
        try:
            assert FieldIndexes(connection, 0).ensure() == []
            assert FieldIndexes(connection, 0).all() == ["year"]
        finally:
            connection.execute(text("PRAGMA query_only=OFF"))


@pytest.mark.parametrize("path", ["id", "namespace", "importance", "created_at", "parent_id"])
def test_fields_of_the_record_are_refused(connection: Connection, path: str) -> None:
    fields = FieldIndexes(connection, 0)
    with pytest.raises(InputError, match="needs no index of this kind") as found:
        fields.add(path)
    assert found.value.field == "path"
    assert fields.add(f"metadata.{path}"), "the metadata key with this name is another field"
    assert fields.all() == [f"metadata.{path}"]


def test_metadata_keys_that_look_like_other_fields_are_distinguished(
    connection: Connection,
) -> None:
    fields = FieldIndexes(connection, 0)
    for path in ("id.x", "metadata.id", "metadata.metadata.year", "year", "metadata"):
        assert fields.add(path)
        assert path in fields.all()
    for path in fields.all():
        assert not fields.add(path), "a listed path names the same field"
    assert fields.remove("metadata.metadata.year")
    assert "year" in fields.all()


@pytest.mark.parametrize("path", ["", "a'b", 'a"b', "a..b", "a[0]", "$.a", "a\\b", "\ud800", 3])
def test_malformed_paths_are_refused(connection: Connection, path: Any) -> None:
    with pytest.raises(InputError, match="path must be a metadata key") as found:
        FieldIndexes(connection, 0).add(path)
    assert found.value.field == "path"
    assert indexes(connection) == {}


@pytest.mark.parametrize("path", ["50% of: %s ?x :y", "été 日本", "select", "a-b; DROP TABLE x"])
def test_every_key_that_filters_accept_can_be_indexed(connection: Connection, path: str) -> None:
    metadata = json.dumps({path: 7}, ensure_ascii=False)
    connection.execute(insert(memories).values(**row(100, metadata)))
    FieldIndexes(connection, 0).add(path)
    found = select(memories.c.key).where(field_expression(parse_path(path)) == 7)
    assert connection.execute(found).scalars().all() == [100]
    sql = str(found.compile(connection, compile_kwargs={"literal_binds": True}))
    assert "USING INDEX ix_memories_field_1" in plan(connection, sql)


def test_indexed_fields_survive_reopening_and_follow_writes(database: Database) -> None:
    with database.write() as connection:
        FieldIndexes(connection, 0).add("year")
    again = Database(database.path, Settings())
    with again.write() as connection:
        connection.execute(insert(memories).values(**row(50, json.dumps({"year": 2222}))))
        asked = "SELECT key FROM memories WHERE json_extract(metadata, '$.\"year\"') = 2222"
        assert "INDEX ix_memories_field_1" in plan(connection, asked)
        assert connection.exec_driver_sql(asked).scalars().all() == [50]
    assert again.problems() == []
    again.close()


def test_two_threads_that_add_the_same_field_create_one_index(database: Database) -> None:
    other = Database(database.path, Settings())
    outcomes: list[bool] = []

    def add(through: Database) -> None:
        with through.write() as connection:
            outcomes.append(FieldIndexes(connection, 0).add("year"))

    threads = [threading.Thread(target=add, args=[each]) for each in (database, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == [False, True]
    with database.read() as connection:
        assert len(indexes(connection)) == 1
    other.close()
