"""Which failures of an embedder pass by themselves, and how long it asks to be left alone.

A hosted API fails with an exception of its own library, which is not imported here. It is known by
what such libraries share: a status of HTTP, a code, the names of its classes, an errno, the words
of its message; by its own or by those of an exception that it was raised from.
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

from kronos.embedding.sentence import is_out_of_memory
from kronos.errors import TransientEmbeddingError

_STATUSES = frozenset({408, 409, 425, 429, 500, 502, 503, 504, *range(520, 525), 529, 598, 599})
_ERRNOS = frozenset(
    getattr(errno, name)
    for name in """EAGAIN ECONNABORTED ECONNREFUSED ECONNRESET EHOSTDOWN EHOSTUNREACH EINTR
    ENETDOWN ENETRESET ENETUNREACH EPIPE ETIMEDOUT""".split()
    if hasattr(errno, name)
)
# Names of classes and codes, in small letters, without anything between the words.
_PASSING_NAME = re.compile(
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
_PASSING_WORDS = re.compile(
    r"""rate.?limit|too\ many\ requests|quota|throttl|tim(?:ed|e)?[ -]?out|deadline\ exceeded
    |temporar(?:y|ily)|(?:try|retry)\ (?:again\ )?(?:later|in\ |after)|retry-after|overloaded
    |over\ capacity|slow\ down|unavailable|bad\ gateway|internal\ server\ error
    |connection\ (?:was\ |has\ been\ )?(?:reset|refused|aborted|closed|lost|broken|error|dropped)
    |broken\ pipe|remote\ end\ closed|server\ disconnected|network\ is\ (?:unreachable|down)
    |no\ route\ to\ host|name\ resolution|max\ retries|eof\ occurred\ in\ violation
    |resource.?exhausted|currently\ loading|(?:server|database|service)\ is\ (?:busy|locked)
    # A number is a status where it begins the message, or stands behind a word that says so:
    # a text of 429 tokens is no quota.
    |(?:^|\b(?:http|status|code|error|response|responded|returned|answered|got\ an?)\b)
     (?:\W|\b(?:an?|with|code|error|status|http(?:/[\d.]+)?|was)\b)*
     (?:408|425|429|500|502|503|504|529)\b
     (?!\s*(?:tok|char|text|byte|word|row|vec|val|item|dim|num|elem|entr|res))
    """,
    re.VERBOSE,
)
_BETWEEN_WORDS = re.compile(r"[\W_]+")
# What a text or a program is at fault for; such a message may say anything of the text.
_OF_THE_CALL = (
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
_MOST_LINKS = 20
_MOST_OF_A_MESSAGE = 4000
_QUOTED = 12
"""Characters from which on a text is known again in a message without quotation marks."""


@dataclass(frozen=True, slots=True)
class Passing:
    """A failure that passes."""

    retry_after_s: float | None
    """How long to wait at least, as it says itself; None where it does not."""


def passing(
    error: BaseException, texts: Sequence[str] = (), *, beyond: BaseException | None = None
) -> Passing | None:
    """Tell a failure that passes from one that comes again: None for the latter.

    Args:
        error: what the embedder raised.
        texts: what it was asked to embed: words of theirs in a message say nothing.
        beyond: an exception that was being handled before the embedder was called; it and what lies
            behind it are none of the embedder's.
    """
    links = [*_chain(error, beyond)]
    if any(_name(link) == "SSLCertVerificationError" for link in links):
        return None
    verdicts = (_passes(link, texts) for link in links)
    if not next((verdict for verdict in verdicts if verdict is not None), False):
        return None
    waits = (_asked_wait(link) for link in links)
    return Passing(next((wait for wait in waits if wait is not None), None))


def _chain(error: BaseException, beyond: BaseException | None) -> Iterator[BaseException]:
    """An exception and those that it came from, the outermost first."""
    todo, seen = [error], {id(beyond)}
    while todo and len(seen) <= _MOST_LINKS:
        link = todo.pop(0)
        if id(link) not in seen:
            seen.add(id(link))
            yield link
            todo += _behind(link)


def _behind(link: BaseException) -> list[BaseException]:
    context = None if link.__suppress_context__ else link.__context__
    found = [link.__cause__ or context, *link.args]
    # urllib and urllib3 give a reason, aiohttp an os_error, an ExceptionGroup its exceptions.
    found += [_attribute(link, name) for name in ("reason", "os_error")]
    group = _attribute(link, "exceptions")
    found += group if isinstance(group, list | tuple) else ()
    return [each for each in found if isinstance(each, BaseException)]


def _passes(link: BaseException, texts: Sequence[str]) -> bool | None:
    """Whether one exception says that it passes; None when it says nothing of that."""
    if isinstance(link, TransientEmbeddingError):
        return True
    if is_out_of_memory(link):
        return False
    codes = _joined(_codes(link))
    if (status := _status(link)) is not None:
        # AWS says with status 400 that it throttles.
        return status in _STATUSES or (status == 400 and bool(_PASSING_NAME.search(codes)))
    names = f"{codes} {_joined(kind.__name__ for kind in type(link).__mro__)}"
    if _PASSING_NAME.search(names):
        return True
    if _LASTING_NAME.search(names):
        return False
    if isinstance(link, OSError) and link.errno in _ERRNOS:
        return True
    says_so = not isinstance(link, _OF_THE_CALL) and _PASSING_WORDS.search(_message(link, texts))
    return True if says_so else None


def _joined(names: Iterable[str]) -> str:
    return " ".join(_BETWEEN_WORDS.sub("", name).lower() for name in names)


def _name(link: BaseException) -> str:
    return type(link).__name__


def _attribute(thing: object, name: str) -> Any:
    """An attribute of a foreign object, or an item of a mapping; None where there is none."""
    try:
        return thing.get(name) if isinstance(thing, Mapping) else getattr(thing, name, None)
    except Exception:  # a property of theirs that fails
        return None


def _told(link: BaseException) -> Iterator[Any]:
    """What an exception, and the answer that it holds, say under the names of a status."""
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
    """The status of HTTP from 400 on that an exception bears."""
    for value in _told(link):
        number = int(value) if isinstance(value, str) and value.isdecimal() else value
        if isinstance(number, int) and 400 <= number <= 599:
            return int(number)
    return None


def _codes(link: BaseException) -> list[str]:
    """The codes in words that an exception bears, e.g. "ThrottlingException", "UNAVAILABLE"."""
    named = [getattr(value, "name", value) for value in _told(link)]
    return [name for name in named if isinstance(name, str) and not name.isdecimal()]


def _message(link: BaseException, texts: Sequence[str]) -> str:
    """The message in small letters, without what it quotes of the texts."""
    message = str(link)[:_MOST_OF_A_MESSAGE]
    for text in (text[:_MOST_OF_A_MESSAGE] for text in texts):
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
    """For how many seconds an exception asks."""
    found = [_seconds(_attribute(link, name)) for name in _WAIT_NAMES]
    found += [_wait_of_headers(headers) for headers in _headers(link)]
    if (words := _WAIT_IN_WORDS.search(str(link)[:_MOST_OF_A_MESSAGE].lower())) is not None:
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
    except Exception:  # no headers that we know
        return None
    exact = _seconds(named.get("retry-after-ms"))
    return _seconds(named.get("retry-after")) if exact is None else exact / 1000


def _seconds(value: Any) -> float | None:
    """A wait as a library or a header gives it: a number, a timedelta, or a date of HTTP."""
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
    """What "20", "1.5 seconds", "6m0s" or "250ms" says; None where there is no number."""
    parts = [(float(number), unit) for number, unit in _TIMES.findall(text.lower())]
    return sum(number * _UNIT_S.get(unit, 1.0) for number, unit in parts) if parts else None
