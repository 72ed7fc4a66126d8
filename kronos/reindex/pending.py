"""Pending texts of a space: embedding them, storing their vectors, and recording failures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

from kronos.embedding.embedder_calls import Embedded, embed_each
from kronos.repository.memories import Repository
from kronos.types import Progress

if TYPE_CHECKING:
    from datetime import datetime

    from kronos.db.database import Database
    from kronos.embedding.retry import RetryPolicy
    from kronos.repository.pending import Pending, PendingText
    from kronos.types import Embedder, ProgressCallback, Space


def catch_up(
    database: Database,
    space: Space,
    embedder: Embedder,
    *,
    batch_size: int,
    clock: Callable[[], datetime],
    retry: RetryPolicy,
    progress: ProgressCallback | None = None,
    wait: bool = True,
) -> None:
    """Embed the pending texts of a space in this thread, without a job that others can join.

    For a few texts that another process left pending, and for the hash space of a fallback, which
    is filled faster than a job could share the work.

    Args:
        database: where the space is.
        space: the space.
        embedder: its embedder.
        batch_size: texts per transaction.
        clock: the time, UTC.
        retry: with an embedder that fails temporarily.
        progress: called after each transaction.
        wait: False raises StoreBusyError at once if another process writes.

    Raises:
        TransientEmbeddingError: the embedder still failed temporarily when the patience was over.
        EmbeddingError: the embedder fails on every text.
        SpaceChangedError: the space is gone.
        StorageError: the database failed.
    """
    done = 0
    while True:
        with repository_over(database.read(), clock) as repository:
            texts = repository.pending.texts(space.id, limit=batch_size)
        if not texts:
            return
        embedded = embed_each(embedder, [text.content for text in texts], retry)
        with repository_over(database.write(wait=wait), clock) as repository:
            done += store_embedded(repository.pending, space, texts, embedded)
        if progress is not None:
            progress(Progress(done, None))


def store_embedded(
    pending: Pending, space: Space, texts: Sequence[PendingText], embedded: Embedded
) -> int:
    """Store the vectors of texts, and record those that could not be embedded.

    Returns:
        How many memories got a vector.
    """
    errors = {texts[position].content_hash: why for position, why in embedded.errors.items()}
    pending.record_failures(space, errors)
    made = [texts[position] for position in embedded.positions]
    return pending.store(space, made, embedded.rows)


@contextmanager
def repository_over(
    transaction: AbstractContextManager[Any], clock: Callable[[], datetime]
) -> Iterator[Repository]:
    """A repository over a transaction that begins here."""
    with transaction as connection:
        yield Repository(connection, clock())
