"""The embedder that stands on a loaded sentence-transformers model.

Rows that leave here are float32, finite, of unit length and as wide as the model made them.
Loading a model and deciding whether it is fit for use is `kronos.embedding.loading`'s work;
nothing here imports torch before a model is at hand.
"""

from __future__ import annotations

import copy
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from kronos.concurrency.forking import Lock
from kronos.errors import EmbeddingError, KronosWarning, VectorError
from kronos.validation import scale_to_unit

if TYPE_CHECKING:
    from kronos.types import Vectors

CHARS_PER_TOKEN = 64
"""Characters of a text that are looked at for each token that the model reads. English has about
five; without a bound, the tokenizer would read 10 MB to use the first 256 tokens of it."""

REFERENCE = "sentence-transformers"
ENCODE_TOKENS = 512
"""Tokens that a model reads at once on a CPU, padding included: more of them pad more."""

_NO_LIMIT = 2**31
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
        batch_size: texts that it reads at once where their tokens cannot be counted.
        tokens: tokens that it reads at once, padding included; both are halved as often as memory
            asks for it.
        copies: the same model on other devices. They share the batches of a call; texts whose
            tokens cannot be counted are read by the first alone.
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
        tokens: int = ENCODE_TOKENS,
        copies: Sequence[Any] = (),
    ) -> None:
        self._model = model
        self._models = [model, *copies]
        self._reading = reading
        self._model_id = model_id
        self._fingerprint = fingerprint
        self._dim = dim
        self._revision = revision
        self._batch_size = batch_size
        self._tokens = tokens
        self._warned = False
        self._original: SentenceEmbedder | None = None
        # Tokenizers keep their truncation and padding between calls.
        self._lock = Lock()

    def named(self, model_id: str, revision: str | None) -> SentenceEmbedder:
        """The same loaded model for somebody who knows it by another name."""
        twin = copy.copy(self)
        twin._model_id, twin._revision = model_id, revision
        twin._original = self  # which lives as long as any that stands on its model
        return twin

    engine: str = REFERENCE
    """What computes, for people; and why nothing faster does."""

    @property
    def model(self) -> Any:
        """What it stands on."""
        return self._model

    @property
    def models(self) -> Sequence[Any]:
        """All copies of it, one a device."""
        return self._models

    @property
    def reading(self) -> Reading:
        """How it reads."""
        return self._reading

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
        """Where the model computes, e.g. "cpu" or "cuda:0"; of several, the first."""
        return str(self._model.device)

    def embed_documents(self, texts: Sequence[str]) -> Vectors:
        """Embed texts to be stored, behind the model's prompt for documents if it has one.

        Returns:
            (n, dim) float32 unit rows, C-contiguous.

        Raises:
            EmbeddingError: the model failed, ran out of memory on one text alone, or made a
                vector that is not finite or of length 0; the text's position is named.
        """
        return self._embed("encode_document", texts, self._reading.document_prompt)

    def embed_queries(self, texts: Sequence[str]) -> Vectors:
        """Embed questions, behind the model's prompt for queries. Else as `embed_documents`."""
        return self._embed("encode_query", texts, self._reading.query_prompt)

    def count_tokens(self, texts: Sequence[str]) -> int:
        """How many tokens of these documents the model reads, without what it drops."""
        with self._reads():
            counts = self._count(self._shown(texts), self._reading.document_prompt)
        return sum(self._read_of(count) for count in counts or ())

    @contextmanager
    def _reads(self) -> Iterator[None]:
        """Be alone with the model; it keeps nothing of what it read."""
        with self._lock:
            try:
                yield
            finally:
                getattr(self._model, "forget", int)()

    def _shown(self, texts: Sequence[str]) -> list[str]:
        return [text[: self._reading.max_chars] for text in texts]

    def _count(self, shown: list[str], prompt: str) -> list[int] | None:
        """The tokens of each text, the dropped ones too; None: the model has none."""
        tokenizer = getattr(self._model, "tokenizer", None)
        if not callable(tokenizer) or not shown:
            return None
        rows = tokenizer([prompt + text for text in shown], truncation=False, verbose=False)
        return [len(row) for row in rows["input_ids"]]

    def _read_of(self, count: int) -> int:
        return min(count, self._reading.max_tokens or _NO_LIMIT)

    def _embed(self, encode: str, texts: Sequence[str], prompt: str) -> Vectors:
        if not texts:
            return np.empty((0, self._dim), np.float32)
        shown = self._shown(texts)
        with self._reads():
            counts = self._count(shown, prompt)
            self._warn_once_of_dropped_text(texts, counts)
            if counts is None:
                rows = self._encode(getattr(self._model, encode), shown, prompt)
                rows = self._checked(rows, len(texts))
            else:
                rows = self._encode_by_tokens(encode, shown, prompt, counts)
        try:
            return scale_to_unit(rows, lambda position: f"the vector of text {position}")
        except VectorError as exc:
            raise EmbeddingError(f"{self._model_id} failed: {exc}") from exc

    def _checked(self, rows: Vectors, count: int) -> Vectors:
        if rows.shape != (count, self._dim):
            raise EmbeddingError(
                f"{self._model_id} returned shape {rows.shape}, expected ({count}, {self._dim})"
            )
        return rows

    def _encode_by_tokens(
        self, encode: str, texts: list[str], prompt: str, counts: list[int]
    ) -> Vectors:
        """Read texts of about one length together; a text that occurs twice is read once."""
        first: dict[str, int] = {}
        for position, text in enumerate(texts):
            first.setdefault(text, position)
        batches = _Batches(first.values(), [self._read_of(count) for count in counts], self._tokens)
        rows = np.empty((len(texts), self._dim), np.float32)

        def work(model: Any) -> None:
            while batch := batches.take():
                try:
                    some = [texts[at] for at in batch]
                    made = self._call(getattr(model, encode), some, prompt, len(batch))
                    rows[batch] = self._checked(made, len(batch))
                except MemoryError as exc:
                    if len(batch) == 1:
                        batches.stop()
                        raise self._too_long(texts, batch[0]) from exc
                    batches.cut_smaller(batch)
                    self._free_cached_memory()
                except BaseException:
                    batches.stop()
                    raise

        self._share(work, len(batches))
        return rows if len(first) == len(texts) else rows[[first[text] for text in texts]]

    def _share(self, work: Callable[[Any], None], batches: int) -> None:
        """Let each device work, on a thread of its own where there are several."""
        models = self._models[: max(batches, 1)]
        if len(models) == 1:
            work(models[0])
            return
        with ThreadPoolExecutor(len(models), thread_name_prefix="kronos-embed") as threads:
            for done in [threads.submit(work, model) for model in models]:
                done.result()

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
                raise self._too_long(texts, position) from exc

    def _too_long(self, texts: list[str], position: int) -> EmbeddingError:
        return EmbeddingError(
            f"{self._model_id} ran out of memory on text {position} alone "
            f"({len(texts[position])} characters): cut it into passages, or take a smaller model"
        )

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
        if any(str(model.device).startswith("cuda") for model in self._models):
            import torch

            torch.cuda.empty_cache()

    def _warn_once_of_dropped_text(
        self, texts: Sequence[str], counts: Sequence[int] | None
    ) -> None:
        if self._warned or not self._drops_some(texts, counts):
            return
        self._warned = True
        warnings.warn(
            f"{self._model_id} reads {self.max_tokens} tokens of a text and drops the rest; "
            "cut long texts into passages",
            KronosWarning,
            stacklevel=2,
        )

    def _drops_some(self, texts: Sequence[str], counts: Sequence[int] | None) -> bool:
        limits = self._reading
        if limits.max_chars is None or limits.max_tokens is None:
            return False
        if any(len(text) > limits.max_chars for text in texts):
            return True
        return counts is not None and max(counts) > limits.max_tokens


class _Batches:
    """The batches of a call, which its workers take one by one, the longest texts first."""

    def __init__(self, positions: Iterable[int], lengths: Sequence[int], budget: int) -> None:
        self._lengths = lengths
        self._budget = budget
        self._todo = cut_by_tokens(positions, lengths, budget)
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._todo)

    def take(self) -> list[int] | None:
        """The next one; None when there is no more."""
        with self._lock:
            return self._todo.pop(0) if self._todo else None

    def cut_smaller(self, batch: list[int]) -> None:
        """Put one back for which the memory is too small, and cut it and all others smaller."""
        with self._lock:
            self._budget = min(self._budget, len(batch) * self._lengths[batch[0]]) // 2
            self._todo = cut_by_tokens(chain(batch, *self._todo), self._lengths, self._budget)

    def stop(self) -> None:
        """Leave the rest."""
        with self._lock:
            self._todo = []


def cut_by_tokens(positions: Iterable[int], lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Cut texts into batches that hold at most so many tokens once they are padded.

    Args:
        positions: the texts, by their positions in `lengths`.
        lengths: the tokens that the model reads of each text.
        budget: tokens of a batch, padding included; a longer text is a batch of its own.

    Returns:
        The positions of each batch; the longest texts come first.
    """
    batches: list[list[int]] = []
    room = 0
    for at in sorted(positions, key=lambda at: -lengths[at]):
        if room == 0:
            batches.append([])
            room = max(1, budget // max(1, lengths[at]))
        batches[-1].append(at)
        room -= 1
    return batches


def is_out_of_memory(exc: BaseException | None) -> bool:
    """Whether an error of torch or of Python says that memory ran out."""
    # torch has an error of its own for CUDA; on a CPU and on MPS it is a bare RuntimeError.
    if isinstance(exc, MemoryError) or type(exc).__name__ == "OutOfMemoryError":
        return True
    if not isinstance(exc, RuntimeError):
        return False
    message = str(exc).lower()
    return any(sign in message for sign in _MEMORY_SIGNS)
