"""Failures like those of hosted APIs and of the network, without their libraries."""

from __future__ import annotations

import asyncio
import concurrent.futures
import errno
import http.client
import socket
import ssl
import urllib.error
from collections.abc import Callable
from email.message import Message
from types import SimpleNamespace
from typing import Any

from kronos.errors import TransientEmbeddingError


def foreign(*names: str, message: str = "it failed", **attributes: Any) -> Exception:
    """A library's exception.

    Args:
        names: of its class and then of the base classes, the last one directly below Exception.
    """
    kind: type[Exception] = Exception
    for name in reversed(names):
        kind = type(name, (kind,), {})
    error = kind(message)
    for name, value in attributes.items():
        setattr(error, name, value)
    return error


def answer(status: int, **headers: str) -> SimpleNamespace:
    return SimpleNamespace(
        status_code=status,
        headers={name.replace("_", "-").title(): value for name, value in headers.items()},
    )


def http_error(code: int, **headers: str) -> urllib.error.HTTPError:
    message = Message()
    for name, value in headers.items():
        message[name.replace("_", "-")] = value
    return urllib.error.HTTPError("https://api.example", code, "reason", message, None)


def aws(code: str, status: int = 400) -> Exception:
    about = {"HTTPStatusCode": status, "HTTPHeaders": {"retry-after": "7"}}
    return foreign("ClientError", response={"Error": {"Code": code}, "ResponseMetadata": about})


class _Grpc:
    def __init__(self, name: str) -> None:
        self.name = name


def grpc(name: str) -> Exception:
    return foreign("_InactiveRpcError", "RpcError", code=lambda: _Grpc(name))


def caused(error: Exception, cause: BaseException) -> Exception:
    error.__cause__ = cause
    return error


def during(error: Exception, context: BaseException) -> Exception:
    error.__context__ = context
    return error


TRANSIENT: dict[str, Callable[[], Exception]] = {
    "declared": lambda: TransientEmbeddingError("come back later"),
    "reset": lambda: ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"),
    "refused": ConnectionRefusedError,
    "broken pipe": lambda: BrokenPipeError(errno.EPIPE, "Broken pipe"),
    "unreachable": lambda: OSError(errno.ENETUNREACH, "Network is unreachable"),
    "timeout": TimeoutError,
    "socket timeout": lambda: TimeoutError("timed out"),
    "asyncio timeout": asyncio.TimeoutError,
    "future timeout": concurrent.futures.TimeoutError,
    "no name": lambda: socket.gaierror(-3, "Temporary failure in name resolution"),
    "tls": lambda: ssl.SSLError("[SSL: UNEXPECTED_EOF_WHILE_READING] EOF occurred"),
    "cut off": lambda: http.client.IncompleteRead(b"{"),
    "hung up": lambda: http.client.RemoteDisconnected("Remote end closed connection"),
    "urllib 429": lambda: http_error(429),
    "urllib 503": lambda: http_error(503),
    "urllib reason": lambda: urllib.error.URLError(ConnectionRefusedError(111, "refused")),
    "urllib words": lambda: urllib.error.URLError("timed out"),
    "requests 502": lambda: foreign("HTTPError", "RequestException", response=answer(502)),
    "requests reset": lambda: foreign("ChunkedEncodingError", "RequestException"),
    "requests nested": lambda: foreign(
        "AdapterError",
        message=foreign("NewConnectionError", "HTTPError"),  # type: ignore[arg-type]
    ),
    "httpx timeout": lambda: foreign("ReadTimeout", "TimeoutException", "TransportError"),
    "httpx status": lambda: foreign("HTTPStatusError", "HTTPError", response=answer(504)),
    "httpx protocol": lambda: foreign("RemoteProtocolError", "ProtocolError"),
    "aiohttp status": lambda: foreign("ClientResponseError", "ClientError", status=429),
    "aiohttp gone": lambda: foreign("ServerDisconnectedError", "ClientError"),
    "openai limit": lambda: foreign("RateLimitError", "APIStatusError", status_code=429),
    "openai timeout": lambda: foreign("APITimeoutError", "APIConnectionError"),
    "openai 500": lambda: foreign("InternalServerError", "APIStatusError", status_code=500),
    "overloaded": lambda: foreign("APIStatusError", status_code=529),
    "cohere": lambda: foreign("TooManyRequestsError", "ApiError", status_code=429),
    "voyage": lambda: foreign("ServiceUnavailableError", "VoyageError", http_status=503),
    "google": lambda: foreign("ResourceExhausted", "GoogleAPICallError", code=429),
    "google genai": lambda: foreign("ServerError", "APIError", code=503, status="UNAVAILABLE"),
    "grpc exhausted": lambda: grpc("RESOURCE_EXHAUSTED"),
    "grpc deadline": lambda: grpc("DEADLINE_EXCEEDED"),
    "aws throttles with 400": lambda: aws("ThrottlingException"),
    "aws slow down": lambda: aws("SlowDown", 503),
    "status as text": lambda: foreign("ApiError", code="429"),
    "code in words": lambda: foreign("ApiError", code="rate_limit_exceeded"),
    "own class": lambda: type("EmbedTimeout", (ValueError,), {})("no"),
    "plain 429": lambda: RuntimeError("429, Retry-After: 0.3"),
    "plain words": lambda: RuntimeError("Rate limit reached for requests"),
    "plain status": lambda: Exception("Error code: 503 - {'error': 'overloaded'}"),
    "plain http": lambda: OSError("HTTP/1.1 502 Bad Gateway"),
    "plain loading": lambda: RuntimeError("Model acme/tiny is currently loading"),
    "plain timeout": lambda: RuntimeError("the request timed out"),
    "plain temporary": lambda: RuntimeError("The service is temporarily unavailable"),
    "busy database": lambda: RuntimeError("cache: database is locked"),
    "caused": lambda: caused(ValueError("cannot embed"), TimeoutError()),
    "during": lambda: during(ValueError("cannot embed"), foreign("RateLimitError")),
    "twice wrapped": lambda: caused(
        RuntimeError("no vectors"), caused(KeyError("data"), http_error(429))
    ),
}
"""Transient failures, by a name for people."""

LASTING: dict[str, Callable[[], Exception]] = {
    "value": lambda: ValueError("cannot read this"),
    "value that quotes": lambda: ValueError("cannot read '429 Too Many Requests'"),
    "runtime": lambda: RuntimeError("cannot read this"),
    "tensor sizes": lambda: RuntimeError(
        "The size of tensor a (429) must match the size of tensor b (512)"
    ),
    "too long": lambda: RuntimeError("429 tokens are too many: 256 at most"),
    "wrong count": lambda: RuntimeError("the model returned 500 vectors"),
    "memory": MemoryError,
    "torch memory": lambda: RuntimeError("RESOURCE_EXHAUSTED: Out of memory"),
    "key": lambda: KeyError(429),
    "type": lambda: TypeError("embed() takes 503 arguments"),
    "attribute": lambda: AttributeError("'NoneType' has no attribute 'timeout'"),
    "file": lambda: FileNotFoundError(errno.ENOENT, "no such file", "timeout.json"),
    "disk": lambda: OSError(errno.ENOSPC, "No space left on device"),
    "urllib 401": lambda: http_error(401),
    "urllib 400": lambda: http_error(400),
    "openai key": lambda: foreign("AuthenticationError", "APIStatusError", status_code=401),
    "openai length": lambda: foreign(
        "BadRequestError", "APIStatusError", status_code=400, code="context_length_exceeded"
    ),
    "openai 404": lambda: foreign("NotFoundError", "APIStatusError", status_code=404),
    "too large": lambda: foreign("APIStatusError", status_code=413),
    "unprocessable": lambda: foreign("UnprocessableEntityError", status_code=422),
    "bad request without a status": lambda: foreign(
        "BadRequestError", message="temporarily unavailable for this text"
    ),
    "aws": lambda: aws("ValidationException"),
    "grpc": lambda: grpc("INVALID_ARGUMENT"),
    "certificate": lambda: caused(
        foreign("SSLError", "ConnectionError"), ssl.SSLCertVerificationError("expired")
    ),
    "refused after a timeout": lambda: during(http_error(400), TimeoutError()),
    "not its cause": lambda: suppressed(ValueError("cannot read this"), TimeoutError()),
}
"""Lasting failures, by a name for people."""


def suppressed(error: Exception, context: BaseException) -> Exception:
    error.__context__ = context
    error.__suppress_context__ = True
    return error
