"""UTF-8 in and out, whatever the locale: a pipe of one machine is the file of another.

A terminal keeps its own encoding; a letter that it cannot show becomes a question mark.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence

from kronos.errors import InputError


def speak_utf8() -> None:
    """Let the program's own streams speak UTF-8, but for terminals."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            if stream.isatty():
                stream.reconfigure(errors="replace")
            else:
                # Texts of a store are all Unicode; names of files may hold bytes that are none.
                stream.reconfigure(encoding="utf-8", errors="surrogateescape")


def typed(arguments: Sequence[str]) -> list[str]:
    """The arguments of the program as UTF-8, where the locale could not read their bytes.

    Raises:
        InputError: they are no UTF-8 either.
    """
    return [argument if _is_text(argument) else _decoded(argument) for argument in arguments]


def _is_text(argument: str) -> bool:
    return not any("\udc80" <= character <= "\udcff" for character in argument)


def _decoded(argument: str) -> str:
    raw = os.fsencode(argument)
    return _read(raw, "an argument")


def standard_input() -> str:
    """All of standard input; a byte order mark is no part of the text.

    Raises:
        InputError: it is no UTF-8.
    """
    text = _read(sys.stdin.buffer.read(), "standard input")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _read(raw: bytes, name: str) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        raise InputError(
            f"{name} is no UTF-8 text (byte {exc.start}): convert it first, for example with iconv",
            field="text",
        ) from exc
