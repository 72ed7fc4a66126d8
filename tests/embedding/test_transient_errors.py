"""Which failures are transient, and how long a wait they ask for."""

from __future__ import annotations

import datetime
import time
from email.utils import format_datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kronos.embedding.transient_errors import find_transient_failure
from kronos.errors import TransientEmbeddingError
from tests.embedding.failures import LASTING, TRANSIENT, answer, aws, caused, foreign, http_error


@pytest.mark.parametrize("kind", TRANSIENT)
def test_transient_failures_are_recognized(kind: str) -> None:
    assert find_transient_failure(TRANSIENT[kind]()) is not None


@pytest.mark.parametrize("kind", LASTING)
def test_lasting_failures_are_recognized(kind: str) -> None:
    assert find_transient_failure(LASTING[kind]()) is None


def test_an_error_handled_before_the_call_does_not_count() -> None:
    try:
        try:
            raise TimeoutError
        except TimeoutError as exc:
            handled = exc
            raise ValueError("cannot read this") from None
    except ValueError as exc:
        failure = exc
    failure.__suppress_context__ = False
    assert failure.__context__ is handled
    assert find_transient_failure(failure) is not None
    assert find_transient_failure(failure, handled=handled) is None


@given(
    st.sampled_from(["cannot embed {}", "bad text {!r} here", 'in "{}"', "text: {}..."]),
    st.sampled_from(
        [
            "the server said 429 Too Many Requests",
            "HTTP 503: the service is temporarily unavailable",
            "it timed out,\nand the connection was reset",
            "rate limit",
        ]
    ),
)
def test_a_text_quoted_in_a_message_does_not_count(message: str, text: str) -> None:
    quoting = RuntimeError(message.format(text[:40]))
    assert (find_transient_failure(quoting, ["another", text]) is None) or text == "rate limit"
    assert find_transient_failure(RuntimeError(f"429, after {text}"), [text]) is not None


def test_a_message_equal_to_the_text_counts() -> None:
    message = "429 Too Many Requests"
    assert find_transient_failure(RuntimeError(message), [message]) is not None


def test_a_circular_chain_of_causes_ends() -> None:
    one, other = RuntimeError("one"), RuntimeError("other")
    one.__cause__, other.__cause__ = other, one
    assert find_transient_failure(one) is None


class Hostile(Exception):
    """Reading any of its attributes fails."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(name)


def test_an_unreadable_exception_causes_no_error() -> None:
    assert find_transient_failure(Hostile("429 Too Many Requests")) is not None
    assert find_transient_failure(Hostile("no")) is None


@pytest.mark.parametrize(
    ("error", "seconds"),
    [
        (TransientEmbeddingError("no", retry_after_s=1.5), 1.5),
        (TransientEmbeddingError("no"), None),
        (http_error(429, Retry_After="20"), 20),
        (http_error(503), None),
        (foreign("RateLimitError", response=answer(429, retry_after="0.25")), 0.25),
        (foreign("RateLimitError", response=answer(429, retry_after_ms="250")), 0.25),
        (foreign("RateLimitError", retry_after=3), 3),
        (foreign("RateLimitError", retry_after="4"), 4),
        (foreign("RateLimitError", retry_delay=datetime.timedelta(seconds=5)), 5),
        (foreign("RateLimitError", retry_after=float("nan")), None),
        (foreign("RateLimitError", retry_after=-1), 0),
        (foreign("RateLimitError", retry_after="soon"), None),
        (caused(RuntimeError("no"), http_error(429, Retry_After="6")), 6),
        (aws("ThrottlingException"), 7),
        (RuntimeError("429, Retry-After: 0.3"), 0.3),
        (RuntimeError("Rate limit reached. Please try again in 1.2s. Visit ..."), 1.2),
        (RuntimeError("rate limit: please try again in 6m0s."), 360),
        (RuntimeError("rate limit: try again in 250ms"), 0.25),
        (RuntimeError("quota: retry after 20 seconds"), 20),
        (RuntimeError("quota: Please retry in 1h2m3s"), 3723),
        (RuntimeError("429: please wait 8 seconds"), 8),
        (RuntimeError("429: retry after 3 more calls"), 3),
        (RuntimeError("timed out, try again later"), None),
    ],
)
def test_the_wait_is_found(error: Exception, seconds: float | None) -> None:
    found = find_transient_failure(error)
    assert found is not None
    assert found.retry_after_s == (None if seconds is None else pytest.approx(seconds))


def test_an_http_date_is_a_wait() -> None:
    now = datetime.datetime.fromtimestamp(time.time() + 30, datetime.timezone.utc)
    found = find_transient_failure(http_error(503, Retry_After=format_datetime(now, usegmt=True)))
    assert found is not None
    assert found.retry_after_s == pytest.approx(30, abs=2)
    past = find_transient_failure(http_error(503, Retry_After="Wed, 21 Oct 2015 07:28:00 GMT"))
    assert past is not None
    assert past.retry_after_s == 0
