"""Where a search finds what the store knew at a moment.

Texts that memories still hold are found by the index of today. The others are compared one by one;
their vectors are read once and cached, like the keys that were known then
(`kronos.search.key_sets`).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from kronos.db.vectors import from_rows
from kronos.errors import KronosError
from kronos.index.base import find_positions
from kronos.search.key_sets import KeySet, KeySets
from kronos.search.lexical import terms, word_scores
from kronos.search.matching import Known
from kronos.search.nearest import Found, nearest, vectors_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from kronos.repository.history import PastText
    from kronos.repository.memories import Repository
    from kronos.types import Keys, Space, VectorIndex, Vectors

    Floats: TypeAlias = NDArray[np.float64]

_MOST_CHANGED = 0.1
"""Up to this share of changed texts in the index, a search asks it for more than k and drops the
changed ones. That is faster than to look among the unchanged ones alone."""


class NotEmbeddedError(KronosError):
    """Past texts have no vector in the serving space."""

    def __init__(self, asked: PastVectors, texts: list[PastText]) -> None:
        super().__init__()
        self.asked = asked
        self.texts = texts


@dataclass(frozen=True, slots=True, eq=False)
class Texts:
    """The vectors of texts that memories held at a moment, and no longer hold."""

    keys: Keys
    """(n,) of the memories, ascending."""
    versions: Keys
    """(n,) of the versions with the texts."""
    made: NDArray[np.bool_]
    """(n,) which texts have a vector in the space."""
    vectors: Vectors
    """(made, dim) float32."""
    seq: int

    @property
    def size(self) -> int:
        """How many numbers it holds, as 64-bit numbers."""
        return self.vectors.size // 2 + 2 * self.keys.size

    @property
    def embedded(self) -> Keys:
        """The keys of texts with a vector: (made,), row by row those of `vectors`."""
        return self.keys[self.made]

    def completed(self, vectors: Mapping[int, Vectors]) -> Texts:
        """The same with vectors for texts that had none.

        Args:
            vectors: by the key of the version.
        """
        added = np.array([version in vectors for version in self.versions.tolist()]) & ~self.made
        made = self.made | added
        rows = np.zeros((self.keys.size, self.vectors.shape[1]), "<f4")
        rows[self.made] = self.vectors
        rows[added] = [vectors[version] for version in self.versions[added].tolist()]
        return replace(self, made=made, vectors=rows[made])


@dataclass(frozen=True, slots=True)
class PastVectors:
    """Asks for the vectors of past texts in a space."""

    known: Known
    space: Space

    @property
    def name(self) -> Hashable:
        """See `Asked`."""
        return ("texts", self.space.id, self.known.name)

    @property
    def moment(self) -> int:
        """See `Asked`."""
        return self.known.moment

    def find(self, repository: Repository, sets: KeySets) -> Texts:
        """See `Asked`."""
        known = sets.learn(repository, self.known)
        none = np.empty(0, np.int64)
        dim = self.space.dim
        nothing = Texts(none, none, np.empty(0, np.bool_), np.empty((0, dim), np.float32), 0)
        return self._follow(repository, nothing, known)

    def follow(self, repository: Repository, sets: KeySets, known: Texts, head: int) -> Texts:
        """See `Asked`."""
        return self._follow(repository, known, sets.at_hand(repository, head, self.known))

    def _follow(self, repository: Repository, before: Texts, known: KeySet) -> Texts:
        """Keep the vectors that are known, and read the others."""
        assert known.table is not None
        gone = known.table.beside[:, 1] == 0
        keys, versions = known.table.keys[gone], known.table.beside[gone, 0]
        if np.array_equal(versions, before.versions):
            return replace(before, seq=known.seq)
        made, vectors = np.zeros(keys.size, np.bool_), np.zeros((keys.size, self.space.dim), "<f4")
        order = np.argsort(before.versions)
        positions, is_old = find_positions(before.versions[order], versions)
        was_made = before.made[order][positions]
        made[np.flatnonzero(is_old)[was_made]] = True
        vectors[made] = before.vectors[np.cumsum(before.made)[order][positions][was_made] - 1]
        new = np.flatnonzero(~is_old)
        found = repository.history.vectors(self.space, versions[new].tolist())
        is_found = np.array([version in found for version in versions[new].tolist()], np.bool_)
        blobs = [found[version] for version in versions[new[is_found]].tolist()]
        vectors[new[is_found]] = from_rows(blobs, self.space.dim)
        made[new[is_found]] = True
        return Texts(keys, versions, made, vectors[made], known.seq)


@dataclass(frozen=True, slots=True)
class Past:
    """The memories as the store knew them at a moment."""

    repository: Repository
    """In the transaction; it reads the memories of today."""
    index: VectorIndex | None
    """None if the search needs no vectors."""
    known: KeySet
    """The keys that were known then."""
    texts: Texts | None
    """The past texts; None if the search needs no vectors."""
    sample: Callable[[], Vectors]
    """See `Source`."""

    def nearest(self, query: Vectors, k: int, among: Keys | None = None) -> Found:
        """See `Source`."""
        assert self.texts is not None
        found = self._unchanged(query, k, among)
        past, vectors = self.texts.embedded, self.texts.vectors
        if among is not None:
            some = find_positions(among, past)[1]
            past, vectors = past[some], vectors[some]
        keys = np.concatenate([found.keys, past])
        scores = np.concatenate([found.scores, vectors @ query])
        order = np.lexsort((keys, -scores))[:k]
        plan = f"{found.plan}, and {past.size} texts of the past"
        return Found(scores[order], keys[order], k, plan)

    def _unchanged(self, query: Vectors, k: int, among: Keys | None) -> Found:
        """The nearest memories whose text has not changed since."""
        assert self.index is not None
        assert self.known.table is not None
        held = self.known.table.held
        if among is not None:
            return nearest(self.index, query, k, among[find_positions(held, among)[1]])
        if held.size >= (1 - _MOST_CHANGED) * len(self.index):
            found = nearest(self.index, query, 2 * k, None)
            is_held = find_positions(held, found.keys)[1]
            if np.count_nonzero(is_held) >= k or found.is_all:
                return Found(found.scores[is_held][:k], found.keys[is_held][:k], k, found.plan)
        return nearest(self.index, query, k, held)

    def vectors(self, keys: Keys) -> Vectors:
        """See `Source`."""
        assert self.index is not None
        assert self.known.table is not None
        assert self.texts is not None
        rows = vectors_of(self.index, keys)
        positions, past = find_positions(self.texts.embedded, keys)
        rows[~find_positions(self.known.table.held, keys)[1]] = 0
        rows[past] = self.texts.vectors[positions]
        return rows

    def words(self, query: str) -> tuple[Keys, Floats]:
        """See `Source`."""
        assert self.known.table is not None
        fulltext = self.repository.fulltext
        found = terms(fulltext, query)
        keys, scores = word_scores(fulltext, found)
        versions, past_scores = word_scores(fulltext, found, past=True)
        is_present = find_positions(self.known.table.present, keys)[1]
        past_versions, past_keys = self.known.table.past
        positions, is_past = find_positions(past_versions, versions)
        all_keys = np.concatenate([keys[is_present], past_keys[positions]])
        all_scores = np.concatenate([scores[is_present], past_scores[is_past]])
        by_key = np.argsort(all_keys)
        return all_keys[by_key], all_scores[by_key]
