"""`OnnxModel`: a model that ONNX Runtime runs: texts to vectors by `tokenizers`, without torch.

It does to a text exactly what sentence-transformers does: special tokens, the model's own limit,
padding, pooling. `SentenceEmbedder` uses it like a loaded SentenceTransformer. Its graphs come from
`kronos.embedding.onnx_export`.
"""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from kronos.concurrency.forking import keep_forever, notify_of_forks

if TYPE_CHECKING:
    from kronos.types import Vectors

Pooling = Literal["mean", "cls", "max"]
POOLINGS: tuple[Pooling, ...] = ("mean", "cls", "max")
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
"""The inputs that a graph may have; a text provides no others."""
OUTPUTS = ("last_hidden_state", "token_embeddings")
"""The names that the output of token vectors has in graphs."""
_PACKAGES = ("onnxruntime", "tokenizers")
_INSTALL = "run pip install 'kronos-memory[fast]'"


def why_not_installed() -> str | None:
    """Which package is missing, and how to install it; None if none is."""
    for name in _PACKAGES:
        try:
            found = importlib.util.find_spec(name) is not None
        except (ImportError, ValueError):  # blocked, or not installed as a package
            found = False
        if not found:
            return f"the package {name} is not installed: {_INSTALL}"
    return None


def import_ahead() -> None:
    """Import the libraries on a thread, while the weights are read."""
    threading.Thread(target=_import_libraries, daemon=True, name="kronos-import").start()


def _import_libraries() -> None:
    with suppress(Exception):  # the first use reports it
        for name in _PACKAGES:
            importlib.import_module(name)


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a text becomes a vector, beyond the graph and the vocabulary."""

    max_tokens: int | None
    """Tokens that are read, special tokens included; None: no limit."""
    pooling: Pooling
    pad_id: int
    truncate_dim: int | None
    """The width to which vectors are truncated; None: they are not."""


class OnnxModel:
    """A replacement for a loaded SentenceTransformer. Used by one thread at a time.

    Args:
        graph: the file of the graph.
        vocabulary: a tokenizer.json.
        recipe: how a text becomes a vector.
        threads: the number of threads that multiply matrices.

    Raises:
        Exception: whatever the libraries raise for a broken file.
        ValueError: the graph has an unknown input, or no output of token vectors.
    """

    device = "cpu"

    def __init__(self, graph: Path, vocabulary: Path, recipe: Recipe, *, threads: int = 1) -> None:
        from tokenizers import Tokenizer

        self._graph = graph
        self._recipe = recipe
        self._threads = threads
        self._session: Any = open_session(graph, threads)
        self._inputs, self._output = check_graph(self._session)
        # A shipped tokenizer.json may truncate and pad to a length that is not the model's.
        self._tokenizer: Any = Tokenizer.from_file(str(vocabulary))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._whole: dict[str, Any] = {}
        notify_of_forks(self)

    def before_fork(self) -> None:
        """Nothing to do."""

    def after_fork(self, in_child: bool) -> None:
        """Open a new session in the child, where the threads of the old one do not exist."""
        if in_child and self._threads > 1:
            keep_forever(self._session)  # freeing it would wait for its threads forever
            self._session = None

    def tokenizer(self, texts: Sequence[str], **_options: object) -> Mapping[str, list[list[int]]]:
        """The tokens of texts, without truncation. Texts within the limit are kept for encoding."""
        read = self._tokenizer.encode_batch(list(texts))
        most = self._recipe.max_tokens
        self._whole = {
            text: tokens
            for text, tokens in zip(texts, read, strict=True)
            if most is None or len(tokens) <= most
        }
        return {"input_ids": [tokens.ids for tokens in read]}

    def forget(self) -> None:
        """Drop the tokens of texts that were kept for encoding."""
        self._whole = {}

    def encode_document(self, texts: Sequence[str], *, prompt: str = "", **_: object) -> Vectors:
        """Encode texts in one batch: (n, dim) float32 rows, of any length."""
        rows = [self._whole.get(prompt + text) for text in texts]
        cut = [at for at, tokens in enumerate(rows) if tokens is None]
        if cut:
            found = self._read([prompt + texts[at] for at in cut])
            for at, tokens in zip(cut, found, strict=True):
                rows[at] = tokens
        return self._run(rows)[:, : self._recipe.truncate_dim]

    encode_query = encode_document

    def _read(self, texts: list[str]) -> Any:
        if self._recipe.max_tokens is None:
            return self._tokenizer.encode_batch(texts)
        self._tokenizer.enable_truncation(self._recipe.max_tokens)
        try:
            return self._tokenizer.encode_batch(texts)
        finally:
            self._tokenizer.no_truncation()

    def _run(self, rows: list[Any]) -> Vectors:
        if self._session is None:
            self._session = open_session(self._graph, self._threads)
        shape = (len(rows), max(1, *(len(tokens) for tokens in rows), 1))
        given = {name: np.zeros(shape, np.int64) for name in INPUTS}
        given["input_ids"][:] = self._recipe.pad_id
        for row, tokens in enumerate(rows):
            width = len(tokens)
            given["input_ids"][row, :width] = tokens.ids
            given["attention_mask"][row, :width] = 1
            given["token_type_ids"][row, :width] = tokens.type_ids
        (hidden,) = self._session.run([self._output], {name: given[name] for name in self._inputs})
        return _pool(hidden, given["attention_mask"].astype(np.float32), self._recipe.pooling)


def open_session(graph: Path, threads: int) -> Any:
    """Open a graph on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Spinning threads would take cores from other processes.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 4  # errors are raised instead
    return onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])


def check_graph(session: Any) -> tuple[list[str], str]:
    """The inputs of a graph, and the name of its output of token vectors.

    Raises:
        ValueError: it has an unknown input, or no output of token vectors.
    """
    inputs = [each.name for each in session.get_inputs()]
    if unknown := [name for name in inputs if name not in INPUTS]:
        raise ValueError(f"the graph has an unknown input {unknown[0]}")
    for output in session.get_outputs():
        if output.name in OUTPUTS and len(output.shape) == 3:
            return inputs, str(output.name)
    raise ValueError("the graph has no output of token vectors")


def _pool(hidden: Any, mask: Any, pooling: Pooling) -> Vectors:
    rows: Vectors
    if pooling == "cls":
        rows = hidden[:, 0]
    elif pooling == "max":
        rows = np.where(mask[:, :, None] == 0, -np.inf, hidden).max(axis=1)
    else:
        counts = np.maximum(mask.sum(axis=1, keepdims=True), 1e-9)
        rows = (mask[:, None, :] @ hidden)[:, 0] / counts
    return rows
