"""The contract of every index kind, with a dict and brute force as the oracle."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from kronos.errors import (
    DimensionMismatchError,
    InputError,
    NotFoundError,
    SnapshotError,
    VectorError,
)
from tests.index.kinds import KINDS, Kind

if TYPE_CHECKING:
    from kronos.types import Keys, Vectors

DIM = 6
# -1 is what FAISS calls a key that it did not find.
KEY = st.integers(-2, 60) | st.sampled_from([2**62, -(2**62)])
KEYS = st.lists(KEY, max_size=12)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    return KINDS[request.param]


def as_keys(*keys: int) -> Keys:
    return np.array(keys, np.int64)


def coarse_vectors(count: int, seed: int) -> Vectors:
    """Multiples of 1/4: every inner product is exact in float32, and many are equal."""
    values = np.random.default_rng(seed).integers(-4, 5, (count, DIM))
    return (values / 4).astype(np.float32)


def unit_vectors(count: int, dim: int, seed: int) -> Vectors:
    vectors = np.random.default_rng(seed).standard_normal((count, dim))
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


def assert_answers(
    found: tuple[Vectors, Keys],
    held: dict[int, Vectors],
    queries: Vectors,
    k: int,
    allowed: Any = None,
    tolerance: float = 0.0,
) -> None:
    """Check a search: the k best scores in order, each with a key that has it."""
    scores, keys = found
    findable = held if allowed is None else {key: held[key] for key in set(allowed) & set(held)}
    width = min(k, len(findable))
    assert scores.dtype == np.float32
    assert keys.dtype == np.int64
    assert scores.shape == keys.shape == (len(queries), width)
    for row, query in enumerate(queries):
        truth = {key: float(vector @ query) for key, vector in findable.items()}
        best = sorted(truth.values(), reverse=True)[:width]
        np.testing.assert_allclose(scores[row], best, rtol=0, atol=tolerance)
        np.testing.assert_allclose(
            scores[row], [truth[key] for key in keys[row].tolist()], rtol=0, atol=tolerance
        )
        order = list(zip((-scores[row]).tolist(), keys[row].tolist(), strict=True))
        assert order == sorted(order)
        assert len(set(keys[row].tolist())) == width


class IndexMachine(RuleBasedStateMachine):
    """Any sequence of changes, searches and saves leaves an index equal to a dict."""

    kind: Kind

    @initialize(count=st.sampled_from([0, 40]), seed=st.integers(0, 99))
    def fill(self, count: int, seed: int) -> None:
        self.index = self.kind.make(DIM)
        self.held: dict[int, Vectors] = {}
        self.upsert(list(range(count)), seed)

    @rule(keys=st.lists(KEY, max_size=12, unique=True), seed=st.integers(0, 99))
    def upsert(self, keys: list[int], seed: int) -> None:
        vectors = coarse_vectors(len(keys), seed)
        self.index.upsert(as_keys(*keys), vectors)
        self.held.update(zip(keys, vectors, strict=True))

    @rule(keys=KEYS)
    def remove(self, keys: list[int]) -> None:
        known = set(keys) & set(self.held)
        assert self.index.remove(as_keys(*keys)) == len(known)
        for key in known:
            del self.held[key]

    @rule(
        count=st.sampled_from([0, 1, 3]),
        seed=st.integers(0, 99),
        k=st.integers(1, 70),
        allowed=st.none() | KEYS | st.just(list(range(1, 61, 2))),
    )
    def search(self, count: int, seed: int, k: int, allowed: list[int] | None) -> None:
        queries = coarse_vectors(count, seed)
        among = None if allowed is None else as_keys(*allowed)
        assert_answers(self.index.search(queries, k, allowed=among), self.held, queries, k, allowed)

    @rule()
    def save_and_load(self) -> None:
        self.index = self.kind.from_bytes(b"".join(self.index.to_buffers()), DIM)

    @rule(seed=st.integers(0, 99))
    def read_vectors(self, seed: int) -> None:
        keys = np.random.default_rng(seed).permutation(as_keys(*self.held))
        vectors = self.index.vectors_of(keys)
        assert vectors.shape == (len(keys), DIM)
        for key, vector in zip(keys.tolist(), vectors, strict=True):
            np.testing.assert_array_equal(vector, self.held[key])

    @invariant()
    def holds_the_keys(self) -> None:
        assert len(self.index) == len(self.held)
        assert self.index.keys().tolist() == sorted(self.held)


def test_any_sequence_of_changes_searches_and_saves_equals_a_dict(kind: Kind) -> None:
    machine = type("Machine", (IndexMachine,), {"kind": kind})
    run_state_machine_as_test(
        machine, settings=settings(max_examples=40, stateful_step_count=25, deadline=None)
    )


@pytest.mark.parametrize("share", [None, 0.0, 0.002, 0.01, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("count", [1, 3, 40])
def test_searches_over_unit_vectors_equal_brute_force(
    kind: Kind, share: float | None, count: int
) -> None:
    vectors, queries = unit_vectors(1500, 48, seed=1), unit_vectors(count, 48, seed=2)
    rng = np.random.default_rng(3)
    keys = rng.permutation(10_000)[:1500].astype(np.int64)
    index = kind.make(48)
    index.upsert(keys, vectors)
    allowed = None if share is None else rng.choice(keys, int(share * 1500), replace=False)
    held = dict(zip(keys.tolist(), vectors, strict=True))
    for k in (1, 10):
        found = index.search(queries, k, allowed=allowed)
        among = None if allowed is None else allowed.tolist()
        assert_answers(found, held, queries, k, among, tolerance=1e-6)


def test_an_empty_index_finds_nothing(kind: Kind) -> None:
    index = kind.make(DIM)
    for allowed in (None, as_keys(), as_keys(1, 2)):
        scores, keys = index.search(coarse_vectors(2, 0), 5, allowed=allowed)
        assert scores.shape == keys.shape == (2, 0)
    assert index.remove(as_keys(1)) == 0
    assert index.vectors_of(as_keys()).shape == (0, DIM)


def test_a_removed_key_can_be_added_again(kind: Kind) -> None:
    index = kind.make(DIM)
    old, new = coarse_vectors(2, 1)[:, None]
    index.upsert(as_keys(7), old)
    index.remove(as_keys(7, 7))
    index.upsert(as_keys(7), new)
    np.testing.assert_array_equal(index.vectors_of(as_keys(7)), new)


def held_index(kind: Kind) -> Any:
    index = kind.make(DIM)
    index.upsert(as_keys(1, 2, 3), coarse_vectors(3, 5))
    return index


@pytest.mark.parametrize("width", [1, DIM - 1, DIM + 1])
def test_a_wrong_width_is_refused_and_changes_nothing(kind: Kind, width: int) -> None:
    index = held_index(kind)
    before = b"".join(index.to_buffers())
    with pytest.raises(DimensionMismatchError, match=f"{width} wide, expected {DIM}"):
        index.upsert(as_keys(1, 9), np.zeros((2, width), np.float32))
    with pytest.raises(DimensionMismatchError, match=f"{width} wide, expected {DIM}"):
        index.search(np.zeros((1, width), np.float32), 1)
    assert b"".join(index.to_buffers()) == before


# float32 holds 1e30, but not its square: the inner products would be inf or NaN.
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30, 1e300])
def test_a_value_without_finite_products_is_refused_and_changes_nothing(
    kind: Kind, value: float
) -> None:
    index = held_index(kind)
    before = b"".join(index.to_buffers())
    vectors = np.zeros((2, DIM))
    vectors[1, 4] = value
    with pytest.raises(VectorError, match="row 1 of vectors"):
        index.upsert(as_keys(1, 9), vectors)
    with pytest.raises(VectorError, match="row 1 of queries"):
        index.search(vectors, 1)
    assert b"".join(index.to_buffers()) == before


def test_many_long_rows_are_accepted_though_their_squares_overflow_together(kind: Kind) -> None:
    index = kind.make(DIM)
    vectors = np.full((100, DIM), 1e18, np.float32)
    index.upsert(np.arange(100), vectors)
    np.testing.assert_array_equal(index.vectors_of(np.arange(100)), vectors)


@pytest.mark.parametrize(
    ("keys", "shape", "words"),
    [
        ([4, 5, 4], (3, DIM), "found 4 more than once"),
        ([4, 5], (3, DIM), "found 2 keys and 3 vectors"),
        ([[4, 5]], (2, DIM), r"keys must be \(n,\) int64"),
        ([4.0, 5.0], (2, DIM), "float64"),
        ([4], (DIM,), r"vectors must be \(n, 6\) float32"),
        ([4], (1, DIM, 1), r"vectors must be \(n, 6\) float32"),
    ],
)
def test_rows_that_do_not_agree_are_refused_and_change_nothing(
    kind: Kind, keys: Any, shape: tuple[int, ...], words: str
) -> None:
    index = held_index(kind)
    before = b"".join(index.to_buffers())
    with pytest.raises(VectorError, match=words):
        index.upsert(np.array(keys), np.ones(shape, np.float32))
    assert b"".join(index.to_buffers()) == before


@pytest.mark.parametrize("k", [0, -1])
def test_fewer_than_one_neighbour_is_refused(kind: Kind, k: int) -> None:
    with pytest.raises(InputError, match=f"k must be at least 1, not {k}"):
        held_index(kind).search(coarse_vectors(1, 0), k)


def test_contains_tells_which_keys_are_held(kind: Kind) -> None:
    index = held_index(kind)
    asked = np.concatenate([index.keys()[:2], [-7, 10**12]])
    np.testing.assert_array_equal(index.contains(asked), [True, True, False, False])
    assert index.contains(as_keys()).shape == (0,)


def test_vectors_of_names_a_key_that_is_not_held(kind: Kind) -> None:
    with pytest.raises(NotFoundError, match="key 99"):
        held_index(kind).vectors_of(as_keys(1, 99))


@pytest.mark.parametrize("layout", ["float64", "float16", "int8", "fortran", "strided", "frozen"])
def test_rows_of_any_type_and_layout_are_kept_as_float32(kind: Kind, layout: str) -> None:
    # Of multiples of 4, 1/4 is kept by every type here.
    exact = coarse_vectors(8, 6) * 4
    given: dict[str, Any] = {
        "fortran": np.asfortranarray(exact),
        "strided": np.repeat(np.repeat(exact, 2, axis=0), 3, axis=1)[::2, ::3],
        "frozen": np.frombuffer(exact.tobytes(), np.float32).reshape(exact.shape),
    }
    vectors = given.get(layout)
    vectors = exact.astype(layout) if vectors is None else vectors
    keys = np.arange(16)[::2]
    index = kind.make(DIM)
    index.upsert(keys, vectors)
    np.testing.assert_array_equal(index.vectors_of(keys), exact)
    held = dict(zip(keys.tolist(), exact, strict=True))
    assert_answers(index.search(vectors, 3), held, exact, 3)


def test_changing_the_input_arrays_does_not_change_the_index(kind: Kind) -> None:
    keys, vectors = np.arange(4), coarse_vectors(4, 7)
    given = vectors.copy()
    index = kind.make(DIM)
    index.upsert(keys, given)
    given[:] = 0
    index.vectors_of(keys)[:] = 0
    index.keys()[:] = 0
    keys[:] = 9
    assert index.keys().tolist() == [0, 1, 2, 3]
    np.testing.assert_array_equal(index.vectors_of(np.arange(4)), vectors)


def test_an_index_read_from_bytes_writes_the_same_bytes(kind: Kind) -> None:
    index = kind.make(DIM)
    index.upsert(as_keys(5, 3, 900), coarse_vectors(3, 8))
    data = b"".join(index.to_buffers())
    assert b"".join(kind.from_bytes(data, DIM).to_buffers()) == data


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: b"", "found 0"),
        (lambda data: data[:-1], r"3 vectors has \d+ bytes"),
        (lambda data: data + b"\0", r"3 vectors has \d+ bytes"),
        (lambda data: b"\7" + data[1:], "7 wide, expected 6"),
        (lambda data: data[:8] + (-1).to_bytes(8, "little", signed=True) + data[16:], "-1 vectors"),
        (lambda data: data[:-4] + np.float32(np.nan).tobytes(), "NaN"),
        (lambda data: data[:16] + data[24:32] * 3 + data[40:], "2 more than once"),
    ],
)
def test_invalid_bytes_are_refused(kind: Kind, change: Any, words: str) -> None:
    with pytest.raises(SnapshotError, match=words):
        kind.from_bytes(change(b"".join(held_index(kind).to_buffers())), DIM)


def test_the_exact_index_finds_the_lowest_of_equal_keys() -> None:
    index = KINDS["exact"].make(DIM)
    index.upsert(np.arange(50)[::-1], np.ones((50, DIM), np.float32))
    _, keys = index.search(np.ones((1, DIM), np.float32), 3)
    assert keys.tolist() == [[0, 1, 2]]
