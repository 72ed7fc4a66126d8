"""The edge: everything that a caller hands in is checked here, once; below, types hold.

The one rule for text, wherever it stands (content, ids, namespaces, metadata, filters): it is
stored exactly, or refused by name. Lone surrogates are no Unicode and NUL is not portable between
databases, so both are refused. Metadata comes back equal to what went in, or is refused.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from kronos.concurrency.pieces import to_json
from kronos.errors import (
    ContentError,
    DimensionMismatchError,
    IdentifierError,
    InputError,
    MetadataError,
    VectorError,
)
from kronos.types import NewMemory

if TYPE_CHECKING:
    from kronos.settings import Settings
    from kronos.types import Metadata, Vectors

Item: TypeAlias = str | NewMemory | Mapping[str, Any]
"""What `add_many` takes: a text, a `NewMemory`, or a dict with the fields of one."""

MAX_NAME = 256
"""Characters of an id or a namespace."""
ALL_NAMESPACES = "*"
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_MICROSECOND = timedelta(microseconds=1)
_FIRST, _LAST = (
    (moment.replace(tzinfo=timezone.utc) - _EPOCH) // _MICROSECOND
    for moment in (datetime.min, datetime.max)
)
_DAY = timedelta(days=1) // _MICROSECOND
_NEW_MEMORY_FIELDS = frozenset(option.name for option in fields(NewMemory))
_FLOAT32 = np.dtype(np.float32)
_UNIT_TOLERANCE = 1e-6
_ROUNDED = 1e-4
"""How far float32 may take the length of a wide unit vector from 1, and more."""
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_FEW = 2**14
_JSON = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))


@dataclass(slots=True, kw_only=True)
class Record:
    """A new memory, checked, in the form in which the rows take it."""

    id: str
    id_given: bool
    """False: the id is a new UUID and cannot exist yet."""
    namespace: str
    content: str
    content_hash: bytes
    metadata: str
    importance: float
    parent_id: str | None
    expires_at: int | None
    folded: str | None = None
    """What the word index reads instead of the content; `kronos.repository.fulltext` makes it."""
    embedding: Vectors | Sequence[float] | None = None
    """As the caller handed it in; `check_embeddings` checks it."""
    created_at: int | None = None
    """None: now."""
    updated_at: int | None = None


def check_item(item: Item, *, namespace: str, settings: Settings, field: str = "") -> Record:
    """Check one new memory.

    Args:
        item: what the caller handed in; its `embedding` is left to `check_embeddings`.
        namespace: taken when the item names none.
        settings: the limits of content and metadata.
        field: what the item is called in errors, e.g. "items[3]"; empty for a lone `add`.

    Raises:
        InputError: a field is refused; the error's `field` names it.
    """
    new = _as_new_memory(item, field)
    dot = f"{field}." if field else ""
    content = check_content(new.content, settings.max_content_bytes, field=f"{dot}content")
    return Record(
        id=_new_id() if new.id is None else check_id(new.id, field=f"{dot}id"),
        id_given=new.id is not None,
        namespace=namespace
        if new.namespace is None
        else check_namespace(new.namespace, field=f"{dot}namespace"),
        content=new.content,
        content_hash=hash_content(content),
        metadata=check_metadata(new.metadata, settings, field=f"{dot}metadata"),
        importance=check_importance(new.importance, field=f"{dot}importance"),
        parent_id=None
        if new.parent_id is None
        else check_id(new.parent_id, field=f"{dot}parent_id"),
        expires_at=None
        if new.expires_at is None
        else check_time(new.expires_at, field=f"{dot}expires_at"),
        embedding=new.embedding,
        created_at=None
        if new.created_at is None
        else check_time(new.created_at, field=f"{dot}created_at"),
        updated_at=None
        if new.updated_at is None
        else check_time(new.updated_at, field=f"{dot}updated_at"),
    )


def _new_id() -> str:
    """A new UUID of version 7, which begins with the time.

    Ids that are made together stand together in the index of ids, however large it is: with random
    ones a batch would write as many pages as it has memories.
    """
    chance = os.urandom(10).hex()
    variant = "89ab"[int(chance[0], 16) & 3]
    milliseconds = time.time_ns() // 1_000_000
    return f"{milliseconds:012x}7{chance[1:4]}{variant}{chance[4:19]}"


def _as_new_memory(item: Item, field: str) -> NewMemory:
    if isinstance(item, NewMemory):
        return item
    if isinstance(item, str):
        return NewMemory(item)
    if not isinstance(item, Mapping):
        raise InputError(
            f"{field or 'item'} must be a str, a NewMemory or a dict, not {_kind(item)}",
            field=field or "item",
        )
    unknown = [key for key in item if key not in _NEW_MEMORY_FIELDS]
    if unknown:
        raise InputError(
            f"{field or 'item'} has the unknown key {unknown[0]!r}; known are "
            f"{', '.join(sorted(_NEW_MEMORY_FIELDS))} (your own keys go into metadata)",
            field=f"{field}.{unknown[0]!s}" if field else str(unknown[0]),
        )
    if "content" not in item:
        raise ContentError(
            f"{field or 'item'} has no content",
            field=f"{field}.content" if field else "content",
        )
    return NewMemory(**item)


def check_content(content: object, max_bytes: int, *, field: str = "content") -> bytes:
    """Check a text and encode it: UTF-8 bytes.

    Raises:
        ContentError: no str, blank, too long, or not storable exactly.
    """
    if not isinstance(content, str):
        raise ContentError(f"{field} must be a str, not {_kind(content)}", field=field)
    if not content or content.isspace():
        raise ContentError(f"{field} is blank: there is nothing to remember in it", field=field)
    encoded = _encode(content, ContentError, field)
    if len(encoded) > max_bytes:
        raise ContentError(
            f"{field} has {len(encoded)} bytes, at most {max_bytes} are taken "
            "(settings.max_content_bytes): cut it into passages",
            field=field,
        )
    return encoded


def hash_content(content: bytes) -> bytes:
    """What tells two texts apart: the sha256 of their UTF-8 bytes."""
    return hashlib.sha256(content).digest()


def _encode(text: str, error: type[InputError], field: str, name: str | None = None) -> bytes:
    """A text as it is stored; the error calls it by name, or by its field."""
    name = name or field
    try:
        encoded = text.encode()
    except UnicodeEncodeError as exc:
        raise error(
            f"{name} holds a lone surrogate at character {exc.start}, which is no Unicode text: "
            'encode it with errors="replace" first',
            field=field,
        ) from None
    if b"\0" in encoded:
        raise error(
            f"{name} holds NUL at character {text.index(chr(0))}, which databases do not "
            "keep: remove it first",
            field=field,
        )
    return encoded


def check_id(value: object, *, field: str = "id") -> str:
    """Check an id: 1 to 256 characters of any kind but control characters."""
    return _check_name(value, field)


def check_namespace(value: object, *, field: str = "namespace") -> str:
    """Check a namespace: `/`-separated names, none of them empty, `.`, `..` or with a `*`."""
    name = _check_name(value, field)
    for part in name.split("/"):
        if part.strip() in ("", ".", "..") or ALL_NAMESPACES in part:
            raise IdentifierError(
                f"{field} must be names separated by single slashes, without '.', '..' or '*', "
                f"not {name!r}",
                field=field,
            )
    return name


def check_scope(namespace: str | None, own: str) -> str | None:
    """Find the namespace that a question means.

    Args:
        namespace: as the caller gave it; None is the store's own, "*" every one.
        own: the store's own.

    Returns:
        A namespace, which stands for itself and all below it; None for every one.
    """
    if namespace == ALL_NAMESPACES:
        return None
    return own if namespace is None else check_namespace(namespace)


def _check_name(value: object, field: str) -> str:
    if not isinstance(value, str):
        raise IdentifierError(f"{field} must be a str, not {_kind(value)}", field=field)
    if not 0 < len(value) <= MAX_NAME or not value.strip():
        raise IdentifierError(
            f"{field} must have 1 to {MAX_NAME} characters and not be blank, not {len(value)}",
            field=field,
        )
    _encode(value, IdentifierError, field)
    if _CONTROL.search(value):
        raise IdentifierError(f"{field} holds a control character: {value!r}", field=field)
    return str(value)


def check_importance(value: object, *, field: str = "importance") -> float:
    """Check an importance: a number from 0 to 1."""
    if type(value) is float and 0 <= value <= 1:
        return value
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise InputError(f"{field} must be a number from 0 to 1, not {value!r}", field=field)
    return float(value)


def check_number(value: object, *, field: str) -> float:
    """Check a finite number."""
    try:
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
    except OverflowError:  # an int beyond every float
        pass
    raise InputError(f"{field} must be a finite number, not {_short(repr(value))}", field=field)


def check_limit(value: object, *, field: str = "limit", least: int = 1) -> int:
    """Check how many of something are wanted: a whole number from `least` on."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(
            f"{field} must be a whole number from {least} on, not {value!r}", field=field
        )
    return min(value, 2**31 - 1)


def check_time(value: object, *, field: str) -> int | None:
    """Check a moment: a timezone-aware datetime, or None.

    Returns:
        Microseconds since 1970 UTC.
    """
    if value is None:
        return None
    try:
        is_aware = isinstance(value, datetime) and value.utcoffset() is not None
        moment = to_microseconds(value) if is_aware else None  # type: ignore[arg-type]
    except OverflowError:  # a time zone that cannot even say its offset then
        is_aware, moment = True, None
    if not is_aware:
        raise InputError(
            f"{field} must be a timezone-aware datetime, e.g. datetime.now(timezone.utc), "
            f"not {value!r}",
            field=field,
        )
    # A time of a zone far from Greenwich may be of another year in UTC, and NaT is of none.
    if moment is None or not _FIRST <= moment <= _LAST:
        raise InputError(
            f"{field} is {value!r}, which is not within the years 1 to 9999 in UTC: give a moment "
            "within them, or None for no time at all",
            field=field,
        )
    return moment


def to_microseconds(moment: datetime) -> int:
    """Microseconds since 1970 UTC of a timezone-aware datetime, exactly."""
    return (moment - _EPOCH) // _MICROSECOND


@functools.lru_cache(maxsize=1024)  # what was added together is of one moment
def to_datetime(microseconds: int) -> datetime:
    """The UTC datetime of microseconds since 1970 UTC, exactly.

    Stores may hold moments up to a day beyond the years 1 to 9999, which were taken once: they are
    read as the first or the last moment of these.

    Raises:
        OverflowError: it is farther away, and no moment that was ever stored.
    """
    if not _FIRST <= microseconds <= _LAST and _FIRST - _DAY < microseconds < _LAST + _DAY:
        microseconds = min(max(microseconds, _FIRST), _LAST)
    return _EPOCH + timedelta(microseconds=microseconds)


def check_metadata(
    metadata: Metadata | None, settings: Settings, *, field: str = "metadata"
) -> str:
    """Check metadata and write it as JSON.

    Raises:
        MetadataError: it would not come back equal, or is larger or deeper than the limits.
    """
    if metadata is None:
        return "{}"
    if not isinstance(metadata, dict):
        raise MetadataError(f"{field} must be a dict, not {_kind(metadata)}", field=field)
    size = _check_json(metadata, settings, field)
    text = _JSON.encode(metadata) if size <= _FEW else to_json(metadata, _JSON)
    # No character has more than four bytes.
    limit = settings.max_metadata_bytes
    if 4 * len(text) > limit and len(text.encode()) > limit:
        raise _too_large(settings, field)
    return text


def _check_json(root: dict[str, Any], settings: Settings, field: str) -> int:
    """Check metadata: how many letters and values are in it."""
    # A stack of our own: deep or cyclic metadata must not raise RecursionError. A cycle ends at
    # the depth limit, and a huge value at the size limit, before it is walked whole.
    size = 0
    stack: list[tuple[Any, str, int]] = [(root, field, 1)]
    while stack:
        value, path, depth = stack.pop()
        if depth > settings.max_metadata_depth:
            raise MetadataError(
                f"{_short(path)} is nested deeper than {settings.max_metadata_depth} levels "
                "(settings.max_metadata_depth), or holds itself",
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
    """What a container holds: each value, its path, and the length of its key."""
    if isinstance(value, list):
        for position, child in enumerate(value):
            yield child, f"{path}[{position}]", 0
        return
    for key, child in value.items():
        if not isinstance(key, str):
            raise MetadataError(
                f"{_short(path)} has the key {key!r}: keys must be str, not {_kind(key)}",
                field=path,
            )
        _encode(key, MetadataError, path, f"a key of {_short(path)}")
        yield child, f"{path}.{key}", len(key)


def _check_scalar(value: Any, path: str) -> None:
    if value is None or isinstance(value, bool):
        return
    if isinstance(value, str):
        _encode(value, MetadataError, _short(path))
    elif isinstance(value, int):
        if not -(2**63) <= value < 2**63:
            raise MetadataError(
                f"{_short(path)} is {_short(str(value))}, which does not fit 64 bits: store it "
                "as a str",
                field=path,
            )
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise MetadataError(
                f"{_short(path)} is {value}, which JSON does not have: use None", field=path
            )
    else:
        raise MetadataError(
            f"{_short(path)} is {_kind(value)}, which would not come back as it is: use None, "
            "bool, int, float, str, list or dict",
            field=path,
        )


def _too_large(settings: Settings, field: str) -> MetadataError:
    return MetadataError(
        f"{field} is larger than {settings.max_metadata_bytes} bytes as JSON "
        "(settings.max_metadata_bytes): put long text into the content",
        field=field,
    )


def check_embeddings(
    embeddings: Sequence[Vectors | Sequence[float] | None],
    dim: int,
    space: str,
    name: Callable[[int], str],
) -> Vectors:
    """Check vectors that a caller handed in, and scale them to unit length.

    Args:
        embeddings: one vector each.
        dim: the width of the space they are meant for.
        space: the space's name, for the error.
        name: what the vector at a position is called in errors.

    Returns:
        (n, dim) float32, C-contiguous; rows that came with unit length are bit-identical.

    Raises:
        DimensionMismatchError: another width than the space's.
        VectorError: no floats, NaN or inf, or of length 0.
    """
    rows = np.empty((len(embeddings), dim), np.float32)
    for position, embedding in enumerate(embeddings):
        rows[position] = _as_vector(embedding, dim, space, name, position)
    return scale_to_unit(rows, name)


def unusable_rows(rows: Vectors) -> dict[int, str]:
    """What is wrong with vectors, (n, dim) float32, by their positions; nothing with the others."""
    return _unusable(_norms(rows))


def not_unit(rows: Vectors) -> Any:
    """Which vectors, (n, dim) float32, are not of unit length: (n,) bool."""
    return ~(np.abs(_norms(rows) - 1) <= _ROUNDED)  # so that NaN is none


def _unusable(norms: Any) -> dict[int, str]:
    return {
        position: "has length 0" if norms[position] == 0 else "holds NaN or inf"
        for position in np.flatnonzero(~(np.isfinite(norms) & (norms > 0))).tolist()
    }


def _norms(rows: Vectors) -> Any:
    # float64: squares of finite float32 values may overflow in float32.
    if len(rows) == 1:
        return np.array([_norm(rows[0])])
    return np.sqrt(np.einsum("ij,ij->i", rows, rows, dtype=np.float64))


def _norm(row: Vectors) -> float:
    """As `_norms`, of one vector; to set einsum up takes as long as the sum itself."""
    wide = row.astype(np.float64)
    return math.sqrt(wide @ wide)


def scale_to_unit(rows: Vectors, name: Callable[[int], str]) -> Vectors:
    """Scale vectors to unit length; rows that have it already stay bit-identical.

    Args:
        rows: (n, dim) float32.
        name: what the row at a position is called in an error.

    Returns:
        (n, dim) float32, C-contiguous.

    Raises:
        VectorError: a row holds NaN or inf, or has length 0.
    """
    # A question, or a single write: arrays of one number take longer than the number.
    if len(rows) == 1 and abs(_norm(rows[0]) - 1) <= _UNIT_TOLERANCE:
        return np.array(rows, np.float32, order="C")
    norms = _norms(rows)
    are_unit = np.abs(norms - 1) <= _UNIT_TOLERANCE  # so that NaN is none
    if are_unit.all():
        return np.array(rows, np.float32, order="C")
    for position, found in _unusable(norms).items():
        raise VectorError(
            f"{name(position)} {found}; a finite vector that points somewhere is needed",
            field=name(position),
        )
    scale = np.where(are_unit, 1.0, norms)
    return np.ascontiguousarray(rows / scale[:, None], np.float32)


def _as_vector(
    embedding: object, dim: int, space: str, name: Callable[[int], str], position: int
) -> Vectors:
    if type(embedding) is np.ndarray and embedding.dtype == _FLOAT32 and embedding.shape == (dim,):
        return embedding
    try:
        vector = np.asarray(embedding)
        if vector.dtype.kind not in "fiu":
            raise TypeError(f"its values are of type {vector.dtype}")
    except (TypeError, ValueError) as exc:
        field = name(position)
        raise VectorError(
            f"{field} must be a sequence of {dim} floats: {_short(str(exc))}", field=field
        ) from None
    if vector.shape != (dim,):
        field = name(position)
        raise DimensionMismatchError(
            f"{field} has shape {vector.shape}, expected ({dim},) for the space of {space}: "
            "embed it with that model, or change the store's model with `kronos reindex`",
            field=field,
        )
    with np.errstate(over="ignore"):
        return vector.astype(np.float32, copy=False)


def _kind(value: object) -> str:
    """The type of a value; where it is not Python's own, with the module that it is from."""
    kind = type(value)
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"


def _short(text: str) -> str:
    return text if len(text) <= 120 else f"{text[:117]}..."
