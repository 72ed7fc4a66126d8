"""A process that has everything loaded and forks a child for each fault: milliseconds, not seconds.

Runs with the shim preloaded. Reads one JSON order a line, answers with one JSON line: how the child
ended, what it said, and how many calls on the store's files it made.

    {"what": "insert", "folder": ..., "mode": 0..4, "at": n, "errno": n}   do it, with a fault
    {"what": "record", "folder": ..., "log": ..., "durability": ...}       do all, into a log
    {"what": "verify", "folder": ..., "states": [...]}                     look what is left
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import kronos.index.faiss.flat  # noqa: F401  loaded once, here
from kronos import MemoryStore, Settings
from kronos.db import sqlite
from kronos.embedding.hashing import HashEmbedder
from kronos.errors import KronosError, StorageError

DIM = 32
COUNT = 40
_LONGEST_S = 60
_PAGES_A_CHECKPOINT = 40


def open_store(folder: str, *, durability: Any = "full", **options: Any) -> MemoryStore:
    settings = Settings(
        snapshot_changes=1, snapshot_interval_s=3600, busy_timeout_s=1, durability=durability
    )
    values: dict[str, Any] = {"embedding_model": "hash", "embedding_dim": DIM, **options}
    return MemoryStore.open(folder, settings=settings, **values)


def state_of(store: MemoryStore) -> dict[str, Any]:
    """Everything that a caller stored."""
    held = store.list(limit=10**6, namespace="*")
    return {
        m.id: [m.content, dict(m.metadata), m.importance, m.namespace, *past(store, m.id)]
        for m in held
    }


def past(store: MemoryStore, id: str) -> list[Any]:
    """What some memories were, and where they lead; to ask for every one of them takes too long."""
    if id not in ("m1", "m2", "m3", "m9", "m30"):
        return []
    versions = [version.memory.content for version in store.history(id)]
    return [versions, [[link.source_id, link.target_id, link.weight] for link in store.links(id)]]


def fill(folder: str) -> None:
    """The store that most faults begin with."""
    with open_store(folder) as store:
        begin(store)
        store.search("word")
        store._session.serving.replica.save()
        store.add("added after the snapshot", id="late")


def begin(store: MemoryStore) -> None:
    store.add_many(
        {"content": f"word{n} in text {n}", "id": f"m{n}", "metadata": {"n": n}}
        for n in range(COUNT)
    )


# -- What is done under a fault; the store is open before it begins, unless it is about opening ----


def insert(store: MemoryStore) -> None:
    store.add_many({"content": f"new word{n} came", "id": f"new{n}"} for n in range(30))


def update(store: MemoryStore) -> None:
    store.update("m3", content="the third was changed", metadata={"changed": True})


def delete(store: MemoryStore) -> None:
    store.delete([f"m{n}" for n in range(5, 25)])


def replace(store: MemoryStore) -> None:
    items = [{"content": f"put in place {n}", "id": f"m{n}"} for n in range(10)]
    store.add_many(items, on_conflict="replace")


def link(store: MemoryStore) -> None:
    store.link("m1", "m2", "knows", 0.5)


def index_field(store: MemoryStore) -> None:
    store.maintenance.index_field("n")


def words(store: MemoryStore) -> None:
    store.maintenance.rebuild_fulltext("unicode61")


def snapshot(store: MemoryStore) -> None:
    store.search("word")
    store._session.serving.replica.save()


def reindex(store: MemoryStore) -> None:
    store._session.embedders.load = lambda model, **_: HashEmbedder(16)  # type: ignore[method-assign,assignment]
    store.reindex("narrower", batch_size=8)


def compact(store: MemoryStore) -> None:
    store.maintenance.compact()


def back_up(store: MemoryStore) -> None:
    store.maintenance.backup(store.location.folder / "kronos.db.mine")


def close(store: MemoryStore) -> None:
    store.search("word")
    store.close()


def reopen(folder: str) -> None:
    """What recovery is: open, answer, write, close."""
    with open_store(folder) as store:
        store.search("word")
        store.add("written after recovery", id="again", on_conflict="replace")


def migrate(folder: str) -> None:
    open_store(folder, embedding_model=None, migrate=True).close()


def restore(folder: str) -> None:
    MemoryStore(folder).maintenance.restore(Path(folder).parent / "backup.db")


def recover(folder: str) -> None:
    MemoryStore(folder).maintenance.recover()


OPENED: dict[str, Callable[[MemoryStore], None]] = {
    "insert": insert,
    "update": update,
    "delete": delete,
    "replace": replace,
    "link": link,
    "index_field": index_field,
    "words": words,
    "snapshot": snapshot,
    "reindex": reindex,
    "compact": compact,
    "backup": back_up,
    "close": close,
}
UNOPENED: dict[str, Callable[[str], None]] = {
    "create": reopen,
    "reopen": reopen,
    "migrate": migrate,
    "restore": restore,
    "recover": recover,
}


# -- What is recorded, for a power cut -----------------------------------------------------


def record(order: dict[str, Any]) -> dict[str, Any]:
    """Everything that writes, into a log; a mark in it says that a call has returned."""
    # So few that checkpoints come between other calls too, and SQLite's log is begun anew.
    sqlite._PAGES_A_CHECKPOINT = _PAGES_A_CHECKPOINT
    shim = ctypes.CDLL(None)
    folder = order["folder"]
    shim.fault_record(os.path.dirname(folder).encode(), order["log"].encode())
    calls: list[str] = []
    states: list[Any] = [{}]
    for call, store in lives(folder, order["durability"]):
        shim.fault_mark(len(calls))
        if call == "restore":
            states.append(states[calls.index("backup")])
        else:
            states.append(states[-1] if call == "close" else state_of(store))
        calls.append(call)
    return {"end": "done", "calls": calls, "states": states}


def lives(folder: str, durability: str) -> Iterator[tuple[str, MemoryStore]]:
    """Three lives of a store: each call's name, when it has returned."""
    store = open_store(folder, durability=durability)
    yield "open", store
    begin(store)
    yield "begin", store
    for call, do in OPENED.items():  # the last one closes
        do(store)
        yield call, store
    yield from _later_life(folder, durability, 1)
    MemoryStore(folder).maintenance.restore(Path(folder) / "kronos.db.mine")
    yield "restore", store
    yield from _later_life(folder, durability, 2)


def _later_life(folder: str, durability: str, life: int) -> Iterator[tuple[str, MemoryStore]]:
    store = open_store(folder, durability=durability)
    yield "open", store
    for n in range(8):
        store.add(f"life {life} brought word{n}", id=f"life{life}-{n}")
        yield "add", store
    store.delete([f"life{life}-0", f"new{life}"])
    yield "delete", store
    compact(store)
    yield "compact", store
    store.update("new9", content=f"changed in life {life}")
    yield "update", store
    snapshot(store)
    yield "snapshot", store
    close(store)
    yield "close", store


# -- Children ------------------------------------------------------------------------------


def attempt(order: dict[str, Any]) -> dict[str, Any]:
    """Do one thing under a fault; then, if the process lives, the same store must still work."""
    what, folder = order["what"], order["folder"]
    shim = ctypes.CDLL(None)
    store = open_store(folder) if what in OPENED else None
    armed = (folder.encode(), order["mode"], order.get("at", 0), order.get("errno", 0))
    said: dict[str, Any] = {"end": "done"}
    shim.fault_arm(*armed)
    try:
        if store is not None:
            OPENED[what](store)
        else:
            UNOPENED[what](folder)
    except StorageError as exc:
        said = {"end": type(exc).__name__, "message": str(exc)}
    except KronosError as exc:
        said = {"end": f"not a storage error: {type(exc).__name__}", "message": str(exc)}
    except Exception:
        said = {"end": "not typed", "message": traceback.format_exc()}
    said["calls"] = shim.fault_disarm()
    if store is not None and what != "close":
        try:  # the space is back, the disk works again: so does the same store object
            store.add("service is back", id="service", on_conflict="replace")
            best = store.search("service is back", limit=1)[0].id
            store.delete("service")
            said["service"] = best == "service"
        except Exception:
            said["service"] = traceback.format_exc()
    return said


def verify(order: dict[str, Any]) -> dict[str, Any]:
    """Open what is left, hold it against the states that are allowed, and use it."""
    folder = order["folder"]
    problems: list[str] = []
    if order.get("migrate"):
        migrate(folder)
    options = {"embedding_model": None} if order.get("migrate") else {}
    with open_store(folder, **options) as store:
        state = state_of(store)
        if state not in order["states"]:
            problems.append(f"neither before nor after: {json.dumps(state)[:2000]}")
        if order.get("write_first"):
            for id in list(state)[:3]:
                store.update(id, content=f"{id} was changed before the first search")
            state = state_of(store)
        if not order.get("migrate"):
            problems += search_problems(store, state)
            store.add("it still takes a write", id="probe")
            if store.search("it still takes a write", limit=1)[0].id != "probe":
                problems.append("a new memory is not found")
            store.delete("probe")
        # The hashes in the database of an older schema are made up: see `tests.db.make_asset`.
        passed_over = {"texts"} if order.get("migrate") else set()
        found = [p for p in store.maintenance.check().problems if p.kind not in passed_over]
        problems += [f"{p.kind}: {p.detail}" for p in found]
        store.maintenance.compact()
    left = [p.name for p in Path(folder).rglob("*") if p.name.endswith((".tmp", ".part"))]
    if left:
        problems.append(f"left behind: {left}")
    return {"end": "done", "problems": problems, "state": state}


def search_problems(store: MemoryStore, state: dict[str, Any]) -> list[str]:
    """Ids of index and rows agree, and neighbours are those of an exact comparison."""
    problems: list[str] = []
    hits = store.search("word in text", limit=10**6)
    if {hit.id for hit in hits} != set(state):
        problems.append("search finds other ids than there are")
    hits = store.search("text", mode="lexical", limit=10**6)
    if {hit.id for hit in hits} != {id for id, held in state.items() if "text" in held[0].split()}:
        problems.append("words find other ids than hold them")
    if not state:
        return problems
    embedder = HashEmbedder(store.stats().dim)
    ids = list(state)
    rows = embedder.embed_documents([state[id][0] for id in ids])
    for probe in (0, len(ids) // 2, len(ids) - 1):
        query = embedder.embed_queries([state[ids[probe]][0]])[0]
        best = float(np.max(rows @ query))
        found = store.search(state[ids[probe]][0], limit=1, mode="dense")[0]
        if abs(found.score - best) > 1e-5:
            problems.append(f"the nearest to {ids[probe]} is {found.id} ({found.score}, {best})")
    return problems


def _child(order: dict[str, Any], pipe: int) -> None:
    signal.alarm(_LONGEST_S)
    warnings.simplefilter("ignore")
    try:
        do = {"verify": verify, "record": record}.get(order["what"], attempt)
        answer = do(order)
    except BaseException:
        answer = {"end": "raised", "message": traceback.format_exc()}
    os.write(pipe, json.dumps(answer).encode())
    os._exit(0)


def _run(order: dict[str, Any]) -> dict[str, Any]:
    if order["what"] == "fill":
        fill(order["folder"])
        with open_store(order["folder"]) as store:
            return {"end": "done", "state": state_of(store)}
    readable, writable = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(readable)
        _child(order, writable)
    os.close(writable)
    with os.fdopen(readable, "rb") as pipe:
        said = pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status == -signal.SIGKILL and not said:
        return {"end": "killed"}
    if status:
        return {"end": "died", "message": f"exit {status}: {said!r}"}
    answer: dict[str, Any] = json.loads(said)
    return answer


def main() -> None:
    """Answer orders until there are no more."""
    for line in sys.stdin:
        print(json.dumps(_run(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
