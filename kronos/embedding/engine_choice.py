"""Chooses the engine that computes a model's vectors: ONNX Runtime, or sentence-transformers.

sentence-transformers, on torch, is the reference. ONNX Runtime is the fast engine. It is used if it
is installed, the device is the CPU, and its export of the model gives the reference's vectors. If
it is not used, the embedder's `engine` says why. Both engines have the same fingerprint, since
their vectors are the same.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kronos.concurrency.forking import Lock
from kronos.devices import AUTO, may_have_accelerator
from kronos.embedding.export_failures import (
    forget_failure,
    is_temporary,
    note_failure,
    why_failed,
)
from kronos.embedding.foreign_errors import forget_frames, reason_of
from kronos.embedding.model_cache import get_shared
from kronos.embedding.onnx_export import Export, NotExportableError, find_export, make_export
from kronos.embedding.onnx_model import why_not_installed
from kronos.embedding.sentence import REFERENCE, SentenceEmbedder
from kronos.errors import ModelLoadError
from kronos.settings import user_cache

if TYPE_CHECKING:
    from kronos.settings import Settings

logger = logging.getLogger(__name__)

_EXPORTS = "exports"
_NO_EXPORT = "it cannot be exported for ONNX Runtime"
# An export changes global state of torch, and a second export of the same model is wasted.
_EXPORTING = Lock()


@dataclass(frozen=True, slots=True)
class ModelRequest:
    """A model to load."""

    folder: Path
    model_id: str
    revision: str | None
    settings: Settings
    places: Sequence[Path]
    """Folders of exports."""

    def named(self, embedder: SentenceEmbedder) -> SentenceEmbedder:
        """An embedder that others may have loaded too, under the names of this request."""
        return embedder.named(self.model_id, self.revision)


def export_places(cache_dir: Path | None) -> list[Path]:
    """The folders of exports: one for all stores, then the store's own if that is not writable."""
    return [place / _EXPORTS for place in (user_cache(), cache_dir) if place is not None]


def why_not_fast(
    device: str, settings: Settings, accelerators: Callable[[], list[str]]
) -> str | None:
    """Why the fast engine is not even tried; None if it is.

    Args:
        device: the requested device.
        settings: the requested engine and precision.
        accelerators: lists the accelerators that torch can use.
    """
    if settings.engine == REFERENCE:
        return "the settings choose it"
    if settings.precision != "float32":
        return f"ONNX Runtime computes in float32, and settings.precision is {settings.precision}"
    if (missing := why_not_installed()) is not None:
        return missing
    if device == "cpu" or (device == AUTO and not (may_have_accelerator() and accelerators())):
        return None
    return "ONNX Runtime computes on the CPU only, and another device is used"


def load_with_some_engine(
    request: ModelRequest, reason: str | None, load_reference: Callable[[], SentenceEmbedder]
) -> SentenceEmbedder:
    """Load a model with the fast engine if it can be exported, else with the reference.

    Args:
        request: the model.
        reason: why the fast engine is not tried; None: it is tried.
        load_reference: loads the model with sentence-transformers.

    Raises:
        ModelLoadError: it cannot be loaded, or not with the requested engine.
    """
    fast = _load_sound_export(request) if reason is None else None
    if fast is not None:
        return fast
    _check_choice(request.settings, reason)
    reference = load_reference()
    if reason is None:
        fast, reason = _export(request, reference)
        if fast is not None:
            return fast
        _check_choice(request.settings, reason)
    reference.engine = f"{REFERENCE}: {reason}"
    return reference


def _check_choice(settings: Settings, reason: str | None) -> None:
    if reason is not None and settings.engine == "onnx":
        raise ModelLoadError(f'engine="onnx" is not possible ({reason}): set engine="auto"')


def _load_sound_export(request: ModelRequest) -> SentenceEmbedder | None:
    try:
        return _load_export(request)
    except Exception as exc:  # damaged, or made by other versions of the libraries
        logger.warning("the export of %s cannot be used: %s", request.model_id, reason_of(exc))
        forget_frames(exc)
        return None


def _export(
    request: ModelRequest, reference: SentenceEmbedder
) -> tuple[SentenceEmbedder | None, str]:
    """Export a model and open the export: the embedder, or None and the reason.

    An export that failed before is not tried again while its note is valid.
    """
    fingerprint, places = reference.fingerprint, request.places
    if (before := why_failed(fingerprint, places)) is not None:
        return None, f"{_NO_EXPORT} ({before})"
    try:
        with _EXPORTING:
            make_export(
                request.folder,
                reference.model,
                reference.reading,
                fingerprint,
                places=places,
            )
        fast = _load_export(request)
    except Exception as exc:  # torch, the disk or the model may fail in any way
        # As text: a kept log record would keep the model alive through the frames.
        logger.info("%s has no export: %s", request.model_id, traceback.format_exc())
        why = str(exc) if isinstance(exc, NotExportableError) else reason_of(exc)
        if not is_temporary(exc):
            note_failure(fingerprint, places, why)
        forget_frames(exc)
        return None, f"{_NO_EXPORT} ({why})"
    forget_failure(fingerprint, places)
    return fast, "its export was deleted"


def _load_export(request: ModelRequest) -> SentenceEmbedder | None:
    export = find_export(request.folder, request.places)
    if export is None:
        return None
    settings = request.settings
    key = (
        "onnx",
        export.fingerprint,
        settings.encode_threads,
        settings.encode_tokens,
        settings.encode_batch_size,
    )
    return request.named(get_shared(key, lambda: _open(export, settings)))


def _open(export: Export, settings: Settings) -> SentenceEmbedder:
    opened = export.open(settings.encode_threads)
    embedder = SentenceEmbedder(
        opened.model,
        opened.reading,
        model_id=opened.fingerprint,
        fingerprint=opened.fingerprint,
        dim=opened.dim,
        batch_size=settings.encode_batch_size,
        tokens=settings.encode_tokens,
    )
    embedder.engine = "onnx"
    return embedder
