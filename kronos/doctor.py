"""What `check` does: compares everything that must agree, and mends what can be derived.

The rows are the truth. An index is derived and can be replayed; a vector that does not fit its text
is derived and can be made anew. Texts and metadata are never touched.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from kronos.errors import CorruptStoreError
from kronos.types import Problem

if TYPE_CHECKING:
    from kronos.replica import Replica
    from kronos.repository import Repository


def misfit_vectors(repository: Repository, *, repair: bool) -> Iterator[Problem]:
    """Find vectors that do not fit their space or their text; repaired, they are pending."""
    for space in repository.spaces.all():
        keys = repository.spaces.misfits(space)
        if len(keys):
            if repair:
                repository.spaces.make_pending(space, keys)
            yield Problem(
                "vectors",
                f"{len(keys)} vectors of space {space.id} ({space.model}) do not fit their text "
                "or their width; run `kronos reindex` to make them anew",
                repaired=repair,
            )


def pending_memories(repository: Repository) -> Iterator[Problem]:
    """Find memories that searches miss because the active space has no vector of their text."""
    space = repository.spaces.active()
    pending = 0 if space is None else repository.spaces.pending_count(space.id)
    if space is not None and pending:
        yield Problem(
            "pending",
            f"{pending} memories have no vector in the active space {space.id} ({space.model}); "
            "run `kronos reindex` to make them",
        )


def wrong_index(repository: Repository, replica: Replica, *, repair: bool) -> Iterator[Problem]:
    """Compare this process's index with the rows at one seq; repaired, it is replayed."""
    try:
        difference = _difference(repository, replica)
    except CorruptStoreError as exc:
        yield Problem("index", f"the index cannot follow the database: {exc}")
        return
    if difference:
        if repair:
            replica.discard()
            replica.catch_up(repository, repository.pulse().seq)
        yield Problem("index", difference, repaired=repair)


def _difference(repository: Repository, replica: Replica) -> str | None:
    index = replica.catch_up(repository, repository.pulse().seq)
    held = index.keys()
    seen = 0
    for keys, rows in repository.spaces.vectors_since(replica.space, 0):
        if not np.isin(keys, held).all():
            return "the index misses vectors that the database holds"
        if not np.array_equal(index.vectors_of(keys), rows):
            return "the index holds other vectors than the database"
        seen += len(keys)
    return None if seen == len(held) else "the index holds vectors that the database does not"
