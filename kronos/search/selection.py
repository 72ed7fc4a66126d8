"""Which memories a call means: a namespace with all below it, and a filter."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kronos.search.filters import canonical, parse
from kronos.search.filters.compiler import compile_filter

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement, FromClause

    from kronos.search.filters import Filter, Where


@dataclass(slots=True)
class Selection:
    """Which memories a call means. It never changes."""

    scope: str | None
    """A namespace, which stands for itself and all below it; None for every namespace."""
    filter: Filter | None
    _name: tuple[str | None, str] | None = field(
        default=None, init=False, repr=False, compare=False
    )

    @classmethod
    def of(cls, scope: str | None, where: Where | None) -> Selection:
        """Parse a filter.

        Raises:
            FilterError: the filter is malformed.
        """
        return cls(scope, parse(where))

    def __call__(self, rows: FromClause) -> ColumnElement[bool]:
        """The filter as SQL over some rows; only for selections with a filter."""
        condition = compile_filter(self.filter, rows)
        assert condition is not None
        return condition

    @property
    def condition(self) -> Selection | None:
        """The selection as a function that makes SQL; None without a filter."""
        return None if self.filter is None else self

    @property
    def name(self) -> tuple[str | None, str]:
        """Equal for selections of the same scope and filter, and for no others."""
        if self._name is None:
            self._name = self.scope, "" if self.filter is None else canonical(self.filter)
        return self._name


EVERY_MEMORY = Selection(None, None)
"""All memories of the store."""
