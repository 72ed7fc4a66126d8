"""Statistics: what a store holds, and which space serves."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kronos.db import schema
from kronos.embedding.hashing import HashEmbedder
from kronos.embedding.registry import HASH_MODEL
from kronos.embedding.service import EmbeddingService
from kronos.search.field_indexes import FieldIndexes
from kronos.types import Embedder, Stats

if TYPE_CHECKING:
    from kronos.serving.session import Session


class Statistics:
    """Counts.

    Args:
        session: the open store.
    """

    def __init__(self, session: Session) -> None:
        self._session = session

    def stats(self) -> Stats:
        """Count what the store holds, and name the serving space; no search waits for it."""
        serving = self._session.serving
        with serving.replica.lock:
            index, indexed = serving.replica.state(), len(serving.replica)
        with self._session.reader() as repository:
            return Stats(
                store_id=repository.store_id(),
                path=str(self._session.location.database),
                memories=repository.count(),
                seq=repository.head().seq,
                embedder=None if serving.embedder is None else serving.space.model,
                degraded=serving.degraded,
                dim=serving.space.dim,
                max_tokens=getattr(serving.embedder, "max_tokens", None),
                spaces=tuple(repository.pending.stats()),
                jobs=tuple(repository.jobs.all(unfinished=True)),
                index_size=indexed,
                index_kind=index.kind,
                database_bytes=self._session.database.size_bytes(),
                schema=schema.current(self._session.database) or "",
                versions=repository.history.count(),
                tokenizer=repository.fulltext.tokenizer,
                indexed_fields=tuple(FieldIndexes.of(repository).all()),
                index_effort=index.effort,
                index_recall=index.recall,
                engine=_engine_of(serving.embedder),
            )


def _engine_of(embedder: Embedder | None) -> str | None:
    """What computes the vectors, where that is Kronos's to say."""
    if isinstance(embedder, EmbeddingService):
        return embedder.engine
    return HASH_MODEL if isinstance(embedder, HashEmbedder) else None
