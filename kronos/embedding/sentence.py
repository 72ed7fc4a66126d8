"""`SentenceEmbedder`: embeds with a loaded sentence-transformers model.

Returned rows are float32, finite, of unit length, and as wide as the model makes them.
`kronos.embedding.loading` loads models and checks that they work. Nothing here imports torch before
a model is loaded.
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
from kronos.embedding.foreign_errors import is_out_of_memory
from kronos.errors import EmbeddingError, KronosWarning, VectorError
from kronos.validation import scale_to_unit

if TYPE_CHECKING:
    from kronos.types import Vectors

CHARS_PER_TOKEN = 64
"""Characters of a text that its tokenizer reads for each token of the model's limit. English has
about five. Without a bound the tokenizer would read 10 MB to use only the first tokens."""

REFERENCE = "sentence-transformers"
ENCODE_TOKENS = 512
"""Tokens that a model reads at once on a CPU, padding included; larger batches are padded more."""

_NO_LIMIT = 2**31


@dataclass(frozen=True, slots=True)
class Reading:
    """How a loaded model reads a text: what shapes a vector besides the model's files."""

    max_tokens: int | None
    """Tokens of a text that it reads; it drops the rest. None: no limit."""
    max_chars: int | None
    """Characters of a text that its tokenizer gets. None: all."""
    document_prompt: str
    query_prompt: str
    truncate_dim: int | None
    """The width to which it truncates its vectors; None: it does not."""

    @classmethod
    def of(cls, model: Any) -> Reading:
        """How a loaded SentenceTransformer reads."""
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
    # The library sets "query" and "document" to "" by default: an empty prompt must not count.
    candidates = [*names, model.default_prompt_name]
    return next((text for name in candidates if (text := model.prompts.get(name))), "")


class SentenceEmbedder:
    """Embeds texts with a sentence-transformers model. Thread-safe.

    Args:
        model: the loaded SentenceTransformer.
        reading: how it reads.
        model_id: its name, for people.
        fingerprint: equal only for models whose vectors can be compared.
        dim: the width of its vectors.
        revision: the commit of its repository; None if there is none.
        batch_size: texts that it reads at once if their tokens cannot be counted.
        tokens: tokens that it reads at once, padding included. Both are halved as often as memory
            runs out.
        copies: the same model on other devices. They share the batches of a call. Texts whose
            tokens cannot be counted are read by the first device only.
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
        # Tokenizers keep their truncation and padding settings between calls.
        self._lock = Lock()

    def named(self, model_id: str, revision: str | None) -> SentenceEmbedder:
        """An embedder with the same loaded model under another name."""
        twin = copy.copy(self)
        twin._model_id, twin._revision = model_id, revision
        twin._original = self  # kept alive as long as any embedder uses its model
        return twin

    engine: str = REFERENCE
    """The engine that computes, for people, and why no faster one is used."""

    @property
    def model(self) -> Any:
        """The loaded model."""
        return self._model

    @property
    def models(self) -> Sequence[Any]:
        """All copies of the model, one per device."""
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
        """The width of a vector, from the loaded model."""
        return self._dim

    @property
    def revision(self) -> str | None:
        """The commit of the model's repository; None if there is none, as for a folder."""
        return self._revision

    @property
    def max_tokens(self) -> int | None:
        """Tokens of a text that the model reads; it drops the rest. None: no limit."""
        return self._reading.max_tokens

    @property
    def device(self) -> str:
        """The device that computes, such as "cpu" or "cuda:0"; the first of several."""
        return str(self._model.device)

    def embed_documents(self, texts: Sequence[str]) -> Vectors:
        """Embed texts to be stored, after the model's prompt for documents if it has one.

        Returns:
            (n, dim) float32 unit rows, C-contiguous.

        Raises:
            EmbeddingError: the model failed, ran out of memory on a single text, or made a vector
                that is not finite or has length 0; the message names the text's position.
        """
        return self._embed("encode_document", texts, self._reading.document_prompt)

    def embed_queries(self, texts: Sequence[str]) -> Vectors:
        """Embed queries, after the model's prompt for queries; else as `embed_documents`."""
        return self._embed("encode_query", texts, self._reading.query_prompt)

    def count_tokens(self, texts: Sequence[str]) -> int:
        """How many tokens of these documents the model reads, without those it drops."""
        with self._reads():
            counts = self._count(self._shown(texts), self._reading.document_prompt)
        return sum(self._read_of(count) for count in counts or ())

    @contextmanager
    def _reads(self) -> Iterator[None]:
        """Use the model exclusively; at the end it drops what it kept of the texts."""
        with self._lock:
            try:
                yield
            finally:
                getattr(self._model, "forget", int)()

    def _shown(self, texts: Sequence[str]) -> list[str]:
        return [text[: self._reading.max_chars] for text in texts]

    def _count(self, shown: list[str], prompt: str) -> list[int] | None:
        """The number of tokens of each text, dropped ones included; None if it has no tokens."""
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
        """Encode texts of similar length together; a text that occurs twice is encoded once."""
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
        """Let each device work; several devices work on a thread each."""
        models = self._models[: max(batches, 1)]
        if len(models) == 1:
            work(models[0])
            return
        with ThreadPoolExecutor(len(models), thread_name_prefix="kronos-embed") as threads:
            for done in [threads.submit(work, model) for model in models]:
                done.result()

    def _encode(self, encode: Callable[..., Any], texts: list[str], prompt: str) -> Vectors:
        # The library reads the longest texts first, so a batch that does not fit fails first.
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
            f"({len(texts[position])} characters): split it into chunks, or use a smaller model"
        )

    def _call(
        self, encode: Callable[..., Any], texts: list[str], prompt: str, batch_size: int
    ) -> Vectors:
        """Encode; any error of the library becomes a MemoryError or an EmbeddingError."""
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
            "split long texts into chunks",
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
    """The batches of a call, the longest texts first; its workers take them one by one."""

    def __init__(self, positions: Iterable[int], lengths: Sequence[int], budget: int) -> None:
        self._lengths = lengths
        self._budget = budget
        self._todo = cut_by_tokens(positions, lengths, budget)
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._todo)

    def take(self) -> list[int] | None:
        """The next batch; None if there are no more."""
        with self._lock:
            return self._todo.pop(0) if self._todo else None

    def cut_smaller(self, batch: list[int]) -> None:
        """Return a batch that does not fit into memory, and split it and all others."""
        with self._lock:
            self._budget = min(self._budget, len(batch) * self._lengths[batch[0]]) // 2
            self._todo = cut_by_tokens(chain(batch, *self._todo), self._lengths, self._budget)

    def stop(self) -> None:
        """Drop the remaining batches."""
        with self._lock:
            self._todo = []


def cut_by_tokens(positions: Iterable[int], lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Group texts into batches of limited size.

    Args:
        positions: the texts, by their positions in `lengths`.
        lengths: the tokens that the model reads of each text.
        budget: the most tokens of a batch, padding included; a longer text is a batch alone.

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
