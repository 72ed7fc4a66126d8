"""The plug points: what an embedder and an index must do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from kronos.types.arrays import Keys, Vectors


@runtime_checkable
class Embedder(Protocol):
    """Turns texts into vectors.

    Rows must be float, finite and of non-zero length; Kronos scales them to unit length. Two
    embedders whose vectors cannot be compared must have different fingerprints.
    """

    @property
    def model_id(self) -> str:
        """The embedder's name, for people."""

    @property
    def fingerprint(self) -> str:
        """Identifies the vectors: equal for two embedders only if their vectors can be compared."""

    @property
    def dim(self) -> int:
        """The width of a vector."""

    def embed_documents(self, texts: Sequence[str], /) -> Vectors:
        """Embed texts to store: (n, dim) float32."""

    def embed_queries(self, texts: Sequence[str], /) -> Vectors:
        """Embed queries: (n, dim) float32."""


@runtime_checkable
class AsyncEmbedder(Protocol):
    """Turns texts into vectors with coroutines: an `Embedder` for `KronosMemory`.

    The coroutines run on the event loop of the task that awaits them, in a copy of its context, and
    are cancelled with it. A job in the background has no such task: its coroutines run on an event
    loop that `KronosMemory` keeps for that purpose.
    """

    @property
    def model_id(self) -> str:
        """The embedder's name, for people."""

    @property
    def fingerprint(self) -> str:
        """Identifies the vectors: equal for two embedders only if their vectors can be compared."""

    @property
    def dim(self) -> int:
        """The width of a vector."""

    async def embed_documents(self, texts: Sequence[str], /) -> Vectors:
        """Embed texts to store: (n, dim) float32."""

    async def embed_queries(self, texts: Sequence[str], /) -> Vectors:
        """Embed queries: (n, dim) float32."""


class VectorIndex(Protocol):
    """A search structure over int64 keys and unit vectors. Not thread-safe; its owner locks.

    The conformance suite in `tests/index/` is the contract for every kind.
    """

    dim: int

    @property
    def kind(self) -> str:
        """A short name for people and for snapshot headers, e.g. "faiss-flat"."""

    def __len__(self) -> int:
        """The number of keys."""

    def upsert(self, keys: Keys, vectors: Vectors) -> None:
        """Set the vectors of keys.

        Args:
            keys: (n,) int64, distinct.
            vectors: (n, dim) float32.

        Raises:
            DimensionMismatchError: the width is not `dim`.
            VectorError: a value is NaN or inf, shapes do not agree, or a key occurs twice.
        """

    def remove(self, keys: Keys) -> int:
        """Remove keys; unknown keys are ignored.

        Returns:
            How many keys were removed.
        """

    def search(
        self, queries: Vectors, k: int, *, allowed: Keys | None = None
    ) -> tuple[Vectors, Keys]:
        """Find the k nearest keys of each query by inner product.

        Args:
            queries: (n, dim) float32.
            k: how many, at least 1.
            allowed: (m,) int64; only these keys may be found. None: all.

        Returns:
            scores (n, k') float32, best first, and keys (n, k') int64, where
            k' = min(k, keys that may be found).
        """

    def keys(self) -> Keys:
        """All keys, in ascending order: (n,) int64."""

    def contains(self, keys: Keys) -> NDArray[np.bool_]:
        """Which of these keys the index holds: (n,) bool."""

    def vectors_of(self, keys: Keys) -> Vectors:
        """The vectors of keys that the index holds: (n, dim) float32."""

    def to_buffers(self) -> list[memoryview]:
        """The index as bytes, in pieces. Joined, they are what `from_bytes` of its class reads.

        The pieces do not change when the index does.
        """
