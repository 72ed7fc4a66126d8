"""Peers: other stores and indexes, each behind the same few calls, each optional.

A peer runs in a process of its own (`benchmarks.worker`), so that its imports, memory and threads
are its own. It says what it promises: whether it keeps text and metadata and outlives its process
("full"), and when what was added is on the disk ("synced").
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, TypeAlias

import numpy as np

Rows: TypeAlias = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True, slots=True)
class Items:
    """What is added: one text, one vector and one metadata number each."""

    ids: Sequence[int]
    rows: Rows
    """(n, dim) float32, unit length."""
    texts: Sequence[str]
    shares: Sequence[int]
    """Metadata: 0..99 by chance, so that `share < 10` holds for 10 of 100."""


class Peer(Protocol):
    """One store, open. What it cannot do raises NotImplementedError."""

    NAME: ClassVar[str]
    FULL: ClassVar[bool]
    """Keeps text and metadata with the vectors, and outlives its process."""
    SYNCED: ClassVar[Literal["each call", "on request", "never"]]
    """When what was added is forced to the disk; "on request": by `sync`."""
    EFFORTS: ClassVar[Sequence[int]]
    """Search parameters to try for a recall, ascending; one alone for an exact peer."""

    def __init__(self, folder: Path, dim: int) -> None:
        """Open the store in a folder, made if it is not there."""

    def add(self, items: Items) -> None:
        """Add a batch; it is found by the next search."""

    def sync(self) -> None:
        """Force what was added to the disk, where that happens on request; else nothing."""

    def settle(self) -> None:
        """Wait until searches are as fast as they become: builds, merges, optimisations."""

    def set_effort(self, effort: int) -> None:
        """Use another search parameter from now on."""

    def search(self, query: Rows, k: int, below: int | None = None) -> Any:
        """Find the k nearest to (dim,), with text and metadata; of those with share < below."""

    def search_many(self, queries: Rows, k: int) -> Sequence[Any]:
        """The same for (n, dim), in one call where there is one."""

    def ids(self, found: Any) -> list[int]:
        """The ids of what a search found, best first. Not timed."""

    def delete(self, ids: Sequence[int]) -> None:
        """Delete."""

    def compact(self) -> None:
        """Give back what deleted items take, where there is such a call."""

    def close(self) -> None:
        """Close it; all is on the disk."""


MODULES = {
    "kronos": "benchmarks.peers.kronos",
    "faiss-hnsw": "benchmarks.peers.faiss_hnsw",
    "faiss-flat": "benchmarks.peers.faiss_flat",
    "qdrant-edge": "benchmarks.peers.qdrant_edge",
    "zvec": "benchmarks.peers.zvec",
    "sqlite-vec": "benchmarks.peers.sqlite_vec",
    "lancedb": "benchmarks.peers.lancedb",
    "chromadb": "benchmarks.peers.chromadb",
    "txtai": "benchmarks.peers.txtai",
}
"""Where each peer's class, `Adapter`, is."""


def peer(name: str) -> type[Peer]:
    """The class of a peer."""
    found: type[Peer] = importlib.import_module(MODULES[name]).Adapter
    return found


REQUIRED = {
    "kronos": "kronos",
    "faiss-hnsw": "faiss",
    "faiss-flat": "faiss",
    "qdrant-edge": "qdrant_edge",
    "zvec": "zvec",
    "sqlite-vec": "sqlite_vec",
    "lancedb": "lancedb",
    "chromadb": "chromadb",
    "txtai": "txtai",
}


def is_installed(name: str) -> bool:
    """Whether what a peer needs is there; nothing is imported."""
    return importlib.util.find_spec(REQUIRED[name]) is not None
