"""Metadata: a JSON object that comes back equal, or is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from kronos.concurrency.large_values import to_json
from kronos.errors import MetadataError
from kronos.validation.texts import encode, shorten, type_name

if TYPE_CHECKING:
    from kronos.settings import Settings
    from kronos.types import Metadata

_FEW = 2**14
"""Characters and values of metadata that the JSON encoder takes in one call."""
_JSON = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def check_metadata(
    metadata: Metadata | None, settings: Settings, *, field: str = "metadata"
) -> str:
    """Check metadata and encode it as JSON.

    Args:
        metadata: what the caller passed in; None means no metadata.
        settings: the limits of size and depth.
        field: the name for errors.

    Returns:
        A JSON object.

    Raises:
        MetadataError: it would not come back equal, or exceeds a limit.
    """
    if metadata is None:
        return "{}"
    if not isinstance(metadata, dict):
        raise MetadataError(f"{field} must be a dict, not {type_name(metadata)}", field=field)
    size = _check_json(metadata, settings, field)
    text = _JSON.encode(metadata) if size <= _FEW else to_json(metadata, _JSON)
    limit = settings.max_metadata_bytes
    # A character has at most four bytes, so short texts need not be encoded.
    if 4 * len(text) > limit and len(text.encode()) > limit:
        raise _too_large(settings, field)
    return text


def _check_json(root: dict[str, Any], settings: Settings, field: str) -> int:
    """Check metadata.

    Returns:
        How many characters and values it holds.
    """
    # An explicit stack: deep or cyclic metadata must not raise RecursionError. A cycle stops at the
    # depth limit, and a huge value at the size limit.
    size = 0
    stack: list[tuple[Any, str, int]] = [(root, field, 1)]
    while stack:
        value, path, depth = stack.pop()
        if depth > settings.max_metadata_depth:
            raise MetadataError(
                f"{shorten(path)} is nested deeper than {settings.max_metadata_depth} levels "
                "(settings.max_metadata_depth), or contains itself",
                field=field,
            )
        for child, name, length in _children(value, path):
            size += length + (len(child) if isinstance(child, str) else 1)
            if size > settings.max_metadata_bytes:
                raise _too_large(settings, field)
            if isinstance(child, dict | list):
                stack.append((child, name, depth + 1))
            else:
                _check_scalar(child, name)
    return size


def _children(value: dict[Any, Any] | list[Any], path: str) -> Iterator[tuple[Any, str, int]]:
    """The values of a container, each with its path and the length of its key."""
    if isinstance(value, list):
        for position, child in enumerate(value):
            yield child, f"{path}[{position}]", 0
        return
    for key, child in value.items():
        if not isinstance(key, str):
            raise MetadataError(
                f"{shorten(path)} has the key {key!r}: keys must be str, not {type_name(key)}",
                field=path,
            )
        encode(key, MetadataError, path, f"a key of {shorten(path)}")
        yield child, f"{path}.{key}", len(key)


def _check_scalar(value: Any, path: str) -> None:
    if value is None or isinstance(value, bool):
        return
    if isinstance(value, str):
        encode(value, MetadataError, shorten(path))
    elif isinstance(value, int):
        if not -(2**63) <= value < 2**63:
            raise MetadataError(
                f"{shorten(path)} is {shorten(str(value))}, which does not fit 64 bits: store it "
                "as a str",
                field=path,
            )
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise MetadataError(
                f"{shorten(path)} is {value}, which JSON cannot express: use None", field=path
            )
    else:
        raise MetadataError(
            f"{shorten(path)} is {type_name(value)}, which would not come back equal: use None, "
            "bool, int, float, str, list or dict",
            field=path,
        )


def _too_large(settings: Settings, field: str) -> MetadataError:
    return MetadataError(
        f"{field} is larger than {settings.max_metadata_bytes} bytes as JSON "
        "(settings.max_metadata_bytes): put long text into the content",
        field=field,
    )
