"""Cheap embedders that tests share: a vector says whose it is, and whether it is right."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from kronos.types import Vectors


class Named:
    """A random direction for each text; another name gives others of the same width.

    Args:
        name: the model's.
        dim: the width.
        meets: called with the texts before they are embedded.
    """

    def __init__(
        self, name: str, dim: int = 32, meets: Callable[[Sequence[str]], object] | None = None
    ) -> None:
        self.model_id, self.fingerprint, self.dim = name, f"named:{name}:{dim}", dim
        self.meets = meets

    def one(self, text: str) -> Vectors:
        seed = hashlib.sha256((self.model_id + text).encode()).digest()
        row = np.random.default_rng([*seed]).normal(size=self.dim)
        return np.asarray(row / np.linalg.norm(row), np.float32)

    def embed_documents(self, texts: Sequence[str]) -> Vectors:
        if self.meets is not None:
            self.meets(texts)
        return np.array([self.one(text) for text in texts], np.float32).reshape(-1, self.dim)

    def embed_queries(self, texts: Sequence[str]) -> Vectors:
        return self.embed_documents(texts)
