r"""Filters: `where` as a caller writes it, read into one tree of tests, and compiled to SQL.

A dict and the builder `F` are two ways to write the same tree:

    {"year": {"$gte": 2020}, "$or": [{"lang": "en"}, {"tags": {"$contains": "x"}}]}
    (F.year >= 2020) & ((F.lang == "en") | F.tags.contains("x"))

**Fields.** id, namespace, content, importance, created_at, updated_at, expires_at and parent_id are
the record's own. Every other key is a path into the metadata, with dots to go down into objects;
"metadata.id" is the metadata key "id". Times are compared with timezone-aware datetimes or ISO 8601
texts with an offset, importance with numbers, the other four with text; a record's field is
compared with nothing else, except that parent_id and expires_at may be None.

**Tests** are true or false, never unknown, and `$not` is the exact opposite of what it stands on.

- `$eq` (a plain value means it), `$in`: equal within the JSON type. true is not 1 and "1" is not 1;
  ints and floats are numbers and compare exactly. No value equals an array, an object, or a key
  that is missing; None equals null. `$ne` is not `$eq`, and `$nin` not `$in`.
- `$gt`, `$gte`, `$lt`, `$lte`: numbers with numbers, text with text by code point; false for all
  else.
- `$exists`: whether anything stands there, null included. Of a record's field: whether it is not
  None.
- `$contains`: some element of an array equals the value within its type; a text holds the text,
  case and all. False for all else.
- `$like`: a text matches the pattern as a whole. `%` is any run of characters, `_` is one, a
  backslash takes the next one as it is; A-Z match a-z, other letters only themselves. U+FFFE and
  U+FFFF count as U+FFFD here.

A missing key therefore meets `$exists: false`, `$ne`, `$nin` and the `$not` of what it fails, and
nothing else.

**Promises.** A tree that exists is valid: its constructors refuse the rest with `FilterError`. All
values reach SQL as bound parameters. Paths stand there as quoted literals, because SQLite uses an
index on an expression only where it reads that very expression; the characters of keys are
restricted for this. `$eq`, `$in` and the orderings use an index on `field_expression(path)`.
"""

from __future__ import annotations

import heapq
import json
import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn, TypeAlias

from sqlalchemy import FromClause, and_, case, false, func, not_, or_
from sqlalchemy.sql.elements import Grouping

from kronos.concurrency.pieces import to_json
from kronos.db.dialect import has_element, holds_text, json_list, json_type, json_value
from kronos.db.tables import memories
from kronos.errors import FilterError
from kronos.validation import to_microseconds

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement

    Condition: TypeAlias = ColumnElement[bool]

MAX_DEPTH = 32
"""How deep connectives may stand in each other."""
MAX_TESTS = 1000
"""Tests in one filter."""
MAX_PATTERN = 1000
"""Characters of a `$like` pattern: matching may take their number times the text's."""

CONNECTIVES = ("$and", "$or", "$not")
_ORDERINGS: dict[str, Callable[[Any, Any], Any]] = {
    "$gt": operator.gt,
    "$gte": operator.ge,
    "$lt": operator.lt,
    "$lte": operator.le,
}
_OPPOSITES = {"$ne": "$eq", "$nin": "$in"}
_LISTS = ("$in", "$nin")
_ON_TEXT = ("$contains", "$like")
OPERATORS = ("$eq", "$ne", *_ORDERINGS, *_LISTS, "$exists", *_ON_TEXT)

_TEXTS = ("id", "namespace", "content", "parent_id")
_TIMES = ("created_at", "updated_at", "expires_at")
_MAY_BE_NONE = ("parent_id", "expires_at")
RECORD_FIELDS = (*_TEXTS, "importance", *_TIMES)
"""The fields that are no metadata."""
_METADATA = "metadata."
# What SQL's JSON paths can quote: no quotes, brackets, backslashes or control characters. A dot
# goes one level down.
_NAME = re.compile(r"[^\x00-\x1f\x7f\"'\\\[\]$.\ud800-\udfff]+")
_JSON = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))
_LONE_ESCAPE = re.compile(r"(?<!\\)(\\\\)*\\\Z")


# -- The tree -----------------------------------------------------------------------------------


class Filter:
    """A condition that a memory meets or not. Combine filters with `&`, `|` and `~`."""

    __slots__ = ()

    def __and__(self, other: Filter) -> Filter:
        return And((self, other)) if isinstance(other, Filter) else NotImplemented

    def __or__(self, other: Filter) -> Filter:
        return Or((self, other)) if isinstance(other, Filter) else NotImplemented

    def __invert__(self) -> Filter:
        return Not(self)

    def __bool__(self) -> NoReturn:
        raise TypeError(
            "a filter is neither true nor false by itself: use & | ~ in the place of and, or, not, "
            "and parentheses around comparisons"
        )

    # Not the dataclasses' own: to them a test for 1 equals a test for True.
    def __eq__(self, other: object) -> bool:
        return canonical(self) == canonical(other) if isinstance(other, Filter) else NotImplemented

    def __hash__(self) -> int:
        return hash(canonical(self))


@dataclass(frozen=True, slots=True, eq=False)
class Comparison(Filter):
    """One comparison of one field."""

    field: str
    """One of `RECORD_FIELDS`, or "metadata." and a path; "metadata." may be left out on entry."""
    operator: str
    """One of `OPERATORS`."""
    value: Any
    """None, bool, int, float, str, a UTC datetime for times, or a tuple of these."""

    def __post_init__(self) -> None:
        field = _full_name(self.field)
        value = _Operand(self.field, field, self.operator).check(self.value)
        object.__setattr__(self, "field", field)
        object.__setattr__(self, "value", value)

    @property
    def path(self) -> tuple[str, ...]:
        """The path into the metadata; empty for a field of the record."""
        return () if self.field in RECORD_FIELDS else tuple(self.field.split(".")[1:])


@dataclass(frozen=True, slots=True, eq=False)
class And(Filter):
    """All of its members hold. What is an `And` itself among them is taken apart."""

    members: tuple[Filter, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "members", _flat(And, self.members))
        _check_size(self)


@dataclass(frozen=True, slots=True, eq=False)
class Or(Filter):
    """At least one of its members holds. What is an `Or` itself among them is taken apart."""

    members: tuple[Filter, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "members", _flat(Or, self.members))
        _check_size(self)


@dataclass(frozen=True, slots=True, eq=False)
class Not(Filter):
    """Its member does not hold."""

    member: Filter

    def __post_init__(self) -> None:
        _check_is_filter(self.member)
        _check_size(self)


def _flat(kind: type[And] | type[Or], members: Iterable[Filter]) -> tuple[Filter, ...]:
    flat: list[Filter] = []
    for member in members:
        _check_is_filter(member)
        flat.extend(member.members if isinstance(member, kind) else (member,))
    if not flat:
        raise FilterError(f"{kind.__name__} takes at least one filter", field="where")
    return tuple(flat)


def _check_is_filter(member: object) -> None:
    if not isinstance(member, Filter):
        raise FilterError(f"a filter was expected, not {type(member).__name__}", field="where")


def _check_size(filter: Filter) -> None:
    depth, tests = _measure(filter)
    if depth > MAX_DEPTH:
        raise _too_deep()
    if tests > MAX_TESTS:
        raise FilterError(
            f"where holds more than {MAX_TESTS} tests: use $in for many values of one field",
            field="where",
        )


def _measure(filter: Filter) -> tuple[int, int]:
    """How deep it is, and how many tests it holds."""
    members = _members(filter)
    if not members:
        return 0, 1
    depths, tests = zip(*map(_measure, members), strict=True)
    return 1 + max(depths), sum(tests)


def _members(filter: Filter) -> tuple[Filter, ...]:
    if isinstance(filter, And | Or):
        return filter.members
    return (filter.member,) if isinstance(filter, Not) else ()


def _too_deep() -> FilterError:
    return FilterError(f"where is nested deeper than {MAX_DEPTH} levels", field="where")


def canonical(filter: Filter | None) -> str:
    """Write a filter as a text that is equal for the same tests in the same order, and only then.

    1, 1.0, True and "1" differ in it, so it serves as the key of a cache.
    """
    return to_json(_as_json(filter), _JSON)


def _as_json(filter: Filter | None) -> Any:
    if isinstance(filter, Comparison):
        return [filter.operator, filter.field, _stored(filter)]
    if isinstance(filter, Not):
        return ["$not", _as_json(filter.member)]
    if isinstance(filter, And | Or):
        members = [_as_json(member) for member in filter.members]
        name = "$and" if isinstance(filter, And) else "$or"
        return [name, *members] if len(members) > 1 else members[0]
    return None


# -- Fields and values --------------------------------------------------------------------------


def parse_path(key: object) -> tuple[str, ...]:
    """Read a key as a path into the metadata: "user.name" and "metadata.user.name" are the same.

    Raises:
        FilterError: it is no path, or a field of the record.
    """
    if isinstance(key, str) and key in RECORD_FIELDS:
        raise FilterError(
            f"{key} is a field of the record: the metadata key is {_METADATA}{key}",
            field=f"where.{key}",
        )
    names = tuple(key.removeprefix(_METADATA).split(".")) if isinstance(key, str) else ()
    if not names or not all(_NAME.fullmatch(name) for name in names):
        raise FilterError(
            f"where has the key {_shown(key)}, which is no path: use metadata keys without quotes, "
            "brackets, '$' or backslashes, and dots to go down",
            field="where",
        )
    return names


def field_expression(path: tuple[str, ...], rows: FromClause = memories) -> ColumnElement[Any]:
    """The value at a path of the metadata, as filters compare it: what an index must be made on.

    Args:
        path: as `parse_path` returns it.
        rows: `memories`, or what has its columns.
    """
    return json_value(rows.c.metadata, path)


def _full_name(key: object) -> str:
    if isinstance(key, str) and key in RECORD_FIELDS:
        return key
    return _METADATA + ".".join(parse_path(key))


class _Operand(NamedTuple):
    """What a value is compared with, and by which operator: it decides which values are taken."""

    key: str
    """The field as the caller wrote it."""
    field: str
    operator: str

    def check(self, value: Any) -> Any:
        """Check a value, and give it its own type in the place of a subclass."""
        if self.operator not in OPERATORS:
            raise self._refused(
                f"the unknown operator {_shown(self.operator)}; known are {', '.join(OPERATORS)}",
                "has",
            )
        if self.operator == "$exists":
            if not isinstance(value, bool):
                raise self._refused(f"true or false, not {_shown(value)}")
            return value
        if self.operator in _LISTS:
            if not isinstance(value, Sequence) or isinstance(value, str | bytes | bytearray):
                raise self._refused(f"a list, not {_shown(value)}")
            return tuple(map(self._scalar, value))
        if self.operator == "$like":
            return self._pattern(value)
        return self._scalar(value)

    def _pattern(self, value: Any) -> str:
        if not isinstance(value, str):
            raise self._refused(f"a pattern, not {_shown(value)}")
        if len(value) > MAX_PATTERN:
            raise self._refused(f"at most {MAX_PATTERN} characters, not {len(value)}")
        if _LONE_ESCAPE.search(value):
            raise self._refused("no pattern whose last backslash stands before nothing")
        return str(self._scalar(value))

    def _scalar(self, value: Any) -> Any:
        if self.operator in _ON_TEXT and self.field in (*_TIMES, "importance"):
            raise self._refused("text alone")
        if self.operator in _ORDERINGS and (value is None or isinstance(value, bool)):
            raise self._refused(f"a number, a text or a time, not {_shown(value)}")
        if value is None and self.field in _MAY_BE_NONE:
            return None
        if self.field in _TIMES:
            return self._time(value)
        if self.field in _TEXTS and not isinstance(value, str):
            raise self._refused(f"text, not {_shown(value)}")
        if self.field == "importance" and (
            isinstance(value, bool) or not isinstance(value, int | float)
        ):
            raise self._refused(f"a number, not {_shown(value)}")
        return self._json(value)

    def _time(self, value: Any) -> datetime:
        try:
            # Python 3.10 does not know the Z.
            time = _from_iso(value) if isinstance(value, str) else value
            if isinstance(time, datetime) and time.utcoffset() is not None:
                return time.astimezone(timezone.utc)
        except (ValueError, OverflowError):
            pass
        raise self._refused(
            "a timezone-aware datetime or an ISO 8601 text with an offset, such as "
            f"2020-01-31T12:00:00+00:00, not {_shown(value)}"
        )

    def _json(self, value: Any) -> Any:
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, str):
            if "\0" in value or any("\ud800" <= character <= "\udfff" for character in value):
                raise self._refused("no text that holds NUL or a lone surrogate")
            return str.__str__(value)
        if isinstance(value, float):
            if not math.isfinite(value):
                raise self._refused(f"no {value}, which JSON does not have")
            return float(value)
        if isinstance(value, int):
            if not -(2**63) <= value < 2**63:
                raise self._refused("no number that does not fit 64 bits")
            return int(value)
        raise self._refused(f"None, bool, int, float or str, not {_shown(value)}")

    def _refused(self, why: str, verb: str = "takes") -> FilterError:
        name = "" if verb == "has" else f" {self.operator}"
        return FilterError(
            f"where[{_shown(self.key)}]{name} {verb} {why}", field=f"where.{self.key}"
        )


def _from_iso(text: str) -> datetime:
    return datetime.fromisoformat(text[:-1] + "+00:00" if text.endswith(("Z", "z")) else text)


def _shown(value: object) -> str:
    """What an error says of a value: never much."""
    if isinstance(value, str):
        return repr(value) if len(value) <= 100 else f"{value[:97]!r}..."
    return "None" if value is None else type(value).__name__


# -- Dicts --------------------------------------------------------------------------------------


Where: TypeAlias = Mapping[str, Any] | Filter
"""A filter as callers hand it in: a dict, or built with `F`."""


def parse(where: Mapping[str, Any] | Filter | None) -> Filter | None:
    """Read a filter in either form; None for None and for an empty dict, which filter nothing.

    Raises:
        FilterError: it means nothing; its `field` names the place.
    """
    if where is None or isinstance(where, Filter):
        return where
    if not isinstance(where, Mapping):
        raise FilterError(f"where must be a dict or a filter, not {_shown(where)}", field="where")
    return _read(where, 0) if where else None


def _read(where: object, depth: int) -> Filter:
    """Read a dict that stands in so many connectives."""
    if isinstance(where, Filter):
        return where
    if not isinstance(where, Mapping) or not where:
        raise FilterError(
            "a filter inside of another one must be a dict that holds something", field="where"
        )
    return _joined(And, [_read_entry(key, value, depth) for key, value in where.items()])


def _read_entry(key: Any, wanted: Any, depth: int) -> Filter:
    if isinstance(key, str) and key.startswith("$"):
        return _read_connective(key, wanted, depth + 1)
    if isinstance(wanted, Mapping):
        return _read_operators(key, wanted, depth)
    return Comparison(key, "$eq", wanted)


def _read_connective(name: str, wanted: Any, depth: int) -> Filter:
    # Dicts may hold themselves: what is too deep is never walked.
    if depth > MAX_DEPTH:
        raise _too_deep()
    if name not in CONNECTIVES:
        raise FilterError(
            f"where has the unknown connective {_shown(name)}; known are {', '.join(CONNECTIVES)} "
            "(metadata keys hold no '$')",
            field=f"where.{name}",
        )
    if name == "$not":
        return Not(_read(wanted, depth))
    if not isinstance(wanted, Sequence) or isinstance(wanted, str | bytes) or not wanted:
        raise FilterError(
            f"{name} takes a list of filters that is not empty", field=f"where.{name}"
        )
    return _joined(And if name == "$and" else Or, [_read(each, depth) for each in wanted])


def _read_operators(key: Any, wanted: object, depth: int) -> Filter:
    """Read the tests of one field, which must all hold."""
    if depth > MAX_DEPTH:
        raise _too_deep()
    if not isinstance(wanted, Mapping) or not wanted:
        _full_name(key)
        raise FilterError(f"where[{_shown(key)}] names no operator", field=f"where.{key}")
    return _joined(
        And,
        [
            Not(_read_operators(key, value, depth + 1))
            if name == "$not"
            else Comparison(key, name, value)
            for name, value in wanted.items()
        ],
    )


def _joined(kind: type[And] | type[Or], members: list[Filter]) -> Filter:
    return members[0] if len(members) == 1 else kind(tuple(members))


# -- The builder --------------------------------------------------------------------------------


class Field:
    """A field of a memory; comparing it makes a `Filter`.

    A key that is no Python name, begins with an underscore, or is called as a method of this class
    is reached by brackets: `F["a key"]`, `F.user["like"]`.
    """

    __slots__ = ("_key",)

    def __init__(self, key: str) -> None:
        self._key = key

    def __getattr__(self, name: str) -> Field:
        # No Python protocol that asks for a special name is to find a field.
        if name.startswith("_"):
            raise AttributeError(f"no field {name!r}; for a metadata key write [{name!r}]")
        return self[name]

    def __getitem__(self, key: str) -> Field:
        return Field(f"{self._key}.{_checked_key(key)}")

    def __repr__(self) -> str:
        return f"F[{self._key!r}]"

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, value: object) -> Filter:  # type: ignore[override]
        return Comparison(self._key, "$eq", value)

    def __ne__(self, value: object) -> Filter:  # type: ignore[override]
        return Comparison(self._key, "$ne", value)

    def __gt__(self, value: Any) -> Filter:
        return Comparison(self._key, "$gt", value)

    def __ge__(self, value: Any) -> Filter:
        return Comparison(self._key, "$gte", value)

    def __lt__(self, value: Any) -> Filter:
        return Comparison(self._key, "$lt", value)

    def __le__(self, value: Any) -> Filter:
        return Comparison(self._key, "$lte", value)

    def __contains__(self, value: object) -> NoReturn:
        raise TypeError(f"`in` asks Python, not the store: use {self!r}.contains(...)")

    def __bool__(self) -> NoReturn:
        raise TypeError(f"a field is neither true nor false: use {self!r}.exists()")

    def in_(self, values: Sequence[Any]) -> Filter:
        """It equals one of the values."""
        return Comparison(self._key, "$in", values)

    def not_in(self, values: Sequence[Any]) -> Filter:
        """It equals none of the values, or is missing."""
        return Comparison(self._key, "$nin", values)

    def exists(self, wanted: bool = True) -> Filter:
        """It is there; with False: it is missing."""
        return Comparison(self._key, "$exists", wanted)

    def contains(self, value: Any) -> Filter:
        """It is an array with an element that equals the value, or a text that holds it."""
        return Comparison(self._key, "$contains", value)

    def like(self, pattern: str) -> Filter:
        r"""It is a text that matches: `%` is any run, `_` one character, a backslash escapes."""
        return Comparison(self._key, "$like", pattern)


class Fields:
    """All fields of a memory, by name: `F.year`, `F.user.name`, `F["a key"]`; see `Field`."""

    __slots__ = ()

    def __getattr__(self, name: str) -> Field:
        if name.startswith("_"):
            raise AttributeError(f"no field {name!r}; for a metadata key write [{name!r}]")
        return Field(name)

    def __getitem__(self, key: str) -> Field:
        return Field(_checked_key(key))


F: Final = Fields()
"""Where filters begin that are written in Python: `F.year >= 2020`."""


def _checked_key(key: object) -> str:
    # Also what ends Python's attempts to walk through a field by position.
    if not isinstance(key, str):
        raise FilterError(f"a field is named by a str, not {_shown(key)}", field="where")
    return key


# -- SQL ----------------------------------------------------------------------------------------

# An expression may be 1,000 deep, and `a AND b AND c` is as deep as it is long. SQLite's parser
# holds at most 100 symbols (before 3.46), and what stands before an open parenthesis is held until
# it closes. So a row of members becomes a tree of pairs: what needs most of the parser joins last
# and stands first. `bool_op`, because SQLAlchemy makes one row again of pairs of and_ or of or_.
_HELD_BEFORE_FIRST, _HELD_BEFORE_SECOND = 1, 3
_SHALLOW = 12
"""Members that need no more keep the caller's order: SQLite tries them in it."""


class _Part(NamedTuple):
    """A condition, and what the parser must hold to read it, beyond what one test takes."""

    held: int
    place: int
    condition: Condition


def compile_filter(
    where: Mapping[str, Any] | Filter | None, rows: FromClause = memories
) -> Condition | None:
    """Compile a filter to a boolean SQL expression, which is never NULL; None for no filter.

    Args:
        where: a dict or a filter.
        rows: what the expression is over: `memories`, or what has its columns.

    Raises:
        FilterError: the filter cannot be understood.
    """
    filter = parse(where)
    return None if filter is None else _compile(filter, rows, wanted=True).condition


def _compile(filter: Filter, rows: FromClause, *, wanted: bool, place: int = 0) -> _Part:
    """The condition that a filter holds, or that it does not."""
    if isinstance(filter, Not):
        return _compile(filter.member, rows, wanted=not wanted, place=place)
    if isinstance(filter, Comparison):
        return _Part(0, place, _compile_test(filter, rows, wanted=wanted))
    # De Morgan: tests are true or false, so a negation may go down to them. There it costs no
    # parentheses, and leaves the tests that are not negated to an index.
    connective = "AND" if isinstance(filter, And) is wanted else "OR"
    members = enumerate(_members(filter))
    parts = [_compile(each, rows, wanted=wanted, place=number) for number, each in members]
    return _connect(connective, parts)._replace(place=place)


def _connect(connective: str, parts: list[_Part]) -> _Part:
    heapq.heapify(parts)
    while len(parts) > 1:
        pair = heapq.heappop(parts), heapq.heappop(parts)
        heapq.heappush(parts, _pair(connective, *sorted(pair, key=_precedence)))
    return parts[0]


def _precedence(part: _Part) -> tuple[int, int]:
    return -max(part.held, _SHALLOW), part.place


def _pair(connective: str, first: _Part, second: _Part) -> _Part:
    held = max(_HELD_BEFORE_FIRST + first.held, _HELD_BEFORE_SECOND + second.held)
    pair = Grouping(first.condition).bool_op(connective)(Grouping(second.condition))
    return _Part(held, first.place, pair)


def _compile_test(test: Comparison, rows: FromClause, *, wanted: bool) -> Condition:
    name = _OPPOSITES.get(test.operator, test.operator)
    condition = (_over_metadata if test.path else _over_record)(test, name, rows)
    return condition if (name == test.operator) is wanted else not_(condition)


def _over_record(test: Comparison, name: str, rows: FromClause) -> Condition:
    column, value = rows.c[test.field], _stored(test)
    if name == "$exists":
        return column.is_not(None) if value else column.is_(None)
    if name == "$eq":
        return column.is_not_distinct_from(value)
    if name == "$in":
        some = column.in_(json_list([each for each in value if each is not None]))
        return or_(column.is_(None), some) if None in value else and_(column.is_not(None), some)
    return and_(column.is_not(None), _compared(column, name, value))


def _over_metadata(test: Comparison, name: str, rows: FromClause) -> Condition:
    value, found = test.value, field_expression(test.path, rows)
    # No NULL: it would be neither true nor false.
    kind: ColumnElement[Any] = func.coalesce(json_type(rows.c.metadata, test.path), "")
    if name == "$exists":
        return kind != "" if value else kind == ""
    if name == "$eq":
        return _equals(kind, found, value)
    if name == "$in":
        return _one_of(kind, found, value)
    if name != "$contains":
        return and_(_compared(found, name, value), kind.in_(_kinds(value)))
    some = has_element(
        rows.c.metadata, test.path, lambda type, element: _equals(type, element, value)
    )
    by_kind = {"array": some}
    if isinstance(value, str):
        by_kind["text"] = holds_text(found, value)
    return case(by_kind, value=kind, else_=false())


def _compared(found: ColumnElement[Any], name: str, value: Any) -> Condition:
    if name == "$contains":
        return holds_text(found, value)
    if name == "$like":
        return found.like(value, escape="\\")
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
    # In SQL no number equals a text. One list of both, so that an index answers it.
    equal = [and_(found.in_(json_list(others)), kind.in_(sorted(kinds)))] if others else []
    same = [kind.in_(sorted(constants))] if constants else []
    return or_(false(), *equal, *same)


def _is_constant(value: Any) -> bool:
    """Whether its JSON type is all there is to it."""
    return value is None or isinstance(value, bool)


def _kinds(value: Any) -> tuple[str, ...]:
    """The JSON types of what may equal a value."""
    if value is None:
        return ("null",)
    if isinstance(value, bool):
        return ("true" if value else "false",)
    return ("text",) if isinstance(value, str) else ("integer", "real")


def _stored(test: Comparison) -> Any:
    """A test's value as the columns hold it: times in microseconds since 1970 UTC."""
    if isinstance(test.value, tuple):
        return [_as_stored(each) for each in test.value]
    return _as_stored(test.value)


def _as_stored(value: Any) -> Any:
    return to_microseconds(value) if isinstance(value, datetime) else value
