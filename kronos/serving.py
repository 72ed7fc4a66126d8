"""Who answers: the space that is searched and written, its embedder and its index, as one value.

`settle` finds it when a store opens. The rule that a fallback never takes the place of a real model
stands here: when the model that made the store cannot be loaded, a hash space is built beside the
real one and serves, while the real one stays active and its new texts wait as pending.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from kronos.embedding.checked import embed_documents, embed_query
from kronos.embedding.registry import HASH_MODEL
from kronos.embedding.service import EmbeddingService
from kronos.errors import EmbedderMismatchError, NoEmbedderError
from kronos.reindex import ReindexJob
from kronos.replica import Replica
from kronos.repository import Batch, Pulse, Repository
from kronos.validation import check_embeddings

if TYPE_CHECKING:
    from datetime import datetime

    from kronos.db.engine import Database
    from kronos.types import Embedder, OnModelChange, ProgressCallback, Space, Vectors

HANDED_IN = "vectors handed in"


@dataclass(frozen=True, slots=True, eq=False)
class Serving:
    """The space that a process searches and writes, and what goes with it."""

    space: Space
    embedder: Embedder | None
    """None: vectors are handed in."""
    replica: Replica
    active_space: int
    """The active space's id; another one than `space` only while a fallback serves."""
    degraded: str | None = None
    """Why a fallback answers in the place of the model that was asked for."""

    def encode(self, batches: Sequence[Batch]) -> None:
        """Give batches their vectors; the texts of all of them are embedded together.

        Raises:
            NoEmbedderError: a text came without a vector, and the store has no embedder.
            EmbedderMismatchError: vectors were handed in for a space that serves no longer.
            EmbeddingError: the embedder failed.
        """
        texts = [r.content for batch in batches for r in batch.records if r.embedding is None]
        made = iter(self.embed(texts))
        for batch in batches:
            given = any(record.embedding is not None for record in batch.records)
            if given and batch.space.id != self.space.id:
                raise EmbedderMismatchError(
                    f"vectors were handed in for the space of {batch.space.model}, but meanwhile "
                    f"the store's model became {self.space.model}: embed them with that one"
                )
            rows = [next(made) if r.embedding is None else r.embedding for r in batch.records]
            batch.vectors = np.array(rows, np.float32).reshape(len(rows), self.space.dim)
            batch.space = self.space

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Embed texts to be stored: (n, dim) float32 unit rows. Raises as `encode` does."""
        if not texts:
            return np.empty((0, self.space.dim), np.float32)
        return embed_documents(self.require_embedder("add items with an `embedding`"), texts)

    def query_vector(self, query: str | Sequence[float] | Vectors) -> Vectors:
        """A question as a vector: (dim,) float32 of unit length.

        Raises:
            NoEmbedderError: the question is a text, and the store has no embedder.
            DimensionMismatchError: the question is a vector of another width than the space.
            VectorError: it is no finite vector.
        """
        if isinstance(query, str):
            return embed_query(self.require_embedder("search with a vector"), query)
        row: Vectors = check_embeddings([query], self.space.dim, self.space.model, ["query"])[0]
        return row

    @property
    def stands_in(self) -> bool:
        """Whether a fallback serves while the active space waits for its model."""
        return self.space.id != self.active_space

    def require_embedder(self, way_out: str) -> Embedder:
        """The embedder; NoEmbedderError, naming the way out, when there is none."""
        if self.embedder is None:
            raise NoEmbedderError(
                f"this store was opened with embedding_model=None and embeds no texts: {way_out}, "
                "or open it with a model"
            )
        return self.embedder

    def is_current(self, pulse: Pulse) -> bool:
        """Whether the active space is still the one that this was set up for."""
        return pulse.active_space == self.active_space

    def moved_error(self) -> EmbedderMismatchError:
        """What to raise when it is not."""
        return EmbedderMismatchError(
            f"the store's active space is no longer the one that this process opened (it answers "
            f"from {self.space.model}): another process has changed the model; open the store anew"
        )


@dataclass(frozen=True, slots=True)
class Settler:
    """Finds the space for an embedder and brings it up to date."""

    database: Database
    folder: Path
    """Where index snapshots are kept."""
    device: str
    """Where indexes live."""
    batch_size: int
    clock: Callable[[], datetime]

    def settle(
        self,
        embedder: Embedder | None,
        *,
        alias: str | None,
        embedding_dim: int,
        on_model_change: OnModelChange,
        progress: ProgressCallback | None,
    ) -> Serving:
        """Decide who answers, when a store opens.

        Args:
            embedder: None serves the active space with vectors that are handed in.
            alias: what the caller asked for.
            embedding_dim: the width of a new store without an embedder.
            on_model_change: whether another embedder than the active space's may rebuild it.
            progress: called while vectors are made.

        Raises:
            EmbedderMismatchError: another embedder made the vectors, and `on_model_change` is
                "error".
        """
        active, known = self._look(embedder)
        if embedder is None:
            return self.serve(active or self._new_space_of_given(embedding_dim), None)
        degraded = embedder.fallback_reason if isinstance(embedder, EmbeddingService) else None
        stands_in = degraded is not None and active is not None and active.model != HASH_MODEL
        if active is not None and active.fingerprint != embedder.fingerprint and not stands_in:
            _check_change(active, embedder, alias, on_model_change)
        if known is None or not (stands_in or known.state == "active"):
            # Opening writes only when there is something to do.
            known = self.job(embedder, alias=alias).run(not stands_in, progress).space
        return self.serve(known, embedder, active if stands_in else None, degraded)

    def _look(self, embedder: Embedder | None) -> tuple[Space | None, Space | None]:
        """The active space, and the embedder's own if nothing is pending in it."""
        with self.database.read() as connection:
            repository = Repository(connection, self.clock())
            active = repository.spaces.active()
            for space in repository.spaces.all():
                if embedder is not None and space.fingerprint == embedder.fingerprint:
                    return active, None if repository.spaces.pending_count(space.id) else space
        return active, None

    def _new_space_of_given(self, dim: int) -> Space:
        with self.database.write() as connection:
            repository = Repository(connection, self.clock())
            space = repository.spaces.find_or_create(
                fingerprint=f"given:dim={dim}", model=HANDED_IN, alias=None, dim=dim
            )
            return repository.spaces.activate(space)

    def job(self, embedder: Embedder, *, alias: str | None) -> ReindexJob:
        """A job that brings an embedder's space up to date; the space is made when it is new.

        Raises:
            DimensionMismatchError: the embedder's fingerprint is known with another width.
        """
        with self.database.write() as connection:
            space = Repository(connection, self.clock()).spaces.find_or_create(
                fingerprint=embedder.fingerprint,
                model=embedder.model_id,
                alias=alias,
                dim=embedder.dim,
            )
        return ReindexJob(self.database, space, embedder, self.batch_size, self.clock)

    def serve(
        self,
        space: Space,
        embedder: Embedder | None,
        active: Space | None = None,
        degraded: str | None = None,
    ) -> Serving:
        """Let a space answer; `active` names the active one when it is another."""
        with self.database.read() as connection:
            store_id = Repository(connection, self.clock()).store_id()
        replica = Replica(space, store_id=store_id, folder=self.folder, device=self.device)
        return Serving(space, embedder, replica, (active or space).id, degraded)


def _check_change(
    active: Space, embedder: Embedder, alias: str | None, on_model_change: OnModelChange
) -> None:
    if on_model_change == "error":
        same = " (other weights or settings under the same name)"
        raise EmbedderMismatchError(
            f"the store's vectors were made by {active.model}, and the embedder at hand is "
            f"{embedder.model_id}{same if active.model == embedder.model_id else ''}: run "
            f"`kronos reindex --model {alias or embedder.model_id}`, or open the store with "
            'on_model_change="rebuild"'
        )
