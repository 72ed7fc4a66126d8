"""Kronos: an embedded memory store whose memories outlive embedding models.

The public names, loaded when they are first used: `import kronos` imports no torch, no faiss and no
SQLAlchemy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from kronos import errors

if TYPE_CHECKING:
    from kronos.embedding.registry import EMBEDDING_MODELS, EmbeddingModel
    from kronos.embedding.service import EmbeddingService, create_embedding_service
    from kronos.memory import KronosMemory
    from kronos.settings import Settings
    from kronos.store import MemoryStore
    from kronos.types import (
        CompactReport,
        Embedder,
        Failure,
        Hit,
        Job,
        Memory,
        NewMemory,
        Problem,
        Progress,
        ReindexPlan,
        ReindexReport,
        Report,
        Space,
        SpaceStats,
        Stats,
        VectorIndex,
    )

__version__ = "0.1.0"

__all__ = [
    "EMBEDDING_MODELS",
    "CompactReport",
    "Embedder",
    "EmbeddingModel",
    "EmbeddingService",
    "Failure",
    "Hit",
    "Job",
    "KronosMemory",
    "Memory",
    "MemoryStore",
    "NewMemory",
    "Problem",
    "Progress",
    "ReindexPlan",
    "ReindexReport",
    "Report",
    "Settings",
    "Space",
    "SpaceStats",
    "Stats",
    "VectorIndex",
    "create_embedding_service",
    "errors",
]

_HOMES = {
    "EMBEDDING_MODELS": "kronos.embedding.registry",
    "EmbeddingModel": "kronos.embedding.registry",
    "EmbeddingService": "kronos.embedding.service",
    "KronosMemory": "kronos.memory",
    "MemoryStore": "kronos.store",
    "Settings": "kronos.settings",
    "create_embedding_service": "kronos.embedding.service",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'kronos' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES.get(name, "kronos.types")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
