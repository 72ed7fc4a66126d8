"""A model that changes at any moment of a search: the search is answered all the same, and rightly.

Whenever a search begins a transaction or embeds something, another process may have made another
space the active one just before. Each of these moments is tried.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kronos import F, MemoryStore, Ranking
from kronos.db.database import Database
from kronos.embedding.hashing import HashEmbedder
from kronos.errors import EmbedderMismatchError, KronosWarning
from kronos.settings import Settings
from tests.conftest import Clock, Opener

TEXTS = [f"{word} number {number}" for number, word in enumerate(["cat", "train", "bread"] * 8)]
EMBEDDERS = (32, 48)


class Moments:
    """The moments of a call, at one of which something happens once."""

    def __init__(self) -> None:
        self.left = -1
        self.happens: Callable[[], object] = lambda: None

    def pass_(self) -> None:
        if self.left > 0:
            self.left -= 1
            if not self.left:
                self.happens()

    @contextmanager
    def at(self, number: int, happens: Callable[[], object]) -> Iterator[None]:
        self.left, self.happens = number, happens
        yield
        self.reached, self.left = self.left == 0, -1


@pytest.fixture
def moments(monkeypatch: pytest.MonkeyPatch) -> Moments:
    moments = Moments()
    transaction, embed = Database._transaction, HashEmbedder.embed_documents

    def begun(self: Database, *arguments: Any, **options: Any) -> Any:
        moments.pass_()
        return transaction(self, *arguments, **options)

    def embedded(self: HashEmbedder, texts: Any) -> Any:
        moments.pass_()
        return embed(self, texts)

    monkeypatch.setattr(Database, "_transaction", begun)
    monkeypatch.setattr(HashEmbedder, "embed_documents", embedded)
    return moments


def asked(then: datetime) -> dict[str, dict[str, Any]]:
    return {
        "dense": {"query": "cat", "mode": "dense"},
        "hybrid": {"query": "cat number", "where": F.n < 12},
        "groups": {"query": "cat", "group_by": "g", "limit": 3},
        "near": {"near": "m1"},
        "lexical": {"query": "number", "mode": "lexical"},
        "lexical and diverse": {
            "query": "number",
            "mode": "lexical",
            "ranking": Ranking(diversity=0.3),
        },
        "past": {"query": "cat", "mode": "dense", "as_of": then},
        "past, hybrid, groups": {"query": "number", "as_of": then, "group_by": "g", "limit": 3},
        "near, past": {"near": "m1", "as_of": then},
        "linked": {"query": "cat", "expand": 1},
        "vector": {"query": np.eye(32, dtype=np.float32)[0]},
    }


def expected(name: str, options: dict[str, Any]) -> set[str]:
    ids = {f"m{number}" for number in range(24)}
    if name == "hybrid":
        return {f"m{number}" for number in range(12)}
    if "lexical" in name:  # the others hold the word no longer
        return ids - {"m1", *(f"m{number}" for number in range(0, 24, 5))}
    return ids - {"m1"} if "near" in name else ids


@pytest.mark.parametrize("name", asked(datetime.min).keys())
def test_a_search_is_answered_whenever_the_model_changes(
    tmp_path: Path, clock: Clock, moments: Moments, name: str
) -> None:
    folder = tmp_path / "store"
    options: dict[str, Any] = {
        "embedding_model": "hash",
        "clock": clock,
        # What a model made is dropped when it is left: texts of the past are embedded each time.
        "settings": Settings(durability="normal", keep_spaces=0),
    }
    dims = itertools.cycle(EMBEDDERS)

    def change() -> None:
        MemoryStore.open(folder, embedding_dim=next(dims), **options).close()

    with MemoryStore.open(folder, embedding_dim=next(dims), **options) as store:
        for number, text in enumerate(TEXTS):
            store.add(text, id=f"m{number}", metadata={"n": number, "g": number % 3})
        store.link("m0", "m3", "says")
        then = clock.now
        clock.tick(1)
        for number in range(0, 24, 5):
            store.update(f"m{number}", content=f"bread changed {number}")
        store.update("m1", content="bread, no longer a train")
        search = {"limit": 50, **asked(then)[name]}
        for number in itertools.count(1):
            if "past" in name:  # its texts have no vectors in a new space
                change()
                store.search("cat")
            with moments.at(number, change):
                try:
                    hits = store.search(**search)
                except EmbedderMismatchError:
                    assert name == "vector"
                    assert moments.left == 0
                    change()  # back to the width of the vector
                    store.search("cat")
                    continue
            found = {hit.id for hit in hits}
            if "group" in name:
                assert len(hits) == 3
                assert len({hit.memory.metadata["g"] for hit in hits}) == 3
            else:
                assert found == expected(name, search)
            if "past" in name:
                assert not any("bread changed" in hit.content for hit in hits)
            assert store.maintenance.check().ok
            if not moments.reached:
                break
            if name == "vector":
                change()
                store.search("cat")
        assert number > (3 if "past" in name else 1)


def test_a_search_of_the_past_never_raises_what_only_kronos_knows(open_store: Opener) -> None:
    """The model changes while texts of the past are embedded."""

    class Own:
        dim = 8

        def __init__(self, name: str) -> None:
            self.model_id = self.fingerprint = name
            self.once: Callable[[], object] | None = None

        def embed_documents(self, texts: Any) -> Any:
            if self.once is not None and "old text" in texts:
                once, self.once = self.once, None
                once()
            draw = [np.random.default_rng(len(self.model_id + text)) for text in texts]
            return np.array([each.normal(size=8) for each in draw], np.float32)

        embed_queries = embed_documents

    one, other = Own("one"), Own("other")
    store = open_store(embedder=one)
    id = store.add("old text")
    clock: Any = store._session.clock
    then = clock()
    clock.tick(1)
    store.update(id, content="new text")
    open_store(embedder=other).close()
    second = open_store(embedder=other)
    other.once = lambda: open_store(embedder=one).close()
    with pytest.warns(KronosWarning, match="hash vectors answer"):
        hits = second.search("zzz", mode="dense", as_of=then)
    assert [hit.content for hit in hits] == ["old text"]
