"""Which engine computes a model's vectors: ONNX Runtime where it gives the same ones, or torch.

sentence-transformers is the reference. The fast engine takes its place when it is installed, the
CPU is to compute, and its export of the model agrees with the reference; whoever asks is told why
it does not. The two have one fingerprint: their vectors are the same.
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
from kronos.embedding.export import Export, NotExportableError, find_export, make_export
from kronos.embedding.failed import forget_failure, may_pass, note_failure, why_failed
from kronos.embedding.hub import reason_of
from kronos.embedding.onnx import why_not_installed
from kronos.embedding.sentence import REFERENCE, SentenceEmbedder
from kronos.embedding.sharing import forget_frames, shared
from kronos.errors import ModelLoadError
from kronos.settings import user_cache

if TYPE_CHECKING:
    from kronos.settings import Settings

logger = logging.getLogger(__name__)

_EXPORTS = "exports"
_NO_EXPORT = "it cannot be exported for ONNX Runtime"
# An export sets what is global in torch, and two of one model would be one too many.
_EXPORTING = Lock()


@dataclass(frozen=True, slots=True)
class Asked:
    """A model that is to be loaded."""

    folder: Path
    model_id: str
    revision: str | None
    settings: Settings
    places: Sequence[Path]
    """Folders that hold exports."""

    def named(self, embedder: SentenceEmbedder) -> SentenceEmbedder:
        """A model that others may have loaded, as it was asked for here."""
        return embedder.named(self.model_id, self.revision)


def export_places(cache_dir: Path | None) -> list[Path]:
    """Where exports lie: in one place for all stores; in the store's where that cannot be."""
    return [place / _EXPORTS for place in (user_cache(), cache_dir) if place is not None]


def why_not_fast(
    device: str, settings: Settings, accelerators: Callable[[], list[str]]
) -> str | None:
    """Why the fast engine is not even tried; None when it is.

    Args:
        device: the device asked for.
        settings: the engine asked for.
        accelerators: asks torch for those that are present.
    """
    if settings.engine == REFERENCE:
        return "it was asked for"
    if settings.precision != "float32":
        return f"ONNX Runtime computes in float32 here, and {settings.precision} was asked for"
    if (missing := why_not_installed()) is not None:
        return missing
    if device == "cpu" or (device == AUTO and not (may_have_accelerator() and accelerators())):
        return None
    return "ONNX Runtime computes on one CPU alone, and other devices are to be used"


def load_with_some_engine(
    asked: Asked, reason: str | None, load_reference: Callable[[], SentenceEmbedder]
) -> SentenceEmbedder:
    """Load a model with the fast engine, if it has an export or can have one; or the reference.

    Args:
        asked: the model.
        reason: why the fast engine is not to be tried; None: it is.
        load_reference: loads it with sentence-transformers.

    Raises:
        ModelLoadError: it cannot be loaded, or not with the engine that was asked for.
    """
    fast = _load_sound_export(asked) if reason is None else None
    if fast is not None:
        return fast
    _check_choice(asked.settings, reason)
    reference = load_reference()
    if reason is None:
        fast, reason = _export(asked, reference)
        if fast is not None:
            return fast
        _check_choice(asked.settings, reason)
    reference.engine = f"{REFERENCE}: {reason}"
    return reference


def _check_choice(settings: Settings, reason: str | None) -> None:
    if reason is not None and settings.engine == "onnx":
        raise ModelLoadError(f'engine="onnx" cannot be had ({reason}): set engine="auto"')


def _load_sound_export(asked: Asked) -> SentenceEmbedder | None:
    try:
        return _load_export(asked)
    except Exception as exc:  # damaged, or of other versions of the libraries
        logger.warning("the export of %s is of no use: %s", asked.model_id, reason_of(exc))
        forget_frames(exc)
        return None


def _export(asked: Asked, reference: SentenceEmbedder) -> tuple[SentenceEmbedder | None, str]:
    """Export a model and open the export; or say why that cannot be, now or as it was before."""
    fingerprint, places = reference.fingerprint, asked.places
    if (before := why_failed(fingerprint, places)) is not None:
        return None, f"{_NO_EXPORT} ({before})"
    try:
        with _EXPORTING:
            make_export(
                asked.folder,
                reference.model,
                reference.reading,
                fingerprint,
                places=places,
            )
        fast = _load_export(asked)
    except Exception as exc:  # whatever torch, the disk or the model has against it
        # As text: whoever keeps a record would keep the model with its frames.
        logger.info("%s has no export: %s", asked.model_id, traceback.format_exc())
        why = str(exc) if isinstance(exc, NotExportableError) else reason_of(exc)
        if not may_pass(exc):
            note_failure(fingerprint, places, why)
        forget_frames(exc)
        return None, f"{_NO_EXPORT} ({why})"
    forget_failure(fingerprint, places)
    return fast, "its export is gone"


def _load_export(asked: Asked) -> SentenceEmbedder | None:
    export = find_export(asked.folder, asked.places)
    if export is None:
        return None
    settings = asked.settings
    key = (
        "onnx",
        export.fingerprint,
        settings.encode_threads,
        settings.encode_tokens,
        settings.encode_batch_size,
    )
    return asked.named(shared(key, lambda: _open(export, settings)))


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
