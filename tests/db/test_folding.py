"""How texts are read into words: the same for a text and a question, in all of Unicode."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Sequence
from typing import Any
from unicodedata import normalize

import pytest
from hypothesis import given, settings

from kronos.db.fulltext.characters import has_letters
from kronos.db.fulltext.folding import Word, fold, read
from kronos.db.fulltext.fts5 import TOKENIZERS
from kronos.db.sqlite_driver import driver
from tests.texts import EMOJI, FRAGMENTS, every_character, texts, words_of

BY_WORDS: Any = "unicode61"
NIGHTLY = settings.get_current_profile_name() == "nightly"


def read_by_sqlite(written: Sequence[str]) -> list[list[str]]:
    """The tokens of the folds of texts, as SQLite cuts them, in their order."""
    found: list[list[str]] = [[] for _ in written]
    connection: sqlite3.Connection = driver.connect(":memory:")
    connection.execute(f"CREATE VIRTUAL TABLE f USING fts5(x, tokenize='{TOKENIZERS[BY_WORDS]}')")
    connection.execute("CREATE VIRTUAL TABLE v USING fts5vocab(f, instance)")
    folds = [(row, fold(text, BY_WORDS) or text) for row, text in enumerate(written)]
    connection.executemany("INSERT INTO f (rowid, x) VALUES (?, ?)", folds)
    for row, term in connection.execute("SELECT doc, term FROM v ORDER BY doc, offset"):
        found[row].append(term)
    connection.close()
    return found


def tokens(text: str) -> set[str]:
    return {token for word in read(text, BY_WORDS) for token in word.text.split()}


def typed(text: str) -> list[str]:
    return [text, normalize("NFC", text), normalize("NFD", text)]


@pytest.mark.parametrize("form", ["{0}", "a{0}b", "北{0}京 {0}"])
def test_sqlite_reads_of_every_character_what_the_fold_says(form: str) -> None:
    written = [text for c in every_character() if (text := form.format(c)).strip()]
    wrong = [
        text
        for text, found in zip(written, read_by_sqlite(written), strict=True)
        if not found or {*found} != tokens(text)
    ]
    assert wrong == []


@settings(max_examples=20_000 if NIGHTLY else 300, deadline=None)
@given(texts)
def test_sqlite_reads_of_every_text_what_the_fold_says(text: str) -> None:
    assert {*read_by_sqlite([text])[0]} == tokens(text)


def test_how_a_character_was_typed_makes_no_difference() -> None:
    for text in [f"a{c}b {c}" for c in every_character()] + FRAGMENTS:
        assert len({fold(form, "trigram") for form in typed(text)}) == 1
        assert len({frozenset(tokens(form)) for form in typed(text)}) == 1


@settings(max_examples=20_000 if NIGHTLY else 300, deadline=None)
@given(texts)
def test_every_word_of_a_text_stands_in_its_fold(text: str) -> None:
    (by_words,), by_trigrams = read_by_sqlite([text]), fold(text, "trigram")
    assert by_trigrams is not None
    for word in words_of(text):
        for form in typed(word):
            asked = [each for each in read(form, BY_WORDS) if each.kind != "end"]
            assert asked
            assert all(is_fallback(by_words, each) for each in asked)
            assert all(is_part_of(by_trigrams, each) for each in read(form, "trigram"))


def is_fallback(found: list[str], word: Word) -> bool:
    wanted = word.text.split()
    if word.kind == "letter":
        return any(token.startswith(wanted[0]) for token in found)
    places = range(len(found) - len(wanted) + 1)
    return any(found[place : place + len(wanted)] == wanted for place in places)


def is_part_of(found: str, word: Word) -> bool:
    return (word.text if len(word.text) > 2 else f" {word.text} ") in found


@pytest.mark.parametrize(
    "text",
    [
        "Ada keeps bees on the roof (since 2019); they're fine, aren't they?",
        "see https://example.com/a_b.c, or kronos/db/fulltext/fts5.py: v1.2.3 costs 19.99",
        "Die Höhe des Gebäudes überrascht – “wirklich”… État, año, český, łódź, Ünïcödé",
        "Москва, ёлка, Київ: їжак",
    ],
)
def test_plain_text_is_its_own_fold(text: str) -> None:
    assert fold(text.replace(" – ", ", "), "porter") is None
    assert fold(f"{text} C++", "porter") is not None
    assert fold(text, "trigram") is not None


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("m² ½ ﬁn ＫＸ４７ ①", "m2 1/2 fin kx47 1"),
        ("İstanbul STRASSE ΑΘΗΝΑ Éloïse", "istanbul straße Αθήνα eloise"),
        ("за́мок ẹ̀kọ́ כָּתַב كِتَابٌ", "замок eko כתב كتاب"),
        ("co\xadoperate ❤️ 👍🏽", "co operate cooperate ❤ 👍"),
        ("Brand™ №5 20℃", "Brand tm no 5 20 °c"),
        ("¡qué!", "que"),
    ],
)
def test_what_is_folded_away(text: str, same: str) -> None:
    assert read_by_sqlite([text]) == read_by_sqlite([same])


APART = "भाषा:भाष กำ:กา かき:がき мой:мои =>:-> ≠:= 🇩🇪:🇩🇰 1️⃣:2️⃣ C++:C# .NET:NET क़:क ø:o 👩‍🚀:👩‍🎤"


@pytest.mark.parametrize("pair", APART.split())
def test_what_is_told_apart(pair: str) -> None:
    one, other = pair.split(":")
    assert tokens(one) != tokens(other)


@pytest.mark.parametrize("sign", EMOJI)
def test_an_emoji_is_one_word(sign: str) -> None:
    found = [word for word in read(f"nice {sign} work", BY_WORDS) if word.kind == "sign"]
    assert len(found) == (2 if sign == "🇫🇷🇪🇸" else 1)


def test_letters_without_spaces_are_read_by_pairs() -> None:
    assert fold("北京是 iPhone手机 第3章", "porter") == "北京 京是 是 iphone 手机 机 第 3 章"
    assert fold("北京是 iPhone手机 第3章", "trigram") == " 北 京 是 iphone 手 机 第 3 章 "
    assert [*read("北京是", "trigram")] == [
        Word("北 京", "pair"),
        Word("京 是", "pair", is_attached=True),
    ]
    assert [word.kind for word in read("北京是 京", "porter")] == ["pair", "pair", "end", "letter"]


def test_a_page_of_code_is_not_longer_for_its_signs() -> None:
    once, often = "a = 1 - 2", "a = 1 - 2\nb = 3 - 4\n" * 50
    (signs,) = {len(tokens(text) - tokens("a 1 2 b 3 4")) for text in (once, often)}
    assert signs == 2
    assert len(read_by_sqlite([often])[0]) == 6 * 50 + signs


HOSTILE = {
    "dashes": "-" * 10**6,
    "two marks in turn": "a" + "-!" * 500_000,
    "joiners": "\u200d" * 10**6,
    "an emoji and joiners": "👍" + "\u200d" * 10**6,
    "signs and marks": "+-" * 500_000,
    "a digit and selectors": "1" + "\ufe0f" * 10**6,
    "accents": "\u0301" * 10**6,
    "halves of flags": "🇩\ufe0f" * 300_000,
    "letters that are joined": "a\u200c" * 300_000,
    "one run": "北" * 10**6,
    "one word": "é" * 10**6,
    "quotes": "'" * 10**6,
    "full stops": ". " * 300_000,
    "a letter and its marks": "ก" + "ิ" * 10**6,
}


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_text_is_read_in_a_time_like_its_length(tokenizer: Any, name: str) -> None:
    started = time.process_time()
    fold(HOSTILE[name], tokenizer)
    assert time.process_time() - started < 10


def test_signs_alone_have_no_letters() -> None:
    assert [has_letters(text) for text in ("👍", "->", "…", "C++", "½", "北")] == [False] * 3 + [
        True
    ] * 3
