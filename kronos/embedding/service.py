"""`EmbeddingService`: one embedder under one name, with a fallback that it reports.

The service has a real model, or hash embeddings and the reason why. It decides once, at `load`,
never per call. The two have different fingerprints, so their vectors are never confused. It holds
no vectors and knows no store.
"""

from __future__ import annotations

import asyncio
import os
import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from kronos.concurrency.forking import Lock
from kronos.devices import AUTO, split_devices
from kronos.embedding.foreign_errors import forget_frames
from kronos.embedding.hashing import HashEmbedder
from kronos.embedding.loading import check_device, load_model
from kronos.embedding.registry import EMBEDDING_MODELS, HASH_MODEL
from kronos.embedding.sentence import SentenceEmbedder
from kronos.errors import (
    ConfigurationError,
    ContentError,
    EmbeddingError,
    KronosWarning,
    MissingDependencyError,
    ModelLoadError,
)
from kronos.files import expanded
from kronos.settings import Settings
from kronos.types import Vectors

if TYPE_CHECKING:
    from torch import Tensor
else:  # torch takes seconds to import, and need not be installed
    Tensor = Any


class EmbeddingService:
    """Turns texts into unit vectors. Thread-safe once loaded.

    All services and stores of the same model on the same device share one copy of it in a process.
    It is freed when the last of them is closed.
    A service is an `Embedder` too: `KronosMemory(..., embedder=service)` works.

    Args:
        model: a preset of `EMBEDDING_MODELS`, a folder that holds a sentence-transformers model,
            the name of one on the Hugging Face hub, or "hash" for hash embeddings.
        device: "auto" (all GPUs of the machine), "cpu", "cuda", "cuda:N" or "mps", or several with
            commas, such as "cuda:0,cuda:1": each has a copy of the model, and they share the texts.
        cache_dir: where downloaded models are kept, in the layout of the Hugging Face cache;
            None: the user's own cache.
        embedding_dim: the width of hash embeddings; a real model has its own width.
        strict: raise ModelLoadError instead of falling back to hash embeddings.
        settings: how long to wait for the network, and how many texts a model reads at once.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] = "mini",
        *,
        device: str = "auto",
        cache_dir: str | os.PathLike[str] | None = None,
        embedding_dim: int = 384,
        strict: bool = False,
        settings: Settings | None = None,
    ) -> None:
        self.model = model
        """The requested model."""
        self._device = device
        self._cache_dir = cache_dir
        self._hash_dim = embedding_dim
        self._strict = strict
        self._settings = settings or Settings()
        self._embedder: SentenceEmbedder | HashEmbedder | None = None
        self._fallback_reason: str | None = None
        self._lock = Lock()

    async def initialize(self) -> None:
        """Load the model without blocking the event loop. Raises as `load` does."""
        executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="kronos-load")
        try:
            await asyncio.get_running_loop().run_in_executor(executor, self.load)
        finally:
            # After a cancellation the load goes on, and the next call finds its model.
            executor.shutdown(wait=False)

    def load(self) -> None:
        """Load the model, or fall back with one warning; a second call does nothing.

        Raises:
            ConfigurationError: the model's or the device's name is malformed.
            DeviceError: the requested device is not present.
            ModelLoadError: the model cannot be loaded, and `strict` is set.
        """
        with self._lock:
            if self._embedder is not None:
                return
            check_device(self._device)
            model = _check_name(self.model)
            try:
                self._embedder = self._open(model)
            except ModelLoadError as exc:
                if self._strict:
                    raise
                self._embedder = HashEmbedder(self._hash_dim)
                self._fallback_reason = str(exc)
                forget_frames(exc)
                warnings.warn(
                    f"the embedding model {model!r} cannot be used; hash embeddings replace it, "
                    f"which match words but not meaning. The reason: {exc}",
                    KronosWarning,
                    stacklevel=2,
                )

    def _open(self, model: str) -> SentenceEmbedder | HashEmbedder:
        if model == HASH_MODEL:
            return HashEmbedder(self._hash_dim)
        cache_dir = None if self._cache_dir is None else expanded(self._cache_dir)
        return load_model(model, device=self._device, cache_dir=cache_dir, settings=self._settings)

    def close(self) -> None:
        """Release the model; a second call does nothing. `load` loads it again."""
        with self._lock:
            self._embedder = None
            self._fallback_reason = None

    def is_available(self) -> bool:
        """Whether the requested model is loaded: False before `initialize` and in a fallback."""
        return self._embedder is not None and self._fallback_reason is None

    @property
    def fallback_reason(self) -> str | None:
        """Why hash embeddings replace the model; None if they do not."""
        return self._fallback_reason

    @property
    def model_id(self) -> str:
        """The name of the loaded embedder, for people."""
        return self._loaded().model_id

    @property
    def fingerprint(self) -> str:
        """Equal only for embedders whose vectors can be compared."""
        return self._loaded().fingerprint

    @property
    def dim(self) -> int:
        """The width of a vector."""
        return self._loaded().dim

    @property
    def embedding_dim(self) -> int:
        """The width of a vector, from the loaded model."""
        return self.dim

    @property
    def max_tokens(self) -> int | None:
        """Tokens of a text that the model reads; it drops the rest. None: no limit."""
        embedder = self._loaded()
        return embedder.max_tokens if isinstance(embedder, SentenceEmbedder) else None

    @property
    def revision(self) -> str | None:
        """The commit of the model's repository; None if there is none, as for a folder."""
        embedder = self._loaded()
        return embedder.revision if isinstance(embedder, SentenceEmbedder) else None

    def count_tokens(self, texts: Sequence[str]) -> int | None:
        """How many tokens of these texts the model reads; None for an embedder without tokens."""
        embedder = self._loaded()
        return embedder.count_tokens(texts) if isinstance(embedder, SentenceEmbedder) else None

    @property
    def engine(self) -> str:
        """The engine that computes the vectors, and why no faster one is used.

        "onnx", "hash", or "sentence-transformers: " and the reason.
        """
        embedder = self._loaded()
        return embedder.engine if isinstance(embedder, SentenceEmbedder) else "hash"

    @property
    def device(self) -> str:
        """The device that computes, such as "cpu" or "cuda:0"; the first of several.

        `embed` returns tensors on it.
        """
        embedder = self._loaded()
        if isinstance(embedder, SentenceEmbedder):
            return embedder.device
        return "cpu" if self._device == AUTO else split_devices(self._device)[0]

    def embed_documents(self, texts: Sequence[str]) -> Vectors:
        """Embed texts to be stored.

        Returns:
            (n, dim) float32 unit rows.

        Raises:
            ContentError: a text is not a str, or not valid Unicode.
            EmbeddingError: the service is not loaded, or the model failed on a text.
        """
        return self._loaded().embed_documents(_check_texts(texts))

    def embed_queries(self, texts: Sequence[str]) -> Vectors:
        """Embed queries: (n, dim) float32 unit rows. Raises as `embed_documents` does."""
        return self._loaded().embed_queries(_check_texts(texts))

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Embed texts as NumPy rows, without torch; the same as `embed_documents`.

        Returns:
            (n, dim) float32 unit rows; (0, dim) for no texts.
        """
        return self.embed_documents(texts)

    async def embed(self, text: str) -> Tensor:
        """Embed one text, without blocking the event loop; `encode` is the way without asyncio.

        Returns:
            (dim,) float32 on the service's device.

        Raises:
            MissingDependencyError: torch is not installed; `encode` does not need it.
            EmbeddingError: as `embed_documents`.
            ContentError: as `embed_documents`.
        """
        return (await self.embed_batch([text]))[0]

    async def embed_batch(self, texts: Sequence[str]) -> Tensor:
        """Embed texts: (n, dim) float32 on the service's device; else as `embed`."""
        return await asyncio.to_thread(self._as_tensor, texts)

    def _as_tensor(self, texts: Sequence[str]) -> Tensor:
        try:
            import torch
        except ImportError as exc:
            raise MissingDependencyError(
                "embed and embed_batch return torch tensors, and torch is not installed: call "
                "encode, which returns NumPy arrays, or run pip install 'kronos-memory[models]'"
            ) from exc
        return torch.from_numpy(self.encode(texts)).to(self.device)

    def _loaded(self) -> SentenceEmbedder | HashEmbedder:
        embedder = self._embedder
        if embedder is None:
            raise EmbeddingError(
                "the embedding service is not loaded: call `await service.initialize()`, or "
                "load(), first"
            )
        return embedder


async def create_embedding_service(
    model: str | os.PathLike[str] = "mini",
    device: str = "auto",
    cache_dir: str | os.PathLike[str] | None = None,
    *,
    embedding_dim: int = 384,
    strict: bool = False,
    settings: Settings | None = None,
) -> EmbeddingService:
    """Create an `EmbeddingService` and initialize it; same arguments and errors."""
    service = EmbeddingService(
        model,
        device=device,
        cache_dir=cache_dir,
        embedding_dim=embedding_dim,
        strict=strict,
        settings=settings,
    )
    await service.initialize()
    return service


def _check_name(model: object) -> str:
    name = os.fspath(model) if isinstance(model, os.PathLike) else model
    if not isinstance(name, str) or not name.strip():
        raise ConfigurationError(
            f"the embedding model must be one of {', '.join(EMBEDDING_MODELS)}, a folder or a "
            f"model's name, not {model!r}",
            field="model",
        )
    return name


def _check_texts(texts: Iterable[str]) -> list[str]:
    if isinstance(texts, str) or not isinstance(texts, Iterable):
        raise ContentError(f"texts must be a list of str, not {texts!r:.60}", field="texts")
    texts = list(texts)
    for position, text in enumerate(texts):
        if not isinstance(text, str):
            raise ContentError(
                f"texts[{position}] must be a str, not {type(text).__name__}",
                field=f"texts[{position}]",
            )
        if not text.isascii():
            _check_unicode(text, position)
    return texts


def _check_unicode(text: str, position: int) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as exc:
        raise ContentError(
            f"texts[{position}] has a lone surrogate at character {exc.start}, which is not "
            'valid Unicode: encode it with errors="replace" first',
            field=f"texts[{position}]",
        ) from None
