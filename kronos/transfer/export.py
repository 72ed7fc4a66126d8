"""Exports: the memories of a store in one file, JSONL or Parquet. An import restores them exactly.

The header is the first line of JSONL, or the metadata of a Parquet file. It names the embedder of
the vectors in the file. An import uses the vectors only in a space with the same fingerprint;
otherwise the store embeds the texts. So an import never mixes spaces.

Each file has a seal, the checksum of all its other bytes: the last line of JSONL; in Parquet it is
before the footer, where other readers ignore it. An import checks the seal before it reads anything
else, so nothing of a damaged, incomplete or edited file is stored. The seal is the same in every
version of Kronos.

    JSONL:    header · memories · seal
    Parquet:  row groups · seal · footer, which holds the header
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import itertools
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from kronos.concurrency.large_values import to_json
from kronos.errors import (
    InputError,
    MissingDependencyError,
    StorageError,
    StorageFullError,
)
from kronos.files import FULL, publishing
from kronos.types import NewMemory

if TYPE_CHECKING:
    from kronos.repository.memories import Repository
    from kronos.repository.memory_rows import Condition
    from kronos.types import Memory, Space

_JSON = json.JSONEncoder(ensure_ascii=False)
_MARK = "kronos-export"
_VERSION = 1
_ROWS_AT_ONCE = 1000
_BYTES_AT_ONCE = 2**20
_MAX_HEADER = 2**16
_SEAL_START = b'{"kronos-export-sha256": "'
_SEAL_END = b'"}\n'
_SEAL_BYTES = len(_SEAL_START) + 2 * hashlib.sha256().digest_size + len(_SEAL_END)
_PARQUET = (".parquet", ".pq")
_JSONL = (".jsonl", ".ndjson")
_TEXTS = ("id", "namespace", "content", "metadata", "parent_id")
_TIMES = ("created_at", "updated_at", "expires_at")


@dataclass(frozen=True, slots=True)
class ExportRow:
    """A memory in an export."""

    memory: Memory
    vector: bytes | None
    """float32 little-endian; None if the export has no vectors, or the vector is pending."""

    def as_json(self) -> dict[str, Any]:
        """The fields of a line of JSONL."""
        memory = self.memory
        fields: dict[str, Any] = {
            "id": memory.id,
            "namespace": memory.namespace,
            "content": memory.content,
            "metadata": dict(memory.metadata),
            "importance": memory.importance,
            "parent_id": memory.parent_id,
        }
        for name in _TIMES:
            moment = getattr(memory, name)
            fields[name] = None if moment is None else moment.isoformat()
        if self.vector is not None:
            fields["vector"] = base64.b64encode(self.vector).decode()
        return fields


def export_rows(
    repository: Repository,
    scope: str | None,
    condition: Condition | None,
    space: Space | None,
) -> Iterator[ExportRow]:
    """Read the memories to export, in the order in which they were added.

    Args:
        repository: over a read transaction.
        scope: a namespace, which includes those below it; None: all namespaces.
        condition: a filter; None: all memories.
        space: the space whose vectors to export; None: no vectors.
    """
    for page in repository.walk(scope, condition, _ROWS_AT_ONCE):
        keys = [key for key, _ in page]
        blobs = {} if space is None else repository.vectors.blobs(space.id, keys)
        for key, memory in page:
            yield ExportRow(memory, blobs.get(key))


def write_export(
    path: Path, rows: Iterable[ExportRow], space: Space | None, *, mode: int | None = None
) -> int:
    """Write an export atomically; when this returns, it is synced to disk.

    Args:
        path: ends with .jsonl, .ndjson, .parquet or .pq.
        rows: the memories.
        space: the space of the vectors; None: the rows have no vectors.
        mode: the permission bits of the file; None: the default for a new file.

    Returns:
        How many memories the file holds.

    Raises:
        InputError: the ending or the folder of the path is not valid.
        MissingDependencyError: Parquet needs pyarrow.
        StorageFullError: the disk is full. A previous file is intact; so also below.
        StorageError: the disk failed.
    """
    if path.suffix.lower() not in (*_JSONL, *_PARQUET):
        raise InputError(
            f"{path} must end with .jsonl or .parquet, which names the format", field="path"
        )
    if not path.parent.is_dir():
        raise InputError(f"the folder of {path} does not exist", field="path")
    header: dict[str, Any] = {_MARK: _VERSION}
    if space is not None:
        header |= {"model": space.model, "fingerprint": space.fingerprint, "dim": space.dim}
    try:
        with publishing(path, mode=mode) as part:
            return _write(part, rows, header, parquet=_is_parquet(path))
    except OSError as exc:
        if exc.errno in FULL:
            raise StorageFullError(
                f"the disk is too full for {path}: free some disk space: {exc}"
            ) from exc
        raise StorageError(f"{path} could not be written: {exc}") from exc


def _write(part: Path, rows: Iterable[ExportRow], header: dict[str, Any], *, parquet: bool) -> int:
    with part.open("w+b") as file:
        count = (_write_parquet if parquet else _write_jsonl)(file, rows, header)
        _add_seal(file, _footer_bytes(file) if parquet else 0)
    return count


def _write_jsonl(file: BinaryIO, rows: Iterable[ExportRow], header: dict[str, Any]) -> int:
    count = 0
    file.write(json.dumps(header).encode() + b"\n")
    for row in rows:
        file.write(to_json(row.as_json(), _JSON).encode() + b"\n")
        count += 1
    return count


def _write_parquet(file: BinaryIO, rows: Iterable[ExportRow], header: dict[str, Any]) -> int:
    arrow, parquet = _pyarrow()
    fields = [(name, arrow.string()) for name in _TEXTS]
    fields += [("importance", arrow.float64())]
    fields += [(name, arrow.timestamp("us", tz="UTC")) for name in _TIMES]
    fields += [("vector", arrow.binary())]
    schema = arrow.schema(fields).with_metadata({_MARK: json.dumps(header)})
    count = 0
    with parquet.ParquetWriter(file, schema) as writer:
        for batch in _batches(rows):
            writer.write_table(arrow.Table.from_pylist([_as_columns(row) for row in batch], schema))
            count += len(batch)
    return count


def _as_columns(row: ExportRow) -> dict[str, Any]:
    memory = row.memory
    columns: dict[str, Any] = {name: getattr(memory, name) for name in (*_TEXTS, *_TIMES)}
    columns["metadata"] = json.dumps(dict(memory.metadata), ensure_ascii=False)
    return {**columns, "importance": memory.importance, "vector": row.vector}


def _batches(rows: Iterable[ExportRow]) -> Iterator[list[ExportRow]]:
    rest = iter(rows)
    while batch := list(itertools.islice(rest, _ROWS_AT_ONCE)):
        yield batch


def _is_parquet(path: Path) -> bool:
    return path.suffix.lower() in _PARQUET


def is_export(path: Path) -> bool:
    """Whether a file is an export, by its ending, its header or its seal."""
    if _is_parquet(path):
        return True
    if path.suffix.lower() not in _JSONL:
        return False
    try:
        with path.open("rb") as file:
            return _is_marked(file)
    except OSError:
        return False


def _is_marked(file: BinaryIO) -> bool:
    """Whether a JSONL file begins or ends like an export."""
    try:
        first = json.loads(file.readline(_MAX_HEADER))
    except (ValueError, RecursionError):
        first = None
    if isinstance(first, dict) and _MARK in first:
        return True
    file.seek(max(file.seek(0, os.SEEK_END) - _SEAL_BYTES, 0))
    return file.read().startswith(_SEAL_START)


def _add_seal(file: BinaryIO, footer: int) -> None:
    """Insert the seal into a file, before its last `footer` bytes."""
    place = file.seek(0, os.SEEK_END) - footer
    seal = _seal(file, place, place)
    file.seek(place)
    last = file.read()
    file.seek(place)
    file.write(seal + last)


def _check_seal(path: Path, file: BinaryIO) -> None:
    """Check that a file is unchanged since it was written.

    Raises:
        InputError: it is not; the message says what to do.
    """
    footer = _footer_bytes(file) if _is_parquet(path) else 0
    end = file.seek(0, os.SEEK_END) - footer
    place = end - _SEAL_BYTES
    file.seek(max(place, 0))
    found = file.read(_SEAL_BYTES)
    if place >= 0 and found == _seal(file, place, end):
        return
    if found.startswith(_SEAL_START):
        what = "was changed or damaged since it was exported"
    else:
        what = "is cut off, or its end was changed or damaged"
    instead = (
        "pass its rows to add_many"
        if _is_parquet(path)
        else "delete its header and its seal, the first and the last line, and import it as plain "
        "JSON lines, which keep times and vectors only as metadata"
    )
    raise InputError(
        f"{path} {what}; nothing of it was stored. Export it again. If it was edited on purpose, "
        f"{instead}",
        field="path",
    )


def _footer_bytes(file: BinaryIO) -> int:
    """The length of a Parquet file's footer, with its length and magic number."""
    file.seek(max(file.seek(0, os.SEEK_END) - 8, 0))
    return int.from_bytes(file.read(4), "little") + 8


def _seal(file: BinaryIO, place: int, end: int) -> bytes:
    """Compute the seal of a file, in which the seal is between `place` and `end`."""
    checksum = hashlib.sha256()
    file.seek(0)
    while chunk := file.read(min(_BYTES_AT_ONCE, place - file.tell())):
        checksum.update(chunk)
    file.seek(end)
    while chunk := file.read(_BYTES_AT_ONCE):
        checksum.update(chunk)
    return _SEAL_START + checksum.hexdigest().encode() + _SEAL_END


def read_export(path: Path, space: Space) -> Iterator[NewMemory]:
    """Read an export; every byte is verified before the first memory is yielded.

    Args:
        path: the file.
        space: the space of the importing store. Vectors of another fingerprint are left out.

    Raises:
        InputError: the file is not an export, incomplete, changed, or of a newer Kronos.
        MissingDependencyError: Parquet needs pyarrow.
    """
    if not path.is_file():
        raise InputError(f"there is no file {path}", field="path")
    try:
        with path.open("rb") as file:
            if not _is_parquet(path) and not _is_marked(file):
                raise _unreadable(path)
            _check_seal(path, file)
            file.seek(0)
            found = (_read_parquet if _is_parquet(path) else _read_jsonl)(path, file)
            yield from _memories(path, found, space)
    except OSError as exc:
        raise InputError(f"{path} cannot be read: {exc}", field="path") from exc


def _memories(path: Path, found: Iterator[dict[str, Any]], space: Space) -> Iterator[NewMemory]:
    header = next(found, {})
    if header.get(_MARK) != _VERSION:
        raise _unreadable(path)
    fits = header.get("fingerprint") == space.fingerprint
    for number, fields in enumerate(found, 2):
        try:
            yield _as_memory(fields, fits)
        except (TypeError, ValueError, AttributeError, KeyError, binascii.Error) as exc:
            raise InputError(f"{path}, line {number}: {exc!r}", field="path") from exc


def _unreadable(path: Path) -> InputError:
    return InputError(
        f"{path} is not an export that this Kronos can read: its header must hold "
        f'{{"{_MARK}": {_VERSION}}}',
        field="path",
    )


def _as_memory(fields: dict[str, Any], fits: bool) -> NewMemory:
    vector = fields.pop("vector", None)
    if isinstance(vector, str):
        vector = base64.b64decode(vector, validate=True)
    for name in _TIMES:
        if isinstance(fields.get(name), str):
            fields[name] = datetime.fromisoformat(fields[name])
    embedding = np.frombuffer(vector, "<f4") if vector is not None and fits else None
    return NewMemory(**fields, embedding=embedding)


def _read_jsonl(path: Path, file: BinaryIO) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(file, 1):
        if line.startswith(_SEAL_START):
            return
        try:
            found = json.loads(line)
            if not isinstance(found, dict):
                raise ValueError("expected a JSON object")
        except (ValueError, RecursionError) as exc:
            raise InputError(f"{path}, line {number}: {exc}", field="path") from exc
        yield found


def _read_parquet(path: Path, file: BinaryIO) -> Iterator[dict[str, Any]]:
    arrow, parquet = _pyarrow()
    try:
        with parquet.ParquetFile(file) as table:
            yield json.loads((table.schema_arrow.metadata or {}).get(_MARK.encode(), b"{}"))
            for batch in table.iter_batches(_ROWS_AT_ONCE):
                for fields in batch.to_pylist():
                    yield {**fields, "metadata": json.loads(fields["metadata"])}
    except (arrow.ArrowException, OSError, ValueError) as exc:
        raise InputError(f"{path} cannot be read as Parquet: {exc}", field="path") from exc


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as exc:
        raise MissingDependencyError(
            "Parquet needs pyarrow: run pip install 'kronos-memory[parquet]', or use .jsonl"
        ) from exc
    return pyarrow, parquet
