"""Word search: which terms to look up, and how each memory scores.

Any text is a query. `kronos.db.fulltext.folding` reads it as it reads the texts of memories; its
words are quoted one by one, so no part of it is syntax. Stop words ("the", "what") count half, and
only where they are cheap. Of a long query, or in a large store, only the rarest words are looked
up, so that a search stays cheap. Two adjacent words of the query count once more where they are
adjacent in a memory.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from kronos.concurrency.large_values import find_all
from kronos.db.fulltext.folding import Word, read

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from kronos.repository.fulltext import Fulltext
    from kronos.settings import Tokenizer
    from kronos.types import Keys

    Floats: TypeAlias = NDArray[np.float64]

_WORD = re.compile(r"[^\W_]+")
MOST_READ = 1_000
"""Words of a query that are read, at most."""
MOST_TERMS = 64
"""Distinct words of a query that are considered, at most; the first ones."""
MOST_ROWS = 20_000
"""The rarest words are looked up until this many memories contain one; at least one word is."""
MOST_ROWS_OF_STOP_WORDS = 5_000
"""The same limit for stop words."""
LARGE_STORE = 20_000
"""In a store with more texts, stop words are not counted at all."""
FREQUENT = 1_000
"""A word in more memories counts by its presence alone, which is faster to read than how often each
memory contains it, and how long each memory is."""
_STOP_WEIGHT = 0.5
_STOP_WORDS = frozenset(
    """a an the is are was were be been am do does did what which who whom whose when where why how
    i you he she it we they me my your his her its our their that this these those there and or as
    of""".split()
)
_SIDE_BY_SIDE = 0.3
_ATTACHED = 1.0
"""The weight of words such as `C++` and `KX-4711`, in addition to their parts."""
_TRIGRAM = 3


@dataclass(slots=True)
class Term:
    """A word to look up, or two adjacent words."""

    expression: str
    """As the full-text index reads it."""
    weight: float
    is_frequent: bool = False
    """Whether so many memories contain it that only its presence counts."""


def names_something(query: str) -> bool:
    """Whether a query seems to contain a name or a number, which words find better than vectors.

    A word with a digit is one, and a word with a capital. The first letter of the query does not
    count, nor do capitals if all letters are capitals.
    """
    words = find_all(_WORD, query)
    if any(character.isdigit() for character in query):
        return True
    if query.isupper():
        return False
    capitals = [sum(map(str.isupper, word)) for word in words]
    return any(capitals[1:]) or any(count > 1 for count in capitals[:1])


def terms(fulltext: Fulltext, query: str) -> list[Term]:
    """Which terms of a query to look up: its words, and pairs of adjacent words.

    Args:
        fulltext: in the transaction of the search.
        query: any text.
    """
    tokenizer = fulltext.tokenizer
    expression = _by_trigrams if tokenizer == "trigram" else _by_words
    asked = _read(query, tokenizer)
    words = [*_distinct(asked)][:MOST_TERMS]
    if fulltext.size() > LARGE_STORE:
        words = [word for word in words if word.text not in _STOP_WORDS] or words
    expressions = {word.text: expression(word) for word in words}
    counts = {word: fulltext.count(expressions[word]) for word in expressions}
    kept = _affordable(counts)
    telling = {word for word in kept if word not in _STOP_WORDS}
    singles = [
        Term(
            expressions[word],
            _STOP_WEIGHT if telling and word not in telling else 1.0,
            is_frequent=counts[word] > FREQUENT,
        )
        for word in kept
    ]
    return singles + _pairs(asked, telling, expression)


def _distinct(words: Sequence[Word]) -> Iterable[Word]:
    """The words of a query, each once, in their order."""
    known: dict[str, Word] = {}
    for word in words:
        if word.kind != "end":
            known.setdefault(word.text, word)
    return known.values()


def _pairs(words: Sequence[Word], telling: set[str], expression: Callable[..., str]) -> list[Term]:
    """Pairs of adjacent words, neither of them a stop word or dropped."""
    pairs = {
        expression(one, other): _ATTACHED if other.is_attached else _SIDE_BY_SIDE
        for one, other in itertools.pairwise(words)
        if (one.kind == "end" or one.text in telling)
        and other.kind != "end"
        and other.text in telling
    }
    return [Term(pair, weight) for pair, weight in pairs.items()]


def _read(query: str, tokenizer: Tokenizer) -> list[Word]:
    """The words of a query; punctuation counts as a word only if there are no others."""
    found = list(itertools.islice(read(query, tokenizer), MOST_READ))
    return [word for word in found if word.kind != "marks"] or found


def _by_words(*words: Word) -> str:
    """The expression for a word or adjacent words; a letter stands for the pairs it begins."""
    phrase = " ".join(word.text for word in words)
    return f'"{phrase}" *' if words[-1].kind == "letter" else f'"{phrase}"'


def _by_trigrams(*words: Word) -> str:
    """The same for a trigram index, where a word shorter than a trigram includes its spaces."""
    first, *others = (word.text for word in words)
    # The pairs "a b" and "b c" are "a b c" in a text.
    for other in others:
        letter, _, rest = other.partition(" ")
        first = f"{first} {rest}" if rest and first.endswith(f" {letter}") else f"{first} {other}"
    before, after = (" " if len(word.text) < _TRIGRAM else "" for word in (words[0], words[-1]))
    return f'"{before}{first}{after}"'


def _affordable(counts: dict[str, int]) -> list[str]:
    """The rarest words within the limits, in the order of the query; stop words are tried last."""
    kept: set[str] = set()
    rows = 0
    for word in sorted(counts, key=lambda word: (word in _STOP_WORDS, counts[word])):
        most = MOST_ROWS_OF_STOP_WORDS if word in _STOP_WORDS else MOST_ROWS
        if not kept or rows + counts[word] <= most:
            kept.add(word)
            rows += counts[word]
    return [word for word in counts if word in kept]


def word_scores(
    fulltext: Fulltext, found: Sequence[Term], *, past: bool = False
) -> tuple[Keys, Floats]:
    """Score all texts that contain any of some terms.

    Args:
        fulltext: in the transaction of the search.
        found: as `terms` returns them.
        past: score past versions instead of memories.

    Returns:
        (n,) int64 keys, ascending, and (n,) float64 BM25, higher is better.
    """
    parts = [
        (fulltext.presence if term.is_frequent else fulltext.scores)(term.expression, past=past)
        for term in found
    ]
    if not parts:
        return np.empty(0, np.int64), np.empty(0, np.float64)
    weighted = [term.weight * scores for term, (_, scores) in zip(found, parts, strict=True)]
    if len(parts) == 1:
        return parts[0][0], weighted[0]
    keys, places = np.unique(np.concatenate([keys for keys, _ in parts]), return_inverse=True)
    total = np.zeros(keys.size)
    np.add.at(total, places, np.concatenate(weighted))
    return keys, total
