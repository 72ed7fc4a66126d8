"""UTF-8 for input and output in every locale, because another machine may read the output.

A terminal keeps its own encoding; letters that it cannot show become question marks.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence

from kronos.errors import InputError


def speak_utf8() -> None:
    """Set the program's output streams to UTF-8, except terminals."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            if stream.isatty():
                stream.reconfigure(errors="replace")
            else:
                # All texts of a store are Unicode, but file names may hold other bytes.
                stream.reconfigure(encoding="utf-8", errors="surrogateescape")


def decoded(arguments: Sequence[str]) -> list[str]:
    """Decode arguments as UTF-8 if the locale could not decode their bytes.

    Raises:
        InputError: they are not UTF-8 either.
    """
    return [
        argument if _is_text(argument) else _decode(os.fsencode(argument), "an argument")
        for argument in arguments
    ]


def _is_text(argument: str) -> bool:
    return not any("\udc80" <= character <= "\udcff" for character in argument)


def standard_input() -> str:
    """Read all of standard input, without a byte order mark.

    Raises:
        InputError: it is not UTF-8.
    """
    text = _decode(sys.stdin.buffer.read(), "standard input")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _decode(raw: bytes, name: str) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        raise InputError(
            f"{name} is not UTF-8 text (byte {exc.start}): convert it first, e.g. with iconv",
            field="text",
        ) from exc
