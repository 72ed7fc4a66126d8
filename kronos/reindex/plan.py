"""Estimates for a reindex: texts, tokens, duration and disk space."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from kronos.concurrency.progress import Steps
from kronos.embedding.embedder_calls import embed_each
from kronos.repository.memories import Repository
from kronos.types import ReindexPlan

if TYPE_CHECKING:
    from datetime import datetime

    from kronos.db.database import Database
    from kronos.embedding.retry import RetryPolicy
    from kronos.types import Embedder

_SAMPLE_TEXTS = 256
_SAMPLE_SECONDS = 3.0


def estimate(
    database: Database,
    embedder: Embedder,
    *,
    clock: Callable[[], datetime],
    retry: RetryPolicy,
    steps: Steps,
) -> ReindexPlan:
    """Estimate a reindex. It embeds a sample and writes nothing.

    Args:
        database: the store's database.
        embedder: the embedder to change to.
        clock: the time, UTC.
        retry: with an embedder that fails temporarily.
        steps: progress, and whether to stop.

    Returns:
        The estimates.

    Raises:
        EmbeddingError: the embedder fails on every text.
        StoppedError: the call was stopped.
    """
    with database.read() as connection:
        repository = Repository(connection, clock())
        pending = repository.pending
        space = repository.spaces.by_fingerprint(embedder.fingerprint)
        space_id = 0 if space is None else space.id  # no vector is in space 0
        memories = pending.count(space_id)
        texts = pending.text_count(space_id)
        sample = [t.content for t in pending.texts(space_id, limit=_SAMPLE_TEXTS)]
        page_bytes = database.dialect.page_bytes()
    dim = int(embedder.dim)
    seconds, seen = _time_sample(embedder, sample, retry, steps)
    count = getattr(embedder, "count_tokens", None)
    tokens = count(sample) if callable(count) else None
    return ReindexPlan(
        model=embedder.model_id,
        dim=dim,
        memories=memories,
        texts=texts,
        tokens=None if tokens is None else round(tokens / max(1, len(sample)) * texts),
        seconds=seconds / max(1, seen) * texts,
        disk_bytes=memories * _row_bytes(dim, page_bytes),
    )


def _time_sample(
    embedder: Embedder, sample: Sequence[str], retry: RetryPolicy, steps: Steps
) -> tuple[float, int]:
    """Embed a sample in growing parts, for a few seconds at most.

    Returns:
        How many seconds it took, and for how many texts.
    """
    started, seen = time.perf_counter(), 0
    if sample:
        steps.check_stopped()
        embed_each(embedder, sample[:1], retry)  # a model's first call is slow, so not measured
        started = time.perf_counter()
    part = 8
    while seen < len(sample) and time.perf_counter() - started < _SAMPLE_SECONDS:
        embed_each(embedder, sample[seen : seen + part], retry)
        seen, part = min(seen + part, len(sample)), 2 * part
        steps.report(seen, len(sample))
    return time.perf_counter() - started, seen


def _row_bytes(dim: int, page_bytes: int) -> int:
    """Bytes of a vector on disk: a row of a table, and an entry in each of three indexes."""
    row, page = 4 * dim + 60, page_bytes - 24
    taken = page_bytes / (page // row) if row <= page else page_bytes * -(-row // page)
    return round(taken) + 60
