"""A question's way: embedded, then answered in one read transaction; and whatever comes between.

`Searching` embeds questions outside any transaction, lets the index catch up inside one, and has
`kronos.search` rank what it finds. When another space became the active one meanwhile, or texts of
another process wait to be embedded, it sees to that and asks again.
"""

from __future__ import annotations

import functools
import logging
import math
import threading
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from kronos.embedding.registry import HASH_MODEL
from kronos.embedding.reranking import Reranker, load_reranker
from kronos.errors import (
    EmbedderMismatchError,
    InputError,
    NotFoundError,
    StorageError,
    TransientEmbeddingError,
)
from kronos.jobs import JobOptions
from kronos.reindex import ReindexJob, catch_up
from kronos.search import engine
from kronos.search.engine import Candidate, Query, Request, Search, Watch
from kronos.search.plan import Found, Selection, nearest_of_each
from kronos.search.ranking import check_ranking
from kronos.search.sources import Ahead, NotEmbeddedError, Past, Present, Source
from kronos.serving import Moved
from kronos.types import Explanation, Hit, Hits, Memory
from kronos.upkeep import Upkeep
from kronos.validation import (
    check_content,
    check_id,
    check_limit,
    check_number,
    check_scope,
    check_time,
    to_microseconds,
)

if TYPE_CHECKING:
    from kronos.history import PastText
    from kronos.repository import Pulse, Repository
    from kronos.search.filters import Where
    from kronos.search.ranking import Ranking
    from kronos.serving import Serving
    from kronos.types import Keys, SearchMode, Space, VectorIndex, Vectors

    Asked: TypeAlias = str | Sequence[float] | Vectors

logger = logging.getLogger("kronos")

WORDS = "words"
"""What a hit names as its embedder where none answered."""
_TEXTS_IN_A_SEARCH = 64
"""So many texts that another process left pending are embedded by the search that finds them; more
are left to a job in the background."""
_READ_AHEAD = 20
"""So many of what is nearest to each of many questions are read at once."""
_MOST_EXPANDED = 1000
_MOST_HOPS = 8


class _Behind(Exception):
    """The space that serves lacks texts."""

    def __init__(self, texts: int) -> None:
        super().__init__()
        self.texts = texts


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a search is asked for, checked: a request, and what only the store knows."""

    request: Request
    near: str | None
    as_of: datetime | None
    expand: int
    explain: bool

    @property
    def at_hand(self) -> int:
        """So many candidates must be at hand at the end."""
        ranking = self.request.ranking
        limit = self.request.limit
        return limit if ranking.rerank is None else max(limit, ranking.rerank_top)

    @property
    def retrieval(self) -> Request:
        """What is asked of the index: where candidates are reranked, all else comes after."""
        ranking = self.request.ranking
        if ranking.rerank is None:
            return self.request
        return replace(self.request, group_by=None, ranking=replace(ranking, diversity=0.0))


@dataclass(frozen=True, slots=True)
class Question:
    """Queries, as they are to be answered by the space that served when they were embedded."""

    asked: tuple[Asked, ...]
    wanted: Wanted
    mode: SearchMode
    queries: tuple[Query, ...]
    serving: Serving


class Searching(Upkeep):
    """How a store searches; `MemoryStore` is the class to use."""

    # -- What is asked ---------------------------------------------------------------------------

    def _wanted(
        self,
        *,
        limit: int,
        namespace: str | None,
        where: Where | None,
        mode: SearchMode,
        min_score: float | None,
        ranking: Ranking | None,
        group_by: str | None,
        near: str | None,
        as_of: datetime | None,
        expand: int,
        explain: bool,
    ) -> Wanted:
        if mode not in ("hybrid", "dense", "lexical"):
            raise InputError(
                f'mode must be "hybrid", "dense" or "lexical", not {mode!r}', field="mode"
            )
        ranking = check_ranking(ranking)
        check_time(as_of, field="as_of")
        now = ranking.now or as_of or self._clock()
        request = Request(
            selection=Selection.of(check_scope(namespace, self.namespace), where),
            limit=check_limit(limit),
            mode=mode,
            min_score=-math.inf
            if min_score is None
            else check_number(min_score, field="min_score"),
            ranking=ranking,
            group_by=None if group_by is None else engine.group_path(group_by),
            now=to_microseconds(now),
            tells_shares=bool(explain) or ranking.rerank is not None,
        )
        return Wanted(
            request,
            None if near is None else check_id(near, field="near"),
            as_of,
            _check_hops(expand),
            bool(explain),
        )

    def _ask(self, asked: Sequence[Asked | None], wanted: Wanted) -> Question:
        """Embed questions; all are of one kind."""
        serving = self._serving
        if wanted.near is not None:
            if any(query is not None for query in asked):
                raise InputError("search takes a query or near, not both", field="near")
            return self._ask_near(wanted.near, wanted, serving)
        texts = [query for query in asked if isinstance(query, str)]
        for text in texts:
            check_content(text, self._settings.max_content_bytes, field="query")
        if texts and len(texts) < len(asked):
            raise InputError("queries must be texts, or vectors, not both", field="queries")
        mode = wanted.request.mode
        if texts and mode == "hybrid" and serving.embedder is None:
            mode = "lexical"
        rows: list[Vectors | None] = [None] * len(asked)
        if texts and mode != "lexical":
            rows = [*serving.query_vectors(texts)]
        elif not texts:
            if mode == "lexical" or wanted.request.ranking.rerank is not None:
                raise InputError("a vector has no words: search with a text", field="query")
            mode = "dense"
            rows = [serving.own_vector(query) for query in asked]  # type: ignore[arg-type]
        queries = tuple(
            Query(query if isinstance(query, str) else None, row, _is_lexical(serving))
            for query, row in zip(asked, rows, strict=True)
        )
        return Question(tuple(asked), wanted, mode, queries, serving)  # type: ignore[arg-type]

    def _check_queries(self, queries: object) -> list[Asked]:
        if isinstance(queries, str | bytes | dict) or not isinstance(queries, Iterable):
            raise InputError(
                f"queries must be an iterable of texts or vectors, not {type(queries).__name__}; "
                "search() takes a single one",
                field="queries",
            )
        return [*queries]

    def _ask_near(self, near: str, wanted: Wanted, serving: Serving) -> Question:
        """Ask for what is like a memory: by its vector, or by its words."""
        with self._reader() as repository:
            found = repository.find_key(near)
            if found is None:
                raise NotFoundError(f"no memory has the id {near!r}")
            key, memory = found
            vector = repository.spaces.vector_of(serving.space, key)
        mode: SearchMode = "lexical" if wanted.request.mode == "lexical" else "dense"
        if mode == "dense" and vector is None:
            (vector,) = serving.embed([memory.content], in_search=True)
        query = Query(memory.content, vector, _is_lexical(serving), excluded=key)
        return Question((), wanted, mode, (query,), serving)

    def _ask_anew(self, question: Question) -> Question:
        """Embed questions for the space that serves now."""
        self._follow(question.serving)
        asked = question.asked
        if question.mode == "dense" and asked and not isinstance(asked[0], str):
            raise EmbedderMismatchError(
                f"the query is a vector for {question.serving.space.model}, but meanwhile the "
                f"store's model became {self._serving.space.model}: embed it with that one"
            )
        return self._ask(asked or [None], question.wanted)

    # -- How it is answered ----------------------------------------------------------------------

    def _search(self, question: Question) -> list[Hits]:
        """Answer questions, embedded by `_ask`: hits for each."""
        wait = True
        while True:
            try:
                found = self._find(question, complete=wait)
                break
            except Moved:
                question = self._ask_anew(question)
            except _Behind as behind:
                self._catch_up(question.serving, behind.texts)
                wait = False  # whatever came of it: this search has waited enough
            except NotEmbeddedError as missing:
                self._embed_the_past(question.serving, missing.texts)
        self._keep_index_up(question)
        hits = [
            self._finish(question, query, candidates, watch)
            for query, (candidates, watch) in zip(question.queries, found, strict=True)
        ]
        if self._settings.track_access:
            self._note_access([hit.id for each in hits for hit in each])
        return hits

    def _find(self, question: Question, *, complete: bool) -> list[tuple[list[Candidate], Watch]]:
        """The candidates of each question, in one transaction."""
        wanted, serving = question.wanted, question.serving
        request = wanted.retrieval
        if request.mode != question.mode:
            request = replace(request, mode=question.mode)
        replica = serving.replica
        needed = request.asks_vectors
        with replica.lock if needed else nullcontext(), self._reader() as repository:
            pulse = repository.pulse()
            if not serving.is_current(repository, pulse):
                raise Moved
            index = replica.catch_up(repository, pulse.seq) if needed else None
            if index is not None and complete and not wanted.as_of:
                self._check_complete(serving, repository, pulse)
            return self._find_each(question, request, index, repository, pulse)

    def _find_each(
        self,
        question: Question,
        request: Request,
        index: VectorIndex | None,
        repository: Repository,
        pulse: Pulse,
    ) -> list[tuple[list[Candidate], Watch]]:
        wanted = question.wanted
        rows = repository if wanted.as_of is None else repository.as_of(wanted.as_of)
        shared = Watch(is_told=wanted.explain)
        source = self._source(question, request, index, repository, pulse, shared)
        ahead = _ahead(source, request, question.queries)
        read = rows.by_keys(_found_ahead(ahead)) if len(ahead) > 1 else {}
        found = []
        for query, own in zip(question.queries, ahead, strict=True):
            watch = shared.copy()
            candidates = Search(rows, own, request, query, watch, read).run(wanted.at_hand)
            found.append((candidates, watch))
        return found

    def _source(
        self,
        question: Question,
        request: Request,
        index: VectorIndex | None,
        repository: Repository,
        pulse: Pulse,
        watch: Watch,
    ) -> Source:
        as_of, serving = question.wanted.as_of, question.serving
        with watch.step("filter") as note:
            if as_of is None:
                allowed = self._key_sets.find(repository, pulse, request.selection)
                note.detail = "every memory may be found" if allowed is None else "keys that match"
                if allowed is not None:
                    note.count = allowed.size
                elif index is not None:
                    note.count = len(index)
                return Present(repository, index, allowed, serving.replica.sample)
            past = Past(
                repository.as_of(as_of),
                repository,
                index,
                request.selection,
                serving.replica,
                embeds=serving.embedder is not None,
            )
            note.detail, note.count = f"as the store knew them at {as_of}", len(past)
            return past

    def _finish(
        self, question: Question, query: Query, candidates: list[Candidate], watch: Watch
    ) -> Hits:
        """What is done outside the transaction: the slow judge, linked memories, the hits."""
        wanted = question.wanted
        if wanted.request.ranking.rerank is not None:
            candidates = self._rerank(query, candidates, wanted, watch)
        name = WORDS if question.mode == "lexical" else question.serving.space.model
        shares = wanted.explain
        hits = [
            Hit(each.memory, each.score, name, rank, each.shares if shares else None)
            for rank, each in enumerate(candidates[: wanted.request.limit])
        ]
        if wanted.expand:
            hits += self._linked(hits, candidates, wanted, name)
        if not wanted.explain:
            return Hits(hits)
        return Hits(hits, Explanation(question.mode, name, tuple(watch.steps)))

    # -- The slow judge, and linked memories -----------------------------------------------------

    def _rerank(
        self, query: Query, candidates: list[Candidate], wanted: Wanted, watch: Watch
    ) -> list[Candidate]:
        ranking, request = wanted.request.ranking, wanted.request
        assert ranking.rerank is not None
        with watch.step("rerank") as note:
            reranker = self._reranker(ranking.rerank)
            few = candidates[: ranking.rerank_top]
            judged = reranker.judge(query.text or "", [each.memory.content for each in few])
            note.detail, note.count = ranking.rerank, len(few)
        ranked = [
            each.judged(ranking.similarity * float(verdict))
            for each, verdict in zip(few, judged, strict=True)
        ]
        ranked.sort(key=lambda each: (-each.score, each.key))
        ranked = engine.one_of_each_group(ranked, request.group_by)
        if ranking.diversity:
            texts = [each.memory.content for each in ranked]
            vectors = self._serving.embed(texts, in_search=True)
            ranked = engine.diversified(ranked, vectors, request.limit, ranking.diversity)
        return [each for each in ranked if each.score >= request.min_score]

    def _reranker(self, name: str) -> Reranker:
        with self._settling:
            if name not in self._rerankers:
                self._rerankers[name] = load_reranker(
                    name,
                    device=self._device,
                    cache_dir=self.location.models,
                    settings=self._settings,
                )
            return self._rerankers[name]

    def _linked(
        self, hits: Sequence[Hit], candidates: Sequence[Candidate], wanted: Wanted, name: str
    ) -> list[Hit]:
        """Memories that links or lineage join to hits, each below the hit that leads to it."""
        by_key = {each.key: hit for each, hit in zip(candidates, hits, strict=False)}
        with self._reader() as repository:
            rows = repository if wanted.as_of is None else repository.as_of(wanted.as_of)
            joined = repository.links.neighbours([*by_key], wanted.expand, limit=_MOST_EXPANDED)
            memories = rows.by_keys(np.array([each.key for each in joined], np.int64))
        found: list[tuple[float, int, Memory, str]] = []
        for each in joined:
            if each.key in memories and each.key not in by_key:
                hit = by_key[each.seed]
                score = hit.score * each.weight / (1 + each.hops)
                found.append((score, each.key, memories[each.key], hit.id))
        found.sort(key=lambda each: (-each[0], each[1]))
        return [
            Hit(memory, score, name, len(hits) + rank, None, via)
            for rank, (score, _, memory, via) in enumerate(found[: wanted.request.limit])
        ]

    # -- What comes between ----------------------------------------------------------------------

    def _note_access(self, ids: Sequence[str]) -> None:
        """Note that memories were found; a search never fails by it."""
        if not ids:
            return
        try:
            self._touch(ids)
        except StorageError as exc:
            logger.warning("that memories were found could not be noted: %s", exc)

    def _touch(self, ids: Iterable[str]) -> int:
        named = [*dict.fromkeys(ids)]
        return self._write(lambda repository: repository.touch(named), rows=len(named))

    def _keep_index_up(self, question: Question) -> None:
        replica = question.serving.replica
        if (replica.save_is_due or replica.build_is_due) and not self._snapshots.busy:
            self._snapshots.start(lambda stop: lambda: replica.keep_up(stop))

    def _check_complete(self, serving: Serving, repository: Repository, pulse: Pulse) -> None:
        """See whether a process with another embedder wrote texts that this space lacks."""
        replica = serving.replica
        if replica.complete_seq >= pulse.seq or serving.embedder is None:
            return
        pending = repository.spaces.pending_since(
            serving.space.id, replica.complete_seq, limit=_TEXTS_IN_A_SEARCH + 1
        )
        if pending:
            raise _Behind(pending)
        replica.complete_seq = pulse.seq

    def _catch_up(self, serving: Serving, texts: int) -> None:
        """Embed what another process left pending: a few at once, many in the background."""
        try:
            if texts > _TEXTS_IN_A_SEARCH and not serving.stands_in:
                self._jobs.start(lambda stop: self._catch_up_job(serving, stop).run)
                return
            catch_up(
                self._open_database,
                serving.space,
                serving.require_embedder("open it with the model that it has"),
                batch_size=self._settings.batch_size,
                clock=self._clock,
                patience=self._for_questions,
            )
        # Busy, full, read-only, a quota: a search never fails for that.
        except (StorageError, TransientEmbeddingError) as exc:
            logger.warning("texts of another process wait to be embedded: %s", exc)

    def _catch_up_job(self, serving: Serving, stop: threading.Event) -> ReindexJob:
        settler = self._settler(self._open_database)
        embedder = serving.require_embedder("open it with the model that it has")
        return settler.job(embedder, alias=None, options=JobOptions(), stop=stop)

    def _embed_the_past(self, serving: Serving, texts: Sequence[PastText]) -> None:
        """Make the vectors of texts that no memory holds any more, once for every space."""
        distinct = {text.content_hash: text.content for text in texts}
        size = self._settings.batch_size
        for start in range(0, len(distinct), size):
            part = [*distinct.items()][start : start + size]
            rows = serving.embed([content for _, content in part], in_search=True)
            hashes = [content_hash for content_hash, _ in part]
            self._write(
                functools.partial(_keep_past_vectors, serving.space, hashes, rows),
                serving,
                rows=len(part),
            )


def _keep_past_vectors(
    space: Space, hashes: Sequence[bytes], rows: Vectors, repository: Repository
) -> None:
    repository.history.add_vectors(space, hashes, rows)


def _check_hops(expand: int) -> int:
    hops = check_limit(expand, field="expand", least=0)
    if hops > _MOST_HOPS:
        raise InputError(f"expand must be at most {_MOST_HOPS}, not {hops}", field="expand")
    return hops


def _is_lexical(serving: Serving) -> bool:
    return serving.space.model == HASH_MODEL


def _ahead(source: Source, request: Request, queries: Sequence[Query]) -> list[Source]:
    """The source for each of some questions; many ask the index in one scan."""
    vectors = [query.vector for query in queries]
    if len(queries) == 1 or not isinstance(source, Present) or request.mode == "lexical":
        return [source] * len(queries)
    assert source.index is not None
    asked = engine.first_size(request, request.limit)
    rows = np.array(vectors, np.float32)
    found: list[Found] = nearest_of_each(source.index, rows, asked, source.allowed)
    return [Ahead(source, each, asked) for each in found]


def _found_ahead(sources: Sequence[Source]) -> Keys:
    """What the index found for many questions, each key once: most will be hits."""
    found = [each.found.keys[:_READ_AHEAD] for each in sources if isinstance(each, Ahead)]
    return np.unique(np.concatenate([np.empty(0, np.int64), *found]))
