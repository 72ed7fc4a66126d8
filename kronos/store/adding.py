"""Adding: memories become checked batches, which are embedded and then written.

A text is embedded outside any transaction. Its row, its vector and its seq are written in one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from itertools import islice
from typing import TYPE_CHECKING, get_args

from kronos.errors import InputError, SpaceChangedError, naming_stored
from kronos.repository.batches import Batch
from kronos.serving.group_commit import Addition
from kronos.settings import Settings
from kronos.types import Metadata, NewMemory, OnConflict, Progress, ProgressCallback, Space, Vectors
from kronos.validation import Item, check_embeddings, check_item

if TYPE_CHECKING:
    from kronos.serving.serving import Serving
    from kronos.serving.session import Session


class Adding:
    """Adds memories.

    Args:
        session: the open store.
    """

    def __init__(self, session: Session) -> None:
        self._session = session

    def add(
        self,
        content: str,
        *,
        metadata: Metadata | None = None,
        namespace: str | None = None,
        importance: float = 0.5,
        parent_id: str | None = None,
        expires_at: datetime | None = None,
        id: str | None = None,
        embedding: Vectors | Sequence[float] | None = None,
        on_conflict: OnConflict = "error",
    ) -> str:
        """Store one memory; it is durable and searchable when this returns.

        Args:
            content: the text.
            metadata: a JSON object.
            namespace: None is the store's own.
            importance: 0..1.
            parent_id: the id of the memory that this one came from.
            expires_at: timezone-aware; from then on the memory is never returned.
            id: None makes a new UUID.
            embedding: (dim,) floats, taken as made by the store's embedder, which then need not
                embed the content; a store with embedding_model=None needs it.
            on_conflict: for an id that exists: "error", "replace" or "ignore".

        Returns:
            The memory's id.

        Raises:
            InputError: an argument is refused; its `field` names it.
            NoEmbedderError: no `embedding`, in a store with embedding_model=None.
            DuplicateIdError: the id exists and `on_conflict` is "error".
        """
        item = NewMemory(
            content,
            id=id,
            namespace=namespace,
            metadata=metadata,
            importance=importance,
            parent_id=parent_id,
            expires_at=expires_at,
            embedding=embedding,
        )
        return self.write(self.prepare(item, on_conflict))[0]

    def upsert(
        self,
        content: str,
        *,
        id: str | None = None,
        metadata: Metadata | None = None,
        namespace: str | None = None,
        importance: float = 0.5,
        parent_id: str | None = None,
        expires_at: datetime | None = None,
        embedding: Vectors | Sequence[float] | None = None,
    ) -> str:
        """Store one memory, instead of the one with this id, or else with this text.

        Without an id, it replaces the live memory of the same namespace that has exactly this text.
        With neither, it is new. A replaced memory keeps its id, the time of its creation, its links
        and its history.

        Args:
            content: the text.
            id: the id of the memory to replace, or to make.
            metadata: as for `add`; all that was there goes.
            namespace: as for `add`.
            importance: as for `add`.
            parent_id: as for `add`.
            expires_at: as for `add`.
            embedding: as for `add`.

        Returns:
            The memory's id.

        Raises:
            InputError: an argument is refused; its `field` names it.
            NoEmbedderError: as for `add`.
        """
        item = NewMemory(
            content,
            id=id,
            namespace=namespace,
            metadata=metadata,
            importance=importance,
            parent_id=parent_id,
            expires_at=expires_at,
            embedding=embedding,
        )
        return self.write(self.prepare(item, "replace", match_content=True))[0]

    def add_many(
        self,
        items: Iterable[Item],
        *,
        on_conflict: OnConflict = "error",
        progress: ProgressCallback | None = None,
    ) -> list[str]:
        """Store many memories, `settings.batch_size` of them in a transaction.

        Args:
            items: texts, `NewMemory` objects or dicts with their fields; read as they are needed.
            on_conflict: for an id that exists: "error", "replace" or "ignore".
            progress: called after every batch.

        Returns:
            The ids, in the order of the items.

        Raises:
            InputError: an item is refused. Batches before its own are stored, its own is not.
            DuplicateIdError: an id exists and `on_conflict` is "error"; likewise.
            TransientEmbeddingError: the embedder fails in passing, for longer than
                `settings.embed_retry_s`; likewise.

        Each error names, as `stored_ids`, what was stored before it; so does an error of another
        kind that `items` or `progress` raises.
        """
        ids: list[str] = []
        with naming_stored(ids):
            for batch in self.batches(items, on_conflict):
                ids += self.write(batch)
                if progress is not None:
                    progress(Progress(len(ids), None))
        return ids

    # -- Phases, which the calls of tasks share ---------------------------------------------------

    def prepare(self, item: Item, on_conflict: OnConflict, *, match_content: bool = False) -> Batch:
        """Check one memory; arguments and errors as for `add`.

        Args:
            item: the memory.
            on_conflict: what to do with an id that exists.
            match_content: without an id, replace the memory that has this text.
        """
        session = self._session
        batch = prepare(
            [item],
            on_conflict,
            space=session.serving.space,
            namespace=session.options.namespace,
            settings=session.settings,
        )
        batch.match_content = match_content
        return batch

    def batches(self, items: Iterable[Item], on_conflict: OnConflict) -> Iterator[Batch]:
        """Check memories, a batch at a time; arguments and errors as for `add_many`."""
        session = self._session
        return batches(
            items,
            on_conflict,
            space=session.serving.space,
            namespace=session.options.namespace,
            settings=session.settings,
        )

    def write(self, batch: Batch) -> list[str]:
        """Embed and write a batch: its ids."""
        (outcome,) = self.add_together([batch])
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def add_together(self, batches: Sequence[Batch]) -> list[list[str] | Exception]:
        """Embed and write batches; each one's ids, or why it was refused."""
        self.encode(batches)
        return self.commit(batches)

    def encode(self, batches: Sequence[Batch]) -> None:
        """Embed batches for the serving space."""
        for batch in batches:
            if batch.on_conflict == "ignore":
                self._drop_known(batch)
        serving = self._session.serving
        serving.encode(batches, self._made_before(serving, batches) if serving.is_slow else None)

    def _made_before(self, serving: Serving, batches: Sequence[Batch]) -> dict[bytes, Vectors]:
        """The vectors of texts that the store has seen: they are not made again."""
        hashes = {r.content_hash for batch in batches for r in batch.records if r.embedding is None}
        with self._session.reader() as repository:
            return repository.vectors.made_before(serving.space, [*hashes])

    def _drop_known(self, batch: Batch) -> None:
        """Do not embed what the store holds already; a delete that comes now counts as later."""
        with self._session.reader() as repository:
            known = repository.known([r.id for r in batch.records if r.id_given])
        batch.records = [record for record in batch.records if record.id not in known]

    def commit(self, batches: Sequence[Batch]) -> list[list[str] | Exception]:
        """Write embedded batches; each one's ids, or why it was refused."""
        serving = self._session.serving
        moved = [batch for batch in batches if batch.space.id != serving.space.id]
        if moved:  # another space took over since these were embedded
            serving.encode(moved)
        rows = sum(len(batch.records) for batch in batches)
        additions = [Addition(batch, serving) for batch in batches]
        outcomes = self._session.write_all(additions, rows)
        left = [
            batch
            for batch, outcome in zip(batches, outcomes, strict=True)
            if isinstance(outcome, SpaceChangedError)
        ]
        again = iter(self._commit_moved(left, serving) if left else ())
        return [next(again) if isinstance(each, SpaceChangedError) else each for each in outcomes]

    def _commit_moved(self, batches: Sequence[Batch], left: Serving) -> list[list[str] | Exception]:
        try:
            self._session.follow(left)
            return self.commit(batches)
        except Exception as exc:  # others of their group are written, and must not be told so
            return [exc] * len(batches)


def prepare(
    items: Sequence[Item],
    on_conflict: OnConflict,
    *,
    space: Space,
    namespace: str,
    settings: Settings,
    first: int | None = None,
) -> Batch:
    """Check items that are to be written whole or not at all.

    Args:
        items: texts, `NewMemory` objects or dicts.
        on_conflict: what to do with an id that exists.
        space: the space of the vectors that callers give.
        namespace: for items that name none.
        settings: the limits.
        first: the position of the first item among the caller's, for errors; None for a lone one.

    Raises:
        InputError: an item is refused; the error's `field` names it.
    """
    if on_conflict not in get_args(OnConflict):
        raise InputError(
            f'on_conflict must be "error", "replace" or "ignore", not {on_conflict!r}',
            field="on_conflict",
        )
    dots = [""] if first is None else [f"items[{first + i}]." for i in range(len(items))]
    records = [
        check_item(item, namespace=namespace, settings=settings, field=dot[:-1])
        for item, dot in zip(items, dots, strict=True)
    ]
    given = [i for i, record in enumerate(records) if record.embedding is not None]
    if given:
        rows = check_embeddings(
            [records[i].embedding for i in given],
            space.dim,
            space.model,
            lambda position: f"{dots[given[position]]}embedding",
        )
        for i, row in zip(given, rows, strict=True):
            records[i].embedding = row
    return Batch(records, [record.id for record in records], on_conflict, space)


def batches(
    items: Iterable[Item],
    on_conflict: OnConflict,
    *,
    space: Space,
    namespace: str,
    settings: Settings,
) -> Iterator[Batch]:
    """Cut a stream of items into batches of `settings.batch_size`, read as they are needed.

    Raises:
        InputError: as for `prepare`, or the items are a single one.
    """
    if isinstance(items, str | bytes | dict) or not isinstance(items, Iterable):
        raise InputError(
            f"items must be an iterable of memories, not {type(items).__name__}; add() takes a "
            "single text",
            field="items",
        )
    first, rest = 0, iter(items)
    while part := list(islice(rest, settings.batch_size)):
        yield prepare(
            part, on_conflict, space=space, namespace=namespace, settings=settings, first=first
        )
        first += len(part)
