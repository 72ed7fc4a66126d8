"""Exports: a store's memories in one file, JSONL or Parquet, that comes back exactly.

The first line (in Parquet, the file's own metadata) names the embedder whose vectors the file
holds. Vectors are taken back only into a space of the same fingerprint; into any other store the
texts go without, and are embedded anew: so a file never mixes spaces.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kronos.errors import InputError, MissingDependencyError, StorageError
from kronos.types import NewMemory

if TYPE_CHECKING:
    from kronos.repository import Condition, Repository
    from kronos.types import Memory, Space

_MARK = "kronos-export"
_VERSION = 1
_ROWS_AT_ONCE = 1000
_PARQUET = (".parquet", ".pq")
_JSONL = (".jsonl", ".ndjson")
_TEXTS = ("id", "namespace", "content", "metadata", "parent_id")
_TIMES = ("created_at", "updated_at", "expires_at")


@dataclass(frozen=True, slots=True)
class Row:
    """A memory as it stands in a file."""

    memory: Memory
    vector: bytes | None
    """float32 little-endian; None where vectors are left out or pending."""

    def as_json(self) -> dict[str, Any]:
        """The line of a JSONL file."""
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


def rows(
    repository: Repository,
    scope: str | None,
    condition: Condition | None,
    space: Space | None,
) -> Iterator[Row]:
    """The live memories in a scope, in the order in which they came; with a space's vectors."""
    for page in repository.walk(scope, condition, _ROWS_AT_ONCE):
        keys = [key for key, _ in page]
        blobs = {} if space is None else repository.spaces.blobs(space.id, keys)
        for key, memory in page:
            yield Row(memory, blobs.get(key))


def write(path: Path, found: Iterable[Row], space: Space | None) -> int:
    """Write a file, whole or not at all.

    Args:
        path: ends with .jsonl, .ndjson, .parquet or .pq.
        found: what goes into it.
        space: the space of the vectors; None for a file without.

    Returns:
        How many memories it holds.

    Raises:
        InputError: the ending is another one, or the file cannot be made there.
        MissingDependencyError: Parquet needs pyarrow.
        StorageError: the disk failed.
    """
    suffix = path.suffix.lower()
    if suffix not in (*_JSONL, *_PARQUET):
        raise InputError(
            f"{path} must end with .jsonl or .parquet: the ending says the format", field="path"
        )
    if not path.parent.is_dir():
        raise InputError(f"{path} lies in no folder that exists", field="path")
    header: dict[str, Any] = {_MARK: _VERSION}
    if space is not None:
        header |= {"model": space.model, "fingerprint": space.fingerprint, "dim": space.dim}
    part = path.with_name(path.name + ".part")
    try:
        count = (_write_jsonl if suffix in _JSONL else _write_parquet)(part, found, header)
        part.replace(path)
    except OSError as exc:
        raise StorageError(f"{path} could not be written: {exc}") from exc
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)
    return count


def _write_jsonl(path: Path, found: Iterable[Row], header: dict[str, Any]) -> int:
    count = 0
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write(json.dumps(header) + "\n")
        for row in found:
            file.write(json.dumps(row.as_json(), ensure_ascii=False) + "\n")
            count += 1
    return count


def _write_parquet(path: Path, found: Iterable[Row], header: dict[str, Any]) -> int:
    arrow, parquet = _pyarrow()
    fields = [(name, arrow.string()) for name in _TEXTS]
    fields += [("importance", arrow.float64())]
    fields += [(name, arrow.timestamp("us", tz="UTC")) for name in _TIMES]
    fields += [("vector", arrow.binary())]
    schema = arrow.schema(fields).with_metadata({_MARK: json.dumps(header)})
    count = 0
    with parquet.ParquetWriter(path, schema) as writer:
        for part in _parts(found):
            writer.write_table(arrow.Table.from_pylist([_as_columns(row) for row in part], schema))
            count += len(part)
    return count


def _as_columns(row: Row) -> dict[str, Any]:
    memory = row.memory
    columns: dict[str, Any] = {name: getattr(memory, name) for name in (*_TEXTS, *_TIMES)}
    columns["metadata"] = json.dumps(dict(memory.metadata), ensure_ascii=False)
    return {**columns, "importance": memory.importance, "vector": row.vector}


def _parts(found: Iterable[Row]) -> Iterator[list[Row]]:
    part: list[Row] = []
    for row in found:
        part.append(row)
        if len(part) == _ROWS_AT_ONCE:
            yield part
            part = []
    if part:
        yield part


def is_export(path: Path) -> bool:
    """Whether a file is one that `write` made."""
    if path.suffix.lower() in _PARQUET:
        return True
    if path.suffix.lower() not in _JSONL:
        return False
    try:
        with path.open("rb") as file:
            first = json.loads(file.readline(2**16))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(first, dict) and _MARK in first


def read(path: Path, space: Space) -> Iterator[NewMemory]:
    """Read a file back.

    Args:
        path: what `write` made.
        space: where the memories go; vectors of another fingerprint are left out.

    Raises:
        InputError: the file is no export, of a newer Kronos, or damaged; names the line.
        MissingDependencyError: Parquet needs pyarrow.
    """
    if not path.is_file():
        raise InputError(f"there is no file {path}", field="path")
    reader = _read_parquet if path.suffix.lower() in _PARQUET else _read_jsonl
    found = reader(path)
    header = next(found)
    if header.get(_MARK) != _VERSION:
        raise InputError(
            f"{path} is no export that this Kronos reads: its first line should hold "
            f'{{"{_MARK}": {_VERSION}}}',
            field="path",
        )
    fits = header.get("fingerprint") == space.fingerprint
    for number, fields in enumerate(found, 2):
        try:
            yield _as_memory(fields, fits)
        except (TypeError, ValueError, AttributeError, KeyError, binascii.Error) as exc:
            raise InputError(f"{path}, line {number}: {exc!r}", field="path") from exc


def _as_memory(fields: dict[str, Any], fits: bool) -> NewMemory:
    vector = fields.pop("vector", None)
    if isinstance(vector, str):
        vector = base64.b64decode(vector, validate=True)
    for name in _TIMES:
        if isinstance(fields.get(name), str):
            fields[name] = datetime.fromisoformat(fields[name])
    embedding = np.frombuffer(vector, "<f4") if vector is not None and fits else None
    return NewMemory(**fields, embedding=embedding)


def _read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8", newline="\n") as file:
        number = 0
        try:
            for number, line in enumerate(file, 1):  # noqa: B007  (named in the error)
                found = json.loads(line)
                if not isinstance(found, dict):
                    raise ValueError("expected a JSON object")
                yield found
        except (ValueError, RecursionError) as exc:
            raise InputError(f"{path}, near line {number}: {exc}", field="path") from exc
    if not number:
        raise InputError(f"{path} is empty", field="path")


def _read_parquet(path: Path) -> Iterator[dict[str, Any]]:
    arrow, parquet = _pyarrow()
    try:
        with parquet.ParquetFile(path) as file:
            yield json.loads((file.schema_arrow.metadata or {}).get(_MARK.encode(), b"{}"))
            for batch in file.iter_batches(_ROWS_AT_ONCE):
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
