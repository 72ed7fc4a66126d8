"""One search over one read transaction: candidates, their scores, and the best of them.

The promise of the store: k hits come back if k live memories match. Candidates are taken in a
growing pool, best matches first, until no memory outside the pool can score higher than the last
hit for its time, importance or namespace, or the pool has `MOST_CANDIDATES`. If a pool holds too
few live memories, or too few groups, the search asks which memories live and their groups
(`Everyone`). Then it looks for the missing ones alone, and reads only rows that become hits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from kronos.repository.memory_rows import as_memory
from kronos.search.candidates import Candidate, diversified, one_of_each_group
from kronos.search.request import DIVERSE
from kronos.search.retrieval import Pool, Retrieval

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from kronos.repository.rows import Rows
    from kronos.search.key_sets import KeySet
    from kronos.search.request import Query, Request
    from kronos.search.sources import Source
    from kronos.search.trace import SearchTrace
    from kronos.types import Keys

    Floats: TypeAlias = NDArray[np.float64]
    Everyone: TypeAlias = Callable[[], KeySet]

MOST_CANDIDATES = 10_000
"""The size of a pool from which a search no longer follows what time and importance may change."""
_GROWTH = 4
_NO_SHARES: Mapping[str, float] = MappingProxyType({})


class Search:
    """One search.

    Args:
        rows: the memories, in the transaction.
        source: where candidates come from.
        request: the options.
        query: what to look for.
        trace: notes the steps.
        everyone: returns all live memories of the selection, with their groups if the request wants
            groups; called only if the search needs them.
        known: what `everyone` would return, if that costs nothing.
        read: rows of live memories that were read before in this transaction, by key.
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
        self._trace = trace
        self._ask_everyone = everyone
        self._everyone = known
        self._read = read
        self._retrieval = Retrieval(source, request.mode, query, trace)
        self._signals: dict[int, Sequence[Any]] = {}
        """The signals that were read, by key."""
        self._dropped = False
        """Candidates were dropped: they had expired, or their group had a better one."""

    def run(self, wanted: int) -> list[Candidate]:
        """Find the best candidates, at most `wanted`, best first."""
        first = size = self._request.first_size(wanted)
        pool = self._retrieval.pool(size)
        while True:
            chosen = self._choose(pool, wanted)
            if self._is_final(pool, chosen, wanted, size):
                return chosen
            size *= _GROWTH
            is_early = size <= _GROWTH * first and self._everyone is None
            if len(chosen) >= wanted or is_early or not self._dropped:
                pool = self._retrieval.pool(size)
                continue
            pool, is_more = self._beyond(pool, size)
            if not is_more:
                if not chosen or not self._request.ranking.needs_signals:
                    return chosen
                wanted = len(chosen)

    def _is_final(self, pool: Pool, chosen: list[Candidate], wanted: int, size: int) -> bool:
        """Whether no memory outside the pool can change what was chosen."""
        ranking = self._request.ranking
        bound = ranking.similarity * pool.unseen + ranking.most_gain
        if pool.is_all or bound < self._request.min_score:
            return True
        return len(chosen) >= wanted and (
            not ranking.needs_signals  # the order is that of the similarity
            or chosen[wanted - 1].score >= bound
            or size >= MOST_CANDIDATES
        )

    def _beyond(self, pool: Pool, size: int) -> tuple[Pool, bool]:
        """A pool with live memories, or groups, that were not in it; and whether there are any."""
        if self._everyone is None:
            with self._trace.step("groups" if self._request.group_by else "living") as step:
                self._everyone = self._ask_everyone()
                step.count = self._everyone.count
        others = self._everyone.others(pool.keys)
        if self._everyone.groups is None:  # expired memories fill the pool
            return self._retrieval.pool(size, others), True
        more = self._retrieval.pool(size, others) if others.size else None
        return (pool, False) if more is None or not more.keys.size else (pool.joined(more), True)

    def _choose(self, pool: Pool, wanted: int) -> list[Candidate]:
        """The best live candidates: one for each group, and unlike each other if so requested."""
        diversity = self._request.ranking.diversity
        enough = wanted * DIVERSE if diversity else wanted
        order, scores, shares = self._rank(pool)
        if self._request.min_score > -math.inf:
            order = order[scores[order] >= self._request.min_score]
        ranked = order.size
        if self._everyone is not None:
            order = order[self._everyone.leading(pool.keys[order])]
        chosen = self._live(pool.keys, order, scores, shares, enough)
        self._dropped = len(chosen) < min(ranked, enough)
        return self._diversified(chosen, wanted) if diversity else chosen[:wanted]

    def _rank(self, pool: Pool) -> tuple[NDArray[np.intp], Floats, dict[str, Floats]]:
        """The order of a pool, best first, its scores, and the shares of the scores."""
        ranking = self._request.ranking
        shares = pool.shares
        if ranking.similarity != 1:
            shares = {name: ranking.similarity * share for name, share in shares.items()}
        if ranking.needs_signals and pool.keys.size:
            with self._trace.step("signals") as step:
                signals = self._rows.signals(pool.keys, self._signals)
                shares = shares | ranking.shares(signals, self._request.now)
                step.count = pool.keys.size
        if shares.keys() == {"vectors"} and ranking.similarity:  # an index returns them in order
            return np.arange(pool.keys.size), shares["vectors"], shares
        scores = sum(shares.values(), np.zeros(pool.keys.size))
        return np.lexsort((pool.keys, -scores)), scores, shares

    def _live(
        self,
        keys: Keys,
        order: NDArray[np.intp],
        scores: Floats,
        shares: dict[str, Floats],
        enough: int,
    ) -> list[Candidate]:
        """The first live candidates of an order, and one for each group if groups are unknown."""
        shares = shares if self._request.with_shares else {}
        chosen: list[Candidate] = []
        with self._trace.step("rows") as step:
            for start in range(0, order.size, enough):
                part = order[start : start + enough]
                parts = {name: share[part] for name, share in shares.items()}
                live = self._candidates(keys[part], scores[part], parts)
                step.count += len(live)
                chosen += live
                if self._everyone is None:
                    chosen = one_of_each_group(chosen, self._request.group_by)
                if len(chosen) >= enough:
                    break
        return chosen

    def _candidates(self, keys: Keys, scores: Floats, shares: dict[str, Floats]) -> list[Candidate]:
        """The live memories among some keys, as candidates."""
        rows = self._live_rows(keys)
        found = zip(keys.tolist(), scores.tolist(), strict=True)
        if not shares:
            return [
                Candidate(key, as_memory(rows[key]), score, _NO_SHARES)
                for key, score in found
                if key in rows
            ]
        values = zip(*(share.tolist() for share in shares.values()), strict=True)
        return [
            Candidate(key, as_memory(rows[key]), score, dict(zip(shares, own, strict=True)))
            for (key, score), own in zip(found, values, strict=True)
            if key in rows
        ]

    def _live_rows(self, keys: Keys) -> Mapping[int, Sequence[Any]]:
        """The rows of the live memories among these keys, and possibly of others."""
        if self._read and all(key in self._read for key in keys.tolist()):
            return self._read
        return self._rows.rows_of(keys)

    def _diversified(self, chosen: list[Candidate], wanted: int) -> list[Candidate]:
        with self._trace.step("diversity") as step:
            step.count = len(chosen)
            keys = np.array([each.key for each in chosen], np.int64)
            vectors = self._source.vectors(keys)
            return diversified(chosen, vectors, wanted, self._request.ranking.diversity)
