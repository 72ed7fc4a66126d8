"""Retrieval: the best matches of a query by vectors, by words, or by both.

A pool holds as many matches as are asked for, and bounds the scores of all other memories.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from kronos.db.fulltext.characters import has_letters
from kronos.index.base import find_positions, top_k
from kronos.search.fusion import Fusion, Scale
from kronos.search.lexical import names_something
from kronos.search.request import CANDIDATES

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from kronos.search.request import Query
    from kronos.search.sources import Source
    from kronos.search.trace import SearchTrace
    from kronos.types import Keys, SearchMode

    Floats: TypeAlias = NDArray[np.float64]


@dataclass(slots=True)
class Pool:
    """The best matches, by similarity alone."""

    keys: Keys
    """(n,) int64."""
    shares: dict[str, Floats]
    """What each signal adds to the similarity: (n,)."""
    unseen: float
    """The highest similarity that a memory outside the pool can have."""
    is_all: bool
    """Whether every memory that matches is in the pool."""

    def joined(self, other: Pool) -> Pool:
        """This pool and another one with other keys; its bound is that of this pool."""
        shares = {
            name: np.concatenate([share, other.shares[name]]) for name, share in self.shares.items()
        }
        keys = np.concatenate([self.keys, other.keys])
        return Pool(keys, shares, self.unseen, self.is_all)

    def without(self, key: int) -> Pool:
        """This pool without a key."""
        kept = self.keys != key
        shares = {name: share[kept] for name, share in self.shares.items()}
        return Pool(self.keys[kept], shares, self.unseen, self.is_all)


class Retrieval:
    """Finds the matches of one query.

    Args:
        source: where candidates come from.
        mode: which signals to use.
        query: what to look for.
        trace: notes the steps.
    """

    def __init__(self, source: Source, mode: SearchMode, query: Query, trace: SearchTrace) -> None:
        self._source = source
        self._mode = mode
        self._query = query
        self._trace = trace
        self._words: tuple[Keys, Floats] | None = None
        self._fusion: Fusion | None = None

    def pool(self, size: int, among: Keys | None = None) -> Pool:
        """The best matches.

        Args:
            size: how many of each signal; fewer are found only if there are fewer.
            among: (n,) ascending; only these memories.
        """
        excluded = self._query.excluded
        if excluded is None:
            return self._matches(size, among)
        return self._matches(size + 1, among).without(excluded)

    def _matches(self, size: int, among: Keys | None) -> Pool:
        if self._mode == "dense":
            return self._dense(size, among)
        if self._mode == "lexical" or self._vectors_know_less():
            return self._lexical(size, among)
        return self._hybrid(size, among)

    def _dense(self, size: int, among: Keys | None) -> Pool:
        assert self._query.vector is not None
        with self._trace.step("vectors") as step:
            found = self._source.nearest(self._query.vector, size, among)
            step.detail, step.count = found.plan, found.keys.size
        scores = found.scores.astype(np.float64)
        unseen = float(scores[-1]) if scores.size else -math.inf
        return Pool(found.keys, {"vectors": scores}, unseen, found.is_all)

    def _lexical(self, size: int, among: Keys | None) -> Pool:
        keys, scores = self._words_among(among)
        best = top_k(scores, size)
        unseen = float(scores[best[-1]]) if best.size else -math.inf
        return Pool(keys[best], {"words": scores[best]}, unseen, keys.size <= size)

    def _hybrid(self, size: int, among: Keys | None) -> Pool:
        near = self._dense(size, among)
        keys, scores = self._words_among(among)
        best = top_k(scores, size)
        has_all_words = keys.size <= size
        with self._trace.step("fusion") as step:
            union = np.union1d(near.keys, keys[best])
            cosines, words = self._cosines(near, union), self._word_scores(union)
            if self._fusion is None:
                # Of the first pool: scores must depend neither on how many hits are wanted nor on
                # which memories are looked at.
                heads = np.concatenate([near.keys[:CANDIDATES], keys[best[:CANDIDATES]]])
                self._fusion = self._fuse(cosines, words, np.isin(union, heads))
            shares = self._fusion.shares(cosines, words)
            step.count = union.size
        if not union.size:
            return Pool(union, shares, -math.inf, True)
        # A memory outside is no nearer than the last one, and has no more of the words. If all that
        # have a vector are inside, it has none, and its cosine counts as 0.
        unseen = self._fusion.bound(
            0.0 if near.is_all else near.unseen, 0.0 if has_all_words else float(scores[best[-1]])
        )
        return Pool(union, shares, unseen, near.is_all and has_all_words)

    def _fuse(self, cosines: Floats, words: Floats, is_head: NDArray[np.bool_]) -> Fusion:
        query = self._query
        assert query.vector is not None
        scale = Scale.of(
            query.vector,
            self._source.sample(),
            is_hashed=query.is_hashed,
            has_names=names_something(query.text or ""),
        )
        return Fusion.over(cosines[is_head], words[is_head], scale)

    def _vectors_know_less(self) -> bool:
        """Of emoji and signs alone vectors know little, and hashed ones nothing."""
        if has_letters(self._query.text or ""):
            return False
        return self._query.is_hashed or self._all_words()[0].size > 0

    def _cosines(self, near: Pool, union: Keys) -> Floats:
        """The cosines of a union of candidates; only those are computed that the index lacks."""
        assert self._query.vector is not None
        cosines = np.zeros(union.size)
        positions = np.searchsorted(union, near.keys)
        cosines[positions] = near.shares["vectors"]
        others = np.ones(union.size, np.bool_)
        others[positions] = False
        cosines[others] = self._source.vectors(union[others]) @ self._query.vector
        return cosines

    def _words_among(self, among: Keys | None) -> tuple[Keys, Floats]:
        keys, scores = self._all_words()
        if among is None:
            return keys, scores
        is_among = find_positions(among, keys)[1]
        return keys[is_among], scores[is_among]

    def _word_scores(self, wanted: Keys) -> Floats:
        """The BM25 of memories: (n,); 0 for those that contain none of the words."""
        keys, scores = self._all_words()
        found = np.zeros(wanted.size)
        positions, known = find_positions(keys, wanted)
        found[known] = scores[positions]
        return found

    def _all_words(self) -> tuple[Keys, Floats]:
        if self._words is None:
            with self._trace.step("words") as step:
                self._words = self._source.words(self._query.text or "")
                step.count = self._words[0].size
        return self._words
