"""An open store embeds the texts that other processes leave pending in its space."""

from __future__ import annotations

import tempfile
import threading
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kronos import MemoryStore, Settings
from kronos.errors import NotFoundError
from kronos.repository.jobs import JobOptions
from tests.embedders import Named

SETTINGS = Settings(network_timeout_s=0.1)
IDS = [f"m{n}" for n in range(4)]


class Picky(Named):
    """An embedder that cannot embed some texts."""

    def embed_documents(self, texts: Sequence[str]) -> Any:
        if any("BAD" in text for text in texts):
            raise ValueError("that text I cannot")
        return super().embed_documents(texts)


def opened_without_model(folder: Path) -> MemoryStore:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return MemoryStore.open(folder, embedding_model="no-such/model", settings=SETTINGS)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["add", "edit", "edit", "delete", "search", "search"]),
        st.sampled_from(IDS),
        st.sampled_from(["good", "better", "BAD", "so BAD", "fine"]),
    ),
    max_size=14,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[*HealthCheck])
@given(steps=STEPS)
def test_after_a_search_only_texts_that_cannot_be_embedded_are_pending(
    steps: list[tuple[str, str, str]],
) -> None:
    folder = Path(tempfile.mkdtemp())
    store = MemoryStore.open(folder, embedder=Picky("P"), settings=SETTINGS)
    store.add("first", id="first")
    other = opened_without_model(folder)
    texts = {"first": "first"}
    for step, id, text in [*steps, ("search", "", "")]:
        if step == "add" and id not in texts:
            other.add(f"{text} {id}", id=id)
            texts[id] = f"{text} {id}"
        elif step == "edit" and id in texts:
            other.update(id, content=f"{text}, edited {id}")
            texts[id] = f"{text}, edited {id}"
        elif step == "delete" and texts.pop(id, ""):
            other.delete(id)
        elif step == "search":
            found = store.search("good", mode="dense", limit=10)
            expected = {id for id, text in texts.items() if "BAD" not in text}
            assert {hit.id for hit in found} == expected
    store.close()
    other.close()


def test_a_memory_that_was_edited_while_it_was_pending_is_embedded(tmp_path: Path) -> None:
    store = MemoryStore.open(tmp_path, embedder=Picky("P"), settings=SETTINGS)
    store.add("first", id="m")
    store.add("other", id="o")
    other = opened_without_model(tmp_path)
    other.update("m", content="BAD")
    store.search("x")
    store.search("x")
    other.update("m", content="good again")
    assert store.search("good again", mode="dense", limit=1)[0].id == "m"
    assert store.stats().spaces[0].pending == 0
    store.close()
    other.close()


def test_a_space_and_its_job_begin_together(tmp_path: Path) -> None:
    """So no `compact` of another process can drop the space in between."""
    store = MemoryStore.open(tmp_path, embedder=Named("A"))
    store.add("text")
    over = threading.Event()
    ends: list[BaseException] = []

    def compact() -> None:
        with MemoryStore.open(tmp_path, embedding_model=None) as other:
            while not over.is_set():
                other.maintenance.compact(keep_spaces=0)

    compacting = threading.Thread(target=compact)
    compacting.start()
    try:
        for number in range(25):
            resolver = store._session.resolver
            options = JobOptions(activate=False)
            job = resolver.job(Named(f"B{number}"), alias=None, options=options)
            with store._session.reader() as repository:
                assert repository.spaces.has(job.space), "its job keeps it"
            store.models.cancel()
    except BaseException as exc:
        ends.append(exc)
    over.set()
    compacting.join()
    assert ends == []
    store.close()


def test_a_job_for_a_dropped_space_raises_not_found(tmp_path: Path) -> None:
    with MemoryStore.open(tmp_path, embedder=Named("A")) as store:
        store.add("text")
        resolver = store._session.resolver
        job = resolver.job(Named("B"), alias=None, options=JobOptions(activate=False))
        store.models.cancel()
        store.maintenance.compact()
        with pytest.raises(NotFoundError, match="is gone"):
            resolver.job_of(job.space, lambda: Named("B"), options=JobOptions())


def test_a_fallback_whose_space_is_dropped_meanwhile_fills_it_again(tmp_path: Path) -> None:
    with MemoryStore.open(tmp_path, embedder=Named("A")) as store:
        store.add_many(f"text {n}" for n in range(300))
    over = threading.Event()

    def compact() -> None:
        with MemoryStore.open(tmp_path, embedding_model=None) as other:
            while not over.is_set():
                other.maintenance.compact()

    compacting = threading.Thread(target=compact)
    compacting.start()
    ends: list[BaseException] = []
    deadline = time.monotonic() + 3
    try:
        while time.monotonic() < deadline:
            with opened_without_model(tmp_path) as fallback, warnings.catch_warnings():
                warnings.simplefilter("ignore")  # it warns again whenever its space is dropped
                assert fallback.search("text 7", limit=1)[0].content == "text 7"
    except BaseException as exc:
        ends.append(exc)
    over.set()
    compacting.join()
    assert ends == []
