"""Chunking: cutting texts into passages that fit into every preset model.

The passages depend on the text alone, not on a model. So importing a file again makes the same
passages, and adds nothing twice, whatever model the store has. A model ignores tokens beyond its
limit (256 for all-MiniLM-L6-v2), so the estimate of tokens is too high rather than too low.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

MAX_TOKENS = 240
"""Estimated tokens of a passage, at most: 256 minus the model's special tokens and a margin."""
_TOKENS = re.compile(
    r"(?P<letters>[A-Za-z]+)(?![0-9])|(?P<digits>[0-9]+)(?![A-Za-z])|(?P<mixed>[A-Za-z0-9]+)|\S"
)
_HEADING = re.compile(r"#{1,6} ")
_WORDS = re.compile(r"\S+\s*")


@dataclass(frozen=True, slots=True)
class Passage:
    """A part of a text."""

    text: str
    line: int
    """The line where it begins; the first line is 1."""


@dataclass(slots=True)
class _Piece:
    """Lines, or a part of a line, that stay together if they fit."""

    text: str
    line: int
    starts_section: bool = False


def estimate_tokens(text: str) -> int:
    """Estimate the tokens of a text in a WordPiece or BPE model.

    A token is four letters, two digits, or one other character. In a run of mixed letters and
    digits, such as a hash, each character is a token, because tokenizers cut such runs that way.
    """
    tokens = 0
    for match in _TOKENS.finditer(text):
        length = match.end() - match.start()
        if match["letters"]:
            tokens += -(-length // 4)
        elif match["digits"]:
            tokens += -(-length // 2)
        else:
            tokens += length
    return tokens


def cut(text: str, *, markdown: bool = False) -> Iterator[Passage]:
    """Cut a text into passages: at headings and blank lines if possible, else at lines or words.

    Args:
        text: any text.
        markdown: whether a line that begins with `#` is a heading, and begins a passage.

    Yields:
        Passages in order. None is blank, and together they hold every word.
    """
    open_: list[_Piece] = []
    size = 0
    for piece in _pieces(text, markdown):
        cost = estimate_tokens(piece.text)
        if open_ and (piece.starts_section or size + cost > MAX_TOKENS):
            yield _join(open_)
            open_, size = [], 0
        open_.append(piece)
        size += cost
    if open_:
        yield _join(open_)


def _join(pieces: list[_Piece]) -> Passage:
    text = "".join(piece.text for piece in pieces)
    return Passage(text.strip("\r\n").rstrip(), pieces[0].line)


def _pieces(text: str, markdown: bool) -> Iterator[_Piece]:
    """Paragraphs that fit; otherwise their lines; for lines that do not fit, parts of them."""
    for paragraph in _paragraphs(text, markdown):
        if estimate_tokens(paragraph.text) <= MAX_TOKENS:
            yield paragraph
            continue
        first = paragraph.starts_section
        for offset, line in enumerate(_lines(paragraph.text)):
            for part in _parts_of_line(line):
                yield _Piece(part, paragraph.line + offset, starts_section=first)
                first = False


def _paragraphs(text: str, markdown: bool) -> Iterator[_Piece]:
    """Runs of lines up to a blank line or a heading; blank lines belong to the run before."""
    paragraph: _Piece | None = None
    blank_before = False
    for number, line in enumerate(_lines(text), 1):
        blank = not line.strip()
        heading = markdown and bool(_HEADING.match(line))
        if paragraph is None or (not blank and (blank_before or heading)):
            if paragraph is not None:
                yield paragraph
            paragraph = None if blank else _Piece("", number, starts_section=heading)
        if paragraph is not None:
            paragraph.text += line
        blank_before = blank
    if paragraph is not None:
        yield paragraph


def _parts_of_line(line: str) -> Iterator[str]:
    """The line if it fits; otherwise runs of its words, and parts of words that are too long."""
    if estimate_tokens(line) <= MAX_TOKENS:
        yield line
        return
    part, size = "", 0
    for match in _WORDS.finditer(line):
        for start in range(0, len(match[0]), MAX_TOKENS):
            word = match[0][start : start + MAX_TOKENS]
            cost = estimate_tokens(word)
            if part and size + cost > MAX_TOKENS:
                yield part
                part, size = "", 0
            part += word
            size += cost
    if part:
        yield part


def _lines(text: str) -> list[str]:
    # Lines as editors count them: str.splitlines also splits at form feeds and other characters.
    return re.findall(r"[^\n]*\n|[^\n]+", text)
