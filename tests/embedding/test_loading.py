from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kronos.embedding import loading
from kronos.embedding.loading import check_device, load_folder, load_model
from kronos.errors import ConfigurationError, DeviceError, ModelLoadError
from kronos.settings import Settings

Copy = Callable[[str], Path]


def remove_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()


def truncate_weights(folder: Path) -> None:
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])


def break_header(folder: Path) -> None:
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[:16] = bytes(byte ^ 0xFF for byte in weights[:16])
    (folder / "model.safetensors").write_bytes(weights)


def fill_with_nan(folder: Path) -> None:
    rewrite_tensors(folder, lambda tensors: {k: v * float("nan") for k, v in tensors.items()})


def fill_with_zeros(folder: Path) -> None:
    rewrite_tensors(folder, lambda tensors: {k: v * 0 for k, v in tensors.items()})


def level_texts(folder: Path) -> None:
    def level(tensors: dict[str, Any]) -> dict[str, Any]:
        # "weight" and "bias" were once called "gamma" and "beta".
        last = {k: v for k, v in tensors.items() if "layer.1.output.LayerNorm" in k}
        assert len(last) == 2
        return {**tensors, **{k: v * 0 + k.endswith(("bias", "beta")) for k, v in last.items()}}

    rewrite_tensors(folder, level)


def drop_a_tensor(folder: Path) -> None:
    rewrite_tensors(
        folder, lambda tensors: {k: v for k, v in tensors.items() if "layer.1.output" not in k}
    )


def rewrite_tensors(folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


def edit(folder: Path, name: str, **changes: Any) -> None:
    path = folder / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def empty(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()


def ask_for_code(folder: Path) -> None:
    (folder / "mine.py").write_text("raise SystemExit('code of a model folder was run')")
    modules = json.loads((folder / "modules.json").read_text())
    modules[0]["type"] = "mine.Transformer"
    (folder / "modules.json").write_text(json.dumps(modules))


def add_adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no tokenizer": (remove_tokenizer, "tokenizer has no vocabulary"),
    "truncated weights": (truncate_weights, "SafetensorError"),
    "broken header": (break_header, "SafetensorError"),
    "weights of NaN": (fill_with_nan, "NaN or inf"),
    "weights of zeros": (fill_with_zeros, "has length 0"),
    "all texts alike": (level_texts, "two unrelated sentences get the same vector"),
    "a missing tensor": (drop_a_tensor, "its weights lack encoder.layer.1.output"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "OSError"),
    "no config": (lambda folder: (folder / "config.json").unlink(), "ValueError"),
    "config is no JSON": (lambda f: (f / "config.json").write_text("{"), "OSError|JSON"),
    "tokenizer is no JSON": (
        lambda f: (f / "tokenizer.json").write_text("{"),
        "processing class|JSON",
    ),
    "another width": (lambda f: edit(f, "config.json", hidden_size=16), "RuntimeError"),
    "unknown kind": (lambda f: edit(f, "config.json", model_type="nope"), "ValueError"),
    "no pooling": (lambda f: (f / "1_Pooling/config.json").unlink(), "Error"),
    "empty folder": (empty, "ValueError"),
    "code": (ask_for_code, "ValueError"),
    "an adapter": (add_adapter, "adapter"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_folder_is_an_error_that_names_folder_and_reason(
    copy_tiny: Copy, damage: str
) -> None:
    folder = copy_tiny("damaged")
    injure, reason = DAMAGE[damage]
    injure(folder)
    with pytest.raises(ModelLoadError, match=reason) as caught:
        load_folder(folder, "tiny", "cpu", 32)
    assert str(folder) in str(caught.value)
    assert caught.value.__cause__ is not None


def test_weights_without_a_pooler_are_complete(copy_tiny: Copy) -> None:
    folder = copy_tiny("no-pooler")
    rewrite_tensors(folder, lambda tensors: {k: v for k, v in tensors.items() if "pooler" not in k})
    assert load_folder(folder, "tiny", "cpu", 32).dim == 32


def test_a_transformer_without_a_sentence_head_gets_mean_pooling(copy_tiny: Copy) -> None:
    folder = copy_tiny("bare")
    with_head = load_folder(folder, "tiny", "cpu", 32)
    for name in ("modules.json", "1_Pooling/config.json", "config_sentence_transformers.json"):
        (folder / name).unlink()
    bare = load_folder(folder, "tiny", "cpu", 32)
    assert (bare.embed_documents(["a cat"]) == with_head.embed_documents(["a cat"])).all()
    assert bare.fingerprint != with_head.fingerprint


def test_loading_is_silent_and_leaves_logging_as_it_was(
    copy_tiny: Copy, capfd: pytest.CaptureFixture[str]
) -> None:
    from huggingface_hub.utils import are_progress_bars_disabled
    from transformers.utils import logging as bars

    def state() -> list[object]:
        names = ("transformers", "sentence_transformers")
        logs = [logging.getLogger(name) for name in names]
        shown = [bars.is_progress_bar_enabled(), are_progress_bars_disabled()]
        return [*((log.handlers, log.level, log.propagate) for log in logs), *shown]

    folder = copy_tiny("noisy")
    drop_a_tensor(folder)  # transformers tells of it in a table
    before = state()
    capfd.readouterr()
    with pytest.raises(ModelLoadError):
        load_folder(folder, "tiny", "cpu", 32)
    assert capfd.readouterr() == ("", "")
    assert state() == before


def test_loading_uses_no_network(tiny: Path, no_network: list[object]) -> None:
    load_folder(tiny, "tiny", "cpu", 32)
    assert no_network == []


def test_an_import_that_fails_names_the_package_to_install(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", object())
    with pytest.raises(ModelLoadError, match=r"cannot be imported .*pip install 'kronos-memory"):
        load_folder(tiny, "tiny", "cpu", 32)


@pytest.mark.parametrize(
    "device", ["", "gpu", "cuda:", "cuda:-1", "cuda:x", "CPU", "auto,cpu", "cpu,", 0, None]
)
def test_a_malformed_device_is_refused(device: Any) -> None:
    with pytest.raises(ConfigurationError, match="device must be") as caught:
        check_device(device)
    assert caught.value.field == "device"


def give_gpus(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


@pytest.mark.parametrize(
    ("count", "device", "present"),
    [
        (0, "cuda", "cpu"),
        (0, "cuda:0", "cpu"),
        (0, "mps", "cpu"),
        (2, "cuda:2", "cpu, cuda:0, cuda:1"),
        (2, "cuda:0,cuda:2", "cpu, cuda:0, cuda:1"),
    ],
)
def test_an_absent_device_is_an_error_that_names_those_present(
    monkeypatch: pytest.MonkeyPatch, count: int, device: str, present: str
) -> None:
    give_gpus(monkeypatch, count)
    with pytest.raises(DeviceError, match=f"'{device[-6:]}' .* present are: {present}\\."):
        check_device(device)


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "cuda:1", "cuda:0,cuda:1"])
def test_a_present_device_is_accepted(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    give_gpus(monkeypatch, 2)
    check_device(device)


def test_auto_uses_the_cpu_if_the_gpu_fails(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []
    original = loading.load_folder

    def load(folder: Path, model_id: str, device: str, *sizes: int, **options: Any) -> Any:
        tried.append(device)
        if device != "cpu":
            raise ModelLoadError("CUDA out of memory")
        return original(folder, model_id, device, *sizes, **options)

    monkeypatch.setattr(loading, "load_folder", load)
    for count, gpus in ((1, ["cuda:0"]), (2, ["cuda:0,cuda:1", "cuda:0"])):
        tried.clear()
        give_gpus(monkeypatch, count)
        embedder = load_model(str(tiny), device="auto", cache_dir=None, settings=Settings())
        assert tried == [*gpus, "cpu"]
        assert embedder.device == "cpu"


def test_a_failing_driver_counts_as_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    def fail() -> bool:
        raise RuntimeError("CUDA driver initialization failed")

    monkeypatch.setattr(torch.cuda, "is_available", fail)
    check_device("auto")
    with pytest.raises(DeviceError, match="present are: cpu"):
        check_device("cuda")
