"""From candidates to hits: reranking, and memories that links bring in.

It runs outside the transaction that found the candidates, as a reranker takes its time. Linked
memories must meet what the search asked for: its namespace, its filter and its least score.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from kronos.concurrency.threads import check_may_wait_for_embedder
from kronos.db.sql import value_list
from kronos.search.candidates import diversified, one_of_each_group
from kronos.types import Hit

if TYPE_CHECKING:
    from kronos.repository.links import Neighbour
    from kronos.repository.memories import Repository
    from kronos.repository.rows import Rows
    from kronos.search.candidates import Candidate
    from kronos.search.request import Query
    from kronos.search.trace import SearchTrace
    from kronos.serving.session import Session
    from kronos.store.answering.options import SearchOptions
    from kronos.types import Keys

_FIRST_EXPANDED = 1000
"""Linked memories looked at first; four times as many while too few may be found."""


class Judging:
    """Reranks candidates, and brings in linked memories.

    Args:
        session: the open store.
    """

    def __init__(self, session: Session) -> None:
        self._session = session

    def rerank(
        self, query: Query, candidates: list[Candidate], wanted: SearchOptions, trace: SearchTrace
    ) -> list[Candidate]:
        """Put candidates in the order of a reranker, one a group; it judges all of them."""
        ranking, request = wanted.request.ranking, wanted.request
        assert ranking.rerank is not None
        with trace.step("rerank") as note:
            check_may_wait_for_embedder()
            reranker = self._session.embedders.reranker(ranking.rerank)
            judged = reranker.score(query.text or "", [each.memory.content for each in candidates])
            note.detail, note.count = ranking.rerank, len(candidates)
        ranked = [
            each.judged(ranking.similarity * float(verdict))
            for each, verdict in zip(candidates, judged, strict=True)
        ]
        ranked = [each for each in ranked if each.score >= request.min_score]
        ranked.sort(key=lambda each: (-each.score, each.key))
        ranked = one_of_each_group(ranked, request.group_by)
        if not wanted.compares_later or not ranked:
            return ranked
        vectors = np.array([each.vector for each in ranked], np.float32)
        return diversified(ranked, vectors, request.limit, ranking.diversity)

    def linked(
        self, hits: Sequence[Hit], candidates: Sequence[Candidate], wanted: SearchOptions, name: str
    ) -> list[Hit]:
        """Memories that links or lineage join to hits, each below the hit that leads to it."""
        by_key = {each.key: hit for each, hit in zip(candidates, hits, strict=False)}
        least = -math.inf if wanted.expand_outside else wanted.request.min_score
        with self._session.reader() as repository:
            rows = repository.as_of(wanted.moment)
            found = [
                (_below(by_key[each.seed].score, each), each)
                for each in self._neighbours(repository, rows, [*by_key], wanted)
            ]
            found = [pair for pair in found if pair[0] >= least]
            found.sort(key=lambda pair: (-pair[0], pair[1].key))
            found = found[: wanted.request.limit]
            memories = rows.by_keys(np.array([each.key for _, each in found], np.int64))
        return [
            Hit(memories[each.key], score, name, len(hits) + rank, None, by_key[each.seed].id)
            for rank, (score, each) in enumerate(found)
        ]

    def _neighbours(
        self, repository: Repository, rows: Rows, keys: Sequence[int], wanted: SearchOptions
    ) -> list[Neighbour]:
        """What is linked to some memories and may be found, as many as are wanted if there are."""
        selection, most = wanted.request.selection, _FIRST_EXPANDED
        while True:
            joined = repository.links.neighbours(keys, wanted.expand, limit=most)
            among = value_list([each.key for each in joined])
            if wanted.expand_outside:
                allowed: Keys = rows.keys(None, None, among=among)
            else:
                allowed = rows.keys(selection.scope, selection.condition, among=among)
            found = set(allowed.tolist())
            if len(found) >= wanted.request.limit or len(joined) < most:
                return [each for each in joined if each.key in found]
            most *= 4


def _below(score: float, neighbour: Neighbour) -> float:
    """The score of a linked memory: below that of its hit, the more so the looser the link is."""
    lost = abs(score) * (1 - neighbour.weight / (1 + neighbour.hops))
    return min(score - lost, math.nextafter(score, -math.inf))
