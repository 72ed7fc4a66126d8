"""Errors of foreign libraries: their reason in one line, memory that ran out, and their frames."""

from __future__ import annotations

from kronos.errors import KronosError

_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


def reason_of(exc: Exception) -> str:
    """The reason of an error in one line. Libraries add lines of advice for developers."""
    if isinstance(exc, KronosError):
        return str(exc)
    return f"{type(exc).__name__}: {str(exc).strip().partition(chr(10))[0]}"


def is_out_of_memory(exc: BaseException | None) -> bool:
    """Whether an error of torch or of Python says that memory ran out."""
    # torch has its own error class for CUDA; on a CPU and on MPS it raises a bare RuntimeError.
    if isinstance(exc, MemoryError) or type(exc).__name__ == "OutOfMemoryError":
        return True
    if not isinstance(exc, RuntimeError):
        return False
    message = str(exc).lower()
    return any(sign in message for sign in _OUT_OF_MEMORY)


def forget_frames(exc: BaseException | None) -> None:
    """Drop the tracebacks of a handled error and of the errors that it came from.

    A frame that holds its own error is part of a reference cycle, which would keep the models of
    all frames above it alive.
    """
    seen: set[int] = set()
    while exc is not None and id(exc) not in seen:
        seen.add(id(exc))
        exc.__traceback__ = None
        exc = exc.__cause__ or exc.__context__
