"""Cross-encoders: models that read a query and a text together, and score how well they match.

They are slower and more precise than comparing two vectors, so they score only the top candidates.
Scores are mapped to 0..1.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kronos.concurrency.forking import Lock
from kronos.devices import AUTO, split_devices
from kronos.embedding.fingerprint import contents_digest
from kronos.embedding.foreign_errors import reason_of
from kronos.embedding.loading import load_from_some_source
from kronos.embedding.model_cache import free_with_owner, get_shared, import_in_thread
from kronos.errors import EmbeddingError, ModelLoadError

if TYPE_CHECKING:
    from kronos.settings import Settings
    from kronos.types import Vectors


class Reranker:
    """A loaded cross-encoder. Thread-safe.

    Args:
        model: a CrossEncoder of sentence-transformers.
        name: the requested name.
        batch_size: pairs that it reads at once.
    """

    def __init__(self, model: Any, name: str, batch_size: int) -> None:
        self.name = name
        self._model = model
        self._batch_size = batch_size
        self._lock = Lock()

    def score(self, query: str, texts: Sequence[str]) -> Vectors:
        """Score how well each text answers a query: (n,) float32, 0..1.

        Raises:
            EmbeddingError: the model failed.
        """
        if not texts:
            return np.empty(0, np.float32)
        pairs = [(query, text) for text in texts]
        try:
            with self._lock:
                found = self._model.predict(
                    pairs,
                    batch_size=self._batch_size,
                    activation_fn=_identity,
                    convert_to_numpy=True,
                    show_progress_bar=False,
                )
            logits = np.asarray(found, np.float64).reshape(len(texts), -1)[:, -1]
        except Exception as exc:
            raise EmbeddingError(f"the reranker {self.name} failed: {reason_of(exc)}") from exc
        if not np.isfinite(logits).all():
            raise EmbeddingError(f"the reranker {self.name} returned NaN or inf")
        return (1 / (1 + np.exp(-np.clip(logits, -50, 50)))).astype(np.float32)


def load_reranker(
    name: str, *, device: str, cache_dir: Path | None, settings: Settings
) -> Reranker:
    """Find a cross-encoder and load it.

    Args:
        name: a folder, or a name on the Hugging Face hub.
        device: checked by `check_device`; of several devices the first is used.
        cache_dir: where downloads go.
        settings: how long to wait for the network, and how many texts a model reads at once.

    Raises:
        ModelLoadError: it cannot be loaded, or is no cross-encoder.
    """
    on = None if device == AUTO else split_devices(device)[0]

    def load(folder: Path) -> Reranker:
        contents = contents_digest(folder)
        key = ("reranker", contents, on, name, settings.encode_batch_size)
        return get_shared(contents and key, lambda: load_now(folder))

    def load_now(folder: Path) -> Reranker:
        encoder = import_in_thread("sentence_transformers", "CrossEncoder")
        model = encoder(str(folder), device=on, local_files_only=True, trust_remote_code=False)
        reranker = Reranker(model, name, settings.encode_batch_size)
        free_with_owner(reranker, [model])
        return reranker

    try:
        return load_from_some_source(name, load, cache_dir=cache_dir, settings=settings)
    except ModelLoadError as exc:
        raise ModelLoadError(
            f"the reranker {name!r} cannot be used ({exc}): name a cross-encoder, or omit "
            "ranking.rerank"
        ) from exc


def _identity(logits: Any) -> Any:
    return logits
