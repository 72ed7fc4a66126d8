"""How hits are ordered beyond how well they match: time, importance, namespace, variety.

A score is a sum of shares, each a weight times a signal, so an explanation can tell why a hit has
its place. Equal scores are ordered by key: the memory that was added first comes first.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime, timedelta, timezone
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from kronos.errors import InputError
from kronos.repository.memory_rows import Signals
from kronos.search.times import from_iso
from kronos.types import Vectors
from kronos.validation import check_limit, check_namespace, check_number, check_time

Floats: TypeAlias = NDArray[np.float64]

RecencyOf: TypeAlias = Literal["created", "updated", "accessed"]

_RECENCY_OF = ("created", "updated", "accessed")
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}
_MOST_WEIGHT = 1e6
"""The limit of weights: sums of them keep every digit that distinguishes two memories."""
_LEAST_HALF_LIFE_S, _MOST_HALF_LIFE_S = 1e-6, 1e15
_LENGTH = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([smhdw])\s*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """What a score is made of. Weights are from 0 to 1e6; the default is how well a memory matches.

    Raises:
        InputError: a value is refused; the error's `field` names the option.
    """

    similarity: float = 1.0
    """Weight of how well the memory matches the query."""
    recency: float = 0.0
    """Weight of how new the memory is: 1 for now, 1/2 after one half-life, 1/4 after two."""
    half_life: str | timedelta | float = field(default="7d", compare=False)
    """A number with s, m, h, d or w, a timedelta, or seconds."""
    half_life_s: float = field(init=False, repr=False)
    """The half-life in seconds."""
    recency_of: RecencyOf = "created"
    """Which time counts. A memory that was never accessed counts from when it was created."""
    importance: float = 0.0
    """Weight of the memory's importance."""
    namespaces: Mapping[str, float] = field(default_factory=dict)
    """What memories in a namespace or below it gain, from -1e6 to 1e6. If several namespaces here
    contain a memory, the longest counts."""
    diversity: float = 0.0
    """From 0 to 1: how much a hit loses if it is like hits before it (maximal marginal relevance:
    Carbonell and Goldstein, 1998)."""
    rerank: str | None = None
    """The name or folder of a cross-encoder. It reads the query beside each of the best candidates,
    and its score, from 0 to 1, replaces the similarity."""
    rerank_top: int = 50
    """How many candidates the cross-encoder reads, and never fewer than the limit of hits; with
    `group_by` also the best candidate of each of this many groups."""
    now: datetime | None = None
    """The time that recency counts back from; None: the time of the search."""

    def __post_init__(self) -> None:
        for name in ("similarity", "recency", "importance"):
            _check_between(name, getattr(self, name), 0, _MOST_WEIGHT)
        _check_between("diversity", self.diversity, 0, 1)
        if self.recency_of not in _RECENCY_OF:
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
        object.__setattr__(self, "half_life_s", _seconds(self.half_life))

    def to_dict(self) -> dict[str, Any]:
        """The ranking in its JSON form: all options, with `now` as ISO 8601 in UTC."""
        options = {name: getattr(self, name) for name in _OPTIONS}
        options["namespaces"] = dict(self.namespaces)
        if isinstance(self.half_life, timedelta):
            options["half_life"] = self.half_life_s
        if self.now is not None:
            options["now"] = self.now.astimezone(timezone.utc).isoformat()
        return options

    @staticmethod
    def from_dict(options: Mapping[str, Any]) -> Ranking:
        """Read a ranking from its JSON form, which `ranking_schema` describes.

        Args:
            options: some of the options; the others keep their defaults.

        Raises:
            InputError: an option is unknown or its value is refused; the error's `field` names it.
        """
        if not isinstance(options, Mapping):
            raise InputError(f"ranking must be a dict of options, not {options!r}", field="ranking")
        for name in options:
            if name not in _OPTIONS:
                raise InputError(
                    f"ranking has the unknown option {name!r}: use {', '.join(_OPTIONS)}",
                    field=f"ranking.{name}",
                )
        return Ranking(**{**options, "now": _read_time(options.get("now"))})

    @property
    def most_gain(self) -> float:
        """The most that a memory can gain beyond its similarity."""
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
        shares: dict[str, Floats] = {}
        if self.recency:
            age = np.maximum(now - signals.times[self.recency_of], 0) / 1e6
            shares["recency"] = self.recency * np.exp2(-age / self.half_life_s)
        if self.importance:
            shares["importance"] = self.importance * signals.importance
        if self.namespaces:
            gains = [self._gain(namespace) for namespace in signals.namespaces]
            shares["namespace"] = np.array(gains, np.float64)
        return shares

    def _gain(self, namespace: str) -> float:
        around = [path for path in self.namespaces if f"{namespace}/".startswith(f"{path}/")]
        return self.namespaces[max(around, key=len)] if around else 0.0


def check_ranking(ranking: object) -> Ranking:
    """Accept a `Ranking`, or None for the default.

    Raises:
        InputError: it is neither.
    """
    if ranking is None:
        return _DEFAULT
    if not isinstance(ranking, Ranking):
        raise InputError(
            f"ranking must be a Ranking({', '.join(_OPTIONS)}), not {ranking!r}", field="ranking"
        )
    return ranking


def ranking_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of rankings as `Ranking.from_dict` takes them.

    Returns:
        A new dict, which the caller may change.
    """
    default = _DEFAULT.to_dict()
    options = {name: {**option, "default": default[name]} for name, option in _schemas().items()}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Ranking",
        "description": "What a score is made of: a sum of weights times signals.",
        "type": "object",
        "properties": options,
        "additionalProperties": False,
    }


def _schemas() -> dict[str, dict[str, Any]]:
    return {
        "similarity": _between(0, _MOST_WEIGHT, "Weight of how well a memory matches."),
        "recency": _between(0, _MOST_WEIGHT, "Weight of how new a memory is."),
        "half_life": {
            "description": "The age at which recency has halved: 30m, 12h, 7d, 4w, or seconds.",
            "anyOf": [
                {"type": "string", "pattern": f"^{_LENGTH.pattern}$"},
                _between(_LEAST_HALF_LIFE_S, _MOST_HALF_LIFE_S),
            ],
        },
        "recency_of": {"enum": [*_RECENCY_OF], "description": "Which time counts."},
        "importance": _between(0, _MOST_WEIGHT, "Weight of a memory's importance."),
        "namespaces": {
            "type": "object",
            "additionalProperties": _between(-_MOST_WEIGHT, _MOST_WEIGHT),
            "description": "What memories in a namespace or below it gain.",
        },
        "diversity": _between(0, 1, "How much a hit loses if it is like hits before it."),
        "rerank": {
            "type": ["string", "null"],
            "minLength": 1,
            "description": "A cross-encoder that scores the best candidates again.",
        },
        "rerank_top": {
            "type": "integer",
            "minimum": 1,
            "description": "How many candidates the cross-encoder reads.",
        },
        "now": {
            "type": ["string", "null"],
            "format": "date-time",
            "description": "The time that recency counts back from; null: the time of the search.",
        },
    }


def _between(least: float, most: float, description: str | None = None) -> dict[str, Any]:
    number = {"type": "number", "minimum": least, "maximum": most}
    return number if description is None else {**number, "description": description}


def diverse(scores: Sequence[float], vectors: Vectors, limit: int, diversity: float) -> list[int]:
    """Choose hits that match and are unlike each other: maximal marginal relevance.

    Args:
        scores: of the candidates, best first.
        vectors: (n, dim) float32 unit rows of the candidates; a row of zeros is like no other.
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
        next_one = int(np.argmax(marginal))  # the first of equals: the candidates' own order
        chosen.append(next_one)
        left[next_one] = False
        likest = np.maximum(likest, vectors @ vectors[next_one])
    return chosen


def _seconds(half_life: str | timedelta | float) -> float:
    if isinstance(half_life, str):
        match = _LENGTH.fullmatch(half_life)
        seconds = float(match[1]) * _UNITS[match[2]] if match else 0.0
    elif isinstance(half_life, timedelta):
        seconds = half_life.total_seconds()
    else:
        seconds = check_number(half_life, field="ranking.half_life")
    if not _LEAST_HALF_LIFE_S <= seconds <= _MOST_HALF_LIFE_S:
        raise _refused(
            "half_life",
            'a time such as "7d", "12h" or 3600 seconds, from a microsecond to '
            f"{_MOST_HALF_LIFE_S:g} seconds",
            half_life,
        )
    return seconds


def _read_time(now: Any) -> Any:
    try:
        return from_iso(now) if isinstance(now, str) else now
    except ValueError as exc:
        raise _refused("now", "an ISO 8601 time with an offset", now) from exc


def _check_between(name: str, value: object, least: float, most: float) -> None:
    if not least <= check_number(value, field=f"ranking.{name}") <= most:
        raise _refused(name, f"a number from {least:g} to {most:g}", value)


def _refused(name: str, expected: str, found: Any) -> InputError:
    return InputError(f"ranking.{name} must be {expected}, not {found!r}", field=f"ranking.{name}")


_OPTIONS = tuple(option.name for option in fields(Ranking) if option.init)
_DEFAULT = Ranking()
