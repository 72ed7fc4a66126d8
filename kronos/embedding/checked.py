"""Embedders, ours or a caller's own, and what they return: checked before it goes anywhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from kronos.embedding.sentence import is_out_of_memory
from kronos.embedding.service import EmbeddingService
from kronos.errors import (
    ConfigurationError,
    DimensionMismatchError,
    EmbeddingError,
    KronosError,
    VectorError,
)
from kronos.types import Embedder
from kronos.validation import scale_to_unit, unusable_rows

if TYPE_CHECKING:
    from kronos.types import Vectors

_HARMLESS = "Kronos asks whether the embedder still works."


def check_embedder(embedder: object) -> Embedder:
    """Check that a caller's object is an embedder; a service that is not loaded yet is loaded.

    Raises:
        ConfigurationError: it lacks a part of the `Embedder` protocol; names it.
    """
    if isinstance(embedder, EmbeddingService):
        embedder.load()
        return embedder
    parts = {"model_id": str, "fingerprint": str, "dim": int}
    for name, kind in parts.items():
        value = getattr(embedder, name, None)
        if not isinstance(value, kind) or not value:
            raise ConfigurationError(
                f"embedder.{name} must be a {kind.__name__}, not {value!r}; see kronos.Embedder",
                field=f"embedder.{name}",
            )
    if not isinstance(embedder, Embedder):
        raise ConfigurationError(
            "embedder must have embed_documents and embed_queries; see kronos.Embedder",
            field="embedder",
        )
    return embedder


def embed_documents(embedder: Embedder, texts: Sequence[str]) -> Vectors:
    """Embed texts to be stored.

    A text that occurs twice is embedded once.

    Returns:
        (n, dim) float32 unit rows.

    Raises:
        DimensionMismatchError: the embedder returned vectors of another width than its `dim`.
        EmbeddingError: the embedder failed, or returned NaN, inf or zeros; names the text.
    """
    distinct = list(dict.fromkeys(texts))
    rows = _embed(embedder, embedder.embed_documents, distinct)
    if len(distinct) == len(texts):
        return rows
    position = {text: row for row, text in enumerate(distinct)}
    return rows[[position[text] for text in texts]]


def embed_queries(embedder: Embedder, texts: Sequence[str]) -> Vectors:
    """Embed questions: (n, dim) float32 unit rows. Raises as `embed_documents` does."""
    return _embed(embedder, embedder.embed_queries, list(texts))


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


def embed_each(embedder: Embedder, texts: Sequence[str]) -> Embedded:
    """Embed texts as far as they can be: one that fails costs the others nothing.

    What fails is halved until the texts at fault stand alone; so a batch that is too large for the
    memory is done in parts.

    Args:
        embedder: what embeds.
        texts: distinct texts to be stored.

    Raises:
        EmbeddingError: the embedder fails on any text, not on these: it is broken or out of reach.
        DimensionMismatchError: likewise, it makes vectors of another width than its `dim`.
    """
    made: dict[int, Vectors] = {}
    errors: dict[int, str] = {}
    fits = 0
    short_of_memory = False
    todo = [range(len(texts))]
    while todo:
        part = todo.pop()
        try:
            rows = _call(embedder, embedder.embed_documents, [texts[i] for i in part])
        except KronosError as exc:
            short_of_memory |= is_out_of_memory(exc.__cause__)
            if len(part) > 1:
                middle = part[len(part) // 2]
                todo += [range(middle, part.stop), range(part.start, middle)]
            else:
                _require_sound(embedder, exc)
                errors[part.start] = str(exc)
            continue
        fits = max(fits, len(part))
        unusable = unusable_rows(rows)
        if len(unusable) == len(part):
            _require_sound(embedder, None)
        errors.update((part[at], f"its vector {why}") for at, why in unusable.items())
        made[part.start] = rows if not unusable else np.delete(rows, list(unusable), axis=0)
    positions = [position for position in range(len(texts)) if position not in errors]
    # One part, as a rule; else in the order of the texts.
    parts = [np.empty((0, embedder.dim), np.float32), *(made[start] for start in sorted(made))]
    usable = parts[1] if len(parts) == 2 else np.concatenate(parts)
    return Embedded(
        scale_to_unit(usable, str), positions, errors, fits if short_of_memory else None
    )


def _require_sound(embedder: Embedder, failure: KronosError | None) -> None:
    """Raise when an embedder fails on a harmless text too: then the text before is not at fault."""
    try:
        _embed(embedder, embedder.embed_documents, [_HARMLESS])
    except KronosError as exc:
        raise failure or exc from exc


def _embed(
    embedder: Embedder, method: Callable[[Sequence[str]], Vectors], texts: Sequence[str]
) -> Vectors:
    if not texts:
        return np.empty((0, embedder.dim), np.float32)
    rows = _call(embedder, method, texts)
    try:
        return scale_to_unit(rows, lambda position: f"the vector of {texts[position][:60]!r}")
    except VectorError as exc:
        raise EmbeddingError(f"the embedder {embedder.model_id} failed: {exc}") from exc


def _call(
    embedder: Embedder, method: Callable[[Sequence[str]], Vectors], texts: Sequence[str]
) -> Vectors:
    """Call a method of an embedder: (n, dim) float32, not looked at any further."""
    try:
        with np.errstate(over="ignore", invalid="ignore"):
            rows = np.asarray(method(texts), dtype=np.float32)
    except KronosError:
        raise
    except Exception as exc:  # a caller's own embedder may raise anything
        raise EmbeddingError(f"the embedder {embedder.model_id} failed: {exc}") from exc
    if rows.shape != (len(texts), embedder.dim):
        raise DimensionMismatchError(
            f"the embedder {embedder.model_id} returned shape {rows.shape}, expected "
            f"({len(texts)}, {embedder.dim})"
        )
    return rows
