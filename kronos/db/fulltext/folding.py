"""How a text is read into words: one function for the texts of a store and for questions.

It owns what a word is, and knows no database. A word's tokens are made of lower-case letters and
digits of ASCII, of letters that every database leaves as they are, and of private characters that
stand for all others: any program can find them by cutting at spaces.

Its promises, for every text of Unicode:

- A text's words are found in its fold. Whatever stands between two spaces is at least one word, and
  so is each run of letters, marks and digits. A question with it holds the same words.
- It makes no difference how a character was typed: canonically equal texts have equal folds. Case,
  width, ligatures, superscripts and the accents of Latin and Greek letters are folded away. So are
  accents and vowel points that stand by themselves (stress marks, harakat, niqqud), soft hyphens
  and joiners. Marks that are part of a letter stay: vowel signs, the tones of Thai.
- Letters of scripts that put no spaces between words are read by overlapping pairs, and the last
  one of a run once more by itself. So every run of them is found in every longer one.
- Emoji and signs such as `+`, `#`, `→` and `€` are words. Punctuation is a word only where it
  stands alone between spaces, or beside a sign: `->`. Both count once a text, however often they
  come: a page of code is not longer for its signs.
- Plain text is its own fold: ASCII, the letters of Europe, Arabic and Hebrew, and no sign. The
  tokenizer `unicode61` reads it as it reads the tokens of its fold.

A change of what a fold is needs a migration that has all texts folded anew; see
`kronos.db.fulltext.base`. Another version of Python may read characters that are new in Unicode
differently.
"""

from __future__ import annotations

import functools
import operator
import re
import unicodedata
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

from kronos.concurrency.large_values import split_text
from kronos.db.fulltext.characters import ALL_CODES, CODES, COMPATIBLE, KINDS, SIGNS

if TYPE_CHECKING:
    from kronos.settings import Tokenizer

Kind: TypeAlias = Literal["word", "pair", "letter", "end", "sign", "marks"]


class Word(NamedTuple):
    """One word of a question."""

    text: str
    """As it stands in folds: a token, or several tokens with spaces between them."""
    kind: Kind
    """`pair`: two letters of a script without spaces. `letter`: one that is all of its run. `end`:
    the last letter of a longer run, which says no more than the pair before it. `sign`: an emoji,
    or signs side by side. `marks`: punctuation, or unreadable characters, alone between spaces."""
    is_attached: bool = False
    """No space separates it from the word before: the two are one, as `C` and `++` are."""


def fold(text: str, tokenizer: Tokenizer) -> str | None:
    """The text that a full-text index reads instead of another one.

    Args:
        text: any text.
        tokenizer: how the index reads. For "trigram" the fold has spaces at both ends too, so that
            a word of one letter makes a trigram, and letters of scripts without spaces stand apart.

    Returns:
        The tokens, with spaces between them, or a text that unicode61 reads as these; None where
        the text is its own fold.
    """
    parts = [*split_text(text, _clause_end)]
    if tokenizer == "trigram":
        return f" {_tokens(parts, list, plain=_split)} "
    if all(map(_is_plain, parts)):
        return None
    if any(_UNREAD.search(part) or _ELLIPSIS in part for part in parts):
        return _tokens(parts, _overlapping)
    return _with_signs(parts)


def read(question: str, tokenizer: Tokenizer) -> Iterator[Word]:
    """The words of a question, in their order.

    Args:
        question: any text.
        tokenizer: how the index reads that is asked. A pair of "trigram" is two tokens.
    """
    for part in split_text(question):
        if _is_plain_ascii(part):  # the same result, and cheaper
            for between, word in _ASCII_WORD.findall(part.lower()):
                yield Word(word, "word", _attaches(between))
        else:
            yield from _read(part, " " if tokenizer == "trigram" else "")


def _read(question: str, between: str) -> Iterator[Word]:
    for name, parts, is_attached in _pieces(question):
        codes = ALL_CODES if name == "marks" else CODES
        for place, (text, kind) in enumerate(_asked(name, parts, between)):
            yield Word(text.translate(codes), kind, is_attached or place > 0)


def _asked(name: str, parts: list[str], between: str) -> list[tuple[str, Kind]]:
    """The words of a piece that a search looks up; of letters "a", "b", "c" these are "ab", "bc".

    Args:
        name: the piece's name in `_PIECES`.
        parts: its words, letters or signs.
        between: what separates the letters of a pair.
    """
    if name == "word":
        return [(part, "word") for part in parts]
    if name == "marks":
        return [(parts[0], "marks")]
    if name != "run":
        return [(" ".join(parts), "sign")]
    if len(parts) == 1:
        return [(parts[0], "letter")]
    pairs: list[tuple[str, Kind]] = [(between.join(pair), "pair") for pair in pairwise(parts)]
    return pairs if between else [*pairs, (parts[-1], "end")]


_CLAUSE_END = re.compile(
    "[\u3041-\u3096\u30a1-\u30fa\u4e00-\u9fff\uac00-\ud7a3][\u3001\u3002\uff01\uff0c\uff1b\uff1f]"
    "(?=[\u3041-\u3096\u30a1-\u30fa\u4e00-\u9fff\uac00-\ud7a3])"
)
"""Punctuation between two letters of Chinese, Japanese or Korean, which put no spaces there."""


def _clause_end(text: str, start: int, end: int) -> int | None:
    """A place in a part of a text, behind punctuation, where no word or sign goes on."""
    match = _CLAUSE_END.search(text, start, end)
    return None if match is None else match.end()


# -- Plain text ----------------------------------------------------------------------------------

_BESIDE_SIGNS = r"\-!:/\\?."
"""Punctuation that is part of a sign beside it: `->`, `!=`."""
# Not ASCII, nor a letter that unicode61 reads as `_pieces` does, nor a quote, dash or full stop.
_UNREAD = re.compile(
    "[^\x00-\x7f\xa0\u00c0-\u00d6\u00d8-\u00de\u00e0-\u00f6\u00f8-\u0131\u0134-\u013e"
    "\u0141-\u0148\u014a-\u017e\u0400-\u0481\u048a-\u04bf\u04d0-\u04f5\u05d0-\u05ea"
    "\u0621-\u063a\u0641-\u064a\u0660-\u0669\u1ea0-\u1ef9\xa1\xab\xb7\xbb\xbf"
    "\u2010\u2012-\u2015\u2018-\u201e\u2026\u060c\u061b\u061f]"
)
_ELLIPSIS = "\u2026"
"""Stands for three full stops, which may stand beside a sign."""
_BEFORE_SIGN = re.compile(rf"[{_BESIDE_SIGNS}]+\Z")
_SIGN = re.compile(rf"[{SIGNS}][{SIGNS}{_BESIDE_SIGNS}]*")
# Punctuation that stands alone; a full stop that begins a word: `.NET`.
_ODD = re.compile(rf"(?<!\S)(?:(?P<marks>(?:[^\w\s{SIGNS}]|_)+)(?!\S)|\.(?=[^\W_]))")
# Roughly the same for ASCII text in which `_shape` has replaced each character.
_ODD_SHAPE = re.compile(rb" [.o](?:[.o]* |(?<=o)a)")


def _shape(character: str) -> str:
    if character in SIGNS:
        return "+"
    if character == ".":
        return "o"
    return " " if character.isspace() else "a" if character.isalnum() else "."


_ASCII = [chr(code) for code in range(128)]
_SHAPES = "".join(map(_shape, _ASCII)).encode() + bytes(128)
_SPACED = "".join(c.lower() if c.isalnum() else " " for c in _ASCII).encode() + bytes(128)


def _is_plain(text: str) -> bool:
    """Whether a text has no sign, no odd punctuation, and no letter that must be folded."""
    if text.isascii():  # looking at its shape is cheaper
        return _is_plain_ascii(text)
    return not (_UNREAD.search(text) or _SIGN.search(text) or _ODD.search(text))


def _is_plain_ascii(text: str) -> bool:
    """The same, and whether it is ASCII: most texts are."""
    if not text.isascii():
        return False
    shape = b" %b " % text.encode().translate(_SHAPES)
    return b"+" not in shape and not _ODD_SHAPE.search(shape)


def _with_signs(texts: list[str]) -> str:
    """The fold of a text without other letters than plain ones: its signs are spelled."""
    marks: dict[str, None] = {}
    signs: set[str] = set()

    def spell_odd(match: re.Match[str]) -> str:
        if match["marks"] is not None:
            marks[match[0][:_LONGEST].translate(ALL_CODES)] = None
            return ""
        return spell(match[0])

    def spell_sign(match: re.Match[str]) -> str:
        start = match.start()
        beside = _BEFORE_SIGN.search(match.string, start - 2, start)
        return spell(beside[0] + match[0] if beside else match[0])

    def spell(found: str) -> str:
        if found in signs:
            return " "
        signs.add(found)
        return f" {_spelled(found)} "

    spelled = [_SIGN.sub(spell_sign, _ODD.sub(spell_odd, text)) for text in texts]
    return " ".join(["".join(spelled), *marks])


@functools.lru_cache(maxsize=1024)
def _spelled(signs: str) -> str:
    return " ".join(signs[:_LONGEST]).translate(CODES)


# -- Words ---------------------------------------------------------------------------------------

_LONGEST = 16
"""Of signs side by side, at most this many count: a ruled line may have a thousand."""


def _tokens(
    texts: list[str],
    of_run: Callable[[list[str]], list[str]],
    plain: Callable[[str], str] | None = None,
) -> str:
    """The tokens of the parts of a text.

    Args:
        texts: the parts.
        of_run: makes the tokens of letters of a script without spaces.
        plain: makes the tokens of a plain part, at a fraction of the cost.
    """
    made: list[str] = []
    marks: dict[str, None] = {}
    signs: set[str] = set()

    def read(text: str) -> str:
        tokens: list[str] = []
        for name, parts, _ in _pieces(text):
            if name == "word":
                tokens += parts
            elif name == "run":
                tokens += of_run(parts)
            elif name == "marks":
                marks[parts[0].translate(ALL_CODES)] = None
            elif (sign := " ".join(parts)) not in signs:
                signs.add(sign)
                tokens.append(sign)
        return " ".join(tokens).translate(CODES)

    for text in texts:
        made.append(plain(text) if plain and _is_plain_ascii(text) else read(text))
    return " ".join([" ".join(filter(None, made)), *marks])


def _split(text: str) -> str:
    """The words of a plain part of a text."""
    return " ".join(text.encode().translate(_SPACED).decode().split())


def _overlapping(letters: list[str]) -> list[str]:
    """Letters "a", "b", "c" as "ab", "bc", "c"."""
    return [*map(operator.add, letters, letters[1:]), letters[-1]]


def _pieces(text: str) -> Iterator[tuple[str, list[str], bool]]:
    """The pieces of a text, as `_PIECES` names them.

    Yields:
        The name; the words, letters or signs of the piece; whether it is attached to the last one.
    """
    normal = _normal(text)
    kinds = normal.translate(KINDS)
    last = -1
    for match in _PIECES.finditer(kinds):
        start, end = match.span()
        name = match.lastgroup or ""
        is_attached = start == last or _attaches(normal[max(last, 0) : start])
        yield name, _parts(name, normal[start:end], kinds[start:end]), is_attached
        last = end


def _attaches(between: str) -> bool:
    """Whether the text between two words makes them one; it does not in `don't`."""
    return between not in ("'", "\u2019") and between.split() == [between]


def _parts(name: str, piece: str, kinds: str) -> list[str]:
    if name == "word":
        return [piece] if piece.isalnum() else _joined(piece, kinds)
    if name == "run":
        return [piece[slice(*letter.span())] for letter in _LETTER.finditer(kinds)]
    if name == "emoji":
        more = zip(piece[1:], kinds[1:], strict=True)
        return [piece[0], *(sign for sign, kind in more if kind == "s")]
    return [*piece[:_LONGEST]] if name == "operator" else [piece[:_LONGEST]]


def _normal(text: str) -> str:
    """A text without differences of case, and without those that Unicode calls compatible."""
    if text.isascii():
        return text.lower()
    composed = unicodedata.normalize("NFC", text).translate(COMPATIBLE)
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", composed).casefold())


def _joined(word: str, kinds: str) -> list[str]:
    """A word; where joiners or soft hyphens stand in it, the parts that they join, then all."""
    if "i" not in kinds and "j" not in kinds:
        return [word]
    parts = [word[slice(*part.span())] for part in _PART.finditer(kinds)]
    whole = "".join(c for c, kind in zip(word, kinds, strict=True) if kind not in "ij")
    return [*parts, unicodedata.normalize("NFC", whole)]


# Over the kinds of a text's characters; see `KINDS`.
_PIECES = re.compile(
    r"""
      (?P<keycap>   da*k(?![wdmka]) )
    | (?P<flag>     r[ija]*r )
    | (?P<marks>    (?<![^ ])[qpfija]+(?![^ ]) )
    | (?P<operator> [pf]{0,2}o[opf]* )
    | (?P<stop>     (?<![^ ])f(?=[wdc]) )
    | (?P<emoji>    [srt][ita]*(?:j[ija]*s[ita]*)* )
    | (?P<run>      (?:c[mka]*[ij]*)+ )
    | (?P<word>     [wdmk][wdmka]*(?:[ij]+[wdmka]+)* )
    """.replace("[^ ]", r"[^\ ]"),
    re.VERBOSE,
)
_LETTER = re.compile("c[^c]*")
_PART = re.compile("[wdmk][wdmka]*")
_ASCII_WORD = re.compile("([^a-z0-9]*)([a-z0-9]+)")
