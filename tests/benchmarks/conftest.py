"""What the suite stores in tests: a few hundred vectors, in the place of those of real texts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.data import DIM, Data, make

REAL, QUESTIONS = 300, 300


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache as the suite leaves it once it has embedded: vectors about 20 centres, and texts."""
    folder = tmp_path_factory.mktemp("cache")
    rng = np.random.default_rng(5)
    centres = rng.standard_normal((20, DIM), np.float32)
    rows = centres[rng.integers(0, 20, REAL + QUESTIONS)]
    rows += 0.7 * rng.standard_normal(rows.shape, np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    np.save(folder / "rows.npy", rows[:REAL])
    np.save(folder / "queries.npy", rows[REAL:])
    (folder / "texts.json").write_text(json.dumps([f"text {n}" for n in range(REAL)]), "utf-8")
    return folder


@pytest.fixture(scope="session")
def data(cache: Path) -> Data:
    return make(Path("nowhere"), cache, 400)
