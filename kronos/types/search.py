"""Search results, and how a search was answered."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from kronos.types.memories import JsonValue, Memory

SearchMode: TypeAlias = Literal["hybrid", "dense", "lexical"]


@dataclass(frozen=True, slots=True)
class Hit:
    """One search result."""

    memory: Memory
    score: float
    """Higher is better. The default ranking scores by mode. "dense": cosine similarity, -1..1.
    "lexical": BM25, 0 or more. "hybrid": the cosine plus what matching words add."""
    embedder: str
    """The name of the embedder of the query; "words" for a search without one."""
    rank: int
    """0 for the best hit."""
    shares: Mapping[str, float] | None = None
    """With explain=True: what each signal adds to the score; otherwise None."""
    via: str | None = None
    """For a memory that `expand` added: the id of the hit that leads to it."""

    @property
    def id(self) -> str:
        """The memory's id."""
        return self.memory.id

    @property
    def content(self) -> str:
        """The memory's content."""
        return self.memory.content

    @property
    def metadata(self) -> dict[str, JsonValue]:
        """The memory's metadata."""
        return self.memory.metadata


class Hits(list[Hit]):
    """The hits of one search, the best first."""

    __slots__ = ("explanation",)

    def __init__(self, hits: Iterable[Hit] = (), explanation: Explanation | None = None) -> None:
        super().__init__(hits)
        self.explanation = explanation
        """With explain=True: how the search was answered; otherwise None."""


@dataclass(frozen=True, slots=True)
class PlanStep:
    """One step of a search."""

    name: str
    detail: str
    """What the step did, as text."""
    count: int
    """How many memories the step returned."""
    seconds: float


@dataclass(frozen=True, slots=True)
class Explanation:
    """How a search was answered."""

    mode: SearchMode
    """Which signals were used. A query without words, or without a vector, uses only one."""
    embedder: str
    steps: tuple[PlanStep, ...]
