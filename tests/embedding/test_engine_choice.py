"""Which engine is chosen; these tests need no engine installed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from kronos import devices
from kronos.embedding import engine_choice
from kronos.embedding.loading import load_model
from kronos.errors import ConfigurationError, ModelLoadError
from kronos.settings import Settings, user_cache


@pytest.mark.parametrize("name", ["onnxruntime", "tokenizers"])
def test_a_missing_package_leaves_the_reference_and_says_how_to_get_it(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    found = engine_choice.why_not_fast

    def why_not_fast(*asked: object) -> str | None:
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, name, None)
            return found(*asked)  # type: ignore[arg-type]

    monkeypatch.setattr("kronos.embedding.onnx_model._PACKAGES", (name,))
    monkeypatch.setattr("kronos.embedding.loading.why_not_fast", why_not_fast)
    embedder = load_model(str(tiny), device="cpu", cache_dir=None, settings=Settings())
    assert embedder.engine == (
        f"sentence-transformers: the package {name} is not installed: run pip install "
        "'kronos-memory[fast]'"
    )
    with pytest.raises(
        ModelLoadError, match=r"engine=\"onnx\" is not possible .*kronos-memory.fast"
    ):
        load_model(str(tiny), device="cpu", cache_dir=None, settings=Settings(engine="onnx"))


def test_the_reference_computes_on_other_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_choice, "why_not_installed", lambda: None)

    def why(device: str, present: list[str]) -> str | None:
        return engine_choice.why_not_fast(device, Settings(), lambda: present)

    monkeypatch.setitem(sys.modules, "torch", object())
    assert why("cpu", ["cuda:0"]) is None
    assert why("auto", []) is None
    for reason in (why("auto", ["cuda:0"]), why("cuda", ["cuda:0"]), why("mps", ["mps"])):
        assert reason is not None
        assert "on the CPU only" in reason


def test_torch_is_not_asked_if_there_cannot_be_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def ask() -> list[str]:
        raise AssertionError("torch was asked")

    monkeypatch.setattr(engine_choice, "why_not_installed", lambda: None)
    monkeypatch.setattr(devices, "_ACCELERATOR_NODES", ())
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    assert engine_choice.why_not_fast("auto", Settings(), ask) is None


def test_an_unknown_engine_is_refused() -> None:
    with pytest.raises(ConfigurationError, match='engine must be "auto" or'):
        Settings(engine="tensorflow")  # type: ignore[arg-type]
    assert Settings.from_env({"KRONOS_ENGINE": "onnx"}).engine == "onnx"


def test_the_user_sets_the_cache_folder() -> None:
    assert user_cache({"XDG_CACHE_HOME": "/somewhere"}) == Path("/somewhere/kronos")
    assert user_cache({}) == Path.home() / ".cache" / "kronos"
