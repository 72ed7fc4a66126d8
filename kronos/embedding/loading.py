"""Loads a model by name: an embedder that was checked, or one error that gives all reasons.

A folder that loads is not always a working model. Without its tokenizer every text gets the same
vector, and missing weights are filled with random numbers, both without an error. So a loaded model
is checked before it is used. No code in a model's folder is ever run.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from kronos.concurrency.forking import Lock
from kronos.devices import AUTO, split_devices
from kronos.embedding.engine_choice import (
    ModelRequest,
    export_places,
    load_with_some_engine,
    why_not_fast,
)
from kronos.embedding.fingerprint import contents_digest, model_fingerprint
from kronos.embedding.foreign_errors import reason_of
from kronos.embedding.model_cache import (
    free_with_owner,
    get_shared,
    import_in_thread,
    lock_of,
)
from kronos.embedding.model_sources import Source, find_sources
from kronos.embedding.onnx_model import import_ahead
from kronos.embedding.registry import EMBEDDING_MODELS
from kronos.embedding.sentence import ENCODE_TOKENS, Reading, SentenceEmbedder
from kronos.errors import DeviceError, ModelLoadError
from kronos.files import expanded

if TYPE_CHECKING:
    from kronos.settings import Precision, Settings

logger = logging.getLogger(__name__)

T = TypeVar("T")

_LIBRARIES = ("sentence_transformers", "transformers", "torch")
# An accelerator reads more tokens at once than a CPU, whose caches are soon full.
_ACCELERATOR_FACTOR = 32
_INSTALL = "run pip install 'kronos-memory[models]'"
# Two sentences of equally many words: a tokenizer that knows no word cannot tell them apart.
_UNRELATED = ("The cat sleeps on warm stone.", "Interest rates rose twice in March.")
_SAME = 0.999
"""From this cosine of the two on, a model cannot tell texts apart. The limit is high, because sound
models without a sentence head score high too."""
# A row of the table that transformers logs. Poolers do not shape a sentence's vector.
_MISSING_TENSOR = re.compile(r"^(?!pooler\.)(\S.*?) *\| *\S*MISSING", re.MULTILINE)
# The library replaces an activation that the folder brings as code.
_UNTRUSTED = re.compile(r"^.* is not trusted", re.MULTILINE)
_COMMIT = re.compile(r"[0-9a-f]{40}")
# Loading changes global state of transformers and torch, and _quiet() global state of logging.
_LOADING = Lock()


def check_device(device: str) -> None:
    """Check that a device's name is valid, and that a named device is present.

    Raises:
        ConfigurationError: it is none of "auto", "cpu", "mps", "cuda" and "cuda:N", nor several of
            them with commas.
        DeviceError: it is not present; the message lists the devices that are.
    """
    asked = [name for name in split_devices(device) if name not in (AUTO, "cpu")]
    present = _accelerators() if asked else []
    for name in asked:
        if name not in present and not (name == "cuda" and "cuda:0" in present):
            raise DeviceError(
                f"the device {name!r} is not present; present are: "
                f'{", ".join(["cpu", *present])}. Use one of them, or device="auto"'
            )


def _accelerators() -> list[str]:
    try:
        cuda = import_in_thread("torch", "cuda")
        count = cuda.device_count() if cuda.is_available() else 0
        mps = ["mps"] if import_in_thread("torch", "backends").mps.is_available() else []
    except Exception as exc:  # no torch, or a broken driver: there is none to use
        logger.debug("no accelerator: %s", exc)
        return []
    return [*(f"cuda:{number}" for number in range(count)), *mps]


def load_model(
    model: str, *, device: str, cache_dir: Path | None, settings: Settings
) -> SentenceEmbedder:
    """Find a model, load it and check that it works.

    Args:
        model: a preset, a folder, or a name on the Hugging Face hub.
        device: checked by `check_device`.
        cache_dir: where downloads go, in the layout of the Hugging Face cache.
        settings: how long to wait for the network, and how many texts a model reads at once.

    Raises:
        ModelLoadError: it cannot be loaded; the message gives all reasons, and what to do.
    """
    reason = why_not_fast(device, settings, _accelerators)

    def load(folder: Path) -> SentenceEmbedder:
        request = ModelRequest(
            folder, _name(model, folder), _revision(folder), settings, export_places(cache_dir)
        )
        with lock_of((os.path.realpath(folder), device)):
            return load_with_some_engine(request, reason, lambda: load_reference(request))

    def load_reference(request: ModelRequest) -> SentenceEmbedder:
        _check_libraries()
        return _load_shared(request, "cpu" if reason is None else device)

    if reason is None:
        import_ahead()
    if reason is None and not _has_libraries():
        return _load_local(model, load, cache_dir, settings)
    return load_from_some_source(model, load, cache_dir=cache_dir, settings=settings)


def load_from_some_source(
    model: str, load: Callable[[Path], T], *, cache_dir: Path | None, settings: Settings
) -> T:
    """Load a model from the nearest folder that can be loaded.

    Raises:
        ModelLoadError: it cannot be loaded; the message gives all reasons.
    """
    _check_libraries()  # before any search: without them no folder can be loaded
    return _load_first(load, _sources(model, cache_dir, settings.network_timeout_s))


def _load_local(
    model: str, load: Callable[[Path], T], cache_dir: Path | None, settings: Settings
) -> T:
    """Load a model without sentence-transformers: only local models with an export can be."""
    sources = _sources(model, cache_dir, settings.network_timeout_s)
    return _load_first(load, [*sources[: max(1, len(sources) - 1)], _check_libraries])


def _load_first(load: Callable[[Path], T], sources: Sequence[Source]) -> T:
    reasons: list[str] = []
    cause: Exception | None = None
    for source in sources:
        try:
            if (folder := source()) is not None:
                return load(folder)
        except Exception as exc:  # with a broken file, a library may raise anything
            reasons.append(reason_of(exc))
            cause = exc
    try:
        raise ModelLoadError("; ".join(dict.fromkeys(reasons))) from cause
    finally:
        # It references this frame: a cycle would keep alive all that the callers have loaded.
        del cause


def _sources(model: str, cache_dir: Path | None, timeout_s: float) -> list[Source]:
    try:
        return find_sources(model, cache_dir, timeout_s)
    except ModelLoadError:
        raise
    except Exception as exc:  # a name that cannot be a model's
        raise ModelLoadError(f"{model!r} names no model ({reason_of(exc)})") from exc


def _check_libraries() -> None:
    for name in _LIBRARIES:
        if not _is_installed(name):
            raise ModelLoadError(f"the package {name} is not installed: {_INSTALL}")


def _has_libraries() -> bool:
    return all(_is_installed(name) for name in _LIBRARIES)


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):  # blocked, or not installed as a package
        return False


def _name(model: str, folder: Path) -> str:
    if model in EMBEDDING_MODELS:
        return EMBEDDING_MODELS[model].name
    return str(folder) if expanded(model).is_dir() else model


def _load_shared(request: ModelRequest, device: str) -> SentenceEmbedder:
    """The model, shared with its other users in this process on the same device."""
    settings, contents = request.settings, contents_digest(request.folder)
    key = (
        "sentence-transformers",
        contents,
        _resolved(device),
        settings.precision,
        settings.encode_tokens,
        settings.encode_batch_size,
    )

    def load() -> SentenceEmbedder:
        embedder = _load_on_some_device(request.folder, request.model_id, device, settings)
        free_with_owner(embedder, embedder.models)
        return embedder

    return request.named(get_shared(contents and key, load))


def _resolved(device: str) -> tuple[str, ...]:
    """The devices that a name stands for on this machine, so that each device has one name."""
    names = (_accelerators() or ["cpu"]) if device == AUTO else split_devices(device)
    return tuple("cuda:0" if name == "cuda" else name for name in names)


def _load_on_some_device(
    folder: Path, model_id: str, device: str, settings: Settings
) -> SentenceEmbedder:
    def load(device: str) -> SentenceEmbedder:
        on_cpu = set(split_devices(device)) == {"cpu"}
        return load_folder(
            folder,
            model_id,
            device,
            settings.encode_batch_size,
            tokens=settings.encode_tokens * (1 if on_cpu else _ACCELERATOR_FACTOR),
            precision=settings.precision,
        )

    if device != AUTO:
        return load(device)
    present = _accelerators()
    for accelerators in dict.fromkeys([",".join(present), *present[:1]]) if present else ():
        try:
            return load(accelerators)
        except ModelLoadError as exc:  # too small, too old or in use: the CPU always works
            logger.warning("%s cannot be used: %s", accelerators, exc)
    return load("cpu")


def load_folder(
    folder: Path,
    model_id: str,
    device: str,
    batch_size: int,
    *,
    tokens: int = ENCODE_TOKENS,
    precision: Precision = "float32",
) -> SentenceEmbedder:
    """Load a sentence-transformers model from its folder and check that it works.

    Args:
        folder: the model's folder.
        model_id: its name, for people.
        device: one device, or several with commas: each gets a copy of the model.
        batch_size: texts that it reads at once if their tokens cannot be counted.
        tokens: tokens that each copy reads at once.
        precision: the number format that it computes with.

    Raises:
        ModelLoadError: it cannot be loaded, or its vectors are meaningless.
    """
    transformer = _import_library()
    try:
        with _LOADING:
            models = [_load(transformer, folder, name, precision) for name in split_devices(device)]
        _check_tokenizer(models[0])
        reading = Reading.of(models[0])
        facts = asdict(reading)
        if precision != "float32":
            facts["precision"] = precision
        embedder = SentenceEmbedder(
            models[0],
            reading,
            model_id=model_id,
            fingerprint=model_fingerprint(folder, facts),
            dim=int(models[0].encode([_UNRELATED[0]], show_progress_bar=False).shape[1]),
            revision=_revision(folder),
            batch_size=batch_size,
            tokens=tokens,
            copies=models[1:],
        )
        _check_vectors(embedder)
    except Exception as exc:
        raise ModelLoadError(
            f"the model in {folder} cannot be used ({reason_of(exc)}): replace the folder by a "
            "sound copy, or delete it so that it is downloaded again"
        ) from exc
    return embedder


def _import_library() -> Any:
    try:
        return import_in_thread("sentence_transformers", "SentenceTransformer")
    except Exception as exc:  # a broken install raises ImportError, OSError, RuntimeError ...
        raise ModelLoadError(
            f"sentence-transformers cannot be imported ({reason_of(exc)}): {_INSTALL}"
        ) from exc


def _load(transformer: Any, folder: Path, device: str, precision: Precision) -> Any:
    if (folder / "adapter_config.json").exists():
        raise ModelLoadError("it is an adapter without its base model; merge the two")
    with _quiet() as messages:
        model = transformer(
            str(folder),
            device=device,
            local_files_only=True,
            trust_remote_code=False,
            model_kwargs=None if precision == "float32" else {"dtype": precision},
        )
    for message in messages:
        if untrusted := _UNTRUSTED.search(message):
            raise ModelLoadError(f"it needs its own code, which is never run: {untrusted[0]}")
    missing = [tensor for message in messages for tensor in _MISSING_TENSOR.findall(message)]
    if missing:
        raise ModelLoadError(f"its weights lack {missing[0]} and {len(missing) - 1} more")
    return model


@contextmanager
def _quiet() -> Iterator[list[str]]:
    """Keep progress bars and messages of the libraries off the terminal; yields the messages."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars
    from transformers.utils import logging as bars

    messages: list[str] = []
    loggers = [logging.getLogger(name) for name in ("transformers", "sentence_transformers")]
    before = [(log, log.handlers, log.level, log.propagate) for log in loggers]
    had_bars, had_no_downloads = bars.is_progress_bar_enabled(), are_progress_bars_disabled()
    try:
        for log in loggers:
            log.handlers, log.propagate = [_Collector(messages)], False
            log.setLevel(logging.WARNING)
        if had_bars:
            bars.disable_progress_bar()
        yield messages
    finally:
        for log, handlers, level, propagate in before:
            log.handlers, log.propagate = handlers, propagate
            log.setLevel(level)
        if had_bars:
            bars.enable_progress_bar()  # and those of downloads with them
            if had_no_downloads:
                disable_progress_bars()


class _Collector(logging.Handler):
    def __init__(self, messages: list[str]) -> None:
        super().__init__()
        self._messages = messages

    def emit(self, record: logging.LogRecord) -> None:
        self._messages.append(record.getMessage())
        logger.debug("%s: %s", record.name, record.getMessage())


def _revision(folder: Path) -> str | None:
    """The commit that a folder of the Hugging Face cache holds: `snapshots/<commit>`."""
    is_snapshot = folder.parent.name == "snapshots" and _COMMIT.fullmatch(folder.name)
    return folder.name if is_snapshot else None


def _check_tokenizer(model: Any) -> None:
    # If the tokenizer's files are missing, the library makes a tokenizer of special tokens only.
    tokenizer = getattr(model, "tokenizer", None)
    special = getattr(tokenizer, "all_special_tokens", None)
    if tokenizer is not None and special and len(tokenizer) <= len(special):
        raise ModelLoadError("its tokenizer has no vocabulary; are tokenizer files missing?")


def _check_vectors(embedder: SentenceEmbedder) -> None:
    one, other = embedder.embed_documents(_UNRELATED)
    score = float(one @ other)
    if score > _SAME:
        raise ModelLoadError(
            f"two unrelated sentences get the same vector (cosine {score:.4f}), so it cannot tell "
            "texts apart; are tokenizer files missing or weights damaged?"
        )
