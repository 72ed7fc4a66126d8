"""What a filter means, in plain Python: a second implementation of its definition, without SQL.

It evaluates dicts and filters separately.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from kronos.search import filters
from kronos.types import Memory

RECORD = {
    "id", "namespace", "content", "importance", "created_at", "updated_at", "expires_at",
    "parent_id",
}  # fmt: skip
TIMES = {"created_at", "updated_at", "expires_at"}
MISSING = object()


def matches(where: Any, memory: Memory) -> bool:
    """Whether a memory meets a filter: a dict, a filter, or None."""
    if where is None:
        return True
    if isinstance(where, Mapping):
        return all(entry_holds(key, wanted, memory) for key, wanted in where.items())
    if isinstance(where, filters.And):
        return all(matches(member, memory) for member in where.members)
    if isinstance(where, filters.Or):
        return any(matches(member, memory) for member in where.members)
    if isinstance(where, filters.Not):
        return not matches(where.member, memory)
    return comparison_holds(where.field, where.operator, where.value, memory)


def entry_holds(key: str, wanted: Any, memory: Memory) -> bool:
    if key == "$and":
        return all(matches(each, memory) for each in wanted)
    if key == "$or":
        return any(matches(each, memory) for each in wanted)
    if key == "$not":
        return not matches(wanted, memory)
    if not isinstance(wanted, Mapping):
        return comparison_holds(key, "$eq", wanted, memory)
    return all(
        not entry_holds(key, value, memory)
        if operator == "$not"
        else comparison_holds(key, operator, value, memory)
        for operator, value in wanted.items()
    )


def look_up(key: str, memory: Memory) -> Any:
    if key in RECORD:
        return getattr(memory, key)
    found: Any = memory.metadata
    for name in key.removeprefix("metadata.").split("."):
        found = found.get(name, MISSING) if isinstance(found, dict) else MISSING
    return found


def as_time(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [as_time(each) for each in value]
    return datetime.fromisoformat(value.replace("Z", "+00:00")) if isinstance(value, str) else value


def comparison_holds(key: str, operator: str, wanted: Any, memory: Memory) -> bool:
    found = look_up(key, memory)
    if key in TIMES:
        wanted = as_time(wanted)
    if operator == "$exists":
        there = found is not MISSING and not (key in RECORD and found is None)
        return there is wanted
    if operator in ("$ne", "$nin"):
        return not comparison_holds(key, {"$ne": "$eq", "$nin": "$in"}[operator], wanted, memory)
    if operator == "$eq":
        return equal(found, wanted)
    if operator == "$in":
        return any(equal(found, each) for each in wanted)
    if operator == "$contains":
        return contains(found, wanted)
    if operator == "$like":
        return isinstance(found, str) and like(found, wanted)
    if kind(found) != kind(wanted):
        return False
    order = (found > wanted) - (found < wanted)
    holds = {"$gt": order > 0, "$gte": order >= 0, "$lt": order < 0, "$lte": order <= 0}
    return bool(holds[operator])


def kind(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return repr(value)
    return "number" if isinstance(value, int | float) else type(value).__name__


def equal(found: Any, wanted: Any) -> bool:
    return kind(found) == kind(wanted) and bool(found == wanted)


def contains(found: Any, wanted: Any) -> bool:
    if isinstance(found, list):
        return any(equal(element, wanted) for element in found)
    return isinstance(found, str) and isinstance(wanted, str) and wanted in found


def like(text: str, pattern: str) -> bool:
    """Match by following all positions in the pattern that the text can reach."""
    steps = steps_of(pattern)
    places = skip_runs({0}, steps)
    for character in map(fold, text):
        reached = set()
        for place in places:
            if place < len(steps):
                name, wanted = steps[place]
                if name == "run":
                    reached.add(place)
                elif name == "one" or wanted == character:
                    reached.add(place + 1)
        places = skip_runs(reached, steps)
    return len(steps) in places


def steps_of(pattern: str) -> list[tuple[str, str]]:
    steps, position = [], 0
    while position < len(pattern):
        character = pattern[position]
        if character == "\\":
            position += 1
            steps.append(("this", fold(pattern[position])))
        else:
            name = {"%": "run", "_": "one"}.get(character, "this")
            steps.append((name, fold(character)))
        position += 1
    return steps


def skip_runs(places: set[int], steps: list[tuple[str, str]]) -> set[int]:
    reached = set(places)
    for place in sorted(places):
        while place < len(steps) and steps[place][0] == "run":
            place += 1
            reached.add(place)
    return reached


def fold(character: str) -> str:
    if "A" <= character <= "Z":
        return character.lower()
    return "\ufffd" if character in "\ufffe\uffff" else character
