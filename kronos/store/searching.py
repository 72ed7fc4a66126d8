"""A question's way: embedded, then answered in one read transaction; and whatever comes between.

`Searching` embeds questions outside any transaction, lets the index catch up inside one, and has
`kronos.search` rank what it finds. What stands in the way of an answer (another space became the
active one, texts of another process wait to be embedded, the keys of a filter are not known) is
seen to outside of the transaction, and then it is asked again.
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
from typing import TYPE_CHECKING

from kronos.embedding.registry import HASH_MODEL
from kronos.errors import (
    EmbedderMismatchError,
    InputError,
    NoEmbedderError,
    NotFoundError,
    SpaceChangedError,
    StorageError,
    StoreBusyError,
    TransientEmbeddingError,
)
from kronos.reindex.job import catch_up
from kronos.repository.jobs import JobOptions
from kronos.search import answer
from kronos.search.answer import Candidate, Query, Request, SearchTrace
from kronos.search.kept import NotAtHand
from kronos.search.past import NotEmbeddedError
from kronos.search.plan import Selection
from kronos.search.ranking import check_ranking
from kronos.store.finding import Finding, Made, Question, Wanted, made_for
from kronos.store.judging import Judging
from kronos.types import Explanation, Hit, Hits
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
    from kronos.repository.memories import Head, Repository
    from kronos.search.filters import Where
    from kronos.search.ranking import Ranking
    from kronos.serving.serving import Serving
    from kronos.store.finding import Held, Queried
    from kronos.types import SearchMode, Vectors

logger = logging.getLogger("kronos")

WORDS = "words"
"""What a hit names as its embedder where none answered."""
_TEXTS_IN_A_SEARCH = 64
"""So many texts that another process left pending are embedded by the search that finds them; more
are left to a job in the background."""
_MOST_FOUND = 10_000
"""So many ids of found memories wait to be noted; of more, the first ones are given up."""
_MOST_HOPS = 8


class _Behind(Exception):
    """The space that serves lacks texts."""

    def __init__(self, texts: int) -> None:
        super().__init__()
        self.texts = texts


@dataclass(slots=True)
class _Answering:
    """A question on its way, and what was seen to for it."""

    question: Question
    held: Held
    """What was learnt, by its name."""
    waits: bool = True
    """It has not waited yet for texts of another process."""


class Searching(Judging):
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
        expand_outside: bool = False,
        explain: bool,
    ) -> Wanted:
        if mode not in ("hybrid", "dense", "lexical"):
            raise InputError(
                f'mode must be "hybrid", "dense" or "lexical", not {mode!r}', field="mode"
            )
        if not isinstance(expand_outside, bool):  # what is meant as "no" must not be a yes
            raise InputError(
                f"expand_outside must be true or false, not {expand_outside!r}",
                field="expand_outside",
            )
        ranking = check_ranking(ranking)
        moment = check_time(as_of, field="as_of")
        now = ranking.now or as_of or self._clock()
        request = Request(
            selection=Selection.of(check_scope(namespace, self.namespace), where),
            limit=check_limit(limit),
            mode=mode,
            min_score=-math.inf
            if min_score is None
            else check_number(min_score, field="min_score"),
            ranking=ranking,
            group_by=None if group_by is None else answer.group_path(group_by),
            now=to_microseconds(now),
            tells_shares=bool(explain) or ranking.rerank is not None,
        )
        return Wanted(
            request,
            None if near is None else check_id(near, field="near"),
            as_of,
            moment,
            _check_hops(expand),
            expand_outside,
            bool(explain),
        )

    def _ask(
        self, asked: Sequence[Queried | None], wanted: Wanted, made: Made | None = None
    ) -> Question:
        """Embed questions, unless their vectors were made before; all are of one kind."""
        serving = self._serving
        if wanted.near is not None:
            if any(query is not None for query in asked):
                raise InputError("search takes a query or near, not both", field="near")
            return self._ask_near(wanted.near, wanted, serving)
        texts, mode = self._check_asked(asked, wanted, serving)
        rows: list[Vectors | None] = [None] * len(asked)
        if texts and mode != "lexical":
            is_made = made is not None and made.serving is serving
            rows = [*(made.rows if made and is_made else serving.query_vectors(texts))]
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

    def _check_asked(
        self, asked: Sequence[Queried | None], wanted: Wanted, serving: Serving
    ) -> tuple[list[str], SearchMode]:
        """The texts of a question, and in which mode it is answered."""
        if any(query is None for query in asked):
            raise InputError(
                "search takes a query, which is a text or a vector, or near=, the id of a memory; "
                "not None",
                field="query",
            )
        texts = [query for query in asked if isinstance(query, str)]
        for text in texts:
            check_content(text, self._settings.max_content_bytes, field="query")
        if texts and len(texts) < len(asked):
            raise InputError("queries must be texts, or vectors, not both", field="queries")
        mode = wanted.request.mode
        if texts and mode == "hybrid" and serving.embedder is None:
            mode = "lexical"
        return texts, mode

    def _to_embed(
        self, asked: Sequence[Queried | None], wanted: Wanted
    ) -> tuple[Serving, list[str]]:
        """Who embeds which texts before a question can be answered; often there are none."""
        serving = self._serving
        if wanted.near is not None:
            return serving, []
        texts, mode = self._check_asked(asked, wanted, serving)
        return serving, [] if mode == "lexical" else texts

    def _check_queries(self, queries: object) -> list[Queried]:
        if isinstance(queries, str | bytes | dict) or not isinstance(queries, Iterable):
            raise InputError(
                f"queries must be an iterable of texts or vectors, not {type(queries).__name__}; "
                "search() takes a single one",
                field="queries",
            )
        return [*queries]

    def _ask_near(self, near: str, wanted: Wanted, serving: Serving) -> Question:
        """Ask for what is like a memory, as it is or was: by its vector, or by its words."""
        mode: SearchMode = "lexical" if wanted.request.mode == "lexical" else "dense"
        with self._reader() as repository:
            rows = repository if wanted.moment is None else repository.as_of(wanted.moment)
            found = rows.entry(near)
            if found is None:
                then = "" if wanted.as_of is None else f" at {wanted.as_of}"
                raise NotFoundError(f"no memory has the id {near!r}{then}")
            made = {}
            if mode == "dense":
                made = repository.spaces.made_before(serving.space, [found.content_hash])
        vector = made.get(found.content_hash)
        if mode == "dense" and vector is None:
            if serving.embedder is None:
                raise NoEmbedderError(
                    f"the memory {near!r} has no vector of {serving.space.model} yet, and this "
                    "store was opened without an embedder: open it with the model, or search by "
                    'words (mode="lexical")'
                )
            (vector,) = serving.embed([found.memory.content], in_search=True)
        query = Query(found.memory.content, vector, _is_lexical(serving), excluded=found.key)
        return Question((), wanted, mode, (query,), serving)

    def _answer(
        self, asked: Sequence[Queried | None], wanted: Wanted, made: Made | None = None
    ) -> list[Hits]:
        """Ask, and search: hits for each question; see `_ask`."""
        return self._search(self._ask(asked, wanted, made))

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
        answering = _Answering(question, {})
        obstacle: Exception | None = None
        while True:
            try:
                # Inside: what stood in the way may be followed by something else that does.
                if obstacle is not None:
                    self._see_to(obstacle, answering)
                found = self._find(answering)
                break
            except (SpaceChangedError, _Behind, NotEmbeddedError, NotAtHand) as exc:
                obstacle = exc.with_traceback(None)  # with it, this call would outlive its end
        question = answering.question
        self._keep_index_up(question)
        hits = [
            self._finish(question, query, candidates, trace)
            for query, (candidates, trace) in zip(question.queries, found, strict=True)
        ]
        if self._settings.track_access:
            self._note_access([hit.id for each in hits for hit in each])
        return hits

    def _see_to(self, obstacle: Exception, answering: _Answering) -> None:
        """Do what an answer lacks; it may be stopped by another obstacle."""
        if isinstance(obstacle, SpaceChangedError):
            answering.question = self._ask_anew(answering.question)
        elif isinstance(obstacle, _Behind):
            answering.waits = False  # whatever comes of it: this search has waited enough
            self._catch_up(answering.question, obstacle.texts)
        elif isinstance(obstacle, NotEmbeddedError):
            self._embed_the_past(obstacle, answering)
        elif isinstance(obstacle, NotAtHand):
            answering.held[obstacle.asked.name] = self._learn(obstacle.asked)

    def _find(self, answering: _Answering) -> list[tuple[list[Candidate], SearchTrace]]:
        """The candidates of each question, in one transaction."""
        question = answering.question
        wanted, serving = question.wanted, question.serving
        request = wanted.retrieval
        if request.mode != question.mode:
            request = replace(request, mode=question.mode)
        replica = serving.replica
        needed = request.asks_vectors or wanted.compares_later
        with replica.lock if needed else nullcontext(), self._reader() as repository:
            head = repository.head()
            # Words are found without whoever embeds now, whose model may take long to load.
            if needed and not serving.is_current(repository, head):
                raise SpaceChangedError
            index = replica.catch_up(repository, head.seq) if needed else None
            if index is not None and answering.waits and not wanted.as_of:
                self._check_complete(serving, repository, head)
            return Finding(
                question, request, index, repository, head.seq, self._key_sets, answering.held
            ).run()

    def _finish(
        self, question: Question, query: Query, candidates: list[Candidate], trace: SearchTrace
    ) -> Hits:
        """What is done outside the transaction: the slow judge, linked memories, the hits."""
        wanted = question.wanted
        if wanted.request.ranking.rerank is not None:
            candidates = self._rerank(query, candidates, wanted, trace)
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
        return Hits(hits, Explanation(question.mode, name, tuple(trace.steps)))

    # -- What comes between ----------------------------------------------------------------------

    def _note_access(self, ids: Sequence[str]) -> None:
        """Note that memories were found; a read neither fails by it nor waits for a writer.

        What cannot be noted at once is noted with what is found next, or when the store closes.
        """
        self._found.update(dict.fromkeys(ids[:_MOST_FOUND]))
        noted = [*self._found]
        if not noted:
            return
        try:
            with self._writer_at_once() as repository:
                repository.touch(noted)
        except StoreBusyError:
            while len(self._found) > _MOST_FOUND:
                self._found.pop(next(iter(self._found)), None)
            return
        except StorageError as exc:
            logger.warning("that memories were found could not be noted: %s", exc)
        for id in noted:
            self._found.pop(id, None)

    def _touch(self, ids: Iterable[str]) -> int:
        named = [*dict.fromkeys(ids)]
        return self._write(lambda repository: repository.touch(named), rows=len(named))

    def _keep_index_up(self, question: Question) -> None:
        replica = question.serving.replica
        if (replica.save_is_due or replica.build_is_due) and not self._snapshots.busy:
            self._snapshots.start(lambda stop: lambda: replica.keep_up(stop))

    def _check_complete(self, serving: Serving, repository: Repository, head: Head) -> None:
        """See whether a process with another embedder wrote texts that this space lacks."""
        replica = serving.replica
        if replica.complete_seq >= head.seq or serving.embedder is None:
            return
        pending = repository.spaces.pending_since(
            serving.space.id, replica.complete_seq, limit=_TEXTS_IN_A_SEARCH + 1
        )
        if pending:
            raise _Behind(pending)
        replica.complete_seq = head.seq

    def _catch_up(self, question: Question, texts: int) -> None:
        """Embed what another process left pending: a few at once, many in the background.

        While somebody writes, a few are left to the next search: none waits for a writer. A search
        that needs no embedder waits for none: it leaves a few to the background as well.
        """
        serving = question.serving
        is_later = texts > _TEXTS_IN_A_SEARCH or not question.is_embedded
        if is_later and not serving.is_fallback:
            self._jobs.start(lambda stop: functools.partial(self._catch_up_behind, serving, stop))
            return
        try:
            with self._writer_at_once():  # asked first: to embed takes longer
                pass
            catch_up(
                self._open_database,
                serving.space,
                serving.require_embedder("open it with the model that it has"),
                batch_size=self._settings.batch_size,
                clock=self._clock,
                patience=self._for_questions,
                wait=False,
            )
        # Busy, full, read-only, a quota: a search never fails for that.
        except (StorageError, TransientEmbeddingError) as exc:
            logger.warning("texts of another process wait to be embedded: %s", exc)

    def _catch_up_behind(self, serving: Serving, stop: threading.Event) -> None:
        embedder = serving.require_embedder("open it with the model that it has")
        resolver = self._resolver(self._open_database)
        resolver.job(embedder, alias=None, options=JobOptions(), stop=stop).run()

    def _embed_the_past(self, missing: NotEmbeddedError, answering: _Answering) -> None:
        """Make the vectors of texts that no memory holds any more, once for every space.

        While somebody writes, or where nobody can, they are made for this question alone.
        """
        serving = answering.question.serving
        distinct = [*{text.content_hash: text.content for text in missing.texts}.items()]
        held = answering.held.setdefault(made_for(serving.space), {})
        for start in range(0, len(distinct), self._settings.batch_size):
            part = distinct[start : start + self._settings.batch_size]
            rows = serving.embed([content for _, content in part], in_search=True)
            hashes = [content_hash for content_hash, _ in part]
            try:
                with self._writer_at_once() as repository:
                    repository.history.add_vectors(serving.space, hashes, rows)
            except StorageError as exc:
                logger.debug("vectors of past texts could not be kept: %s", exc)
                held.update(zip(hashes, rows, strict=True))
        self._key_sets.forget(missing.asked)
        answering.held.pop(missing.asked.name, None)


def _check_hops(expand: int) -> int:
    hops = check_limit(expand, field="expand", least=0)
    if hops > _MOST_HOPS:
        raise InputError(f"expand must be at most {_MOST_HOPS}, not {hops}", field="expand")
    return hops


def _is_lexical(serving: Serving) -> bool:
    return serving.space.model == HASH_MODEL
