"""Work on large values in pieces, with the same outcome as at once.

One call of a regular expression on a text of many megabytes, or of the JSON encoder on a list of
100,000 numbers, keeps Python's lock for tens or hundreds of milliseconds, and with it every other
thread, an event loop's too. Between two pieces another thread gets its turn.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Iterable, Iterator
from itertools import islice
from json import JSONEncoder
from typing import Any

_SIZE = 2**16
"""Characters, or items, of a piece: about a millisecond's work."""
_SPACE = re.compile(r"\s")
_LONGEST_SEARCH = 1000
"""So far a place is looked for at which a text may be cut; beyond, the rest is taken whole."""
_WEIGHT = 2**12
"""JSON values of a piece; a text counts as one for each 16 characters."""


def find_all(pattern: re.Pattern[str], text: str) -> list[str]:
    """All matches, as `findall` gives them.

    Args:
        pattern: has no groups, does not look behind, and matches nothing empty; of what it matches
            it also matches the beginning, as words do.
        text: any.
    """
    if len(text) <= _SIZE:
        return pattern.findall(text)
    found: list[str] = []
    start, size = 0, _SIZE
    while start < len(text):
        end = min(start + size, len(text))
        part = pattern.findall(text, start, end)
        # What ends where the piece ends may go on behind it.
        if end < len(text) and part and text.startswith(part[-1], end - len(part[-1])):
            end -= len(part.pop())
        size = _SIZE if end > start else 2 * size
        found += part
        start = end
    return found


def at_spaces(text: str) -> Iterator[str]:
    """A text in parts, each but the first beginning with white space; joined they are the text."""
    start = 0
    while start < len(text):
        end = start + _SIZE
        while end < len(text) and (space := _SPACE.search(text, end, end + _SIZE)) is None:
            end += _SIZE
        end = space.start() if end < len(text) and space is not None else len(text)
        yield text[start:end]
        start = end


def folded(text: str) -> str:
    """A text in the form NFKC, in lower case: é is é, however it was typed."""
    if len(text) <= _SIZE:
        return _fold(text)
    return "".join(map(_fold, _cut(text)))


def _fold(text: str) -> str:
    return text.lower() if text.isascii() else unicodedata.normalize("NFKC", text).lower()


def _cut(text: str) -> Iterable[str]:
    """Parts of a text that are folded alone as they are in it."""
    start = 0
    while start < len(text):
        end = start + _SIZE
        while end < len(text) and not _may_cut(text[end - 1], text[end]):
            end += 1
            if end > start + _SIZE + _LONGEST_SEARCH:
                end = len(text)
        yield text[start:end]
        start = end


@functools.lru_cache(maxsize=1024)
def _may_cut(before: str, behind: str) -> bool:
    """Whether neither character is folded in another way because of what is beside it.

    A mark joins the letter before it, as some letters of Hangul do; and a sigma's lower case
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
    """A JSON value as the encoder writes it.

    Args:
        value: made of dicts with text keys, lists, tuples, texts, numbers, True, False and None.
        encoder: has no indent, sorts no keys and writes letters as they are.
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
    """Children that are encoded together, and their weight; one that is too large stands alone."""
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
    """How much there is in a value to encode; no more is looked at than a piece may hold."""
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
