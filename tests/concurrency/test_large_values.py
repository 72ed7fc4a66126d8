"""Work on large values in pieces gives the same result as in one go."""

from __future__ import annotations

import random
import re
import unicodedata
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kronos.concurrency import large_values
from kronos.db import sqlite_sql
from kronos.db.fulltext import folding
from kronos.embedding import hashing
from kronos.embedding.hashing import HashEmbedder
from kronos.search import lexical
from kronos.search.filters import expression
from kronos.settings import Tokenizer
from kronos.transfer import export
from kronos.validation import metadata

PATTERNS = [
    hashing._WORDS,
    hashing._ASCII_WORDS,
    hashing._MARKS,
    lexical._WORD,
    re.compile(r"[^\W\d_]{1,6}|\d{1,3}|[^\w\s]|_"),
]
# Letters that compose, marks, jamo, sigmas, signs that a sigma looks past, compatibility forms.
TRICKY = (
    "aeAEéÉßıİΣσςΑαοǅﬁ½²℡Ⅷㄱ가각힣각'’.:· \t\n_-1٣漢字かがｶﾞ🎉"
    "\u3001\u3002\uff01\uff0c\u3000\u2003\x85\x1c"
    "\u0301\u0327\u0345\u09c7\u09be\u0b47\u0b3e\U0001d6ba\u200d\u00ad"
)
TEXTS = st.lists(
    st.one_of(st.text(TRICKY, min_size=1, max_size=8), st.text(max_size=4)), max_size=12
).map("".join)
SIZES = st.integers(1, 12)


@settings(max_examples=600, deadline=None)
@given(TEXTS, SIZES)
def test_a_text_is_normalized_in_pieces_as_at_once(text: str, size: int) -> None:
    with mock.patch.object(large_values, "_SIZE", size):
        assert large_values.normalize(text) == unicodedata.normalize("NFKC", text).lower()


def test_characters_at_a_split_do_not_change_each_other() -> None:
    chance = random.Random(0)
    alone = [c for c in map(chr, range(0x30000)) if _is_text(c) and large_values._stands_alone(c)]
    assert len(alone) > 100_000, "a text can be split almost anywhere"
    others = [*TRICKY, *chance.sample(alone, 60)]
    for character in alone:
        for other in chance.sample(others, 4):
            for before, behind in ((character, other), (other, character)):
                if large_values._are_independent.__wrapped__(before, behind):
                    assert _normalize(before) + _normalize(behind) == _normalize(before + behind)


def _is_text(character: str) -> bool:
    return unicodedata.category(character) not in ("Cs", "Cn", "Co")


def _normalize(text: str) -> str:
    return unicodedata.normalize("NFKC", text).lower()


@settings(max_examples=600, deadline=None)
@given(st.one_of(TEXTS, st.text("ab1 _-é漢", max_size=200)), SIZES, st.sampled_from(PATTERNS))
def test_words_are_found_in_pieces_as_at_once(
    text: str, size: int, pattern: re.Pattern[str]
) -> None:
    with mock.patch.object(large_values, "_SIZE", size):
        assert large_values.find_all(pattern, text) == pattern.findall(text)


SIGNS = [
    "c++ ",
    "->",
    "... ",
    "\u2026",
    ";; ",
    "!",
    " ' ",
    "\U0001f1e9\U0001f1ea",
    "\u2122",
    "3.5 ",
    "漢字。かが，각",
    " 。漢",
]
WITH_SIGNS = st.lists(st.one_of(TEXTS, st.sampled_from(SIGNS)), max_size=12).map("".join)


@settings(max_examples=600, deadline=None)
@given(WITH_SIGNS, SIZES, st.sampled_from(["porter", "trigram"]))
def test_words_are_folded_and_read_in_pieces_as_at_once(
    text: str, size: int, tokenizer: Tokenizer
) -> None:
    def outcome() -> Any:
        words = [(each, each.is_attached) for each in folding.read(text, tokenizer)]
        return folding.fold(text, tokenizer), words

    with mock.patch.object(large_values, "_SIZE", len(text) + 1):
        at_once = outcome()
    with mock.patch.object(large_values, "_SIZE", size):
        assert "".join(large_values.split_text(text)) == text
        assert "".join(large_values.split_text(text, folding._clause_end)) == text
        assert outcome() == at_once


def test_long_texts_without_spaces_are_split_too() -> None:
    letters = [*large_values.split_text("漢" * 300_000, large_values._independent_place)]
    clauses = [*large_values.split_text("漢字，かが。" * 50_000, folding._clause_end)]
    assert len(letters) > 4
    assert len(clauses) > 4
    assert all(clause[0] in "漢か" for clause in clauses)
    assert len([*large_values.split_text("漢" * 300_000)]) == 1, "spaces alone do not split it"


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=40),
    lambda inside: st.lists(inside, max_size=6) | st.dictionaries(st.text(max_size=6), inside),
    max_leaves=40,
)
ENCODERS = [metadata._JSON, sqlite_sql._JSON, export._JSON, expression._JSON]


@settings(max_examples=400, deadline=None)
@given(VALUES, SIZES, st.sampled_from(ENCODERS))
def test_json_is_written_in_pieces_as_at_once(value: Any, size: int, encoder: Any) -> None:

    with (
        mock.patch.object(large_values, "_WEIGHT", size),
        mock.patch.object(large_values, "_SIZE", size),
    ):
        assert large_values.to_json(value, encoder) == encoder.encode(value)


@pytest.mark.parametrize(
    "text", ["the quick brown fox ", "grüße aus ", "漢字", "x", "é", "Σ'", "\u0301"]
)
def test_hash_vectors_of_large_texts_are_the_same_bits(text: str) -> None:
    large = text * (300_000 // len(text))
    made = HashEmbedder(64).embed_documents([large, "short"])
    with (
        mock.patch.object(large_values, "_SIZE", len(large)),
        mock.patch.object(hashing, "_WORDS_AT_ONCE", len(large)),
    ):
        at_once = HashEmbedder(64).embed_documents([large, "short"])
    assert np.array_equal(made, at_once)
