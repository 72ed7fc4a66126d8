"""Notes of failed exports, so that later starts do not try them again in vain.

An export takes many seconds, and one that failed keeps failing until a library changes. A note is
named after the model's fingerprint. It holds the reason and the versions of the libraries, and is
valid while those versions are installed. Deleting it lets the next start try again.
"""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from kronos.embedding.foreign_errors import is_out_of_memory
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


def is_temporary(exc: Exception) -> bool:
    """Whether an error is due to the machine's present state, such as a full disk."""
    return isinstance(exc, OSError) or is_out_of_memory(exc)


def why_failed(fingerprint: str, places: Sequence[Path]) -> str | None:
    """Why a model's export failed before, and when it is tried again.

    Args:
        fingerprint: the model's.
        places: folders of exports.

    Returns:
        None if no valid note says that it failed.
    """
    for path in (_note(place, fingerprint) for place in places):
        try:
            note = json.loads(path.read_bytes())
            if (note["format"], note["versions"]) == (_FORMAT, _versions()):
                return f"{note['reason']}; tried again after a library changes or {path} is deleted"
        except (OSError, ValueError, KeyError, TypeError):
            continue  # no note, or no readable one
    return None


def note_failure(fingerprint: str, places: Sequence[Path], reason: str) -> None:
    """Write a note in the first writable folder; if there is none, the next start tries again."""
    text = json.dumps({"format": _FORMAT, "reason": reason, "versions": _versions()}, indent=1)
    for place in places:
        with suppress(OSError):
            make_folder(place)
            with publishing(_note(place, fingerprint)) as part:
                part.write_text(text, encoding="utf-8")
            return


def forget_failure(fingerprint: str, places: Sequence[Path]) -> None:
    """Delete the notes of a model whose export succeeded."""
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
