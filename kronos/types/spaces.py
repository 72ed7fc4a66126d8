"""Vector spaces, and the jobs that fill them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal, TypeAlias

OnModelChange: TypeAlias = Literal["rebuild", "background", "error"]
SpaceState: TypeAlias = Literal["building", "active", "retired"]
JobState: TypeAlias = Literal["open", "ready", "failed", "done", "cancelled"]


@dataclass(frozen=True, slots=True)
class Space:
    """All vectors made by embedders with one fingerprint."""

    id: int
    fingerprint: str
    model: str
    """The embedder's resolved name, e.g. "sentence-transformers/all-MiniLM-L6-v2"."""
    alias: str | None
    """The model as the caller named it, e.g. "mini"; None for vectors or an embedder that a program
    handed in."""
    dim: int
    state: SpaceState
    created_at: datetime
    pruned_seq: int = 0
    """Tombstones up to this seq are deleted. An index older than that replays from zero."""
    revision: str | None = None
    """The commit of the model's repository; None where there is none, e.g. for a folder."""
    activated_seq: int | None = None
    """The seq at which the space last became active; None: it never was."""


@dataclass(frozen=True, slots=True)
class SpaceStats:
    """A space, and how complete it is."""

    space: Space
    vectors: int
    """Memories whose vector in this space was made from their current text."""
    pending: int
    """Memories without such a vector."""
    failed: int = 0
    """Pending memories whose text the embedder could not embed."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A text that an embedder could not embed."""

    space_id: int
    memory_ids: tuple[str, ...]
    """The memories with this text."""
    error: str
    failed_at: datetime


@dataclass(frozen=True, slots=True)
class Job:
    """A reindex job at one moment."""

    id: int
    space: Space
    state: JobState
    """"open": not finished yet. "ready": complete, but not activated, as requested. "failed":
    finished, but not activated because some texts failed. "done" and "cancelled": over."""
    activate: bool
    """Make the space active at the end."""
    allow_failed: bool
    """Activate even if some texts cannot be embedded."""
    keep_old: bool
    """Keep all retired spaces at the end."""
    total: int
    """Memories that were pending when the job began, plus those added since."""
    done: int
    """Memories that got a vector from this job."""
    embedded: int
    """Texts embedded for them; equal texts count once."""
    pending: int
    """Memories without a vector in the space now."""
    failed: int
    """Pending memories whose text cannot be embedded."""
    workers: int
    """Workers that hold a lease now."""
    attempts: int
    """How many times the job was started or resumed."""
    rate: float
    """Memories per second in the last attempt."""
    created_at: datetime
    started_at: datetime
    """When the last attempt began."""
    heartbeat_at: datetime
    """When a worker last reported."""
    finished_at: datetime | None
    last_error: str | None


@dataclass(frozen=True, slots=True)
class ReindexPlan:
    """What a reindex would do; nothing is written."""

    model: str
    dim: int
    memories: int
    """Memories that are pending in the model's space."""
    texts: int
    """Distinct texts to embed."""
    tokens: int | None
    """Tokens that the model would read, estimated from a sample; None for an embedder without
    tokens."""
    seconds: float
    """Duration with one worker, estimated by embedding a sample."""
    disk_bytes: int
    """Disk space for the new vectors."""


@dataclass(frozen=True, slots=True)
class ReindexReport:
    """What one run of a reindex job did."""

    space: Space
    state: JobState
    """The job's state; "open" when the run was stopped before the end."""
    embedded: int
    """Texts embedded by this run; equal texts count once. Other runs and workers do not count."""
    pending: int
    """Memories that still have no vector in the space."""
    failed: int
    """Pending memories whose text cannot be embedded."""
    activated: bool
    """True when the space became active during this run, through this worker or another one."""
    seconds: float
