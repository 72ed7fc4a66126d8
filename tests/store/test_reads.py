"""Reads write nothing and wait for nobody, whatever another process does with the write lock."""

from __future__ import annotations

import asyncio
import functools
import inspect
import os
import sqlite3
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kronos import KronosMemory, MemoryStore, NewMemory, Settings
from kronos.search.ranking import Ranking
from kronos.store.maintenance import Maintenance
from kronos.store.models import Models
from kronos.types import SearchMode
from tests.embedders import Named

LONGEST_S = 2.0
"""Far below the busy timeout: whoever waits for the lock takes as long as that."""
SETTINGS = Settings(busy_timeout_s=20, network_timeout_s=0.1)
KRONOS = str(Path(sys.executable).with_name("kronos"))


@contextmanager
def write_lock(folder: Path) -> Iterator[None]:
    """Another process is in the middle of a write."""
    script = (
        "import sqlite3, sys\n"
        "connection = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "connection.execute('BEGIN IMMEDIATE')\n"
        "print('locked', flush=True)\n"
        "sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", script, str(folder / "kronos.db")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"locked\n"
        yield


def content_of(folder: Path) -> bytes:
    """The checksums of the database and its log; the shared memory is none of the content.

    In another process: whoever closes a file drops SQLite's locks on it.
    """
    script = (
        "import hashlib, pathlib, sys\n"
        "for end in ('', '-wal'):\n"
        "    content = pathlib.Path(sys.argv[1] + end).read_bytes()\n"
        "    print(len(content), hashlib.sha256(content).hexdigest())\n"
    )
    command = [sys.executable, "-c", script, str(folder / "kronos.db")]
    return subprocess.run(command, capture_output=True, check=True).stdout


def questions() -> dict[str, dict[str, Any]]:
    """Searches of every kind."""
    moment = datetime.now(timezone.utc)
    return {
        "hybrid": {"query": "one text"},
        "dense": {"query": "one text", "mode": "dense"},
        "lexical": {"query": "one text", "mode": "lexical"},
        "vector": {"query": np.ones(32), "mode": "dense"},
        "near": {"near": "m1"},
        "filter": {"query": "text", "where": {"n": {"$gt": 3}}},
        "group": {"query": "text", "group_by": "n"},
        "diverse": {"query": "text", "ranking": Ranking(diversity=0.5, recency=0.1)},
        "expand": {"query": "text", "expand": 2},
        "explain": {"query": "text", "explain": True},
        **{
            f"as_of {mode}": {"query": "the first text", "mode": mode, "as_of": moment}
            for mode in ("hybrid", "dense", "lexical")
        },
    }


def reads(store: Any, folder: Path) -> dict[str, Callable[[], Any]]:
    """Every verb that reads."""
    moment = datetime.now(timezone.utc)
    return {
        "get": lambda: store.get("m1"),
        "get as_of": lambda: store.get("m1", as_of=moment),
        "find": lambda: store.find("m2"),
        "list": store.list,
        "list as_of": lambda: store.list(as_of=moment),
        "list where": lambda: store.list(where={"n": 3}),
        "iterate": store.iterate,
        "count": store.count,
        "history": lambda: store.history("m0"),
        "links": lambda: store.links("m1"),
        "trace": lambda: store.trace("m1", "both"),
        "search_many": lambda: store.search_many(["one", "two"]),
        "duplicates": store.duplicates,
        "indexed_fields": store.maintenance.indexed_fields,
        "stats": store.stats,
        "check": store.maintenance.check,
        "jobs": store.models.jobs,
        "failures": store.models.failures,
        "plan": store.models.plan,
        "spaces": store.models.spaces,
        "export_to": lambda: store.export_to(folder.parent / "all.jsonl", vectors=True),
        "backup": lambda: store.maintenance.backup(folder.parent / f"{time.time_ns()}.bak"),
        "tune": store.maintenance.tune,
        **{
            f"search {name}": functools.partial(store.search, **asked)
            for name, asked in questions().items()
        },
    }


WRITES = {
    *("add", "add_many", "upsert", "update", "delete", "touch", "link", "unlink"),
    *("index_field", "unindex_field", "rebuild_fulltext", "compact", "import_from"),
    *("reindex", "resume", "activate", "rollback", "cancel"),
}
"""The other verbs; `open`, `connect` and `close` are no verbs of a store that is open."""


def fill(folder: Path, embedder: Named) -> None:
    with MemoryStore.open(folder, embedder=embedder, settings=SETTINGS) as store:
        store.add("the first text", id="m0")
        store.update("m0", content="the first text, changed")
        store.add_many(
            NewMemory(f"text {n}", id=f"m{n}", metadata={"n": n}, parent_id="m0")
            for n in range(1, 30)
        )
        store.link("m1", "m2", "knows")
        store.maintenance.index_field("n")


def timed(name: str, call: Callable[[], Any]) -> None:
    started = time.monotonic()
    found = call()
    if name == "iterate":
        assert [*found]
    seconds = time.monotonic() - started
    assert seconds < LONGEST_S, f"{name} waited {seconds:.1f} s"


def test_the_lists_of_verbs_are_whole(tmp_path: Path) -> None:
    with MemoryStore.open(tmp_path / "s", embedder=Named("A")) as store:
        named = {name.split()[0] for name in reads(store, tmp_path)}
    public = {
        name
        for face in (MemoryStore, Models, Maintenance)
        for name, _ in inspect.getmembers(face, inspect.isfunction)
    }
    others = {"connect", "close", "restore", "recover"}
    assert {name for name in public if not name.startswith("_")} == named | WRITES | others


@pytest.mark.parametrize("track_access", [False, True])
def test_no_read_waits_for_a_writer_or_changes_a_byte(tmp_path: Path, track_access: bool) -> None:
    folder = tmp_path / "s"
    fill(folder, Named("A"))
    settings = Settings(busy_timeout_s=20, track_access=track_access)
    with MemoryStore.open(folder, embedder=Named("A"), settings=settings) as store:
        store.search("text", limit=1)  # the index is loaded, and FAISS
        noted = _accesses(folder)
        with write_lock(folder):
            before = content_of(folder)
            for name, call in reads(store, folder).items():
                timed(name, call)
            assert content_of(folder) == before
        assert _accesses(folder) == noted
        store.get("m3")
        assert (len(_accesses(folder)) > 20) is track_access, "what waited is noted now"


def _accesses(folder: Path) -> list[int]:
    connection = sqlite3.connect(folder / "kronos.db")
    found = [row[0] for row in connection.execute("SELECT memory_key FROM accesses")]
    connection.close()
    return found


def test_what_was_found_is_noted_at_the_latest_when_the_store_closes(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    fill(folder, Named("A"))
    settings = Settings(busy_timeout_s=20, track_access=True)
    with MemoryStore.open(folder, embedder=Named("A"), settings=settings) as store:
        with write_lock(folder):
            store.get("m3")
        assert _accesses(folder) == []
    assert len(_accesses(folder)) == 1


def test_no_read_of_the_asynchronous_face_waits_for_a_writer(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    fill(folder, Named("A"))

    async def main() -> None:
        async with KronosMemory(folder, embedder=Named("A"), settings=SETTINGS) as memory:
            await memory.search("text")
            with write_lock(folder):
                before = content_of(folder)
                for name, call in reads(memory, folder).items():
                    started = time.monotonic()
                    if name == "iterate":
                        assert [each.id async for each in call()]
                    else:
                        await call()
                    seconds = time.monotonic() - started
                    assert seconds < LONGEST_S, f"{name} waited {seconds:.1f} s"
                assert content_of(folder) == before

    asyncio.run(main())


def test_a_search_that_finds_texts_pending_waits_for_no_writer(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    embedder = Named("A")
    fill(folder, embedder)
    with MemoryStore.open(folder, embedder=embedder, settings=SETTINGS) as store:
        store.search("text")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fallback = MemoryStore.open(folder, embedding_model="no-such/model", settings=SETTINGS)
        for count in (3, 100):  # few are embedded by the search itself, many in the background
            fallback.add_many(NewMemory(f"pending {count} {n}") for n in range(count))
            with write_lock(folder):
                for name, asked in questions().items():
                    timed(name, functools.partial(store.search, **asked))
            deadline = time.monotonic() + 60
            while store.stats().spaces[0].pending and time.monotonic() < deadline:
                store.search("text")
                time.sleep(0.01)
            hit = store.search(f"pending {count} 1", mode="dense", limit=1)[0]
            assert hit.content == f"pending {count} 1"
        fallback.close()


@pytest.mark.parametrize("mode", ["hybrid", "dense"])
def test_a_search_of_the_past_after_a_model_change_waits_for_no_writer(
    tmp_path: Path, mode: SearchMode
) -> None:
    """Texts that no memory holds any more have no vectors of the new model yet."""
    folder = tmp_path / "s"
    fill(folder, Named("A"))
    with MemoryStore.open(folder, embedder=Named("A"), settings=SETTINGS) as store:
        moment = datetime.now(timezone.utc)
        for n in range(1, 30):
            store.update(f"m{n}", content=f"changed {n}")
    with MemoryStore.open(folder, embedder=Named("B"), settings=SETTINGS) as store:
        store.search("text")

        def past() -> Any:
            return store.search("text 7", mode=mode, as_of=moment, limit=1)[0]

        with write_lock(folder):
            before = content_of(folder)
            for _ in range(2):
                started = time.monotonic()
                assert past().content == "text 7"
                assert time.monotonic() - started < LONGEST_S
            assert content_of(folder) == before
        assert past().content == "text 7"
        assert _past_vectors(folder) > 20, "they are kept, now that they can be"


def _past_vectors(folder: Path) -> int:
    with closing(sqlite3.connect(folder / "kronos.db")) as connection:
        sql = "SELECT count(*) FROM past_vectors JOIN spaces ON spaces.id = space_id"
        (count,) = connection.execute(f"{sql} WHERE model = 'B'").fetchone()
    return int(count)


COMMANDS = [
    ["list"],
    ["get", "m1"],
    ["search", "text"],
    ["search", "text", "--mode", "lexical"],
    ["search", "text", "--mode", "dense"],
    ["search", "--near", "m1"],
    ["history", "m0"],
    ["links", "m1"],
    ["trace", "m1"],
    ["duplicates"],
    ["info"],
    ["doctor"],
    ["index", "list"],
    ["db", "check"],
    ["db", "current"],
    ["db", "history"],
    ["reindex", "status"],
    ["reindex", "--dry-run"],
    ["export", "../all.jsonl"],
    ["backup", "../saved.bak"],
]


def test_no_command_that_reads_waits_for_a_writer(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    with MemoryStore.open(folder, embedding_model="hash", embedding_dim=64) as store:
        store.add("the first text", id="m0")
        store.update("m0", content="the first text, changed")
        store.add_many(NewMemory(f"text {n}", id=f"m{n}", metadata={"n": n}) for n in range(1, 9))
        store.link("m1", "m2", "knows")
        environment = {**os.environ, "KRONOS_STORE": str(folder), "KRONOS_BUSY_TIMEOUT_S": "60"}
        with write_lock(folder):
            before = content_of(folder)
            for command in COMMANDS:
                done = subprocess.run(
                    [KRONOS, *command],
                    env=environment,
                    capture_output=True,
                    text=True,
                    timeout=40,
                    cwd=folder,
                    check=False,
                )
                assert done.returncode == 0, (command, done.stderr)
            assert content_of(folder) == before
