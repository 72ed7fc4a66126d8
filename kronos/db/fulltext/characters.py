"""The characters of Unicode as folding sees them: what each is, and how it stands in a token.

It owns four tables for `str.translate`: of each character its kind, what it stands for, and two
ways to write it in a token. A token is written in characters that every database takes for letters
and leaves as they are: Python's tables of Unicode 3.2 are older than those of any database.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable

SIGNS = "#$%&*+<=>@^|~"
"""The signs of ASCII. Unicode calls some of them punctuation, but people search for them."""
_BOUNDARY = "\x1a"
"""Separates the words around it, and is no space."""
_INVISIBLE_LETTERS = "\u115f\u1160"
"""They stand for a missing half of a Korean syllable."""
_INVISIBLE = re.compile(
    f"[{_INVISIBLE_LETTERS}\u034f\u17b4\u17b5\u180b-\u180f\ufe00-\ufe0f\U000e0100-\U000e01ef]"
)
_JOINER, _ZERO_WIDTH_SPACE, _KEYCAP = "\u200d", "\u200b", "\u20e3"
_FRACTION_SLASH = "\u2044"
_BY_ITSELF = 0xF0000
"""The first of the private characters that stand for accents without a letter: they are signs."""
_MORE_SIGNS = "§¶†‡•‰‱※"
# Han, Kana, Bopomofo, Yi and Hangul; Thai, Lao, Myanmar, Khmer and the scripts of the Tai.
_WITHOUT_SPACES = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u1950-\u19df\u1a20-\u1aaf\u2e80-\u2fdf"
    "\u3005-\u3007\u3021-\u3029\u3031-\u303c\u3041-\u318f\u31a0-\u31bf\u31f0-\u31ff\u3400-\u4dbf"
    "\u4e00-\ua4cf\ua960-\ua97f\ua9e0-\ua9ff\uaa60-\uaadf\uac00-\ud7ff\uf900-\ufaff"
    "\U00011700-\U0001174f\U00016fe0-\U00018cff\U0001aff0-\U0001b2ff\U00020000-\U0003ffff]"
)


def _kind(character: str) -> str:
    """The kind of a character, as one letter: see `KINDS`."""
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
        return "c"  # includes Chinese characters that this Python does not know
    if category[0] in "LN":
        return "w"
    # Other characters that it does not know are most likely new emoji.
    return "s" if category[0] == "S" or category in ("Cn", "Co") else "q"


_KNOWN = {
    **dict.fromkeys("0123456789", "d"),
    **dict.fromkeys(SIGNS, "o"),
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
    """Whether a mark is often left out in writing, or is invisible.

    Its combining class says so: these are the points of Hebrew and Arabic, marks drawn over a
    letter, and marks above or below one. Vowel signs, viramas, nuktas, the tones of Thai and Lao
    have other classes.
    """
    where = unicodedata.combining(mark)
    return where == 1 or 10 <= where <= 36 or where >= 200 or bool(_INVISIBLE.match(mark))


def _compatible(character: str) -> str:
    """The letter that a character stands for, or a longer text kept apart from its neighbours.

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
    """How a character is written in a token."""
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
    """Whether every database takes a folded character for a letter, and leaves it as it is."""
    return unicodedata.ucd_3_2_0.category(character)[0] in "LN"


def _private(character: str) -> str:
    """Two private characters, which databases take for letters, instead of any other one."""
    high, low = divmod(ord(character), 0x1000)
    return chr(0xE000 + high) + chr(0xE800 + low)


def has_letters(text: str) -> bool:
    """Whether a text holds a letter or a digit, and not only signs and punctuation."""
    return any(map(str.isalnum, text))


class _Table(dict[int, str]):
    """A table for `str.translate`, made as characters come."""

    def __init__(self, make: Callable[[str], str]) -> None:
        super().__init__()
        self._make = make

    def __missing__(self, code: int) -> str:
        found = self[code] = self._make(chr(code))
        return found


KINDS = _Table(_kind)
"""w letter or number, d digit of ASCII, c letter of a script without spaces, m mark that is part of
a letter, a accent or an invisible mark, i soft hyphen and similar characters, j joiner, s sign or
emoji, o sign of ASCII, r half of a flag, t tone of skin, k keycap, p punctuation that stands beside
signs, f full stop, q other punctuation; a space is itself."""
COMPATIBLE = _Table(_compatible)
"""What a character stands for."""
CODES = _Table(_code)
"""How a character is written in a token of words and signs."""
ALL_CODES = _Table(_private)
"""How a character is written in a token of punctuation."""
