"""The serving space: which space is searched and written, with its embedder and its index.

It never changes: `kronos.serving.resolver` makes another one when another space is to serve.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from kronos.concurrency.threads import check_may_wait_for_embedder
from kronos.embedding.embedder_calls import embed_documents
from kronos.embedding.hashing import HashEmbedder
from kronos.embedding.registry import HASH_MODEL
from kronos.embedding.retry import NO_RETRY, RetryPolicy
from kronos.embedding.service import EmbeddingService
from kronos.errors import (
    EmbedderMismatchError,
    NoEmbedderError,
)
from kronos.following.replica import Replica
from kronos.repository.batches import Batch
from kronos.repository.memories import Head, Repository
from kronos.validation import Record, check_embeddings

if TYPE_CHECKING:
    from kronos.db.database import FileId
    from kronos.types import (
        Embedder,
        Space,
        Vectors,
    )


MOST_TEXTS = 256
"""Questions embedded in one batch, at most."""


def sees_texts_alone(embedder: Embedder | None) -> bool:
    """Whether an embedder is one of Kronos's own, which looks at nothing but the texts.

    Any other one may look at what surrounds the call (the thread, context variables: a tenant whose
    key is used), so texts of one call are never embedded in the surroundings of another.
    """
    return type(embedder) in (EmbeddingService, HashEmbedder)


@dataclass(frozen=True, slots=True, eq=False)
class Serving:
    """The space that a process searches and writes, with its embedder and its index."""

    space: Space
    embedder: Embedder | None
    """None: callers give the vectors."""
    replica: Replica
    active: Space
    """The active space; another one than `space` only while a fallback serves."""
    file: FileId | None
    """The database file that it was set up for."""
    degraded: str | None = None
    """Why a fallback serves instead of the model that was asked for."""
    ask: Callable[[Sequence[str]], Vectors] | None = None
    """What embeds questions; None when nothing does."""
    for_texts: RetryPolicy = NO_RETRY
    """How to retry the embedder while texts are stored."""
    for_questions: RetryPolicy = NO_RETRY
    """How to retry it while a caller waits for an answer."""

    @property
    def is_slow(self) -> bool:
        """Whether to embed a text takes longer than to look for its vector in the database."""
        return self.embedder is not None and self.space.model != HASH_MODEL

    def encode(
        self, batches: Sequence[Batch], made_before: Mapping[bytes, Vectors] | None = None
    ) -> None:
        """Give batches their vectors; the texts of all of them are embedded together.

        Args:
            batches: checked.
            made_before: vectors of this space by their texts' hashes, which are not made again.

        Raises:
            NoEmbedderError: a text came without a vector, and the store has no embedder.
            EmbedderMismatchError: given vectors are of a space that serves no longer.
            EmbeddingError: the embedder failed.
        """
        known = made_before or {}
        texts = [
            r.content
            for batch in batches
            for r in batch.records
            if r.embedding is None and r.content_hash not in known
        ]
        made = iter(self.embed(texts))
        for batch in batches:
            given = any(record.embedding is not None for record in batch.records)
            if given and batch.space.id != self.space.id:
                raise EmbedderMismatchError(
                    f"vectors were handed in for the space of {batch.space.model}, but meanwhile "
                    f"the store's model became {self.space.model}: embed them with that one"
                )
            rows = [_vector_of(record, known, made) for record in batch.records]
            batch.vectors = np.array(rows, np.float32).reshape(len(rows), self.space.dim)
            batch.space = self.space

    def embed(self, texts: Sequence[str], *, in_search: bool = False) -> Vectors:
        """Embed texts as those that are stored: (n, dim) float32 unit rows.

        Args:
            texts: any.
            in_search: a caller waits for an answer, so a failing embedder is retried for a shorter
                time than when texts are stored.

        Raises:
            NoEmbedderError: the store has no embedder.
            EmbeddingError: the embedder failed.
        """
        if not texts:
            return np.empty((0, self.space.dim), np.float32)
        embedder = self.require_embedder("add items with an `embedding`")
        retry = self.for_questions if in_search else self.for_texts
        return embed_documents(embedder, texts, retry)

    def query_vectors(self, texts: Sequence[str]) -> Vectors:
        """Questions as vectors: (n, dim) float32 unit rows.

        Raises:
            NoEmbedderError: the store has no embedder.
        """
        self.require_embedder("search with a vector")
        assert self.ask is not None
        return self.ask(texts)

    def own_vector(self, query: Sequence[float] | Vectors) -> Vectors:
        """A caller's own vector, checked: (dim,) float32 of unit length.

        Raises:
            DimensionMismatchError: it has another width than the space.
            VectorError: it is no finite vector.
        """
        space = self.space
        row: Vectors = check_embeddings([query], space.dim, space.model, lambda _: "query")[0]
        return row

    @property
    def is_fallback(self) -> bool:
        """Whether a fallback serves while the active space waits for its model."""
        return self.space.id != self.active.id

    def require_embedder(self, way_out: str) -> Embedder:
        """The embedder; NoEmbedderError, naming the way out, when there is none.

        Raises:
            NeedsEmbedderError: this thread never waits for an embedder.
        """
        if self.embedder is None:
            raise NoEmbedderError(
                f"this store was opened with embedding_model=None and embeds no texts: {way_out}, "
                "or open it with a model"
            )
        check_may_wait_for_embedder()
        return self.embedder

    def is_current(self, repository: Repository, head: Head) -> bool:
        """Whether store and active space are still those that this was set up for.

        An id is not enough: a backup of another store may have replaced this one, and its spaces
        have the same small numbers.
        """
        if (
            head.active_space != self.active.id
            or head.fingerprint != self.active.fingerprint
            or head.store_id != self.replica.store_id
            or head.file != self.file
        ):
            return False
        # A process that has the model may drop the fallback's space.
        return not self.is_fallback or repository.spaces.has(self.space)


def _vector_of(record: Record, known: Mapping[bytes, Vectors], made: Iterator[Vectors]) -> Any:
    """The vector that the caller gave, or that was made before, or the next new one."""
    if record.embedding is not None:
        return record.embedding
    vector = known.get(record.content_hash)
    return next(made) if vector is None else vector
