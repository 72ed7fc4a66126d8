r"""Which values each operator takes for each field.

A value that passes is of one of Python's own types, never a subclass, and a time is in UTC.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any, NamedTuple

from kronos.errors import FilterError
from kronos.search.filters.paths import NULLABLE_FIELDS, TEXT_FIELDS, TIME_FIELDS, shown
from kronos.search.times import from_iso

MAX_PATTERN = 1000
"""Characters in a `$like` pattern. Matching may take as many steps as pattern times text."""

ORDERINGS = ("$gt", "$gte", "$lt", "$lte")
LISTS = ("$in", "$nin")
ON_TEXT = ("$contains", "$like")
OPERATORS = ("$eq", "$ne", *ORDERINGS, *LISTS, "$exists", *ON_TEXT)

_LONE_ESCAPE = re.compile(r"(?<!\\)(\\\\)*\\\Z")


def check_operand(key: str, field: str, operator: str, value: Any) -> Any:
    """Check the value of a comparison, and convert it to one of Python's own types.

    Args:
        key: the field as the caller wrote it, for errors.
        field: its full name.
        operator: one of `OPERATORS`.
        value: as the caller wrote it.

    Raises:
        FilterError: the operator is unknown, or does not take this value for this field.
    """
    if operator not in OPERATORS:
        raise FilterError(
            f"where[{shown(key)}] has the unknown operator {shown(operator)}: use one of "
            f"{', '.join(OPERATORS)}",
            field=f"where.{key}",
        )
    return _Operand(key, field, operator).check(value)


class _Operand(NamedTuple):
    """A field and an operator, which decide which values are accepted."""

    key: str
    field: str
    operator: str

    def check(self, value: Any) -> Any:
        if self.operator == "$exists":
            return self._flag(value)
        if self.operator in LISTS:
            if not isinstance(value, Sequence) or isinstance(value, str | bytes | bytearray):
                raise self._refused(f"a list, not {shown(value)}")
            return tuple(map(self._scalar, value))
        return self._pattern(value) if self.operator == "$like" else self._scalar(value)

    def _flag(self, value: Any) -> bool:
        if not isinstance(value, bool):
            raise self._refused(f"true or false, not {shown(value)}")
        return value

    def _pattern(self, value: Any) -> str:
        if not isinstance(value, str):
            raise self._refused(f"a pattern, not {shown(value)}")
        if len(value) > MAX_PATTERN:
            raise self._refused(f"at most {MAX_PATTERN} characters, not {len(value)}")
        if _LONE_ESCAPE.search(value):
            raise self._refused("no pattern that ends with a backslash that escapes nothing")
        return str(self._scalar(value))

    def _scalar(self, value: Any) -> Any:
        if self.operator in ON_TEXT and self.field in (*TIME_FIELDS, "importance"):
            raise self._refused("text fields only")
        if self.operator in ORDERINGS and (value is None or isinstance(value, bool)):
            raise self._refused(f"a number, a text or a time, not {shown(value)}")
        if value is None and self.field in NULLABLE_FIELDS and self.operator not in ON_TEXT:
            return None
        if self.field in TIME_FIELDS:
            return self._time(value)
        if self.field in TEXT_FIELDS and not isinstance(value, str):
            raise self._refused(f"text, not {shown(value)}")
        if self.field == "importance" and (
            isinstance(value, bool) or not isinstance(value, int | float)
        ):
            raise self._refused(f"a number, not {shown(value)}")
        return self._json(value)

    def _time(self, value: Any) -> datetime:
        try:
            time = from_iso(value) if isinstance(value, str) else value
            if isinstance(time, datetime) and time.utcoffset() is not None:
                return time.astimezone(timezone.utc)
        except (ValueError, OverflowError):
            pass
        raise self._refused(
            "a timezone-aware datetime or an ISO 8601 text with an offset, such as "
            f"2020-01-31T12:00:00+00:00, not {shown(value)}"
        )

    def _json(self, value: Any) -> Any:
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, str):
            if "\0" in value or any("\ud800" <= character <= "\udfff" for character in value):
                raise self._refused("no text with NUL or a lone surrogate")
            return str.__str__(value)
        if isinstance(value, float):
            if not math.isfinite(value):
                raise self._refused(f"no {value}, which JSON does not have")
            return float(value)
        if isinstance(value, int):
            if not -(2**63) <= value < 2**63:
                raise self._refused("no number that does not fit 64 bits")
            return int(value)
        raise self._refused(f"None, bool, int, float or str, not {shown(value)}")

    def _refused(self, what: str) -> FilterError:
        return FilterError(
            f"where[{shown(self.key)}] {self.operator} takes {what}", field=f"where.{self.key}"
        )
