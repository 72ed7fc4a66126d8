"""New memories: every field is checked, and the error names the field that is refused."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, TypeAlias

from kronos.errors import ContentError, InputError
from kronos.types import NewMemory
from kronos.validation.metadata import check_metadata
from kronos.validation.numbers import check_importance, check_time
from kronos.validation.texts import (
    check_content,
    check_id,
    check_namespace,
    hash_content,
    type_name,
)

if TYPE_CHECKING:
    from kronos.settings import Settings
    from kronos.types import Vectors

Item: TypeAlias = str | NewMemory | Mapping[str, Any]
"""What `add_many` takes: a text, a `NewMemory`, or a dict with the fields of one."""

_NEW_MEMORY_FIELDS = frozenset(option.name for option in fields(NewMemory))


@dataclass(slots=True, kw_only=True)
class Record:
    """A new memory, checked, in the form in which it is stored."""

    id: str
    id_given: bool
    """False: the id is a new UUID, so it cannot exist yet."""
    namespace: str
    content: str
    content_hash: bytes
    metadata: str
    importance: float
    parent_id: str | None
    expires_at: int | None
    folded: str | None = None
    """What the full-text index reads instead of the content; `kronos.repository.fulltext` makes
    it."""
    embedding: Vectors | Sequence[float] | None = None
    """From the caller; `check_embeddings` checks it."""
    created_at: int | None = None
    """None: now."""
    updated_at: int | None = None


def check_item(item: Item, *, namespace: str, settings: Settings, field: str = "") -> Record:
    """Check one new memory.

    Args:
        item: what the caller passed in; `check_embeddings` checks its `embedding`.
        namespace: used if the item has none.
        settings: the limits of content and metadata.
        field: the item's name for errors, e.g. "items[3]"; empty for a single `add`.

    Raises:
        InputError: a value is refused; the error's `field` names it.
    """
    new = _as_new_memory(item, field)
    dot = f"{field}." if field else ""
    content = check_content(new.content, settings.max_content_bytes, field=f"{dot}content")
    return Record(
        id=_new_id() if new.id is None else check_id(new.id, field=f"{dot}id"),
        id_given=new.id is not None,
        namespace=namespace
        if new.namespace is None
        else check_namespace(new.namespace, field=f"{dot}namespace"),
        content=new.content,
        content_hash=hash_content(content),
        metadata=check_metadata(new.metadata, settings, field=f"{dot}metadata"),
        importance=check_importance(new.importance, field=f"{dot}importance"),
        parent_id=None
        if new.parent_id is None
        else check_id(new.parent_id, field=f"{dot}parent_id"),
        expires_at=None
        if new.expires_at is None
        else check_time(new.expires_at, field=f"{dot}expires_at"),
        embedding=new.embedding,
        created_at=None
        if new.created_at is None
        else check_time(new.created_at, field=f"{dot}created_at"),
        updated_at=None
        if new.updated_at is None
        else check_time(new.updated_at, field=f"{dot}updated_at"),
    )


def _new_id() -> str:
    """A new UUID of version 7 (RFC 9562), which begins with the time.

    Ids that are made together are neighbours in the index of ids. With random ids, each memory of a
    batch would write a page of its own.
    """
    chance = os.urandom(10).hex()
    variant = "89ab"[int(chance[0], 16) & 3]
    milliseconds = time.time_ns() // 1_000_000
    return f"{milliseconds:012x}7{chance[1:4]}{variant}{chance[4:19]}"


def _as_new_memory(item: Item, field: str) -> NewMemory:
    if isinstance(item, NewMemory):
        return item
    if isinstance(item, str):
        return NewMemory(item)
    if not isinstance(item, Mapping):
        raise InputError(
            f"{field or 'item'} must be a str, a NewMemory or a dict, not {type_name(item)}",
            field=field or "item",
        )
    unknown = [key for key in item if key not in _NEW_MEMORY_FIELDS]
    if unknown:
        raise InputError(
            f"{field or 'item'} has the unknown key {unknown[0]!r}; the keys are "
            f"{', '.join(sorted(_NEW_MEMORY_FIELDS))} (your own keys go into metadata)",
            field=f"{field}.{unknown[0]!s}" if field else str(unknown[0]),
        )
    if "content" not in item:
        raise ContentError(
            f"{field or 'item'} has no content",
            field=f"{field}.content" if field else "content",
        )
    return NewMemory(**item)
