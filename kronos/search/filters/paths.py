"""The fields of a memory, by name: the record's own fields, and paths into the metadata."""

from __future__ import annotations

import re

from kronos.errors import FilterError

TEXT_FIELDS = ("id", "namespace", "content", "parent_id")
TIME_FIELDS = ("created_at", "updated_at", "expires_at")
NULLABLE_FIELDS = ("parent_id", "expires_at")
"""The record's fields that may be None."""
RECORD_FIELDS = (*TEXT_FIELDS, "importance", *TIME_FIELDS)
"""The record's own fields. Every other name is a path into the metadata."""
METADATA = "metadata."
"""The prefix that makes a name a path into the metadata, whatever follows it."""

# The characters that SQL's JSON paths can quote: no quotes, brackets, backslashes or control
# characters. A dot separates two levels.
_NAME = re.compile(r"[^\x00-\x1f\x7f\"'\\\[\]$.\ud800-\udfff]+")


def parse_path(key: object) -> tuple[str, ...]:
    """Read a key as a path into the metadata: "user.name" and "metadata.user.name" are the same.

    Raises:
        FilterError: the key is malformed, or names a field of the record.
    """
    if isinstance(key, str) and key in RECORD_FIELDS:
        raise FilterError(
            f"{key} is a field of the record: the metadata key is {METADATA}{key}",
            field=f"where.{key}",
        )
    names = tuple(key.removeprefix(METADATA).split(".")) if isinstance(key, str) else ()
    if not names or not all(_NAME.fullmatch(name) for name in names):
        raise FilterError(
            f"where has the malformed key {shown(key)}: use metadata keys without quotes, "
            "brackets, '$' or backslashes, and dots between levels",
            field="where",
        )
    return names


def full_name(key: object) -> str:
    """Name a field in full: a field of the record as it is, a path with "metadata." before it.

    Raises:
        FilterError: the key is malformed.
    """
    if isinstance(key, str) and key in RECORD_FIELDS:
        return key
    return METADATA + ".".join(parse_path(key))


def short_name(name: str) -> str:
    """Drop "metadata." from a full name, unless the rest would then name another field."""
    short = name.removeprefix(METADATA)
    is_ambiguous = short in RECORD_FIELDS or short.startswith(METADATA)
    return name if is_ambiguous else short


def shown(value: object) -> str:
    """Show a value in an error: a text in quotes, cut if long; of other values the type."""
    if isinstance(value, str):
        return repr(value) if len(value) <= 100 else f"{value[:97]!r}..."
    return "None" if value is None else type(value).__name__
