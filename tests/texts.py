"""Texts of all of Unicode, and their words as people select them; for hypothesis and for loops."""

from __future__ import annotations

import re
import sys
import unicodedata
from unicodedata import name

from hypothesis import strategies as st

CODES = "C++ C# .NET v1.2.3 19.99 $19.99 node.js user@example.com KX-4711 snake_case don't".split()
SIGNS = "# → ™ ++ € § ∑ -> => != && %d <b> 50% ¨ ^_^ ... - — :) © ½ ≠ ⇒ ≤ ° ※ † ✓ ♥".split()
EMOJI = "👍 🚀 👍🏽 👨‍👩‍👧 🏳️‍🌈 🇩🇪 🇫🇷🇪🇸 1️⃣ #️⃣ ❤️ 🤷‍♀️ 🏴󠁧󠁢󠁥󠁮󠁧󠁿".split()
WITHOUT_SPACES = (
    "北京 北京是中国的首都 手机 iPhone手机 第3章 東京タワー カタカナ ひらがな 한국 서울 서울은 "
    "서울입니다 กรุงเทพ น้ำ ກຳ ວຽງຈັນ ភ្នំពេញ ရန်ကုန် 𠮷野家 ﾊﾝｶｸ"
).split()
COMBINED = (
    "за́мок ẹ̀kọ́ İstanbul STRASSE straße ﬁnance m² H₂O x₂ ½ 5½ ①② Ⅷ ﷺ Ǆ ﬀ ＫＸ４７ हिन्दी क़लम "
    "עִבְרִית كِتَابٌ سَلَام می‌خواهم co­operate Ελλάδα Ἀθῆναι Việt Brand™ №5 20℃ ᾳ ŉ ẛ"
).split()
FRAGMENTS = [*CODES, *SIGNS, *EMOJI, *WITHOUT_SPACES, *COMBINED]
_SEEN_BY_NOBODY = "\u115f\u1160\u3164\uffa0"

_anything = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
_of_marks = st.text(st.characters(categories=["Mn", "Mc", "Me", "Lo", "Cf"]), max_size=8)
_of_signs = st.text(st.characters(categories=["Sm", "Sc", "Sk", "So", "No", "Po"]), max_size=8)
_ascii = st.text(st.characters(min_codepoint=1, max_codepoint=127), max_size=12)
_fragment = st.sampled_from(FRAGMENTS)
_typed = _fragment.map(lambda text: unicodedata.normalize("NFD", text))
_piece = st.one_of(
    _anything, _of_marks, _of_signs, _ascii, _fragment, _typed, st.just("plain word")
)
texts = st.lists(
    st.tuples(_piece, st.sampled_from(["", " ", "\n", ", "])), min_size=1, max_size=5
).map(lambda drawn: "".join(part + space for part, space in drawn))
"""Any text, blank ones too."""


def words_of(text: str) -> list[str]:
    """A text's words: what stands between spaces, and each run of letters, marks and digits."""
    return list(dict.fromkeys([*text.split(), *_runs(text)]))


def _runs(text: str) -> list[str]:
    shape = "".join(c if unicodedata.category(c)[0] in "LMN" else " " for c in text)
    return [run for run in shape.split(" ") if any(map(_is_seen, run))]


def _is_seen(character: str) -> bool:
    return unicodedata.category(character)[0] in "LN" and character not in _SEEN_BY_NOBODY


def every_character() -> list[str]:
    """Every code point; of those in long rows of one kind, and without a name, some."""
    row = re.compile("CJK UNIFIED|HANGUL SYLLABLE|TANGUT|EGYPTIAN|CUNEIFORM|$")
    characters = map(chr, [*range(1, 0xD800), *range(0xE000, sys.maxunicode + 1)])
    return [c for c in characters if c < "\xff" or ord(c) % 61 == 0 or not row.match(name(c, ""))]
