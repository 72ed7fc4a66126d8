"""Imports of files: text and Markdown are cut into passages, JSONL holds one memory per line.

A memory without an id gets one that is a hash of its namespace, source and content. So importing a
file twice adds nothing, and two equal passages of a file are one memory.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from kronos.errors import ContentError, InputError
from kronos.settings import Settings
from kronos.transfer.chunking import cut
from kronos.types import NewMemory
from kronos.validation import check_item

_JSONL = (".jsonl", ".ndjson")
_MARKDOWN = (".md", ".markdown")
_FIELDS = ("id", "namespace", "importance", "parent_id", "embedding")
_SNIFFED_BYTES = 8192
"""Bytes that are read to tell text from other files."""


def find_files(paths: Iterable[Path]) -> list[Path]:
    """Find the files to import.

    Args:
        paths: files and folders. Of a folder, all text files are imported, except hidden files and
            files in hidden folders.

    Returns:
        The files, each one once.

    Raises:
        InputError: a path does not exist.
    """
    found: dict[Path, None] = {}
    for path in paths:
        if path.is_dir():
            found.update(dict.fromkeys(_walk(path)))
        elif path.is_file():
            found[path] = None
        else:
            raise InputError(
                f"{path} does not exist, or is neither a file nor a folder", field="path"
            )
    return list(found)


def _walk(folder: Path) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__pycache__")))
        for name in sorted(files):
            path = Path(parent, name)
            if not name.startswith(".") and path.is_file() and _looks_like_text(path):
                yield path


def _looks_like_text(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            start = file.read(_SNIFFED_BYTES)
    except OSError:
        return True  # reading it later raises the error
    try:
        start.decode()
    except UnicodeDecodeError as exc:
        # The last character may be cut.
        return exc.start > len(start) - 4 and len(start) == _SNIFFED_BYTES
    return b"\0" not in start


def read_file(
    path: Path, *, namespace: str, settings: Settings | None = None
) -> Iterator[NewMemory]:
    """Read a file's memories.

    Args:
        path: a `.jsonl` or `.ndjson` file, or any other text file.
        namespace: for memories without one.
        settings: the limits of one memory; None: the defaults.

    Yields:
        Memories, with `source` (the file's absolute path) and `line` in their metadata.

    Raises:
        ContentError: the file is not UTF-8 text.
        InputError: the file cannot be read, or a line of JSONL is not a valid memory; the message
            names the line.
    """
    source = str(path.resolve())
    if path.suffix.lower() in _JSONL:
        yield from _read_jsonl(path, source, namespace, settings or Settings())
        return
    for passage in cut(_read_text(path), markdown=path.suffix.lower() in _MARKDOWN):
        yield NewMemory(
            passage.text,
            id=_id_of(namespace, source, passage.text),
            namespace=namespace,
            metadata={"source": source, "line": passage.line},
        )


def _read_text(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError as exc:
        raise ContentError(
            f"{path} is not UTF-8 text (byte {exc.start}): convert it first", field=str(path)
        ) from exc
    except OSError as exc:
        raise InputError(f"{path} cannot be read: {exc}", field=str(path)) from exc


def _read_jsonl(path: Path, source: str, namespace: str, settings: Settings) -> Iterator[NewMemory]:
    for number, line in enumerate(_read_text(path).split("\n"), 1):
        if line.strip():
            try:
                memory = _from_json(line, source, number, namespace)
                # Checked here, where its line is known; `add_many` would name its position.
                check_item(memory, namespace=namespace, settings=settings)
                yield memory
            except (ValueError, TypeError, RecursionError) as exc:
                raise InputError(f"{path}, line {number}: {exc}", field=str(path)) from exc


def _from_json(line: str, source: str, number: int, namespace: str) -> NewMemory:
    """Read a JSON object with `content` or `text`; unknown keys go into the metadata."""
    found = json.loads(line)
    if not isinstance(found, dict):
        raise ValueError("expected a JSON object")
    content = found.pop("content", None) or found.pop("text", None)
    if not isinstance(content, str):
        raise ValueError("expected a text under `content` or `text`")
    given: dict[str, Any] = {name: found.pop(name) for name in _FIELDS if name in found}
    expires_at = found.pop("expires_at", None)
    metadata = found.pop("metadata", None) or {}
    if not isinstance(metadata, dict):
        raise ValueError("expected a JSON object under `metadata`")
    given.setdefault("namespace", namespace)
    given.setdefault("id", _id_of(str(given["namespace"]), source, content))
    return NewMemory(
        content,
        metadata={**found, **metadata, "source": source, "line": number},
        expires_at=None if expires_at is None else datetime.fromisoformat(expires_at),
        **given,
    )


def _id_of(namespace: str, source: str, content: str) -> str:
    named = json.dumps([namespace, source, content]).encode()
    return hashlib.sha256(named).hexdigest()[:32]
