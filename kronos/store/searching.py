"""Searching: one question, or many at once.

`kronos.store.answering` does the work: a question is checked and embedded, then answered in one
read transaction.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from kronos.search.filters import Where
from kronos.search.ranking import Ranking
from kronos.store.answering.answering import Answering
from kronos.store.answering.asking import Asking
from kronos.types import Hits, SearchMode, Vectors

if TYPE_CHECKING:
    from kronos.serving.session import Session


class Searching:
    """Finds memories.

    Args:
        session: the open store.
    """

    def __init__(self, session: Session) -> None:
        self.asking = Asking(session)
        self.answering = Answering(session, self.asking)

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
            expand: bring in memories up to this many links or parents away from a hit, at most
                `limit` of them, behind the hits. Each names the hit that leads to it, and scores
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
        options = self.asking.options(
            namespace,
            limit=limit,
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
        return self.answering.answer([query], options)[0]

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
    ) -> list[Hits]:
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
        options = self.asking.options(
            namespace,
            limit=limit,
            where=where,
            mode=mode,
            min_score=min_score,
            ranking=ranking,
            group_by=group_by,
            as_of=as_of,
            expand=expand,
            expand_outside=expand_outside,
            explain=explain,
        )
        asked = self.asking.check_queries(queries)
        return self.answering.answer(asked, options) if asked else []
