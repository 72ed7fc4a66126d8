"""Word search: what of a question's text is looked for, and what the words say of each memory.

Any text is a question: its words are quoted one by one, and nothing of it is syntax. Words that say
little by themselves ("the", "what") count half, and only where they are cheap; of a long question,
or in a large store, the rarest words are taken. So a search stays cheap in a store of any size.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from kronos.types import Keys, Tokenizer
    from kronos.words import Words

    Floats: TypeAlias = NDArray[np.float64]

_WORD = re.compile(r"[^\W_]+")
MOST_TERMS = 64
"""A question's first so many distinct words are looked at."""
MOST_ROWS = 50_000
"""Of a question's words the rarest are taken until so many memories hold one; at least one is.
Scoring takes about 1 microsecond for each."""
MOST_ROWS_OF_LIGHT_WORDS = 5_000
"""Words that say little are taken as far as the question stays below so many."""
_LIGHT = 0.5
_LIGHT_WORDS = frozenset(
    """a an the is are was were be been am do does did what which who whom whose when where why how
    i you he she it we they me my your his her its our their that this these those there and or as
    of""".split()
)
_TRIGRAM = 3


@dataclass(frozen=True, slots=True)
class Term:
    """A word that is looked for."""

    expression: str
    """As FTS5 reads it."""
    weight: float


def terms(query: str, tokenizer: Tokenizer) -> list[Term]:
    """The words of a question, in their order and each once.

    Args:
        query: any text.
        tokenizer: how the store's texts are cut; trigrams find no word of fewer letters.
    """
    folded = unicodedata.normalize("NFKC", query).lower()
    words = list(dict.fromkeys(_WORD.findall(folded)))
    if tokenizer == "trigram":
        words = [word for word in words if len(word) >= _TRIGRAM]
    if all(word in _LIGHT_WORDS for word in words):
        return [Term(f'"{word}"', 1.0) for word in words]
    weights = [_LIGHT if word in _LIGHT_WORDS else 1.0 for word in words[:MOST_TERMS]]
    return [Term(f'"{word}"', weight) for word, weight in zip(words, weights, strict=False)]


def names_something(query: str) -> bool:
    """Whether a question seems to hold a name or a number: there its words are to be trusted.

    A word with a digit does, and one with a capital, but for that of the first word and where all
    letters are capitals.
    """
    words = _WORD.findall(query)
    if any(character.isdigit() for character in query):
        return True
    if query.isupper():
        return False
    capitals = [sum(map(str.isupper, word)) for word in words]
    return any(capitals[1:]) or any(count > 1 for count in capitals[:1])


def affordable_terms(words: Words, query: str) -> list[Term]:
    """The words of a question that are looked for, in their order.

    Args:
        words: over the transaction of the search.
        query: any text.
    """
    found = terms(query, words.tokenizer)
    if len(found) < 2:
        return found
    counts = [words.count(term.expression) for term in found]
    order = sorted(
        range(len(found)), key=lambda place: (-found[place].weight, counts[place], place)
    )
    kept: list[int] = []
    rows = 0
    for place in order:
        rows += counts[place]
        most = MOST_ROWS if found[place].weight == 1 else MOST_ROWS_OF_LIGHT_WORDS
        if not kept or rows <= most:
            kept.append(place)
        else:
            rows -= counts[place]
    return [found[place] for place in sorted(kept)]


def word_scores(words: Words, found: Sequence[Term], *, past: bool = False) -> tuple[Keys, Floats]:
    """Score all texts that hold any of some words.

    Args:
        words: over the transaction of the search.
        found: as `affordable_terms` gives them.
        past: among past versions instead of the memories.

    Returns:
        (n,) int64 keys, ascending, and (n,) float64 BM25, higher is better.
    """
    parts = [words.scores(term.expression, past=past) for term in found]
    if not parts:
        return np.empty(0, np.int64), np.empty(0, np.float64)
    weighted = [term.weight * scores for term, (_, scores) in zip(found, parts, strict=True)]
    if len(parts) == 1:
        return parts[0][0], weighted[0]
    keys, places = np.unique(np.concatenate([keys for keys, _ in parts]), return_inverse=True)
    total = np.zeros(keys.size)
    np.add.at(total, places, np.concatenate(weighted))
    return keys, total
