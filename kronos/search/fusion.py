"""How vectors and words are combined in one score.

    score = cosine + r s BM25 + (s / A) ln((P + Q) / 2)

s is the spread of the query's cosines over the store. It makes models comparable: the cosines of
some lie close together, of others far apart. r is how many spreads a point of BM25 is worth. It is
higher if the query has a name or a number, which words find better than vectors do. P and Q are the
probabilities that vectors and words alone give a memory: softmax of A cosine / s and of A r BM25,
over the best of both lists. The first two terms multiply the two probabilities, and the third adds
them: a memory that one side is sure of is not lost because the other side does not know it. The
score rises with the cosine and with BM25, and has the unit of the cosine.

Fixed weights of normalised lists, and reciprocal ranks, stretch a list that knows nothing as wide
as one that does, so they can fall far below the better of their two parts. `python -m
benchmarks.quality` measures the result. Sources: ranks lose what scores know, and a convex sum of
scores beats them (Bruch, Gai and Ingber, "An Analysis of Fusion Functions for Hybrid Retrieval",
ACM TOIS 2023); products of probabilities (Hinton, "Training Products of Experts by Minimizing
Contrastive Divergence", 2002).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from kronos.types import Vectors

    Floats: TypeAlias = NDArray[np.float64]

_RATE, _RATE_WITH_NAMES = 0.2, 0.3
"""Spreads of the cosine that a point of BM25 is worth."""
_RATE_OF_HASHES = 1.0
"""The same for hashed vectors. They are made of letters and words, so they know no more than the
words do, and know it less exactly."""
_SHARPNESS = 2.0
"""A: nats that a spread is worth in the probabilities."""
_USUAL_SPREAD, _USUAL_WEIGHT = 0.09, 4
"""The spread of an unknown store, and how many memories it counts as."""
_LEAST_SPREAD = 0.01
_LEAST_PROBABILITY = 1e-30


class Scale(NamedTuple):
    """How one query's vectors and words are weighted."""

    spread: float
    """Of the query's cosines over the store."""
    rate: float
    """Spreads that a point of BM25 is worth."""

    @classmethod
    def of(cls, query: Vectors, sample: Vectors, *, is_hashed: bool, has_names: bool) -> Scale:
        """Measure the spread, and choose the rate.

        Args:
            query: (dim,) float32.
            sample: (n, dim) float32, some vectors of the store.
            is_hashed: whether the hash embedder made the vectors.
            has_names: whether the query has a name or a number.
        """
        squares = float(np.var(sample @ query)) * len(sample) if len(sample) else 0.0
        usual = _USUAL_WEIGHT * _USUAL_SPREAD**2
        spread = math.sqrt((squares + usual) / (len(sample) + _USUAL_WEIGHT))
        rate = _RATE_WITH_NAMES if has_names else _RATE
        return cls(max(spread, _LEAST_SPREAD), _RATE_OF_HASHES if is_hashed else rate)


@dataclass(slots=True)
class Fusion:
    """Combines cosines and BM25 of one query. Its probabilities are over the best candidates."""

    scale: Scale
    nats: float
    """Nats for each unit of the cosine: A / s."""
    by_vectors: Softmax
    by_words: Softmax

    @classmethod
    def over(cls, cosines: Floats, words: Floats, scale: Scale) -> Fusion:
        """Prepare the softmax of both sides.

        Args:
            cosines: (n,) of the best candidates of both lists.
            words: (n,) BM25 of the same.
            scale: of the query.
        """
        nats = _SHARPNESS / scale.spread
        said = scale.rate * scale.spread * words
        return cls(scale, nats, Softmax.over(nats * cosines), Softmax.over(nats * said))

    def shares(self, cosines: Floats, words: Floats) -> dict[str, Floats]:
        """What vectors, words and their agreement add to the scores of candidates.

        Args:
            cosines: (n,).
            words: (n,) BM25; 0 for candidates with none of the words.

        Returns:
            Three arrays (n,).
        """
        said, agreement = self._words_and_agreement(cosines, words)
        return {"vectors": cosines, "words": said, "agreement": agreement}

    def bound(self, cosine: float, words: float) -> float:
        """The highest score of memories with at most this cosine and this BM25."""
        said, agreement = self._words_and_agreement(cosine, words)
        return float(cosine + said + agreement)

    def _words_and_agreement(self, cosines: Any, words: Any) -> tuple[Any, Any]:
        said = self.scale.rate * self.scale.spread * words
        both = self.by_vectors.of(self.nats * cosines) + self.by_words.of(self.nats * said)
        return said, np.log(both / 2 + _LEAST_PROBABILITY) / self.nats


class Softmax(NamedTuple):
    """Probabilities of nats, relative to those of the best candidates."""

    highest: float
    total: float

    @classmethod
    def over(cls, nats: Floats) -> Softmax:
        """Normalise over the best candidates: (n,)."""
        highest = float(nats.max(initial=-np.inf))
        return cls(highest, float(np.exp(nats - highest).sum()))

    def of(self, nats: Any) -> Any:
        """The probabilities of candidates, one or (n,)."""
        # Other candidates have no more nats than the highest, except for rounding.
        return np.exp(np.minimum(nats - self.highest, 0.0)) / self.total
