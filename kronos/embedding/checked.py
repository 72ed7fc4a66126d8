"""Embedders, ours or a caller's own, and what they return: checked before it goes anywhere.

A text is blamed for a failure only when the embedder works without it and fails on it again; what
fails in passing is waited for, and never blames a text.
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

from kronos.embedding.awaited import is_awaited
from kronos.embedding.passing import passing
from kronos.embedding.patience import ONCE, Patience
from kronos.embedding.sentence import is_out_of_memory
from kronos.embedding.service import EmbeddingService
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

_HARMLESS = "Kronos asks whether the embedder still works."
_METHODS = ("embed_documents", "embed_queries")


def check_embedder(embedder: object) -> Embedder:
    """Check that a caller's object is an embedder; a service that is not loaded yet is loaded.

    Raises:
        ConfigurationError: it lacks a part of the `Embedder` protocol, or a part is a coroutine
            function; names it.
    """
    if isinstance(embedder, EmbeddingService):
        embedder.load()
        return embedder
    for name in ("model_id", "fingerprint"):
        if not isinstance(value := _part(embedder, name), str) or not value:
            raise _unfit(name, f"must be a str, not {value!r}")
    width = _part(embedder, "dim")
    if _as_width(width) < 1:
        raise _unfit("dim", f"must be a whole number from 1 on, not {width!r}")
    methods = {name: _part(embedder, name) for name in _METHODS}
    for name, method in methods.items():
        if not callable(method):
            raise _unfit(name, f"must be a method, not {method!r}")
    for name, method in methods.items():
        if is_awaited(method):
            raise _unfit(
                name,
                "is a coroutine function, which only KronosMemory awaits: open the store with it, "
                "or hand in an embedder whose methods return the vectors themselves",
            )
        if inspect.isasyncgenfunction(method):
            raise _unfit(name, "is an async generator, and must return all vectors at once")
    return cast("Embedder", embedder)


def _part(embedder: object, name: str) -> Any:
    try:
        return getattr(embedder, name, None)
    except Exception as exc:  # a property of a caller's own
        raise _unfit(name, f"cannot be read ({type(exc).__name__}: {exc})") from exc


def _as_width(value: object) -> int:
    """A width as a number, NumPy's own integers too; 0 for what is none."""
    try:
        return 0 if isinstance(value, bool) else operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return 0


def _unfit(name: str, why: str) -> ConfigurationError:
    return ConfigurationError(
        f"embedder.{name} {why}; see kronos.Embedder", field=f"embedder.{name}"
    )


def embed_documents(embedder: Embedder, texts: Sequence[str], patience: Patience = ONCE) -> Vectors:
    """Embed texts to be stored.

    A text that occurs twice is embedded once.

    Returns:
        (n, dim) float32 unit rows.

    Raises:
        DimensionMismatchError: the embedder returned vectors of another width than its `dim`.
        TransientEmbeddingError: the embedder still failed in passing when the patience was over.
        EmbeddingError: the embedder failed, or returned NaN, inf or zeros; names the text.
    """
    distinct = list(dict.fromkeys(texts))
    rows = _embed(embedder, "embed_documents", distinct, patience)
    if len(distinct) == len(texts):
        return rows
    position = {text: row for row, text in enumerate(distinct)}
    return rows[[position[text] for text in texts]]


def embed_queries(embedder: Embedder, texts: Sequence[str], patience: Patience = ONCE) -> Vectors:
    """Embed questions: (n, dim) float32 unit rows. Raises as `embed_documents` does."""
    return _embed(embedder, "embed_queries", list(texts), patience)


@dataclass(frozen=True, slots=True)
class Embedded:
    """What became of some texts."""

    rows: Vectors
    """(m, dim) float32 unit rows of those that could be embedded."""
    positions: list[int]
    """Their positions among the texts, ascending."""
    errors: dict[int, str]
    """Why the others could not, by position."""
    fits: int | None
    """How many the embedder took at once after its memory ran out; None when it did not."""


def embed_each(embedder: Embedder, texts: Sequence[str], patience: Patience = ONCE) -> Embedded:
    """Embed texts as far as they can be: one that fails costs the others nothing.

    What fails is halved until the texts at fault stand alone; so a batch that is too large for the
    memory is done in parts. What fails in passing is asked again as it is.

    Args:
        embedder: what embeds.
        texts: distinct texts to be stored.
        patience: with failures in passing.

    Raises:
        TransientEmbeddingError: the embedder still failed in passing when the patience was over.
        EmbeddingError: the embedder fails on any text, not on these: it is broken.
        DimensionMismatchError: likewise, it makes vectors of another width than its `dim`.
    """
    return _Parts(embedder, texts, patience).embedded()


class _Parts:
    """Texts that are embedded in parts, where they cannot be embedded at once."""

    def __init__(self, embedder: Embedder, texts: Sequence[str], patience: Patience) -> None:
        self._embedder = embedder
        self._texts = texts
        self._ask = functools.partial(_call, embedder, "embed_documents", patience=patience)
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
        """Embed a part, if that can be done at once: None, or what is against it."""
        try:
            rows = self._ask([self._texts[at] for at in part])
        except TransientEmbeddingError:
            raise  # it says nothing of the texts
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
        """Note that a text is at fault, once the embedder works and fails on it again."""
        self._require_sound(failure)
        if self._try(part) is not None:
            self._errors[part.start] = str(failure)

    def _require_sound(self, failure: KronosError | None) -> None:
        """Raise when the embedder fails on a harmless text too: then the text is not at fault."""
        try:
            _as_units(self._embedder, [_HARMLESS], self._ask([_HARMLESS]))
        except TransientEmbeddingError:
            raise
        except KronosError as exc:
            raise failure or exc from exc

    def _rows(self) -> Vectors:
        # One part, as a rule; else in the order of the texts.
        parts = [self._made[start] for start in sorted(self._made)]
        if len(parts) == 1:
            return parts[0]
        return np.concatenate([np.empty((0, self._embedder.dim), np.float32), *parts])


def _embed(embedder: Embedder, method: str, texts: Sequence[str], patience: Patience) -> Vectors:
    if not texts:
        return np.empty((0, embedder.dim), np.float32)
    return _as_units(embedder, texts, _call(embedder, method, texts, patience=patience))


def _as_units(embedder: Embedder, texts: Sequence[str], rows: Vectors) -> Vectors:
    try:
        return scale_to_unit(rows, lambda position: f"the vector of {texts[position][:60]!r}")
    except VectorError as exc:
        raise EmbeddingError(f"the embedder {embedder.model_id} failed: {exc}") from exc


def _call(embedder: Embedder, method: str, texts: Sequence[str], *, patience: Patience) -> Vectors:
    """Call a method of an embedder: (n, dim) float32, not looked at any further."""
    return patience.call(lambda: _ask(embedder, method, texts))


def _ask(embedder: Embedder, method: str, texts: Sequence[str]) -> Vectors:
    """The same, once."""
    handled = sys.exc_info()[1]
    try:
        with np.errstate(over="ignore", invalid="ignore"):
            rows = _as_rows(getattr(embedder, method)(texts), method)
        _check_shape(embedder, rows, len(texts))
        return rows
    except Exception as exc:  # a caller's own embedder may raise anything
        found = passing(exc, texts, beyond=handled)
        if found is None and isinstance(exc, KronosError):
            raise
        # A bare TimeoutError says nothing but its name.
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
    """What an embedder returned, as float32 numbers.

    Raises:
        TypeError: it is no table of numbers.
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
            made.close()  # else Python warns that nobody awaited it
        raise TypeError(
            f"{method} returned a {type(made).__name__}, which has to be awaited: use "
            "KronosMemory, or return the vectors themselves"
        )
    if not hasattr(made, "__array__") and isinstance(made, Iterable):
        made = [_without_graph(row) for row in made]
    try:
        return np.asarray(_without_graph(made))
    except ValueError as exc:
        raise TypeError(f"{method} returned rows of different lengths ({exc})") from exc


def _without_graph(made: Any) -> Any:
    """A tensor that NumPy can read: one of torch's may be on a GPU, and know how it was made."""
    if not (hasattr(made, "detach") and hasattr(made, "cpu")):
        return made
    tensor = made.detach().cpu()
    # NumPy has no bfloat16.
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy()
