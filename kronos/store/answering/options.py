"""What a search is asked for, checked."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, get_args

from kronos.errors import InputError
from kronos.search.candidates import group_path
from kronos.search.ranking import check_ranking
from kronos.search.request import Request
from kronos.search.selection import Selection
from kronos.types import SearchMode
from kronos.validation import check_id, check_limit, check_number, check_time, to_microseconds

if TYPE_CHECKING:
    from kronos.search.filters import Where
    from kronos.search.ranking import Ranking

_MOST_HOPS = 8


class SearchOptions:
    """The options of a search; `MemoryStore.search` documents them.

    Args:
        scope: the namespace to search and all below it; None for every one.
        clock: the time, UTC.

    Raises:
        InputError: an option is refused; its `field` names it.
    """

    __slots__ = ("as_of", "expand", "expand_outside", "explain", "moment", "near", "request")

    def __init__(
        self,
        *,
        scope: str | None,
        clock: Callable[[], datetime],
        limit: int = 10,
        where: Where | None = None,
        mode: SearchMode = "hybrid",
        min_score: float | None = None,
        near: str | None = None,
        ranking: Ranking | None = None,
        group_by: str | None = None,
        as_of: datetime | None = None,
        expand: int = 0,
        expand_outside: bool = False,
        explain: bool = False,
    ) -> None:
        if mode not in get_args(SearchMode):
            raise InputError(
                f'mode must be "hybrid", "dense" or "lexical", not {mode!r}', field="mode"
            )
        if not isinstance(expand_outside, bool):  # what is meant as "no" must not be a yes
            raise InputError(
                f"expand_outside must be true or false, not {expand_outside!r}",
                field="expand_outside",
            )
        ranking = check_ranking(ranking)
        least = -math.inf if min_score is None else check_number(min_score, field="min_score")
        self.moment = check_time(as_of, field="as_of")
        """`as_of` in microseconds since 1970 UTC; None: now."""
        self.request = Request(
            selection=Selection.of(scope, where),
            limit=check_limit(limit),
            mode=mode,
            min_score=least,
            ranking=ranking,
            group_by=None if group_by is None else group_path(group_by),
            now=to_microseconds(ranking.now or as_of or clock()),
            with_shares=bool(explain) or ranking.rerank is not None,
        )
        self.near = None if near is None else check_id(near, field="near")
        self.as_of = as_of
        self.expand = _check_hops(expand)
        self.expand_outside = expand_outside
        self.explain = bool(explain)

    @property
    def at_hand(self) -> int:
        """How many candidates must be at hand at the end."""
        ranking = self.request.ranking
        limit = self.request.limit
        return limit if ranking.rerank is None else max(limit, ranking.rerank_top)

    @property
    def retrieval(self) -> Request:
        """What the index is asked for; where a reranker judges, all else comes after that."""
        ranking = self.request.ranking
        if ranking.rerank is None:
            return self.request
        plain = replace(ranking, diversity=0.0)
        return replace(self.request, group_by=None, ranking=plain, min_score=-math.inf)

    @property
    def compares_later(self) -> bool:
        """Whether candidates are compared with each other after they were reranked."""
        return self.request.ranking.rerank is not None and self.request.ranking.diversity > 0


def _check_hops(expand: int) -> int:
    hops = check_limit(expand, field="expand", least=0)
    if hops > _MOST_HOPS:
        raise InputError(f"expand must be at most {_MOST_HOPS}, not {hops}", field="expand")
    return hops
