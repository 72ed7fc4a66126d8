"""A program's own embedders: checked at open, and read in many shapes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kronos import MemoryStore
from kronos.embedding.embedder_calls import (
    check_embedder,
    embed_documents,
    embed_each,
    embed_queries,
)
from kronos.embedding.hashing import HashEmbedder
from kronos.embedding.retry import RetryPolicy
from kronos.errors import (
    ConfigurationError,
    DimensionMismatchError,
    EmbeddingError,
    TransientEmbeddingError,
)
from tests.conftest import Opener
from tests.embedding.failures import LASTING, TRANSIENT

ROWS = [[1.0, 0.0, 0.0], [0.0, 2.0, 0.0]]


class Own:
    """A program's embedder that returns what a test sets."""

    model_id, fingerprint = "own", "own-1"
    dim: Any = 3

    def __init__(self, made: Callable[[Sequence[str]], Any]) -> None:
        self.embed_documents = self.embed_queries = made


def returning(made: Callable[[], Any]) -> Own:
    return Own(lambda _texts: made())


# -- At open ------------------------------------------------------------------------------------


async def _coroutine(texts: Sequence[str]) -> Any:
    return ROWS


async def _generator(texts: Sequence[str]) -> Any:
    yield ROWS


class _Callable:
    async def __call__(self, texts: Sequence[str]) -> Any:
        return ROWS


@pytest.mark.parametrize(
    "method",
    [_coroutine, _generator, functools.partial(_coroutine), _Callable()],
    ids=["function", "generator", "partial", "object"],
)
@pytest.mark.parametrize("name", ["embed_documents", "embed_queries"])
def test_a_coroutine_function_is_refused_by_name_at_open(
    open_store: Opener, method: Any, name: str
) -> None:
    embedder = returning(lambda: ROWS)
    setattr(embedder, name, method)
    with pytest.raises(
        ConfigurationError,
        match=f"embedder.{name} is an? (coroutine.*KronosMemory|async generator)",
    ):
        open_store(embedder=embedder)


@pytest.mark.parametrize("dim", [np.int64(3), np.int32(3), np.uint8(3)])
def test_a_width_can_be_a_numpy_integer(open_store: Opener, dim: Any) -> None:
    embedder = returning(lambda: ROWS[:1])
    embedder.dim = dim
    with open_store(embedder=embedder) as store:
        store.add("a text")
        assert store.stats().dim == 3
        assert [hit.content for hit in store.search("a text", mode="dense")] == ["a text"]
        assert type(store.models.plan().dim) is int
    assert open_store(embedder=embedder).count() == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("dim", value) for value in (0, -1, True, 3.0, "3", None, np.float64(3))),
        *((name, value) for name in ("model_id", "fingerprint") for value in ("", None, 3, b"x")),
        *((name, value) for name in ("embed_documents", "embed_queries") for value in (None, 3)),
    ],
)
def test_a_member_of_the_wrong_kind_is_named(name: str, value: Any) -> None:
    embedder = returning(lambda: ROWS)
    setattr(embedder, name, value)
    with pytest.raises(ConfigurationError, match=f"embedder.{name} must be") as caught:
        check_embedder(embedder)
    assert caught.value.field == f"embedder.{name}"


@pytest.mark.parametrize("name", ["model_id", "fingerprint", "dim", "embed_documents"])
@pytest.mark.parametrize("missing", [True, False])
def test_a_missing_or_failing_member_is_named(name: str, missing: bool) -> None:
    def fail(_self: object) -> Any:
        raise RuntimeError("not loaded yet")

    plain: dict[str, Any] = {"model_id": "own", "fingerprint": "own-1", "dim": 3}
    methods = {"embed_documents": lambda _self, _: ROWS, "embed_queries": lambda _self, _: ROWS}
    parts = {**plain, **methods}
    del parts[name]
    kind = type("Broken", (), {**parts, **({} if missing else {name: property(fail)})})
    expected = "must be" if missing else "cannot be read .RuntimeError: not loaded yet"
    with pytest.raises(ConfigurationError, match=f"embedder.{name} {expected}"):
        check_embedder(kind())


def test_an_embedder_can_delegate_its_members() -> None:
    class Proxy:
        def __getattr__(self, name: str) -> Any:
            return getattr(HashEmbedder(8), name)

    assert check_embedder(Proxy()).dim == 8


# -- Return values ------------------------------------------------------------------------------


def tensor(**options: Any) -> Any:
    import torch

    return torch.tensor(ROWS, **options)


def generated() -> Iterator[list[float]]:
    yield from ROWS


SHAPES: dict[str, Callable[[], Any]] = {
    "lists": lambda: ROWS,
    "tuples": lambda: tuple(map(tuple, ROWS)),
    "float64": lambda: np.array(ROWS),
    "integers": lambda: np.array(ROWS, np.int8),
    "rows of arrays": lambda: [np.array(row) for row in ROWS],
    "a generator": generated,
    "a map": lambda: map(np.array, ROWS),
    "a tensor": tensor,
    "a tensor with a graph": lambda: tensor(requires_grad=True),
    "a tensor of bfloat16": lambda: tensor().bfloat16(),
    "tensors": lambda: list(tensor(requires_grad=True)),
    "a generator of tensors": lambda: (row for row in tensor(requires_grad=True)),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("embed", [embed_documents, embed_queries])
def test_vectors_come_in_many_shapes(shape: str, embed: Any) -> None:
    rows = embed(returning(SHAPES[shape]), ["one", "two"])
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(rows, [[1, 0, 0], [0, 1, 0]])


class _Later:
    def __await__(self) -> Any:
        yield


NO_VECTORS: dict[str, tuple[Callable[[], Any], str]] = {
    "a coroutine": (lambda: _coroutine([]), "embed_documents returned a coroutine.*KronosMemory"),
    "an awaitable": (_Later, "returned a _Later, which must be awaited"),
    "an async generator": (lambda: _generator([]), "returned a async_generator"),
    "nothing": (lambda: None, "values of type object"),
    "texts": (lambda: [["1", "2", "3"]] * 2, "values of type <U1, expected one row of numbers"),
    "truths": (lambda: np.ones((2, 3), bool), "values of type bool"),
    "objects": (lambda: np.array(ROWS, object), "values of type object"),
    "holes": (lambda: [[1.0, None, 0.0], ROWS[1]], "values of type object"),
    "complex": (lambda: np.array(ROWS, complex), "values of type complex128"),
    "a dict": (lambda: {"data": ROWS}, "values of type <U4"),
    "ragged": (lambda: [[1.0], ROWS[1]], "rows of different lengths"),
}


@pytest.mark.parametrize("kind", NO_VECTORS)
def test_a_return_value_without_vectors_is_named(kind: str) -> None:
    made, message = NO_VECTORS[kind]
    with pytest.raises(EmbeddingError, match=f"the embedder own failed: .*{message}"):
        embed_documents(returning(made), ["one", "two"])


@pytest.mark.parametrize("made", [ROWS[0], [ROWS], ROWS[:1], [row[:2] for row in ROWS]])
def test_another_shape_is_named(made: Any) -> None:
    with pytest.raises(DimensionMismatchError, match=r"returned shape .* expected \(2, 3\)"):
        embed_documents(returning(lambda: made), ["one", "two"])


# -- Who is to blame ----------------------------------------------------------------------------


class Flaky(HashEmbedder):
    """Fails transiently on request, and always on some texts."""

    def __init__(self, bad: set[str], fails: Callable[[], Exception | None]) -> None:
        super().__init__(8)
        self.bad, self.fails = bad, fails
        self.sizes: list[int] = []

    def embed_documents(self, texts: Sequence[str]) -> Any:
        self.sizes.append(len(texts))
        if (failure := self.fails()) is not None:
            raise failure
        if at_fault := self.bad.intersection(texts):
            raise ValueError(f"cannot read {at_fault}")
        return super().embed_documents(texts)


def endless() -> RetryPolicy:
    """A retry policy without real waits."""
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    return RetryPolicy(10**9, "embed_retry_s", sleep=sleep, clock=lambda: now[0])


@given(st.data(), st.integers(1, 40), st.floats(0, 0.9))
def test_only_the_texts_at_fault_are_blamed_despite_transient_failures(
    data: st.DataObject, count: int, probability: float
) -> None:
    texts = [f"text {number}: HTTP 429 or a timeout" for number in range(count)]
    bad = data.draw(st.sets(st.sampled_from(texts)))
    random = data.draw(st.randoms(use_true_random=False))
    kinds = sorted(TRANSIENT)

    def fails() -> Exception | None:
        return TRANSIENT[random.choice(kinds)]() if random.random() < probability else None

    found = embed_each(Flaky(bad, fails), texts, endless())
    assert {texts[at] for at in found.errors} == bad
    assert [texts[at] for at in found.positions] == [text for text in texts if text not in bad]
    np.testing.assert_array_equal(
        found.rows, HashEmbedder(8).embed_documents([texts[at] for at in found.positions])
    )


@pytest.mark.parametrize("kind", TRANSIENT)
def test_a_transient_failure_never_splits_a_batch(kind: str) -> None:
    failures = iter([TRANSIENT[kind]() for _ in range(5)])
    embedder = Flaky(set(), lambda: next(failures, None))
    assert not embed_each(embedder, ["one", "two", "three"], endless()).errors
    assert embedder.sizes == [3] * 6


@pytest.mark.parametrize("kind", TRANSIENT)
def test_without_retries_a_transient_failure_blames_no_text(kind: str) -> None:
    embedder = Flaky(set(), TRANSIENT[kind])
    with pytest.raises(TransientEmbeddingError, match=r"the embedder hash failed: ."):
        embed_each(embedder, ["one", "two", "three"])
    assert embedder.sizes == [3]


@pytest.mark.parametrize("kind", sorted(set(LASTING) - {"memory", "torch memory"}))
def test_a_lasting_failure_on_all_texts_is_the_embedders(kind: str) -> None:
    with pytest.raises(EmbeddingError) as caught:
        embed_each(Flaky(set(), LASTING[kind]), ["one", "two", "three"], endless())
    assert not isinstance(caught.value, TransientEmbeddingError)


def test_an_unknown_failure_that_does_not_recur_blames_no_text() -> None:
    seen: list[int] = []

    def fails() -> Exception | None:
        seen.append(1)
        return Exception("a moment, please") if len(seen) <= 2 else None

    assert not embed_each(Flaky(set(), fails), ["one", "two"], endless()).errors


def test_an_exception_being_handled_during_a_call_does_not_count(open_store: Opener) -> None:
    embedder = Flaky({"bad"}, lambda: None)
    store: MemoryStore = open_store(embedder=embedder)
    try:
        raise TimeoutError
    except TimeoutError:
        with pytest.raises(EmbeddingError, match="cannot read"):
            store.add("bad")
    assert embedder.sizes == [1]


def test_a_missing_name_is_refused(open_store: Opener) -> None:
    with pytest.raises(ConfigurationError, match=r"embedder\.model_id must be a str, not None"):
        open_store(embedder=SimpleNamespace())
