"""The vectors that the suite compares stores on: the same ones every time, and as it says."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from benchmarks.data import Data, described, make, texts_of
from tests.benchmarks.conftest import REAL


def test_the_real_vectors_come_first_and_each_mix_lies_near_one_of_them(
    data: Data, cache: Path
) -> None:
    rows, real = data.rows(), np.load(cache / "rows.npy")
    assert rows.shape == (400, 384)
    assert {row.tobytes() for row in rows[:REAL]} == {row.tobytes() for row in real}
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    nearest = (rows[REAL:] @ real.T).max(axis=1)
    assert nearest.min() > 0.6
    assert nearest.max() < 0.999


def test_the_same_size_is_made_of_the_same_bytes(data: Data, cache: Path, tmp_path: Path) -> None:
    for name in ("rows.npy", "queries.npy", "texts.json"):
        shutil.copy(cache / name, tmp_path)
    again = make(Path("nowhere"), tmp_path, 400)
    assert again.rows().tobytes() == data.rows().tobytes()
    assert again.shares().tolist() == data.shares().tolist()


def test_batches_hold_everything_once_with_the_text_of_each_vector(data: Data) -> None:
    batches = [*data.batches(150)]
    assert [id for batch in batches for id in batch.ids] == [*range(400)]
    assert np.concatenate([batch.rows for batch in batches]).tobytes() == data.rows().tobytes()
    assert batches[2].texts[-1] == f"text {399 - REAL} (399)"
    assert [share for batch in batches for share in batch.shares] == data.shares().tolist()


def test_windows_of_words_make_more_texts_each_once() -> None:
    documents = [" ".join(f"word{n}" for n in range(40)), "short one"]
    texts = texts_of(documents, 50)
    assert texts[:2] == documents
    assert len(set(texts)) == len(texts) == 50
    assert all(text in documents[0] for text in texts[2:])
    assert texts == texts_of(documents, 50)


def test_what_is_no_text_is_called_a_mix() -> None:
    assert "mix" not in described(30_000)
    assert "30,000 mixes of two near ones" in described(60_000)
