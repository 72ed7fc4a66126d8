"""How a text is read into words: by one function, for the texts of a store and for questions.

It owns what a word is, and knows no database. A word's tokens are made of lower-case letters and
digits of ASCII, of letters that every SQLite leaves as they are, and of private characters that
stand for all others: any program can find them, by cutting at spaces.

Its promises, for every text of Unicode:

- A text's words are found in its fold. Whatever stands between two spaces is at least one word, and
  so is each run of letters, marks and digits. A question with it holds the same words.
- It makes no difference how a character was typed: canonically equal texts have equal folds. Case,
  width, ligatures, superscripts and the accents of Latin and Greek letters are folded away. So are
  accents and vowel points that stand by themselves (stress marks, harakat, niqqud), soft hyphens
  and joiners. Marks that are part of a letter stay: vowel signs, the tones of Thai.
- Letters of scripts that put no spaces between words are read by overlapping pairs, and the last
  one of a run once more by itself. So every run of them is found in every longer one.
- Emoji and signs such as `+`, `#`, `→` and `€` are words. Punctuation is one only where it stands
  alone between spaces, or beside a sign: `->`. Both count once a text, however often they come: a
  page of code is not longer for its signs.
- Plain text is its own fold: ASCII, the letters of Europe, Arabic and Hebrew, and no sign.
  SQLite's unicode61 reads it as it reads its tokens.

Whoever changes what a fold is adds a migration that has all texts folded anew; see
`kronos.db.fulltext.fts5`. Another Python may read characters that are new in Unicode in another
way.
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

if TYPE_CHECKING:
    from kronos.settings import Tokenizer

Kind: TypeAlias = Literal["word", "pair", "letter", "end", "sign", "marks"]


class Word(NamedTuple):
    """One word of a question."""

    text: str
    """As it stands in folds: a token, or several with spaces between them."""
    kind: Kind
    """`pair`: two letters of a script without spaces. `letter`: one that is all of its run. `end`:
    the last one of a longer run, which says no more than the pair before it. `sign`: an emoji, or
    signs side by side. `marks`: punctuation, or what nobody can read, alone between spaces."""
    is_attached: bool = False
    """No space parts it from the word before: the two are one, as `C` and `++` are."""


def fold(text: str, tokenizer: Tokenizer) -> str | None:
    """What an index of words is to read instead of a text.

    Args:
        text: any text.
        tokenizer: how the index reads. For "trigram" there are spaces at both ends too, so that a
            word of one letter makes a trigram, and letters of scripts without spaces stand apart.

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
        if _is_plain_ascii(part):  # the same at a third of the cost
            for between, word in _ASCII_WORD.findall(part.lower()):
                yield Word(word, "word", _attaches(between))
        else:
            yield from _read(part, " " if tokenizer == "trigram" else "")


def _read(question: str, between: str) -> Iterator[Word]:
    for name, parts, is_attached in _pieces(question):
        codes = _ALL_CODES if name == "marks" else _CODES
        for place, (text, kind) in enumerate(_asked(name, parts, between)):
            yield Word(text.translate(codes), kind, is_attached or place > 0)


def _asked(name: str, parts: list[str], between: str) -> list[tuple[str, Kind]]:
    """What of a piece is looked for; of letters "a", "b", "c" that is "ab" and "bc"."""
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


def has_letters(text: str) -> bool:
    """Whether a letter or a digit stands in a text, and not signs and punctuation alone."""
    return any(map(str.isalnum, text))


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

_SIGNS = "#$%&*+<=>@^|~"
"""The signs of ASCII. Unicode calls some of them punctuation; people look for them all the same."""
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
"""Three full stops, which may stand beside a sign."""
_BEFORE_SIGN = re.compile(rf"[{_BESIDE_SIGNS}]+\Z")
_SIGN = re.compile(rf"[{_SIGNS}][{_SIGNS}{_BESIDE_SIGNS}]*")
# Punctuation that stands alone; a full stop that begins a word: `.NET`.
_ODD = re.compile(rf"(?<!\S)(?:(?P<marks>(?:[^\w\s{_SIGNS}]|_)+)(?!\S)|\.(?=[^\W_]))")
# The same, roughly, of ASCII text whose characters were replaced by what `_shape` says of them.
_ODD_SHAPE = re.compile(rb" [.o](?:[.o]* |(?<=o)a)")


def _shape(character: str) -> str:
    if character in _SIGNS:
        return "+"
    if character == ".":
        return "o"
    return " " if character.isspace() else "a" if character.isalnum() else "."


_ASCII = [chr(code) for code in range(128)]
_SHAPES = "".join(map(_shape, _ASCII)).encode() + bytes(128)
_SPACED = "".join(c.lower() if c.isalnum() else " " for c in _ASCII).encode() + bytes(128)


def _is_plain(text: str) -> bool:
    """Whether a text has no sign, no odd punctuation, and no letter that must be folded."""
    if text.isascii():  # a look at its shape takes a third of the time
        return _is_plain_ascii(text)
    return not (_UNREAD.search(text) or _SIGN.search(text) or _ODD.search(text))


def _is_plain_ascii(text: str) -> bool:
    """The same, and whether it is ASCII: most texts are."""
    if not text.isascii():
        return False
    shape = b" %b " % text.encode().translate(_SHAPES)
    return b"+" not in shape and not _ODD_SHAPE.search(shape)


def _with_signs(texts: list[str]) -> str:
    """Parts of a text that needs no folding: signs are spelled, unicode61 reads the rest."""
    marks: dict[str, None] = {}
    signs: set[str] = set()

    def spell_odd(match: re.Match[str]) -> str:
        if match["marks"] is not None:
            marks[match[0][:_LONGEST].translate(_ALL_CODES)] = None
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
    return " ".join(signs[:_LONGEST]).translate(_CODES)


# -- Words ---------------------------------------------------------------------------------------

_LONGEST = 16
"""So many signs side by side are told apart from more: a ruled line may have a thousand."""


def _tokens(
    texts: list[str],
    of_run: Callable[[list[str]], list[str]],
    plain: Callable[[str], str] | None = None,
) -> str:
    """The tokens of the parts of a text.

    Args:
        texts: the parts.
        of_run: makes those of letters of a script without spaces.
        plain: makes those of a plain part, at a tenth of the cost.
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
                marks[parts[0].translate(_ALL_CODES)] = None
            elif (sign := " ".join(parts)) not in signs:
                signs.add(sign)
                tokens.append(sign)
        return " ".join(tokens).translate(_CODES)

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
    """What a text is made of, by the names of `_PIECES`.

    Yields:
        The name; the words, letters or signs of the piece; whether it is attached to the last one.
    """
    normal = _normal(text)
    kinds = normal.translate(_KINDS)
    last = -1
    for match in _PIECES.finditer(kinds):
        start, end = match.span()
        name = match.lastgroup or ""
        is_attached = start == last or _attaches(normal[max(last, 0) : start])
        yield name, _parts(name, normal[start:end], kinds[start:end]), is_attached
        last = end


def _attaches(between: str) -> bool:
    """Whether what stands between two words makes them one; it does not in `don't`."""
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
    """A text without the differences of case, and those that Unicode calls compatible."""
    if text.isascii():
        return text.lower()
    composed = unicodedata.normalize("NFC", text).translate(_COMPATIBLE)
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", composed).casefold())


def _joined(word: str, kinds: str) -> list[str]:
    """A word; where joiners or soft hyphens stand in it, what they join, and then all of it."""
    if "i" not in kinds and "j" not in kinds:
        return [word]
    parts = [word[slice(*part.span())] for part in _PART.finditer(kinds)]
    whole = "".join(c for c, kind in zip(word, kinds, strict=True) if kind not in "ij")
    return [*parts, unicodedata.normalize("NFC", whole)]


# -- Characters ----------------------------------------------------------------------------------

# Over the kinds of a text's characters, as `_kind` gives them: w letter or number, d digit of
# ASCII, c letter of a script without spaces, m mark that is part of a letter, a accent, or what
# nobody sees, i soft hyphen and its like, j joiner, s sign or emoji, o sign of ASCII, r half of a
# flag, t tone of skin, k keycap, p punctuation that stands beside signs, f full stop, q other
# punctuation.
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
_BOUNDARY = "\x1a"
"""Parts what is read apart, and is no space."""
_INVISIBLE_LETTERS = "\u115f\u1160"
"""What stands for a missing half of a Korean syllable."""
_INVISIBLE = re.compile(
    f"[{_INVISIBLE_LETTERS}\u034f\u17b4\u17b5\u180b-\u180f\ufe00-\ufe0f\U000e0100-\U000e01ef]"
)
_JOINER, _ZERO_WIDTH_SPACE, _KEYCAP = "\u200d", "\u200b", "\u20e3"
_FRACTION_SLASH = "\u2044"
_ASCII_WORD = re.compile("([^a-z0-9]*)([a-z0-9]+)")
_BY_ITSELF = 0xF0000
"""The first of the private characters that stand for accents by themselves: they are signs."""
_MORE_SIGNS = "§¶†‡•‰‱※"
# Han, Kana, Bopomofo, Yi and Hangul; Thai, Lao, Myanmar, Khmer and the scripts of the Tai.
_WITHOUT_SPACES = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u1950-\u19df\u1a20-\u1aaf\u2e80-\u2fdf"
    "\u3005-\u3007\u3021-\u3029\u3031-\u303c\u3041-\u318f\u31a0-\u31bf\u31f0-\u31ff\u3400-\u4dbf"
    "\u4e00-\ua4cf\ua960-\ua97f\ua9e0-\ua9ff\uaa60-\uaadf\uac00-\ud7ff\uf900-\ufaff"
    "\U00011700-\U0001174f\U00016fe0-\U00018cff\U0001aff0-\U0001b2ff\U00020000-\U0003ffff]"
)


def _kind(character: str) -> str:
    """What a character is in a text; see `_PIECES`."""
    known = _KNOWN.get(character)
    if known is not None:
        return known
    if character.isspace():
        return " "
    category = unicodedata.category(character)
    if category == "Cf":
        return "i"
    if category[0] == "M" or character in _INVISIBLE_LETTERS:
        return "a" if _is_left_out(character) else "m"
    if category not in ("Nd", "No") and category[0] in "LNC" and _WITHOUT_SPACES.match(character):
        return "c"  # also a Chinese character that this Python does not know
    if category[0] in "LN":
        return "w"
    # What else it does not know is most likely a new emoji.
    return "s" if category[0] == "S" or category in ("Cn", "Co") else "q"


_KNOWN = {
    **dict.fromkeys("0123456789", "d"),
    **dict.fromkeys(_SIGNS, "o"),
    **dict.fromkeys("-!:/\\?", "p"),
    **dict.fromkeys(_MORE_SIGNS, "s"),
    **dict.fromkeys(map(chr, range(0x1F1E6, 0x1F200)), "r"),
    **dict.fromkeys(map(chr, range(0x1F3FB, 0x1F400)), "t"),
    ".": "f",
    "`": "q",
    _FRACTION_SLASH: "q",
    _ZERO_WIDTH_SPACE: "q",
    _JOINER: "j",
    _KEYCAP: "k",
}


def _is_left_out(mark: str) -> bool:
    """Whether many who write leave a mark out, or nobody sees it.

    By its combining class: those are the points of Hebrew and Arabic, what is drawn over a letter,
    and what stands above or below. Vowel signs, viramas, nuktas, the tones of Thai and Lao have
    other classes.
    """
    where = unicodedata.combining(mark)
    return where == 1 or 10 <= where <= 36 or where >= 200 or bool(_INVISIBLE.match(mark))


def _compatible(character: str) -> str:
    """What a character stands for, where that is one letter, or must be kept from its neighbours.

    A sign that stands for letters or digits is no part of the word before it: `Brand™`, `5½`.
    """
    compatible = unicodedata.normalize("NFKC", character)
    category = unicodedata.category(character)
    is_small = unicodedata.decomposition(character).startswith(("<super>", "<sub>"))
    is_sign = category[0] == "S" or (category == "No" and not is_small)
    if character.isspace() or compatible == character:
        return character
    if compatible[0] == " " and not has_letters(compatible):  # an accent without its letter
        return chr(_BY_ITSELF + ord(character))
    if is_sign or any(map(str.isspace, compatible)):
        return _BOUNDARY + _BOUNDARY.join(compatible.split()) + _BOUNDARY
    return compatible if len(compatible) == 1 else character


def _code(character: str) -> str:
    """How a character stands in a token."""
    if _kind(character) in "aij":
        return ""
    if character == " ":  # between tokens
        return character
    return "".join(c if _is_safe(c) else _private(c) for c in _without_accents(character))


def _without_accents(character: str) -> str:
    """A letter; one of Latin or Greek without its accents."""
    whole = unicodedata.normalize("NFD", character)
    if whole[0] >= "\u0400" or not whole[0].isalpha():
        return character
    return "".join(part for part in whole if not _is_left_out(part))


def _is_safe(character: str) -> bool:
    """Whether every SQLite takes a character that is folded for a letter, and leaves it as it is.

    Its tables are those of Unicode 6.1; Python keeps those of 3.2 for ever.
    """
    return unicodedata.ucd_3_2_0.category(character)[0] in "LN"


def _private(character: str) -> str:
    """Two private characters, which SQLite takes for letters, in the place of any other one."""
    high, low = divmod(ord(character), 0x1000)
    return chr(0xE000 + high) + chr(0xE800 + low)


class _Table(dict[int, str]):
    """What `str.translate` needs, made as characters come."""

    def __init__(self, make: Callable[[str], str]) -> None:
        super().__init__()
        self._make = make

    def __missing__(self, code: int) -> str:
        found = self[code] = self._make(chr(code))
        return found


_KINDS, _COMPATIBLE = _Table(_kind), _Table(_compatible)
_CODES, _ALL_CODES = _Table(_code), _Table(_private)
