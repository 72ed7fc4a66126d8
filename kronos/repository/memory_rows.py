"""The rows of memories: their columns, which of them live, and how one is read as a `Memory`."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from sqlalchemy import ColumnElement, FromClause, or_

from kronos.db.dialect import WAY_OUT_OF_DAMAGE
from kronos.errors import CorruptStoreError
from kronos.types import Memory
from kronos.validation import to_datetime

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats: TypeAlias = NDArray[np.float64]

Condition: TypeAlias = Callable[[FromClause], ColumnElement[bool]]
"""Makes a boolean SQL expression over rows such as those of `memories`: a filter, compiled."""

COLUMNS = (
    "key",
    "id",
    "namespace",
    "content",
    "metadata",
    "importance",
    "parent_id",
    "created_at",
    "updated_at",
    "expires_at",
)
"""The columns that a memory is read from."""
_JSON = json.JSONDecoder()


@dataclass(frozen=True, slots=True)
class Entry:
    """A memory, with its key and the hash of its text."""

    key: int
    content_hash: bytes
    memory: Memory


@dataclass(frozen=True, slots=True)
class Signals:
    """What a ranking reads of n memories."""

    times: dict[str, Floats]
    """By "created", "updated" and "accessed": (n,) microseconds since 1970 UTC."""
    importance: Floats
    """(n,) 0..1."""
    namespaces: list[str]


def is_live(rows: FromClause, expired_by: Any) -> ColumnElement[bool]:
    """Whether a row has not expired by a time.

    Args:
        rows: rows of `memories`, or others with their columns.
        expired_by: microseconds since 1970 UTC, or a parameter.
    """
    expires_at = rows.c.expires_at
    return or_(expires_at.is_(None), expires_at > expired_by)


def as_memory(row: Sequence[Any]) -> Memory:
    """Read a row, of `COLUMNS`, as a memory.

    Raises:
        CorruptStoreError: it holds values that Kronos never writes.
    """
    _, id, namespace, content, metadata, importance, parent_id, created, updated, expires = row
    try:
        if not type(id) is type(namespace) is type(content) is str:
            raise TypeError("id, namespace and content must be texts")
        created_at = to_datetime(created)
        return Memory(
            id,
            namespace,
            content,
            _read_json(metadata),
            importance,
            created_at,
            created_at if updated == created else to_datetime(updated),
            parent_id,
            None if expires is None else to_datetime(expires),
        )
    except (TypeError, ValueError, OverflowError, RecursionError) as exc:
        raise CorruptStoreError(
            f"the row of the memory {row[1]!r} is damaged: {exc}. {WAY_OUT_OF_DAMAGE}"
        ) from exc


def _read_json(text: str) -> Any:
    """As `json.loads`, which also looks for spaces that Kronos never writes."""
    value, end = _JSON.raw_decode(text)
    return value if end == len(text) else json.loads(text)
