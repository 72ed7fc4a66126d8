"""What a reindex would do: how many texts, how many tokens, how long, how much disk."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from kronos.concurrency.steps import Steps
from kronos.embedding.checked import embed_each
from kronos.repository.memories import Repository
from kronos.types import ReindexPlan

if TYPE_CHECKING:
    from datetime import datetime

    from kronos.db.database import Database
    from kronos.embedding.patience import Patience
    from kronos.types import Embedder

_SAMPLE_TEXTS = 256
_SAMPLE_SECONDS = 3.0


def estimate(
    database: Database,
    embedder: Embedder,
    *,
    clock: Callable[[], datetime],
    patience: Patience,
    steps: Steps,
) -> ReindexPlan:
    """Say what a reindex would do; a sample is embedded, and nothing is written.

    Raises:
        EmbeddingError: the embedder fails on any text.
        StoppedError: somebody wants it to stop.
    """
    with database.read() as connection:
        spaces = Repository(connection, clock()).spaces
        space = spaces.by_fingerprint(embedder.fingerprint)
        space_id = 0 if space is None else space.id  # nothing stands in space 0
        memories = spaces.pending_count(space_id)
        texts = spaces.pending_text_count(space_id)
        sample = [t.content for t in spaces.pending_texts(space_id, limit=_SAMPLE_TEXTS)]
        page_bytes = database.dialect.page_bytes()
    dim = int(embedder.dim)
    seconds, seen = _time_sample(embedder, sample, patience, steps)
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
    embedder: Embedder, sample: Sequence[str], patience: Patience, steps: Steps
) -> tuple[float, int]:
    """Embed a sample in growing parts until it says enough: seconds, and for how many texts."""
    started, seen = time.perf_counter(), 0
    if sample:
        steps.go_on()
        embed_each(embedder, sample[:1], patience)  # the first call of a model is slow
        started = time.perf_counter()
    part = 8
    while seen < len(sample) and time.perf_counter() - started < _SAMPLE_SECONDS:
        embed_each(embedder, sample[seen : seen + part], patience)
        seen, part = min(seen + part, len(sample)), 2 * part
        steps.reach(seen, len(sample))
    return time.perf_counter() - started, seen


def _row_bytes(dim: int, page_bytes: int) -> int:
    """What a vector takes on disk: a row of a table, and three indexes."""
    row, page = 4 * dim + 60, page_bytes - 24
    taken = page_bytes / (page // row) if row <= page else page_bytes * -(-row // page)
    return round(taken) + 60
