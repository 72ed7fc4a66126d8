"""A JSON Schema of the JSON form of filters, for HTTP and MCP.

The schema accepts all that the parser accepts. The parser checks more: sizes, nesting, escapes in
patterns, offsets of times, and numbers of more than 64 bits.
"""

from __future__ import annotations

import copy
from typing import Any

from kronos.search.filters.operands import LISTS, MAX_PATTERN, ON_TEXT, OPERATORS, ORDERINGS
from kronos.search.filters.parser import CONNECTIVES
from kronos.search.filters.paths import (
    NULLABLE_FIELDS,
    RECORD_FIELDS,
    TEXT_FIELDS,
    TIME_FIELDS,
)

_TEXT = {"type": "string"}
_TIME = {"type": "string", "format": "date-time", "description": "ISO 8601 with an offset."}
_NUMBER = {"type": "number"}
_SCALAR = {"type": ["string", "number", "boolean", "null"]}
_ORDERED = {"type": ["string", "number"]}
_PATTERN = {
    "type": "string",
    "maxLength": MAX_PATTERN,
    "description": "% is any run of characters, _ is one, a backslash escapes.",
}
# Metadata keys: see `kronos.search.filters.paths`.
_NAME = r"[^\u0000-\u001f\u007f\"'\\\[\]$.]+"
_PATH = rf"^{_NAME}(\.{_NAME})*$"


def filter_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of filters, as `where=` and `Filter.from_dict` take them.

    Returns:
        A new dict, which the caller may change.
    """
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Filter",
        "description": "Which memories to take: those that meet all entries. {} takes all.",
        "$ref": "#/$defs/filter",
        "$defs": {
            "filter": _filter(),
            "filters": {"type": "array", "minItems": 1, "items": _inner_filter()},
            **_comparisons("metadata", equal=_SCALAR, element=_SCALAR, ordered=_ORDERED),
            **_comparisons("text", equal=_TEXT, element=_TEXT, ordered=_TEXT),
            **_comparisons("text_or_null", equal=_or_null(_TEXT), element=_TEXT, ordered=_TEXT),
            **_comparisons("time", equal=_TIME, ordered=_TIME),
            **_comparisons("time_or_null", equal=_or_null(_TIME), ordered=_TIME),
            **_comparisons("number", equal=_NUMBER, ordered=_NUMBER),
        },
    }
    return copy.deepcopy(schema)


def _filter() -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {
            "$and": _ref("filters"),
            "$or": _ref("filters"),
            "$not": _inner_filter(),
            **{name: _ref(_kind(name)) for name in RECORD_FIELDS},
        },
        "propertyNames": {"anyOf": [{"enum": [*CONNECTIVES]}, {"pattern": _PATH}]},
        "additionalProperties": _ref("metadata"),
    }


def _inner_filter() -> dict[str, Any]:
    return {**_ref("filter"), "minProperties": 1}


def _kind(field: str) -> str:
    """The definition that describes a field of the record."""
    kind = "text" if field in TEXT_FIELDS else "time" if field in TIME_FIELDS else "number"
    return f"{kind}_or_null" if field in NULLABLE_FIELDS else kind


def _comparisons(
    kind: str,
    *,
    equal: dict[str, Any],
    ordered: dict[str, Any],
    element: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Two definitions: what a field of a kind is compared with, and with which operators.

    Args:
        kind: the name of the first definition.
        equal: the values that the field may equal.
        ordered: the values that the field may be above or below.
        element: the values that the field may contain; None: operators on text are refused.
    """
    operators = {
        **dict.fromkeys(OPERATORS, equal),
        **dict.fromkeys(ORDERINGS, ordered),
        **{name: {"type": "array", "items": equal} for name in LISTS},
        "$exists": {"type": "boolean"},
        "$not": _ref(f"{kind}_operators"),
        **({"$contains": element, "$like": _PATTERN} if element else dict.fromkeys(ON_TEXT, False)),
    }
    return {
        kind: {"anyOf": [equal, _ref(f"{kind}_operators")]},
        f"{kind}_operators": {
            "type": "object",
            "minProperties": 1,
            "properties": operators,
            "additionalProperties": False,
        },
    }


def _or_null(value: dict[str, Any]) -> dict[str, Any]:
    return {**value, "type": [value["type"], "null"]}


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": f"#/$defs/{name}"}
