"""One copy of a model per process, freed with its last user."""

from __future__ import annotations

import gc
import json
import os
import shutil
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kronos import MemoryStore, Settings
from kronos.embedding import engine_choice, loading, model_cache
from kronos.embedding.service import EmbeddingService
from kronos.errors import EmbedderMismatchError, EmbeddingError, KronosWarning, ModelLoadError

ROOT = Path(__file__).parents[2]
TORCH = Settings(engine="sentence-transformers")
ENGINES = {"onnx": Settings(), "torch": TORCH}
Copy = Callable[[str], Path]


def loaded(model: str | Path, settings: Settings | None = None, **options: Any) -> EmbeddingService:
    service = EmbeddingService(model, settings=settings, strict=True, **options)
    service.load()
    return service


def core(service: EmbeddingService) -> Any:
    """The loaded model of a service."""
    embedder: Any = service._embedder
    return embedder.model


@contextmanager
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The engines of the models that were read from disk."""
    found: list[str] = []
    read, opened = loading.load_folder, engine_choice._open

    def load_folder(*args: Any, **options: Any) -> Any:
        found.append("torch")
        return read(*args, **options)

    def open_export(*args: Any) -> Any:
        found.append("onnx")
        return opened(*args)

    monkeypatch.setattr(loading, "load_folder", load_folder)
    monkeypatch.setattr(engine_choice, "_open", open_export)
    return found


# -- Memory, in processes of their own ----------------------------------------------------------

CYCLES = """
import gc, os, sys, tempfile
from kronos import MemoryStore, Settings
engine, collector, model = sys.argv[1:]
if collector == "off":
    gc.disable()
def mb():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
folder, settings, found = tempfile.mkdtemp(), Settings(engine=engine), []
options = {"embedding_model": model, "settings": settings}
for cycle in range(9):
    with MemoryStore.open(folder + "/s", **options) as store:
        store.search("x")
    if cycle % 3 == 2:
        found.append(mb())
stores = [MemoryStore.open(f"{folder}/{n}", **options) for n in range(4)]
found.append(mb())
for store in stores:
    store.add("x")
    assert store.search("x")
found.append(mb())
for store in stores:
    store.close()
found.append(mb())
print(found)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
@pytest.mark.parametrize("collector", ["on", "off"])
@pytest.mark.parametrize("engine", ["auto", "sentence-transformers"])
def test_opening_and_closing_costs_no_memory_and_four_stores_cost_one_model(
    mini: EmbeddingService, engine: str, collector: str
) -> None:
    assert mini.engine == "onnx", "its export is there"
    done = subprocess.run(
        [sys.executable, "-c", CYCLES, engine, collector, "mini"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        # One heap: else each thread may begin one of its own, which is no memory of a model.
        env={**os.environ, "MALLOC_ARENA_MAX": "1"},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    three, _, nine, four, used, closed = json.loads(done.stdout)
    assert nine - three < 12, done.stdout
    assert four - nine < 110, "the weights alone are 90 MB"
    assert used - four < 20
    assert closed < used - 20


# -- Sharing ------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
def test_stores_and_services_share_one_copy_until_the_last_one_closes(
    tmp_path: Path, tiny: Path, loads: list[str], engine: str
) -> None:
    settings = ENGINES[engine]
    loaded(tiny, settings).close()  # its export is made
    loads.clear()
    with no_collector():
        service = loaded(tiny, settings)
        stores = [
            MemoryStore.open(tmp_path / str(n), embedding_model=str(tiny), settings=settings)
            for n in range(3)
        ]
        assert loads == [engine]
        model = weakref.ref(core(service))
        assert all(core(store._session.own) is model() for store in stores)  # type: ignore[arg-type]
        for store in stores:
            store.add_many(["the cat", "the river"])
            assert store.search("the cat", limit=1)[0].content == "the cat"
        service.close()
        for store in stores:
            assert model() is not None
            store.close()
        assert model() is None, "given back at once, without the collector"
    again = loaded(tiny, settings)
    assert loads == [engine] * 2
    again.close()


def test_a_dropped_service_frees_its_model(tiny: Path) -> None:
    with no_collector():
        service = loaded(tiny, TORCH)
        model = weakref.ref(core(service))
        del service
        assert model() is None


@pytest.mark.parametrize("engine", ENGINES)
def test_an_open_waits_for_another_load_of_the_same_model(
    tiny: Path, loads: list[str], engine: str
) -> None:
    settings = ENGINES[engine]
    loaded(tiny, settings).close()
    loads.clear()
    ready = threading.Barrier(6)

    def open_() -> EmbeddingService:
        ready.wait()
        return loaded(tiny, settings)

    with ThreadPoolExecutor(6) as pool:
        services = [done.result() for done in [pool.submit(open_) for _ in range(6)]]
    assert loads == [engine]
    assert len({id(core(service)) for service in services}) == 1


def test_threads_that_share_a_model_get_the_same_vectors_as_one(tiny: Path) -> None:
    services = [loaded(tiny) for _ in range(4)]
    texts = [[f"the cat {n}", f"a river and rates {n}", "stone " * n] for n in range(1, 30)]
    alone = [services[0].encode(each) for each in texts]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda n: services[n % 4].encode(texts[n]), range(len(texts))))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_call_that_runs_during_the_last_close_succeeds(tiny: Path) -> None:
    service = loaded(tiny, TORCH)
    embedder = service._embedder
    assert embedder is not None
    texts = [f"the cat sleeps {n} " * 8 for n in range(300)]
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(embedder.embed_documents, texts)
        del embedder
        service.close()
        assert running.result(timeout=60).shape == (300, 32)
        del running
    with pytest.raises(EmbeddingError, match="not loaded"):
        service.encode(["x"])


@pytest.mark.parametrize("engine", ENGINES)
def test_a_copy_elsewhere_is_shared_under_its_own_name(
    tiny: Path, copy_tiny: Copy, loads: list[str], engine: str
) -> None:
    one = loaded(tiny, ENGINES[engine])
    loads.clear()
    other = loaded(copy_tiny("elsewhere"), ENGINES[engine])
    assert loads == []
    assert core(one) is core(other)
    assert (one.model_id, Path(other.model_id).name) == (str(tiny), "elsewhere")
    assert one.fingerprint == other.fingerprint


def nudge_weights(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    tensors["encoder.layer.1.output.dense.bias"][3] += 0.5
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


CHANGES: dict[str, Callable[[Path], object]] = {
    "weights": nudge_weights,
    "length": lambda folder: edit(folder / "sentence_bert_config.json", max_seq_length=24),
    "pooling": lambda folder: edit(folder / "1_Pooling/config.json", pooling_mode="max"),
    "prompts": lambda folder: edit(
        folder / "config_sentence_transformers.json", prompts={"query": "river: "}
    ),
    "width": lambda folder: edit(folder / "config_sentence_transformers.json", truncate_dim=16),
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_folder_is_another_model(copy_tiny: Copy, engine: str, change: str) -> None:
    folder = copy_tiny("changing")
    before = loaded(folder, ENGINES[engine])
    CHANGES[change](folder)
    after = loaded(folder, ENGINES[engine])
    assert core(before) is not core(after)
    assert before.fingerprint != after.fingerprint
    reference = loading.load_folder(folder, "changed", "cpu", 32)
    assert after.fingerprint == reference.fingerprint
    texts = ["the cat sleeps on warm stone"]
    assert np.allclose(after.embed_queries(texts), reference.embed_queries(texts), atol=1e-5)


def test_a_store_detects_a_changed_model_while_another_is_open(
    tmp_path: Path, copy_tiny: Copy
) -> None:
    folder = copy_tiny("changing")
    options: dict[str, Any] = {"embedding_model": str(folder), "on_model_change": "error"}
    with MemoryStore.open(tmp_path / "one", **options) as one:
        one.add("the cat")
        MemoryStore.open(tmp_path / "other", **options).close()
        nudge_weights(folder)
        with pytest.raises(EmbedderMismatchError, match="other weights"):
            MemoryStore.open(tmp_path / "other", **options)
        assert one.search("the cat")[0].content == "the cat"


def test_models_with_other_settings_are_not_shared(tiny: Path) -> None:
    ways = [
        loaded(tiny),
        loaded(tiny, TORCH),
        loaded(tiny, Settings(encode_threads=3)),
        loaded(tiny, Settings(precision="bfloat16")),
        loaded(tiny, TORCH, device="cpu,cpu"),
    ]
    assert len({id(core(service)) for service in ways}) == len(ways)
    same = [loaded(tiny, Settings(busy_timeout_s=9)), loaded(tiny, device="cpu")]
    assert {id(core(service)) for service in same} == {id(core(ways[0]))}


def test_a_failed_load_is_not_remembered(copy_tiny: Copy, tiny: Path, loads: list[str]) -> None:
    folder = copy_tiny("damaged")
    (folder / "model.safetensors").write_bytes(b"")
    for _ in range(2):
        with pytest.raises(ModelLoadError, match="SafetensorError"):
            loaded(folder, TORCH)
    assert loads == ["torch"] * 2
    with pytest.warns(KronosWarning):
        EmbeddingService(folder, settings=TORCH).load()
    shutil.copy(tiny / "model.safetensors", folder)
    assert loaded(folder, TORCH).encode(["mended"]).shape == (1, 32)
    assert len(model_cache._locks) == 0, "only its users keep a lock alive"


def test_an_open_that_fails_after_loading_frees_the_model(tmp_path: Path, tiny: Path) -> None:
    with MemoryStore.open(tmp_path, embedding_model="hash") as store:
        store.add("the cat")
    with no_collector():
        alive = len(model_cache._alive)
        try:
            MemoryStore.open(
                tmp_path, embedding_model=str(tiny), on_model_change="error", settings=TORCH
            )
        except EmbedderMismatchError:
            pass
        else:
            raise AssertionError
        assert len(model_cache._alive) == alive


def test_stores_share_a_reranker(tmp_path: Path, cross_encoder: Path) -> None:
    from kronos import Ranking

    options: dict[str, Any] = {"embedding_model": "hash", "settings": Settings()}
    with no_collector():
        stores = [MemoryStore.open(tmp_path / str(n), **options) for n in range(2)]
        for store in stores:
            store.add_many(["the cat", "the river"])
            assert store.search("cat", ranking=Ranking(rerank=str(cross_encoder)))
        (one,), (other,) = (store._session.embedders._rerankers.values() for store in stores)
        assert one is other
        model = weakref.ref(one._model)
        del one, other
        stores[0].close()
        assert model() is not None
        stores[1].close()
        assert model() is None


FORK = """
import os, sys, warnings
import numpy as np
from kronos import MemoryStore, Settings
warnings.simplefilter("ignore", DeprecationWarning)  # of threads beside a fork
folder, model, engine = sys.argv[1:]
options = {"embedding_model": model, "settings": Settings(engine=engine, encode_threads=2)}
one = MemoryStore.open(folder + "/one", **options)
one.add("the cat")
row = one._session.own.encode(["the cat sleeps"])
child = os.fork()
if child == 0:
    other = MemoryStore.open(folder + "/other", **options)  # shares what was inherited
    other.add("the river")
    same = other._session.own._embedder.model is one._session.own._embedder.model
    close = np.allclose(other._session.own.encode(["the cat sleeps"]), row, atol=1e-6)
    found = one.search("the cat")[0].content == "the cat"
    one.close()
    other.close()
    os._exit(0 if same and close and found else 1)
status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
assert np.array_equal(one._session.own.encode(["the cat sleeps"]), row)
one.close()
print(status)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.parametrize("engine", ["auto", "sentence-transformers"])
def test_a_forked_child_shares_inherited_models(tmp_path: Path, tiny: Path, engine: str) -> None:
    loaded(tiny, Settings(encode_threads=2)).close()
    done = subprocess.run(
        [sys.executable, "-c", FORK, str(tmp_path), str(tiny), engine],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
    )
    assert done.stdout == "0\n", done.stderr


# -- Kept texts ---------------------------------------------------------------------------------


def test_a_model_keeps_nothing_of_the_texts(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service = loaded(tiny)
    assert service.engine == "onnx"
    model = core(service)
    service.encode(["the cat", "the river"])
    assert model._whole == {}
    assert service.count_tokens(["the cat", "the river"])
    assert model._whole == {}
    monkeypatch.setattr(model, "_run", lambda _rows: 1 / 0)
    with pytest.raises(EmbeddingError):
        service.embed_queries(["the cat"])
    assert model._whole == {}
