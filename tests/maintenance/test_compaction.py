"""Deletes really delete: after `compact` the files hold no byte of a deleted memory."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

from kronos import MemoryStore, NewMemory, Settings
from kronos.errors import KronosWarning
from tests.conftest import Clock, Opener
from tests.embedders import Named

SECRET = "zq7secret"


def files_with(folder: Path, needle: bytes) -> list[str]:
    return sorted(
        path.name for path in folder.rglob("*") if path.is_file() and needle in path.read_bytes()
    )


def secret_memory(number: int) -> NewMemory:
    return NewMemory(
        f"{SECRET} number {number} " + "padding " * (number % 900),
        id=f"{SECRET}-{number}",
        namespace=f"{SECRET}/n",
        metadata={f"{SECRET}": number},
    )


def vector_bytes(store: MemoryStore, text: str) -> bytes:
    rows: np.ndarray = store._session.serving.embed([text])
    return rows.astype("<f4").tobytes()[:128]


def test_no_byte_of_a_deleted_memory_is_left_on_disk(open_store: Opener) -> None:
    store = open_store(settings=Settings(snapshot_changes=50))
    folder = store.location.folder
    rng = np.random.default_rng(0)
    kept = [" ".join(f"w{n}" for n in rng.integers(0, 500, 12)) for _ in range(600)]
    store.add_many(kept)
    store.add_many(secret_memory(number) for number in range(700))
    store.add_many(f"kept later {text}" for text in kept)
    store.search("anything")
    store._session.snapshots.wait()
    probes = [vector_bytes(store, secret_memory(number).content) for number in (0, 350, 699)]
    assert files_with(folder, SECRET.encode())
    assert all(files_with(folder, probe) for probe in probes)

    store.update(f"{SECRET}-1", content="an open text", metadata={})
    store.delete([f"{SECRET}-{number}" for number in range(700) if number != 1])
    store.delete(f"{SECRET}-1")
    store.maintenance.compact()
    assert files_with(folder, SECRET.encode()) == []
    assert [files_with(folder, probe) for probe in probes] == [[], [], []]
    assert store.maintenance.check().problems == ()
    assert store.count() == 1200
    assert [hit.content for hit in store.search(kept[7], limit=1)] == [kept[7]]
    store.close()
    assert files_with(folder, SECRET.encode()) == []


@pytest.mark.parametrize("keep_history", [True, False])
def test_no_byte_of_a_replaced_text_is_left_on_disk(
    open_store: Opener, clock: Clock, keep_history: bool
) -> None:
    store = open_store(settings=Settings(keep_history=keep_history))
    store.add_many(f"filler {number}" for number in range(300))
    store.add(f"{SECRET} one", id="a", metadata={"is": SECRET})
    store.add_many(f"filler later {number}" for number in range(300))
    before = vector_bytes(store, f"{SECRET} one")
    store.update("a", content="harmless", metadata={"is": "nothing"})
    if keep_history:
        store.maintenance.compact(forget_before=clock.now)
        assert files_with(store.location.folder, SECRET.encode()) != []
        clock.tick(1)
    store.maintenance.compact(forget_before=clock.now if keep_history else None)
    assert files_with(store.location.folder, SECRET.encode()) == []
    assert files_with(store.location.folder, before) == []
    assert store.get("a").content == "harmless"


def test_a_warning_names_the_reader_that_keeps_the_log(open_store: Opener) -> None:
    store, reader = open_store(settings=Settings(busy_timeout_s=0.1)), open_store()
    store.add(f"{SECRET} one", id="a")
    with reader._session.reader() as repository:
        repository.count()
        store.delete("a")
        with pytest.warns(KronosWarning, match="compact"):
            store.maintenance.compact()
    store.maintenance.compact()
    assert files_with(store.location.folder, SECRET.encode()) == []


def test_pending_memories_stay_pending_when_tombstones_are_pruned(open_store: Opener) -> None:
    hash_store = open_store()
    hash_store.add_many([f"text {number}" for number in range(20)])
    other = open_store(embedding_dim=32)  # another space; the first one is retired
    ids = [memory.id for memory in other.list()]
    other.update(ids[0], content="changed in the new space alone")
    other.delete(ids[1])
    other.maintenance.compact()
    report = other.models.rollback()
    assert (report.embedded, report.pending) == (1, 0)
    assert other.search("changed in the new space alone", limit=1)[0].id == ids[0]
    assert other.maintenance.check().problems == ()


def test_no_byte_of_an_expired_memory_is_left_on_disk(open_store: Opener, clock: Clock) -> None:
    store = open_store()
    soon = clock.now + timedelta(hours=1)
    store.add_many(
        {"content": f"{SECRET} {n} ends", "expires_at": soon if n % 3 else None}
        for n in range(1800)
    )
    assert store.maintenance.compact().expired == 0
    clock.tick(3600)
    held = {memory.id for memory in store.list(limit=10**4)}
    report = store.maintenance.compact()
    assert (report.expired, len(held)) == (1200, 600)
    assert store.maintenance.check().problems == ()
    clock.tick(-7200)
    with open_store(namespace="put back") as again:  # whatever the clock says from then on
        assert {memory.id for memory in again.list(limit=10**4, namespace="*")} == held
    assert files_with(store.location.folder, f"{SECRET} 1 ends".encode()) == []


def test_compact_keeps_the_tombstones_that_announce_pending_texts(open_store: Opener) -> None:
    """An edit by a process without the model is pending; its tombstone announces it."""
    mine = open_store(embedder=Named("A"))
    mine.add_many(NewMemory(f"text {n}", id=f"m{n}") for n in range(20))
    assert mine.search("text 3", mode="dense", limit=1)[0].id == "m3"
    with pytest.warns(KronosWarning, match="hash"):
        other = open_store(embedding_model="no-such/model")
    with other:
        other.update("m3", content="changed")
        other.delete("m4")
        other.maintenance.compact()
    assert mine.search("changed", mode="dense", limit=1)[0].id == "m3"
    assert mine.search("text 3", mode="dense", limit=1)[0].content != "text 3"
    assert mine.maintenance.check().ok
