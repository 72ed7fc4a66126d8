"""Answering: one read transaction for each try, and what an answer lacks is made between tries.

Inside a transaction the index catches up, and `kronos.search` ranks what it finds. An obstacle
(another space became active, texts of another process wait to be embedded, the keys of a filter are
not known) is removed outside the transaction, then the question is tried again.
"""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from kronos.errors import SpaceChangedError, StorageError, TransientEmbeddingError
from kronos.reindex.pending import catch_up
from kronos.repository.jobs import JobOptions
from kronos.search.key_sets import NotAtHand
from kronos.search.past import NotEmbeddedError
from kronos.store.answering.finding import Finding, Made, Question, made_for
from kronos.store.answering.judging import Judging
from kronos.types import Explanation, Hit, Hits

if TYPE_CHECKING:
    from kronos.repository.memories import Head, Repository
    from kronos.search.candidates import Candidate
    from kronos.search.request import Query
    from kronos.search.trace import SearchTrace
    from kronos.serving.serving import Serving
    from kronos.serving.session import Session
    from kronos.store.answering.asking import Asking
    from kronos.store.answering.finding import Held, Queried
    from kronos.store.answering.options import SearchOptions

logger = logging.getLogger("kronos")

WORDS = "words"
"""What a hit names as its embedder where none answered."""
_TEXTS_IN_A_SEARCH = 64
"""Texts that another process left pending and a search embeds itself, at most; more are left to a
job in the background."""


class _Behind(Exception):
    """The serving space lacks texts."""

    def __init__(self, texts: int) -> None:
        super().__init__()
        self.texts = texts


@dataclass(slots=True)
class _Answering:
    """A question, and what was prepared for it between tries."""

    question: Question
    held: Held
    """What was learnt, by its name."""
    waits: bool = True
    """It has not waited yet for texts of another process."""


class Answering:
    """Answers questions.

    Args:
        session: the open store.
        asking: makes them, also again for another space.
    """

    def __init__(self, session: Session, asking: Asking) -> None:
        self._session = session
        self._asking = asking
        self._judging = Judging(session)

    def answer(
        self, asked: Sequence[Queried | None], wanted: SearchOptions, made: Made | None = None
    ) -> list[Hits]:
        """Ask, and search: hits for each question; see `Asking.ask`."""
        return self._search(self._asking.ask(asked, wanted, made))

    def _search(self, question: Question) -> list[Hits]:
        """Answer questions, embedded by `Asking.ask`: hits for each."""
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
        if self._session.settings.track_access:
            self._session.accesses.note([hit.id for each in hits for hit in each])
        return hits

    def _see_to(self, obstacle: Exception, answering: _Answering) -> None:
        """Remove an obstacle; another one may stop it."""
        if isinstance(obstacle, SpaceChangedError):
            answering.question = self._asking.ask_anew(answering.question)
        elif isinstance(obstacle, _Behind):
            answering.waits = False  # whatever comes of it: this search has waited enough
            self._catch_up(answering.question, obstacle.texts)
        elif isinstance(obstacle, NotEmbeddedError):
            self._embed_the_past(obstacle, answering)
        elif isinstance(obstacle, NotAtHand):
            answering.held[obstacle.asked.name] = self._session.learn(obstacle.asked)

    def _find(self, answering: _Answering) -> list[tuple[list[Candidate], SearchTrace]]:
        """Find the candidates of each question, in one transaction."""
        question = answering.question
        wanted, serving = question.wanted, question.serving
        request = wanted.retrieval
        if request.mode != question.mode:
            request = replace(request, mode=question.mode)
        replica = serving.replica
        needed = request.needs_vectors or wanted.compares_later
        with replica.lock if needed else nullcontext(), self._session.reader() as repository:
            head = repository.head()
            # Words need no embedder, whose model may take long to load.
            if needed and not serving.is_current(repository, head):
                raise SpaceChangedError
            index = replica.catch_up(repository, head.seq) if needed else None
            if index is not None and answering.waits and not wanted.as_of:
                self._check_complete(serving, repository, head)
            return Finding(
                question,
                request,
                index,
                repository,
                head.seq,
                self._session.key_sets,
                answering.held,
            ).run()

    def _finish(
        self, question: Question, query: Query, candidates: list[Candidate], trace: SearchTrace
    ) -> Hits:
        """Make hits of candidates, outside the transaction: reranked, with linked memories."""
        wanted = question.wanted
        if wanted.request.ranking.rerank is not None:
            candidates = self._judging.rerank(query, candidates, wanted, trace)
        name = WORDS if question.mode == "lexical" else question.serving.space.model
        shares = wanted.explain
        hits = [
            Hit(each.memory, each.score, name, rank, each.shares if shares else None)
            for rank, each in enumerate(candidates[: wanted.request.limit])
        ]
        if wanted.expand:
            hits += self._judging.linked(hits, candidates, wanted, name)
        if not wanted.explain:
            return Hits(hits)
        return Hits(hits, Explanation(question.mode, name, tuple(trace.steps)))

    # -- Between tries ---------------------------------------------------------------------------

    def _keep_index_up(self, question: Question) -> None:
        replica = question.serving.replica
        if (replica.save_is_due or replica.build_is_due) and not self._session.snapshots.busy:
            self._session.snapshots.start(lambda stop: lambda: replica.keep_up(stop))

    def _check_complete(self, serving: Serving, repository: Repository, head: Head) -> None:
        """See whether a process with another embedder wrote texts that this space lacks."""
        replica = serving.replica
        if replica.complete_seq >= head.seq or serving.embedder is None:
            return
        pending = repository.pending.since(
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
            self._session.jobs.start(
                lambda stop: functools.partial(self._catch_up_behind, serving, stop)
            )
            return
        try:
            with self._session.writer_at_once():  # asked first: to embed takes longer
                pass
            catch_up(
                self._session.database,
                serving.space,
                serving.require_embedder("open it with the model that it has"),
                batch_size=self._session.settings.batch_size,
                clock=self._session.clock,
                retry=self._session.for_questions,
                wait=False,
            )
        # Busy, full, read-only, a quota: a search never fails for that.
        except (StorageError, TransientEmbeddingError) as exc:
            logger.warning("texts of another process wait to be embedded: %s", exc)

    def _catch_up_behind(self, serving: Serving, stop: threading.Event) -> None:
        embedder = serving.require_embedder("open it with the model that it has")
        self._session.resolver.job(embedder, alias=None, options=JobOptions(), stop=stop).run()

    def _embed_the_past(self, missing: NotEmbeddedError, answering: _Answering) -> None:
        """Make the vectors of texts that no memory holds any more, once for every space.

        While another process writes, or in a read-only store, they serve this question alone.
        """
        serving = answering.question.serving
        distinct = [*{text.content_hash: text.content for text in missing.texts}.items()]
        held = answering.held.setdefault(made_for(serving.space), {})
        for start in range(0, len(distinct), self._session.settings.batch_size):
            part = distinct[start : start + self._session.settings.batch_size]
            rows = serving.embed([content for _, content in part], in_search=True)
            hashes = [content_hash for content_hash, _ in part]
            try:
                with self._session.writer_at_once() as repository:
                    repository.history.add_vectors(serving.space, hashes, rows)
            except StorageError as exc:
                logger.debug("vectors of past texts could not be kept: %s", exc)
                held.update(zip(hashes, rows, strict=True))
        self._session.key_sets.forget(missing.asked)
        answering.held.pop(missing.asked.name, None)
