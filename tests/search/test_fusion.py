"""The combined score of vectors and words, and its bound for memories that were not looked at."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kronos.search.fusion import Fusion, Scale

if TYPE_CHECKING:
    from numpy.typing import NDArray

COSINES = st.floats(-1, 1)
WORDS = st.floats(0, 30)
SIGNALS = st.lists(st.tuples(COSINES, WORDS), min_size=1, max_size=8)


def arrays(signals: list[tuple[float, float]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    cosines, words = np.array(signals, np.float64).T
    return cosines, words


@given(SIGNALS, SIGNALS, st.tuples(COSINES, WORDS))
def test_no_memory_scores_above_its_bound(
    heads: list[tuple[float, float]],
    others: list[tuple[float, float]],
    most: tuple[float, float],
) -> None:
    cosines, words = arrays(heads)
    # Other memories have at most the signals of the best ones.
    most = min(most[0], max(cosines)), min(most[1], max(words))
    fusion = Fusion.over(cosines, words, Scale(0.09, 0.2))
    below = [(min(cosine, most[0]), min(word, most[1])) for cosine, word in others]
    scores = sum(fusion.shares(*arrays(below)).values(), np.zeros(len(below)))
    assert (scores <= fusion.bound(*most) + 1e-12).all()


def test_the_score_is_that_of_the_formula() -> None:
    cosines, words = arrays([(0.9, 3.0), (0.5, 8.0), (0.1, 0.0)])
    scale = Scale(0.1, 0.2)
    shares = Fusion.over(cosines, words, scale).shares(cosines, words)
    said = [0.2 * 0.1 * word for word in words]
    assert shares["vectors"].tolist() == cosines.tolist()
    assert shares["words"].tolist() == pytest.approx(said)

    def softmax(values: list[float]) -> list[float]:
        powers = [math.exp(2 / 0.1 * value) for value in values]
        return [power / sum(powers) for power in powers]

    both = zip(softmax(cosines.tolist()), softmax(said), strict=True)
    expected = [0.1 / 2 * math.log((p + q) / 2) for p, q in both]
    assert shares["agreement"].tolist() == pytest.approx(expected)


def test_the_scale_follows_the_spread_of_the_store() -> None:
    query = np.array([1.0, 0.0], np.float32)
    turned = np.linspace(0, math.pi, 400)
    wide = np.stack([np.cos(turned), np.sin(turned)], axis=1).astype(np.float32)
    narrow = np.stack([np.ones(400), np.zeros(400)], axis=1).astype(np.float32)
    nothing = np.empty((0, 2), np.float32)

    def scale(sample: NDArray[np.float32], *, hashed: bool = False, names: bool = False) -> Scale:
        return Scale.of(query, sample, is_hashed=hashed, has_names=names)

    assert scale(wide).spread == pytest.approx(math.sqrt(0.5), abs=0.01)
    assert scale(narrow).spread == 0.01
    assert scale(nothing).spread == pytest.approx(0.09)
    assert scale(wide, names=True).rate > scale(wide).rate
    assert scale(wide, hashed=True).rate == scale(wide, hashed=True, names=True).rate == 1.0
