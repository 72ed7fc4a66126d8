"""The full-text indexes of SQLite: FTS5 over the texts of `memories` and `versions`.

The module is one of the `FulltextIndexes` of `kronos.db.fulltext.base`, which says what its
functions promise. FTS5 reads the texts through the views `memory_texts` and `version_texts`. For a
row that is changed or deleted, triggers write the words; those of new rows are added together, by
`AddWords` (a trigger would make FTS5 flush its words after each row, which takes several times as
long).

Scores are BM25 as FTS5 computes it (k1 = 1.2, b = 0.75;
https://sqlite.org/fts5.html#the_bm25_function), negated so that higher is better.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from sqlalchemy import Connection, event
from sqlalchemy.exc import DatabaseError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler

from kronos.db.fulltext.base import DEFAULT_TOKENIZER, AddWords, inverse_frequency, weight_of
from kronos.db.fulltext.folding import fold
from kronos.db.sqlite_driver import define, is_damage
from kronos.db.statements import fetch
from kronos.db.tables import metadata

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from kronos.settings import Tokenizer
    from kronos.types import Keys

MEMORY_WORDS, VERSION_WORDS = "memory_words", "version_words"
# FTS5 takes this as the weight of a term where the weight is not above 0.
_LEAST_WEIGHT = 1e-6
_TABLES = {MEMORY_WORDS: "memories", VERSION_WORDS: "versions"}
TOKENIZERS: dict[Tokenizer, str] = {
    "porter": "porter unicode61 remove_diacritics 2",
    "unicode61": "unicode61 remove_diacritics 2",
    "trigram": "trigram",
}

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
# Of 4 kB: a step takes some hundredths of a second.
_PAGES_A_STEP = 100
_CONTENT = re.compile(r"content='([^']+)'")
_PARTS = "SELECT name FROM main.sqlite_master WHERE type = 'table' AND name GLOB ?"
_TOKENIZE = re.compile(r"tokenize='([^']*)'")
_ROWS_A_BATCH = 1000
_LAST_KEY = 2**63 - 1
# S608 below: the tables' names are our own.
_COUNT = "SELECT count(*) FROM {0} WHERE {0} MATCH ?"
_HOLDERS = "SELECT rowid FROM {0} WHERE {0} MATCH ?"
_RANKED = "SELECT rowid, rank FROM {0} WHERE {0} MATCH ?"
# The table of lengths has a narrow row for each text: counting them costs a few page reads.
_SIZE = "SELECT count(*) FROM {0}_docsize"
# As bytes, so that a damaged text is no error.
_FOLDED = "kronos_fold(CAST(content AS BLOB), ?)"
# A row that is folded already is not written. MATERIALIZED: each text is folded once.
_REFOLD = (
    "WITH made AS MATERIALIZED"  # noqa: S608
    f" (SELECT key, {_FOLDED} AS folded FROM {{0}} WHERE key > ? AND key <= ?)"
    " UPDATE {0} SET folded = made.folded FROM made"
    " WHERE {0}.key = made.key AND {0}.folded IS NOT made.folded"
)
_MISREAD = f"SELECT count(*) FROM {{}} WHERE folded IS NOT {_FOLDED}"  # noqa: S608
_SET_CURSOR = "UPDATE store SET words_cursor = ?"
_END_OF_BATCH = "SELECT key FROM {} WHERE key > ? ORDER BY key LIMIT 1 OFFSET ?"


def is_index_table(name: str) -> bool:
    """Whether a table is an index, or one of those in which FTS5 keeps it."""
    return name.startswith(tuple(_TABLES))


# -- Reading ------------------------------------------------------------------------------------


def _table(past: bool) -> str:
    return VERSION_WORDS if past else MEMORY_WORDS


def count(connection: Connection, term: str, *, past: bool) -> int:
    """How many texts hold a term."""
    ((found,),) = fetch(connection, _COUNT.format(_table(past)), (term,))
    return int(found)


def size(connection: Connection, *, past: bool) -> int:
    """How many texts there are."""
    ((found,),) = fetch(connection, _SIZE.format(_table(past)))
    return int(found)


def holders(connection: Connection, term: str, *, past: bool) -> Keys:
    """The keys of the texts that hold a term: (n,) int64, ascending."""
    rows = fetch(connection, _HOLDERS.format(_table(past)), (term,))
    return np.fromiter((row[0] for row in rows), np.int64, len(rows))


def ranked(connection: Connection, term: str, *, past: bool) -> tuple[Keys, NDArray[np.float64]]:
    """The same with their BM25 scores: (n,) float64, higher is better."""
    rows = fetch(connection, _RANKED.format(_table(past)), (term,))
    keys = np.fromiter((row[0] for row in rows), np.int64, len(rows))
    scores = np.fromiter((-row[1] for row in rows), np.float64, len(rows))
    if rows:
        texts = size(connection, past=past)
        found = max(inverse_frequency(texts, len(rows)), _LEAST_WEIGHT)
        scores *= weight_of(texts, len(rows)) / found
    return keys, scores


# -- The indexes --------------------------------------------------------------------------------


def create(connection: Connection) -> None:
    """Create the indexes of a database that has none: as the migrations do."""
    for words, name in _TABLES.items():
        connection.exec_driver_sql(_VIEW.format(texts=_texts(words), table=name))
        _create_index(connection, words, DEFAULT_TOKENIZER)


@event.listens_for(metadata, "after_create")
def _after_create(_: object, connection: Connection, **__: object) -> None:
    if connection.dialect.name == "sqlite":
        create(connection)


def _texts(words: str) -> str:
    return words.replace("words", "texts")


def _create_index(connection: Connection, words: str, tokenizer: Tokenizer) -> None:
    names = {"words": words, "texts": _texts(words), "table": _TABLES[words]}
    connection.exec_driver_sql(_INDEX.format(**names, tokenize=TOKENIZERS[tokenizer]))
    for trigger in _TRIGGERS.values():
        connection.exec_driver_sql(trigger.format(**names))


@compiles(AddWords, "sqlite")
def _add_words(element: AddWords, compiler: SQLCompiler, **options: Any) -> str:
    # FTS5 writes the words that it has collected whenever a key comes that is no higher than the
    # one before: hence rows in the order of the keys.
    rows = compiler.process(element.rows, **options)
    return f"INSERT INTO {_table(element.past)} (rowid, content) {rows}"


def tokenizer(connection: Connection) -> Tokenizer:
    """How texts are cut into words."""
    ((sql,),) = fetch(connection, "SELECT sql FROM sqlite_master WHERE name = ?", (MEMORY_WORDS,))
    return _tokenizer_in(sql)


def salvaged_tokenizer(salvage: Callable[[str], Iterator[dict[str, Any]]]) -> Tokenizer:
    """The same of a damaged database; the default where that is lost."""
    for row in salvage("sqlite_master"):
        if row.get("name") == MEMORY_WORDS and isinstance(row.get("sql"), str):
            return _tokenizer_in(row["sql"])
    return DEFAULT_TOKENIZER


@functools.lru_cache(maxsize=16)
def _tokenizer_in(sql: str) -> Tokenizer:
    """The tokenizer that the statement which made an index names."""
    found = _TOKENIZE.search(sql)
    known = {tokenize: name for name, tokenize in TOKENIZERS.items()}
    return known[found[1]] if found and found[1] in known else DEFAULT_TOKENIZER


def rebuild(connection: Connection, tokenizer: Tokenizer) -> None:
    """Fold all texts anew and index them anew; in a write transaction.

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


# -- Folding ------------------------------------------------------------------------------------


def refold_some(connection: Connection) -> bool:
    """Fold a batch of the texts that an older Kronos wrote; returns whether some may be left."""
    after = cursor(connection)
    if after is None:
        return False
    last = _refold(connection, tokenizer(connection), after)
    connection.exec_driver_sql(_SET_CURSOR, (last,))
    return last is not None


def _refold(connection: Connection, tokenizer: Tokenizer, after: int) -> int | None:
    """Fold the texts with keys above one and up to another one, which is returned.

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


# -- Upkeep -------------------------------------------------------------------------------------


def merge(connection: Connection, *, begins: bool) -> bool:
    """Do a step of a merge of the indexes; returns whether there was something to do."""
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

    Comparing an index with its texts is a write to FTS5: to a copy it takes no lock that another
    connection needs. The texts are not copied.
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
    """Where the indexes disagree with the rows; in a write transaction, or of copies."""
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
