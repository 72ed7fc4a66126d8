"""Kronos: an embedded memory store whose memories outlive embedding models.

Public names are loaded when they are first used, so `import kronos` imports no torch, no FAISS, no
NumPy and no SQLAlchemy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from kronos import errors
from kronos.errors import KronosError

if TYPE_CHECKING:
    from kronos.embedding.registry import EMBEDDING_MODELS, EmbeddingModel
    from kronos.embedding.service import EmbeddingService, create_embedding_service
    from kronos.memory import KronosMemory
    from kronos.search.filters import F, Filter, filter_schema
    from kronos.search.ranking import Ranking, ranking_schema
    from kronos.settings import Settings
    from kronos.store.store import MemoryStore
    from kronos.types import (
        AsyncEmbedder,
        CompactReport,
        DuplicateGroup,
        Embedder,
        Explanation,
        Failure,
        Hit,
        Hits,
        Job,
        Link,
        Memory,
        NewMemory,
        PlanStep,
        Problem,
        Progress,
        ReindexPlan,
        ReindexReport,
        Report,
        Space,
        SpaceStats,
        Stats,
        Step,
        TuneReport,
        VectorIndex,
        Version,
    )

__version__ = "0.1.0"

__all__ = [
    "EMBEDDING_MODELS",
    "AsyncEmbedder",
    "CompactReport",
    "DuplicateGroup",
    "Embedder",
    "EmbeddingModel",
    "EmbeddingService",
    "Explanation",
    "F",
    "Failure",
    "Filter",
    "Hit",
    "Hits",
    "Job",
    "KronosError",
    "KronosMemory",
    "Link",
    "Memory",
    "MemoryStore",
    "NewMemory",
    "PlanStep",
    "Problem",
    "Progress",
    "Ranking",
    "ReindexPlan",
    "ReindexReport",
    "Report",
    "Settings",
    "Space",
    "SpaceStats",
    "Stats",
    "Step",
    "TuneReport",
    "VectorIndex",
    "Version",
    "create_embedding_service",
    "errors",
    "filter_schema",
    "ranking_schema",
]

_HOMES = {
    "EMBEDDING_MODELS": "kronos.embedding.registry",
    "EmbeddingModel": "kronos.embedding.registry",
    "EmbeddingService": "kronos.embedding.service",
    "F": "kronos.search.filters",
    "Filter": "kronos.search.filters",
    "KronosMemory": "kronos.memory",
    "MemoryStore": "kronos.store.store",
    "Ranking": "kronos.search.ranking",
    "Settings": "kronos.settings",
    "create_embedding_service": "kronos.embedding.service",
    "filter_schema": "kronos.search.filters",
    "ranking_schema": "kronos.search.ranking",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'kronos' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES.get(name, "kronos.types")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
