"""Verbs of a facade that a service does: same signature, same documentation, written once."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def verb(
    service: str, method: Callable[Concatenate[Any, P], T]
) -> Callable[Concatenate[Any, P], T]:
    """A method that calls a service's.

    Args:
        service: the attribute that holds the service.
        method: what is called on it.
    """

    @functools.wraps(method)
    def delegating(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return method(getattr(self, service), *args, **kwargs)

    return delegating
