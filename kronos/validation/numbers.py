"""Numbers and moments.

A moment is stored as microseconds since 1970 UTC, within the years 1 to 9999.
"""

from __future__ import annotations

import functools
import math
from datetime import datetime, timedelta, timezone

from kronos.errors import InputError
from kronos.validation.texts import shorten

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_MICROSECOND = timedelta(microseconds=1)
_FIRST, _LAST = (
    (moment.replace(tzinfo=timezone.utc) - _EPOCH) // _MICROSECOND
    for moment in (datetime.min, datetime.max)
)
_DAY = timedelta(days=1) // _MICROSECOND


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
    except OverflowError:  # an int beyond the range of floats
        pass
    raise InputError(f"{field} must be a finite number, not {shorten(repr(value))}", field=field)


def check_limit(value: object, *, field: str = "limit", least: int = 1) -> int:
    """Check a count: a whole number, `least` or more.

    Returns:
        The number, but at most 2**31 - 1.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(
            f"{field} must be a whole number, {least} or more, not {value!r}", field=field
        )
    return min(value, 2**31 - 1)


def check_time(value: object, *, field: str) -> int | None:
    """Check a moment: a timezone-aware datetime, or None.

    Returns:
        Microseconds since 1970 UTC; None for None.
    """
    if value is None:
        return None
    try:
        is_aware = isinstance(value, datetime) and value.utcoffset() is not None
        moment = to_microseconds(value) if is_aware else None  # type: ignore[arg-type]
    except OverflowError:  # some time zones fail at the limits of datetime
        is_aware, moment = True, None
    if not is_aware:
        raise InputError(
            f"{field} must be a timezone-aware datetime, e.g. datetime.now(timezone.utc), "
            f"not {value!r}",
            field=field,
        )
    # The year in UTC may differ from the year in the time zone, and pandas' NaT has no year.
    if moment is None or not _FIRST <= moment <= _LAST:
        raise InputError(
            f"{field} is {value!r}, which is outside the years 1 to 9999 in UTC: pass a moment "
            "within them, or None for no time",
            field=field,
        )
    return moment


def to_microseconds(moment: datetime) -> int:
    """Convert a timezone-aware datetime to microseconds since 1970 UTC, exactly."""
    return (moment - _EPOCH) // _MICROSECOND


@functools.lru_cache(maxsize=1024)  # memories that were added together share their times
def to_datetime(microseconds: int) -> datetime:
    """Convert microseconds since 1970 UTC to a UTC datetime, exactly.

    Stores may hold moments up to a day outside the years 1 to 9999, which earlier versions
    accepted. They are read as the first or the last moment of these years.

    Raises:
        OverflowError: the moment is farther away, so it was never stored as one.
    """
    if not _FIRST <= microseconds <= _LAST and _FIRST - _DAY < microseconds < _LAST + _DAY:
        microseconds = min(max(microseconds, _FIRST), _LAST)
    return _EPOCH + timedelta(microseconds=microseconds)
