"""The words of the memories: which memories hold one, and how much it adds to their scores.

`Fulltext` works over one open transaction, as `Repository` does. Scores are BM25 with one change,
see `kronos.db.fulltext.base.weight_of`. A term is an expression that `kronos.search.lexical` wrote:
no caller's text reaches the index as syntax.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from sqlalchemy import Connection, bindparam, select

from kronos.db.choice import fulltext_of
from kronos.db.fulltext.base import AddWords, text_of, weight_of
from kronos.db.fulltext.folding import fold
from kronos.db.statements import Prepared
from kronos.db.tables import memories

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from kronos.settings import Tokenizer
    from kronos.types import Keys
    from kronos.validation import Record

    Floats: TypeAlias = NDArray[np.float64]


class Fulltext:
    """The full-text indexes, over one open transaction.

    `past` asks about past versions, by the versions' keys, instead of the memories.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._indexes = fulltext_of(connection)

    def count(self, term: str, *, past: bool = False) -> int:
        """How many texts hold a term."""
        return self._indexes.count(self._connection, term, past=past)

    def size(self, *, past: bool = False) -> int:
        """How many texts there are."""
        return self._indexes.size(self._connection, past=past)

    def scores(self, term: str, *, past: bool = False) -> tuple[Keys, Floats]:
        """Find all texts that hold a term, and score them.

        Returns:
            (n,) int64 keys, ascending, and (n,) float64 scores, higher is better.
        """
        return self._indexes.ranked(self._connection, term, past=past)

    def presence(self, term: str, *, past: bool = False) -> tuple[Keys, Floats]:
        """The same at a fraction of the cost, as if each text held it once and had mean length."""
        keys = self._indexes.holders(self._connection, term, past=past)
        weight = weight_of(self.size(past=past), keys.size) if keys.size else 0.0
        return keys, np.full(keys.size, weight)

    def add(self, first: int, last: int) -> None:
        """Add the words of new memories: those with keys from one to another."""
        _ADD.run(self._connection, first=first, last=last)

    @property
    def tokenizer(self) -> Tokenizer:
        """How texts are cut into words."""
        return self._indexes.tokenizer(self._connection)

    def fold(self, records: Iterable[Record]) -> None:
        """Give records the text that the indexes read instead of theirs."""
        tokenizer = self.tokenizer
        for record in records:
            record.folded = fold(record.content, tokenizer)

    def folded(self, text: str) -> str | None:
        """The text that the indexes read instead of this one; None where they read this one."""
        return fold(text, self.tokenizer)

    def rebuild(self, tokenizer: Tokenizer | None = None) -> None:
        """Index all texts anew; None keeps how they are cut into words."""
        self._indexes.rebuild(self._connection, tokenizer or self.tokenizer)

    def merge(self, *, begins: bool) -> bool:
        """Do a step of a merge; the last one removes every word of a deleted text.

        Returns:
            Whether there was something to do.
        """
        return self._indexes.merge(self._connection, begins=begins)

    def misread(self) -> int:
        """How many texts are not folded as this Kronos folds them; reads every one."""
        return self._indexes.misread(self._connection)


_ADD = Prepared(
    AddWords(
        select(memories.c.key, text_of(memories))
        .where(memories.c.key.between(bindparam("first"), bindparam("last")))
        .order_by(memories.c.key),
        past=False,
    )
)
