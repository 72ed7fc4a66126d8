"""Fingerprints: equal only for models whose vectors can be compared.

A fingerprint is a sha256 over everything that shapes a vector: the weights, configs and tokenizers
of all modules in the model's folder, how the model reads (prompts, maximum length), and scaling to
unit length. The folder's path, the device, the batch size and the number of threads do not count.
A cosmetic change of a file that counts may change the fingerprint, which costs a re-embedding. But
a change that moves vectors always changes it.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

_FORMAT = "kronos-sentence-transformers-1"
_CHUNK_BYTES = 2**20
_PROMPTS = "config_sentence_transformers.json"

_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
_VOCABULARIES = ("tokenizer.json", "vocab*", "merges.txt", "*.model", "bpe.codes", "dict.txt")
# modules.json is parsed, and the settings in config_sentence_transformers.json (prompts, width) are
# read from the loaded model. Besides, the two hold only versions and paths, which move no vector.
_CONFIGS = ("config.json", "*_config.json", "special_tokens_map.json", "added_tokens.json")
_TEMPLATES = ("chat_template*",)
_NOT_READ = frozenset({"data_config.json", "generation_config.json"})
_OTHER_BACKENDS = frozenset({"onnx", "openvino"})
# Keys that tell where a file came from and which version wrote it.
_COSMETIC_KEYS = frozenset(
    {
        "__version__",
        "_commit_hash",
        "_name_or_path",
        "is_local",
        "local_files_only",
        "name_or_path",
        "special_tokens_map_file",
        "tokenizer_file",
        "transformers_version",
    }
)


def model_fingerprint(folder: Path, reading: Mapping[str, Any]) -> str:
    """Fingerprint a loaded sentence-transformers model.

    Args:
        folder: the folder that it was loaded from.
        reading: the settings beyond the files, as JSON values: maximum length, prompts ...

    Returns:
        A sha256 in hex.
    """
    facts = {
        "format": _FORMAT,
        "modules": [_module_facts(folder, module) for module in _modules(folder)],
        "reading": dict(reading),
        "unit_length": True,
    }
    return hashlib.sha256(_canonical(facts)).hexdigest()


def contents_digest(folder: Path) -> str | None:
    """A digest of a folder's model files, for a model that is not loaded yet.

    Returns:
        A sha256 in hex over all files that a loaded model's fingerprint and reading depend on; None
        if the folder holds no model.
    """
    try:
        return model_fingerprint(folder, {"prompts": prompts_sha256(folder)})
    except (OSError, ValueError, KeyError, TypeError):  # loading the model reports why
        return None


def prompts_sha256(folder: Path) -> str:
    """The sha256 of the file that holds the prompts; "" if there is none.

    In the fingerprint itself prompts count as the loaded model reports them.
    """
    path = folder / _PROMPTS
    return file_sha256(path) if path.is_file() else ""


def file_sha256(path: Path) -> str:
    """The sha256 of a file in hex; cached until the file changes."""
    stat = path.stat()
    return _sha256(os.fspath(path.resolve()), stat.st_ino, stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=256)
def _sha256(path: str, _inode: int, _size: int, _mtime_ns: int) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _modules(folder: Path) -> list[dict[str, Any]]:
    # Without a modules.json the library loads a transformer and averages its token vectors.
    try:
        text = (folder / "modules.json").read_text(encoding="utf-8")
    except FileNotFoundError:
        return [{"type": "Transformer", "path": "", "kwargs": "mean pooling"}]
    modules: list[dict[str, Any]] = json.loads(text)
    return modules


def _module_facts(folder: Path, module: Mapping[str, Any]) -> dict[str, Any]:
    # The library moved its classes between versions, but kept their names.
    kind = str(module["type"]).rpartition(".")[2]
    root = folder / str(module["path"])
    # A transformer's files are directly in its folder, which may also hold other modules' folders.
    paths = root.glob("*") if kind == "Transformer" else root.rglob("*")
    files = {path.relative_to(root).as_posix(): _digest(path) for path in _counted(paths, root)}
    return {"type": kind, "kwargs": module.get("kwargs", []), "files": files}


def _counted(paths: Iterator[Path], root: Path) -> Iterator[Path]:
    for path in sorted(paths):
        elsewhere = _OTHER_BACKENDS.intersection(path.relative_to(root).parts[:-1])
        if path.is_file() and not elsewhere and _counts(path):
            yield path


def _counts(path: Path) -> bool:
    name = path.name
    if _matches(name, _WEIGHTS):
        # If there are safetensors, the library ignores pytorch_model.bin.
        return name.endswith(".safetensors") or not any(path.parent.glob("*.safetensors"))
    if _matches(name, _VOCABULARIES):
        # A tokenizer.json holds the whole vocabulary, and the library then reads only that file.
        return name == "tokenizer.json" or not (path.parent / "tokenizer.json").is_file()
    return _matches(name, _CONFIGS + _TEMPLATES) and name not in _NOT_READ


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def _digest(path: Path) -> str:
    if not _matches(path.name, _CONFIGS):
        return file_sha256(path)
    try:
        config = json.loads(path.read_bytes())
    except ValueError:
        return file_sha256(path)
    return hashlib.sha256(_canonical(_without_cosmetics(config))).hexdigest()


def _without_cosmetics(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: _without_cosmetics(item)
            for key, item in value.items()
            if key not in _COSMETIC_KEYS
        }
    if isinstance(value, list):
        return [_without_cosmetics(item) for item in value]
    return value


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
