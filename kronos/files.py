"""Files in the making: each has a name of its own, and gets its real name when it is whole.

`publishing` is the one way by which Kronos makes a file that others read, and `publishing_folder`
is the one for a folder. Whoever makes a file
holds its lock, so what a dead process left is told apart: the system drops a lock with its process,
however that ends. Where nothing can be locked (Windows, some network file systems), a file counts
as left once nobody wrote to it for an hour.
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

_STRAY_AFTER_S = 3600.0

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system says when there is no room for a file."""
READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)
"""What it says when a file must not be written."""
ONE_NAME = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)
"""What it says where a file can have but one name."""
PART = ".part"
_PART_NAME = re.compile(r"(?P<part>.*\.[0-9a-f]{32}\.part)(-wal|-shm|-journal)?", re.DOTALL)
_BESIDE = ("-wal", "-shm", "-journal")
"""How the names of the files end that SQLite keeps beside a database."""
_LONGEST_NAME = 255 - len(f".{'0' * 32}{PART}-journal")
_RETRY_S = 0.01
_LONGEST_WAIT_S = 10.0
_TRIES = 20
# O_NOFOLLOW: a link that lies in wait under the name is refused, as every other file is by O_EXCL.
_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)


def expanded(path: str | os.PathLike[str]) -> Path:
    """A path with `~` put in full; as it is where the process has no such home folder."""
    return Path(os.path.expanduser(path))


def behind_links(path: Path) -> Path:
    """The file itself, where a path is a link to it."""
    return Path(os.path.realpath(path))  # `resolve` raises where links go in a circle


@contextmanager
def publishing(path: Path, *, mode: int | None = None, replace: bool = True) -> Iterator[Path]:
    """Make a file, whole or not at all; it is on the disk when this ends.

    Several may make the same file at once: each has a file of its own until the end.

    Args:
        path: the file. Its folder exists.
        mode: the permission bits of the file, those of the file whose content it copies. None:
            those of any new file. A file that is replaced never gets more bits than it had.
        replace: whether a file that is at `path` at the end may be replaced.

    Yields:
        An empty file in the same folder. An error deletes it.

    Raises:
        FileExistsError: there is a file at `path`, and `replace` is False.
        OSError: the file cannot be written.
    """
    with suppress(OSError):
        discard_parts(path.parent, _stem(path))
    with making(path, private=mode is not None) as part:
        yield part
        publish(part, path, mode=mode, replace=replace)


@contextmanager
def publishing_folder(path: Path, *, stays: Callable[[Path], bool]) -> Iterator[Path]:
    """Make a folder of files, whole or not at all; it is on the disk when this ends.

    Args:
        path: the folder. The one that it lies in exists.
        stays: told the one that was made, where there is one at `path` at the end: whether that
            is as good, and stays.

    Yields:
        An empty folder beside it, which only this user may read. An error deletes it.

    Raises:
        OSError: it cannot be written.
    """
    with suppress(OSError):
        discard_parts(path.parent, _stem(path))
    part = part_of(path)
    with ExitStack() as stack:
        with locked(path.parent, wait_s=_LONGEST_WAIT_S):  # nobody discards it before it is locked
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
        except OSError:  # a folder with files in it is never replaced; others may be at it too
            if not left:
                raise
            if stays(part):
                return
            shutil.rmtree(path, ignore_errors=True)
    _sync_entries(path.parent)


def publish(part: Path, path: Path, *, mode: int | None = None, replace: bool = True) -> None:
    """Give a file that is whole its name; see `publishing`."""
    wanted = S_IMODE(part.stat().st_mode) if mode is None else mode
    present = mode_of(path)
    part.chmod(wanted if present is None else wanted & present)
    sync(part)
    if replace:
        part.replace(path)
    else:
        _name(part, path)
    _sync_entries(path.parent)


@contextmanager
def making(path: Path, *, private: bool = True) -> Iterator[Path]:
    """Have a file for the time of the block, beside `path`; nobody else deletes it meanwhile.

    Args:
        path: what its name begins with.
        private: whether only this user may read it.

    Yields:
        An empty file. It is deleted at the end, and with it what SQLite keeps beside a database.

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
    """A name that nobody else uses, for a file that is to become another one."""
    return path.with_name(f"{_stem(path)}.{uuid.uuid4().hex}{PART}")


def _new_part(path: Path, mode: int) -> tuple[Path, int]:
    """A new file, and a descriptor that holds its lock."""
    while True:
        part = part_of(path)
        descriptor = os.open(part, _NEW, mode)
        if fcntl is not None:
            _lock(descriptor, wait=True)
        if part.exists():  # before it was locked, somebody may have taken it for one that was left
            return part, descriptor
        os.close(descriptor)


def _remove(part: Path) -> None:
    if part.is_dir() and not part.is_symlink():
        shutil.rmtree(part)
        return
    for file in (*beside(part), part):
        file.unlink(missing_ok=True)


def beside(database: Path) -> list[Path]:
    """The files that SQLite may keep beside a database: its log first."""
    return [database.with_name(database.name + end) for end in _BESIDE]


def left_parts(folder: Path, prefix: str) -> list[Path]:
    """Files that were never finished and that nobody makes any more.

    Args:
        folder: where to look; it need not exist.
        prefix: how the names of the finished files begin.
    """
    return [part for part in _parts(folder, prefix) if is_left(part)]


def discard_parts(folder: Path, prefix: str) -> None:
    """Delete what `left_parts` finds, unless somebody has locked the folder.

    Raises:
        OSError: the folder cannot be read or written.
    """
    with locked(folder) as alone:
        for part in _parts(folder, prefix) if alone else ():
            _discard(part)


def _discard(part: Path) -> None:
    try:
        with locked(part) as alone:
            # Deleted under its lock: whoever is about to make it sees that it is gone.
            if alone and (fcntl is not None or is_left(part)):
                _remove(part)
    except FileNotFoundError:  # only what SQLite kept beside it is left
        _remove(part)


def _parts(folder: Path, prefix: str) -> list[Path]:
    """All unfinished files, be it that only something beside one is there."""
    try:
        names = os.listdir(folder)
    except OSError:
        return []
    found = [_PART_NAME.fullmatch(name) for name in names if name.startswith(prefix)]
    return [folder / name for name in sorted({match["part"] for match in found if match})]


def is_left(part: Path) -> bool:
    """Whether nobody makes this file, or this folder, any more."""
    try:
        if fcntl is None:
            return part.stat().st_mtime < time.time() - _STRAY_AFTER_S
        with locked(part) as alone:
            return alone
    except FileNotFoundError:
        return any(file.exists() for file in beside(part))
    except OSError:  # another user's
        return False


def _stem(path: Path) -> str:
    """How the names of a file's parts begin; all names stay as short as file systems want them."""
    return os.fsdecode(os.fsencode(path.name)[:_LONGEST_NAME])


def mode_of(path: Path) -> int | None:
    """The permission bits of a file; None where there is none."""
    try:
        return S_IMODE(path.stat().st_mode)
    except OSError:
        return None


def _name(part: Path, path: Path) -> None:
    """Give a part its name, unless that is taken."""
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
    """Hold the lock of a file or a folder that exists: False when somebody else has it.

    Where it cannot be locked, everybody is told True.

    Args:
        path: what is locked.
        wait_s: how long to wait for somebody else.

    Raises:
        OSError: it cannot be opened.
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
        _sync_entries(folder.parent)


def _sync_entries(folder: Path) -> None:
    with suppress(PermissionError):  # a folder that may be written, and not read
        sync(folder)
