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
_PAGES_A_STEP = 100
"""Of 4 kB: a step takes some hundredths of a second."""
_CONTENT = re.compile(r"content='([^']+)'")
_PARTS = "SELECT name FROM main.sqlite_master WHERE type = 'table' AND name GLOB ?"
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


def merge(connection: Connection, *, begins: bool) -> bool:
    """Do a step of a merge of the indexes: after the last no word of a text that is gone is left.

    Args:
        connection: in a write transaction.
        begins: with the first step, which says that all is to be merged.

    Returns:
        Whether there was something to do.
    """
    pages = -_PAGES_A_STEP if begins else _PAGES_A_STEP
    before = _changes(connection)
    for words in _TABLES:
        fetch(connection, f"INSERT INTO {words} ({words}, rank) VALUES ('merge', {pages})")  # noqa: S608
    # A command that finds nothing to do counts as one change, any other as more.
    return _changes(connection) - before > len(_TABLES)


def _changes(connection: Connection) -> int:
    ((count,),) = fetch(connection, "SELECT total_changes()")
    return int(count)


def copy_aside(connection: Connection) -> None:
    """Let the indexes' names mean copies, in SQLite's temporary database.

    To compare an index with its texts is a write to FTS5: to a copy it takes no lock that another
    connection needs. The texts are not copied.

    Args:
        connection: one that is closed afterwards, in a transaction that reads.
    """
    run = connection.exec_driver_sql
    for words in _TABLES:
        ((sql,),) = fetch(connection, "SELECT sql FROM main.sqlite_master WHERE name = ?", (words,))
        texts = _CONTENT.search(sql)
        if texts:
            run(f"CREATE TEMP VIEW {texts[1]} AS SELECT * FROM main.{texts[1]}")  # noqa: S608
        run(sql.replace("CREATE VIRTUAL TABLE ", "CREATE VIRTUAL TABLE temp.", 1))
        for (part,) in fetch(connection, _PARTS, (f"{words}_*",)):
            run(f"DELETE FROM temp.{part}")  # noqa: S608
            run(f"INSERT INTO temp.{part} SELECT * FROM main.{part}")  # noqa: S608


def problems(connection: Connection) -> list[str]:
    """What is wrong with the indexes, compared with the rows; in a write transaction.

    So that no other writer waits, it may be asked of copies: see `copy_aside`.
    """
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
