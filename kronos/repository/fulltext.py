"""The words of the memories: which memories hold one, and how much it says of each.

`Fulltext` speaks over one open transaction, as `Repository` does. Scores are BM25 as SQLite's FTS5
computes it (k1 = 1.2, b = 0.75; https://sqlite.org/fts5.html#the_bm25_function), turned round so
that higher is better, with one change: FTS5 gives no weight at all to a word that half of the texts
hold, and in a small store such a word may be all there is; it weighs at least 0.1 here.

What is to be found comes as an FTS5 expression that `kronos.search.lexical` has written: no
caller's text reaches FTS5 as syntax.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from sqlalchemy import Connection, bindparam, select

from kronos.db.dialect import fetch
from kronos.db.fulltext import fts5 as words
from kronos.db.fulltext.folding import fold
from kronos.db.fulltext.fts5 import MEMORY_WORDS, VERSION_WORDS
from kronos.db.tables import memories

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from kronos.settings import Tokenizer
    from kronos.types import Keys
    from kronos.validation import Record

    Floats: TypeAlias = NDArray[np.float64]


class Fulltext:
    """The word indexes, over one open transaction."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def count(self, term: str, *, past: bool = False) -> int:
        """How many texts hold a term, which is an FTS5 expression."""
        ((found,),) = fetch(self._connection, _COUNT.format(_table(past)), (term,))
        return int(found)

    def size(self, *, past: bool = False) -> int:
        """How many texts there are."""
        ((found,),) = fetch(self._connection, _SIZE.format(_table(past)))
        return int(found)

    def scores(self, term: str, *, past: bool = False) -> tuple[Keys, Floats]:
        """Find all that hold a term, and score them.

        Args:
            term: an FTS5 expression.
            past: among past versions, by the keys of these, instead of the memories.

        Returns:
            (n,) int64 keys, ascending, and (n,) float64 scores.
        """
        rows = fetch(self._connection, _RANKED.format(_table(past)), (term,))
        keys = np.fromiter((row[0] for row in rows), np.int64, len(rows))
        scores = np.fromiter((-row[1] for row in rows), np.float64, len(rows))
        if len(rows):
            weight = self._weight(len(rows), past)
            scores *= max(weight, _LEAST_WEIGHT) / max(weight, _FTS5_LEAST_WEIGHT)
        return keys, scores

    def presence(self, term: str, *, past: bool = False) -> tuple[Keys, Floats]:
        """The same at a quarter of the cost, as if each held it once and were of mean length.

        Args:
            term: as for `scores`.
            past: as for `scores`.
        """
        rows = fetch(self._connection, _HOLDERS.format(_table(past)), (term,))
        keys = np.fromiter((row[0] for row in rows), np.int64, len(rows))
        weight = self._weight(len(rows), past) if len(rows) else 0.0
        return keys, np.full(keys.size, max(weight, _LEAST_WEIGHT))

    def _weight(self, held: int, past: bool) -> float:
        return math.log((self.size(past=past) - held + 0.5) / (held + 0.5))

    def add(self, first: int, last: int) -> None:
        """Add the words of new memories: those with keys from one to another."""
        _ADD.run(self._connection, first=first, last=last)

    @property
    def tokenizer(self) -> Tokenizer:
        """How texts are cut into words."""
        return words.tokenizer(self._connection)

    def fold(self, records: Iterable[Record]) -> None:
        """Give records what the indexes are to read instead of their texts."""
        tokenizer = self.tokenizer
        for record in records:
            record.folded = fold(record.content, tokenizer)

    def folded(self, text: str) -> str | None:
        """What the indexes are to read instead of a text; None where it is its own fold."""
        return fold(text, self.tokenizer)

    def rebuild(self, tokenizer: Tokenizer | None = None) -> None:
        """Make the indexes anew from the texts; None keeps how they are cut into words."""
        words.rebuild(self._connection, tokenizer or self.tokenizer)

    def merge(self, *, begins: bool) -> bool:
        """Do a step of a merge that leaves no word of a text that is gone; see `db.words.merge`."""
        return words.merge(self._connection, begins=begins)

    def misread(self) -> int:
        """How many texts are not folded as this Kronos folds them; reads every one."""
        return words.misread(self._connection)

    def problems(self) -> list[str]:
        """Where the indexes do not agree with the texts; in a write transaction."""
        return words.problems(self._connection)


_ADD = words.adding(
    MEMORY_WORDS,
    select(memories.c.key, words.text_of(memories))
    .where(memories.c.key.between(bindparam("first"), bindparam("last")))
    .order_by(memories.c.key),
)
_LEAST_WEIGHT = 0.1
_FTS5_LEAST_WEIGHT = 1e-6
"""What FTS5 puts in the place of a weight that is not above 0."""
# S608: the tables' names are our own.
_COUNT = "SELECT count(*) FROM {0} WHERE {0} MATCH ?"
_HOLDERS = "SELECT rowid FROM {0} WHERE {0} MATCH ?"
_RANKED = "SELECT rowid, rank FROM {0} WHERE {0} MATCH ?"
# The table of lengths has a narrow row for each text: to count it costs a few page reads.
_SIZE = "SELECT count(*) FROM {0}_docsize"


def _table(past: bool) -> str:
    return VERSION_WORDS if past else MEMORY_WORDS
