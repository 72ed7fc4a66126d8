"""The steps of a search, and how long each takes, for `explain=True`."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from kronos.types import PlanStep


@dataclass(slots=True)
class SearchTrace:
    """Notes the steps of a search. A trace that is not enabled notes nothing and costs little."""

    is_enabled: bool = True
    steps: list[PlanStep] = field(default_factory=list)

    def copy(self) -> SearchTrace:
        """A trace that begins with the same steps."""
        return SearchTrace(self.is_enabled, [*self.steps])

    def step(self, name: str) -> StepTimer:
        """Time a step. What is set on the value becomes part of the step."""
        return StepTimer(self.steps, name) if self.is_enabled else _UNTIMED


class StepTimer:
    """A context manager that times a step: a class, as contextlib's generators cost more."""

    __slots__ = ("_name", "_started", "_steps", "count", "detail")

    def __init__(self, steps: list[PlanStep], name: str) -> None:
        self._steps = steps
        self._name = name
        self.detail = ""
        self.count = 0

    def __enter__(self) -> StepTimer:
        self._started = time.perf_counter()
        return self

    def __exit__(self, *failure: object) -> None:
        seconds = time.perf_counter() - self._started
        self._steps.append(PlanStep(self._name, self.detail, self.count, seconds))


class _Untimed(StepTimer):
    """A step that is not noted. All searches share one."""

    __slots__ = ()

    def __enter__(self) -> StepTimer:
        return self

    def __exit__(self, *failure: object) -> None:
        """Notes nothing."""


_UNTIMED = _Untimed([], "")
