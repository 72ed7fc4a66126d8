"""Near duplicates, against a comparison of every pair in plain Python."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kronos.errors import InputError
from kronos.index.exact import ExactIndex
from kronos.index.faiss.flat import FaissIndex
from kronos.search.duplicates import KeyGroup, near_duplicates

if TYPE_CHECKING:
    from kronos.types import Keys, VectorIndex, Vectors

Maker = Any
KINDS = [ExactIndex, FaissIndex]


def unit(rows: Any) -> Vectors:
    values = np.asarray(rows, np.float64)
    scaled: Vectors = np.float32(values / np.linalg.norm(values, axis=1, keepdims=True))
    return scaled


def index_of(keys: Sequence[int], rows: Vectors, kind: Maker = ExactIndex) -> VectorIndex:
    index: VectorIndex = kind(rows.shape[1])
    index.upsert(np.array(keys, np.int64), rows)
    return index


def groups_of(keys: Sequence[int], rows: Vectors, threshold: float) -> list[KeyGroup]:
    """Join all pairs, best first, down to the threshold (Kruskal's algorithm)."""
    values = rows.astype(np.float64)
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    table = np.round(values @ values.T, 6).tolist()
    count = len(keys)
    pairs = sorted(
        ((table[i][j], i, j) for i in range(count) for j in range(i)), key=lambda p: -p[0]
    )
    group = list(range(count))
    weakest = [1.0] * count
    for score, one, other in pairs:
        if score < threshold or group[one] == group[other]:
            continue
        kept, gone = group[one], group[other]
        group = [kept if each == gone else each for each in group]
        weakest[kept] = min(weakest[kept], weakest[gone], score)
    members: dict[int, list[int]] = {}
    for key, each in zip(keys, group, strict=True):
        members.setdefault(each, []).append(key)
    found = [
        KeyGroup(tuple(sorted(each)), weakest[number])
        for number, each in members.items()
        if len(each) > 1
    ]
    return sorted(found, key=lambda each: (-each.score, each.keys))


def assert_same(found: list[KeyGroup], expected: list[KeyGroup]) -> None:
    assert [group.keys for group in found] == [group.keys for group in expected]
    assert [group.score for group in found] == pytest.approx(
        [group.score for group in expected], abs=1e-9
    )


@st.composite
def clouds(draw: st.DrawFn) -> Vectors:
    """Points on a small grid: many are equal, and many distances are equal."""
    width = draw(st.integers(2, 4))
    row = st.lists(st.integers(-2, 2), min_size=width, max_size=width).filter(any)
    return unit(draw(st.lists(row, min_size=1, max_size=30)))


@settings(max_examples=200, deadline=None)
@given(
    rows=clouds(),
    threshold=st.sampled_from([0.1, 0.5, 0.8, 0.9, 0.95, 1.0]),
    batch=st.integers(1, 8),
)
def test_groups_are_those_that_comparing_all_pairs_finds(
    rows: Vectors, threshold: float, batch: int
) -> None:
    keys = [7 * number + 3 for number in range(len(rows))]
    expected = groups_of(keys, rows, threshold)
    for kind in KINDS:
        found = near_duplicates(index_of(keys, rows, kind), threshold, batch=batch)
        assert_same(found, expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch", [64, 1024])
def test_copies_scattered_among_many_vectors_are_found(kind: Maker, batch: int) -> None:
    rng = np.random.default_rng(7)
    rows = unit(rng.standard_normal((700, 48)))
    copies = rng.permutation(700)[:200]
    rows[copies[100:]] = unit(rows[copies[:100]] + 0.05 * rng.standard_normal((100, 48)))
    keys = rng.permutation(10_000)[:700].tolist()
    index = index_of(keys, rows, kind)
    for threshold in (0.4, 0.9, 0.95):
        assert_same(
            near_duplicates(index, threshold, batch=batch), groups_of(keys, rows, threshold)
        )


def test_any_number_of_equal_vectors_form_one_group() -> None:
    rng = np.random.default_rng(3)
    one, other = unit(rng.standard_normal((2, 384)))
    rows = np.stack([one, other] * 1500)
    (first, second) = near_duplicates(index_of(range(3000), rows, FaissIndex), 1.0, batch=256)
    assert first == KeyGroup(tuple(range(0, 3000, 2)), 1.0)
    assert second == KeyGroup(tuple(range(1, 3000, 2)), 1.0)


def test_the_score_of_a_group_is_that_of_its_weakest_necessary_pair() -> None:
    angles = np.radians([0, 1, 8, 9, 90, 92])
    rows = unit(np.stack([np.cos(angles), np.sin(angles)], axis=1))
    index = index_of(range(6), rows)
    seven, two, one = (round(float(np.cos(np.radians(angle))), 6) for angle in (7, 2, 1))
    assert near_duplicates(index, 0.99) == [
        KeyGroup((4, 5), two),
        KeyGroup((0, 1, 2, 3), seven),
    ]
    assert near_duplicates(index, 0.999) == [
        KeyGroup((0, 1), one),
        KeyGroup((2, 3), one),
        KeyGroup((4, 5), two),
    ]
    assert near_duplicates(index, two) == near_duplicates(index, 0.999), "the threshold is taken"


def test_only_allowed_keys_are_compared() -> None:
    rows = unit([[1, 0], [1, 0.01], [1, 0.02], [0, 1]])
    index = index_of([1, 2, 3, 4], rows)
    allowed: Keys = np.array([3, 1, 99], np.int64)
    (group,) = near_duplicates(index, 0.9, allowed=allowed)
    assert group.keys == (1, 3)
    assert near_duplicates(index, 0.9, allowed=np.empty(0, np.int64)) == []
    assert near_duplicates(ExactIndex(2), 0.9) == []


def test_every_batch_size_gives_the_same_groups() -> None:
    rng = np.random.default_rng(11)
    rows = unit(rng.integers(-1, 2, (400, 6)) + 0.1)
    index = index_of(range(400), rows, FaissIndex)
    found = near_duplicates(index, 0.8)
    assert found
    for batch in (1, 13, 100, 400, 10_000):
        assert near_duplicates(index, 0.8, batch=batch) == found


@pytest.mark.parametrize("threshold", [0, -0.5, 1.0001, float("nan"), True, "0.9"])
def test_a_threshold_outside_0_to_1_is_refused(threshold: Any) -> None:
    with pytest.raises(InputError) as found:
        near_duplicates(ExactIndex(2), threshold)
    assert found.value.field == "threshold"


class Counted(ExactIndex):
    """Records the most vectors that one call asked for."""

    most = 0

    def vectors_of(self, keys: Keys) -> Vectors:
        self.most = max(self.most, len(keys))
        return super().vectors_of(keys)

    def search(self, *_: Any, **__: Any) -> Any:
        raise AssertionError("search is not exact enough: its scores are float32")


def test_at_most_one_tile_of_vectors_is_in_memory() -> None:
    rng = np.random.default_rng(5)
    index = Counted(8)
    index.upsert(np.arange(1000), unit(rng.standard_normal((1000, 8))))
    near_duplicates(index, 0.9, batch=50)
    assert index.most == 200
