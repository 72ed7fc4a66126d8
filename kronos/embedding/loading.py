"""From a model's name to an embedder that is fit for use, or one error that says why not.

A folder that loads is not yet a model: without its tokenizer every text gets the same vector, and
weights that lack a tensor are filled up with chance, all without an error. So what was loaded is
checked before it is handed out. Nothing of a folder is run as code.
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
from kronos.embedding.engines import (
    Asked,
    export_places,
    load_with_some_engine,
    why_not_fast,
)
from kronos.embedding.fingerprint import contents_digest, model_fingerprint
from kronos.embedding.hub import Source, find_sources, reason_of
from kronos.embedding.onnx import import_ahead
from kronos.embedding.registry import EMBEDDING_MODELS
from kronos.embedding.sentence import ENCODE_TOKENS, Reading, SentenceEmbedder
from kronos.embedding.sharing import give_back_with, imported, shared, turn
from kronos.errors import DeviceError, ModelLoadError
from kronos.files import expanded

if TYPE_CHECKING:
    from kronos.settings import Precision, Settings

logger = logging.getLogger(__name__)

T = TypeVar("T")

_LIBRARIES = ("sentence_transformers", "transformers", "torch")
# An accelerator is fed more at once than a CPU, whose caches are soon full.
_ACCELERATOR_TOKENS = 32
_INSTALL = "run pip install 'kronos-memory[models]'"
# As many words in the one as in the other: to a tokenizer that knows no word they are equal.
_UNRELATED = ("The cat sleeps on warm stone.", "Interest rates rose twice in March.")
_SAME = 0.999
"""Cosine of the two from which on a model tells no texts apart; sound models without a sentence
head score high too."""
# A row of the table that transformers logs; poolers are no part of a sentence's vector.
_MISSING_TENSOR = re.compile(r"^(?!pooler\.)(\S.*?) *\| *\S*MISSING", re.MULTILINE)
# The library puts another activation in the place of one that the folder brings as code.
_UNTRUSTED = re.compile(r"^.* is not trusted", re.MULTILINE)
_COMMIT = re.compile(r"[0-9a-f]{40}")
# Loading sets what is global in transformers and torch, and quiet() what is global in logging.
_LOADING = Lock()


def check_device(device: str) -> None:
    """Check that a device is well named and, if it was asked for by name, present.

    Raises:
        ConfigurationError: it is none of "auto", "cpu", "mps", "cuda", "cuda:N" and several of them
            with commas.
        DeviceError: it is not present; names those that are.
    """
    asked = [name for name in split_devices(device) if name not in (AUTO, "cpu")]
    present = _accelerators() if asked else []
    for name in asked:
        if name not in present and not (name == "cuda" and "cuda:0" in present):
            raise DeviceError(
                f"the device {name!r} was asked for and is not present; present are: "
                f'{", ".join(["cpu", *present])}. Take one of them, or device="auto"'
            )


def _accelerators() -> list[str]:
    try:
        cuda = imported("torch", "cuda")
        count = cuda.device_count() if cuda.is_available() else 0
        mps = ["mps"] if imported("torch", "backends").mps.is_available() else []
    except Exception as exc:  # no torch, or a driver that fails: then there is none to use
        logger.debug("no accelerator: %s", exc)
        return []
    return [*(f"cuda:{number}" for number in range(count)), *mps]


def load_model(
    model: str, *, device: str, cache_dir: Path | None, settings: Settings
) -> SentenceEmbedder:
    """Find a model, load it and check that it is fit for use.

    Args:
        model: a preset, a folder, or a name on the Hugging Face hub.
        device: checked by `check_device`.
        cache_dir: where downloads go, in the layout of the Hugging Face cache.
        settings: how long to look for a network, and how many texts a model reads at once.

    Raises:
        ModelLoadError: it cannot be had, for any reason; all reasons are named, and what mends it.
    """
    reason = why_not_fast(device, settings, _accelerators)

    def load(folder: Path) -> SentenceEmbedder:
        asked = Asked(
            folder, _name(model, folder), _revision(folder), settings, export_places(cache_dir)
        )
        with turn((os.path.realpath(folder), device)):
            return load_with_some_engine(asked, reason, lambda: load_reference(asked))

    def load_reference(asked: Asked) -> SentenceEmbedder:
        _check_libraries()
        return _load_shared(asked, "cpu" if reason is None else device)

    if reason is None:
        import_ahead()
    if reason is None and not _has_libraries():
        return _load_near(model, load, cache_dir, settings)
    return load_from_some_source(model, load, cache_dir=cache_dir, settings=settings)


def load_from_some_source(
    model: str, load: Callable[[Path], T], *, cache_dir: Path | None, settings: Settings
) -> T:
    """Find a model's folder and load what is in it: the nearest folder that can be loaded.

    Raises:
        ModelLoadError: it cannot be had, for any reason; all reasons are named.
    """
    _check_libraries()  # before any search: without them a model that was found is of no use
    return _load_first(load, _sources(model, cache_dir, settings.network_timeout_s))


def _load_near(
    model: str, load: Callable[[Path], T], cache_dir: Path | None, settings: Settings
) -> T:
    """Without the libraries: what was exported can be loaded, and nothing that is not here yet."""
    sources = _sources(model, cache_dir, settings.network_timeout_s)
    return _load_first(load, [*sources[: max(1, len(sources) - 1)], _check_libraries])


def _load_first(load: Callable[[Path], T], sources: Sequence[Source]) -> T:
    reasons: list[str] = []
    cause: Exception | None = None
    for source in sources:
        try:
            if (folder := source()) is not None:
                return load(folder)
        except Exception as exc:  # whatever a broken file makes of a library; see reason_of
            reasons.append(reason_of(exc))
            cause = exc
    try:
        raise ModelLoadError("; ".join(dict.fromkeys(reasons))) from cause
    finally:
        # It knows this frame, and so what its callers have loaded: a cycle would keep all that.
        del cause


def _sources(model: str, cache_dir: Path | None, timeout_s: float) -> list[Source]:
    try:
        return find_sources(model, cache_dir, timeout_s)
    except ModelLoadError:
        raise
    except Exception as exc:  # a name that can be no model's
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
    except (ImportError, ValueError):  # blocked, or put in place by hand
        return False


def _name(model: str, folder: Path) -> str:
    if model in EMBEDDING_MODELS:
        return EMBEDDING_MODELS[model].name
    return str(folder) if expanded(model).is_dir() else model


def _load_shared(asked: Asked, device: str) -> SentenceEmbedder:
    """The model as others in this process have it, on the same device; else it is loaded now."""
    settings, contents = asked.settings, contents_digest(asked.folder)
    key = (
        "sentence-transformers",
        contents,
        _resolved(device),
        settings.precision,
        settings.encode_tokens,
        settings.encode_batch_size,
    )

    def load() -> SentenceEmbedder:
        embedder = _load_on_some_device(asked.folder, asked.model_id, device, settings)
        give_back_with(embedder, embedder.models)
        return embedder

    return asked.named(shared(contents and key, load))


def _resolved(device: str) -> tuple[str, ...]:
    """The devices that a name stands for here, so that one device has one name."""
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
            tokens=settings.encode_tokens * (1 if on_cpu else _ACCELERATOR_TOKENS),
            precision=settings.precision,
        )

    if device != AUTO:
        return load(device)
    present = _accelerators()
    for accelerators in dict.fromkeys([",".join(present), *present[:1]]) if present else ():
        try:
            return load(accelerators)
        except ModelLoadError as exc:  # too small, too old, in use: the CPU always is there
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
    """Load a sentence-transformers model from its folder and check that it is fit for use.

    Args:
        folder: where it lies.
        model_id: its name, for people.
        device: one, or several with commas: each gets a copy of the model.
        batch_size: texts that it reads at once where their tokens cannot be counted.
        tokens: tokens that each copy reads at once.
        precision: with what it computes.

    Raises:
        ModelLoadError: it cannot be loaded, or gives no vectors that mean anything.
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
            "sound copy, or delete it so that it is downloaded anew"
        ) from exc
    return embedder


def _import_library() -> Any:
    try:
        return imported("sentence_transformers", "SentenceTransformer")
    except Exception as exc:  # a broken install raises ImportError, OSError, RuntimeError ...
        raise ModelLoadError(
            f"sentence-transformers cannot be imported ({reason_of(exc)}): {_INSTALL}"
        ) from exc


def _load(transformer: Any, folder: Path, device: str, precision: Precision) -> Any:
    if (folder / "adapter_config.json").exists():
        raise ModelLoadError("it is an adapter whose base model lies elsewhere; merge the two")
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
            raise ModelLoadError(f"it needs code of its own, which is never run: {untrusted[0]}")
    missing = [tensor for message in messages for tensor in _MISSING_TENSOR.findall(message)]
    if missing:
        raise ModelLoadError(f"its weights lack {missing[0]} and {len(missing) - 1} more")
    return model


@contextmanager
def _quiet() -> Iterator[list[str]]:
    """Keep the libraries' progress bars and messages off the terminal; yields the messages."""
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
    # The library makes up a tokenizer of special tokens alone where its files are not there.
    tokenizer = getattr(model, "tokenizer", None)
    special = getattr(tokenizer, "all_special_tokens", None)
    if tokenizer is not None and special and len(tokenizer) <= len(special):
        raise ModelLoadError("its tokenizer has no vocabulary; are tokenizer files missing?")


def _check_vectors(embedder: SentenceEmbedder) -> None:
    one, other = embedder.embed_documents(_UNRELATED)
    score = float(one @ other)
    if score > _SAME:
        raise ModelLoadError(
            f"two unrelated sentences get the same vector (cosine {score:.4f}), so it tells no "
            "texts apart; are tokenizer files missing or weights damaged?"
        )
