"""What a database must offer to find texts by their words.

There are two indexes: of the texts of `memories` and of those of `versions`, their past. An index
holds no text of its own. It reads each text as `kronos.db.fulltext.folding` folded it: from the
row's column `folded`, or the content itself where that is null. The words of a row are written in
the transaction that writes the row, so no reader ever sees one without the other. How texts are cut
into words is a property of the database, chosen when the store is new and changed by `rebuild`. All
of it is derived from the rows.

A store whose rows an older Kronos wrote is folded in batches: `store.words_cursor` is the key up to
which that is done, and null once nothing is left to do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

from sqlalchemy import ClauseElement, ColumnElement, Executable, FromClause, Select, func

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from sqlalchemy import Connection

    from kronos.settings import Tokenizer
    from kronos.types import Keys

DEFAULT_TOKENIZER: Tokenizer = "porter"
_LEAST_WEIGHT = 0.1


class AddWords(Executable, ClauseElement):
    """Adds the words of rows that the same transaction wrote.

    Args:
        rows: selects key and text, as `text_of` gives it, in the order of the keys.
        past: whether they are rows of `versions`, and not of `memories`.
    """

    inherit_cache = False

    def __init__(self, rows: Select[Any], *, past: bool) -> None:
        self.rows = rows
        self.past = past


def text_of(table: FromClause) -> ColumnElement[str]:
    """The text that the words of a row of `memories` or `versions` are read from."""
    return func.coalesce(table.c.folded, table.c.content)


def inverse_frequency(texts: int, held: int) -> float:
    """The weight of a term in BM25: the rarer, the higher; negative from half of the texts on.

    Args:
        texts: how many texts there are.
        held: how many of them hold the term.
    """
    return math.log((texts - held + 0.5) / (held + 0.5))


def weight_of(texts: int, held: int) -> float:
    """The same, but at least 0.1.

    BM25 as databases compute it gives no weight at all to a term that half of the texts hold, and
    in a small store such a term may be all there is.
    """
    return max(inverse_frequency(texts, held), _LEAST_WEIGHT)


class FulltextIndexes(Protocol):
    """The two indexes of a database, over one open transaction.

    `past` asks the index of `versions`; else the index of `memories` is asked. A term is an
    expression that `kronos.search.lexical` wrote.
    """

    def count(self, connection: Connection, term: str, *, past: bool) -> int:
        """How many texts hold a term."""

    def size(self, connection: Connection, *, past: bool) -> int:
        """How many texts there are."""

    def holders(self, connection: Connection, term: str, *, past: bool) -> Keys:
        """The keys of the texts that hold a term: (n,) int64, ascending."""

    def ranked(
        self, connection: Connection, term: str, *, past: bool
    ) -> tuple[Keys, NDArray[np.float64]]:
        """The same with their scores: (n,) float64, BM25 with `weight_of` as the term's weight."""

    def tokenizer(self, connection: Connection) -> Tokenizer:
        """How texts are cut into words."""

    def salvaged_tokenizer(self, salvage: Callable[[str], Iterator[dict[str, Any]]]) -> Tokenizer:
        """The same of a damaged database; the default where that is lost.

        Args:
            salvage: `Files.salvage`.
        """

    def is_index_table(self, name: str) -> bool:
        """Whether a table is an index, or one of those in which the database keeps it."""

    def rebuild(self, connection: Connection, tokenizer: Tokenizer) -> None:
        """Fold all texts anew and index them anew; in a write transaction."""

    def cursor(self, connection: Connection) -> int | None:
        """The key up to which all texts are folded; None when all are."""

    def refold_some(self, connection: Connection) -> bool:
        """Fold a batch of the texts that an older Kronos wrote; in a write transaction.

        Returns:
            Whether some may be left.
        """

    def misread(self, connection: Connection) -> int:
        """How many texts are not folded as this Kronos folds them; reads every one."""

    def merge(self, connection: Connection, *, begins: bool) -> bool:
        """Do a step of a merge of the indexes; the last one removes every word of a deleted text.

        Args:
            connection: in a write transaction.
            begins: with the first step, which says that everything is to be merged.

        Returns:
            Whether there was something to do.
        """

    def copy_aside(self, connection: Connection) -> None:
        """Let the indexes' names mean temporary copies on a connection, for `problems`.

        Args:
            connection: one that is closed afterwards, in a transaction that reads.
        """

    def problems(self, connection: Connection) -> list[str]:
        """Where the indexes disagree with the rows; in a write transaction, or of copies."""
