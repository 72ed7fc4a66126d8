"""One try to answer a question, in one read transaction: the candidates and their source.

A key set that is not known (the keys of a filter, a moment of the past, the groups) ends the try
with an error that names it. The transaction may hold the index's lock, so no long lookup runs in
it.
"""

from __future__ import annotations

import functools
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from kronos.search.answer import Search
from kronos.search.matching import Grouped, Known, Matching
from kronos.search.nearest import nearest_of_each
from kronos.search.past import NotEmbeddedError, Past, PastVectors, Texts
from kronos.search.sources import Present, Source
from kronos.search.trace import SearchTrace

if TYPE_CHECKING:
    from collections.abc import Mapping

    from kronos.repository.memories import Repository
    from kronos.repository.rows import Rows
    from kronos.search.candidates import Candidate
    from kronos.search.key_sets import Asked, KeptT, KeySet, KeySets
    from kronos.search.request import Query, Request
    from kronos.serving.serving import Serving
    from kronos.store.answering.options import SearchOptions
    from kronos.types import Keys, SearchMode, Space, VectorIndex, Vectors

    Queried: TypeAlias = str | Sequence[float] | Vectors
    Held: TypeAlias = dict[Hashable, Any]
    """What was learnt for a call, by its name."""

_READ_AHEAD = 20
"""Top hits prefetched per query."""


@dataclass(slots=True)
class Question:
    """Queries, as they are to be answered by the space that served when they were embedded."""

    asked: tuple[Queried, ...]
    wanted: SearchOptions
    mode: SearchMode
    queries: tuple[Query, ...]
    serving: Serving

    @property
    def is_embedded(self) -> bool:
        """Whether an embedder was waited for; a search that needs none never waits for one."""
        return self.mode != "lexical" and any(isinstance(each, str) for each in self.asked)


@dataclass(frozen=True, slots=True)
class Made:
    """Vectors that were made of a question's texts, and who made them."""

    serving: Serving
    rows: Vectors
    """(n, dim) float32."""


class Finding:
    """One try.

    Args:
        question: what is asked.
        request: what is asked of the index.
        index: None when nothing is asked but words.
        repository: over the transaction.
        head: its last seq.
        sets: what is kept.
        held: what was learnt for this question.
    """

    def __init__(
        self,
        question: Question,
        request: Request,
        index: VectorIndex | None,
        repository: Repository,
        head: int,
        sets: KeySets,
        held: Held,
    ) -> None:
        self._question = question
        self._wanted = question.wanted
        self._request = request
        self._index = index
        self._repository = repository
        self._head = head
        self._sets = sets
        self._held = held
        self._rows: Rows = repository.as_of(question.wanted.moment)

    def run(self) -> list[tuple[list[Candidate], SearchTrace]]:
        """The candidates of each question, and the steps by which they were found.

        Raises:
            NotAtHand: a set is to be found first.
            NotEmbeddedError: texts of the past are to be embedded first.
        """
        shared = SearchTrace(is_enabled=self._wanted.explain)
        source = self._source(shared)
        ahead = self._ahead(source)
        read = self._rows.rows_of(_found_ahead(ahead)) if len(ahead) > 1 else {}
        found = []
        for query, own in zip(self._question.queries, ahead, strict=True):
            trace = shared.copy()
            found.append((self._candidates(query, own, trace, read), trace))
        return found

    def _candidates(
        self, query: Query, source: Source, trace: SearchTrace, read: Mapping[int, Sequence[Any]]
    ) -> list[Candidate]:
        wanted = self._wanted
        candidates = self._search(self._request, query, source, trace, read).run(wanted.at_hand)
        if wanted.request.ranking.rerank is None:
            return candidates
        if wanted.request.group_by is not None:  # the judge is to see as many groups as are wanted
            grouped = replace(self._request, group_by=wanted.request.group_by)
            best = self._search(grouped, query, source, trace, read).run(wanted.request.limit)
            seen = {each.key for each in candidates}
            candidates += [each for each in best if each.key not in seen]
        if not wanted.compares_later:
            return candidates
        vectors = source.vectors(np.array([each.key for each in candidates], np.int64))
        return [replace(each, vector=row) for each, row in zip(candidates, vectors, strict=True)]

    def _search(
        self,
        request: Request,
        query: Query,
        source: Source,
        trace: SearchTrace,
        read: Mapping[int, Sequence[Any]],
    ) -> Search:
        if request.group_by is None:
            return Search(self._rows, source, request, query, trace, self._living, read=read)
        grouped = Grouped(request.selection, self._wanted.moment, request.group_by)
        groups = functools.partial(self._at_hand, grouped, exact=True)
        # Groups that were needed once are needed again: then no row is read in vain.
        known = groups() if self._sets.knows(grouped) else None
        return Search(self._rows, source, request, query, trace, groups, known=known, read=read)

    def _living(self) -> KeySet:
        """All that may be found and lives."""
        selection, moment = self._request.selection, self._wanted.moment
        if moment is not None:
            return self._at_hand(Known(selection, moment))
        return self._at_hand(Matching(selection, listed=True), exact=True)

    def _source(self, trace: SearchTrace) -> Source:
        selection, moment = self._request.selection, self._wanted.moment
        with trace.step("filter") as note:
            if moment is not None:
                return self._past(Known(selection, moment), note)
            allowed = None
            if selection.scope is not None or selection.filter is not None:
                allowed = self._at_hand(Matching(selection)).keys
            note.detail = "every memory may be found" if allowed is None else "keys that match"
            if allowed is not None:
                note.count = allowed.size
            elif self._index is not None:
                note.count = len(self._index)
            sample = self._question.serving.replica.sample
            return Present(self._repository, self._index, allowed, sample)

    def _past(self, asked: Known, note: Any) -> Past:
        serving = self._question.serving
        known = self._at_hand(asked)
        note.detail = f"as the store knew them at {self._wanted.as_of}"
        note.count = known.count
        texts = None
        if self._index is not None:
            vectors = PastVectors(asked, serving.space)
            texts = self._at_hand(vectors)
            missing = texts.versions[~texts.made]
            if missing.size and serving.embedder is not None:
                texts = self._completed(texts, vectors, missing)
        return Past(self._repository, self._index, known, texts, serving.replica.sample)

    def _completed(self, texts: Texts, asked: PastVectors, missing: Keys) -> Texts:
        """Past texts, with the vectors that were made for this question and could not be kept."""
        lacking = self._repository.history.texts(missing.tolist())
        made = self._held.get(made_for(asked.space), {})
        if any(text.content_hash not in made for text in lacking):
            raise NotEmbeddedError(asked, lacking)
        return texts.completed({text.key: made[text.content_hash] for text in lacking})

    def _at_hand(self, asked: Asked[KeptT], *, exact: bool = False) -> KeptT:
        held: KeptT | None = self._held.get(asked.name) if self._held else None
        return self._sets.at_hand(self._repository, self._head, asked, held=held, exact=exact)

    def _ahead(self, source: Source) -> list[Source]:
        """The source for each question; many ask the index in one scan."""
        queries, request = self._question.queries, self._request
        if len(queries) == 1 or not isinstance(source, Present) or request.mode == "lexical":
            return [source] * len(queries)
        assert source.index is not None
        asked = request.first_size(request.limit)
        rows = np.array([query.vector for query in queries], np.float32)
        found = nearest_of_each(source.index, rows, asked, source.allowed)
        return [replace(source, found=each) for each in found]


def made_for(space: Space) -> Hashable:
    """The name under which a question holds vectors of past texts, by the texts' hashes."""
    return "made", space.fingerprint


def _found_ahead(sources: Sequence[Source]) -> Keys:
    """What the index found for many questions, each key once: most will be hits."""
    found = [each.found for each in sources if isinstance(each, Present) and each.found is not None]
    keys = [each.keys[:_READ_AHEAD] for each in found]
    return np.unique(np.concatenate([np.empty(0, np.int64), *keys]))
