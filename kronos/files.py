"""Files in the making: who makes one holds its lock, so what a dead process left is told apart.

The system drops a lock with its process, however that ends. Where nothing can be locked (Windows,
some network file systems) a file counts as left once nobody wrote to it for an hour.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_STRAY_AFTER_S = 3600.0

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system says when there is no room for a file."""
READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)
"""What it says when a file must not be written."""


def expanded(path: str | os.PathLike[str]) -> Path:
    """A path with `~` put in full; as it is where the process has no such home folder."""
    return Path(os.path.expanduser(path))


@contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Hold the lock of a file or a folder that exists: False when somebody else has it.

    Where it cannot be locked, everybody is told True.

    Raises:
        OSError: it cannot be opened.
    """
    if fcntl is None:
        yield True
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield _lock(descriptor)
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


def is_left(path: Path) -> bool:
    """Whether nobody makes this file any more."""
    try:
        if fcntl is None:
            return path.stat().st_mtime < time.time() - _STRAY_AFTER_S
        with locked(path) as alone:
            return alone
    except FileNotFoundError:
        return False


def sync(path: Path) -> None:
    """Bring a file to the disk, or a folder's entries; only POSIX opens folders.

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
    """Make a folder, and those above it; their names are on the disk when this returns.

    Raises:
        OSError: it cannot be made, or the disk failed.
    """
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        with suppress(PermissionError):  # a folder that may be written, and not read
            sync(folder.parent)
