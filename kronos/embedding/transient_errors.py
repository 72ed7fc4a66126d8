"""Tells transient failures of an embedder from lasting ones, and how long it asks to wait.

A hosted API fails with an exception of its own client library, which is not imported here. It is
classified by what such libraries have in common: an HTTP status, a code, class names, an errno, the
words of the message. The exceptions that it was raised from count too.
"""

from __future__ import annotations

import errno
import math
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from email.utils import parsedate_to_datetime
from itertools import takewhile
from typing import Any

from kronos.embedding.foreign_errors import is_out_of_memory
from kronos.errors import TransientEmbeddingError

_STATUSES = frozenset({408, 409, 425, 429, 500, 502, 503, 504, *range(520, 525), 529, 598, 599})
_ERRNOS = frozenset(
    getattr(errno, name)
    for name in """EAGAIN ECONNABORTED ECONNREFUSED ECONNRESET EHOSTDOWN EHOSTUNREACH EINTR
    ENETDOWN ENETRESET ENETUNREACH EPIPE ETIMEDOUT""".split()
    if hasattr(errno, name)
)
# Names of classes and codes, in lower case, without separators between words.
_TRANSIENT_NAME = re.compile(
    "ratelimit|toomanyrequests|throttl|slowdown|quota|resourceexhausted|requestlimit"
    "|throughputexceeded|overload|timeout|timedout|deadlineexceeded|unavailable|connecterror"
    "|connection|disconnected|internalserver|servererror|badgateway|gateway|networkerror"
    "|transporterror|readerror|writeerror|protocolerror|proxyerror|payloaderror|incompleteread"
    "|chunkedencoding|badstatusline|brokenpipe|maxretry|gaierror|sslerror|notready|busy|transient"
    "|temporarily|temporaryfailure|tryagain|aborted"
)
_LASTING_NAME = re.compile(
    "authentication|permissiondenied|unauthorized|forbidden|badrequest|invalidrequest|notfound"
    "|unprocessable|invalidargument|certverification|contentfilter|contentpolicy"
)
_TRANSIENT_WORDS = re.compile(
    r"""rate.?limit|too\ many\ requests|quota|throttl|tim(?:ed|e)?[ -]?out|deadline\ exceeded
    |temporar(?:y|ily)|(?:try|retry)\ (?:again\ )?(?:later|in\ |after)|retry-after|overloaded
    |over\ capacity|slow\ down|unavailable|bad\ gateway|internal\ server\ error
    |connection\ (?:was\ |has\ been\ )?(?:reset|refused|aborted|closed|lost|broken|error|dropped)
    |broken\ pipe|remote\ end\ closed|server\ disconnected|network\ is\ (?:unreachable|down)
    |no\ route\ to\ host|name\ resolution|max\ retries|eof\ occurred\ in\ violation
    |resource.?exhausted|currently\ loading|(?:server|database|service)\ is\ (?:busy|locked)
    # A number is a status at the beginning of the message, or after a word such as "status":
    # a text of 429 tokens is not a quota.
    |(?:^|\b(?:http|status|code|error|response|responded|returned|answered|got\ an?)\b)
     (?:\W|\b(?:an?|with|code|error|status|http(?:/[\d.]+)?|was)\b)*
     (?:408|425|429|500|502|503|504|529)\b
     (?!\s*(?:tok|char|text|byte|word|row|vec|val|item|dim|num|elem|entr|res))
    """,
    re.VERBOSE,
)
_BETWEEN_WORDS = re.compile(r"[\W_]+")
# Errors that a text or a program causes; their messages may quote anything from the text.
_CALLERS_FAULT = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    MemoryError,
    NameError,
    NotImplementedError,
    SyntaxError,
    TypeError,
    ValueError,
)
_STATUS_NAMES = ("status_code", "status", "code", "http_status", "http_code")
_WAIT_NAMES = (
    "retry_after_s",
    "retry_after",
    "retry_after_seconds",
    "retry_delay",
    "estimated_time",
)
_WAIT_IN_WORDS = re.compile(
    r"""(?:retry[-_ ]?after|(?:try|retry|wait)[^.\d]{0,24}?\b(?:in|after|for)|wait)\W{0,4}
    (?P<time>(?:\d+(?:\.\d+)?\s*(?:ms|milliseconds?|hours?|minutes?|mins?|seconds?|secs?|h|m|s)?
    (?=[\d\W]|$)[\s,]*)+)""",
    re.VERBOSE,
)
_TIMES = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|mil|h|m)?")
_UNIT_S = {"ms": 0.001, "mil": 0.001, "h": 3600.0, "m": 60.0}
_MAX_LINKS = 20
_MAX_MESSAGE = 4000
_QUOTED = 12
"""From this many characters on, a text is recognized in a message without quotation marks."""


@dataclass(frozen=True, slots=True)
class TransientFailure:
    """A failure that is worth a retry."""

    retry_after_s: float | None
    """The least wait in seconds that the embedder asks for; None if it asks for none."""


def find_transient_failure(
    error: BaseException, texts: Sequence[str] = (), *, handled: BaseException | None = None
) -> TransientFailure | None:
    """Tell a transient failure from a lasting one.

    Args:
        error: what the embedder raised.
        texts: the texts to embed: their words do not count where a message quotes them.
        handled: an exception that was being handled before the embedder was called. It and its
            causes are not the embedder's.

    Returns:
        None if the failure is lasting.
    """
    links = [*_chain(error, handled)]
    if any(_name(link) == "SSLCertVerificationError" for link in links):
        return None
    verdicts = (_is_transient(link, texts) for link in links)
    if not next((verdict for verdict in verdicts if verdict is not None), False):
        return None
    waits = (_asked_wait(link) for link in links)
    return TransientFailure(next((wait for wait in waits if wait is not None), None))


def _chain(error: BaseException, handled: BaseException | None) -> Iterator[BaseException]:
    """An exception and its causes, the outermost first."""
    todo, seen = [error], {id(handled)}
    while todo and len(seen) <= _MAX_LINKS:
        link = todo.pop(0)
        if id(link) not in seen:
            seen.add(id(link))
            yield link
            todo += _causes(link)


def _causes(link: BaseException) -> list[BaseException]:
    context = None if link.__suppress_context__ else link.__context__
    found = [link.__cause__ or context, *link.args]
    # urllib and urllib3 have a reason, aiohttp an os_error, an ExceptionGroup its exceptions.
    found += [_attribute(link, name) for name in ("reason", "os_error")]
    group = _attribute(link, "exceptions")
    found += group if isinstance(group, list | tuple) else ()
    return [each for each in found if isinstance(each, BaseException)]


def _is_transient(link: BaseException, texts: Sequence[str]) -> bool | None:
    """Whether one exception is transient; None if it does not tell."""
    if isinstance(link, TransientEmbeddingError):
        return True
    if is_out_of_memory(link):
        return False
    codes = _joined(_codes(link))
    if (status := _status(link)) is not None:
        # AWS throttles with status 400.
        return status in _STATUSES or (status == 400 and bool(_TRANSIENT_NAME.search(codes)))
    names = f"{codes} {_joined(kind.__name__ for kind in type(link).__mro__)}"
    if _TRANSIENT_NAME.search(names):
        return True
    if _LASTING_NAME.search(names):
        return False
    if isinstance(link, OSError) and link.errno in _ERRNOS:
        return True
    says_so = not isinstance(link, _CALLERS_FAULT) and _TRANSIENT_WORDS.search(
        _message(link, texts)
    )
    return True if says_so else None


def _joined(names: Iterable[str]) -> str:
    return " ".join(_BETWEEN_WORDS.sub("", name).lower() for name in names)


def _name(link: BaseException) -> str:
    return type(link).__name__


def _attribute(thing: object, name: str) -> Any:
    """An attribute of a foreign object, or an item of a mapping; None if it is missing."""
    try:
        return thing.get(name) if isinstance(thing, Mapping) else getattr(thing, name, None)
    except Exception:  # a property that raises
        return None


def _status_values(link: BaseException) -> Iterator[Any]:
    """The values of an exception, and of its response, under any name of a status."""
    response = _attribute(link, "response")
    for place in (link, response, _attribute(response, "ResponseMetadata")):
        for name in (*_STATUS_NAMES, "HTTPStatusCode"):
            value = _attribute(place, name)
            yield _call(value) if callable(value) else value
    yield _attribute(_attribute(response, "Error"), "Code")


def _call(value: Any) -> Any:
    try:  # gRPC's code()
        return value()
    except Exception:
        return None


def _status(link: BaseException) -> int | None:
    """The HTTP status of an exception, from 400 on."""
    for value in _status_values(link):
        number = int(value) if isinstance(value, str) and value.isdecimal() else value
        if isinstance(number, int) and 400 <= number <= 599:
            return int(number)
    return None


def _codes(link: BaseException) -> list[str]:
    """The codes of an exception in words, such as "ThrottlingException" or "UNAVAILABLE"."""
    named = [getattr(value, "name", value) for value in _status_values(link)]
    return [name for name in named if isinstance(name, str) and not name.isdecimal()]


def _message(link: BaseException, texts: Sequence[str]) -> str:
    """The message in lower case, without what it quotes from the texts."""
    message = str(link)[:_MAX_MESSAGE]
    for text in (text[:_MAX_MESSAGE] for text in texts):
        for form in {text, repr(text)[1:-1]} - {message}:
            message = _without(message, form)
    return message.lower()


def _without(message: str, text: str) -> str:
    if len(text) < _QUOTED:
        for mark in "'\"`":
            message = message.replace(f"{mark}{text}{mark}", " ")
        return message
    while (at := message.find(text[:_QUOTED])) >= 0:
        quoted = sum(1 for _ in takewhile(_are_equal, zip(message[at:], text, strict=False)))
        message = f"{message[:at]} {message[at + quoted :]}"
    return message


def _are_equal(pair: tuple[str, str]) -> bool:
    return pair[0] == pair[1]


# -- How long to wait -------------------------------------------------------------------------


def _asked_wait(link: BaseException) -> float | None:
    """The wait in seconds that an exception asks for."""
    found = [_seconds(_attribute(link, name)) for name in _WAIT_NAMES]
    found += [_wait_of_headers(headers) for headers in _headers(link)]
    if (words := _WAIT_IN_WORDS.search(str(link)[:_MAX_MESSAGE].lower())) is not None:
        found.append(_seconds_in_words(words["time"]))
    return next((seconds for seconds in found if seconds is not None), None)


def _headers(link: BaseException) -> list[Any]:
    response = _attribute(link, "response")
    about = _attribute(response, "ResponseMetadata")
    places = [_attribute(link, "headers"), _attribute(response, "headers")]
    return [place for place in (*places, _attribute(about, "HTTPHeaders")) if place is not None]


def _wait_of_headers(headers: Any) -> float | None:
    try:
        named = {str(name).lower(): value for name, value in headers.items()}
    except Exception:  # headers of an unknown kind
        return None
    exact = _seconds(named.get("retry-after-ms"))
    return _seconds(named.get("retry-after")) if exact is None else exact / 1000


def _seconds(value: Any) -> float | None:
    """A wait in seconds, from a number, a timedelta, or an HTTP header's number or date."""
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if isinstance(value, str):
        value = _seconds_of_header(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return max(0.0, float(value))


def _seconds_of_header(value: str) -> float | None:
    try:
        return float(value)
    except ValueError:
        pass
    try:
        return parsedate_to_datetime(value).timestamp() - time.time()
    except (ValueError, TypeError, OverflowError):
        return _seconds_in_words(value)


def _seconds_in_words(text: str) -> float | None:
    """The seconds of "20", "1.5 seconds", "6m0s" or "250ms"; None if there is no number."""
    parts = [(float(number), unit) for number, unit in _TIMES.findall(text.lower())]
    return sum(number * _UNIT_S.get(unit, 1.0) for number, unit in parts) if parts else None
