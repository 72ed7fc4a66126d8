"""Models for the tests: the real MiniLM from its package, and a tiny one with random weights.

No test here asks a network, but for the one that makes a hub of its own.
"""

from __future__ import annotations

import shutil
import string
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kronos.embedding.service import EmbeddingService

WORDS = ["cat", "sleep", "warm", "stone", "rate", "rose", "river", "the", "on", "in", "of", "and"]


@pytest.fixture(scope="session")
def mini() -> Iterator[EmbeddingService]:
    """The real all-MiniLM-L6-v2, loaded."""
    service = EmbeddingService("mini", device="cpu", strict=True)
    service.load()
    yield service
    service.close()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a sentence-transformers model, 32 wide, that reads 48 tokens. Do not change."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling
    from transformers import BertConfig, BertModel, BertTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    base = tmp_path_factory.mktemp("tiny")
    letters = [*string.ascii_lowercase, *("##" + letter for letter in string.ascii_lowercase)]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {
        token: key for key, token in enumerate([*special, *letters, *WORDS, ".", ",", ":"])
    }
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertModel(config).save_pretrained(base)
    BertTokenizer(vocabulary).save_pretrained(base)
    transformer = Transformer(str(base), max_seq_length=48)
    model = SentenceTransformer(modules=[transformer, Pooling(32)], device="cpu")
    model.save(str(base / "model"), create_model_card=False)
    logging.enable_progress_bar()
    return base / "model"


@pytest.fixture(scope="session")
def cross_encoder(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a cross-encoder that was never trained."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    folder = tmp_path_factory.mktemp("cross-encoder")
    tokenizer = BertTokenizer.from_pretrained(tiny)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        num_labels=1,
        initializer_range=1.0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    logging.enable_progress_bar()
    return folder


@pytest.fixture
def copy_tiny(tiny: Path, tmp_path: Path) -> Callable[[str], Path]:
    """Copy the tiny model; tests may change the copy."""

    def copy(name: str = "copy") -> Path:
        return Path(shutil.copytree(tiny, tmp_path / name))

    return copy


@pytest.fixture
def no_caches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Hide the user's downloaded models, and the exports of other tests."""
    from huggingface_hub import constants

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "no-exports"))

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "no-cache"))


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Refuse every connection; collects the requested addresses."""
    import socket

    asked: list[object] = []

    def refuse(_socket: object, address: object) -> None:
        asked.append(address)
        raise OSError("the network is down")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    return asked
