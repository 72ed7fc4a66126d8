"""Waiting for an embedder: growing and jittered, as it asks, bounded, shared. No test sleeps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kronos.embedding.patience import ONCE, Patience
from kronos.errors import EmbeddingError, TransientEmbeddingError


class FakeTime:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def patient(time: FakeTime, seconds: float, tell: Callable[[str], object] = len) -> Patience:
    return Patience(seconds, "embed_retry_s", sleep=time.sleep, clock=time.clock, tell=tell)


def failing(*failures: Exception) -> Callable[[], str]:
    """Fails so often, and then answers."""
    rest: Iterator[Exception] = iter(failures)

    def ask() -> str:
        if (failure := next(rest, None)) is not None:
            raise failure
        return "made"

    return ask


def lost(retry_after_s: float | None = None) -> TransientEmbeddingError:
    return TransientEmbeddingError("lost", retry_after_s=retry_after_s)


def test_waits_grow_and_are_jittered() -> None:
    time = FakeTime()
    assert patient(time, 120).call(failing(*[lost()] * 6)) == "made"
    for step, seconds in enumerate(time.slept):
        assert 0.25 * 2**step <= seconds <= 1.25 * 0.25 * 2**step
    assert len(time.slept) == 6
    assert len({seconds / 2**step for step, seconds in enumerate(time.slept)}) == 6


def test_what_is_asked_for_is_heeded() -> None:
    time = FakeTime()
    patient(time, 120).call(failing(lost(30), lost(0), lost(0.5)))
    assert 30 <= time.slept[0] <= 37.5
    assert 0.5 <= time.slept[1] <= 0.625, "zero is no invitation to come without end"
    assert 1 <= time.slept[2] <= 1.25


def test_patience_ends_and_says_so() -> None:
    time = FakeTime()
    cause = OSError("down")
    failure = lost()
    failure.__cause__ = cause
    calls = []

    def ask() -> None:
        calls.append(time.now)
        raise failure

    with pytest.raises(TransientEmbeddingError, match=r"lost\. It failed \d+ times") as caught:
        patient(time, 60).call(ask)
    assert "embed_retry_s is 60" in str(caught.value)
    assert f"failed {len(calls)} times" in str(caught.value)
    assert caught.value.__cause__ is cause
    assert 60 <= calls[-1] - calls[0] <= 60 * 1.25, "the last try is at the end of the patience"


def test_who_asks_for_more_than_the_patience_is_not_waited_for() -> None:
    time = FakeTime()
    with pytest.raises(TransientEmbeddingError, match="left alone for 3600 s") as caught:
        patient(time, 60).call(failing(lost(3600)))
    assert caught.value.retry_after_s == 3600
    assert time.slept == []


@pytest.mark.parametrize("patience", [ONCE, Patience(0, "embed_retry_s")])
def test_no_patience_asks_once(patience: Patience) -> None:
    with pytest.raises(TransientEmbeddingError, match=r"^lost$"):
        patience.call(failing(lost()))


def test_what_does_not_pass_is_raised_at_once() -> None:
    time = FakeTime()
    with pytest.raises(EmbeddingError, match="no"):
        patient(time, 60).call(failing(lost(), EmbeddingError("no")))
    assert len(time.slept) == 1


def test_whoever_shares_a_pause_waits_with_the_others() -> None:
    time = FakeTime()
    patience = patient(time, 60)
    told: list[str] = []
    other_slept: list[float] = []

    def other_sleep(seconds: float) -> None:
        other_slept.append(seconds)
        time.now += seconds

    def ask_beside() -> str:
        """The first caller was refused and waits: a second one comes."""
        time.now += 0  # the pause has begun
        return patience.waiting_by(other_sleep, told.append).call(lambda: "made")

    def sleep(seconds: float) -> None:
        if not other_slept:
            assert ask_beside() == "made"
        time.sleep(seconds)

    first = patience.waiting_by(sleep, told.append)
    assert first.call(failing(lost(10))) == "made"
    assert 10 <= other_slept[0] <= 12.5
    assert told == ["waits 10.0 s before the next try: lost"]


def test_a_sleeper_that_raises_ends_the_call() -> None:
    class Stop(Exception):
        pass

    def stop(_seconds: float) -> None:
        raise Stop

    with pytest.raises(Stop):
        patient(FakeTime(), 60).waiting_by(stop, len).call(failing(lost()))


@given(
    st.floats(0, 300),
    st.lists(st.one_of(st.none(), st.floats(0, 400)), max_size=60),
)
def test_it_waits_as_asked_and_never_much_longer_than_the_patience(
    seconds: float, asked: list[float | None]
) -> None:
    time = FakeTime()
    began: list[float] = []
    waits: list[Any] = [*asked]

    def ask() -> str:
        began.append(time.now)
        if len(began) <= len(waits):
            raise lost(waits[len(began) - 1])
        return "made"

    try:
        assert patient(time, seconds).call(ask) == "made"
    except TransientEmbeddingError:
        left = seconds - (time.now - began[0])
        assert left <= 1e-6 or (waits[len(began) - 1] or 0) >= left - 1e-6
    for wanted, one, other in zip(waits, began, began[1:], strict=False):
        assert other - one >= min(wanted or 0, 400) - 1e-6
    assert time.now - began[0] <= 1.25 * seconds + 1e-6
