"""Memories: what a program stores and reads back, and how memories relate to each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, TypeAlias

from kronos.types.arrays import Vectors

JsonValue: TypeAlias = Any
"""None, bool, int (64 bits), finite float, str, list or dict of these with str keys."""
Metadata: TypeAlias = Mapping[str, JsonValue]
OnConflict: TypeAlias = Literal["error", "replace", "ignore"]


@dataclass(frozen=True, slots=True)
class Memory:
    """One stored record."""

    id: str
    """Unique in the whole store."""
    namespace: str
    """A `/`-separated path, such as "team/alice"."""
    content: str
    metadata: dict[str, JsonValue]
    importance: float
    """0..1."""
    created_at: datetime
    updated_at: datetime
    parent_id: str | None = None
    """The id of the memory that this one came from. Kronos does not check that it exists."""
    expires_at: datetime | None = None
    """From this moment on, the memory is never returned."""


@dataclass(frozen=True, slots=True)
class Version:
    """One version of a memory: an earlier one, or the current one."""

    memory: Memory
    recorded_at: datetime
    """When this version was written to the store."""
    replaced_at: datetime | None
    """When the memory was changed or deleted; None for the current version."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewMemory:
    """A record to store. Only the content is required."""

    content: str = field(kw_only=False)
    id: str | None = None
    """None: a new UUID."""
    namespace: str | None = None
    """None: the store's namespace."""
    metadata: Metadata | None = None
    importance: float = 0.5
    """0..1."""
    parent_id: str | None = None
    expires_at: datetime | None = None
    embedding: Vectors | Sequence[float] | None = None
    """(dim,) float, scaled to unit length. It must come from the store's embedder; Kronos does not
    check that. None: the store embeds the content."""
    created_at: datetime | None = None
    """For imports: when the memory was created. None: now."""
    updated_at: datetime | None = None
    """For imports: when the memory was last changed. None: `created_at`, or else now."""


@dataclass(frozen=True, slots=True)
class Link:
    """A directed, named relation from one memory to another."""

    source_id: str
    target_id: str
    relation: str
    """1 to 200 characters, such as "caused"."""
    weight: float
    """Finite. A search that follows links clips it to 0..1."""
    created_at: datetime
    """When the link was first made. A new weight does not change it."""


@dataclass(frozen=True, slots=True)
class Step:
    """A memory that a trace reached."""

    memory: Memory
    depth: int
    """Length of the shortest path from the start, in steps; at least 1."""
    relation: str
    """The last step of a shortest path: "parent", in either direction, or a link's relation."""
    from_id: str
    """The id of the previous memory on that path."""


@dataclass(frozen=True, slots=True)
class DuplicateGroup:
    """Memories with nearly the same content."""

    memories: tuple[Memory, ...]
    """At least two, the oldest first."""
    score: float
    """Cosine, 0..1: the highest threshold at which the group is still connected. Every two memories
    are connected by a chain of pairs with at least this score; the two themselves may score
    lower."""
