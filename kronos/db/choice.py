"""Which databases Kronos has: the only module that names them all."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from kronos.db.fulltext import fts5
from kronos.db.sqlite import SQLite
from kronos.settings import Settings

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from kronos.db.dialect import Dialect
    from kronos.db.fulltext.base import FulltextIndexes

_FULLTEXT: dict[str, FulltextIndexes] = {"sqlite": fts5}


def dialect_for(path: Path, settings: Settings) -> Dialect:
    """The database at a path."""
    return SQLite(path, settings)


def fulltext_of(connection: Connection) -> FulltextIndexes:
    """How the database of a connection indexes texts."""
    return _FULLTEXT[connection.dialect.name]
