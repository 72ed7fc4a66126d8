"""Retries after transient failures, with growing pauses, up to a limit.

A pause is at least as long as the embedder asks for. All callers of a `RetryPolicy` share its
pauses: while one caller waits for a quota, the others do not use it up. Nothing here knows what an
embedder is, or which failures are transient (see `kronos.embedding.transient_errors`): only a
`TransientEmbeddingError` is retried.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, repeat
from typing import TYPE_CHECKING, Any, TypeVar

from kronos.errors import TransientEmbeddingError

if TYPE_CHECKING:
    from tenacity import RetryCallState

T = TypeVar("T")

_FIRST_WAIT_S = 0.25
_LONGEST_WAIT_S = 20.0
"""Unless the embedder asks for a longer wait."""
_JITTER = 0.25
"""The share by which a wait is randomly longer, so that callers do not all retry at once."""


def _ignore(_report: str) -> None:
    pass


class SharedPause:
    """The time until which no caller may call an embedder."""

    def __init__(self) -> None:
        self.until = -math.inf


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How long calls to an embedder are retried after transient failures.

    Args:
        seconds: the total time of retries, from the first failure on; 0: no retry.
        setting: the name of the setting for `seconds`, for error messages.
        pause: shared by all callers that should wait together.
        sleep: waits some seconds; an exception that it raises ends the call.
        report: called before each wait with its reason and length, as text.
        clock: the time in seconds, for `pause`.
    """

    seconds: float
    setting: str
    pause: SharedPause = field(default_factory=SharedPause)
    sleep: Callable[[float], object] = time.sleep
    report: Callable[[str], object] = _ignore
    clock: Callable[[], float] = time.monotonic

    def with_sleep(
        self, sleep: Callable[[float], object], report: Callable[[str], object]
    ) -> RetryPolicy:
        """The same policy with the same pauses, and another way to sleep and to report."""
        return replace(self, sleep=sleep, report=report)

    def call(self, function: Callable[[], T]) -> T:
        """Call a function, and retry while it fails with a `TransientEmbeddingError`.

        Raises:
            TransientEmbeddingError: it still fails after the last retry.
        """
        self._wait_out_pause()
        try:
            return function()
        except TransientEmbeddingError as exc:
            if not self.seconds:
                raise
            first = exc
        return self._retry(function, first)

    def _wait_out_pause(self) -> None:
        """Wait until the pause is over, and a random time longer."""
        while (left := self.pause.until - self.clock()) > 0:
            self.sleep(left * random.uniform(1, 1 + _JITTER))  # noqa: S311 - no secret

    def _retry(self, function: Callable[[], T], first: TransientEmbeddingError) -> T:
        from tenacity import Retrying, retry_if_exception_type, wait_exponential

        grown = wait_exponential(multiplier=_FIRST_WAIT_S, max=_LONGEST_WAIT_S)
        started = self.clock()
        end = started + self.seconds
        tries: Iterator[Callable[[], T]] = chain([partial(_fail, first)], repeat(function))
        retrying = Retrying(
            retry=retry_if_exception_type(TransientEmbeddingError),
            wait=lambda state: self._next_wait(_failure(state), grown(state), end),
            stop=lambda state: state.upcoming_sleep == math.inf,
            before_sleep=self._begin_pause,
            sleep=lambda _: self._wait_out_pause(),
            retry_error_callback=lambda state: self._give_up(state, started),
        )
        found: T = retrying(lambda: next(tries)())
        return found

    def _next_wait(self, failure: TransientEmbeddingError, grown: float, end: float) -> float:
        """The next wait: growing, at least as long as asked for, and at most the time left.

        Returns:
            Seconds; inf if the time left is over or shorter than asked for.
        """
        left, asked = end - self.clock(), failure.retry_after_s or 0.0
        return math.inf if left <= 0 or asked > left else min(max(grown, asked), left)

    def _begin_pause(self, state: RetryCallState) -> None:
        wait = state.upcoming_sleep
        self.pause.until = max(self.pause.until, self.clock() + wait)
        self.report(f"waits {wait:.1f} s before the next try: {_failure(state)}")

    def _give_up(self, state: RetryCallState, started: float) -> Any:
        failure = _failure(state)
        asks = failure.retry_after_s
        wish = f", and asks for a wait of {asks:g} s" if asks else ""
        raise TransientEmbeddingError(
            f"{failure}. It failed {state.attempt_number} times in "
            f"{self.clock() - started:.1f} s ({self.setting} is {self.seconds:g}){wish}: try again "
            "later",
            retry_after_s=asks,
        ) from failure.__cause__


def _failure(state: RetryCallState) -> TransientEmbeddingError:
    found = state.outcome and state.outcome.exception()
    assert isinstance(found, TransientEmbeddingError)
    return found


def _fail(failure: TransientEmbeddingError) -> Any:
    raise failure


NO_RETRY = RetryPolicy(0, "")
"""Calls once."""
