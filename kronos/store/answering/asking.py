"""Asking: what a search is asked becomes a question, embedded outside any transaction."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from kronos.embedding.registry import HASH_MODEL
from kronos.errors import EmbedderMismatchError, InputError, NoEmbedderError, NotFoundError
from kronos.search.request import Query
from kronos.store.answering.finding import Made, Question
from kronos.store.answering.options import SearchOptions
from kronos.validation import check_content, check_scope

if TYPE_CHECKING:
    from kronos.serving.serving import Serving
    from kronos.serving.session import Session
    from kronos.store.answering.finding import Queried
    from kronos.types import SearchMode, Vectors


class Asking:
    """Makes questions.

    Args:
        session: the open store.
    """

    def __init__(self, session: Session) -> None:
        self._session = session

    def options(self, namespace: str | None, **options: Any) -> SearchOptions:
        """Check the options of a search; `MemoryStore.search` documents them."""
        session = self._session
        scope = check_scope(namespace, session.options.namespace)
        return SearchOptions(scope=scope, clock=session.clock, **options)

    def check_queries(self, queries: object) -> list[Queried]:
        """Refuse what is no iterable of texts or vectors."""
        if isinstance(queries, str | bytes | dict) or not isinstance(queries, Iterable):
            raise InputError(
                f"queries must be an iterable of texts or vectors, not {type(queries).__name__}; "
                "search() takes a single one",
                field="queries",
            )
        return [*queries]

    def ask(
        self, asked: Sequence[Queried | None], wanted: SearchOptions, made: Made | None = None
    ) -> Question:
        """Embed questions, unless their vectors were made before; all are of one kind."""
        serving = self._session.serving
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

    def to_embed(
        self, asked: Sequence[Queried | None], wanted: SearchOptions
    ) -> tuple[Serving, list[str]]:
        """Who embeds which texts before a question can be answered; often there are none."""
        serving = self._session.serving
        if wanted.near is not None:
            return serving, []
        texts, mode = self._check_asked(asked, wanted, serving)
        return serving, [] if mode == "lexical" else texts

    def ask_anew(self, question: Question) -> Question:
        """Embed questions for the space that serves now."""
        self._session.follow(question.serving)
        asked = question.asked
        if question.mode == "dense" and asked and not isinstance(asked[0], str):
            raise EmbedderMismatchError(
                f"the query is a vector for {question.serving.space.model}, but meanwhile the "
                f"store's model became {self._session.serving.space.model}: embed it with that one"
            )
        return self.ask(asked or [None], question.wanted)

    def _check_asked(
        self, asked: Sequence[Queried | None], wanted: SearchOptions, serving: Serving
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
            check_content(text, self._session.settings.max_content_bytes, field="query")
        if texts and len(texts) < len(asked):
            raise InputError("queries must be texts, or vectors, not both", field="queries")
        mode = wanted.request.mode
        if texts and mode == "hybrid" and serving.embedder is None:
            mode = "lexical"
        return texts, mode

    def _ask_near(self, near: str, wanted: SearchOptions, serving: Serving) -> Question:
        """Ask for what is like a memory, as it is or was: by its vector, or by its words."""
        mode: SearchMode = "lexical" if wanted.request.mode == "lexical" else "dense"
        with self._session.reader() as repository:
            rows = repository.as_of(wanted.moment)
            found = rows.entry(near)
            if found is None:
                then = "" if wanted.as_of is None else f" at {wanted.as_of}"
                raise NotFoundError(f"no memory has the id {near!r}{then}")
            made = {}
            if mode == "dense":
                made = repository.vectors.made_before(serving.space, [found.content_hash])
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


def _is_lexical(serving: Serving) -> bool:
    return serving.space.model == HASH_MODEL
