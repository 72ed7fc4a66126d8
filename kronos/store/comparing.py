"""Comparing: which memories say nearly the same."""

from __future__ import annotations

import functools
import threading
from typing import TYPE_CHECKING

from kronos.concurrency.progress import Steps
from kronos.index.exact import ExactIndex
from kronos.search.duplicates import check_threshold, groups_of, near_duplicates
from kronos.search.filters import Where
from kronos.types import DuplicateGroup, Keys, ProgressCallback

if TYPE_CHECKING:
    from kronos.serving.serving import Serving
    from kronos.serving.session import Session
    from kronos.store.browsing import Browsing

_VECTORS_A_COPY = 2000
"""Vectors copied while searches wait."""


class Comparing:
    """Compares memories with each other.

    Args:
        session: the open store.
        browsing: finds the memories that a filter means.
    """

    def __init__(self, session: Session, browsing: Browsing) -> None:
        self._session = session
        self._browsing = browsing

    def duplicates(
        self,
        threshold: float = 0.95,
        *,
        where: Where | None = None,
        namespace: str | None = None,
        progress: ProgressCallback | None = None,
        stop: threading.Event | None = None,
    ) -> list[DuplicateGroup]:
        """Find memories that say nearly the same.

        Args:
            threshold: the cosine from which on two memories count as near duplicates, above 0.
            where: a filter.
            namespace: this one and all below it; None is the store's own, "*" every one.
            progress: called now and then with the memories that were compared with all others.
            stop: set it to stop soon.

        Returns:
            Groups of memories, each joined to another one of its group by a pair above the
            threshold; those that are most alike first.

        Raises:
            InputError: the threshold is not above 0 and at most 1.
            StoppedError: `stop` was set.
        """
        check_threshold(threshold)  # before the vectors are copied
        keys = self._browsing.keys_of(self._browsing.selection(where, namespace))
        copied = self._session.on_serving(functools.partial(self._copied_index, keys))
        found = near_duplicates(copied, threshold, steps=Steps(progress, stop))
        with self._session.reader() as repository:
            return groups_of(repository, found)

    def _copied_index(self, keys: Keys, serving: Serving) -> ExactIndex:
        """The vectors of some memories, so that a long comparison holds up no search."""
        copied = ExactIndex(serving.space.dim)
        for start in range(0, keys.size, _VECTORS_A_COPY):
            with self._session.index_of(serving) as (index, _):
                part = keys[start : start + _VECTORS_A_COPY]
                part = part[index.contains(part)]
                copied.upsert(part, index.vectors_of(part))
        return copied
