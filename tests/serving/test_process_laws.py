"""Laws of one store in two processes: whatever they do, and whenever one is killed, both agree.

The processes are driven from here and a dict says what must be there. `pytest --hypothesis-profile
nightly tests/serving/test_process_laws.py` runs 2,000 examples of 50 steps.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    precondition,
    rule,
)

from kronos import MemoryStore, Settings
from kronos.embedding.hashing import HashEmbedder
from kronos.errors import KronosError
from kronos.types import Embedder
from tests.conftest import examples

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks")

WIDTHS = (32, 48)
TEXTS = st.lists(st.sampled_from("ash birch cedar elm fir oak pine yew".split()), min_size=1).map(
    " ".join
)
IDS = st.sampled_from([f"id{n}" for n in range(12)])


def open_store(folder: str, width: int) -> MemoryStore:
    store = MemoryStore.open(
        folder,
        embedding_model="hash",
        embedding_dim=width,
        settings=Settings(snapshot_changes=1, snapshot_interval_s=0.001),
    )
    # What a command asks for by name: hash vectors of the other width.
    store._session.embedders.load = load  # type: ignore[method-assign,assignment]
    return store


def load(model: str, *, dim: int | None = None, **_: Any) -> Embedder:
    return HashEmbedder(int(model) if model.isdigit() else dim or WIDTHS[0])


def snapshot(store: MemoryStore) -> None:
    store.search("ash")
    store._session.serving.replica.save()


def reindex_some(store: MemoryStore, width: int) -> None:
    """Start changing the model, and stop on the way."""
    store.reindex(str(width), batch_size=2, max_seconds=1e-9)


def contents(store: MemoryStore) -> dict[str, tuple[str, Any]]:
    return {m.id: (m.content, m.metadata.get("v")) for m in store.list(limit=10**6)}


def found(store: MemoryStore, query: str) -> tuple[list[tuple[str, float]], int]:
    """All hits, and the width of the space that answered."""
    hits = store.search(query, limit=10**6, mode="dense")
    return [(hit.id, hit.score) for hit in hits], store._session.serving.space.dim


def problems(store: MemoryStore) -> list[str]:
    return [
        f"{p.kind}: {p.detail}" for p in store.maintenance.check().problems if p.kind != "pending"
    ]


CALLS: dict[str, Callable[..., Any]] = {
    "snapshot": snapshot,
    "reindex_some": reindex_some,
    "contents": contents,
    "found": found,
    "problems": problems,
    "backup": lambda store, path: store.maintenance.backup(path),
    "compact": lambda store: store.maintenance.compact(),
}


def serve(folder: str, width: int, pipe: Connection) -> None:
    """A process that has the store open and does what it is told."""
    warnings.simplefilter("ignore")
    signal.alarm(120)
    store = open_store(folder, width)
    pipe.send(None)
    while True:
        verb, arguments, options = pipe.recv()
        try:
            call = CALLS.get(verb)
            made = call(store, *arguments) if call else getattr(store, verb)(*arguments, **options)
            pipe.send(made)
        except KronosError as exc:
            pipe.send(exc)
        if verb == "close":
            os._exit(0)


class Process:
    """One of the two processes."""

    def __init__(self, folder: Path, width: int) -> None:
        context = multiprocessing.get_context("fork")
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=serve, args=[str(folder), width, other], daemon=True)
        self._process.start()
        other.close()
        self._pipe.recv()

    def call(self, verb: str, *arguments: Any, **options: Any) -> Any:
        self.begin(verb, *arguments, **options)
        made = self._pipe.recv()
        if isinstance(made, BaseException):
            raise made
        return made

    def begin(self, verb: str, *arguments: Any, **options: Any) -> None:
        self._pipe.send((verb, arguments, options))

    def kill(self) -> None:
        self._process.kill()
        self._process.join()
        self._pipe.close()

    def close(self) -> None:
        self.call("close")
        self._process.join()
        self._pipe.close()


class TwoProcesses(RuleBasedStateMachine):
    backups = Bundle("backups")

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.store = self.folder / "store"
        self.width = WIDTHS[0]
        self.held: dict[str, tuple[str, Any]] = {}
        self.processes: list[Process] = []
        self.version = 0

    @initialize()
    def begin(self) -> None:
        self.processes = [Process(self.store, self.width) for _ in range(2)]

    def teardown(self) -> None:
        for process in self.processes:
            process.kill()
        shutil.rmtree(self.folder)

    def pick(self, second: bool) -> Process:
        return self.processes[second]

    @property
    def next_version(self) -> int:
        self.version += 1
        return self.version

    # -- What changes the store -----------------------------------------------------------------

    @rule(second=st.booleans(), items=st.dictionaries(IDS, TEXTS, min_size=1, max_size=6))
    def upsert(self, second: bool, items: dict[str, str]) -> None:
        v = self.next_version
        batch = [{"content": t, "id": id, "metadata": {"v": v}} for id, t in items.items()]
        self.pick(second).call("add_many", batch, on_conflict="replace")
        self.held |= {id: (text, v) for id, text in items.items()}

    @rule(second=st.booleans(), texts=st.lists(TEXTS, min_size=1, max_size=20))
    def add(self, second: bool, texts: list[str]) -> None:
        ids = self.pick(second).call("add_many", texts)
        self.held |= {id: (text, None) for id, text in zip(ids, texts, strict=True)}

    @rule(second=st.booleans(), id=IDS, text=TEXTS)
    def update(self, second: bool, id: str, text: str) -> None:
        if id in self.held:
            self.pick(second).call("update", id, content=text)
            self.held[id] = (text, self.held[id][1])

    @rule(second=st.booleans(), ids=st.lists(IDS, max_size=6), rest=st.booleans())
    def delete(self, second: bool, ids: list[str], rest: bool) -> None:
        more = [id for id in self.held if len(id) > 4][:5] if rest else []
        self.pick(second).call("delete", [*ids, *more])
        for id in [*ids, *more]:
            self.held.pop(id, None)

    @rule(second=st.booleans(), items=st.dictionaries(IDS, TEXTS, min_size=1, max_size=6),
          microseconds=st.integers(0, 6000))  # fmt: skip
    def killed_amid_a_write(self, second: bool, items: dict[str, str], microseconds: int) -> None:
        v = self.next_version
        batch = [{"content": t, "id": id, "metadata": {"v": v}} for id, t in items.items()]
        process = self.pick(second)
        process.begin("add_many", batch, on_conflict="replace")
        process._pipe.poll(microseconds / 1e6)
        process.kill()
        done = {**self.held, **{id: (text, v) for id, text in items.items()}}
        there = self.pick(not second).call("contents")
        assert there in (self.held, done), "half a batch"
        self.held = there
        self.processes[second] = Process(self.store, self.width)

    # -- What must change nothing ---------------------------------------------------------------

    @rule(second=st.booleans())
    def save(self, second: bool) -> None:
        self.pick(second).call("snapshot")

    @rule(second=st.booleans())
    def compact(self, second: bool) -> None:
        self.pick(second).call("compact")

    @rule(second=st.booleans())
    def kill_and_reopen(self, second: bool) -> None:
        self.pick(second).kill()
        self.processes[second] = Process(self.store, self.width)

    @rule(second=st.booleans())
    def close_and_reopen(self, second: bool) -> None:
        self.pick(second).close()
        self.processes[second] = Process(self.store, self.width)

    @rule(second=st.booleans())
    def lose_the_index_folder(self, second: bool) -> None:
        shutil.rmtree(self.store / "index", ignore_errors=True)

    @rule(second=st.booleans())
    def step_of_a_reindex(self, second: bool) -> None:
        other = WIDTHS[self.width == WIDTHS[0]]
        self.pick(second).call("reindex_some", other)

    @rule(second=st.booleans())
    def switch(self, second: bool) -> None:
        self.width = WIDTHS[self.width == WIDTHS[0]]
        assert self.pick(second).call("reindex", str(self.width)).state == "done"

    # -- Backups --------------------------------------------------------------------------------

    @rule(target=backups, second=st.booleans())
    def back_up(self, second: bool) -> tuple[Path, dict[str, tuple[str, Any]], int]:
        path = self.folder / f"{self.next_version}.db"
        self.pick(second).call("backup", path)
        return path, dict(self.held), self.width

    @rule(backup=consumes(backups))
    def restore(self, backup: tuple[Path, dict[str, tuple[str, Any]], int]) -> None:
        path, self.held, self.width = backup
        MemoryStore(self.store).maintenance.restore(path)

    # -- What must hold -------------------------------------------------------------------------

    @precondition(lambda self: self.processes)
    @invariant()
    def both_hold_what_was_acknowledged(self) -> None:
        for process in self.processes:
            assert process.call("contents") == self.held

    @rule(second=st.booleans(), query=TEXTS)
    def search(self, second: bool, query: str) -> None:
        hits, width = self.pick(second).call("found", query)
        assert width == self.width, "another space answered than the active one"
        assert {id for id, _ in hits} == set(self.held)
        if hits:
            embedder: Embedder = HashEmbedder(width)
            vector = embedder.embed_queries([query])[0]
            rows = embedder.embed_documents([self.held[id][0] for id, _ in hits])
            assert np.allclose(rows @ vector, [score for _, score in hits], atol=1e-5)
            assert [score for _, score in hits] == sorted((s for _, s in hits), reverse=True)

    @rule(second=st.booleans())
    def check(self, second: bool) -> None:
        assert self.pick(second).call("problems") == []


TwoProcesses.TestCase.settings = settings(
    max_examples=examples(15, 2000),
    stateful_step_count=examples(30, 50),
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
TestTwoProcesses = TwoProcesses.TestCase
