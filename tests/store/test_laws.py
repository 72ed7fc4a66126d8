"""The laws of the store as a state machine: whatever happens, it answers like a plain dict.

Every search is compared with exact scoring of the texts that are live, so a vector of another
space, a stale text, a lost or a risen memory each shows as a wrong answer.
"""

from __future__ import annotations

import shutil
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from kronos import MemoryStore, NewMemory
from kronos.embedding.hashing import HashEmbedder
from kronos.settings import Settings
from tests.conftest import Clock

WORDS = ["cat", "train", "bread", "glacier", "violin", "harbour", "quantum", "spring"]
texts = st.lists(st.sampled_from(WORDS), min_size=1, max_size=5).map(" ".join)
ids = st.sampled_from([f"m{i}" for i in range(12)])
namespaces = st.sampled_from(["default", "default/a", "other", "other/b"])
numbers = st.integers(0, 3)


class StoreMachine(RuleBasedStateMachine):
    """Two stores over one database, and the dict that they must equal."""

    @initialize()
    def open(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.clock = Clock()
        self.model: dict[str, dict[str, Any]] = {}
        self.dim = 32
        self.first = self.opened()
        self.second = self.opened()

    def opened(self) -> MemoryStore:
        return MemoryStore.open(
            self.folder,
            embedding_model="hash",
            embedding_dim=self.dim,
            clock=self.clock,
            settings=Settings(batch_size=4, durability="normal"),
        )

    def teardown(self) -> None:
        for store in (self.first, self.second):
            store.close()
        shutil.rmtree(self.folder)

    def either(self, second: bool) -> MemoryStore:
        return self.second if second else self.first

    @rule(id=ids, text=texts, namespace=namespaces, n=numbers, second=st.booleans())
    def put(self, id: str, text: str, namespace: str, n: int, second: bool) -> None:
        self.either(second).add(
            text, id=id, namespace=namespace, metadata={"n": n}, on_conflict="replace"
        )
        self.model[id] = {"content": text, "namespace": namespace, "n": n, "expires": None}

    @rule(pairs=st.lists(st.tuples(ids, texts), max_size=9, unique_by=lambda pair: pair[0]))
    def put_those_that_are_missing(self, pairs: list[tuple[str, str]]) -> None:
        items = [NewMemory(text, id=id, metadata={"n": 0}) for id, text in pairs]
        self.first.add_many(items, on_conflict="ignore")
        for id, text in pairs:
            if id not in self.live():
                self.model[id] = {
                    "content": text, "namespace": "default", "n": 0, "expires": None,
                }  # fmt: skip

    @precondition(lambda self: self.live())
    @rule(data=st.data(), text=texts, second=st.booleans())
    def edit(self, data: st.DataObject, text: str, second: bool) -> None:
        id = data.draw(st.sampled_from(sorted(self.live())))
        self.either(second).update(id, content=text)
        self.model[id]["content"] = text

    @precondition(lambda self: self.live())
    @rule(data=st.data(), n=numbers)
    def change_metadata(self, data: st.DataObject, n: int) -> None:
        id = data.draw(st.sampled_from(sorted(self.live())))
        self.second.update(id, metadata={"n": n})
        self.model[id]["n"] = n

    @precondition(lambda self: self.live())
    @rule(data=st.data(), seconds=st.integers(1, 100))
    def let_expire(self, data: st.DataObject, seconds: int) -> None:
        id = data.draw(st.sampled_from(sorted(self.live())))
        at = self.clock.now + timedelta(seconds=seconds)
        self.first.update(id, expires_at=at)
        self.model[id]["expires"] = at

    @rule(seconds=st.integers(1, 100))
    def wait(self, seconds: int) -> None:
        self.clock.tick(seconds)

    @rule(chosen=st.lists(ids, max_size=4, unique=True), second=st.booleans())
    def delete(self, chosen: list[str], second: bool) -> None:
        self.either(second).delete(chosen)
        for id in chosen:
            self.model.pop(id, None)

    @rule(n=numbers, namespace=namespaces)
    def delete_matching(self, n: int, namespace: str) -> None:
        gone = [
            id
            for id, fields in self.live().items()
            if fields["n"] == n and within(fields["namespace"], namespace)
        ]
        assert self.first.delete(where={"n": n}, namespace=namespace) == len(gone)
        for id in gone:
            del self.model[id]

    @rule(query=texts, limit=st.integers(1, 6), second=st.booleans())
    def search(self, query: str, limit: int, second: bool) -> None:
        self.compare(self.either(second), query, limit, namespace="*")

    @rule(query=texts, limit=st.integers(1, 6), n=numbers, namespace=namespaces)
    def search_filtered(self, query: str, limit: int, n: int, namespace: str) -> None:
        self.compare(
            self.first, query, limit, namespace=namespace, where={"n": {"$gte": n}}, least=n
        )

    def compare(
        self, store: MemoryStore, query: str, limit: int, *, least: int = 0, **options: Any
    ) -> None:
        expected = {
            id: fields
            for id, fields in self.live().items()
            if fields["n"] >= least and within(fields["namespace"], options["namespace"])
        }
        hits = store.search(query, limit=limit, mode="dense", **options)
        assert len(hits) == min(limit, len(expected))
        assert len({hit.id for hit in hits}) == len(hits)
        scores = self.scores(query, {id: fields["content"] for id, fields in expected.items()})
        for hit, best in zip(hits, sorted(scores.values(), reverse=True), strict=False):
            assert hit.content == expected[hit.id]["content"]
            assert abs(hit.score - scores[hit.id]) < 1e-5
            assert abs(hit.score - best) < 1e-5

    @rule(query=texts, n=numbers, second=st.booleans())
    def search_by_words(self, query: str, n: int, second: bool) -> None:
        where = {"n": {"$gte": n}}
        hits = self.either(second).search(
            query, mode="lexical", namespace="*", where=where, limit=50
        )
        assert {hit.id for hit in hits} == {
            id
            for id, fields in self.live().items()
            if fields["n"] >= n and set(query.split()) & set(fields["content"].split())
        }

    @rule(query=texts, second=st.booleans())
    def search_by_both(self, query: str, second: bool) -> None:
        hits = self.either(second).search(query, namespace="*", limit=50)
        assert {hit.id for hit in hits} == set(self.live())

    def scores(self, query: str, contents: dict[str, str]) -> dict[str, float]:
        embedder = HashEmbedder(self.dim)
        if not contents:
            return {}
        rows = embedder.embed_documents(list(contents.values()))
        made = rows @ embedder.embed_queries([query])[0]
        return dict(zip(contents, made.tolist(), strict=True))

    @rule(second=st.booleans())
    def reopen(self, second: bool) -> None:
        self.either(second).close()
        if second:
            self.second = self.opened()
        else:
            self.first = self.opened()

    @rule()
    def lose_the_index_folder(self) -> None:
        shutil.rmtree(self.folder / "index", ignore_errors=True)

    @rule(dim=st.sampled_from([32, 48]))
    def change_the_embedder(self, dim: int) -> None:
        self.first.close()
        self.second.close()
        self.dim = dim
        self.first, self.second = self.opened(), self.opened()

    @rule(second=st.booleans())
    def check(self, second: bool) -> None:
        assert self.either(second).maintenance.check().problems == ()

    @invariant()
    def both_hold_what_the_dict_holds(self) -> None:
        if not hasattr(self, "first"):
            return
        for store in (self.first, self.second):
            held = {
                memory.id: (memory.content, memory.namespace, memory.metadata["n"])
                for memory in store.list(namespace="*", limit=1000)
            }
            assert held == {
                id: (fields["content"], fields["namespace"], fields["n"])
                for id, fields in self.live().items()
            }

    def live(self) -> dict[str, dict[str, Any]]:
        now = self.clock.now
        return {
            id: fields
            for id, fields in self.model.items()
            if fields["expires"] is None or fields["expires"] > now
        }


def within(namespace: str, scope: str) -> bool:
    return scope == "*" or namespace == scope or namespace.startswith(f"{scope}/")


TestLaws = StoreMachine.TestCase
TestLaws.settings = settings(
    max_examples=40,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
