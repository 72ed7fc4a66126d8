"""Databases in temporary folders, and a history of migrations that a test can add to."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kronos.db import schema
from kronos.db.database import Database
from kronos.settings import Settings

Plant = Callable[..., None]

HEAD = schema.head()
NEXT, AFTER_NEXT = (f"{int(HEAD) + step:04}" for step in (1, 2))
"""Revisions that tests plant."""


@pytest.fixture
def empty(tmp_path: Path) -> Iterator[Database]:
    """A database without tables."""
    database = Database(tmp_path / "store" / "kronos.db", Settings(busy_timeout_s=0.2))
    yield database
    database.close()


@pytest.fixture
def database(empty: Database) -> Database:
    """A database at head."""
    schema.prepare(empty)
    return empty


@pytest.fixture
def plant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plant:
    """Adds a revision to a copy of the history: plant(NEXT, upgrade="op.drop_table('store')")."""
    # The folder's name holds what ConfigParser would take for a variable.
    folder = tmp_path / "100% %(here)s" / "migrations"
    shutil.copytree(schema.migrations_path(), folder)
    monkeypatch.setattr(schema, "migrations_path", lambda: folder)

    def add(revision: str, *, upgrade: str = "pass", downgrade: str = "pass") -> None:
        (folder / "versions" / f"{revision}_planted.py").write_text(
            f'"""Planted."""\n'
            f"import sqlalchemy as sa\n"
            f"from alembic import op\n"
            f'revision = "{revision}"\n'
            f'down_revision = "{int(revision) - 1:04}"\n'
            f"def upgrade():\n{_body(upgrade)}\n"
            f"def downgrade():\n{_body(downgrade)}\n"
        )

    return add


def _body(lines: str) -> str:
    return "\n".join(f"    {line}" for line in lines.splitlines())
