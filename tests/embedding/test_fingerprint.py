from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kronos.embedding.fingerprint import file_sha256, model_fingerprint

READING = {"max_tokens": 48, "document_prompt": "", "query_prompt": ""}
Copy = Callable[[str], Path]


def edit_json(path: Path, **changes: Any) -> None:
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, **changes}))


@pytest.fixture
def folder(copy_tiny: Copy) -> Path:
    return copy_tiny("model")


def changed(folder: Path, original: Path) -> bool:
    return model_fingerprint(folder, READING) != model_fingerprint(original, READING)


def test_a_copy_elsewhere_has_the_same_fingerprint(folder: Path, tiny: Path) -> None:
    assert not changed(folder, tiny)


def test_a_nudged_weight_changes_the_fingerprint(folder: Path, tiny: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    tensors["encoder.layer.1.output.dense.bias"][3] += 1e-4
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert changed(folder, tiny)


def test_one_flipped_bit_of_the_weights_changes_the_fingerprint(folder: Path, tiny: Path) -> None:
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-5] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    assert changed(folder, tiny)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("1_Pooling/config.json", {"pooling_mode": "max"}),
        ("config.json", {"layer_norm_eps": 1e-6}),
        ("tokenizer_config.json", {"do_lower_case": False}),
        ("sentence_bert_config.json", {"do_lower_case": True}),
        ("modules.json", None),
    ],
)
def test_a_changed_config_changes_the_fingerprint(
    folder: Path, tiny: Path, name: str, changes: dict[str, Any] | None
) -> None:
    if changes is None:
        modules = json.loads((folder / name).read_text())
        normalize = {"idx": 2, "name": "2", "path": "2_Normalize", "type": "x.Normalize"}
        (folder / name).write_text(json.dumps([*modules, normalize]))
    else:
        edit_json(folder / name, **changes)
    assert changed(folder, tiny)


def test_a_changed_tokenizer_changes_the_fingerprint(folder: Path, tiny: Path) -> None:
    text = (folder / "tokenizer.json").read_text()
    assert '"cat"' in text
    (folder / "tokenizer.json").write_text(text.replace('"cat"', '"cab"'))
    assert changed(folder, tiny)


@pytest.mark.parametrize(
    "changes",
    [
        {"max_tokens": 24},
        {"document_prompt": "passage: "},
        {"query_prompt": "query: "},
        {"truncate_dim": 16},
    ],
)
def test_other_reading_settings_change_the_fingerprint(tiny: Path, changes: dict[str, Any]) -> None:
    assert model_fingerprint(tiny, {**READING, **changes}) != model_fingerprint(tiny, READING)


def test_changes_that_move_no_vector_keep_the_fingerprint(folder: Path, tiny: Path) -> None:
    (folder / "README.md").write_text("about")
    (folder / ".gitattributes").write_text("*.bin filter=lfs")
    for name in ("data_config.json", "eval_results.json", "requirements.txt", "training_args.bin"):
        (folder / name).write_text("{}")
    (folder / "vocab.txt").write_text("beside a tokenizer.json no one reads it")
    (folder / "pytorch_model.bin").write_bytes(b"beside safetensors no one reads it")
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.onnx").write_bytes(b"of another library")
    (folder / "onnx" / "config.json").write_text("{}")
    edit_json(
        folder / "config.json", _name_or_path="/home/someone/model", transformers_version="4.6.1"
    )
    edit_json(folder / "tokenizer_config.json", name_or_path="elsewhere")
    edit_json(folder / "config_sentence_transformers.json", __version__={"pytorch": "1.8"})
    config = json.loads((folder / "1_Pooling" / "config.json").read_text())
    (folder / "1_Pooling" / "config.json").write_text(
        json.dumps(dict(reversed(config.items())), indent=7)
    )
    assert not changed(folder, tiny)


def test_a_class_that_moved_inside_the_library_keeps_the_fingerprint(
    folder: Path, tiny: Path
) -> None:
    modules = json.loads((folder / "modules.json").read_text())
    for module in modules:
        module["type"] = "sentence_transformers.models." + module["type"].rpartition(".")[2]
    (folder / "modules.json").write_text(json.dumps(modules))
    assert not changed(folder, tiny)


def test_a_vocabulary_counts_if_there_is_no_tokenizer_json(folder: Path, copy_tiny: Copy) -> None:
    other = copy_tiny("other")
    for each, word in ((folder, "one"), (other, "two")):
        (each / "tokenizer.json").unlink()
        (each / "vocab.txt").write_text(word)
    assert changed(folder, other)


def test_weights_other_than_safetensors_count(folder: Path, copy_tiny: Copy) -> None:
    other = copy_tiny("other")
    for each, weights in ((folder, b"one"), (other, b"two")):
        (each / "model.safetensors").unlink()
        (each / "pytorch_model.bin").write_bytes(weights)
    assert changed(folder, other)


def test_the_files_of_nested_modules_count(folder: Path, copy_tiny: Copy) -> None:
    other = copy_tiny("other")
    for each, weights in ((folder, b"one"), (other, b"two")):
        router = {"idx": 0, "name": "0", "path": "", "type": "x.Router"}
        (each / "modules.json").write_text(json.dumps([router]))
        (each / "query_0_StaticEmbedding").mkdir()
        (each / "query_0_StaticEmbedding" / "model.safetensors").write_bytes(weights)
    assert changed(folder, other)


def test_the_same_weights_as_a_bare_transformer_have_another_fingerprint(
    folder: Path, tiny: Path
) -> None:
    (folder / "modules.json").unlink()
    assert changed(folder, tiny)


def test_the_fingerprint_equals_the_recorded_one(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "config.json").write_text('{"hidden_size": 32, "transformers_version": "5"}')
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "modules.json").write_text('[{"type": "a.b.Transformer", "path": ""}]')
    expected = "d51a75a40ad7ad2d0a0b8ce478bca10a656ce3e61f0fce1fd43b92cb3b022eb0"
    assert model_fingerprint(tmp_path, READING) == expected


def test_a_replaced_file_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"one")
    first = file_sha256(path)
    stat = path.stat()
    path.write_bytes(b"two")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert first != file_sha256(path)


def test_an_unchanged_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"one")
    first = file_sha256(path)

    def refuse(*_args: object) -> None:
        raise AssertionError("the file was opened again")

    monkeypatch.setattr("builtins.open", refuse)
    assert file_sha256(path) == first
