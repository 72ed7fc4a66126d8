"""How a filtered search is answered: which keys the index may find.

Filtering after the top k returns too few, so the filter comes first: SQL names the keys that may be
found, and the index ranks those alone. Nothing is asked of SQL when every memory may be found.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kronos.repository import Condition, Repository
    from kronos.types import Keys


def allowed_keys(
    repository: Repository, scope: str | None, condition: Condition | None
) -> Keys | None:
    """Find the keys that a search may return.

    Args:
        repository: over the transaction of the search.
        scope: a namespace and all below it; None for every one.
        condition: the compiled filter; None for no filter.

    Returns:
        (n,) int64; None when every memory may be found.
    """
    if condition is None and repository.is_whole_store(scope):
        return None
    return repository.keys(scope, condition)
