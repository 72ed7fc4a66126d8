from __future__ import annotations

import asyncio
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kronos.embedding.hashing import HashEmbedder
from kronos.embedding.loading import load_model
from kronos.embedding.service import EmbeddingService, create_embedding_service
from kronos.errors import (
    ConfigurationError,
    ContentError,
    DeviceError,
    EmbeddingError,
    KronosWarning,
    ModelLoadError,
)
from kronos.types import Embedder


def run(program: str, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", program, *args],
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_mini_is_the_real_model_without_any_network(
    no_network: list[object], no_caches: None, capfd: pytest.CaptureFixture[str]
) -> None:
    service = asyncio.run(create_embedding_service("mini", "cpu", strict=True))
    assert service.is_available()
    assert service.model_id == "sentence-transformers/all-MiniLM-L6-v2"
    assert service.embedding_dim == 384
    assert service.max_tokens == 256
    cat, feline, rates = service.encode(["A cat naps.", "The feline is asleep.", "Rates rose."])
    assert cat @ feline > 0.5 > 0.2 > cat @ rates
    assert no_network == []
    assert capfd.readouterr() == ("", "")


def test_the_service_is_an_embedder(mini: EmbeddingService) -> None:
    assert isinstance(mini, Embedder)
    assert mini.dim == mini.embedding_dim == 384
    assert mini.fallback_reason is None
    assert mini.device == "cpu"


def test_tensors_and_arrays_hold_the_same_vectors(mini: EmbeddingService) -> None:
    import torch

    texts = ["one text", "another"]
    rows = mini.encode(texts)
    assert rows.dtype == np.float32
    assert rows.shape == (2, 384)
    batch = asyncio.run(mini.embed_batch(texts))
    assert isinstance(batch, torch.Tensor)
    assert batch.dtype == torch.float32
    assert batch.device == torch.device(mini.device)
    assert np.array_equal(batch.numpy(), rows)
    one = asyncio.run(mini.embed("one text"))
    assert one.shape == (384,)
    assert np.abs(one.numpy() - rows[0]).max() < 1e-6
    assert np.array_equal(mini.embed_documents(texts), rows)


def test_no_texts_give_no_rows(mini: EmbeddingService) -> None:
    assert mini.encode([]).shape == (0, 384)
    assert tuple(asyncio.run(mini.embed_batch([])).shape) == (0, 384)
    assert mini.embed_queries([]).shape == (0, 384)


@pytest.mark.parametrize(
    ("texts", "field"),
    [
        ("a text", "texts"),
        (3, "texts"),
        (["a", 1], r"texts\[1\]"),
        (["a", "b", "\ud800"], r"texts\[2\]"),
    ],
)
def test_a_value_that_is_not_text_is_refused_by_position(
    mini: EmbeddingService, texts: Any, field: str
) -> None:
    for method in (mini.encode, mini.embed_queries):
        with pytest.raises(ContentError, match=field):
            method(texts)
    with pytest.raises(ContentError, match=field):
        asyncio.run(mini.embed_batch(texts))


def test_any_iterable_of_texts_is_accepted(mini: EmbeddingService) -> None:
    texts = ["one", "two"]
    rows = mini.encode(texts)
    iterables: list[Any] = [tuple(texts), iter(texts), np.array(texts)]
    for each in iterables:
        assert np.array_equal(mini.encode(each), rows)


def test_use_before_load_names_initialize() -> None:
    service = EmbeddingService("hash")
    uses: list[Callable[[], object]] = [
        lambda: service.encode(["a"]),
        lambda: asyncio.run(service.embed("a")),
        lambda: service.dim,
        lambda: service.fingerprint,
    ]
    for use in uses:
        with pytest.raises(EmbeddingError, match="initialize"):
            use()
    assert not service.is_available()
    assert service.fallback_reason is None


def test_requested_hash_embeddings_are_no_fallback() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        service = asyncio.run(create_embedding_service("hash", embedding_dim=64, strict=True))
    assert service.is_available()
    assert service.fallback_reason is None
    assert service.max_tokens is None
    assert service.device == "cpu"
    assert service.embedding_dim == 64
    assert service.fingerprint == HashEmbedder(64).fingerprint
    assert np.array_equal(service.encode(["a cat"]), HashEmbedder(64).embed_documents(["a cat"]))
    assert tuple(asyncio.run(service.embed("a cat")).shape) == (64,)


def load_degraded(model: str | Path, **options: Any) -> tuple[EmbeddingService, str]:
    service = EmbeddingService(model, device="cpu", embedding_dim=96, **options)
    with pytest.warns(KronosWarning) as caught:
        service.load()
    assert len(caught) == 1
    return service, str(caught[0].message)


def check_hash(service: EmbeddingService) -> None:
    assert not service.is_available()
    assert service.dim == 96
    assert service.fingerprint == HashEmbedder(96).fingerprint
    assert np.array_equal(service.encode(["a cat"]), HashEmbedder(96).embed_documents(["a cat"]))


def test_an_unknown_name_falls_back_with_one_warning(no_caches: None, tmp_path: Path) -> None:
    service, message = load_degraded("someone/nothing", cache_dir=tmp_path)
    check_hash(service)
    assert service.fallback_reason is not None
    assert service.fallback_reason in message
    assert "someone/nothing is in no local cache" in message
    assert "give the folder of a copy" in message
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        service.load()


@pytest.mark.parametrize("model", ["bad name!!", "/no/such/folder", "x" * 300, "a/../b", "nul\0"])
def test_an_impossible_name_falls_back(model: str) -> None:
    service, message = load_degraded(model)
    check_hash(service)
    assert repr(model) in message


def test_a_damaged_folder_falls_back_and_strict_raises(
    copy_tiny: Callable[[str], Path],
) -> None:
    folder = copy_tiny("damaged")
    (folder / "model.safetensors").write_bytes(b"")
    service, message = load_degraded(folder)
    check_hash(service)
    assert str(folder) in message
    assert "SafetensorError" in message
    strict = EmbeddingService(folder, device="cpu", strict=True)
    with pytest.raises(ModelLoadError, match="SafetensorError") as caught:
        strict.load()
    assert caught.value.__cause__ is not None
    assert not strict.is_available()


def test_a_damaged_package_falls_back_and_says_so(
    monkeypatch: pytest.MonkeyPatch, no_caches: None
) -> None:
    monkeypatch.setattr("kronos.embedding.model_sources.file_sha256", lambda path: "another sum")
    service, message = load_degraded("mini")
    check_hash(service)
    assert "model.safetensors is damaged" in message
    assert "--force-reinstall" in message


def test_a_damaged_copy_does_not_hide_a_sound_one(
    tiny: Path, copy_tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged = copy_tiny("damaged")
    (damaged / "model.safetensors").write_bytes(b"")
    places = [lambda: None, lambda: damaged, lambda: tiny]
    monkeypatch.setattr("kronos.embedding.loading.find_sources", lambda *_args: places)
    service = EmbeddingService("someone/tiny", device="cpu", strict=True)
    service.load()
    assert service.is_available()
    assert service.model_id == "someone/tiny"


def test_the_error_names_all_places_that_failed(
    copy_tiny: Callable[[str], Path], no_caches: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged = copy_tiny("damaged")
    (damaged / "model.safetensors").write_bytes(b"")
    monkeypatch.setattr("kronos.embedding.model_sources._in_package", lambda _package: damaged)
    _, message = load_degraded("mini")
    assert f"the model in {damaged} cannot be used (SafetensorError" in message
    assert "HF_HUB_OFFLINE forbids downloading it" in message


def test_many_threads_load_once(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[str] = []

    def load(model: str, **options: Any) -> Any:
        loads.append(model)
        return load_model(model, **options)

    monkeypatch.setattr("kronos.embedding.service.load_model", load)
    service = EmbeddingService(tiny, device="cpu", strict=True)
    with ThreadPoolExecutor(max_workers=4) as pool:
        for done in [pool.submit(service.load) for _ in range(4)]:
            done.result()
    assert loads == [str(tiny)]


def test_a_missing_model_without_a_network_falls_back_within_a_second(
    no_caches: None, no_network: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants, snapshot_download, utils

    assert snapshot_download, utils  # imports are not counted
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    hang = time.sleep

    def resolve(*_args: object, **_options: object) -> Any:
        hang(5)
        raise OSError

    monkeypatch.setattr("socket.getaddrinfo", resolve)
    started = time.perf_counter()
    service, message = load_degraded("base")
    assert time.perf_counter() - started < 1.5
    check_hash(service)
    assert "cannot be reached" in message


def test_a_missing_package_falls_back(monkeypatch: pytest.MonkeyPatch, no_caches: None) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    service, message = load_degraded("mini")
    check_hash(service)
    assert "sentence_transformers is not installed" in message
    assert "pip install 'kronos-memory[models]'" in message


def test_without_torch_arrays_work_and_tensors_name_the_extra() -> None:
    program = """
import asyncio, sys, warnings
class Absent:
    def find_spec(self, name, *_):
        if name.partition(".")[0] in ("torch", "transformers", "sentence_transformers",
                                      "huggingface_hub", "tokenizers", "safetensors"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
from kronos.embedding.loading import load_model
from kronos.embedding.service import EmbeddingService
from kronos.errors import DeviceError, KronosWarning, MissingDependencyError
service = EmbeddingService("mini")
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    service.load()
print([w.category.__name__ for w in caught], service.encode(["a cat"]).shape, service.device)
try:
    asyncio.run(service.embed("a cat"))
except MissingDependencyError as exc:
    print(exc)
try:
    EmbeddingService("hash", device="cuda").load()
except DeviceError as exc:
    print(exc)
"""
    done = run(program)
    lines = done.stdout.splitlines()
    assert lines[0] == "['KronosWarning'] (1, 384) cpu", done.stderr
    assert "call encode" in lines[1]
    assert "pip install 'kronos-memory[models]'" in lines[1]
    assert "'cuda' is not present; present are: cpu" in lines[2]


def test_importing_the_service_imports_nothing_heavy() -> None:
    program = """
import sys
import kronos.embedding.service
heavy = {"torch", "transformers", "sentence_transformers", "huggingface_hub", "tokenizers", "faiss"}
print(sorted(heavy & set(sys.modules)))
"""
    assert run(program).stdout.strip() == "[]"


def test_an_absent_device_is_never_a_fallback() -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    for model in ("mini", "someone/nothing", "hash"):
        with pytest.raises(DeviceError, match="present are: cpu"):
            EmbeddingService(model, device="cuda").load()


def test_malformed_arguments_are_refused() -> None:
    names: list[Any] = ["", "  ", None, 3]
    for name in names:
        with pytest.raises(ConfigurationError, match="the embedding model must be"):
            EmbeddingService(name).load()
    with pytest.raises(ConfigurationError, match="device must be"):
        EmbeddingService("mini", device="cuda0").load()


def test_a_folder_can_be_a_path_and_gives_its_own_width(tiny: Path) -> None:
    service = EmbeddingService(tiny, device="auto", embedding_dim=999, strict=True)
    asyncio.run(service.initialize())
    assert service.dim == 32
    assert service.model_id == str(tiny)
    assert service.max_tokens == 48


def test_initialize_does_not_block_the_event_loop(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = EmbeddingService.load

    def slow_load(service: EmbeddingService) -> None:
        time.sleep(0.2)
        original(service)

    monkeypatch.setattr(EmbeddingService, "load", slow_load)

    async def count_ticks() -> int:
        service = EmbeddingService("hash")
        task = asyncio.ensure_future(service.initialize())
        ticks = 0
        while not task.done():
            await asyncio.sleep(0.01)
            ticks += 1
        assert service.is_available()
        return ticks

    assert asyncio.run(count_ticks()) >= 5


def test_embedding_does_not_block_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    original = HashEmbedder.embed_documents

    def slowly(embedder: HashEmbedder, texts: Any) -> Any:
        time.sleep(0.3)
        return original(embedder, texts)

    monkeypatch.setattr(HashEmbedder, "embed_documents", slowly)

    async def count_ticks(service: EmbeddingService) -> int:
        task = asyncio.ensure_future(service.embed("a cat"))
        ticks = 0
        while not task.done():
            await asyncio.sleep(0.01)
            ticks += 1
        assert (await task).shape == (64,)
        return ticks

    service = EmbeddingService("hash", embedding_dim=64)
    service.load()
    assert service.encode(["warm"]).shape == (1, 64)
    assert asyncio.run(service.embed_batch(["torch", "is imported"])).shape == (2, 64)
    assert asyncio.run(count_ticks(service)) >= 8


def test_close_works_twice_and_load_reloads() -> None:
    service = EmbeddingService("hash")
    service.load()
    service.close()
    service.close()
    assert not service.is_available()
    with pytest.raises(EmbeddingError, match="initialize"):
        service.encode(["a"])
    service.load()
    assert service.encode(["a"]).shape == (1, 384)


def test_an_interrupt_while_loading_passes(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, no_caches: None
) -> None:
    def interrupt(*_args: object, **_options: object) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("sentence_transformers.SentenceTransformer", interrupt)
    service = EmbeddingService(tiny, device="cpu")
    with pytest.raises(KeyboardInterrupt):
        service.load()
    assert not service.is_available()
