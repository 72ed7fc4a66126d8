"""MemoryStore: the store, synchronous. It joins the parts and owns no rule of theirs.

A text's way in: checked, embedded outside any transaction, then written with its vector and its
seq in one. `KronosMemory` calls these verbs on threads; only of adding and searching it drives the
phases (`_prepare`, `_batches`, `_add_together`; `_wanted`, `_to_embed`, `_answer`), so that tasks
share them. The class is made of layers, a file each: `Opened` (opening, transactions), `Upkeep`
(models, files, checks), `Searching` (how questions are answered), and here the verbs of every day.
"""

from __future__ import annotations

import builtins
import os
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from types import EllipsisType
from typing import TYPE_CHECKING, Any

from kronos.concurrency.steps import Steps
from kronos.errors import InputError, NotFoundError, SpaceChangedError, naming_stored
from kronos.files import expanded
from kronos.index.exact import ExactIndex
from kronos.repository.memories import Batch
from kronos.search.duplicates import groups_of, near_duplicates
from kronos.search.fields import fields_of
from kronos.search.filters import parse
from kronos.search.plan import Selection
from kronos.serving.group_commit import Addition
from kronos.serving.session import utc_now
from kronos.store import adding as intake
from kronos.store.searching import Searching
from kronos.transfer import export as exchange
from kronos.types import (
    DuplicateGroup,
    Hits,
    Link,
    Memory,
    NewMemory,
    Progress,
    Step,
    Version,
)
from kronos.validation import (
    Item,
    check_content,
    check_id,
    check_importance,
    check_limit,
    check_metadata,
    check_number,
    check_scope,
    check_time,
    hash_content,
)

if TYPE_CHECKING:
    from kronos.repository.links import Direction
    from kronos.repository.memories import Repository
    from kronos.search.filters import Where
    from kronos.search.ranking import Ranking
    from kronos.serving.serving import Serving
    from kronos.types import (
        Metadata,
        OnConflict,
        ProgressCallback,
        SearchMode,
        Tokenizer,
        Vectors,
    )

_MEMORIES_A_FETCH = 500
_VECTORS_A_COPY = 2000
"""So many are copied while searches wait."""


@dataclass(frozen=True, slots=True)
class Change:
    """New values of a memory's columns; for a new text its vector, and who made it."""

    id: str
    values: dict[str, Any]
    vector: Vectors | None = None
    serving: Serving | None = None

    def make(self, repository: Repository) -> Memory:
        """Make it."""
        return repository.update(
            self.id,
            self.values,
            space=None if self.serving is None else self.serving.space,
            vector=self.vector,
        )


class MemoryStore(Searching):
    """A store of memories that are found by meaning.

    Threads may share one store. `MemoryStore.open` opens it at once; as a context manager it closes
    itself.

    Args:
        storage_path: a folder, made when it is missing, or a SQLAlchemy URL.
        namespace: the store's own namespace, which calls mean that name none.
        embedding_model: a preset of `EMBEDDING_MODELS`, a model's name, a folder, "hash" for the
            lexical hash embedder, None for a store of vectors that are handed in, or "keep" for
            the model that the store has ("mini" for a new store): it is never changed, and where it
            cannot be had hash vectors answer, with a warning.
        embedder: an object with the `Embedder` protocol, in place of `embedding_model`.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps", or several with commas.
        embedding_dim: the width of hash vectors, and of vectors handed in to a new store. A model's
            width is its own.
        on_model_change: what to do when another embedder made the store's vectors: "rebuild" makes
            them anew before the store opens; "background" does so on a thread while the embedder
            before answers; "error" raises `EmbedderMismatchError`.
        strict: raise `ModelLoadError` where the hash fallback would take over.
        settings: further options; None reads them from the environment.
        migrate: upgrade a database of an older Kronos, after a backup.
        clock: the time, UTC; for tests.
    """

    # -- Adding ---------------------------------------------------------------------------------

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
        return self._add(self._prepare(item, on_conflict))[0]

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
        """Store one memory, in the place of the one with this id, or else with this text.

        Without an id, a live memory of the same namespace whose text is exactly this one is
        replaced; with neither, a new one is stored. What is replaced keeps its id, the time of its
        creation, its links and its history.

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
        return self._add(self._prepare(item, "replace", match_content=True))[0]

    def add_many(
        self,
        items: Iterable[Item],
        *,
        on_conflict: OnConflict = "error",
        progress: ProgressCallback | None = None,
    ) -> builtins.list[str]:
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
        ids: builtins.list[str] = []
        with naming_stored(ids):
            for batch in self._batches(items, on_conflict):
                ids += self._add(batch)
                if progress is not None:
                    progress(Progress(len(ids), None))
        return ids

    def _prepare(
        self, item: Item, on_conflict: OnConflict, *, match_content: bool = False
    ) -> Batch:
        batch = intake.prepare(
            [item],
            on_conflict,
            space=self._serving.space,
            namespace=self.namespace,
            settings=self._settings,
        )
        batch.match_content = match_content
        return batch

    def _batches(self, items: Iterable[Item], on_conflict: OnConflict) -> Iterator[Batch]:
        return intake.batches(
            items,
            on_conflict,
            space=self._serving.space,
            namespace=self.namespace,
            settings=self._settings,
        )

    def _encode(self, batches: Sequence[Batch]) -> None:
        for batch in batches:
            if batch.on_conflict == "ignore":
                self._drop_known(batch)
        serving = self._serving
        serving.encode(batches, self._made_before(serving, batches) if serving.is_slow else None)

    def _made_before(self, serving: Serving, batches: Sequence[Batch]) -> dict[bytes, Vectors]:
        """The vectors of texts that the store has seen: they are not made again."""
        hashes = {r.content_hash for batch in batches for r in batch.records if r.embedding is None}
        with self._reader() as repository:
            return repository.spaces.made_before(serving.space, [*hashes])

    def _drop_known(self, batch: Batch) -> None:
        """Spare what is there already its embedding; whoever deletes it now comes after us."""
        with self._reader() as repository:
            known = repository.known([r.id for r in batch.records if r.id_given])
        batch.records = [record for record in batch.records if record.id not in known]

    def _commit(self, batches: Sequence[Batch]) -> builtins.list[builtins.list[str] | Exception]:
        """Write embedded batches; each one's ids, or why it was refused."""
        serving = self._serving
        moved = [batch for batch in batches if batch.space.id != serving.space.id]
        if moved:  # another space took over since these were embedded
            serving.encode(moved)
        rows = sum(len(batch.records) for batch in batches)
        outcomes = self._writes([Addition(batch, serving) for batch in batches], rows)
        left = [
            batch
            for batch, outcome in zip(batches, outcomes, strict=True)
            if isinstance(outcome, SpaceChangedError)
        ]
        again = iter(self._commit_moved(left, serving) if left else ())
        return [next(again) if isinstance(each, SpaceChangedError) else each for each in outcomes]

    def _commit_moved(
        self, batches: Sequence[Batch], left: Serving
    ) -> builtins.list[builtins.list[str] | Exception]:
        try:
            self._follow(left)
            return self._commit(batches)
        except Exception as exc:  # others of their group are written, and must not be told so
            return [exc] * len(batches)

    def _add_together(
        self, batches: Sequence[Batch]
    ) -> builtins.list[builtins.list[str] | Exception]:
        """Embed and write batches; each one's ids, or why it was refused."""
        self._encode(batches)
        return self._commit(batches)

    def _add(self, batch: Batch) -> builtins.list[str]:
        (outcome,) = self._add_together([batch])
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    # -- Reading --------------------------------------------------------------------------------

    def get(self, id: str, *, as_of: datetime | None = None) -> Memory:
        """Read a memory.

        Args:
            id: the memory's id.
            as_of: as the store knew it at this moment, timezone-aware; None is now.

        Raises:
            NotFoundError: no live memory has, or had, this id.
        """
        memory = self.find(id, as_of=as_of)
        if memory is None:
            raise NotFoundError(
                f"no memory has the id {id!r}" if as_of is None else f"none had it: {id!r}"
            )
        return memory

    def find(self, id: str, *, as_of: datetime | None = None) -> Memory | None:
        """Read a memory, or None when no live memory has this id; see `get`."""
        id = check_id(id)
        with self._reader_of(as_of) as repository:
            memory = repository.find(id)
        if memory is not None and as_of is None and self._settings.track_access:
            self._note_access([id])
        return memory

    def list(
        self,
        *,
        where: Where | None = None,
        namespace: str | None = None,
        after: str | None = None,
        limit: int = 100,
        as_of: datetime | None = None,
    ) -> builtins.list[Memory]:
        """Read memories in the order in which they were added, a page at a time.

        What others add, change or delete meanwhile moves no memory from one page to another.

        Args:
            where: a filter, a dict or built with `F`.
            namespace: this one and all below it; None is the store's own, "*" every one.
            after: the last id of the page before; its memory may be gone meanwhile.
            limit: how many at most.
            as_of: as the store knew them at this moment; None is now.

        Raises:
            NotFoundError: no memory has, or had, the id `after`.
            FilterError: the filter cannot be understood.
        """
        selection = self._selection(where, namespace)
        after = None if after is None else check_id(after, field="after")
        return self._list(selection, check_time(as_of, field="as_of"), after, check_limit(limit))

    def iterate(
        self,
        *,
        where: Where | None = None,
        namespace: str | None = None,
        as_of: datetime | None = None,
    ) -> Iterator[Memory]:
        """Read all memories, in the order in which they were added; arguments as for `list`.

        They are fetched bit by bit, so any number of them needs little memory and holds up nobody.
        """
        selection = self._selection(where, namespace)
        check_time(as_of, field="as_of")
        return self._iterate(selection, as_of)

    def _iterate(self, selection: Selection, as_of: datetime | None) -> Iterator[Memory]:
        key = -1
        while part := self._fetch(selection, as_of, key):
            for _, memory in part:
                self._open_database  # noqa: B018 - closed, it hands out nothing that it had read either
                yield memory
            key = part[-1][0]

    def _fetch(
        self, selection: Selection, as_of: datetime | None, key: int
    ) -> builtins.list[tuple[int, Memory]]:
        return self._page(selection, check_time(as_of, field="as_of"), key, _MEMORIES_A_FETCH)

    def count(
        self,
        *,
        where: Where | None = None,
        namespace: str | None = None,
        as_of: datetime | None = None,
    ) -> int:
        """Count memories; arguments as for `list`."""
        selection = self._selection(where, namespace)
        return self._count(selection, check_time(as_of, field="as_of"))

    def history(self, id: str) -> builtins.list[Version]:
        """What a memory was, and is, the oldest first.

        A memory that was deleted has its history until `compact`; one that was deleted and added
        again under its id has both.

        Raises:
            NotFoundError: no memory has, or had, this id.
        """
        id = check_id(id)
        with self._reader() as repository:
            versions = repository.versions(id)
        if not versions:
            raise NotFoundError(f"no memory has, or had, the id {id!r}")
        return versions

    def _selection(self, where: Where | None, namespace: str | None) -> Selection:
        return Selection.of(check_scope(namespace, self.namespace), where)

    # -- Searching ------------------------------------------------------------------------------

    def search(
        self,
        query: str | Sequence[float] | Vectors | None = None,
        *,
        limit: int = 10,
        namespace: str | None = None,
        where: Where | None = None,
        mode: SearchMode = "hybrid",
        min_score: float | None = None,
        near: str | None = None,
        ranking: Ranking | None = None,
        group_by: str | None = None,
        as_of: datetime | None = None,
        expand: int = 0,
        expand_outside: bool = False,
        explain: bool = False,
    ) -> Hits:
        """Find the memories that match best.

        Args:
            query: a text, or a vector (dim,) of the active space.
            limit: how many at most; that many come back when that many match.
            namespace: this one and all below it; None is the store's own, "*" every one.
            where: a filter, a dict or built with `F`.
            mode: "hybrid": by meaning and by words; "dense": by the cosine of the vectors;
                "lexical": by words alone, which needs no model. A vector has no words, and a store
                without an embedder asks for words alone.
            min_score: leave out hits that score lower; where a reranker judges, by its score.
            near: the id of a memory, instead of a query: find what is like it; with `as_of`, like
                what it was then.
            ranking: what a score is made of; None is how well a memory matches, alone.
            group_by: a metadata key, "namespace" or "parent_id": only the best hit of each group.
            as_of: search what the store knew at this moment, timezone-aware.
            expand: bring in memories that are so many links or parents away from a hit, at most
                `limit` of them, behind the hits; each names the hit that leads to it, and scores
                below it. They too stand in the namespace, meet the filter and reach `min_score`.
            expand_outside: bring in linked memories wherever they stand and whatever they are.
            explain: say how the search was answered, and what each signal adds to a score.

        Returns:
            Hits, the best first; a list with an `explanation`.

        Raises:
            InputError: an argument is refused; its `field` names it.
            NotFoundError: no memory has the id `near`.
            NoEmbedderError: mode="dense" with a text, and the store has no embedder.
            EmbedderMismatchError: the query is a vector, and meanwhile the store's model changed.
            ModelLoadError: the reranker cannot be had.
        """
        wanted = self._wanted(
            limit=limit,
            namespace=namespace,
            where=where,
            mode=mode,
            min_score=min_score,
            ranking=ranking,
            group_by=group_by,
            near=near,
            as_of=as_of,
            expand=expand,
            expand_outside=expand_outside,
            explain=explain,
        )
        return self._search(self._ask([query], wanted))[0]

    def search_many(
        self,
        queries: Iterable[str | Sequence[float] | Vectors],
        *,
        limit: int = 10,
        namespace: str | None = None,
        where: Where | None = None,
        mode: SearchMode = "hybrid",
        min_score: float | None = None,
        ranking: Ranking | None = None,
        group_by: str | None = None,
        as_of: datetime | None = None,
        expand: int = 0,
        expand_outside: bool = False,
        explain: bool = False,
    ) -> builtins.list[Hits]:
        """Answer many questions at once: they are embedded together, and the index is read once.

        Args:
            queries: texts, or vectors.
            limit: as for `search`, for each question; so are the others.
            namespace: as for `search`.
            where: as for `search`.
            mode: as for `search`.
            min_score: as for `search`.
            ranking: as for `search`.
            group_by: as for `search`.
            as_of: as for `search`.
            expand: as for `search`.
            expand_outside: as for `search`.
            explain: as for `search`.

        Returns:
            The hits of each question, in the order of the questions.

        Raises:
            InputError: an argument is refused, or texts and vectors are mixed.
        """
        wanted = self._wanted(
            limit=limit,
            namespace=namespace,
            where=where,
            mode=mode,
            min_score=min_score,
            ranking=ranking,
            group_by=group_by,
            near=None,
            as_of=as_of,
            expand=expand,
            expand_outside=expand_outside,
            explain=explain,
        )
        asked = self._check_queries(queries)
        return self._search(self._ask(asked, wanted)) if asked else []

    def duplicates(
        self,
        threshold: float = 0.95,
        *,
        where: Where | None = None,
        namespace: str | None = None,
        progress: ProgressCallback | None = None,
        stop: threading.Event | None = None,
    ) -> builtins.list[DuplicateGroup]:
        """Find memories that say nearly the same.

        Args:
            threshold: the cosine from which on two memories count as near duplicates, above 0.
            where: a filter.
            namespace: this one and all below it; None is the store's own, "*" every one.
            progress: called now and then with the memories that were compared with all others.
            stop: set it to stop soon.

        Returns:
            Groups of memories, each joined to another one of its group by a pair above the
            threshold; those that are most alike first.

        Raises:
            InputError: the threshold is not above 0 and at most 1.
            StoppedError: `stop` was set.
        """
        if not 0 < check_number(threshold, field="threshold") <= 1:
            raise InputError(
                f"threshold must be above 0 and at most 1, not {threshold!r}", field="threshold"
            )
        copied = self._copied_index(self._selection(where, namespace))
        found = near_duplicates(copied, threshold, steps=Steps(progress, stop))
        with self._reader() as repository:
            return groups_of(repository, found)

    def _copied_index(self, selection: Selection) -> ExactIndex:
        """The vectors of some memories, so that what takes minutes holds up no search."""
        keys = self._keys_of(selection)
        while True:
            serving = self._serving
            copied = ExactIndex(serving.space.dim)
            try:
                for start in range(0, keys.size, _VECTORS_A_COPY):
                    with self._index_of(serving) as (index, _):
                        part = keys[start : start + _VECTORS_A_COPY]
                        part = part[index.held(part)]
                        copied.upsert(part, index.vectors_of(part))
                return copied
            except SpaceChangedError:
                self._follow(serving)

    # -- Links and lineage ----------------------------------------------------------------------

    def link(self, source_id: str, target_id: str, relation: str, weight: float = 1.0) -> None:
        """Link a memory to another one, whatever their namespaces.

        Args:
            source_id: where the link begins.
            target_id: where it leads.
            relation: what it says, such as "supports"; 1 to 200 characters.
            weight: how much it counts when a search follows it, as if within 0..1. A link of this
                relation that is there gets the weight.

        Raises:
            NotFoundError: one of them is no live memory.
            InputError: they are the same, or an argument is refused.
        """
        source_id = check_id(source_id, field="source_id")
        target_id = check_id(target_id, field="target_id")
        self._write(lambda repository: repository.links.add(source_id, target_id, relation, weight))

    def unlink(self, source_id: str, target_id: str, relation: str | None = None) -> int:
        """Remove a link, or with no relation every link from one memory to the other.

        Returns:
            How many there were.
        """
        source_id = check_id(source_id, field="source_id")
        target_id = check_id(target_id, field="target_id")
        return self._write(
            lambda repository: repository.links.remove(source_id, target_id, relation)
        )

    def links(self, id: str) -> builtins.list[Link]:
        """The links from and to a memory: those from it first, then the oldest.

        Raises:
            NotFoundError: no live memory has this id.
        """
        id = check_id(id)
        with self._reader() as repository:
            return repository.links.of(id)

    def trace(
        self, id: str, direction: Direction = "ancestors", depth: int = 10
    ) -> builtins.list[Step]:
        """Find where a memory comes from, or what came of it, over parents and links.

        Args:
            id: where to begin; it is not among what is found.
            direction: "ancestors": parents, and the sources of links; "descendants": children, and
                the targets of links; "both": the two walks, each of which keeps its direction.
            depth: how many steps at most.

        Returns:
            Each memory once, the nearest first.

        Raises:
            NotFoundError: no live memory has this id.
            InputError: the direction or the depth is refused.
        """
        id = check_id(id)
        with self._reader() as repository:
            return repository.steps(repository.links.trace(id, direction, depth))

    # -- Changing -------------------------------------------------------------------------------

    def update(
        self,
        id: str,
        *,
        content: str | EllipsisType = ...,
        metadata: Metadata | EllipsisType | None = ...,
        importance: float | EllipsisType = ...,
        expires_at: datetime | EllipsisType | None = ...,
    ) -> Memory:
        """Change fields of a memory; what is left out stays, and `history` knows what was.

        Args:
            id: the memory's id.
            content: a new text, which is embedded anew.
            metadata: new metadata, in the place of all that was there.
            importance: 0..1.
            expires_at: timezone-aware; None for never.

        Returns:
            The memory as it is now.

        Raises:
            NotFoundError: no live memory has this id.
            InputError: an argument is refused; its `field` names it.
            NoEmbedderError: a new text, in a store without an embedder.
        """
        change = self._check_change(id, content, metadata, importance, expires_at)
        return self._update(self._encode_change(change))

    def _check_change(
        self,
        id: str,
        content: str | EllipsisType,
        metadata: Metadata | EllipsisType | None,
        importance: float | EllipsisType,
        expires_at: datetime | EllipsisType | None,
    ) -> Change:
        values: dict[str, Any] = {}
        if content is not ...:
            encoded = check_content(content, self._settings.max_content_bytes)
            values |= {"content": content, "content_hash": hash_content(encoded)}
        if metadata is not ...:
            values["metadata"] = check_metadata(metadata, self._settings)
        if importance is not ...:
            values["importance"] = check_importance(importance)
        if expires_at is not ...:
            values["expires_at"] = check_time(expires_at, field="expires_at")
        return Change(check_id(id), values)

    def _encode_change(self, change: Change) -> Change:
        """Embed a change's text, if it has one."""
        if "content" not in change.values:
            return change
        serving = self._serving
        return replace(change, serving=serving, vector=serving.embed([change.values["content"]]))

    def _update(self, change: Change) -> Memory:
        while True:
            if change.serving not in (None, self._serving):  # another space took over
                change = self._encode_change(change)
            serving = change.serving
            try:
                return self._write(change.make, serving)
            except SpaceChangedError:
                self._follow(self._serving if serving is None else serving)

    def delete(
        self,
        ids: str | Iterable[str] | None = None,
        *,
        where: Where | None = None,
        namespace: str | None = None,
    ) -> int:
        """Delete memories, by id or by what they match.

        Many are deleted in parts of some hundreds, so that other writers need not wait: what ends
        it before its end (an error, a kill) leaves each memory whole or gone, and some may be gone.
        By a filter, those go that match when it begins and still match when their turn comes.

        Args:
            ids: one id or several, anywhere in the store; unknown ones are passed over.
            where: a filter, a dict or built with `F`.
            namespace: this one and all below it; None is the store's own, "*" every one.

        Returns:
            How many were deleted.

        Raises:
            InputError: nothing names what to delete, or both ids and a filter do.
        """
        # An empty filter names nothing: it is more often a mistake than a wish.
        matching = parse(where) is not None or namespace is not None
        if (ids is None) != matching:
            raise InputError(
                "delete takes either ids, or where and namespace (namespace='*' for everything)",
                field="ids",
            )
        if ids is not None:
            return self._delete_ids([*dict.fromkeys(check_id(id) for id in _listed(ids))])
        return self._delete_matching(self._selection(where, namespace))

    def touch(self, ids: str | Iterable[str]) -> int:
        """Note that memories are made use of now, for a ranking by last access.

        Returns:
            How many live memories there were among them.
        """
        return self._touch(check_id(id) for id in _listed(ids))

    # -- How memories are found, and files --------------------------------------------------------

    def index_field(self, path: str) -> bool:
        """Give a metadata key an index of its own, so that filters on it are fast.

        Args:
            path: a key, with dots to go down.

        Returns:
            False when it has one already.

        Raises:
            FilterError: the path is refused.
        """
        with self._writer() as repository:
            return fields_of(repository).add(path)

    def unindex_field(self, path: str) -> bool:
        """Take a metadata key's index away; False when it has none."""
        with self._writer() as repository:
            return fields_of(repository).remove(path)

    def indexed_fields(self) -> builtins.list[str]:
        """The metadata keys that have an index of their own."""
        with self._reader() as repository:
            return fields_of(repository).all()

    def rebuild_words(
        self, tokenizer: Tokenizer | None = None, *, stop: threading.Event | None = None
    ) -> None:
        """Make the word index anew from the texts, which are cut into words in another way.

        Args:
            tokenizer: "porter", "unicode61" or "trigram"; None keeps the one that the store has.
            stop: set it to stop soon; then the words stay as they were.

        Raises:
            InputError: there is no such tokenizer.
            StoppedError: `stop` was set.
        """
        if tokenizer not in (None, "porter", "unicode61", "trigram"):
            raise InputError(
                f'tokenizer must be "porter", "unicode61" or "trigram", not {tokenizer!r}',
                field="tokenizer",
            )
        steps = Steps(None, stop)
        with (
            self._open_database.stoppable(lambda: steps.is_stopped),
            self._writer() as repository,
        ):
            repository.fulltext.rebuild(tokenizer)

    def export_to(
        self,
        path: str | os.PathLike[str],
        *,
        vectors: bool = False,
        where: Where | None = None,
        namespace: str | None = "*",
        progress: ProgressCallback | None = None,
        stop: threading.Event | None = None,
    ) -> int:
        """Write memories, as they are at one moment, to a file that `import_from` brings back.

        Args:
            path: ends with .jsonl or .parquet, which says the format; a file there is replaced. It
                can be read by those who can read the database, and by nobody else.
            vectors: with the vectors of the active space, so that a store of the same model need
                not embed them anew.
            where: a filter, a dict or built with `F`.
            namespace: this one and all below it; "*" is every one, None the store's own.
            progress: called now and then with the memories that are written.
            stop: set it to stop soon.

        Returns:
            How many memories the file holds.

        Raises:
            InputError: the path, the filter or the namespace is refused.
            MissingDependencyError: Parquet needs pyarrow.
            StorageError: the file could not be written; no part of it is left.
            StoppedError: `stop` was set; likewise.
        """
        target = expanded(path).absolute()
        selection = self._selection(where, namespace)
        scope, condition = selection.scope, selection.condition
        with self._reader() as repository:
            space = repository.spaces.active() if vectors else None
            steps = Steps(progress, stop, total=repository.keys(scope, condition).size)
            found = steps.counted(exchange.rows(repository, scope, condition, space))
            return exchange.write(target, found, space, mode=self._open_database.dialect.mode)

    def import_from(
        self,
        path: str | os.PathLike[str],
        *,
        on_conflict: OnConflict = "ignore",
        progress: ProgressCallback | None = None,
        stop: threading.Event | None = None,
    ) -> builtins.list[str]:
        """Bring back what `export_to` wrote: ids, times and metadata as they were.

        Vectors are taken over when this store's embedder made them; else the texts are embedded.

        Args:
            path: the file.
            on_conflict: for an id that exists: "error", "replace" or "ignore".
            progress: called after every batch.
            stop: set it to stop soon.

        Returns:
            The ids of the memories in the file.

        Raises:
            InputError: the file is no export, or not as it was written: nothing of it is stored. Or
                this store refuses a memory in it: the batches before that one are stored, and the
                error names their ids, as `stored_ids`.
            DuplicateIdError: an id exists and `on_conflict` is "error"; likewise.
            StoppedError: `stop` was set. The batches before are stored; "ignore" passes them over
                the next time.
        """
        found = exchange.read(expanded(path).absolute(), self._serving.space)
        items = Steps(None, stop).counted(found)
        return self.add_many(items, on_conflict=on_conflict, progress=progress)


def _listed(ids: str | Iterable[str]) -> Iterable[str]:
    if isinstance(ids, str):
        return [ids]
    if isinstance(ids, bytes | Mapping) or not isinstance(ids, Iterable):
        raise InputError(
            f"ids must be an id or several, not {type(ids).__name__}: {ids!r:.60}", field="ids"
        )
    return ids


__all__ = ["Change", "MemoryStore", "utc_now"]
