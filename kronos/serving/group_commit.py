"""Group commit: writes that arrive together share a transaction.

Each is written whole or not at all. Writes keep the order of their arrival, so each sees the result
of those before it. Neighbouring additions become one insert. A refused write leaves nothing and
does not affect the others. No write is acknowledged before the commit that holds it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from kronos.errors import (
    KronosError,
    ReadOnlyStoreError,
    SpaceChangedError,
    StorageError,
    StoreBusyError,
    StoreClosedError,
    TransientEmbeddingError,
)
from kronos.serving.serving import Serving

if TYPE_CHECKING:
    from kronos.repository.batches import Batch
    from kronos.repository.memories import Repository

MOST_ROWS = 1000
"""Memories in one group, at most: a small write never waits for more."""
FOR_ALL = (StoreBusyError, ReadOnlyStoreError, StoreClosedError, TransientEmbeddingError)
"""Errors that no write of a group escapes by being tried alone."""


@dataclass(slots=True, eq=False)
class Addition:
    """A batch to be added, embedded in the space that serves."""

    batch: Batch
    serving: Serving


@dataclass(slots=True, eq=False)
class Change:
    """Any other write."""

    make: Callable[[Repository], Any]
    serving: Serving | None
    """Who made the vectors in it; None where there are none."""


Write: TypeAlias = Addition | Change


def write_together(repository: Repository, writes: Sequence[Write]) -> list[Any]:
    """Write in one transaction, which the caller commits.

    Args:
        repository: in a write transaction.
        writes: in the order in which they came.

    Returns:
        For each write what it returns, or the error that refuses it: `SpaceChangedError` when its
        vectors are of a space that serves no longer.
    """
    head = repository.head()
    is_current = {
        serving: serving.is_current(repository, head)
        for serving in {write.serving for write in writes}
        if serving is not None
    }
    outcomes: list[Any] = []
    for run in _runs(writes):
        first = run[0]
        if first.serving is not None and not is_current[first.serving]:
            outcomes += [SpaceChangedError()] * len(run)
        elif isinstance(first, Addition):
            batches = [write.batch for write in run if isinstance(write, Addition)]
            outcomes += repository.add(batches, first.serving.space)
        elif len(writes) == 1:
            outcomes.append(first.make(repository))
        else:
            outcomes.append(_apart(repository, first))
    return outcomes


def _apart(repository: Repository, change: Change) -> Any:
    """What a change returns; when it is refused nothing of it is left, and the others go on."""
    try:
        with repository.savepoint():
            return change.make(repository)
    except StorageError:
        raise
    except KronosError as exc:
        return exc


def _runs(writes: Sequence[Write]) -> Iterator[list[Write]]:
    """Cut writes into those that can be made at once and come out as if made one by one."""
    run: list[Write] = []
    ids: set[str] = set()
    for write in writes:
        if run and not _joins(run[0], ids, write):
            yield run
            run, ids = [], set()
        run.append(write)
        if isinstance(write, Addition):
            ids.update(write.batch.ids)
    yield run


def _joins(first: Write, ids: set[str], write: Write) -> bool:
    """Whether a write and a run are additions that do not depend on each other."""
    return (
        isinstance(first, Addition)
        and isinstance(write, Addition)
        and first.serving is write.serving
        and not (first.batch.match_content or write.batch.match_content)
        and ids.isdisjoint(write.batch.ids)
    )
