"""The models of an open store: the embedder that was asked for, others by name, and rerankers."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from kronos.concurrency.forking import Lock
from kronos.embedding.embedder_calls import check_embedder
from kronos.embedding.registry import DEFAULT_MODEL, KEPT_MODEL, absolute_model
from kronos.embedding.reranking import Reranker, load_reranker
from kronos.embedding.service import EmbeddingService

if TYPE_CHECKING:
    from kronos.serving.options import OpenOptions
    from kronos.types import Embedder


class Embedders:
    """Loads models; they are given back when nothing holds them any more.

    Args:
        options: which embedder is asked for, and where models run and are kept.
    """

    def __init__(self, options: OpenOptions) -> None:
        self._options = options
        self._rerankers: dict[str, Reranker] = {}
        self._loading = Lock()

    @property
    def keeps_model(self) -> bool:
        """Whether the store's own model is asked for, whichever that is."""
        return self._options.embedder is None and self._options.embedding_model == KEPT_MODEL

    @property
    def alias(self) -> str | None:
        """The name by which another process gets the same embedder; None where it has none."""
        embedder, model = self._options.embedder, self._options.embedding_model
        if isinstance(embedder, EmbeddingService):
            return absolute_model(os.fspath(embedder.model))
        if embedder is not None:
            return None
        return absolute_model(DEFAULT_MODEL if model == KEPT_MODEL else model)

    def asked_for(self) -> Embedder | None:
        """The embedder that was asked for, loaded; None where vectors are handed in.

        Raises:
            ModelLoadError: it cannot be had, and `strict` is set.
        """
        if self._options.embedder is not None:
            return check_embedder(self._options.embedder)
        model = DEFAULT_MODEL if self.keeps_model else self._options.embedding_model
        return None if model is None else self.load(model, strict=self._options.strict)

    def load(self, model: str, *, strict: bool, dim: int | None = None) -> EmbeddingService:
        """Load a model.

        Args:
            model: a preset, a model's name, a folder or "hash".
            strict: raise where hash vectors would take over.
            dim: the width of hash vectors; None is the store's.

        Raises:
            ModelLoadError: it cannot be had, and `strict` is set.
        """
        service = EmbeddingService(
            model,
            device=self._options.device,
            cache_dir=self._options.location.models,
            embedding_dim=dim or self._options.embedding_dim,
            strict=strict,
            settings=self._options.settings,
        )
        service.load()
        return service

    def reranker(self, name: str) -> Reranker:
        """A reranker, loaded once.

        Raises:
            ModelLoadError: it cannot be had.
        """
        with self._loading:
            if name not in self._rerankers:
                self._rerankers[name] = load_reranker(
                    name,
                    device=self._options.device,
                    cache_dir=self._options.location.models,
                    settings=self._options.settings,
                )
            return self._rerankers[name]

    def release(self) -> None:
        """Let go of the rerankers."""
        self._rerankers.clear()
