"""Which engine is taken, where nothing but its name needs to be installed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from kronos import devices
from kronos.embedding import engines
from kronos.embedding.loading import load_model
from kronos.errors import ConfigurationError, ModelLoadError
from kronos.settings import Settings, user_cache


@pytest.mark.parametrize("name", ["onnxruntime", "tokenizers"])
def test_a_missing_package_leaves_the_reference_and_says_how_to_get_it(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    found = engines.why_not_fast

    def why_not_fast(*asked: object) -> str | None:
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, name, None)
            return found(*asked)  # type: ignore[arg-type]

    monkeypatch.setattr("kronos.embedding.onnx._PACKAGES", (name,))
    monkeypatch.setattr("kronos.embedding.loading.why_not_fast", why_not_fast)
    embedder = load_model(str(tiny), device="cpu", cache_dir=None, settings=Settings())
    assert embedder.engine == (
        f"sentence-transformers: the package {name} is not installed: run pip install "
        "'kronos-memory[fast]'"
    )
    with pytest.raises(ModelLoadError, match=r"engine=\"onnx\" cannot be had .*kronos-memory.fast"):
        load_model(str(tiny), device="cpu", cache_dir=None, settings=Settings(engine="onnx"))


def test_another_device_is_for_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "why_not_installed", lambda: None)

    def why(device: str, present: list[str]) -> str | None:
        return engines.why_not_fast(device, Settings(), lambda: present)

    monkeypatch.setitem(sys.modules, "torch", object())
    assert why("cpu", ["cuda:0"]) is None
    assert why("auto", []) is None
    for reason in (why("auto", ["cuda:0"]), why("cuda", ["cuda:0"]), why("mps", ["mps"])):
        assert reason is not None
        assert "on one CPU alone" in reason


def test_where_no_gpu_can_be_torch_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def ask() -> list[str]:
        raise AssertionError("torch was asked")

    monkeypatch.setattr(engines, "why_not_installed", lambda: None)
    monkeypatch.setattr(devices, "_ACCELERATOR_NODES", ())
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    assert engines.why_not_fast("auto", Settings(), ask) is None


def test_an_engine_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigurationError, match='engine must be "auto" or'):
        Settings(engine="tensorflow")  # type: ignore[arg-type]
    assert Settings.from_env({"KRONOS_ENGINE": "onnx"}).engine == "onnx"


def test_the_cache_of_a_user_lies_where_the_user_says() -> None:
    assert user_cache({"XDG_CACHE_HOME": "/somewhere"}) == Path("/somewhere/kronos")
    assert user_cache({}) == Path.home() / ".cache" / "kronos"
