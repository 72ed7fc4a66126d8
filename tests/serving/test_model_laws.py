"""The laws of model changes as a state machine: vectors of two spaces never meet.

Two stores over one database change the model, stop half way, roll back, lose models and get them
back, are killed and opened again. Whatever happens, a search equals exact scoring of the current
texts by the embedder that it names, and every stored vector is the one that its space's embedder
makes of the memory's current text. Two of the models are of equal width.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from kronos import MemoryStore
from kronos.embedding import service
from kronos.embedding.hashing import HashEmbedder
from kronos.errors import KronosWarning, ModelLoadError, NotFoundError
from kronos.settings import Settings
from kronos.types import Space
from tests.conftest import Clock, examples

WORDS = ["cat", "train", "bread", "glacier", "violin", "harbour", "quantum", "spring"]
HASH_DIM = 24
TURNED = {"fake/a": (32, 5), "fake/b": (32, 11), "fake/c": (48, 3)}

texts = st.lists(st.sampled_from(WORDS), min_size=1, max_size=5).map(" ".join)
ids = st.sampled_from([f"m{i}" for i in range(14)])
fakes = st.sampled_from(sorted(TURNED))
models = st.sampled_from(["hash", *sorted(TURNED)])
either = st.booleans()


class Fake(HashEmbedder):
    """A model that can be lost: hash vectors, turned round."""

    def __init__(self, name: str) -> None:
        dim, self.turn = TURNED[name]
        super().__init__(dim)
        self.model_id = name
        self.fingerprint = f"fingerprint of {name}"

    def embed_documents(self, texts: Sequence[str]) -> Any:
        return np.roll(super().embed_documents(texts), self.turn, axis=1)

    def embed_queries(self, texts: Sequence[str]) -> Any:
        return np.roll(super().embed_documents(texts), self.turn, axis=1)


def embedder_of(model: str, dim: int) -> HashEmbedder:
    return HashEmbedder(dim) if model == "hash" else Fake(model)


class ModelMachine(RuleBasedStateMachine):
    """Two stores over one database, some models, and the dict that the stores must equal."""

    @initialize()
    def open(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.clock = Clock()
        self.model: dict[str, str] = {}
        self.lost: set[str] = set()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(service, "load_model", self.load)
        self.first = self.opened("hash")
        self.second = self.opened("hash")

    def load(self, name: str, **_: Any) -> Fake:
        if name in self.lost:
            raise ModelLoadError(f"{name} is lost")
        return Fake(name)

    def opened(self, model: str, on_model_change: str = "rebuild") -> MemoryStore:
        store: MemoryStore = self.quietly(
            lambda: MemoryStore.open(
                self.folder,
                embedding_model=model,
                embedding_dim=HASH_DIM,
                on_model_change=on_model_change,
                clock=self.clock,
                settings=Settings(batch_size=4, durability="normal"),
            )
        )
        return store

    def quietly(self, call: Callable[[], Any]) -> Any:
        """Degraded stores warn, and say why they fall back."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", KronosWarning)
            return call()

    def teardown(self) -> None:
        for store in (self.first, self.second):
            store.close()
        self.patch.undo()
        shutil.rmtree(self.folder)

    def pick(self, second: bool) -> MemoryStore:
        return self.second if second else self.first

    # -- Memories ---------------------------------------------------------------------------------

    @rule(id=ids, text=texts, second=either)
    def put(self, id: str, text: str, second: bool) -> None:
        self.quietly(lambda: self.pick(second).add(text, id=id, on_conflict="replace"))
        self.model[id] = text

    @rule(pairs=st.dictionaries(ids, texts, min_size=5), second=either)
    def put_many(self, pairs: dict[str, str], second: bool) -> None:
        items = [{"id": id, "content": text} for id, text in pairs.items()]
        self.quietly(lambda: self.pick(second).add_many(items, on_conflict="replace"))
        self.model |= pairs

    @precondition(lambda self: self.model)
    @rule(data=st.data(), text=texts, second=either)
    def edit(self, data: st.DataObject, text: str, second: bool) -> None:
        id = data.draw(st.sampled_from(sorted(self.model)))
        self.quietly(lambda: self.pick(second).update(id, content=text))
        self.model[id] = text

    @rule(chosen=st.lists(ids, max_size=3, unique=True), second=either)
    def delete(self, chosen: list[str], second: bool) -> None:
        self.pick(second).delete(chosen)
        for id in chosen:
            self.model.pop(id, None)

    @rule(query=texts, limit=st.integers(1, 6), second=either)
    def search(self, query: str, limit: int, second: bool) -> None:
        store = self.pick(second)
        hits = self.quietly(lambda: store.search(query, limit=limit, mode="dense"))
        assert len(hits) == min(limit, len(self.model))
        if not hits:
            return
        (name,) = {hit.embedder for hit in hits}
        embedder = embedder_of(name, store.stats().dim)
        rows = embedder.embed_documents(list(self.model.values()))
        scores = dict(zip(self.model, rows @ embedder.embed_queries([query])[0], strict=True))
        for hit, best in zip(hits, sorted(scores.values(), reverse=True), strict=False):
            assert hit.content == self.model[hit.id]
            assert abs(hit.score - scores[hit.id]) < 1e-5
            assert abs(hit.score - best) < 1e-5

    # -- Models -----------------------------------------------------------------------------------

    @rule(name=fakes)
    def lose(self, name: str) -> None:
        self.lost.add(name)

    @rule()
    def find_all(self) -> None:
        self.lost.clear()

    @rule(model=models, second=either, background=st.booleans())
    def reopen(self, model: str, second: bool, background: bool) -> None:
        before = self.active()
        self.pick(second).close()
        self.open_again(before, model, second, "background" if background else "rebuild")

    @rule(model=models, second=either)
    def kill_and_reopen(self, model: str, second: bool) -> None:
        # What a kill leaves behind: the committed rows, and no snapshot of the last changes.
        before, store = self.active(), self.pick(second)
        store._session.jobs.stop()
        store._session.database.close()
        store._session._database = None
        self.open_again(before, model, second, "rebuild")

    def open_again(self, before: Space, model: str, second: bool, on_model_change: str) -> None:
        store = self.opened(model, on_model_change)
        if second:
            self.second = store
        else:
            self.first = store
        store._session.jobs.wait()
        if model in self.lost and before.model != "hash":
            assert self.active() == before, "a fallback took the place of a model"
            assert store.stats().degraded or before.model == store.stats().embedder

    @rule(model=models, second=either, wide=st.booleans())
    def change(self, model: str, second: bool, wide: bool) -> None:
        self.may_fail(lambda: self.pick(second).reindex(model, workers=2 if wide else 1))

    @rule(model=models, second=either, batches=st.integers(1, 3))
    def change_half_way(self, model: str, second: bool, batches: int) -> None:
        stop = threading.Event()
        seen: list[Any] = []

        def progress(progress: Any) -> None:
            seen.append(progress)
            if len(seen) >= batches:
                stop.set()

        self.may_fail(
            lambda: self.pick(second).reindex(model, batch_size=2, stop=stop, progress=progress)
        )

    @rule(model=models, second=either)
    def prepare_a_change(self, model: str, second: bool) -> None:
        self.may_fail(lambda: self.pick(second).reindex(model, activate=False))

    @rule(second=either)
    def activate(self, second: bool) -> None:
        self.may_fail(self.pick(second).models.activate)

    @rule(second=either)
    def resume(self, second: bool) -> None:
        self.may_fail(self.pick(second).models.resume)

    @rule(second=either)
    def cancel(self, second: bool) -> None:
        self.may_fail(self.pick(second).models.cancel)

    @rule(second=either)
    def rollback(self, second: bool) -> None:
        self.may_fail(self.pick(second).models.rollback)

    @rule(second=either, keep=st.integers(0, 1))
    def compact(self, second: bool, keep: int) -> None:
        self.pick(second).maintenance.compact(keep_spaces=keep)

    def may_fail(self, change: Callable[[], Any]) -> None:
        """There may be nothing to do, or no model to do it with: then nothing switches."""
        before = self.active()
        try:
            self.quietly(change)
        except (ModelLoadError, NotFoundError):
            assert self.active() == before

    # -- The laws ---------------------------------------------------------------------------------

    def active(self) -> Space:
        (space,) = [e.space for e in self.first.stats().spaces if e.space.state == "active"]
        return space

    @invariant()
    def both_hold_what_the_dict_holds(self) -> None:
        if hasattr(self, "second"):
            for store in (self.first, self.second):
                assert {memory.id: memory.content for memory in store.list()} == self.model

    @invariant()
    def every_vector_is_its_embedder_s_of_the_current_text(self) -> None:
        if not hasattr(self, "second"):
            return
        with self.first._session.reader() as repository:
            for space in repository.spaces.all():
                embedder = embedder_of(space.model, space.dim)
                assert embedder.fingerprint == space.fingerprint
                for keys, rows in repository.vectors.since(space, 0):
                    held = repository.by_keys(keys)
                    contents = [held[key].content for key in keys.tolist()]
                    np.testing.assert_allclose(rows, embedder.embed_documents(contents), atol=1e-6)

    @rule(second=either)
    def check(self, second: bool) -> None:
        # It may be the first call that follows a switch to a model that is lost.
        found = self.quietly(self.pick(second).maintenance.check)
        assert {problem.kind for problem in found.problems} <= {"pending"}


TestModelLaws = ModelMachine.TestCase
TestModelLaws.settings = settings(
    max_examples=examples(25, 400),
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def test_a_check_follows_a_change_whose_old_space_is_gone() -> None:
    state = ModelMachine()
    try:
        state.open()
        state.put(id="m0", second=False, text="cat")
        state.reopen(background=True, model="fake/b", second=False)
        state.check(second=False)
        state.compact(keep=0, second=False)  # drops the space that answered until now
        state.check(second=False)
    finally:
        state.teardown()
