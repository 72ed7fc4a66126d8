from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from kronos.embedding.registry import EMBEDDING_MODELS


def test_the_presets_are_the_four_documented_ones() -> None:
    assert {key: (preset.name, preset.dim) for key, preset in EMBEDDING_MODELS.items()} == {
        "mini": ("sentence-transformers/all-MiniLM-L6-v2", 384),
        "base": ("sentence-transformers/all-mpnet-base-v2", 768),
        "large": ("sentence-transformers/all-distilroberta-v1", 768),
        "code": ("microsoft/codebert-base", 768),
    }
    for preset in EMBEDDING_MODELS.values():
        assert preset.speed
        assert preset.quality
        assert 50 < preset.size_mb < 1000


def test_the_presets_cannot_be_changed() -> None:
    presets: Any = EMBEDDING_MODELS
    with pytest.raises(TypeError):
        presets["mine"] = presets["mini"]
    with pytest.raises(dataclasses.FrozenInstanceError):
        presets["mini"].dim = 1


def test_mini_pins_the_official_weights_and_tokenizer() -> None:
    offline = EMBEDDING_MODELS["mini"].offline
    assert offline is not None
    assert offline.sha256 == {
        "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    }
