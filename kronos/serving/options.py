"""What a store is opened with, checked."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import TYPE_CHECKING, get_args

from kronos.embedding.registry import DEFAULT_MODEL
from kronos.errors import ConfigurationError
from kronos.settings import Place, Settings
from kronos.types import OnModelChange
from kronos.validation import check_limit, check_namespace

if TYPE_CHECKING:
    from kronos.types import Embedder


def utc_now() -> datetime:
    """The time, UTC."""
    return datetime.now(timezone.utc)


@dataclass(slots=True, kw_only=True)
class OpenOptions:
    """The arguments of `MemoryStore`, which documents them.

    Raises:
        InputError: an argument is refused; its `field` names it.
        ConfigurationError: likewise, of the path, the settings or `on_model_change`.
    """

    storage_path: str | os.PathLike[str]
    namespace: str = "default"
    embedding_model: str | None = DEFAULT_MODEL
    embedder: Embedder | None = None
    device: str = "auto"
    embedding_dim: int = 384
    on_model_change: OnModelChange = "rebuild"
    strict: bool = False
    settings: Settings
    migrate: bool = False
    clock: Callable[[], datetime] = utc_now
    location: Place = field(init=False)

    def __post_init__(self) -> None:
        if self.on_model_change not in get_args(OnModelChange):
            raise ConfigurationError(
                'on_model_change must be "rebuild", "background" or "error", not '
                f"{self.on_model_change!r}",
                field="on_model_change",
            )
        self.location = Place.of(self.storage_path)
        self.namespace = check_namespace(self.namespace)
        self.embedding_dim = check_limit(self.embedding_dim, field="embedding_dim")
