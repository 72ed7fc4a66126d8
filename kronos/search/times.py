"""Reads the times that filters and rankings hold in their JSON forms."""

from __future__ import annotations

from datetime import datetime


def from_iso(text: str) -> datetime:
    """Read an ISO 8601 time; "Z" is an offset of zero, which Python 3.10 cannot read.

    Raises:
        ValueError: the text is not an ISO 8601 time.
    """
    return datetime.fromisoformat(text[:-1] + "+00:00" if text.endswith(("Z", "z")) else text)
