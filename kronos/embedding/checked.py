"""Embedders, ours or a caller's own, and what they return: checked before it goes anywhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from kronos.embedding.service import EmbeddingService
from kronos.errors import (
    ConfigurationError,
    DimensionMismatchError,
    EmbeddingError,
    KronosError,
    VectorError,
)
from kronos.types import Embedder
from kronos.validation import scale_to_unit

if TYPE_CHECKING:
    from kronos.types import Vectors


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


def embed_query(embedder: Embedder, text: str) -> Vectors:
    """Embed a question: (dim,) float32 of unit length. Raises as `embed_documents` does."""
    row: Vectors = _embed(embedder, embedder.embed_queries, [text])[0]
    return row


def _embed(
    embedder: Embedder, method: Callable[[Sequence[str]], Vectors], texts: Sequence[str]
) -> Vectors:
    if not texts:
        return np.empty((0, embedder.dim), np.float32)
    try:
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
    try:
        return scale_to_unit(rows, [f"the vector of {text[:60]!r}" for text in texts])
    except VectorError as exc:
        raise EmbeddingError(f"the embedder {embedder.model_id} failed: {exc}") from exc
