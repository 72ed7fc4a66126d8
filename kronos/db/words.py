"""The word indexes: SQLite FTS5 over the texts of `memories` and of their past `versions`.

An index holds no text of its own. Its words are written in the transaction that writes the row, so
no reader ever sees one without the other: for a row that is changed or deleted by triggers, for new
rows by `adding`, all at once (a trigger would make FTS5 flush its words after each row, which takes
three times as long). How texts are cut into words is a
property of the database, chosen when the store is new and changed by `rebuild`. All of it is
derived from the rows.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Select, column, event, insert, table
from sqlalchemy.exc import DatabaseError

from kronos.db.dialect import Prepared, fetch, is_damage
from kronos.db.tables import metadata

if TYPE_CHECKING:
    from kronos.types import Tokenizer

MEMORY_WORDS, VERSION_WORDS = "memory_words", "version_words"
_TABLES = {MEMORY_WORDS: "memories", VERSION_WORDS: "versions"}
TOKENIZERS: dict[Tokenizer, str] = {
    "porter": "porter unicode61 remove_diacritics 2",
    "unicode61": "unicode61 remove_diacritics 2",
    "trigram": "trigram",
}
DEFAULT_TOKENIZER: Tokenizer = "porter"

_INDEX = """CREATE VIRTUAL TABLE {words} USING fts5(
    content, content='{table}', content_rowid='key',
    tokenize='{tokenize}'
)"""
_TRIGGERS = (
    """CREATE TRIGGER {words}_delete AFTER DELETE ON {table} BEGIN
    INSERT INTO {words} ({words}, rowid, content) VALUES ('delete', old.key, old.content);
END""",
    """CREATE TRIGGER {words}_update AFTER UPDATE OF content ON {table}
WHEN old.content IS NOT new.content BEGIN
    INSERT INTO {words} ({words}, rowid, content) VALUES ('delete', old.key, old.content);
    INSERT INTO {words} (rowid, content) VALUES (new.key, new.content);
END""",
)
_TOKENIZE = re.compile(r"tokenize='([^']*)'")


def is_word_table(name: str) -> bool:
    """Whether a table is a word index, or one of those in which SQLite keeps it."""
    return name.startswith(tuple(_TABLES))


def create(connection: Connection) -> None:
    """Make the indexes of a database that has none: as the migrations do."""
    for words, name in _TABLES.items():
        tokenize = TOKENIZERS[DEFAULT_TOKENIZER]
        connection.exec_driver_sql(_INDEX.format(words=words, table=name, tokenize=tokenize))
        for trigger in _TRIGGERS:
            connection.exec_driver_sql(trigger.format(words=words, table=name))


event.listen(metadata, "after_create", lambda _, connection, **__: create(connection))


def tokenizer(connection: Connection) -> Tokenizer:
    """How texts are cut into words."""
    ((sql,),) = fetch(connection, "SELECT sql FROM sqlite_master WHERE name = ?", (MEMORY_WORDS,))
    return tokenizer_in(sql)


def tokenizer_in(sql: str) -> Tokenizer:
    """The same, read from the statement that made an index."""
    found = _TOKENIZE.search(sql)
    known = {tokenize: name for name, tokenize in TOKENIZERS.items()}
    return known[found[1]] if found and found[1] in known else DEFAULT_TOKENIZER


def rebuild(connection: Connection, tokenizer: Tokenizer) -> None:
    """Make the indexes anew from the rows; in a write transaction.

    The tables are dropped and not emptied: nothing of a damaged one is read.
    """
    for words, name in _TABLES.items():
        connection.exec_driver_sql(f"DROP TABLE IF EXISTS {words}")
        tokenize = TOKENIZERS[tokenizer]
        connection.exec_driver_sql(_INDEX.format(words=words, table=name, tokenize=tokenize))
        _command(connection, words, "rebuild")


def adding(words: str, rows: Select[Any]) -> Prepared:
    """What adds the words of rows that were written in the same transaction.

    Args:
        words: `MEMORY_WORDS` or `VERSION_WORDS`.
        rows: selects key and content, in the order of the keys: FTS5 writes what it has in hand
            whenever a key comes that is no higher than the one before.
    """
    index = table(words, column("rowid"), column("content"))
    return Prepared(insert(index).from_select(["rowid", "content"], rows))


def optimize(connection: Connection) -> None:
    """Merge the indexes, so that no word of a text that is gone is left in them."""
    for words in _TABLES:
        _command(connection, words, "optimize")


def problems(connection: Connection) -> list[str]:
    """What is wrong with the indexes, compared with the rows; in a write transaction."""
    found = []
    for words, name in _TABLES.items():
        try:
            connection.exec_driver_sql(
                f"INSERT INTO {words} ({words}, rank) VALUES ('integrity-check', 1)"  # noqa: S608
            )
        except DatabaseError as exc:
            if not is_damage(exc.orig):
                raise
            found.append(f"the word index of {name} does not agree with its texts: {exc.orig}")
    return found


def _command(connection: Connection, words: str, command: str) -> None:
    connection.exec_driver_sql(f"INSERT INTO {words} ({words}) VALUES (?)", (command,))  # noqa: S608
