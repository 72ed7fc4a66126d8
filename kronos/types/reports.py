"""Progress and reports: what a store holds, and what its maintenance found or did."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from kronos.settings import Tokenizer
from kronos.types.spaces import Job, Space, SpaceStats


@dataclass(frozen=True, slots=True)
class Progress:
    """Progress of a long operation."""

    done: int
    total: int | None
    """None when the total is unknown, e.g. for a stream of items."""


class ProgressCallback(Protocol):
    """Called after every committed batch, in the thread that does the work."""

    def __call__(self, progress: Progress, /) -> object:
        """Take the progress so far."""


@dataclass(frozen=True, slots=True)
class Stats:
    """What a store holds, and which embedder serves it."""

    store_id: str
    path: str
    memories: int
    seq: int
    """The number of the last committed change."""
    embedder: str | None
    """The name of the embedder that serves searches; None when the program hands in vectors."""
    degraded: str | None
    """Why a fallback serves instead of the requested model; None: no fallback serves."""
    dim: int
    max_tokens: int | None
    """Tokens of a text that the embedder reads; it drops the rest. None: no limit."""
    spaces: tuple[SpaceStats, ...]
    jobs: tuple[Job, ...]
    """Unfinished reindex jobs."""
    index_size: int
    """Vectors in this process's index; 0 before its first search."""
    index_kind: str
    """E.g. "faiss-flat", an exact scan, or "faiss-hnsw", a graph."""
    database_bytes: int
    schema: str
    """The database's Alembic revision."""
    versions: int = 0
    """Earlier versions of memories in the history."""
    tokenizer: Tokenizer = "porter"
    """How the full-text index splits texts into words."""
    indexed_fields: tuple[str, ...] = ()
    """Metadata keys with an index of their own."""
    index_effort: int | None = None
    """Candidates that a search follows (FAISS's efSearch); None: every search is exact."""
    index_recall: float | None = 1.0
    """The recall@10 that `tune` last measured, 0..1; 1 where every search is exact; None: never
    measured."""
    engine: str | None = None
    """The engine that computes vectors: "onnx", "hash", or "sentence-transformers: " followed by
    why nothing faster is used. None: the program hands in vectors or its own embedder."""


@dataclass(frozen=True, slots=True)
class Problem:
    """A problem that `check` found."""

    kind: str
    detail: str
    repaired: bool = False


@dataclass(frozen=True, slots=True)
class Report:
    """What `check` found."""

    problems: tuple[Problem, ...]
    advice: tuple[Problem, ...] = ()
    """Hints; the store itself is sound."""
    index_kind: str | None = None
    """As in `Stats`; None: the database is too damaged to load an index from."""
    index_effort: int | None = None
    """As in `Stats`."""
    index_recall: float | None = None
    """As in `Stats`."""

    @property
    def ok(self) -> bool:
        """True when there is no problem, or every problem was repaired."""
        return all(problem.repaired for problem in self.problems)


@dataclass(frozen=True, slots=True)
class CompactReport:
    """What `compact` deleted."""

    dropped: tuple[Space, ...]
    """Spaces whose vectors were deleted."""
    expired: int
    """Expired memories that were deleted."""
    bytes_before: int
    """Size of the database on disk, with its write-ahead log."""
    bytes_after: int


@dataclass(frozen=True, slots=True)
class TuneReport:
    """How well searches find, and how hard they look from now on."""

    vectors: int
    """Vectors in the index."""
    index_kind: str
    """As in `Stats`."""
    target: float
    """The requested recall@10."""
    recall: float
    """The measured recall@10, 0..1; 1 where every search is exact."""
    effort: int | None
    """Candidates that a search follows from now on (FAISS's efSearch): the fewest that reach the
    target, or the most that were tried. None: every search is exact."""
    saved: bool
    """True when a snapshot keeps the effort for the next process that opens the store, or when
    every search is exact, so there is nothing to keep."""

    @property
    def reached(self) -> bool:
        """Whether the measured recall reaches the target."""
        return self.recall >= self.target


@dataclass(frozen=True, slots=True)
class RecoveryReport:
    """What `recover` saved from a damaged database."""

    aside: Path
    """Where the damaged database is kept."""
    memories: int
    """Memories that were readable."""
    damaged: tuple[str, ...]
    """Ids, where readable, of memories with a damaged text or metadata."""
    vectors: int
    """Vectors that were readable. The others are made anew when the store opens."""
