"""The hash embedder: the same bytes everywhere, and near vectors for shared words."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kronos.embedding import hashing
from kronos.embedding.hashing import HashEmbedder
from kronos.errors import ConfigurationError
from kronos.types import Embedder

TEXTS = [
    "The cat sat on the mat.",
    "def read_lines(path): return open(path).read().splitlines()",
    "Fünf Äpfel, 猫と犬, кошка",
    "!!! ??? 🎉🎉",
    "",
    "running runs ran stopped stopping stop",
]
DIGEST = "9085a10c98e7a642a8e859e5485381190cf3b77192956c7d950cf9a4cc89371c"
FIRST_SLOTS = {193: 0.277, 34: -0.256, 55: 0.256, 69: 0.256}


def digest(rows: Any) -> str:
    """A digest of the values rounded to 1/4096, since the last bit of a square root may differ."""
    steps = np.round(rows.astype(np.float64) * 4096).astype("<i4")
    return hashlib.sha256(steps.tobytes()).hexdigest()


def test_vectors_equal_the_recorded_ones() -> None:
    rows = HashEmbedder(384).embed_documents(TEXTS)
    assert digest(rows) == DIGEST
    largest = np.argsort(-np.abs(rows[0]), kind="stable")[:4]
    assert {int(slot): round(float(rows[0, slot]), 3) for slot in largest} == FIRST_SLOTS


def test_another_process_makes_the_same_bytes() -> None:
    code = (
        "import sys; from kronos.embedding.hashing import HashEmbedder; "
        f"sys.stdout.buffer.write(HashEmbedder(384).embed_documents({TEXTS!r}).tobytes())"
    )
    environ = {**os.environ, "PYTHONHASHSEED": "12345"}
    made = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=True, env=environ
    ).stdout
    assert made == HashEmbedder(384).embed_documents(TEXTS).tobytes()


def test_a_vector_depends_only_on_its_own_text() -> None:
    embedder = HashEmbedder(128)
    together = embedder.embed_documents(TEXTS * 700)
    alone = np.concatenate([embedder.embed_documents([text]) for text in TEXTS])
    assert together.tobytes() == np.tile(alone, (700, 1)).tobytes()
    assert embedder.embed_queries(TEXTS).tobytes() == alone.tobytes()


def test_global_random_state_is_not_changed() -> None:
    before = random.getstate(), repr(np.random.get_state())  # noqa: NPY002
    HashEmbedder(64).embed_documents(TEXTS)
    assert (random.getstate(), repr(np.random.get_state())) == before  # noqa: NPY002


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.text(st.characters(), max_size=60), max_size=5),
    st.sampled_from([8, 64, 384]),
)
def test_any_text_has_a_finite_unit_vector(texts: list[str], dim: int) -> None:
    rows = HashEmbedder(dim).embed_documents(texts)
    assert rows.shape == (len(texts), dim)
    assert rows.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)


@given(st.text(st.characters(max_codepoint=127)))
def test_the_ascii_pattern_finds_the_same_words(text: str) -> None:
    assert hashing._ASCII_WORDS.findall(text.lower()) == hashing._WORDS.findall(text.lower())


def similarity(one: str, other: str) -> float:
    rows = HashEmbedder(384).embed_documents([one, other])
    return float(rows[0] @ rows[1])


@pytest.mark.parametrize(
    ("one", "near", "far"),
    [
        ("a cat on a mat", "the cat sat on the mat", "interest rates rose in spring"),
        ("stopping trains", "a train stopped", "a violin played"),
        ("read lines of a file", "def read_lines(path):", "def connect_socket(host):"),
        ("electricity", "electrical", "gardening"),
        ("misspeled words", "misspelled word", "correct sentences"),
        ("猫", "我的猫很可爱", "今天天气很好"),
        ("🎉🎉🎉", "🎉🎉🎉 🎈", "🚗🚗🚗"),
    ],
)
def test_texts_that_share_words_are_nearer(one: str, near: str, far: str) -> None:
    assert similarity(one, near) > similarity(one, far) + 0.2


def test_accents_are_the_same_however_they_were_typed() -> None:
    assert similarity("caf\u00e9 cr\u00e8me", "cafe\u0301 cre\u0300me") == pytest.approx(1)


def test_unrelated_texts_score_low() -> None:
    assert similarity("what is the name of this and that", "who was it that did so") < 0.35
    assert abs(similarity("glacier harbour", "violin quantum")) < 0.2


FACTS = [
    "The Amazon river carries more water than any other river on earth.",
    "Marie Curie won Nobel prizes in both physics and chemistry.",
    "Sourdough bread rises because of wild yeast and bacteria.",
    "The Eiffel tower was finished in 1889 for the world's fair in Paris.",
    "Honey bees tell each other about flowers by dancing.",
    "Mount Everest grows by about four millimetres a year.",
    "The first programmable computer was built by Konrad Zuse.",
    "Octopuses have three hearts and blue blood.",
    "Copper conducts electricity better than iron.",
    "The printing press spread through Europe in the fifteenth century.",
]
QUESTIONS = [
    "Which river carries the most water?",
    "In what sciences did Marie Curie win the Nobel prize?",
    "Why does sourdough rise?",
    "When was the Eiffel tower finished?",
    "How do bees tell others where flowers are?",
    "How fast is Mount Everest growing?",
    "Who built the first programmable computers?",
    "How many hearts does an octopus have?",
    "Is copper a better conductor of electricity?",
    "When did printing presses spread in Europe?",
]


def test_questions_find_their_answers() -> None:
    embedder = HashEmbedder(384)
    scores = embedder.embed_queries(QUESTIONS) @ embedder.embed_documents(FACTS).T
    assert np.mean(scores.argmax(axis=1) == np.arange(len(FACTS))) >= 0.9


@pytest.mark.parametrize("text", ["word " * 2_000_000, "x" * 10_000_000, "猫" * 3_000_000])
def test_ten_megabytes_need_bounded_memory(text: str) -> None:
    tracemalloc.start()
    rows = HashEmbedder(384).embed_documents([text])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert np.linalg.norm(rows[0]) == pytest.approx(1, abs=1e-6)
    assert peak < 500e6


@pytest.mark.parametrize("dim", [7, 0, -1, True, 3.5, "384"])
def test_an_invalid_width_is_refused(dim: Any) -> None:
    with pytest.raises(ConfigurationError) as caught:
        HashEmbedder(dim)
    assert caught.value.field == "embedding_dim"


def test_the_fingerprint_names_version_and_width() -> None:
    embedder: Embedder = HashEmbedder(64)
    assert (embedder.model_id, embedder.dim) == ("hash", 64)
    assert embedder.fingerprint == "hash:v1:dim=64"
    assert HashEmbedder(65).fingerprint != embedder.fingerprint
