"""Retries: waits that grow with jitter, last as long as asked, are bounded and shared.

No test sleeps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kronos.embedding.retry import NO_RETRY, RetryPolicy
from kronos.errors import EmbeddingError, TransientEmbeddingError


class FakeTime:
    """A clock that only `sleep` advances."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def retrying(time: FakeTime, seconds: float) -> RetryPolicy:
    return RetryPolicy(seconds, "embed_retry_s", sleep=time.sleep, clock=time.clock)


def failing(*failures: Exception) -> Callable[[], str]:
    """Fails with each of these, then returns."""
    rest: Iterator[Exception] = iter(failures)

    def call() -> str:
        if (failure := next(rest, None)) is not None:
            raise failure
        return "made"

    return call


def lost(retry_after_s: float | None = None) -> TransientEmbeddingError:
    return TransientEmbeddingError("lost", retry_after_s=retry_after_s)


def test_waits_grow_and_are_jittered() -> None:
    time = FakeTime()
    assert retrying(time, 120).call(failing(*[lost()] * 6)) == "made"
    for step, seconds in enumerate(time.slept):
        assert 0.25 * 2**step <= seconds <= 1.25 * 0.25 * 2**step
    assert len(time.slept) == 6
    assert len({seconds / 2**step for step, seconds in enumerate(time.slept)}) == 6


def test_a_wait_is_at_least_as_long_as_asked_for() -> None:
    time = FakeTime()
    retrying(time, 120).call(failing(lost(30), lost(0), lost(0.5)))
    assert 30 <= time.slept[0] <= 37.5
    assert 0.5 <= time.slept[1] <= 0.625, "a wait of zero does not allow endless retries"
    assert 1 <= time.slept[2] <= 1.25


def test_retries_end_and_the_error_says_so() -> None:
    time = FakeTime()
    cause = OSError("down")
    failure = lost()
    failure.__cause__ = cause
    calls = []

    def call() -> None:
        calls.append(time.now)
        raise failure

    with pytest.raises(TransientEmbeddingError, match=r"lost\. It failed \d+ times") as caught:
        retrying(time, 60).call(call)
    assert "embed_retry_s is 60" in str(caught.value)
    assert f"failed {len(calls)} times" in str(caught.value)
    assert caught.value.__cause__ is cause
    assert 60 <= calls[-1] - calls[0] <= 60 * 1.25, "the last try is at the end of the time"


def test_a_longer_wait_than_allowed_is_not_waited_for() -> None:
    time = FakeTime()
    with pytest.raises(TransientEmbeddingError, match="asks for a wait of 3600 s") as caught:
        retrying(time, 60).call(failing(lost(3600)))
    assert caught.value.retry_after_s == 3600
    assert time.slept == []


@pytest.mark.parametrize("retry", [NO_RETRY, RetryPolicy(0, "embed_retry_s")])
def test_without_retries_it_calls_once(retry: RetryPolicy) -> None:
    with pytest.raises(TransientEmbeddingError, match=r"^lost$"):
        retry.call(failing(lost()))


def test_a_lasting_failure_is_raised_at_once() -> None:
    time = FakeTime()
    with pytest.raises(EmbeddingError, match="no"):
        retrying(time, 60).call(failing(lost(), EmbeddingError("no")))
    assert len(time.slept) == 1


def test_callers_share_a_pause() -> None:
    time = FakeTime()
    retry = retrying(time, 60)
    reports: list[str] = []
    other_slept: list[float] = []

    def other_sleep(seconds: float) -> None:
        other_slept.append(seconds)
        time.now += seconds

    def call_beside() -> str:
        """The first caller was refused and waits when a second one calls."""
        time.now += 0  # the pause has begun
        return retry.with_sleep(other_sleep, reports.append).call(lambda: "made")

    def sleep(seconds: float) -> None:
        if not other_slept:
            assert call_beside() == "made"
        time.sleep(seconds)

    first = retry.with_sleep(sleep, reports.append)
    assert first.call(failing(lost(10))) == "made"
    assert 10 <= other_slept[0] <= 12.5
    assert reports == ["waits 10.0 s before the next try: lost"]


def test_a_sleeper_that_raises_ends_the_call() -> None:
    class Stop(Exception):
        pass

    def stop(_seconds: float) -> None:
        raise Stop

    with pytest.raises(Stop):
        retrying(FakeTime(), 60).with_sleep(stop, len).call(failing(lost()))


@given(
    st.floats(0, 300),
    st.lists(st.one_of(st.none(), st.floats(0, 400)), max_size=60),
)
def test_it_waits_as_asked_and_never_much_longer_than_allowed(
    seconds: float, asked: list[float | None]
) -> None:
    time = FakeTime()
    began: list[float] = []
    waits: list[Any] = [*asked]

    def call() -> str:
        began.append(time.now)
        if len(began) <= len(waits):
            raise lost(waits[len(began) - 1])
        return "made"

    try:
        assert retrying(time, seconds).call(call) == "made"
    except TransientEmbeddingError:
        left = seconds - (time.now - began[0])
        assert left <= 1e-6 or (waits[len(began) - 1] or 0) >= left - 1e-6
    for wanted, one, other in zip(waits, began, began[1:], strict=False):
        assert other - one >= min(wanted or 0, 400) - 1e-6
    assert time.now - began[0] <= 1.25 * seconds + 1e-6
