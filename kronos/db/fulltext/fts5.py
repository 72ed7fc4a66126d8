"""The word indexes: SQLite FTS5 over the texts of `memories` and of their past `versions`.

An index holds no text of its own. It reads each text as `kronos.db.fulltext.folding` folded it,
from the row's column `folded`, or the content itself where that is null: the views `memory_texts`
and `version_texts`. Its words are written in the transaction that writes the row, so no reader ever
sees one without the other: for a row that is changed or deleted by triggers, for new rows by
`adding`, all at once (a trigger would make FTS5 flush its words after each row, which takes three
times as long). How texts are cut into words is a property of the database, chosen when the store is
new and changed by `rebuild`. All of it is derived from the rows.

A store whose rows an older Kronos wrote is folded by and by: `store.words_cursor` is the key up to
which that is done, and null where nothing is left to do.
"""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    FromClause,
    Select,
    column,
    event,
    func,
    insert,
    table,
)
from sqlalchemy.exc import DatabaseError

from kronos.db.dialect import Prepared, define, fetch, is_damage
from kronos.db.fulltext.folding import fold
from kronos.db.tables import metadata

if TYPE_CHECKING:
    from kronos.settings import Tokenizer

MEMORY_WORDS, VERSION_WORDS = "memory_words", "version_words"
_TABLES = {MEMORY_WORDS: "memories", VERSION_WORDS: "versions"}
TOKENIZERS: dict[Tokenizer, str] = {
    "porter": "porter unicode61 remove_diacritics 2",
    "unicode61": "unicode61 remove_diacritics 2",
    "trigram": "trigram",
}
DEFAULT_TOKENIZER: Tokenizer = "porter"

_VIEW = """CREATE VIEW {texts} AS
    SELECT key, coalesce(folded, content) AS content FROM {table}"""
_INDEX = """CREATE VIRTUAL TABLE {words} USING fts5(
    content, content='{texts}', content_rowid='key',
    tokenize='{tokenize}'
)"""
_TRIGGERS = {
    "delete": """CREATE TRIGGER {words}_delete AFTER DELETE ON {table} BEGIN
    INSERT INTO {words} ({words}, rowid, content)
    VALUES ('delete', old.key, coalesce(old.folded, old.content));
END""",
    "update": """CREATE TRIGGER {words}_update AFTER UPDATE OF content, folded ON {table}
WHEN coalesce(old.folded, old.content) IS NOT coalesce(new.folded, new.content) BEGIN
    INSERT INTO {words} ({words}, rowid, content)
    VALUES ('delete', old.key, coalesce(old.folded, old.content));
    INSERT INTO {words} (rowid, content) VALUES (new.key, coalesce(new.folded, new.content));
END""",
}
_PAGES_A_STEP = 100
"""Of 4 kB: a step takes some hundredths of a second."""
_CONTENT = re.compile(r"content='([^']+)'")
_PARTS = "SELECT name FROM main.sqlite_master WHERE type = 'table' AND name GLOB ?"
_TOKENIZE = re.compile(r"tokenize='([^']*)'")
_ROWS_A_BATCH = 1000
_LAST_KEY = 2**63 - 1
# S608: names of our own.
# As bytes, so that a damaged text is no error.
_FOLDED = "kronos_fold(CAST(content AS BLOB), ?)"
# What is folded so already stays as it is. MATERIALIZED: each text is folded once.
_REFOLD = (
    "WITH made AS MATERIALIZED"  # noqa: S608
    f" (SELECT key, {_FOLDED} AS folded FROM {{0}} WHERE key > ? AND key <= ?)"
    " UPDATE {0} SET folded = made.folded FROM made"
    " WHERE {0}.key = made.key AND {0}.folded IS NOT made.folded"
)
_MISREAD = f"SELECT count(*) FROM {{}} WHERE folded IS NOT {_FOLDED}"  # noqa: S608
_SET_CURSOR = "UPDATE store SET words_cursor = ?"
_END_OF_BATCH = "SELECT key FROM {} WHERE key > ? ORDER BY key LIMIT 1 OFFSET ?"


def is_word_table(name: str) -> bool:
    """Whether a table is a word index, or one of those in which SQLite keeps it."""
    return name.startswith(tuple(_TABLES))


def create(connection: Connection) -> None:
    """Make the indexes of a database that has none: as the migrations do."""
    for words, name in _TABLES.items():
        connection.exec_driver_sql(_VIEW.format(texts=_texts(words), table=name))
        _create_index(connection, words, DEFAULT_TOKENIZER)


event.listen(metadata, "after_create", lambda _, connection, **__: create(connection))


def _texts(words: str) -> str:
    return words.replace("words", "texts")


def _create_index(connection: Connection, words: str, tokenizer: Tokenizer) -> None:
    names = {"words": words, "texts": _texts(words), "table": _TABLES[words]}
    connection.exec_driver_sql(_INDEX.format(**names, tokenize=TOKENIZERS[tokenizer]))
    for trigger in _TRIGGERS.values():
        connection.exec_driver_sql(trigger.format(**names))


def tokenizer(connection: Connection) -> Tokenizer:
    """How texts are cut into words."""
    ((sql,),) = fetch(connection, "SELECT sql FROM sqlite_master WHERE name = ?", (MEMORY_WORDS,))
    return tokenizer_in(sql)


@functools.lru_cache(maxsize=16)
def tokenizer_in(sql: str) -> Tokenizer:
    """The same, read from the statement that made an index."""
    found = _TOKENIZE.search(sql)
    known = {tokenize: name for name, tokenize in TOKENIZERS.items()}
    return known[found[1]] if found and found[1] in known else DEFAULT_TOKENIZER


def rebuild(connection: Connection, tokenizer: Tokenizer) -> None:
    """Fold all texts anew, and make the indexes of them; in a write transaction.

    The tables are dropped and not emptied: nothing of a damaged one is read.
    """
    for words in _TABLES:
        for trigger in _TRIGGERS:
            connection.exec_driver_sql(f"DROP TRIGGER IF EXISTS {words}_{trigger}")
        connection.exec_driver_sql(f"DROP TABLE IF EXISTS {words}")
    after: int | None = -1
    while after is not None:
        after = _refold(connection, tokenizer, after)
    for words in _TABLES:
        _create_index(connection, words, tokenizer)
        _command(connection, words, "rebuild")
    connection.exec_driver_sql(_SET_CURSOR, (None,))


def refold_some(connection: Connection) -> bool:
    """Fold some texts that an older Kronos wrote; in a write transaction.

    Returns:
        Whether some may be left.
    """
    after = cursor(connection)
    if after is None:
        return False
    last = _refold(connection, tokenizer(connection), after)
    connection.exec_driver_sql(_SET_CURSOR, (last,))
    return last is not None


def _refold(connection: Connection, tokenizer: Tokenizer, after: int) -> int | None:
    """Fold a batch of texts: those with keys above one and up to another, which is returned.

    None stands for the last key of all.
    """
    define(connection, "kronos_fold", _fold)
    values = (after, _ROWS_A_BATCH - 1)
    ends = [fetch(connection, _END_OF_BATCH.format(name), values) for name in _TABLES.values()]
    last = min((key for found in ends for (key,) in found), default=None)
    for name in _TABLES.values():
        connection.exec_driver_sql(_REFOLD.format(name), (tokenizer, after, last or _LAST_KEY))
    return last


def _fold(content: bytes | None, tokenizer: Tokenizer) -> str | None:
    return fold((content or b"").decode(errors="replace"), tokenizer)


def cursor(connection: Connection) -> int | None:
    """The key up to which all texts are folded; None when all are."""
    ((found,),) = fetch(connection, "SELECT words_cursor FROM store")
    return None if found is None else int(found)


def misread(connection: Connection) -> int:
    """How many texts are not folded as this Kronos folds them; reads every one."""
    define(connection, "kronos_fold", _fold)
    how = tokenizer(connection)
    counts = [fetch(connection, _MISREAD.format(name), (how,)) for name in _TABLES.values()]
    return sum(count for ((count,),) in counts)


def adding(words: str, rows: Select[Any]) -> Prepared:
    """What adds the words of rows that were written in the same transaction.

    Args:
        words: `MEMORY_WORDS` or `VERSION_WORDS`.
        rows: selects key and text, as `text_of` gives it, in the order of the keys: FTS5 writes
            what it has in hand whenever a key comes that is no higher than the one before.
    """
    index = table(words, column("rowid"), column("content"))
    return Prepared(insert(index).from_select(["rowid", "content"], rows))


def text_of(table: FromClause) -> ColumnElement[str]:
    """What the words of a row of `memories` or `versions` are read from."""
    return func.coalesce(table.c.folded, table.c.content)


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
