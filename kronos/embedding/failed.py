"""Exports that failed: a note beside the exports, so that no later start tries in vain.

To export a model takes many seconds, and what torch has against it stays until a library changes.
A note is named by the model's fingerprint and holds the reason and the versions of the libraries
that had a part in it; it counts while those are the same. Deleting it has the export tried again.
"""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from kronos.embedding.sentence import is_out_of_memory
from kronos.files import make_folder, publishing

_FORMAT = "kronos-failed-export-1"
_LIBRARIES = (
    "kronos-memory",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "sentence-transformers",
    "tokenizers",
    "torch",
    "transformers",
)


def may_pass(exc: Exception) -> bool:
    """Whether it says something of this moment, as a full disk does, and not of the model."""
    return isinstance(exc, OSError) or is_out_of_memory(exc)


def why_failed(fingerprint: str, places: Sequence[Path]) -> str | None:
    """Why a model's export failed before, and what has it tried again; None: it is to be tried.

    Args:
        fingerprint: the model's.
        places: folders that hold exports.
    """
    for path in (_note(place, fingerprint) for place in places):
        try:
            note = json.loads(path.read_bytes())
            if (note["format"], note["versions"]) == (_FORMAT, _versions()):
                return f"{note['reason']}; tried again once a library changes or {path} is deleted"
        except (OSError, ValueError, KeyError, TypeError):
            continue  # none, or none that can be read
    return None


def note_failure(fingerprint: str, places: Sequence[Path], reason: str) -> None:
    """Leave a note in the first place that can be written; where none can, the next start tries."""
    text = json.dumps({"format": _FORMAT, "reason": reason, "versions": _versions()}, indent=1)
    for place in places:
        with suppress(OSError):
            make_folder(place)
            with publishing(_note(place, fingerprint)) as part:
                part.write_text(text, encoding="utf-8")
            return


def forget_failure(fingerprint: str, places: Sequence[Path]) -> None:
    """Remove the notes of a model that was exported after all."""
    for place in places:
        with suppress(OSError):
            _note(place, fingerprint).unlink(missing_ok=True)


def _note(place: Path, fingerprint: str) -> Path:
    return place / f"{fingerprint}.failed.json"


def _versions() -> dict[str, str | None]:
    return {name: _version(name) for name in _LIBRARIES}


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
