"""Word search: what of a question's text is looked for, and what the words say of each memory.

Any text is a question. It is read as the texts were, by `kronos.db.fulltext.folding`; its words are
quoted one by one, and nothing of it is syntax. Words that say little by themselves ("the", "what")
count half, and only where they are cheap; of a long question, or in a large store, the rarest words
are taken.
So a search stays cheap in a store of any size. Two words that stand side by side in the question
count once more where they do so in a memory.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
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
"""A question is read so far."""
MOST_TERMS = 64
"""A question's first so many distinct words are looked at."""
MOST_ROWS = 20_000
"""Of a question's words the rarest are taken until so many memories hold one; at least one is."""
MOST_ROWS_OF_LIGHT_WORDS = 5_000
"""Words that say little are taken as far as the question stays below so many."""
LARGE_STORE = 20_000
"""In a store of so many texts it is not even asked how many hold such a word."""
FREQUENT = 1_000
"""A word that more memories hold counts by its presence alone: to read how often each of them holds
it, and how long it is, takes 1 microsecond a memory, four times as long."""
_LIGHT = 0.5
_LIGHT_WORDS = frozenset(
    """a an the is are was were be been am do does did what which who whom whose when where why how
    i you he she it we they me my your his her its our their that this these those there and or as
    of""".split()
)
_SIDE_BY_SIDE = 0.3
_ATTACHED = 1.0
"""`C++` and `KX-4711` are words of their own beside their parts."""
_TRIGRAM = 3


@dataclass(slots=True)
class Term:
    """What is looked for: a word, or two words side by side."""

    expression: str
    """As the full-text index reads it."""
    weight: float
    is_frequent: bool = False
    """So many memories hold it that it is only asked whether they do."""


def names_something(query: str) -> bool:
    """Whether a question seems to hold a name or a number: there its words are to be trusted.

    A word with a digit does, and one with a capital, but for that of the first word and where all
    letters are capitals.
    """
    words = find_all(_WORD, query)
    if any(character.isdigit() for character in query):
        return True
    if query.isupper():
        return False
    capitals = [sum(map(str.isupper, word)) for word in words]
    return any(capitals[1:]) or any(count > 1 for count in capitals[:1])


def terms(words: Fulltext, question: str) -> list[Term]:
    """What of a question is looked for: its words, and those that stand side by side in it.

    Args:
        words: over the transaction of the search.
        question: any text.
    """
    tokenizer = words.tokenizer
    expression = _by_trigrams if tokenizer == "trigram" else _by_words
    asked = _asked(question, tokenizer)
    known: dict[str, Word] = {}
    for word in asked:
        if word.kind != "end":
            known.setdefault(word.text, word)
    found = [*known][:MOST_TERMS]
    telling = {word for word in found if word not in _LIGHT_WORDS}
    if telling and words.size() > LARGE_STORE:
        found = [word for word in found if word in telling]
    expressions = {word: expression(known[word]) for word in found}
    counts = {word: words.count(expressions[word]) for word in found}
    kept = _affordable(counts)
    telling.intersection_update(kept)
    singles = [
        Term(
            expressions[word],
            1.0 if word in telling or not telling else _LIGHT,
            is_frequent=counts[word] > FREQUENT,
        )
        for word in kept
    ]
    pairs = {
        expression(one, other): _ATTACHED if other.is_attached else _SIDE_BY_SIDE
        for one, other in itertools.pairwise(asked)
        if (one.kind == "end" or one.text in telling)
        and other.kind != "end"
        and other.text in telling
    }
    return singles + [Term(pair, weight) for pair, weight in pairs.items()]


def _asked(question: str, tokenizer: Tokenizer) -> list[Word]:
    """The words of a question; punctuation that stands alone is one where there is nothing else."""
    found = list(itertools.islice(read(question, tokenizer), MOST_READ))
    return [word for word in found if word.kind != "marks"] or found


def _by_words(*words: Word) -> str:
    """A word, or words side by side, as an expression; a letter stands for pairs it begins."""
    phrase = " ".join(word.text for word in words)
    return f'"{phrase}" *' if words[-1].kind == "letter" else f'"{phrase}"'


def _by_trigrams(*words: Word) -> str:
    """The same as a part of a fold; a word that is no trigram has the spaces around it."""
    first, *others = (word.text for word in words)
    # Of pairs "a b" and "b c" only "a b c" stands in a text.
    for other in others:
        letter, _, rest = other.partition(" ")
        first = f"{first} {rest}" if rest and first.endswith(f" {letter}") else f"{first} {other}"
    before, after = (" " if len(word.text) < _TRIGRAM else "" for word in (words[0], words[-1]))
    return f'"{before}{first}{after}"'


def _affordable(counts: dict[str, int]) -> list[str]:
    """The rarest words, in their order, as far as the limits reach; light ones last."""
    kept: set[str] = set()
    rows = 0
    for word in sorted(counts, key=lambda word: (word in _LIGHT_WORDS, counts[word])):
        most = MOST_ROWS_OF_LIGHT_WORDS if word in _LIGHT_WORDS else MOST_ROWS
        if not kept or rows + counts[word] <= most:
            kept.add(word)
            rows += counts[word]
    return [word for word in counts if word in kept]


def word_scores(
    words: Fulltext, found: Sequence[Term], *, past: bool = False
) -> tuple[Keys, Floats]:
    """Score all texts that hold any of some words.

    Args:
        words: over the transaction of the search.
        found: as `terms` gives them.
        past: among past versions instead of the memories.

    Returns:
        (n,) int64 keys, ascending, and (n,) float64 BM25, higher is better.
    """
    parts = [
        (words.presence if term.is_frequent else words.scores)(term.expression, past=past)
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
