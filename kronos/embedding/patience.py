"""Waiting for an embedder that fails in passing: with growing pauses, as it asks, up to a limit.

Whoever shares a `Patience` shares its pauses: while one caller waits for a quota, the others do not
spend it. Nothing here knows what an embedder is, or which failures pass (`kronos.embedding.passing`
says that): a `TransientEmbeddingError` is tried again, and no other.
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
"""Unless the embedder asks for more."""
_JITTER = 0.25
"""By this share a wait may be longer: those who were refused together do not come together."""


def _tell_nobody(_what: str) -> None:
    pass


class Pause:
    """Until when nobody is to ask an embedder."""

    def __init__(self) -> None:
        self.until = -math.inf


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a call waits for an embedder that fails in passing.

    Args:
        seconds: in all, from the first failure on; 0: it does not wait.
        setting: the name of the setting that says so, for the error.
        pause: shared by all who should wait together.
        sleep: waits; what it raises ends the call.
        tell: told, before each wait, why and for how long.
        clock: seconds, for `pause`.
    """

    seconds: float
    setting: str
    pause: Pause = field(default_factory=Pause)
    sleep: Callable[[float], object] = time.sleep
    tell: Callable[[str], object] = _tell_nobody
    clock: Callable[[], float] = time.monotonic

    def waiting_by(
        self, sleep: Callable[[float], object], tell: Callable[[str], object]
    ) -> Patience:
        """The same patience and the same pauses, for a caller that sleeps in a way of its own."""
        return replace(self, sleep=sleep, tell=tell)

    def call(self, ask: Callable[[], T]) -> T:
        """Ask, and ask again while that fails in passing.

        Raises:
            TransientEmbeddingError: it still fails when the patience is over.
        """
        self._sit_out()
        try:
            return ask()
        except TransientEmbeddingError as exc:
            if not self.seconds:
                raise
            first = exc
        return self._ask_again(ask, first)

    def _sit_out(self) -> None:
        """Wait until the pause is over, each caller a little longer than that."""
        while (left := self.pause.until - self.clock()) > 0:
            self.sleep(left * random.uniform(1, 1 + _JITTER))  # noqa: S311 - no secret

    def _ask_again(self, ask: Callable[[], T], first: TransientEmbeddingError) -> T:
        from tenacity import Retrying, retry_if_exception_type, wait_exponential

        grown = wait_exponential(multiplier=_FIRST_WAIT_S, max=_LONGEST_WAIT_S)
        started = self.clock()
        over = started + self.seconds
        tries: Iterator[Callable[[], T]] = chain([partial(_fail, first)], repeat(ask))
        retrying = Retrying(
            retry=retry_if_exception_type(TransientEmbeddingError),
            wait=lambda state: self._next_wait(_failure(state), grown(state), over),
            stop=lambda state: state.upcoming_sleep == math.inf,
            before_sleep=self._begin_pause,
            sleep=lambda _: self._sit_out(),
            retry_error_callback=lambda state: self._give_up(state, started),
        )
        found: T = retrying(lambda: next(tries)())
        return found

    def _next_wait(self, failure: TransientEmbeddingError, grown: float, over: float) -> float:
        """Never shorter than asked for, growing, at last what is left; inf: no more."""
        left, asked = over - self.clock(), failure.retry_after_s or 0.0
        return math.inf if left <= 0 or asked > left else min(max(grown, asked), left)

    def _begin_pause(self, state: RetryCallState) -> None:
        wait = state.upcoming_sleep
        self.pause.until = max(self.pause.until, self.clock() + wait)
        self.tell(f"waits {wait:.1f} s before the next try: {_failure(state)}")

    def _give_up(self, state: RetryCallState, started: float) -> Any:
        failure = _failure(state)
        asks = failure.retry_after_s
        wish = f", and asks to be left alone for {asks:g} s" if asks else ""
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


ONCE = Patience(0, "")
"""No patience: asks once."""
