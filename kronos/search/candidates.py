"""Candidates: memories that may become hits, and how a list of them is narrowed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from kronos.errors import FilterError
from kronos.search.filters.paths import parse_path
from kronos.search.ranking import diverse

if TYPE_CHECKING:
    from kronos.types import Memory, Vectors

_MATCH = ("vectors", "words", "agreement")
"""The shares that tell how well a memory matches."""
_RECORD_GROUPS = {name: ("", name) for name in ("namespace", "parent_id")}


@dataclass(slots=True)  # not frozen: a search makes many, and frozen ones take longer to make
class Candidate:
    """A memory that may become a hit."""

    key: int
    memory: Memory
    score: float
    shares: Mapping[str, float]
    """The parts of the score, by signal; empty if the request does not want them."""
    vector: Vectors | None = None
    """(dim,) float32, if candidates are compared after reranking; zeros if there is none."""

    def judged(self, verdict: float) -> Candidate:
        """The same candidate with a reranker's verdict instead of its own similarity."""
        kept = {name: share for name, share in self.shares.items() if name not in _MATCH}
        score = verdict + sum(kept.values())
        return replace(self, score=score, shares={"rerank": verdict, **kept})


def group_path(key: object) -> tuple[str, ...]:
    """Where a memory's group is: a path into the metadata, or ("", a field of the record).

    Args:
        key: a metadata key, with dots between levels, "namespace" or "parent_id".

    Raises:
        FilterError: the key is malformed.
    """
    if isinstance(key, str) and key in _RECORD_GROUPS:
        return _RECORD_GROUPS[key]
    try:
        return parse_path(key)
    except FilterError as exc:
        raise FilterError(
            'group_by must be a metadata key, with dots between levels, "namespace" or '
            f'"parent_id", not {key!r}',
            field="group_by",
        ) from exc


def one_of_each_group(candidates: list[Candidate], path: tuple[str, ...] | None) -> list[Candidate]:
    """The best candidate of each group. A candidate without a group is a group of its own.

    Args:
        candidates: best first.
        path: as `group_path` returns it; None for no groups.
    """
    if path is None:
        return candidates
    seen: set[str] = set()
    kept: list[Candidate] = []
    for each in candidates:
        value = _value(each.memory, path)
        group = json.dumps(value, sort_keys=True)
        if value is None or group not in seen:
            kept.append(each)
            seen.add(group)
    return kept


def diversified(
    candidates: Sequence[Candidate], vectors: Vectors, wanted: int, diversity: float
) -> list[Candidate]:
    """Candidates that match and are unlike each other; see `kronos.search.ranking.diverse`."""
    scores = [each.score for each in candidates]
    return [candidates[position] for position in diverse(scores, vectors, wanted, diversity)]


def _value(memory: Memory, path: tuple[str, ...]) -> Any:
    """The value at a path; None if it is missing."""
    if path in _RECORD_GROUPS.values():
        return getattr(memory, path[1])
    value: Any = memory.metadata
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return value
