"""Where a search finds its candidates: among the memories as they are, or as they were.

A source answers three questions about one read transaction: which memories are nearest to a vector,
how near some memories are to it, and which hold a question's words. What it names may be found
under the search's selection; memories may have expired since.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias

import numpy as np

from kronos.db.vectors import from_rows
from kronos.errors import KronosError
from kronos.index.base import locate
from kronos.search.lexical import terms, word_scores
from kronos.search.plan import Found, nearest

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from kronos.history import PastText
    from kronos.replica import Replica
    from kronos.repository import Repository
    from kronos.search.plan import Selection
    from kronos.types import Keys, VectorIndex, Vectors

    Floats: TypeAlias = NDArray[np.float64]


class NotEmbeddedError(KronosError):
    """Texts of the past have no vector in the space that serves."""

    def __init__(self, texts: list[PastText]) -> None:
        super().__init__()
        self.texts = texts


class Source(Protocol):
    """Where candidates come from."""

    def nearest(self, query: Vectors, k: int) -> Found:
        """The k nearest to a vector; fewer only when there are fewer."""

    def cosines(self, query: Vectors, keys: Keys) -> Vectors:
        """How near some memories are: (n,) float32; 0 for those without a vector."""

    def words(self, query: str) -> tuple[Keys, Floats]:
        """All that hold a question's words: (n,) keys, ascending, and (n,) float64 BM25."""

    def vectors(self, keys: Keys) -> Vectors:
        """The vectors of memories: (n, dim) float32; zeros for those without one."""

    def sample(self) -> Vectors:
        """Some vectors of the store: (n, dim) float32."""


@dataclass(frozen=True, slots=True)
class Present:
    """The memories as they are."""

    repository: Repository
    index: VectorIndex | None
    """None: nothing is asked but words."""
    allowed: Keys | None
    """Ascending; None: all."""
    sample: Callable[[], Vectors]
    """See `Source`."""

    def nearest(self, query: Vectors, k: int) -> Found:
        """See `Source`."""
        assert self.index is not None
        return nearest(self.index, query, k, self.allowed)

    def cosines(self, query: Vectors, keys: Keys) -> Vectors:
        """See `Source`."""
        return self.vectors(keys) @ query

    def vectors(self, keys: Keys) -> Vectors:
        """See `Source`."""
        assert self.index is not None
        return held_vectors(self.index, keys)

    def words(self, query: str) -> tuple[Keys, Floats]:
        """See `Source`."""
        words = self.repository.words
        keys, scores = word_scores(words, terms(words, query))
        if self.allowed is None:
            return keys, scores
        _, known = locate(self.allowed, keys)
        return keys[known], scores[known]


@dataclass(frozen=True, slots=True)
class Ahead:
    """A source whose index was asked about many questions in one scan."""

    source: Source
    found: Found
    """What is nearest to this one."""
    asked: int
    """How many were asked for."""

    def nearest(self, query: Vectors, k: int) -> Found:
        """See `Source`."""
        if self.found.keys.size < self.asked or k <= self.asked:
            return Found(self.found.scores[:k], self.found.keys[:k], self.found.plan)
        return self.source.nearest(query, k)

    def cosines(self, query: Vectors, keys: Keys) -> Vectors:
        """See `Source`."""
        return self.source.cosines(query, keys)

    def vectors(self, keys: Keys) -> Vectors:
        """See `Source`."""
        return self.source.vectors(keys)

    def words(self, query: str) -> tuple[Keys, Floats]:
        """See `Source`."""
        return self.source.words(query)

    def sample(self) -> Vectors:
        """See `Source`."""
        return self.source.sample()


class Past:
    """The memories as the store knew them at a moment.

    Texts that still stand are found by the index of today; the others are compared one by one.

    Args:
        repository: as of the moment.
        today: of the same transaction.
        index: None when nothing is asked but words.
        selection: which memories may be found.
        replica: whose index it is.
        embeds: whether vectors that are missing can be made.

    Raises:
        NotEmbeddedError: some must be made first.
    """

    def __init__(
        self,
        repository: Repository,
        today: Repository,
        index: VectorIndex | None,
        selection: Selection,
        replica: Replica,
        *,
        embeds: bool,
    ) -> None:
        space = replica.space
        self.sample = replica.sample
        self._today = today
        self._index = index
        scope, condition = selection.scope, selection.condition
        self._keys, self._versions, self._held = repository.known_then(scope, condition)
        texts = [] if index is None else repository.past_texts(scope, condition, space)
        missing = [text for text in texts if text.vector is None]
        if missing and embeds:
            raise NotEmbeddedError(missing)
        made = [(text.key, text.vector) for text in texts if text.vector is not None]
        self._past_keys = np.array([key for key, _ in made], np.int64)
        self._past = from_rows([vector for _, vector in made], space.dim)

    def __len__(self) -> int:
        return self._keys.size

    def nearest(self, query: Vectors, k: int) -> Found:
        """See `Source`."""
        assert self._index is not None
        found = nearest(self._index, query, k, self._keys[self._held])
        keys = np.concatenate([found.keys, self._past_keys])
        scores = np.concatenate([found.scores, self._past @ query])
        order = np.lexsort((keys, -scores))[:k]
        plan = f"{found.plan}, and {self._past_keys.size} texts of the past"
        return Found(scores[order], keys[order], plan)

    def cosines(self, query: Vectors, keys: Keys) -> Vectors:
        """See `Source`."""
        return self.vectors(keys) @ query

    def vectors(self, keys: Keys) -> Vectors:
        """See `Source`."""
        assert self._index is not None
        rows = held_vectors(self._index, keys)
        positions, past = locate(self._past_keys, keys)
        _, held = locate(self._keys[self._held], keys)
        rows[~held] = 0
        rows[past] = self._past[positions]
        return rows

    def words(self, query: str) -> tuple[Keys, Floats]:
        """See `Source`."""
        words = self._today.words
        found = terms(words, query)
        keys, scores = word_scores(words, found)
        _, known = locate(self._keys[self._versions == 0], keys)
        versions, past_scores = word_scores(words, found, past=True)
        order = np.argsort(self._versions)
        positions, past = locate(self._versions[order], versions)
        all_keys = np.concatenate([keys[known], self._keys[order][positions]])
        all_scores = np.concatenate([scores[known], past_scores[past]])
        by_key = np.argsort(all_keys)
        return all_keys[by_key], all_scores[by_key]


def held_vectors(index: VectorIndex, keys: Keys) -> Vectors:
    """The vectors of keys: (n, dim) float32; zeros for those that the index does not hold."""
    rows = np.zeros((keys.size, index.dim), np.float32)
    held = index.held(keys)
    rows[held] = index.vectors_of(keys[held])
    return rows
