"""How hits are ordered beyond how well they match: time, importance, place, variety.

A score is a sum of shares, each a weight times a signal, so it can be told why a hit stands where
it stands. Equal scores are ordered by key, the memory that was added first coming first.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime, timedelta
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from kronos.errors import InputError
from kronos.repository.rows import Signals
from kronos.types import Vectors
from kronos.validation import check_limit, check_namespace, check_number, check_time

Floats: TypeAlias = NDArray[np.float64]

RecencyOf: TypeAlias = Literal["created", "updated", "accessed"]

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}
_MOST_WEIGHT = 1e6
"""So far weights go: sums of them lose no digit that tells two memories apart."""
_LEAST_HALF_LIFE_S, _MOST_HALF_LIFE_S = 1e-6, 1e15
_LENGTH = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([smhdw])\s*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """What a score is made of. Weights are from 0 to 1e6; the default is how well a memory matches.

    Raises:
        InputError: a field is refused; the error's `field` names it.
    """

    similarity: float = 1.0
    """Weight of how well the memory matches the question."""
    recency: float = 0.0
    """Weight of how new it is: 1 for now, 1/2 after one half-life, 1/4 after two."""
    half_life: str | timedelta | float = "7d"
    """A number with s, m, h, d or w, a timedelta, or seconds."""
    recency_of: RecencyOf = "created"
    """Which moment counts; a memory that was never accessed was so when it was created."""
    importance: float = 0.0
    """Weight of its importance."""
    namespaces: Mapping[str, float] = field(default_factory=dict)
    """What memories gain in a namespace or below it, from -1e6 to 1e6; of several that hold one,
    the longest path."""
    diversity: float = 0.0
    """From 0 to 1: how much a hit loses for being like hits before it (maximal marginal relevance:
    Carbonell and Goldstein, 1998)."""
    rerank: str | None = None
    """A cross-encoder's name or folder: it reads the question beside each of the best candidates,
    and its verdict, from 0 to 1, takes the place of the similarity."""
    rerank_top: int = 50
    """So many candidates it reads, and never fewer than hits are wanted; with `group_by` the best
    of as many groups too."""
    now: datetime | None = None
    """The moment that recency is counted from; None is when the search runs."""

    def __post_init__(self) -> None:
        for name in ("similarity", "recency", "importance"):
            _check_between(name, getattr(self, name), 0, _MOST_WEIGHT)
        _check_between("diversity", self.diversity, 0, 1)
        if self.recency_of not in ("created", "updated", "accessed"):
            raise _refused("recency_of", '"created", "updated" or "accessed"', self.recency_of)
        if self.rerank is not None and (not isinstance(self.rerank, str) or not self.rerank):
            raise _refused("rerank", "a model's name or folder", self.rerank)
        if not isinstance(self.namespaces, Mapping):
            raise _refused("namespaces", "a dict of namespaces to numbers", self.namespaces)
        for namespace, gain in self.namespaces.items():
            check_namespace(namespace, field="ranking.namespaces")
            _check_between(f"namespaces.{namespace}", gain, -_MOST_WEIGHT, _MOST_WEIGHT)
        check_limit(self.rerank_top, field="ranking.rerank_top")
        check_time(self.now, field="ranking.now")
        _ = self.half_life_s

    @property
    def half_life_s(self) -> float:
        """The half-life in seconds."""
        found = self.half_life
        if isinstance(found, str):
            match = _LENGTH.fullmatch(found)
            seconds = float(match[1]) * _UNITS[match[2]] if match else 0.0
        elif isinstance(found, timedelta):
            seconds = found.total_seconds()
        else:
            seconds = check_number(found, field="ranking.half_life")
        if not _LEAST_HALF_LIFE_S <= seconds <= _MOST_HALF_LIFE_S:
            raise _refused(
                "half_life",
                'a time such as "7d", "12h" or 3600 seconds, from a microsecond to '
                f"{_MOST_HALF_LIFE_S:g} seconds",
                found,
            )
        return seconds

    @property
    def most_gain(self) -> float:
        """No memory gains more than this beyond its similarity."""
        return self.recency + self.importance + max([0.0, *self.namespaces.values()])

    @property
    def needs_signals(self) -> bool:
        """Whether more than the similarity counts."""
        return bool(self.recency or self.importance or self.namespaces)

    def shares(self, signals: Signals, now: int) -> dict[str, Floats]:
        """What memories gain beyond their similarity: for each signal (n,) float64.

        Args:
            signals: of n memories.
            now: microseconds since 1970 UTC.
        """
        found: dict[str, Floats] = {}
        if self.recency:
            age = np.maximum(now - signals.times[self.recency_of], 0) / 1e6
            found["recency"] = self.recency * np.exp2(-age / self.half_life_s)
        if self.importance:
            found["importance"] = self.importance * signals.importance
        if self.namespaces:
            gains = [self._gain(namespace) for namespace in signals.namespaces]
            found["namespace"] = np.array(gains, np.float64)
        return found

    def _gain(self, namespace: str) -> float:
        held = [path for path in self.namespaces if f"{namespace}/".startswith(f"{path}/")]
        return self.namespaces[max(held, key=len)] if held else 0.0


def diverse(scores: Sequence[float], vectors: Vectors, limit: int, diversity: float) -> list[int]:
    """Choose hits that match and are unlike each other: maximal marginal relevance.

    Args:
        scores: of the candidates, the best first.
        vectors: (n, dim) float32 unit rows of theirs; a row of zeros is like no other.
        limit: how many to choose.
        diversity: from 0, the candidates' own order, to 1.

    Returns:
        Positions of the candidates, in the order in which they were chosen.
    """
    worth = np.asarray(scores, np.float64)
    likest = np.zeros(len(worth))
    left = np.ones(len(worth), np.bool_)
    chosen: list[int] = []
    while left.any() and len(chosen) < limit:
        marginal = np.where(left, (1 - diversity) * worth - diversity * likest, -np.inf)
        best = int(np.argmax(marginal))  # the first of equals: the candidates' own order
        chosen.append(best)
        left[best] = False
        likest = np.maximum(likest, vectors @ vectors[best])
    return chosen


def check_ranking(ranking: object) -> Ranking:
    """Take a `Ranking`, or None for the default.

    Raises:
        InputError: it is neither.
    """
    if ranking is None:
        return _DEFAULT
    if not isinstance(ranking, Ranking):
        known = ", ".join(option.name for option in fields(Ranking))
        raise InputError(f"ranking must be a Ranking({known}), not {ranking!r}", field="ranking")
    return ranking


def _check_between(name: str, value: object, least: float, most: float) -> None:
    if not least <= check_number(value, field=f"ranking.{name}") <= most:
        raise _refused(name, f"a number from {least:g} to {most:g}", value)


def _refused(name: str, expected: str, found: Any) -> InputError:
    return InputError(f"ranking.{name} must be {expected}, not {found!r}", field=f"ranking.{name}")


_DEFAULT = Ranking()
