"""Compiles filters to SQL conditions.

All values reach SQL as bound parameters. Metadata paths are quoted literals instead: a database
uses an index on an expression only where a query has that very expression. `paths` restricts the
characters of keys for this reason. `$eq`, `$in` and the orderings use an index on
`field_expression(path)`.
"""

from __future__ import annotations

import heapq
import operator
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from sqlalchemy import FromClause, and_, case, false, func, not_, or_
from sqlalchemy.sql.elements import Grouping

from kronos.db.sql import (
    has_element,
    holds_text,
    json_type,
    json_value,
    matches_pattern,
    value_list,
)
from kronos.db.tables import memories
from kronos.search.filters.expression import And, Comparison, Filter, Not, members_of
from kronos.search.filters.parser import Where, parse
from kronos.validation import to_microseconds

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement

    Condition: TypeAlias = ColumnElement[bool]

_ORDERINGS: dict[str, Callable[[Any, Any], Any]] = {
    "$gt": operator.gt,
    "$gte": operator.ge,
    "$lt": operator.lt,
    "$lte": operator.le,
}
_OPPOSITES = {"$ne": "$eq", "$nin": "$in"}

# An expression may be 1,000 levels deep, and `a AND b AND c` is as deep as it is long. The stack of
# a database's parser may hold only 100 symbols, and the symbols before an open parenthesis stay on
# it until it closes. So the members of a connective become a tree of pairs, in which the member
# that needs most of the stack joins last and comes first. `bool_op`, because SQLAlchemy flattens
# pairs of and_ or or_ into one row again.
_HELD_BEFORE_FIRST, _HELD_BEFORE_SECOND = 1, 3
_SHALLOW = 12
"""Members that need at most this many symbols keep the caller's order."""


class _Part(NamedTuple):
    """A condition, and how many symbols the parser must hold beyond those of one comparison."""

    held: int
    position: int
    condition: Condition


def compile_filter(where: Where | None, rows: FromClause = memories) -> Condition | None:
    """Compile a filter to a boolean SQL expression that is never NULL; None for no filter.

    Args:
        where: a dict or a filter.
        rows: `memories`, or another table or subquery with its columns.

    Raises:
        FilterError: the filter is malformed.
    """
    filter = parse(where)
    return None if filter is None else _compile(filter, rows, wanted=True).condition


def field_expression(path: tuple[str, ...], rows: FromClause = memories) -> ColumnElement[Any]:
    """The value at a metadata path, as filters compare it. An index must be on this expression.

    Args:
        path: as `parse_path` returns it.
        rows: `memories`, or another table or subquery with its columns.
    """
    return json_value(rows.c.metadata, path)


# -- Connectives --------------------------------------------------------------------------------


def _compile(filter: Filter, rows: FromClause, *, wanted: bool, position: int = 0) -> _Part:
    """The condition that a filter holds, or, unless `wanted`, that it does not hold."""
    if isinstance(filter, Not):
        return _compile(filter.member, rows, wanted=not wanted, position=position)
    if isinstance(filter, Comparison):
        return _Part(0, position, _compile_comparison(filter, rows, wanted=wanted))
    # De Morgan: comparisons are true or false, so a negation can move down to them. There it needs
    # no parentheses, and the comparisons that are not negated can still use an index.
    connective = "AND" if isinstance(filter, And) is wanted else "OR"
    members = enumerate(members_of(filter))
    parts = [_compile(each, rows, wanted=wanted, position=number) for number, each in members]
    return _connect(connective, parts)._replace(position=position)


def _connect(connective: str, parts: list[_Part]) -> _Part:
    heapq.heapify(parts)
    while len(parts) > 1:
        pair = heapq.heappop(parts), heapq.heappop(parts)
        heapq.heappush(parts, _pair(connective, *sorted(pair, key=_precedence)))
    return parts[0]


def _precedence(part: _Part) -> tuple[int, int]:
    return -max(part.held, _SHALLOW), part.position


def _pair(connective: str, first: _Part, second: _Part) -> _Part:
    held = max(_HELD_BEFORE_FIRST + first.held, _HELD_BEFORE_SECOND + second.held)
    pair = Grouping(first.condition).bool_op(connective)(Grouping(second.condition))
    return _Part(held, first.position, pair)


# -- Comparisons --------------------------------------------------------------------------------


def _compile_comparison(comparison: Comparison, rows: FromClause, *, wanted: bool) -> Condition:
    name = _OPPOSITES.get(comparison.operator, comparison.operator)
    condition = (_over_metadata if comparison.path else _over_record)(comparison, name, rows)
    return condition if (name == comparison.operator) is wanted else not_(condition)


def _over_record(comparison: Comparison, name: str, rows: FromClause) -> Condition:
    column, value = rows.c[comparison.field], _stored(comparison.value)
    if name == "$exists":
        return column.is_not(None) if value else column.is_(None)
    if name == "$eq":
        return column.is_not_distinct_from(value)
    if name == "$in":
        some = column.in_(value_list([each for each in value if each is not None]))
        return or_(column.is_(None), some) if None in value else and_(column.is_not(None), some)
    return and_(column.is_not(None), _compared(column, name, value))


def _over_metadata(comparison: Comparison, name: str, rows: FromClause) -> Condition:
    value, found = comparison.value, field_expression(comparison.path, rows)
    # Never NULL, which is neither true nor false.
    kind: ColumnElement[Any] = func.coalesce(json_type(rows.c.metadata, comparison.path), "")
    if name == "$exists":
        return kind != "" if value else kind == ""
    if name == "$eq":
        return _equals(kind, found, value)
    if name == "$in":
        return _one_of(kind, found, value)
    if name == "$contains":
        return _contains(kind, found, comparison, rows)
    return and_(_compared(found, name, value), kind.in_(_kinds(value)))


def _contains(
    kind: ColumnElement[Any], found: ColumnElement[Any], comparison: Comparison, rows: FromClause
) -> Condition:
    value = comparison.value
    some = has_element(
        rows.c.metadata, comparison.path, lambda type, element: _equals(type, element, value)
    )
    by_kind = {"array": some}
    if isinstance(value, str):
        by_kind["text"] = holds_text(found, value)
    return case(by_kind, value=kind, else_=false())


def _compared(found: ColumnElement[Any], name: str, value: Any) -> Condition:
    if name == "$contains":
        return holds_text(found, value)
    if name == "$like":
        return matches_pattern(found, value)
    compared: Condition = _ORDERINGS[name](found, value)
    return compared


def _equals(kind: ColumnElement[Any], found: ColumnElement[Any], value: Any) -> Condition:
    same_kind = kind.in_(_kinds(value))
    return same_kind if _is_constant(value) else and_(found == value, same_kind)


def _one_of(
    kind: ColumnElement[Any], found: ColumnElement[Any], values: Sequence[Any]
) -> Condition:
    constants = {name for each in values if _is_constant(each) for name in _kinds(each)}
    others = [each for each in values if not _is_constant(each)]
    kinds = {name for each in others for name in _kinds(each)}
    # One list of numbers and texts, so that one index lookup serves it: in SQL no number equals a
    # text.
    equal = [and_(found.in_(value_list(others)), kind.in_(sorted(kinds)))] if others else []
    same = [kind.in_(sorted(constants))] if constants else []
    return or_(false(), *equal, *same)


def _is_constant(value: Any) -> bool:
    """Whether the JSON type of a value determines the value."""
    return value is None or isinstance(value, bool)


def _kinds(value: Any) -> tuple[str, ...]:
    """The JSON types of the values that may equal a value."""
    if value is None:
        return ("null",)
    if isinstance(value, bool):
        return ("true" if value else "false",)
    return ("text",) if isinstance(value, str) else ("integer", "real")


def _stored(value: Any) -> Any:
    """A value as the columns hold it: times in microseconds since 1970 UTC, lists as lists."""
    if isinstance(value, tuple):
        return [_stored(each) for each in value]
    return to_microseconds(value) if isinstance(value, datetime) else value
