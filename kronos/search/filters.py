"""Filters on metadata: `where` as a caller writes it, parsed once and compiled to SQL.

`{"year": {"$gte": 2020}, "lang": "en"}` means year >= 2020 and lang == "en". Values compare within
their JSON type: true is not 1 and "1" is not 1; ints and floats compare as numbers. A missing key
matches `$exists: false`, `$ne` and `$nin` alone. All that a caller hands in reaches SQL as a bound
parameter.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import and_, false, not_, or_

from kronos.db.dialect import json_type, json_value
from kronos.db.tables import memories
from kronos.errors import FilterError

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement

    from kronos.types import Where

_COMPARISONS = ("$eq", "$ne", "$gt", "$gte", "$lt", "$lte")
_OPERATORS = (*_COMPARISONS, "$in", "$nin", "$exists")
_ORDERINGS: dict[str, Callable[[Any, Any], Any]] = {
    "$gt": operator.gt,
    "$gte": operator.ge,
    "$lt": operator.lt,
    "$lte": operator.le,
}
# What SQL's JSON paths can quote: no quotes, brackets, backslashes or control characters. A dot
# goes one level down.
_NAME = re.compile(r"[^\x00-\x1f\x7f\"'\\\[\]$.\ud800-\udfff]+")


@dataclass(frozen=True, slots=True)
class Test:
    """One comparison of one metadata key."""

    path: tuple[str, ...]
    operator: str
    value: Any


def parse(where: Where) -> tuple[Test, ...]:
    """Read a filter; all of its tests must hold.

    Args:
        where: keys to values, which must be equal, or to `{operator: value}`.

    Raises:
        FilterError: an unknown operator, a key that is no path, or a value that cannot be compared.
    """
    if not isinstance(where, Mapping):
        raise FilterError(f"where must be a dict, not {type(where).__name__}", field="where")
    tests: list[Test] = []
    for key, wanted in where.items():
        path = _path(key)
        operators = wanted if isinstance(wanted, Mapping) else {"$eq": wanted}
        if not operators:
            raise FilterError(f"where[{key!r}] names no operator", field=f"where.{key}")
        for name, value in operators.items():
            _check_value(key, name, value)
            tests.append(Test(path, name, value))
    return tuple(tests)


def compile_filter(where: Where | None) -> ColumnElement[bool] | None:
    """Compile a filter to a boolean SQL expression over `memories`; None for no filter.

    Raises:
        FilterError: the filter cannot be understood.
    """
    tests = () if where is None else parse(where)
    return and_(*map(_to_sql, tests)) if tests else None


def _path(key: object) -> tuple[str, ...]:
    names = tuple(key.split(".")) if isinstance(key, str) else ()
    if not names or not all(_NAME.fullmatch(name) for name in names):
        raise FilterError(
            f"where has the key {key!r}, which is no path: use metadata keys without quotes, "
            "brackets, '$' or backslashes, and dots to go down",
            field="where",
        )
    return names


def _check_value(key: str, name: object, value: Any) -> None:
    field = f"where.{key}"
    if name not in _OPERATORS:
        raise FilterError(
            f"where[{key!r}] has the unknown operator {name!r}; known are {', '.join(_OPERATORS)}",
            field=field,
        )
    if name == "$exists":
        if not isinstance(value, bool):
            raise FilterError(f"{key} $exists takes true or false, not {value!r}", field=field)
    elif name in ("$in", "$nin"):
        if not isinstance(value, Sequence) or isinstance(value, str):
            raise FilterError(f"{key} {name} takes a list, not {value!r}", field=field)
        for member in value:
            _check_scalar(key, member, field)
    else:
        _check_scalar(key, value, field)
        if name in _ORDERINGS and (value is None or isinstance(value, bool)):
            raise FilterError(f"{key} {name} takes a number or a str, not {value!r}", field=field)


def _check_scalar(key: str, value: Any, field: str) -> None:
    if isinstance(value, str):
        if "\0" in value or any("\ud800" <= character <= "\udfff" for character in value):
            raise FilterError(
                f"{key} is compared with text that holds NUL or a lone surrogate", field=field
            )
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise FilterError(
                f"{key} is compared with {value}, which JSON does not have", field=field
            )
    elif isinstance(value, int):
        if not -(2**63) <= value < 2**63:
            raise FilterError(
                f"{key} is compared with a number that does not fit 64 bits", field=field
            )
    elif value is not None:
        raise FilterError(
            f"{key} is compared with {type(value).__name__}: use None, bool, int, float or str",
            field=field,
        )


def _to_sql(test: Test) -> ColumnElement[bool]:
    kind = json_type(memories.c.metadata, test.path)
    if test.operator == "$exists":
        return kind.is_not(None) if test.value else kind.is_(None)
    if test.operator in ("$eq", "$ne"):
        return _one_of(test.path, [test.value], wanted=test.operator == "$eq")
    if test.operator in ("$in", "$nin"):
        return _one_of(test.path, test.value, wanted=test.operator == "$in")
    found = json_value(memories.c.metadata, test.path)
    return and_(_has_type(kind, test.value), _ORDERINGS[test.operator](found, test.value))


def _one_of(path: tuple[str, ...], values: Sequence[Any], *, wanted: bool) -> ColumnElement[bool]:
    kind = json_type(memories.c.metadata, path)
    found = json_value(memories.c.metadata, path)
    equal = or_(false(), *(_equals(kind, found, value) for value in values))
    # A missing key makes its type NULL, and NULL is neither true nor false: say what it means.
    return and_(kind.is_not(None), equal) if wanted else or_(kind.is_(None), not_(equal))


def _equals(kind: Any, found: Any, value: Any) -> ColumnElement[bool]:
    if value is None or isinstance(value, bool):
        return _has_type(kind, value)
    return and_(_has_type(kind, value), found == value)


def _has_type(kind: Any, value: Any) -> ColumnElement[bool]:
    if value is None:
        names = ["null"]
    elif isinstance(value, bool):
        names = ["true" if value else "false"]
    else:
        names = ["text"] if isinstance(value, str) else ["integer", "real"]
    found: ColumnElement[bool] = kind.in_(names)
    return found
