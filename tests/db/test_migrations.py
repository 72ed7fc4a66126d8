"""The history itself: it leads to `kronos.db.tables`, and carries data both ways."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from pytest_alembic.tests import (  # noqa: F401  collected here
    test_model_definitions_match_ddl,
    test_single_head_revision,
    test_up_down_consistency,
    test_upgrade,
)
from sqlalchemy import Connection, create_engine, insert, select, text

from kronos.db import schema, tables
from kronos.db.database import Database
from kronos.db.fulltext import fts5
from kronos.db.fulltext.base import AddWords
from kronos.db.statements import Prepared
from kronos.settings import Settings
from kronos.store.store import MemoryStore
from tests.db.conftest import AFTER_NEXT, HEAD, NEXT, Plant
from tests.db.make_asset import ASSETS, ROWS, SINCE_0003, contents, fill

REVISIONS = [revision.id for revision in schema.history()]
# Rebuilds the table that vectors refer to, as SQLite must to change a column.
REBUILD = "with op.batch_alter_table('memories', recreate='always') as table: table."


@pytest.fixture
def alembic_config() -> Config:
    return schema.alembic_config(schema.migrations_path())


@pytest.fixture
def alembic_engine(empty: Database) -> Iterator[Connection]:
    with empty.migration() as connection:
        yield connection


def test_every_file_is_named_by_its_revision_and_the_history_is_one_line() -> None:
    script = ScriptDirectory(str(schema.migrations_path()))
    assert script.get_heads() == [schema.head()]
    numbers = {each.revision: Path(each.path).name[:5] for each in script.walk_revisions()}
    assert numbers == {revision: f"{revision}_" for revision in REVISIONS}
    assert sorted(REVISIONS) == REVISIONS


def test_the_migrations_lead_to_the_tables(database: Database) -> None:
    with database.read() as connection:
        opts = {"compare_server_default": True, "include_name": _is_ours}
        context = MigrationContext.configure(connection, opts=opts)
        assert compare_metadata(context, tables.metadata) == []


def test_the_migrations_lead_to_the_tables_word_by_word(database: Database) -> None:
    engine = create_engine("sqlite://")
    with engine.connect() as made, database.read() as migrated:
        tables.metadata.create_all(made)
        assert _statements(migrated) == _statements(made)
        assert any(
            line.startswith("CONSTRAINT fk_vectors_memory_key")
            for line in _statements(made)["vectors"]
        )
    engine.dispose()


def test_every_revision_has_an_asset() -> None:
    assert sorted(path.name for path in ASSETS.iterdir()) == [f"{name}.db" for name in REVISIONS]


@pytest.mark.parametrize("revision", REVISIONS)
def test_an_old_store_is_upgraded_and_goes_on(tmp_path: Path, revision: str) -> None:
    path = tmp_path / "kronos.db"
    shutil.copy(ASSETS / f"{revision}.db", path)
    database = Database(path, Settings())
    assert schema.current(database) == revision

    schema.prepare(database, migrate=True)

    assert schema.current(database) == schema.head()
    assert contents(database) == ROWS
    if revision >= "0003":
        assert contents(database, SINCE_0003) == SINCE_0003
    assert _with_the_word(database, "memory") == [1]
    assert database.problems() == []
    with database.read() as connection:
        noted = connection.execute(text("SELECT id, vectors FROM spaces ORDER BY id")).all()
    assert noted == [(1, 2), (2, 4), (3, 0)]
    _write_something_new(database)
    with database.read() as connection:
        assert connection.execute(text("SELECT count(*) FROM memories")).scalar_one() == 5
    assert _with_the_word(database, "memory") == [1, 10]
    database.close()


@pytest.mark.parametrize("revision", REVISIONS)
def test_data_is_carried_up_down_and_up_again(tmp_path: Path, revision: str) -> None:
    path = tmp_path / "kronos.db"
    shutil.copy(ASSETS / f"{revision}.db", path)
    database = Database(path, Settings())
    _carry(database, REVISIONS[REVISIONS.index(revision) :])
    database.close()


def test_data_is_carried_through_a_rebuild_of_the_table_that_others_refer_to(
    database: Database, plant: Plant
) -> None:
    fill(database)
    column = "sa.Column('mood', sa.Text(), server_default='calm')"
    plant(NEXT, upgrade=f"{REBUILD}add_column({column})", downgrade=f"{REBUILD}drop_column('mood')")
    _carry(database, [HEAD, NEXT])
    with database.read() as connection:
        assert connection.execute(text("SELECT DISTINCT mood FROM memories")).scalars().all() == [
            "calm"
        ]


def test_a_rebuild_does_not_empty_the_children_of_a_cascade(
    database: Database, plant: Plant
) -> None:
    fill(database)
    plant(
        NEXT,
        upgrade="op.execute('CREATE TABLE notes (memory_key INTEGER REFERENCES memories (key) "
        "ON DELETE CASCADE)')\n"
        "op.execute('INSERT INTO notes SELECT key FROM memories')",
    )
    plant(AFTER_NEXT, upgrade=f"{REBUILD}add_column(sa.Column('mood', sa.Text()))")
    schema.upgrade(database)
    with database.write() as connection:
        count = text("SELECT count(*) FROM notes")
        assert connection.execute(count).scalar_one() == 4
        # And the cascade itself is still there.
        connection.execute(text("DELETE FROM vectors"))
        connection.execute(text("DELETE FROM memories"))
        assert connection.execute(count).scalar_one() == 0


def test_the_asset_script_still_writes_what_it_says(database: Database) -> None:
    fill(database)
    assert contents(database) == ROWS
    assert database.problems() == []


def test_the_vectors_of_a_space_are_counted_on_both_sides_of_0006(database: Database) -> None:
    count = "SELECT vectors FROM spaces WHERE state = 'active'"
    store = MemoryStore.open(database.path.parent, embedding_model="hash")
    store.add_many(["one", "two", "three"])
    store.close()
    schema.downgrade(database, "0005")
    with database.read() as connection:
        assert connection.execute(text(count)).scalar_one() == 3
    schema.upgrade(database)
    store = MemoryStore.open(database.path.parent, embedding_model="hash")
    store.add("four")
    assert store.stats().spaces[0].vectors == 4
    assert store.maintenance.check().problems == ()
    store.close()


def test_a_fresh_store_has_an_identity_of_its_own(tmp_path: Path) -> None:
    rows = []
    for name in ("a", "b"):
        database = Database(tmp_path / name / "kronos.db", Settings())
        schema.prepare(database)
        with database.read() as connection:
            rows.append(connection.execute(text("SELECT * FROM store")).mappings().one())
        database.close()
    one, other = rows
    assert one["uuid"] != other["uuid"]
    assert one["seq"] == 0
    assert 0 <= other["created_at"] - one["created_at"] < 60_000_000


def _is_ours(name: str | None, type_: str, _: object) -> bool:
    return type_ != "table" or not fts5.is_index_table(name or "")


def _with_the_word(database: Database, word: str) -> list[int]:
    with database.write() as connection:
        assert fts5.problems(connection) == []
        found = text("SELECT rowid FROM memory_words WHERE memory_words MATCH :word ORDER BY rowid")
        return list(connection.execute(found, {"word": word}).scalars())


def _carry(database: Database, line: list[str]) -> None:
    """Step a database through revisions, up, down and up again; it must hold `ROWS` at each."""
    assert contents(database) == ROWS
    for revision in [*line[1:], *reversed(line[:-1]), *line[1:]]:
        upwards = revision > (schema.current(database) or "")
        (schema.upgrade if upwards else schema.downgrade)(database, revision)
        assert schema.current(database) == revision
        assert contents(database) == ROWS
        assert database.problems() == []


def _write_something_new(database: Database) -> None:
    memory: dict[str, Any] = {**ROWS["memories"][0], "key": 10, "id": "ten", "seq": 10}
    vector: dict[str, Any] = {**ROWS["vectors"][2], "memory_key": 10, "seq": 10}
    with database.write() as connection:
        connection.execute(insert(tables.memories), [memory])
        key, content = tables.memories.c.key, tables.memories.c.content
        Prepared(AddWords(select(key, content).where(key == 10), past=False)).run(connection)
        connection.execute(insert(tables.vectors), [vector])


def _statements(connection: Connection) -> dict[str, list[str]]:
    """What SQLite remembers of the tables and indexes, constraint names included.

    A table that a migration rebuilt has its name in quotes and its constraints in another order; a
    column that one added stands on the line of the one before.
    """
    rows = connection.execute(
        text("SELECT name, sql FROM sqlite_master WHERE sql NOT NULL AND name != 'alembic_version'")
    )
    found = {}
    for name, sql in rows:
        sql = re.sub(r", (?=\w+ (TEXT|BIGINT)\b)", ",\n", sql.replace('"', ""))
        lines = [line.strip().rstrip(",") for line in sql.splitlines()]
        columns = [line for line in lines if not line.startswith("CONSTRAINT")]
        found[name] = columns + sorted(set(lines) - set(columns))
    return found
