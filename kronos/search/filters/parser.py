"""Reads the dict form of a filter, which is also its JSON form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from kronos.errors import FilterError
from kronos.search.filters.expression import (
    MAX_DEPTH,
    And,
    Comparison,
    Filter,
    Not,
    Or,
    too_deep,
)
from kronos.search.filters.paths import full_name, shown

CONNECTIVES = ("$and", "$or", "$not")

Where: TypeAlias = Mapping[str, Any] | Filter
"""A filter as callers write it: a dict, or built with `F`."""


def parse(where: Where | None) -> Filter | None:
    """Read a filter in either form. None and an empty dict match every memory: None for both.

    Raises:
        FilterError: the filter is malformed; the error's `field` names the place.
    """
    if where is None or isinstance(where, Filter):
        return where
    if not isinstance(where, Mapping):
        raise FilterError(f"where must be a dict or a filter, not {shown(where)}", field="where")
    return parse_dict(where) if where else None


def parse_dict(where: Mapping[str, Any]) -> Filter:
    """Read a filter in its dict form.

    Raises:
        FilterError: the dict is malformed or empty; the error's `field` names the place.
    """
    if isinstance(where, Filter):
        raise FilterError("expected a dict, not a filter", field="where")
    return _read(where, 0)


def _read(where: object, depth: int) -> Filter:
    """Read a dict that is inside `depth` connectives."""
    if isinstance(where, Filter):
        return where
    if not isinstance(where, Mapping) or not where:
        raise FilterError(
            f"a filter must be a dict that is not empty, not {shown(where)}", field="where"
        )
    return _joined(And, [_read_entry(key, wanted, depth) for key, wanted in where.items()])


def _read_entry(key: Any, wanted: Any, depth: int) -> Filter:
    if isinstance(key, str) and key.startswith("$"):
        return _read_connective(key, wanted, depth + 1)
    if isinstance(wanted, Mapping):
        return _read_operators(key, wanted, depth)
    return Comparison(key, "$eq", wanted)


def _read_connective(name: str, wanted: Any, depth: int) -> Filter:
    # A dict may contain itself, so the depth is checked before the dict is read.
    if depth > MAX_DEPTH:
        raise too_deep()
    if name not in CONNECTIVES:
        raise FilterError(
            f"where has the unknown connective {shown(name)}: use one of "
            f"{', '.join(CONNECTIVES)} (metadata keys cannot contain '$')",
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
    """Read the comparisons of one field, which must all hold."""
    if depth > MAX_DEPTH:
        raise too_deep()
    if not isinstance(wanted, Mapping) or not wanted:
        full_name(key)
        raise FilterError(f"where[{shown(key)}] names no operator", field=f"where.{key}")
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
