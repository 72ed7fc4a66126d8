"""Atomic files and folders: other processes see a complete one, or none.

A file is written under a temporary name, a "part", synced to disk and then renamed. `publishing` is
the only way in which Kronos makes a file that others read, and `publishing_folder` the only way for
a folder. The process that writes a part holds its lock. The system drops the lock when the process
ends, so an unlocked part is abandoned and may be deleted. Where locks are not available (Windows,
some network file systems), a part is abandoned when it was not written to for an hour.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from stat import S_IMODE

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_ABANDONED_AFTER_S = 3600.0

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Error numbers for a full disk."""
READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)
"""Error numbers for a file that must not be written."""
ONE_NAME = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)
"""Error numbers of file systems without hard links."""
PART = ".part"
_PART_NAME = re.compile(r"(?P<part>.*\.[0-9a-f]{32}\.part)(-wal|-shm|-journal)?", re.DOTALL)
_BESIDE = ("-wal", "-shm", "-journal")
"""How the names of the files end that a database keeps beside its own."""
_LONGEST_NAME = 255 - len(f".{'0' * 32}{PART}-journal")
_RETRY_S = 0.01
_LONGEST_WAIT_S = 10.0
_TRIES = 20
# O_EXCL refuses a file that exists under the name, and O_NOFOLLOW a symbolic link.
_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)


def expanded(path: str | os.PathLike[str]) -> Path:
    """Expand `~` in a path; unchanged if the process has no such home folder."""
    return Path(os.path.expanduser(path))


def behind_links(path: Path) -> Path:
    """Resolve symbolic links."""
    return Path(os.path.realpath(path))  # unlike `resolve`, it accepts circular links


@contextmanager
def publishing(path: Path, *, mode: int | None = None, replace: bool = True) -> Iterator[Path]:
    """Write a file atomically; when the block ends, it is synced to disk.

    Several writers may make the same file at once: each writes a part of its own.

    Args:
        path: the file. Its folder must exist.
        mode: the permission bits, e.g. those of the file whose content it copies. None: the default
            for a new file. A file that is replaced never gets more bits than it had.
        replace: whether an existing file may be replaced.

    Yields:
        An empty part in the same folder. An error in the block deletes it.

    Raises:
        FileExistsError: the file exists when the block ends, and `replace` is False.
        OSError: the file cannot be written.
    """
    with suppress(OSError):
        discard_parts(path.parent, _stem(path))
    with making(path, private=mode is not None) as part:
        yield part
        publish(part, path, mode=mode, replace=replace)


@contextmanager
def publishing_folder(path: Path, *, stays: Callable[[Path], bool]) -> Iterator[Path]:
    """Write a folder of files atomically; when the block ends, it is synced to disk.

    Args:
        path: the folder. Its parent must exist.
        stays: called with the new folder if one exists at `path` when the block ends. True keeps
            the existing folder, because it is as good as the new one.

    Yields:
        An empty folder next to it, readable for this user only. An error in the block deletes it.

    Raises:
        OSError: the folder cannot be written.
    """
    with suppress(OSError):
        discard_parts(path.parent, _stem(path))
    part = part_of(path)
    with ExitStack() as stack:
        with locked(path.parent, wait_s=_LONGEST_WAIT_S):  # `discard_parts` waits for this lock
            part.mkdir(mode=0o700)
            stack.callback(shutil.rmtree, part, ignore_errors=True)
            stack.enter_context(locked(part))
        yield part
        for made in (*part.iterdir(), part):
            sync(made)
        _take_place(part, path, stays)


def _take_place(part: Path, path: Path, stays: Callable[[Path], bool]) -> None:
    for left in reversed(range(_TRIES)):
        try:
            part.replace(path)
            break
        except OSError:  # the system never replaces a non-empty folder; others may write it too
            if not left:
                raise
            if stays(part):
                return
            shutil.rmtree(path, ignore_errors=True)
    _sync_entries(path.parent)


def publish(part: Path, path: Path, *, mode: int | None = None, replace: bool = True) -> None:
    """Rename a complete part to its final name; see `publishing`."""
    wanted = S_IMODE(part.stat().st_mode) if mode is None else mode
    present = mode_of(path)
    part.chmod(wanted if present is None else wanted & present)
    sync(part)
    if replace:
        part.replace(path)
    else:
        _rename_if_free(part, path)
    _sync_entries(path.parent)


@contextmanager
def making(path: Path, *, private: bool = True) -> Iterator[Path]:
    """Make a part next to `path` for the duration of the block; no other process deletes it.

    Args:
        path: the name of the part begins with its name.
        private: whether only this user may read the part.

    Yields:
        An empty file. It is deleted at the end, with the files that a database keeps beside it.

    Raises:
        OSError: the folder cannot be written.
    """
    part, descriptor = _new_part(path, 0o600 if private else 0o666)
    try:
        yield part
    finally:
        with suppress(OSError):
            _remove(part)
        os.close(descriptor)


def part_of(path: Path) -> Path:
    """A new, unique name for a part of a file."""
    return path.with_name(f"{_stem(path)}.{uuid.uuid4().hex}{PART}")


def _new_part(path: Path, mode: int) -> tuple[Path, int]:
    """Create a part, and a descriptor that holds its lock."""
    while True:
        part = part_of(path)
        descriptor = os.open(part, _NEW, mode)
        if fcntl is not None:
            _lock(descriptor, wait=True)
        if part.exists():  # another process may have deleted it before it was locked
            return part, descriptor
        os.close(descriptor)


def _remove(part: Path) -> None:
    if part.is_dir() and not part.is_symlink():
        shutil.rmtree(part)
        return
    for file in (*beside(part), part):
        file.unlink(missing_ok=True)


def beside(database: Path) -> list[Path]:
    """The files that a database may keep beside its own: its log first."""
    return [database.with_name(database.name + end) for end in _BESIDE]


def abandoned_parts(folder: Path, prefix: str) -> list[Path]:
    """Find abandoned parts.

    Args:
        folder: where to look; it need not exist.
        prefix: the beginning of the final names.
    """
    return [part for part in _parts(folder, prefix) if is_abandoned(part)]


def discard_parts(folder: Path, prefix: str) -> None:
    """Delete abandoned parts, unless another process has locked the folder.

    Args:
        folder: where to look.
        prefix: the beginning of the final names.

    Raises:
        OSError: the folder cannot be read or written.
    """
    with locked(folder) as alone:
        for part in _parts(folder, prefix) if alone else ():
            _discard(part)


def _discard(part: Path) -> None:
    try:
        with locked(part) as alone:
            # Deleted while locked: `_new_part` then sees that its part is gone.
            if alone and (fcntl is not None or is_abandoned(part)):
                _remove(part)
    except FileNotFoundError:  # only the files of a database beside it are left
        _remove(part)


def _parts(folder: Path, prefix: str) -> list[Path]:
    """All parts, also those of which only a database's files next to them are left."""
    try:
        names = os.listdir(folder)
    except OSError:
        return []
    found = [_PART_NAME.fullmatch(name) for name in names if name.startswith(prefix)]
    return [folder / name for name in sorted({match["part"] for match in found if match})]


def is_abandoned(part: Path) -> bool:
    """Whether a part, a file or a folder, is abandoned."""
    try:
        if fcntl is None:
            return part.stat().st_mtime < time.time() - _ABANDONED_AFTER_S
        with locked(part) as alone:
            return alone
    except FileNotFoundError:
        return any(file.exists() for file in beside(part))
    except OSError:  # another user owns it
        return False


def _stem(path: Path) -> str:
    """The beginning of the names of a file's parts, within the length limit of file systems."""
    return os.fsdecode(os.fsencode(path.name)[:_LONGEST_NAME])


def mode_of(path: Path) -> int | None:
    """The permission bits of a file; None if it does not exist."""
    try:
        return S_IMODE(path.stat().st_mode)
    except OSError:
        return None


def _rename_if_free(part: Path, path: Path) -> None:
    """Rename a part, unless a file with the new name exists."""
    try:
        os.link(part, path)
    except OSError as exc:
        if exc.errno not in ONE_NAME:
            raise
        if path.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
        part.rename(path)


@contextmanager
def locked(path: Path, *, wait_s: float = 0.0) -> Iterator[bool]:
    """Lock an existing file or folder for the duration of the block.

    Args:
        path: the file or folder.
        wait_s: how many seconds to wait while another process holds the lock.

    Yields:
        True if this process holds the lock, or if the system cannot lock; False if another process
        holds it.

    Raises:
        OSError: the path cannot be opened.
    """
    if fcntl is None:
        yield True
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        deadline = time.monotonic() + wait_s
        alone = _lock(descriptor)
        while not alone and time.monotonic() < deadline:
            time.sleep(_RETRY_S)
            alone = _lock(descriptor)
        yield alone
    finally:
        os.close(descriptor)


def _lock(descriptor: int, *, wait: bool = False) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


def sync(path: Path) -> None:
    """Sync a file, or the entries of a folder, to disk; folders on POSIX only.

    Raises:
        OSError: the disk failed.
    """
    if os.name != "posix" and path.is_dir():
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(path: Path) -> None:
    """Make a folder and its missing parents, and sync their names to disk.

    Raises:
        OSError: a folder cannot be made, or the disk failed.
    """
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        _sync_entries(folder.parent)


def _sync_entries(folder: Path) -> None:
    with suppress(PermissionError):  # the folder may be writable and not readable
        sync(folder)
