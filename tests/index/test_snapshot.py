"""Snapshots are read whole or refused with a reason; the newest wins; a fault keeps the old one."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kronos.index.snapshot
from kronos.errors import ReadOnlyStoreError, SnapshotError, StorageError, StorageFullError
from kronos.files import locked
from kronos.index.exact import ExactIndex
from kronos.index.snapshot import (
    SnapshotHeader,
    SnapshotIdentity,
    discard_leftovers,
    discard_snapshots,
    leftovers,
    read_newest,
    write_snapshot,
)

ROOT = Path(kronos.index.__file__).parents[2]
IDENTITY = SnapshotIdentity(
    store_id="8f14e45f", space_id=3, fingerprint="sha256:ab", dim=4, kind="exact"
)


def save(folder: Path, seq: int, payload: bytes = b"payload", space_id: int = 3) -> Path:
    identity = replace(IDENTITY, space_id=space_id)
    path = write_snapshot(folder, SnapshotHeader(identity, seq, count=2), [payload])
    assert path is not None
    return path


def newest_seq(folder: Path) -> int:
    found = read_newest(folder, IDENTITY)
    assert found is not None
    return found[0].seq


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_an_index_is_restored_exactly(tmp_path: Path) -> None:
    index = ExactIndex(4)
    index.upsert(np.array([9, 2]), np.arange(8, dtype=np.float32).reshape(2, 4))
    header = SnapshotHeader(IDENTITY, seq=1234, count=2)
    path = write_snapshot(tmp_path / "deep" / "index", header, index.to_buffers())
    assert path is not None
    found = read_newest(tmp_path / "deep" / "index", IDENTITY)
    assert found is not None
    assert found[0] == header
    back = ExactIndex.from_bytes(found[1], 4)
    assert back.keys().tolist() == [2, 9]
    np.testing.assert_array_equal(back.vectors_of(np.array([9])), [[0, 1, 2, 3]])
    assert names(path.parent) == ["space-3-00000000000000001234.kronos"]


@pytest.mark.parametrize("payload", [b"", bytes(range(256)) * 20_000])
def test_a_payload_of_any_size_is_restored(tmp_path: Path, payload: bytes) -> None:
    save(tmp_path, 1, payload)
    found = read_newest(tmp_path, IDENTITY)
    assert found is not None
    assert found[1] == payload


def test_no_snapshot_is_found_if_none_was_saved(tmp_path: Path) -> None:
    assert read_newest(tmp_path / "absent", IDENTITY) is None
    save(tmp_path, 5, space_id=33)
    (tmp_path / "space-3-5.kronos").write_text("not ours")
    (tmp_path / "notes.txt").write_text("not ours")
    assert read_newest(tmp_path, IDENTITY) is None


def test_two_thousand_flipped_bytes_are_all_found(tmp_path: Path) -> None:
    path = save(tmp_path, 7, np.random.default_rng(0).bytes(300))
    sound = path.read_bytes()
    rng = np.random.default_rng(1)
    places = np.concatenate([np.arange(len(sound)), rng.integers(0, len(sound), 2000)])
    for place in places.tolist():
        damaged = bytearray(sound)
        damaged[place] ^= int(rng.integers(1, 256))
        path.write_bytes(damaged)
        with pytest.raises(SnapshotError):
            read_newest(tmp_path, IDENTITY)
    path.write_bytes(sound)
    assert newest_seq(tmp_path) == 7


def test_every_truncation_and_every_appended_byte_is_found(tmp_path: Path) -> None:
    path = save(tmp_path, 7, np.random.default_rng(0).bytes(300))
    sound = path.read_bytes()
    for damaged in [*(sound[:size] for size in range(len(sound))), sound + b"\0", sound * 2]:
        path.write_bytes(damaged)
        with pytest.raises(SnapshotError):
            read_newest(tmp_path, IDENTITY)


@pytest.mark.parametrize(
    ("damage", "cause"),
    [
        (lambda data: data[:5], "cut off after 5 bytes"),
        (lambda data: b"SQLite f" + data[8:], "is not a snapshot"),
        (lambda data: data[:8] + b"\2" + data[9:], "format 2, this version of Kronos reads 1"),
        (lambda data: data[:12] + b"\xff\xff\xff\xff" + data[16:], "a header of 4294967295 bytes"),
        (lambda data: data.replace(b'"seq": 7', b'"seq": 8'), "header does not match"),
        (lambda data: data[:-1], "payload of 7 bytes, found 6"),
        (lambda data: data + b"!", "payload of 7 bytes, found 8"),
        (lambda data: data[:-1] + b"!", "payload does not match"),
    ],
)
def test_damage_is_named(tmp_path: Path, damage: Any, cause: str) -> None:
    path = save(tmp_path, 7)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(SnapshotError, match=cause) as caught:
        read_newest(tmp_path, IDENTITY)
    assert path.name in str(caught.value)


@pytest.mark.parametrize(
    "other",
    [
        {"store_id": "c9f0f895"},
        {"fingerprint": "sha256:cd"},
        {"dim": 5},
        {"kind": "faiss-flat"},
    ],
)
def test_a_snapshot_of_another_index_is_refused_by_name(
    tmp_path: Path, other: dict[str, Any]
) -> None:
    save(tmp_path, 7)
    (name, wanted), *_ = other.items()
    words = f"{name} is {getattr(IDENTITY, name)!r}, expected {wanted!r}"
    with pytest.raises(SnapshotError, match=words):
        read_newest(tmp_path, replace(IDENTITY, **other))


def test_a_snapshot_of_another_space_under_this_spaces_name_is_refused(tmp_path: Path) -> None:
    save(tmp_path, 7, space_id=4).rename(tmp_path / f"space-3-{7:020d}.kronos")
    with pytest.raises(SnapshotError, match="space_id is 4, expected 3"):
        read_newest(tmp_path, IDENTITY)


def test_an_old_snapshot_under_a_newer_name_is_refused(tmp_path: Path) -> None:
    save(tmp_path, 7).rename(tmp_path / f"space-3-{99:020d}.kronos")
    with pytest.raises(SnapshotError, match="renamed: it holds seq 7"):
        read_newest(tmp_path, IDENTITY)


@pytest.mark.parametrize("make", [Path.mkdir, lambda path: path.symlink_to("nowhere")])
def test_an_unreadable_snapshot_is_refused(tmp_path: Path, make: Any) -> None:
    make(tmp_path / f"space-3-{7:020d}.kronos")
    with pytest.raises(SnapshotError):
        read_newest(tmp_path, IDENTITY)


def test_a_snapshot_that_a_newer_one_replaces_while_reading_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 7)
    really_open = Path.open

    def publish_first(path: Path, mode: str) -> Any:
        monkeypatch.undo()
        save(tmp_path, 8)
        return really_open(path, mode)

    monkeypatch.setattr(Path, "open", publish_first)
    assert newest_seq(tmp_path) == 8


def test_a_newer_snapshot_replaces_the_older_ones_of_its_space_only(tmp_path: Path) -> None:
    for space_id in (3, 33):
        save(tmp_path, 7, space_id=space_id)
    save(tmp_path, 1000)
    assert names(tmp_path) == [f"space-3-{1000:020d}.kronos", f"space-33-{7:020d}.kronos"]


@pytest.mark.parametrize("seq", [1, 999, 1000])
def test_an_older_or_equal_snapshot_is_not_published(tmp_path: Path, seq: int) -> None:
    published = save(tmp_path, 1000, b"first")
    assert save(tmp_path, seq, b"second") == published
    assert names(tmp_path) == [published.name]
    found = read_newest(tmp_path, IDENTITY)
    assert found is not None
    assert bytes(found[1]) == b"first"


def test_a_snapshot_of_a_lower_seq_can_follow_a_discarded_one(tmp_path: Path) -> None:
    save(tmp_path, 1000)
    other = save(tmp_path, 5, space_id=4)
    discard_snapshots(tmp_path, 3)
    assert names(tmp_path) == [other.name]
    save(tmp_path, 10)
    assert newest_seq(tmp_path) == 10
    discard_snapshots(tmp_path / "absent", 3)


@pytest.fixture
def mapped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the payloads of a test count as large."""
    monkeypatch.setattr(kronos.index.snapshot, "_MAPPED_FROM", 1)


@pytest.mark.usefixtures("mapped")
def test_the_first_reader_alone_verifies_a_large_payload(tmp_path: Path) -> None:
    path = save(tmp_path, 7)
    mark = path.with_name(f"{path.name}.verified")
    assert names(tmp_path) == [path.name, mark.name]
    for changed in (None, mark.unlink, lambda: os.utime(path), lambda: mark.write_bytes(b"\xff")):
        if changed:
            changed()
            first = read_newest(tmp_path, IDENTITY)
            assert first is not None
            assert not first.known
        again = read_newest(tmp_path, IDENTITY)
        assert again is not None
        assert (bytes(again.payload), again.known) == (b"payload", True)
    copy = tmp_path / "copy"
    shutil.copytree(tmp_path, copy)
    moved = read_newest(copy, IDENTITY)
    assert moved is not None
    assert not moved.known  # another file on the disk, whatever its times are
    save(tmp_path, 8)
    assert len(names(tmp_path)) == 3  # the snapshot, its mark, the copy
    discard_snapshots(tmp_path, 3)
    assert names(tmp_path) == ["copy"]


@pytest.mark.usefixtures("mapped")
@pytest.mark.parametrize("change", [lambda data: data[:-1] + b"!", lambda data: data[:-1]])
def test_an_overwritten_large_payload_is_refused_with_or_without_a_mark(
    tmp_path: Path, change: Callable[[bytes], bytes]
) -> None:
    path = save(tmp_path, 7)
    path.write_bytes(change(path.read_bytes()))
    for _ in range(2):
        with pytest.raises(SnapshotError, match="payload"):
            read_newest(tmp_path, IDENTITY)


@pytest.mark.usefixtures("mapped")
def test_a_payload_stays_readable_when_its_snapshot_is_replaced(tmp_path: Path) -> None:
    save(tmp_path, 7, bytes(range(256)) * 100)
    found = read_newest(tmp_path, IDENTITY)
    save(tmp_path, 8, b"newer")
    assert found is not None
    assert found.payload == bytes(range(256)) * 100


@pytest.mark.usefixtures("mapped")
def test_every_reader_verifies_if_no_mark_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(Path, "write_text", refuse)
    path = save(tmp_path, 7)
    for _ in range(2):
        found = read_newest(tmp_path, IDENTITY)
        assert found is not None
        assert not found.known
    assert names(tmp_path) == [path.name]


def test_a_dead_writers_files_are_deleted_and_a_live_writers_stay(tmp_path: Path) -> None:
    stray = tmp_path / f"space-9-{5:020d}.kronos.{'0a' * 16}.part"
    foreign = tmp_path / "notes.tmp"
    for path in (stray, foreign):
        path.write_bytes(b"half")
    with locked(tmp_path) as alone:  # another process writes
        assert alone
        assert write_snapshot(tmp_path, SnapshotHeader(IDENTITY, 7, 2), [b"payload"]) is None
        discard_leftovers(tmp_path)
        assert names(tmp_path) == sorted([stray.name, foreign.name])
    assert leftovers(tmp_path) == [stray]
    published = save(tmp_path, 7)
    assert names(tmp_path) == sorted([published.name, foreign.name])
    stray.write_bytes(b"half")
    discard_leftovers(tmp_path)
    discard_leftovers(tmp_path / "absent")
    assert names(tmp_path) == sorted([published.name, foreign.name])


def test_concurrent_processes_save_one_at_a_time_and_the_newest_wins(
    tmp_path: Path,
) -> None:
    script = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from tests.index.test_snapshot import IDENTITY, SnapshotHeader, write_snapshot
for seq in range(int(sys.argv[1]), 400, 4):
    write_snapshot(Path({str(tmp_path)!r}), SnapshotHeader(IDENTITY, seq, 2), [bytes(100_000)])
"""
    writers = [subprocess.Popen([sys.executable, "-c", script, str(i)]) for i in range(4)]
    seen = []
    while any(writer.poll() is None for writer in writers):
        if found := read_newest(tmp_path, IDENTITY):
            seen.append(found[0].seq)
    assert [writer.returncode for writer in writers] == [0] * 4
    assert seen == sorted(seen), "an older one came in front"
    save(tmp_path, 400)
    assert len(names(tmp_path)) == 1


@pytest.mark.parametrize("call", ["os.fsync", "pathlib.Path.replace"])
@pytest.mark.parametrize(
    ("number", "error"),
    [
        (errno.ENOSPC, StorageFullError),
        (errno.EDQUOT, StorageFullError),
        (errno.EROFS, ReadOnlyStoreError),
        (errno.EACCES, ReadOnlyStoreError),
        (errno.EIO, StorageError),
    ],
)
def test_a_failing_disk_leaves_the_old_snapshot_and_nothing_else(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    call: str,
    number: int,
    error: type[StorageError],
) -> None:
    old = save(tmp_path, 7)

    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(call, fail)
    with pytest.raises(StorageError) as caught:
        save(tmp_path, 8)
    assert type(caught.value) is error
    monkeypatch.undo()
    assert names(tmp_path) == [old.name]
    assert newest_seq(tmp_path) == 7
    save(tmp_path, 8)
    assert newest_seq(tmp_path) == 8


def test_the_file_is_synced_before_its_rename_and_the_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = []
    really_sync, really_replace = os.fsync, Path.replace

    def sync(descriptor: int) -> None:
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        steps.append("sync folder" if is_folder else "sync file")
        really_sync(descriptor)

    def rename(path: Path, target: Path) -> Path:
        steps.append("rename")
        return really_replace(path, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(Path, "replace", rename)
    save(tmp_path, 7)
    assert steps == ["sync file", "rename", "sync folder"]


def test_a_file_instead_of_the_folder_is_a_typed_error(tmp_path: Path) -> None:
    (tmp_path / "index").write_text("no folder")
    with pytest.raises(StorageError, match="cannot be written"):
        save(tmp_path / "index", 7)
    with pytest.raises(SnapshotError, match="cannot be read"):
        read_newest(tmp_path / "index", IDENTITY)


PREPARE = f"""
import os, resource, signal, sys
from pathlib import Path
from kronos.errors import StorageFullError
from kronos.index.snapshot import *
folder = Path(sys.argv[1])
def save(seq, payload):
    write_snapshot(folder, SnapshotHeader({IDENTITY!r}, seq, 2), [payload])
"""


def start(code: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PREPARE + code, *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_a_disk_that_fills_up_while_writing_leaves_the_old_snapshot(tmp_path: Path) -> None:
    old = save(tmp_path, 7)
    # A real write of a real file that stops in its middle.
    process = start(
        """
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    save(8, bytes(1_000_000))
except StorageFullError as exc:
    print(type(exc).__name__)
""",
        tmp_path,
    )
    assert process.communicate()[0] == "StorageFullError\n"
    assert names(tmp_path) == [old.name]
    assert newest_seq(tmp_path) == 7


@pytest.mark.parametrize(("step", "survivor"), [("fsync", 7), ("replace", 7), ("unlink", 8)])
def test_a_writer_killed_at_any_step_leaves_a_whole_snapshot(
    tmp_path: Path, step: str, survivor: int
) -> None:
    save(tmp_path, 7)
    process = start(
        """
kill = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[2] == "fsync":
    os.fsync = kill
else:
    setattr(Path, sys.argv[2], kill)
save(8, b"payload")
""",
        tmp_path,
        step,
    )
    assert process.wait() == -9
    assert process.stdout is not None
    process.stdout.close()
    assert newest_seq(tmp_path) == survivor
    save(tmp_path, 9)
    assert newest_seq(tmp_path) == 9


def test_two_processes_that_save_concurrently_leave_only_the_newest(tmp_path: Path) -> None:
    save(tmp_path, 1)
    code = """
for seq in range(int(sys.argv[2]), 202, 2):
    save(seq, seq.to_bytes(8, "little") * 5000)
"""
    writers = [start(code, tmp_path, first) for first in (2, 3)]
    seen = [1]
    while any(writer.poll() is None for writer in writers):
        found = read_newest(tmp_path, IDENTITY)
        assert found is not None
        seen.append(found[0].seq)
        assert found[1] in (b"payload", seen[-1].to_bytes(8, "little") * 5000)
    assert [writer.communicate()[0] for writer in writers] == ["", ""]
    assert [writer.returncode for writer in writers] == [0, 0]
    assert seen == sorted(seen)
    # The last one may have passed, while the other process wrote the one before it.
    last = newest_seq(tmp_path)
    assert last in (200, 201)
    assert names(tmp_path) == [f"space-3-{last:020d}.kronos"]
