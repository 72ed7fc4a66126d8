"""A published file or folder is complete or absent, whatever other processes do."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kronos import files

pytestmark = pytest.mark.skipif(os.name != "posix", reason="permission bits and links")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def publish(path: Path, content: bytes, **options: object) -> None:
    with files.publishing(path, **options) as part:  # type: ignore[arg-type]
        part.write_bytes(content)


@settings(max_examples=60, deadline=None, suppress_health_check=[*HealthCheck])
@given(
    mode=st.sampled_from([None, 0o600, 0o640, 0o644, 0o660, 0o666, 0o400]),
    present=st.sampled_from([None, 0o600, 0o644, 0o666]),
    umask=st.sampled_from([0o022, 0o077, 0o002]),
)
def test_a_file_gets_the_requested_mode_and_never_more_bits_than_it_had(
    tmp_path_factory: pytest.TempPathFactory, mode: int | None, present: int | None, umask: int
) -> None:
    path = tmp_path_factory.mktemp("f") / "file"
    if present is not None:
        path.write_bytes(b"old")
        path.chmod(present)
    before = os.umask(umask)
    try:
        with files.publishing(path, mode=mode) as part:
            if mode is not None:
                assert part.stat().st_mode & 0o077 == 0, "other users cannot read the part"
            part.write_bytes(b"new")
    finally:
        os.umask(before)
    wanted = 0o666 & ~umask if mode is None else mode
    assert path.stat().st_mode & 0o777 == wanted & (0o777 if present is None else present)
    assert path.read_bytes() == b"new"


def test_an_error_leaves_the_old_file_and_no_part(tmp_path: Path) -> None:
    path = tmp_path / "file"
    publish(path, b"old")

    def fail() -> None:
        with files.publishing(path) as part:
            part.write_bytes(b"half of it")
            part.with_name(part.name + "-wal").write_bytes(b"a log")
            raise ZeroDivisionError

    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            fail()
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


def test_a_symbolic_link_is_neither_followed_nor_overwritten(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"dear to somebody")
    path = tmp_path / "all.jsonl"
    for name in ("all.jsonl.part", "all.jsonl.new.part", "all.jsonl.tmp"):
        (tmp_path / name).symlink_to(victim)
    path.symlink_to(victim)
    publish(path, b"an export")
    assert victim.read_bytes() == b"dear to somebody"
    assert not path.is_symlink()
    assert path.read_bytes() == b"an export"


def test_without_replace_a_file_that_was_made_meanwhile_stays(tmp_path: Path) -> None:
    path = tmp_path / "file"

    def make_it_too_late() -> None:
        with files.publishing(path, replace=False) as part:
            part.write_bytes(b"mine")
            path.write_bytes(b"somebody's")

    with pytest.raises(FileExistsError):
        make_it_too_late()
    assert path.read_bytes() == b"somebody's"
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("replace", [True, False])
def test_concurrent_writers_of_one_file_each_write_a_complete_file(
    tmp_path: Path, replace: bool
) -> None:
    path = tmp_path / "file"
    ends: list[object] = []

    def make(letter: bytes) -> None:
        try:
            publish(path, letter * 100_000, replace=replace)
            ends.append(letter)
        except FileExistsError as exc:
            ends.append(exc)

    threads = [threading.Thread(target=make, args=(bytes([65 + n]),)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    made = [end for end in ends if isinstance(end, bytes)]
    assert len(made) == (8 if replace else 1)
    content = path.read_bytes()
    assert len(content) == 100_000
    assert content[:1] in made
    assert content == content[:1] * 100_000
    assert names(tmp_path) == ["file"]


def test_parts_of_a_killed_process_are_discarded_and_parts_of_a_live_one_are_kept(
    tmp_path: Path,
) -> None:
    script = (
        "import sys\nfrom pathlib import Path\nfrom kronos import files\n"
        "with files.publishing(Path(sys.argv[1])) as part:\n"
        "    part.write_bytes(b'half')\n"
        "    part.with_name(part.name + '-wal').write_bytes(b'a log')\n"
        "    print(part.name, flush=True)\n"
        "    sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "file")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as maker:
        assert maker.stdout is not None
        part = maker.stdout.readline().decode().strip()
        files.discard_parts(tmp_path, "file")
        assert files.abandoned_parts(tmp_path, "file") == []
        assert names(tmp_path) == [part, f"{part}-wal"]
        maker.kill()
    assert files.abandoned_parts(tmp_path, "file") == [tmp_path / part]
    assert files.abandoned_parts(tmp_path, "other") == []
    with files.locked(tmp_path) as alone:
        assert alone
        files.discard_parts(tmp_path, "file")
        assert names(tmp_path) == [part, f"{part}-wal"], "another process has locked the folder"
    publish(tmp_path / "file", b"whole")
    assert names(tmp_path) == ["file"]


def publish_folder(path: Path, content: bytes, *, stays: bool = False) -> None:
    with files.publishing_folder(path, stays=lambda made: stays) as part:
        assert part.stat().st_mode & 0o077 == 0, "other users cannot read the part"
        for name in "ab":
            (part / name).write_bytes(content)


def content_of(folder: Path) -> set[bytes]:
    return {file.read_bytes() for file in folder.iterdir()}


def test_concurrent_writers_of_one_folder_each_write_a_complete_folder(tmp_path: Path) -> None:
    path, contents = tmp_path / "folder", [bytes([n]) * 1000 for n in range(16)]
    with ThreadPoolExecutor(len(contents)) as threads:
        futures = [
            threads.submit(publish_folder, path, content, stays=content[0] % 2 == 1)
            for content in contents
        ]
    assert [future.result() for future in futures] == [None] * len(contents)
    assert len(content_of(path)) == 1
    assert sorted(names(path)) == ["a", "b"]
    assert names(tmp_path) == ["folder"]


def test_an_existing_folder_stays_if_told_and_is_replaced_otherwise(
    tmp_path: Path,
) -> None:
    path = tmp_path / "folder"
    publish_folder(path, b"1")
    publish_folder(path, b"2", stays=True)
    assert content_of(path) == {b"1"}
    publish_folder(path, b"3")
    assert content_of(path) == {b"3"}


def test_a_failed_or_abandoned_folder_is_deleted(tmp_path: Path) -> None:
    path = tmp_path / "folder"

    def fail() -> None:
        with files.publishing_folder(path, stays=lambda made: True) as part:
            (part / "a").write_bytes(b"half")
            raise ValueError("half way")

    with pytest.raises(ValueError, match="half way"):
        fail()
    assert names(tmp_path) == []
    left = files.part_of(path)
    left.mkdir()
    (left / "a").write_bytes(b"half")
    publish_folder(path, b"whole")
    assert names(tmp_path) == ["folder"]


def test_no_other_module_renames_files() -> None:
    package = Path(files.__file__).parent
    way = re.compile(r"os\.(replace|rename|link)\(|\.rename\(|shutil\.move|tempfile")
    found = [
        path.relative_to(package).as_posix()
        for path in sorted(package.rglob("*.py"))
        if way.search(path.read_text("utf-8"))
    ]
    assert found == ["db/backup.py", "files.py"], "backup links the database that it sets aside"


def test_a_users_file_is_never_mistaken_for_a_part(tmp_path: Path) -> None:
    own = ["file.part", "file.monday.part", "file.part-wal", f"file.{'0a' * 15}.part"]
    for name in own:
        (tmp_path / name).write_bytes(b"a user's")
    publish(tmp_path / "file", b"whole")
    files.discard_parts(tmp_path, "file")
    assert names(tmp_path) == sorted(["file", *own])


@pytest.mark.parametrize("name", ["x" * 255, "é" * 127, "x" * 220])
def test_a_name_may_be_as_long_as_the_system_allows(tmp_path: Path, name: str) -> None:
    publish(tmp_path / name, b"whole")
    assert names(tmp_path) == [name]
