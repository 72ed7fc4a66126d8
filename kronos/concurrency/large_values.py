"""Work on large values in pieces, with the same result as in one go.

One call of a regular expression on a text of many megabytes, or of the JSON encoder on a list of
100,000 numbers, holds Python's global interpreter lock for tens or hundreds of milliseconds. All
other threads wait meanwhile, event loops included. Between two pieces another thread gets its turn.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from json import JSONEncoder
from typing import Any, TypeAlias

_SIZE = 2**16
"""Characters, or items, of a piece: about a millisecond of work."""
_SPACE = re.compile(r"\s")
_LONGEST_SEARCH = 1000
"""Characters that are checked one by one for a place where a text may be split."""
_WEIGHT = 2**12
"""JSON values of a piece; a text counts as one for each 16 characters."""

FindPlace: TypeAlias = Callable[[str, int, int], "int | None"]
"""Finds a place in `text[start:end]`, at least 1, before which a text may be split; None: none."""


def find_all(pattern: re.Pattern[str], text: str) -> list[str]:
    """All matches of a pattern, as `findall` returns them.

    Args:
        pattern: has no groups and no lookbehind, and matches no empty text. Whatever it matches,
            it also matches the beginning of, as a pattern for words does.
        text: any text.
    """
    if len(text) <= _SIZE:
        return pattern.findall(text)
    found: list[str] = []
    start, size = 0, _SIZE
    while start < len(text):
        end = min(start + size, len(text))
        part = pattern.findall(text, start, end)
        # A match that ends where the piece ends may go on behind it.
        if end < len(text) and part and text.startswith(part[-1], end - len(part[-1])):
            end -= len(part.pop())
        size = _SIZE if end > start else 2 * size
        found += part
        start = end
    return found


def split_text(text: str, find_place: FindPlace | None = None) -> Iterator[str]:
    """Split a text into pieces; joined they are the text.

    Args:
        text: any text. A piece is longer where the text has no place to split it.
        find_place: finds other places than spaces; asked where no space is near.

    Yields:
        Pieces. Each but the first begins with white space, or at a place that `find_place` found.
    """
    start = 0
    while start < len(text):
        end = _next_place(text, start + _SIZE, find_place)
        yield text[start:end]
        start = end


def _next_place(text: str, start: int, find_place: FindPlace | None) -> int:
    """The first place from `start` on where a text may be split, or its end."""
    while start < len(text):
        end = start + _SIZE
        if (space := _SPACE.search(text, start, end)) is not None:
            return space.start()
        if find_place is not None and (place := find_place(text, start, end)) is not None:
            return place
        start = end
    return len(text)


def normalize(text: str) -> str:
    """A text in Unicode's form NFKC, in lower case: é is é, however it was typed."""
    if len(text) <= _SIZE:
        return _normalize(text)
    return "".join(map(_normalize, split_text(text, _independent_place)))


def _normalize(text: str) -> str:
    return text.lower() if text.isascii() else unicodedata.normalize("NFKC", text).lower()


def _independent_place(text: str, start: int, end: int) -> int | None:
    """A place where two characters meet that are normalized independently of each other."""
    places = range(start, min(end, start + _LONGEST_SEARCH, len(text)))
    return next((at for at in places if _are_independent(text[at - 1], text[at])), None)


@functools.lru_cache(maxsize=1024)
def _are_independent(before: str, behind: str) -> bool:
    """Whether neither of two neighbours changes how the other is normalized.

    A mark joins the letter before it, and so do some letters of Hangul. The lower case of a sigma
    depends on the letters around it, past marks and signs such as the apostrophe.
    """
    return _stands_alone(before) and _stands_alone(behind)


def _stands_alone(character: str) -> bool:
    whole = unicodedata.normalize("NFKC", character)
    first = unicodedata.normalize("NFKD", character)[0]
    return (
        all(unicodedata.category(each) in _PLAIN and each != "Σ" for each in whole)
        and unicodedata.category(first) in _PLAIN
        and not _JAMO.match(first)
    )


_PLAIN = frozenset(["Lu", "Ll", "Lo", "Zs", "Cc"])
_JAMO = re.compile("[\u1160-\u11ff\ua960-\ua97f\ud7b0-\ud7ff]")


def to_json(value: Any, encoder: JSONEncoder) -> str:
    """Encode a JSON value, with the same result as `encoder.encode(value)`.

    Args:
        value: consists of dicts with text keys, lists, tuples, texts, numbers, booleans and None.
        encoder: has no indent, does not sort keys, and writes non-ASCII characters unescaped.
    """
    return "".join(_json(value, encoder))


def _json(value: Any, encoder: JSONEncoder) -> Iterator[str]:
    if _weigh(value) <= _WEIGHT:
        yield encoder.encode(value)
    elif isinstance(value, str):
        yield '"'
        for start in range(0, len(value), _SIZE):
            yield encoder.encode(value[start : start + _SIZE])[1:-1]
        yield '"'
    else:
        is_dict = isinstance(value, dict)
        yield "{" if is_dict else "["
        between = ""
        for part, weight in _groups(value.items() if is_dict else value):
            yield between
            if weight <= _WEIGHT:
                yield encoder.encode(dict(part) if is_dict else part)[1:-1]
            elif is_dict:
                ((key, child),) = part
                yield encoder.encode(key) + encoder.key_separator
                yield from _json(child, encoder)
            else:
                yield from _json(part[0], encoder)
            between = encoder.item_separator
        yield "}" if is_dict else "]"


def _groups(children: Iterable[Any]) -> Iterator[tuple[list[Any], int]]:
    """Children that are encoded together, and their weight; a child that is too large is alone."""
    group: list[Any] = []
    weight = 0
    for child in children:
        own = 1 if type(child) in _LIGHT else _weigh(child)
        if group and weight + own > _WEIGHT:
            yield group, weight
            group, weight = [], 0
        group.append(child)
        weight += own
    if group:
        yield group, weight


_LIGHT = frozenset([int, float, bool, type(None)])


def _weigh(value: Any) -> int:
    """How much a value holds to encode; it stops counting above the weight of a piece."""
    weight, todo = 0, [value]
    while todo and weight <= _WEIGHT:
        value = todo.pop()
        weight += 1
        if isinstance(value, str):
            weight += len(value) // 16
        elif isinstance(value, dict):
            todo += islice(value.items(), _WEIGHT)
        elif isinstance(value, list | tuple):
            todo += islice(value, _WEIGHT)
    return weight + len(todo)
