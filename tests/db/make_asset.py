"""Writes the store that this revision leaves behind, for later revisions to upgrade.

Run once when a revision is new, from the top of the checkout, and commit what it writes:

    python -m tests.db.make_asset

It writes `tests/db/assets/<head>.db`. An asset is never written again: it is what a released Kronos
wrote, and `ROWS` is what every later one must find in it.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

from sqlalchemy import text

from kronos.db import schema
from kronos.db.database import Database
from kronos.db.fulltext import fts5 as words
from kronos.settings import Settings

ASSETS = Path(__file__).parent / "assets"

_STORE_ID = "6f1f6f2a-9d0e-4f3c-8f57-0a4b5c6d7e8f"
_DAY = 1_764_000_000_000_000


def _memory(key: int, id: str, content: str, **others: Any) -> dict[str, Any]:
    return {
        "key": key,
        "id": id,
        "namespace": "default",
        "content": content,
        "content_hash": bytes([key]) * 32,
        "metadata": "{}",
        "importance": 0.5,
        "parent_id": None,
        "created_at": _DAY + key,
        "updated_at": _DAY + key,
        "expires_at": None,
        "seq": key,
        **others,
    }


def _vector(space: int, key: int, *values: float) -> dict[str, Any]:
    return {
        "space_id": space,
        "memory_key": key,
        "seq": key,
        "content_hash": bytes([key]) * 32,
        "vector": struct.pack(f"<{len(values)}f", *values),
    }


def _space(id: int, model: str, dim: int, state: str, **others: Any) -> dict[str, Any]:
    return {
        "id": id,
        "fingerprint": f"{id:064x}",
        "model": model,
        "alias": None,
        "dim": dim,
        "state": state,
        "created_at": _DAY,
        "pruned_seq": 0,
        **others,
    }


ROWS: dict[str, list[dict[str, Any]]] = {
    "store": [{"id": 1, "uuid": _STORE_ID, "seq": 9, "created_at": _DAY}],
    "memories": [
        _memory(1, "one", "The first memory."),
        _memory(2, "two", "", namespace="team/alice", metadata='{"a": [1, null, "§"]}'),
        _memory(4, "four", "späß 🎈\nline\ttab", importance=1.0, parent_id="one"),
        _memory(5, "five", "x" * 10_000, expires_at=_DAY + 10**9, updated_at=_DAY + 99, seq=9),
    ],
    "spaces": [
        _space(1, "kronos/hash", 4, "retired", pruned_seq=2),
        _space(2, "sentence-transformers/all-MiniLM-L6-v2", 3, "active", alias="mini"),
        _space(3, "a/new-model", 2, "building"),
    ],
    "vectors": [
        _vector(1, 1, 1.0, 0.0, 0.0, 0.0),
        _vector(1, 2, 0.5, -0.5, 0.5, -0.5),
        _vector(2, 1, 0.0, 1.0, 0.0),
        _vector(2, 2, 0.0, 0.0, -1.0),
        _vector(2, 4, 0.6, 0.8, 0.0),
        _vector(2, 5, 1.0, 0.0, 0.0),
    ],
    "tombstones": [
        {"space_id": 1, "memory_key": 3, "seq": 6},
        {"space_id": 2, "memory_key": 3, "seq": 6},
        {"space_id": 1, "memory_key": 5, "seq": 9},
    ],
}


_PAST = {name: value for name, value in ROWS["memories"][3].items() if name != "seq"}
SINCE_0003: dict[str, list[dict[str, Any]]] = {
    "versions": [
        {
            **_PAST,
            "key": 5,
            "memory_key": 5,
            "content": "What the fifth was before.",
            "content_hash": bytes([105]) * 32,
            "recorded_at": _DAY + 5,
            "replaced_at": _DAY + 99,
        }
    ],
    "past_vectors": [
        {
            "space_id": 2,
            "content_hash": bytes([105]) * 32,
            "vector": struct.pack("<3f", 0.8, 0.6, 0.0),
        }
    ],
    "links": [
        {
            "source_key": 1,
            "target_key": 4,
            "relation": "explains",
            "weight": 0.5,
            "created_at": _DAY + 6,
        }
    ],
    "accesses": [{"memory_key": 2, "accessed_at": _DAY + 7}],
    "fields": [{"id": 1, "path": "year", "created_at": _DAY + 8}],
}
"""What is there beside `ROWS` since revision 0003."""


COUNT_VECTORS = """
    UPDATE spaces SET vectors = (SELECT count(*) FROM vectors WHERE vectors.space_id = spaces.id)
"""


def fill(database: Database) -> None:
    """Put `ROWS`, and what came later, into a database at head that holds nothing."""
    with database.write() as connection:
        connection.execute(text("DELETE FROM store"))
        for table, rows in (ROWS | SINCE_0003).items():
            names = ", ".join(rows[0])
            values = ", ".join(f":{name}" for name in rows[0])
            connection.execute(text(f"INSERT INTO {table} ({names}) VALUES ({values})"), rows)
        words.rebuild(connection, "porter")
        connection.execute(text(COUNT_VECTORS))


def contents(
    database: Database, wanted: dict[str, list[dict[str, Any]]] = ROWS
) -> dict[str, list[dict[str, Any]]]:
    """What a database holds of the tables and columns of some rows."""
    found: dict[str, list[dict[str, Any]]] = {}
    with database.read() as connection:
        for table, rows in wanted.items():
            statement = text(f"SELECT {', '.join(rows[0])} FROM {table}")
            found[table] = [dict(row) for row in connection.execute(statement).mappings()]
    return found


def main() -> None:
    """Write the asset of head."""
    path = ASSETS / f"{schema.head()}.db"
    if path.exists():
        raise SystemExit(f"{path} is there: an asset is written once")
    database = Database(path, Settings())
    schema.prepare(database)
    fill(database)
    database.close()


if __name__ == "__main__":
    main()
