"""One search over one read transaction: candidates, their scores, and the hits that come of them.

The promise is the one of the store: k hits come back when k live memories match. Candidates are
taken in a growing pool, the best matches first, until no memory outside of it can score higher than
the last hit for its time, importance or place, or `MOST_CANDIDATES` were looked at. Where a pool
holds too few that live, or too few groups, it is asked who lives and in which group (`Everyone`):
then those alone are looked for that are still missing, and no row is read that is no hit.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from kronos.db.fulltext.characters import has_letters
from kronos.errors import FilterError
from kronos.index.base import find_positions, top_k
from kronos.repository.memory_rows import as_memory
from kronos.search.filters.paths import parse_path
from kronos.search.fusion import Fusion
from kronos.search.lexical import names_something
from kronos.search.ranking import diverse
from kronos.types import PlanStep

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from kronos.repository.rows import Rows
    from kronos.search.kept import KeySet
    from kronos.search.plan import Selection
    from kronos.search.ranking import Ranking
    from kronos.search.sources import Source
    from kronos.types import Keys, Memory, SearchMode, Vectors

    Floats: TypeAlias = NDArray[np.float64]
    Everyone: TypeAlias = Callable[[], KeySet]

CANDIDATES = 100
"""So many are taken from each of vectors and words, and more when more hits are wanted."""
MOST_CANDIDATES = 10_000
"""With so many looked at, what time and importance could still change is left."""
_DIVERSE = 5
"""Candidates for each hit that is to be unlike the others."""
_GROWTH = 4
_MATCH = ("vectors", "words", "agreement")
"""The shares that say how well a memory matches."""
_UNTOLD: Mapping[str, float] = MappingProxyType({})
_OWN_GROUPS = {name: ("", name) for name in ("namespace", "parent_id")}


@dataclass(slots=True, kw_only=True)
class Request:
    """What a search is asked for, checked."""

    selection: Selection
    limit: int
    mode: SearchMode
    min_score: float
    ranking: Ranking
    group_by: tuple[str, ...] | None
    """As `group_path` gives it."""
    now: int
    """Microseconds since 1970 UTC; recency is counted from then."""
    tells_shares: bool = True
    """Whether candidates say what their scores are made of."""

    @property
    def asks_vectors(self) -> bool:
        """Whether the index is needed."""
        return self.mode != "lexical" or self.ranking.diversity > 0


@dataclass(slots=True)
class Query:
    """What is looked for."""

    text: str | None
    vector: Vectors | None
    """(dim,) float32 of unit length."""
    lexical_vectors: bool = False
    """The vector is the hash embedder's."""
    excluded: int | None = None
    """The key of the memory that the hits are to be like."""


@dataclass(slots=True)  # not frozen, as all that a search makes anew: that costs a tenth of it
class Candidate:
    """A memory that may become a hit."""

    key: int
    memory: Memory
    score: float
    shares: Mapping[str, float]
    """Of each signal; empty where nobody asks."""
    vector: Vectors | None = None
    """(dim,) float32, for who compares candidates later; zeros where it has none."""

    def judged(self, verdict: float) -> Candidate:
        """The same with another verdict on how well it matches."""
        kept = {name: share for name, share in self.shares.items() if name not in _MATCH}
        score = verdict + sum(kept.values())
        return replace(self, score=score, shares={"rerank": verdict, **kept})


@dataclass(slots=True)
class _Pool:
    """The best matches so far."""

    keys: Keys
    shares: dict[str, Floats]
    """What each signal adds to the score: (n,)."""
    unseen: float
    """No memory outside matches better."""
    is_all: bool
    """Nothing that matches is outside."""

    def joined(self, others: _Pool) -> _Pool:
        """With others, none of which is in it."""
        shares = {
            name: np.concatenate([share, others.shares[name]])
            for name, share in self.shares.items()
        }
        return replace(self, keys=np.concatenate([self.keys, others.keys]), shares=shares)


@dataclass(slots=True)
class SearchTrace:
    """Notes the steps of a search, and how long each took, where somebody is to be told."""

    is_told: bool = True
    steps: list[PlanStep] = field(default_factory=list)

    def copy(self) -> SearchTrace:
        """The same steps, to be followed by others."""
        return SearchTrace(self.is_told, [*self.steps])

    def step(self, name: str) -> _Step:
        """Time a step; what is noted on the value becomes part of it."""
        return _Step(self.steps, name) if self.is_told else _UNTIMED


class _Step:
    """A step under way. A class, as contextlib's generators cost every search ten times as much."""

    __slots__ = ("_name", "_started", "_steps", "count", "detail")

    def __init__(self, steps: list[PlanStep], name: str) -> None:
        self._steps = steps
        self._name = name
        self.detail = ""
        self.count = 0

    def __enter__(self) -> _Step:
        self._started = time.perf_counter()
        return self

    def __exit__(self, *failure: object) -> None:
        seconds = time.perf_counter() - self._started
        self._steps.append(PlanStep(self._name, self.detail, self.count, seconds))


class _Untimed(_Step):
    """A step that nobody is told of; all searches share one."""

    __slots__ = ()

    def __enter__(self) -> _Step:
        return self

    def __exit__(self, *failure: object) -> None:
        """Nothing to note."""


_UNTIMED = _Untimed([], "")


class Search:
    """One search.

    Args:
        rows: the memories, over the transaction.
        source: where candidates come from.
        request: what is asked for.
        query: what is looked for.
        trace: notes the steps.
        everyone: all that may be found and lives, by their groups if any are wanted; asked only
            where a search needs it.
        known: what is known of them before; None: nothing.
        read: rows of live memories that were read already in this transaction, by key.
    """

    def __init__(
        self,
        rows: Rows,
        source: Source,
        request: Request,
        query: Query,
        trace: SearchTrace,
        everyone: Everyone,
        *,
        known: KeySet | None = None,
        read: Mapping[int, Sequence[Any]] = MappingProxyType({}),
    ) -> None:
        self._rows = rows
        self._source = source
        self._request = request
        self._query = query
        self._watch = trace
        self._ask_everyone = everyone
        self._read = read
        self._everyone = known
        self._are_in_the_way = False
        """Candidates that do not live, or are of a group that has a better one."""
        self._words: tuple[Keys, Floats] | None = None
        self._heads: Keys | None = None
        self._seen: dict[int, Sequence[Any]] = {}
        """The signals that were read."""

    def run(self, wanted: int) -> list[Candidate]:
        """Find the best candidates, at most so many, the best first."""
        ranking = self._request.ranking
        first = size = first_size(self._request, wanted)
        pool = self._pool(size)
        while True:
            chosen = self._choose(pool, wanted)
            # The best that can still be found outside; without more than similarity to count, what
            # was found is in its final order.
            beyond = ranking.similarity * pool.unseen + ranking.most_gain
            if pool.is_all or beyond < self._request.min_score:
                return chosen
            if len(chosen) >= wanted and (
                not ranking.needs_signals
                or chosen[wanted - 1].score >= beyond
                or size >= MOST_CANDIDATES
            ):
                return chosen
            size *= _GROWTH
            is_early = size <= _GROWTH * first and self._everyone is None
            if len(chosen) >= wanted or is_early or not self._are_in_the_way:
                pool = self._pool(size)
                continue
            pool, is_more = self._beyond(pool, size)
            if not is_more:
                if not chosen or not ranking.needs_signals:
                    return chosen
                wanted = len(chosen)

    def _beyond(self, pool: _Pool, size: int) -> tuple[_Pool, bool]:
        """A pool with candidates that it has none like, and whether there are such."""
        if self._everyone is None:
            with self._watch.step("groups" if self._request.group_by else "living") as note:
                self._everyone = self._ask_everyone()
                note.count = self._everyone.count
        others = self._everyone.others(pool.keys)
        if self._everyone.groups is None:  # what has expired is in the way
            return self._pool(size, others), True
        more = self._pool(size, others) if others.size else None
        return (pool, False) if more is None or not more.keys.size else (pool.joined(more), True)

    # -- Candidates ------------------------------------------------------------------------------

    def _pool(self, size: int, among: Keys | None = None) -> _Pool:
        """The best so many matches, of some memories alone where any are named."""
        if self._query.excluded is not None:
            size += 1
        pool = {"dense": self._dense, "lexical": self._lexical, "hybrid": self._hybrid}[
            self._request.mode
        ](size, among)
        if self._query.excluded is None:
            return pool
        kept = pool.keys != self._query.excluded
        shares = {name: share[kept] for name, share in pool.shares.items()}
        return _Pool(pool.keys[kept], shares, pool.unseen, pool.is_all)

    def _dense(self, size: int, among: Keys | None) -> _Pool:
        assert self._query.vector is not None
        with self._watch.step("vectors") as note:
            found = self._source.nearest(self._query.vector, size, among)
            note.detail, note.count = found.plan, found.keys.size
        scores = found.scores.astype(np.float64)
        unseen = float(scores[-1]) if scores.size else -math.inf
        return _Pool(found.keys, {"vectors": scores}, unseen, found.keys.size < size)

    def _lexical(self, size: int, among: Keys | None) -> _Pool:
        keys, scores = self._some_words(among)
        near = top_k(scores, size)
        unseen = float(scores[near[-1]]) if near.size else -math.inf
        shares = {"words": scores[near]}
        return _Pool(keys[near], shares, unseen, keys.size <= size)

    def _hybrid(self, size: int, among: Keys | None) -> _Pool:
        if self._words_know_more():
            return self._lexical(size, among)
        near = self._dense(size, among)
        keys, scores = self._some_words(among)
        said = top_k(scores, size)
        with self._watch.step("fusion") as note:
            wanted = union = np.union1d(near.keys, keys[said])
            if self._heads is None:
                # The same bets however many hits are wanted, and whoever is looked for, so that
                # scores do not depend on it.
                self._heads = np.concatenate([near.keys[:CANDIDATES], keys[said[:CANDIDATES]]])
            if among is not None:
                union = np.union1d(wanted, self._heads)
            cosines = self._cosines(near, union)
            words = self._word_scores(union)
            # Whoever is outside is no nearer than the last, and holds no more of the words. Not
            # even among all that have a vector, it has none, and a cosine of 0.
            cosines = np.append(cosines, 0.0 if near.is_all else near.unseen)
            words = np.append(words, scores[said[-1]] if keys.size > size else 0.0)
            head = np.append(np.isin(union, self._heads), not union.size)
            fused = self._fusion().shares(cosines, words, head)
            note.count = wanted.size
        unseen = float(sum(share[-1] for share in fused.values()))
        shares = {name: share[:-1] for name, share in fused.items()}
        if wanted.size != union.size:
            asked = find_positions(wanted, union)[1]
            shares = {name: share[asked] for name, share in shares.items()}
        return _Pool(wanted, shares, unseen, near.is_all and keys.size <= size)

    def _words_know_more(self) -> bool:
        """Of emoji and signs alone vectors know little, and the hash embedder's nothing."""
        if has_letters(self._query.text or ""):
            return False
        return self._query.lexical_vectors or self._all_words()[0].size > 0

    def _fusion(self) -> Fusion:
        assert self._query.vector is not None
        return Fusion.of(
            self._query.vector,
            self._source.sample(),
            lexical_vectors=self._query.lexical_vectors,
            has_names=names_something(self._query.text or ""),
        )

    def _cosines(self, near: _Pool, union: Keys) -> Floats:
        """The cosines of a union of candidates; those that the index gave are not made again."""
        assert self._query.vector is not None
        found = np.zeros(union.size)
        positions = np.searchsorted(union, near.keys)
        found[positions] = near.shares["vectors"]
        others = np.ones(union.size, np.bool_)
        others[positions] = False
        found[others] = self._source.cosines(self._query.vector, union[others])
        return found

    def _some_words(self, among: Keys | None) -> tuple[Keys, Floats]:
        keys, scores = self._all_words()
        if among is None:
            return keys, scores
        known = find_positions(among, keys)[1]
        return keys[known], scores[known]

    def _word_scores(self, wanted: Keys) -> Floats:
        """What the words say of some memories; 0 for those that hold none."""
        keys, scores = self._all_words()
        said = np.zeros(wanted.size)
        positions, known = find_positions(keys, wanted)
        said[known] = scores[positions]
        return said

    def _all_words(self) -> tuple[Keys, Floats]:
        if self._words is None:
            with self._watch.step("words") as note:
                self._words = self._source.words(self._query.text or "")
                note.count = self._words[0].size
        return self._words

    # -- Hits ------------------------------------------------------------------------------------

    def _rank(self, pool: _Pool) -> tuple[NDArray[np.intp], Floats, dict[str, Floats]]:
        """The order of a pool, and its scores and their shares."""
        ranking = self._request.ranking
        shares = pool.shares
        if ranking.similarity != 1:
            shares = {name: ranking.similarity * share for name, share in shares.items()}
        if ranking.needs_signals and pool.keys.size:
            with self._watch.step("signals") as note:
                signals = self._rows.signals(pool.keys, self._seen)
                shares = shares | ranking.shares(signals, self._request.now)
                note.count = pool.keys.size
        if shares.keys() == {"vectors"} and ranking.similarity:  # an index gives them in order
            return np.arange(pool.keys.size), shares["vectors"], shares
        scores = sum(shares.values(), np.zeros(pool.keys.size))
        return np.lexsort((pool.keys, -scores)), scores, shares

    def _choose(self, pool: _Pool, wanted: int) -> list[Candidate]:
        """The best candidates that live, one a group, unlike each other where that is wished."""
        request, diversity = self._request, self._request.ranking.diversity
        keys, (order, scores, shares) = pool.keys, self._rank(pool)
        order = order[scores[order] >= request.min_score]
        found = order.size
        if self._everyone is not None:
            order = order[self._everyone.leading(keys[order])]
        shares = shares if request.tells_shares else {}
        enough = wanted * _DIVERSE if diversity else wanted
        chosen: list[Candidate] = []
        with self._watch.step("rows") as note:
            for start in range(0, order.size, enough):
                part = order[start : start + enough]
                told = {name: share[part] for name, share in shares.items()}
                alive = self._candidates(keys[part], scores[part], told)
                note.count += len(alive)
                chosen += alive
                if self._everyone is None:
                    chosen = one_of_each_group(chosen, request.group_by)
                if len(chosen) >= enough:
                    break
        self._are_in_the_way = len(chosen) < min(found, enough)
        if not diversity:
            return chosen[:wanted]
        with self._watch.step("diversity") as note:
            note.count = len(chosen)
            chosen_keys = np.array([each.key for each in chosen], np.int64)
            return diversified(chosen, self._source.vectors(chosen_keys), wanted, diversity)

    def _candidates(self, keys: Keys, scores: Floats, shares: dict[str, Floats]) -> list[Candidate]:
        """Those that live."""
        rows = self._live_rows(keys)
        found = zip(keys.tolist(), scores.tolist(), strict=True)
        if not shares:
            return [
                Candidate(key, as_memory(rows[key]), score, _UNTOLD)
                for key, score in found
                if key in rows
            ]
        told = zip(*(share.tolist() for share in shares.values()), strict=True)
        return [
            Candidate(key, as_memory(rows[key]), score, dict(zip(shares, values, strict=True)))
            for (key, score), values in zip(found, told, strict=True)
            if key in rows
        ]

    def _live_rows(self, keys: Keys) -> Mapping[int, Sequence[Any]]:
        """The rows of the live memories among these keys, and maybe others."""
        if self._read and all(key in self._read for key in keys.tolist()):
            return self._read
        return self._rows.rows_of(keys)


def first_size(request: Request, wanted: int) -> int:
    """How many candidates a search takes from vectors and from words at first."""
    if request.mode == "dense" and not request.ranking.needs_signals and not request.group_by:
        return wanted * (_DIVERSE if request.ranking.diversity else 1)
    return max(wanted * 2, CANDIDATES)


def group_path(key: object) -> tuple[str, ...]:
    """Where a memory's group stands: the path of a metadata key, or ("", a field of its own).

    Raises:
        FilterError: the key is no path.
    """
    if isinstance(key, str) and key in _OWN_GROUPS:
        return _OWN_GROUPS[key]
    try:
        return parse_path(key)
    except FilterError as exc:
        raise FilterError(
            'group_by must be a metadata key, with dots to go down, "namespace" or "parent_id", '
            f"not {key!r}",
            field="group_by",
        ) from exc


def one_of_each_group(candidates: list[Candidate], path: tuple[str, ...] | None) -> list[Candidate]:
    """The best candidate of each group; one without a group is alone in its own.

    Args:
        candidates: the best first.
        path: where a memory's group stands; None for no groups.
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
    """What stands at a path; None for nothing."""
    if path in _OWN_GROUPS.values():
        return getattr(memory, path[1])
    value: Any = memory.metadata
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return value
