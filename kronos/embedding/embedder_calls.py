"""Calls to embedders, Kronos's own or a program's; everything they return is checked first.

A text is blamed for a failure only if the embedder works without it and fails on it again.
Transient failures are retried, and no text is blamed for them.
"""

from __future__ import annotations

import functools
import inspect
import operator
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from kronos.embedding.async_adapter import returns_awaitable
from kronos.embedding.foreign_errors import is_out_of_memory
from kronos.embedding.retry import NO_RETRY, RetryPolicy
from kronos.embedding.service import EmbeddingService
from kronos.embedding.transient_errors import find_transient_failure
from kronos.errors import (
    ConfigurationError,
    DimensionMismatchError,
    EmbeddingError,
    KronosError,
    TransientEmbeddingError,
    VectorError,
)
from kronos.validation import scale_to_unit, unusable_rows

if TYPE_CHECKING:
    from kronos.types import Embedder, Vectors

_HARMLESS = "Kronos checks whether the embedder still works."
_METHODS = ("embed_documents", "embed_queries")


def check_embedder(embedder: object) -> Embedder:
    """Check that a program's object is an embedder. An `EmbeddingService` is loaded.

    Raises:
        ConfigurationError: it lacks a member of the `Embedder` protocol, or a member is a coroutine
            function; the message names the member.
    """
    if isinstance(embedder, EmbeddingService):
        embedder.load()
        return embedder
    for name in ("model_id", "fingerprint"):
        if not isinstance(value := _member(embedder, name), str) or not value:
            raise _unfit(name, f"must be a str, not {value!r}")
    width = _member(embedder, "dim")
    if _as_width(width) < 1:
        raise _unfit("dim", f"must be a whole number of at least 1, not {width!r}")
    methods = {name: _member(embedder, name) for name in _METHODS}
    for name, method in methods.items():
        if not callable(method):
            raise _unfit(name, f"must be a method, not {method!r}")
    for name, method in methods.items():
        if returns_awaitable(method):
            raise _unfit(
                name,
                "is a coroutine function, which only KronosMemory awaits: open the store with "
                "KronosMemory, or pass an embedder whose methods return the vectors themselves",
            )
        if inspect.isasyncgenfunction(method):
            raise _unfit(name, "is an async generator, and must return all vectors at once")
    return cast("Embedder", embedder)


def _member(embedder: object, name: str) -> Any:
    try:
        return getattr(embedder, name, None)
    except Exception as exc:  # a property of the program's class
        raise _unfit(name, f"cannot be read ({type(exc).__name__}: {exc})") from exc


def _as_width(value: object) -> int:
    """A width as an int, from NumPy integers too; 0 if it is no whole number."""
    try:
        return 0 if isinstance(value, bool) else operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return 0


def _unfit(name: str, why: str) -> ConfigurationError:
    return ConfigurationError(
        f"embedder.{name} {why}; see kronos.Embedder", field=f"embedder.{name}"
    )


def embed_documents(
    embedder: Embedder, texts: Sequence[str], retry: RetryPolicy = NO_RETRY
) -> Vectors:
    """Embed texts to be stored. A text that occurs twice is embedded once.

    Args:
        embedder: the embedder.
        texts: n texts.
        retry: how transient failures are retried.

    Returns:
        (n, dim) float32 unit rows.

    Raises:
        DimensionMismatchError: the embedder returned vectors of another width than its `dim`.
        TransientEmbeddingError: the embedder still fails after the last retry.
        EmbeddingError: the embedder failed, or returned NaN, inf or zeros; the message names the
            text.
    """
    distinct = list(dict.fromkeys(texts))
    rows = _embed(embedder, "embed_documents", distinct, retry)
    if len(distinct) == len(texts):
        return rows
    position = {text: row for row, text in enumerate(distinct)}
    return rows[[position[text] for text in texts]]


def embed_queries(
    embedder: Embedder, texts: Sequence[str], retry: RetryPolicy = NO_RETRY
) -> Vectors:
    """Embed queries: (n, dim) float32 unit rows. Raises as `embed_documents` does."""
    return _embed(embedder, "embed_queries", list(texts), retry)


@dataclass(frozen=True, slots=True)
class Embedded:
    """The vectors of some texts, and the errors of the others."""

    rows: Vectors
    """(m, dim) float32 unit rows of the texts that were embedded."""
    positions: list[int]
    """The positions of those texts, ascending."""
    errors: dict[int, str]
    """Why each of the other texts failed, by position."""
    fits: int | None
    """How many texts the embedder took at once after its memory ran out; None if it did not."""


def embed_each(embedder: Embedder, texts: Sequence[str], retry: RetryPolicy = NO_RETRY) -> Embedded:
    """Embed as many texts as possible: a text that fails costs the others nothing.

    A batch that fails is halved until the texts at fault are alone. So a batch that is too large
    for the memory is embedded in parts. A batch with a transient failure is retried as it is.

    Args:
        embedder: the embedder.
        texts: distinct texts to be stored.
        retry: how transient failures are retried.

    Raises:
        TransientEmbeddingError: the embedder still fails after the last retry.
        EmbeddingError: the embedder is broken: it fails on any text, not only on these.
        DimensionMismatchError: the embedder is broken: its vectors are not `dim` wide.
    """
    return _Parts(embedder, texts, retry).embedded()


class _Parts:
    """Texts that are embedded in parts if they cannot be embedded at once."""

    def __init__(self, embedder: Embedder, texts: Sequence[str], retry: RetryPolicy) -> None:
        self._embedder = embedder
        self._texts = texts
        self._call = functools.partial(_call, embedder, "embed_documents", retry=retry)
        self._made: dict[int, Vectors] = {}
        self._errors: dict[int, str] = {}
        self._fits = 0
        self._short_of_memory = False

    def embedded(self) -> Embedded:
        todo = [range(len(self._texts))]
        while todo:
            part = todo.pop()
            failure = self._try(part)
            if failure is not None and len(part) > 1:
                middle = part[len(part) // 2]
                todo += [range(middle, part.stop), range(part.start, middle)]
            elif failure is not None:
                self._blame(part, failure)
        positions = [at for at in range(len(self._texts)) if at not in self._errors]
        fits = self._fits if self._short_of_memory else None
        return Embedded(scale_to_unit(self._rows(), str), positions, self._errors, fits)

    def _try(self, part: range) -> KronosError | None:
        """Embed a part in one call: None, or the failure."""
        try:
            rows = self._call([self._texts[at] for at in part])
        except TransientEmbeddingError:
            raise  # it tells nothing about the texts
        except KronosError as exc:
            self._short_of_memory |= is_out_of_memory(exc.__cause__)
            return exc
        self._take(part, rows)
        return None

    def _take(self, part: range, rows: Vectors) -> None:
        self._fits = max(self._fits, len(part))
        unusable = unusable_rows(rows)
        if len(unusable) == len(part):
            self._require_sound(None)
        self._errors.update((part[at], f"its vector {why}") for at, why in unusable.items())
        self._made[part.start] = rows if not unusable else np.delete(rows, list(unusable), axis=0)

    def _blame(self, part: range, failure: KronosError) -> None:
        """Record that a text is at fault, if the embedder works and fails on it again."""
        self._require_sound(failure)
        if self._try(part) is not None:
            self._errors[part.start] = str(failure)

    def _require_sound(self, failure: KronosError | None) -> None:
        """Raise if the embedder fails on a harmless text too: then no text is at fault."""
        try:
            _as_units(self._embedder, [_HARMLESS], self._call([_HARMLESS]))
        except TransientEmbeddingError:
            raise
        except KronosError as exc:
            raise failure or exc from exc

    def _rows(self) -> Vectors:
        # Usually one part; several are in the order of the texts.
        parts = [self._made[start] for start in sorted(self._made)]
        if len(parts) == 1:
            return parts[0]
        return np.concatenate([np.empty((0, self._embedder.dim), np.float32), *parts])


def _embed(embedder: Embedder, method: str, texts: Sequence[str], retry: RetryPolicy) -> Vectors:
    if not texts:
        return np.empty((0, embedder.dim), np.float32)
    return _as_units(embedder, texts, _call(embedder, method, texts, retry=retry))


def _as_units(embedder: Embedder, texts: Sequence[str], rows: Vectors) -> Vectors:
    try:
        return scale_to_unit(rows, lambda position: f"the vector of {texts[position][:60]!r}")
    except VectorError as exc:
        raise EmbeddingError(f"the embedder {embedder.model_id} failed: {exc}") from exc


def _call(embedder: Embedder, method: str, texts: Sequence[str], *, retry: RetryPolicy) -> Vectors:
    """Call a method of an embedder, with retries: (n, dim) float32, of any values."""
    return retry.call(lambda: _call_once(embedder, method, texts))


def _call_once(embedder: Embedder, method: str, texts: Sequence[str]) -> Vectors:
    """Call a method of an embedder once."""
    handled = sys.exc_info()[1]
    try:
        with np.errstate(over="ignore", invalid="ignore"):
            rows = _as_rows(getattr(embedder, method)(texts), method)
        _check_shape(embedder, rows, len(texts))
        return rows
    except Exception as exc:  # a program's own embedder may raise anything
        found = find_transient_failure(exc, texts, handled=handled)
        if found is None and isinstance(exc, KronosError):
            raise
        # A bare TimeoutError has no message, only its name.
        why = f"the embedder {embedder.model_id} failed: {str(exc) or type(exc).__name__}"
        if found is None:
            raise EmbeddingError(why) from exc
        raise TransientEmbeddingError(why, retry_after_s=found.retry_after_s) from exc


def _check_shape(embedder: Embedder, rows: Vectors, count: int) -> None:
    if rows.shape != (count, embedder.dim):
        raise DimensionMismatchError(
            f"the embedder {embedder.model_id} returned shape {rows.shape}, expected "
            f"({count}, {embedder.dim})"
        )


def _as_rows(made: Any, method: str) -> Vectors:
    """An embedder's return value as float32.

    Raises:
        TypeError: it is not a table of numbers.
    """
    if type(made) is not np.ndarray:
        made = _as_array(made, method)
    if made.dtype.kind not in "fiu" and made.size:
        raise TypeError(
            f"{method} returned values of type {made.dtype}, expected one row of numbers for each "
            "text"
        )
    return cast("Vectors", made.astype(np.float32, copy=False))


def _as_array(made: Any, method: str) -> Any:
    if inspect.isawaitable(made) or hasattr(made, "__aiter__"):
        if inspect.iscoroutine(made):
            made.close()  # else Python warns that it was never awaited
        raise TypeError(
            f"{method} returned a {type(made).__name__}, which must be awaited: use "
            "KronosMemory, or return the vectors themselves"
        )
    if not hasattr(made, "__array__") and isinstance(made, Iterable):
        made = [_without_graph(row) for row in made]
    try:
        return np.asarray(_without_graph(made))
    except ValueError as exc:
        raise TypeError(f"{method} returned rows of different lengths ({exc})") from exc


def _without_graph(made: Any) -> Any:
    """A tensor that NumPy can read: torch's may be on a GPU, or part of an autograd graph."""
    if not (hasattr(made, "detach") and hasattr(made, "cpu")):
        return made
    tensor = made.detach().cpu()
    # NumPy has no bfloat16.
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy()
