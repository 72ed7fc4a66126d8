"""Filters as values: what a program builds with `F`, and what a parsed dict becomes.

A filter that exists is valid: constructors raise `FilterError` for anything else.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, NoReturn

from kronos.concurrency.large_values import to_json
from kronos.errors import FilterError
from kronos.search.filters.operands import check_operand
from kronos.search.filters.paths import RECORD_FIELDS, full_name, short_name, shown

MAX_DEPTH = 32
"""Levels of connectives inside each other."""
MAX_COMPARISONS = 1000
"""Comparisons in one filter."""

_JSON = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))
_FEW = 1000
"""The weight up to which a filter is encoded at once, and not in pieces."""


class Filter:
    """A condition that each memory meets or does not. Combine filters with `&`, `|` and `~`.

    Two filters are equal if they make the same comparisons in the same order.
    """

    __slots__ = ()

    def to_dict(self) -> dict[str, Any]:
        """The filter in its JSON form, which `where=` and `from_dict` take; times are ISO 8601.

        Example:
            >>> ((F.year >= 2020) & (F.lang == "en")).to_dict()
            {'year': {'$gte': 2020}, 'lang': 'en'}
        """
        raise NotImplementedError

    @staticmethod
    def from_dict(where: Mapping[str, Any]) -> Filter:
        """Read a filter from its JSON form; `filter_schema` describes that form.

        Raises:
            FilterError: the dict is malformed or empty; the error's `field` names the place.
        """
        # The parser makes instances of the classes of this module.
        from kronos.search.filters.parser import parse_dict

        return parse_dict(where)

    def __and__(self, other: Filter) -> Filter:
        return And((self, other)) if isinstance(other, Filter) else NotImplemented

    def __or__(self, other: Filter) -> Filter:
        return Or((self, other)) if isinstance(other, Filter) else NotImplemented

    def __invert__(self) -> Filter:
        return Not(self)

    def __bool__(self) -> NoReturn:
        raise TypeError(
            "a filter is neither true nor false: use & | ~ instead of and, or, not, and "
            "parentheses around comparisons"
        )

    # Not the dataclasses' own equality, in which a comparison with 1 equals one with True.
    def __eq__(self, other: object) -> bool:
        return canonical(self) == canonical(other) if isinstance(other, Filter) else NotImplemented

    def __hash__(self) -> int:
        return hash(canonical(self))


@dataclass(frozen=True, slots=True, eq=False)
class Comparison(Filter):
    """A comparison of one field with a value."""

    field: str
    """One of `RECORD_FIELDS`, or "metadata." and a path; callers may leave "metadata." out."""
    operator: str
    """One of `OPERATORS`."""
    value: Any
    """None, bool, int, float, str, a UTC datetime for times, or a tuple of these."""

    def __post_init__(self) -> None:
        field = full_name(self.field)
        value = check_operand(self.field, field, self.operator, self.value)
        object.__setattr__(self, "field", field)
        object.__setattr__(self, "value", value)

    @property
    def path(self) -> tuple[str, ...]:
        """The path into the metadata; empty for a field of the record."""
        return () if self.field in RECORD_FIELDS else tuple(self.field.split(".")[1:])

    def to_dict(self) -> dict[str, Any]:
        """See `Filter.to_dict`."""
        many = isinstance(self.value, tuple)
        value = [_as_json(each) for each in self.value] if many else _as_json(self.value)
        return {short_name(self.field): value if self.operator == "$eq" else {self.operator: value}}


def _as_json(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else value


@dataclass(frozen=True, slots=True, eq=False)
class And(Filter):
    """All members hold. Members that are an `And` are replaced by their own members."""

    members: tuple[Filter, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "members", _flat(And, self.members))
        _check_size(self)

    def to_dict(self) -> dict[str, Any]:
        """See `Filter.to_dict`. Members with different keys share one dict."""
        dicts = [member.to_dict() for member in self.members]
        merged = {key: value for each in dicts for key, value in each.items()}
        return merged if len(merged) == sum(map(len, dicts)) else {"$and": dicts}


@dataclass(frozen=True, slots=True, eq=False)
class Or(Filter):
    """At least one member holds. Members that are an `Or` are replaced by their own members."""

    members: tuple[Filter, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "members", _flat(Or, self.members))
        _check_size(self)

    def to_dict(self) -> dict[str, Any]:
        """See `Filter.to_dict`."""
        dicts = [member.to_dict() for member in self.members]
        return {"$or": dicts} if len(dicts) > 1 else dicts[0]


@dataclass(frozen=True, slots=True, eq=False)
class Not(Filter):
    """The member does not hold."""

    member: Filter

    def __post_init__(self) -> None:
        _check_is_filter(self.member)
        _check_size(self)

    def to_dict(self) -> dict[str, Any]:
        """See `Filter.to_dict`."""
        return {"$not": self.member.to_dict()}


def members_of(filter: Filter) -> tuple[Filter, ...]:
    """The filters that a filter joins or negates; none for a comparison."""
    if isinstance(filter, And | Or):
        return filter.members
    return (filter.member,) if isinstance(filter, Not) else ()


def _flat(kind: type[And] | type[Or], members: Iterable[Filter]) -> tuple[Filter, ...]:
    flat: list[Filter] = []
    for member in members:
        _check_is_filter(member)
        if isinstance(member, Comparison):
            flat.append(member)
        else:
            member = _single(member)
            flat.extend(member.members if isinstance(member, kind) else (member,))
    if not flat:
        raise FilterError(f"{kind.__name__} takes at least one filter", field="where")
    return tuple(flat)


def _single(filter: Filter) -> Filter:
    """The member of a connective that has only one; other filters as they are."""
    while isinstance(filter, And | Or) and len(filter.members) == 1:
        (filter,) = filter.members
    return filter


def _check_is_filter(member: object) -> None:
    if not isinstance(member, Filter):
        raise FilterError(f"expected a filter, not {type(member).__name__}", field="where")


def _check_size(filter: Filter) -> None:
    depth, comparisons = _measure(filter)
    if depth > MAX_DEPTH:
        raise too_deep()
    if comparisons > MAX_COMPARISONS:
        raise FilterError(
            f"where has more than {MAX_COMPARISONS} comparisons: use $in to compare a field with "
            "many values",
            field="where",
        )


def _measure(filter: Filter) -> tuple[int, int]:
    """The depth of a filter, and how many comparisons it has."""
    members = members_of(filter)
    if not members:
        return 0, 1
    depths, comparisons = zip(*map(_measure, members), strict=True)
    return 1 + max(depths), sum(comparisons)


def too_deep() -> FilterError:
    """The error for a filter with more than `MAX_DEPTH` levels."""
    return FilterError(f"where is nested deeper than {MAX_DEPTH} levels", field="where")


def canonical(filter: Filter | None) -> str:
    """Write a filter as a text: the same text for equal filters, and for no others.

    1, 1.0, True and "1" give different texts, so the text can be the key of a cache.
    """
    if filter is None:
        return "null"
    where = filter.to_dict()
    return _JSON.encode(where) if _weight(filter) <= _FEW else to_json(where, _JSON)


def _weight(filter: Filter) -> int:
    """How much there is to encode: comparisons, and the items or characters of their values."""
    if isinstance(filter, Comparison):
        return 1 + len(filter.value) if isinstance(filter.value, str | tuple) else 1
    return sum(map(_weight, members_of(filter)))


class Field:
    """A field of a memory. Comparing it makes a `Filter`.

    Use brackets for a key that is not a Python name, begins with an underscore, or has the name of
    a method of this class: `F["a key"]`, `F.user["like"]`.
    """

    __slots__ = ("_key",)

    def __init__(self, key: str) -> None:
        self._key = key

    def __getattr__(self, name: str) -> Field:
        # Python asks for special names, such as __array__: they must not become fields.
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
        raise TypeError(f"`in` does not make a filter: use {self!r}.contains(...)")

    def __bool__(self) -> NoReturn:
        raise TypeError(f"a field is neither true nor false: use {self!r}.exists()")

    def in_(self, values: Sequence[Any]) -> Filter:
        """The field equals one of the values."""
        return Comparison(self._key, "$in", values)

    def not_in(self, values: Sequence[Any]) -> Filter:
        """The field equals none of the values, or is missing."""
        return Comparison(self._key, "$nin", values)

    def exists(self, wanted: bool = True) -> Filter:
        """The memory has the field; with False, the memory does not have it."""
        return Comparison(self._key, "$exists", wanted)

    def contains(self, value: Any) -> Filter:
        """The field is an array with an element equal to the value, or a text that holds it."""
        return Comparison(self._key, "$contains", value)

    def like(self, pattern: str) -> Filter:
        r"""The field is a text that matches; `%` is any run, `_` one character, `\` escapes."""
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
"""The start of a filter in Python: `F.year >= 2020`."""


def _checked_key(key: object) -> str:
    # This also stops Python from iterating over a field by position.
    if not isinstance(key, str):
        raise FilterError(f"a field is named by a str, not {shown(key)}", field="where")
    return key
