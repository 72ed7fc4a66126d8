"""The embedder that stands on a loaded sentence-transformers model.

Rows that leave here are float32, finite, of unit length and as wide as the model made them.
Loading a model and deciding whether it is fit for use is `kronos.embedding.loading`'s work;
nothing here imports torch before a model is at hand.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from kronos.errors import EmbeddingError, KronosWarning, VectorError
from kronos.forking import Lock
from kronos.validation import scale_to_unit

if TYPE_CHECKING:
    from kronos.types import Vectors

CHARS_PER_TOKEN = 64
"""Characters of a text that are looked at for each token that the model reads. English has about
five; without a bound, the tokenizer would read 10 MB to use the first 256 tokens of it."""

_NO_LIMIT = 2**31
_MOST_TOKENS_PER_CHAR = 4  # UTF-8 bytes, each a token of its own in a byte-level vocabulary
_SPECIAL_TOKENS = 4
_MEMORY_SIGNS = ("out of memory", "can't allocate memory", "not enough memory")


@dataclass(frozen=True, slots=True)
class Reading:
    """How a loaded model reads a text: what shapes a vector beside the model's files."""

    max_tokens: int | None
    """Tokens of a text that it reads; it drops the rest. None: no limit."""
    max_chars: int | None
    """Characters of a text that its tokenizer is shown."""
    document_prompt: str
    query_prompt: str
    truncate_dim: int | None
    """The width to which it cuts its vectors; None: it does not."""

    @classmethod
    def of(cls, model: Any) -> Reading:
        """Ask a loaded SentenceTransformer."""
        limit = model.max_seq_length
        max_tokens = int(limit) if limit is not None and limit < _NO_LIMIT else None
        return cls(
            max_tokens=max_tokens,
            max_chars=max_tokens * CHARS_PER_TOKEN if max_tokens is not None else None,
            document_prompt=_prompt(model, ("document", "passage", "corpus")),
            query_prompt=_prompt(model, ("query",)),
            truncate_dim=model.truncate_dim,
        )


def _prompt(model: Any, names: Sequence[str]) -> str:
    # The library fills in "" for "query" and "document", and an empty prompt hides the others.
    candidates = [*names, model.default_prompt_name]
    return next((text for name in candidates if (text := model.prompts.get(name))), "")


class SentenceEmbedder:
    """Embeds texts with a sentence-transformers model. Thread-safe.

    Args:
        model: the loaded SentenceTransformer.
        reading: how it reads.
        model_id: its name, for people.
        fingerprint: what tells it from models whose vectors cannot be compared.
        dim: the width of its vectors.
        revision: the commit of its repository; None where there is none.
        batch_size: texts that it reads at once; halved as often as memory asks for it.
    """

    def __init__(
        self,
        model: Any,
        reading: Reading,
        *,
        model_id: str,
        fingerprint: str,
        dim: int,
        revision: str | None = None,
        batch_size: int = 32,
    ) -> None:
        self._model = model
        self._reading = reading
        self._model_id = model_id
        self._fingerprint = fingerprint
        self._dim = dim
        self._revision = revision
        self._batch_size = batch_size
        self._warned = False
        # Tokenizers keep their truncation and padding between calls.
        self._lock = Lock()

    @property
    def model_id(self) -> str:
        """The model's name, e.g. "sentence-transformers/all-MiniLM-L6-v2", or its folder."""
        return self._model_id

    @property
    def fingerprint(self) -> str:
        """A sha256 in hex over the model's files and how it reads."""
        return self._fingerprint

    @property
    def dim(self) -> int:
        """The width of a vector, as the loaded model makes it."""
        return self._dim

    @property
    def revision(self) -> str | None:
        """The commit of the model's repository; None where there is none, e.g. for a folder."""
        return self._revision

    @property
    def max_tokens(self) -> int | None:
        """Tokens of a text that the model reads; it drops the rest. None: no limit."""
        return self._reading.max_tokens

    @property
    def device(self) -> str:
        """Where the model computes, e.g. "cpu" or "cuda:0"."""
        return str(self._model.device)

    def embed_documents(self, texts: Sequence[str]) -> Vectors:
        """Embed texts to be stored, behind the model's prompt for documents if it has one.

        Returns:
            (n, dim) float32 unit rows, C-contiguous.

        Raises:
            EmbeddingError: the model failed, ran out of memory on one text alone, or made a
                vector that is not finite or of length 0; the text's position is named.
        """
        return self._embed(self._model.encode_document, texts, self._reading.document_prompt)

    def embed_queries(self, texts: Sequence[str]) -> Vectors:
        """Embed questions, behind the model's prompt for queries. Else as `embed_documents`."""
        return self._embed(self._model.encode_query, texts, self._reading.query_prompt)

    def count_tokens(self, texts: Sequence[str]) -> int:
        """How many tokens of these documents the model reads, without what it drops."""
        tokenizer = getattr(self._model, "tokenizer", None)
        if not callable(tokenizer) or not texts:
            return 0
        shown = [self._reading.document_prompt + text[: self._reading.max_chars] for text in texts]
        with self._lock:
            rows = tokenizer(shown, truncation=False, verbose=False)["input_ids"]
        most = self._reading.max_tokens or _NO_LIMIT
        return sum(min(len(row), most) for row in rows)

    def _embed(self, encode: Callable[..., Any], texts: Sequence[str], prompt: str) -> Vectors:
        if not texts:
            return np.empty((0, self._dim), np.float32)
        shown = [text[: self._reading.max_chars] for text in texts]
        with self._lock:
            self._warn_once_of_dropped_text(texts, prompt)
            rows = self._encode(encode, shown, prompt)
        if rows.shape != (len(texts), self._dim):
            raise EmbeddingError(
                f"{self._model_id} returned shape {rows.shape}, expected "
                f"({len(texts)}, {self._dim})"
            )
        try:
            return scale_to_unit(rows, lambda position: f"the vector of text {position}")
        except VectorError as exc:
            raise EmbeddingError(f"{self._model_id} failed: {exc}") from exc

    def _encode(self, encode: Callable[..., Any], texts: list[str], prompt: str) -> Vectors:
        # The library reads the longest texts first: what does not fit shows in the first batch.
        batch_size = self._batch_size
        while batch_size > 1:
            try:
                return self._call(encode, texts, prompt, batch_size)
            except MemoryError:
                batch_size //= 2
            self._free_cached_memory()
        return np.concatenate(list(self._one_by_one(encode, texts, prompt)))

    def _one_by_one(
        self, encode: Callable[..., Any], texts: list[str], prompt: str
    ) -> Iterator[Vectors]:
        for position, text in enumerate(texts):
            try:
                yield self._call(encode, [text], prompt, 1)
            except MemoryError as exc:
                raise EmbeddingError(
                    f"{self._model_id} ran out of memory on text {position} alone "
                    f"({len(text)} characters): cut it into passages, or take a smaller model"
                ) from exc

    def _call(
        self, encode: Callable[..., Any], texts: list[str], prompt: str, batch_size: int
    ) -> Vectors:
        """Encode; whatever the library raises becomes a MemoryError or an EmbeddingError."""
        try:
            rows = encode(texts, prompt=prompt, batch_size=batch_size, show_progress_bar=False)
            return np.asarray(rows, np.float32)
        except Exception as exc:
            if is_out_of_memory(exc):
                raise MemoryError(str(exc)) from exc
            raise EmbeddingError(
                f"{self._model_id} failed on {len(texts)} texts: {type(exc).__name__}: {exc}"
            ) from exc

    def _free_cached_memory(self) -> None:
        if self.device.startswith("cuda"):
            import torch

            torch.cuda.empty_cache()

    def _warn_once_of_dropped_text(self, texts: Sequence[str], prompt: str) -> None:
        if self._warned or not any(self._drops_some(text, prompt) for text in texts):
            return
        self._warned = True
        warnings.warn(
            f"{self._model_id} reads {self.max_tokens} tokens of a text and drops the rest; "
            "cut long texts into passages",
            KronosWarning,
            stacklevel=2,
        )

    def _drops_some(self, text: str, prompt: str) -> bool:
        if self._reading.max_chars is None or self._reading.max_tokens is None:
            return False
        if len(text) > self._reading.max_chars:
            return True
        # Most texts are so short that there is no need to count their tokens.
        text = prompt + text
        most = len(text) if text.isascii() else len(text) * _MOST_TOKENS_PER_CHAR
        tokenizer = getattr(self._model, "tokenizer", None)
        if most + _SPECIAL_TOKENS <= self._reading.max_tokens or not callable(tokenizer):
            return False
        tokens = tokenizer(text, truncation=False, verbose=False)["input_ids"]
        return len(tokens) > self._reading.max_tokens


def is_out_of_memory(exc: BaseException | None) -> bool:
    """Whether an error of torch or of Python says that memory ran out."""
    # torch has an error of its own for CUDA; on a CPU and on MPS it is a bare RuntimeError.
    if isinstance(exc, MemoryError) or type(exc).__name__ == "OutOfMemoryError":
        return True
    return isinstance(exc, RuntimeError) and any(sign in str(exc) for sign in _MEMORY_SIGNS)
