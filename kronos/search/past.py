"""Where a search finds what the store knew at a moment.

Texts that still stand are found by the index of today, the others are compared one by one. Their
vectors are read once and kept, as `kronos.search.kept` keeps which memories were known then.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from kronos.db.vectors import from_rows
from kronos.errors import KronosError
from kronos.index.base import find_positions
from kronos.search.kept import KeySet, KeySets, Known
from kronos.search.lexical import terms, word_scores
from kronos.search.plan import Found, nearest
from kronos.search.sources import held_vectors

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from kronos.repository.history import PastText
    from kronos.repository.memories import Repository
    from kronos.types import Keys, Space, VectorIndex, Vectors

    Floats: TypeAlias = NDArray[np.float64]

_MOST_CHANGED = 0.1
"""Where no larger share of the index is of another text than then, it is asked for a few more than
are wanted: to look up all the others takes longer."""


class NotEmbeddedError(KronosError):
    """Texts of the past have no vector in the space that serves."""

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
    """(n,) which of them have a vector in the space."""
    vectors: Vectors
    """(made, dim) float32."""
    seq: int

    @property
    def size(self) -> int:
        """How many numbers there are to keep."""
        return self.vectors.size // 2 + 2 * self.keys.size

    @property
    def embedded(self) -> Keys:
        """The keys of those that have a vector: the rows of `vectors`."""
        return self.keys[self.made]

    def completed(self, vectors: Mapping[int, Vectors]) -> Texts:
        """The same, with vectors of texts that had none, by the versions' keys."""
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
        """Keep the vectors that are known, and read those that are not."""
        assert known.table is not None
        gone = known.table.beside[:, 1] == 0
        keys, versions = known.table.keys[gone], known.table.beside[gone, 0]
        if np.array_equal(versions, before.versions):
            return replace(before, seq=known.seq)
        order = np.argsort(before.versions)
        places, old = find_positions(before.versions[order], versions)
        made, vectors = np.zeros(keys.size, np.bool_), np.zeros((keys.size, self.space.dim), "<f4")
        was_made = before.made[order][places]
        made[np.flatnonzero(old)[was_made]] = True
        rows = np.cumsum(before.made)[order][places][was_made] - 1
        vectors[made] = before.vectors[rows]
        new = np.flatnonzero(~old)
        found = repository.history.vectors(self.space, versions[new].tolist())
        read = np.array([version in found for version in versions[new].tolist()], np.bool_)
        blobs = [found[version] for version in versions[new[read]].tolist()]
        vectors[new[read]] = from_rows(blobs, self.space.dim)
        made[new[read]] = True
        return Texts(keys, versions, made, vectors[made], known.seq)


@dataclass(frozen=True, slots=True)
class Past:
    """The memories as the store knew them at a moment."""

    repository: Repository
    """Of today."""
    index: VectorIndex | None
    """None: nothing is asked but words."""
    known: KeySet
    """What was known then."""
    texts: Texts | None
    """The past texts; None: nothing is asked but words."""
    sample: Callable[[], Vectors]
    """See `Source`."""

    def nearest(self, query: Vectors, k: int, among: Keys | None = None) -> Found:
        """See `Source`."""
        assert self.texts is not None
        found = self._standing(query, k, among)
        past, vectors = self.texts.embedded, self.texts.vectors
        if among is not None:
            some = find_positions(among, past)[1]
            past, vectors = past[some], vectors[some]
        keys = np.concatenate([found.keys, past])
        scores = np.concatenate([found.scores, vectors @ query])
        order = np.lexsort((keys, -scores))[:k]
        plan = f"{found.plan}, and {past.size} texts of the past"
        return Found(scores[order], keys[order], plan)

    def _standing(self, query: Vectors, k: int, among: Keys | None) -> Found:
        """The nearest of those whose texts still stand."""
        assert self.index is not None
        assert self.known.table is not None
        held = self.known.table.held
        if among is not None:
            return nearest(self.index, query, k, among[find_positions(held, among)[1]])
        if held.size >= (1 - _MOST_CHANGED) * len(self.index):
            found = nearest(self.index, query, 2 * k, None)
            stands = find_positions(held, found.keys)[1]
            if np.count_nonzero(stands) >= k or found.keys.size < 2 * k:
                return Found(found.scores[stands][:k], found.keys[stands][:k], found.plan)
        return nearest(self.index, query, k, held)

    def cosines(self, query: Vectors, keys: Keys) -> Vectors:
        """See `Source`."""
        return self.vectors(keys) @ query

    def vectors(self, keys: Keys) -> Vectors:
        """See `Source`."""
        assert self.index is not None
        assert self.known.table is not None
        assert self.texts is not None
        rows = held_vectors(self.index, keys)
        positions, past = find_positions(self.texts.embedded, keys)
        rows[~find_positions(self.known.table.held, keys)[1]] = 0
        rows[past] = self.texts.vectors[positions]
        return rows

    def words(self, query: str) -> tuple[Keys, Floats]:
        """See `Source`."""
        assert self.known.table is not None
        words = self.repository.fulltext
        found = terms(words, query)
        keys, scores = word_scores(words, found)
        versions, past_scores = word_scores(words, found, past=True)
        stands = find_positions(self.known.table.present, keys)[1]
        past_versions, past_keys = self.known.table.past
        positions, then = find_positions(past_versions, versions)
        all_keys = np.concatenate([keys[stands], past_keys[positions]])
        all_scores = np.concatenate([scores[stands], past_scores[then]])
        by_key = np.argsort(all_keys)
        return all_keys[by_key], all_scores[by_key]
