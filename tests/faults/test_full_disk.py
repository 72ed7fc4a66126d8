"""A disk that is really full, and files that may not grow: typed, readable, and in service again.

Each runs in a process of its own: a file system of 3 MB is mounted where nobody else sees it, or
the system limits the size of files, or the memory.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="mounts and limits of Linux")

FILL = """
import os, sys, warnings
from pathlib import Path
from kronos import MemoryStore, Settings
from kronos.errors import StorageError, StorageFullError
warnings.simplefilter("ignore")  # a snapshot that finds no room says so
folder = Path(sys.argv[1])
def opened():
    return MemoryStore.open(
        folder / "store", embedding_model="hash", embedding_dim=64,
        settings=Settings(snapshot_changes=100, snapshot_interval_s=0.001),
    )
def refused(call, kind):
    try:
        call()
    except kind as exc:
        assert type(exc) is kind, exc
        return
    raise AssertionError("it found room")
def everything(store):
    return {memory.id: memory.content for memory in store.list(limit=10**6)}
store, held = opened(), {}
def fill():
    for number in range(10**6):
        texts = [f"text {number}.{i} " + "x" * 300 for i in range(20)]
        held.update(zip(store.add_many(texts), texts))
        store.search("text")
def still_right(store):
    assert everything(store) == held
    id, content = next(iter(held.items()))
    assert store.search(content, limit=1)[0].id == id
"""


def run(script: str, folder: Path, *before: str) -> None:
    done = subprocess.run(
        [*before, sys.executable, "-c", FILL + script, str(folder)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


def test_a_full_disk_is_named_and_all_is_well_once_there_is_room(tmp_path: Path) -> None:
    unshare = shutil.which("unshare")
    mount = f"mount -t tmpfs -o size=3m none {tmp_path}"
    private = [unshare or "", "--map-root-user", "--mount"]
    if unshare is None or subprocess.run([*private, "sh", "-c", mount]).returncode:
        pytest.skip("no file system can be mounted here")
    run(
        """
ballast = folder / "ballast"
ballast.write_bytes(bytes(500_000))
refused(fill, StorageFullError)
refused(fill, StorageFullError)
still_right(store)
first = next(iter(held))
refused(lambda: store.update(first, content="y" * 900_000), StorageFullError)
refused(lambda: store.export_to(folder / "all.jsonl", vectors=True), StorageFullError)
refused(lambda: store.maintenance.backup(folder / "copy.db"), StorageFullError)
still_right(store)
store.close()
left = {path.name for path in folder.rglob("*") if path.is_file()}
assert not [name for name in left if name.endswith((".tmp", ".part"))], left
store = opened()
still_right(store)
ballast.unlink()
held[store.add("there is room again")] = "there is room again"
still_right(store)
assert store.maintenance.check().problems == ()
""",
        tmp_path,
        *private,
        "sh",
        "-c",
        f'{mount} && exec "$0" "$@"',
    )
    assert not list(tmp_path.iterdir()), "it was nobody else's"


def test_a_file_that_may_not_grow_is_typed_and_loses_nothing(tmp_path: Path) -> None:
    # EFBIG, which SQLite calls an I/O error.
    run(
        """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, resource.RLIM_INFINITY))
refused(fill, StorageError)
refused(fill, StorageError)
still_right(store)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
held[store.add("there is room again")] = "there is room again"
still_right(store)
assert store.maintenance.check().problems == ()
store.close()
still_right(opened())
""",
        tmp_path,
    )


def test_memory_that_runs_out_loses_nothing(tmp_path: Path) -> None:
    run(
        """
import resource
held.update(zip(store.add_many(["one text", "another text"]), ["one text", "another text"]))
store.search("text")
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 60_000_000, resource.RLIM_INFINITY))
from kronos.errors import KronosError
try:
    store.add_many([f"{i} " + "x" * 10_000_000 for i in range(12)])
except (MemoryError, KronosError):
    pass
else:
    raise AssertionError("there was room")
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
still_right(store)
held[store.add("there is room again")] = "there is room again"
still_right(store)
assert store.maintenance.check().problems == ()
""",
        tmp_path,
    )


def test_an_export_that_finds_no_room_is_typed(tmp_path: Path) -> None:
    run(
        """
import resource, signal
held.update(zip(store.add_many(["one text " * 1000]), ["one text " * 1000]))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
refused(lambda: store.export_to(folder / "all.jsonl"), StorageFullError)
assert [path.name for path in folder.iterdir()] == ["store"]
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
assert store.export_to(folder / "all.jsonl") == 1
""",
        tmp_path,
    )
