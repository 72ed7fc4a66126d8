"""Snapshots: an index on disk, so that a process need not replay a whole space from SQL.

A snapshot is published by one rename, whole and synced, and only if it is newer than what is there
(or of the same seq, and built better). It bears its seq in its name, so an older one can never
stand in front of it, whoever publishes it when. One process writes at a time: the folder is locked
meanwhile, and another one passes. Reading verifies every byte, and whose index it is, before
anything else sees one. It is a copy: deleting it at any moment loses nothing. What the payload
means is known to the index kinds alone.

    magic · format version · length of the header          16 bytes
    header: JSON, with the payload's length and checksum
    checksum of all the above                              32 bytes
    payload, at a multiple of 64 bytes

A large payload is mapped, not read, and verified once: then a mark beside the snapshot says of
which file on this disk that was, and when it changed last. Another file, one that was written to,
and a mark that is gone are verified anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import os
import re
import struct
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import BinaryIO, NamedTuple, TypeAlias

from kronos.errors import ReadOnlyStoreError, SnapshotError, StorageError, StorageFullError
from kronos.files import FULL, READ_ONLY, abandoned_parts, discard_parts, locked, publishing

_PREFIX = struct.Struct("<8sII")
_MAGIC = b"KRONOSIX"
_FORMAT = 1
_MAX_HEADER = 2**16
_NAME = re.compile(r"space-(?P<space>\d+)-(?P<seq>\d{20})\.kronos")
_EVERY = "space-"
"""How the names of all snapshots begin."""
Buffer: TypeAlias = bytes | memoryview
_READ_ATTEMPTS = 10
_ALIGNED = 64
# sha256 goes through so many in 10 ms; a smaller payload is not worth a mark.
_MAPPED_FROM = 2**24
# Elsewhere a file that is mapped can be neither replaced nor deleted.
_CAN_MAP = os.name == "posix"


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotIdentity:
    """Whose index it is; a snapshot that differs in any of these is another one's."""

    store_id: str
    space_id: int
    fingerprint: str
    dim: int
    kind: str
    """The index kind whose `from_bytes` reads the payload."""


@dataclass(frozen=True, slots=True)
class SnapshotHeader:
    """What a snapshot says about its payload."""

    identity: SnapshotIdentity
    seq: int
    """The last change that the index has applied."""
    count: int
    """Keys in the index."""
    effort: int | None = None
    """How hard it is searched; None: every search is exact."""
    recall: float | None = None
    """The recall@10 that was measured with this effort, 0..1; None: none was."""


class Snapshot(NamedTuple):
    """A snapshot that was read, and verified."""

    header: SnapshotHeader
    payload: memoryview
    known: bool
    """It was verified before, by another reader; else by this one."""


def write_snapshot(
    folder: Path,
    header: SnapshotHeader,
    payload: Sequence[Buffer],
    *,
    replace_equal: bool = False,
    mode: int | None = None,
) -> Path | None:
    """Publish a snapshot, and delete the older ones of its space.

    Args:
        folder: where the snapshots lie; made if need be.
        header: whose index it is, and how far it has come.
        payload: the index's `to_buffers()`.
        replace_equal: put it in the place of one of the same seq: it was built better.
        mode: the permission bits of the file; None: those of any new file.

    Returns:
        The space's newest snapshot: another process's, when that is as new or newer. None: another
        process writes one now.

    Raises:
        StorageFullError: the disk is full.
        ReadOnlyStoreError: the folder cannot be written.
        StorageError: the disk failed. After each of the three the older snapshot is intact.
    """
    space_id = header.identity.space_id
    path = folder / f"space-{space_id}-{header.seq:020d}.kronos"
    with _storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        discard_parts(folder, _EVERY)
        with locked(folder) as alone:
            if not alone:
                return None
            newest = _snapshots(folder, space_id)[-1:]
            # The names of one space sort as their seqs do.
            if not newest or newest[0].name < path.name + "+" * replace_equal:
                with publishing(path, mode=mode) as part, part.open("wb") as file:
                    file.writelines([_envelope(header, payload), *payload])
                newest = [path]
                if path.stat().st_size >= _MAPPED_FROM:
                    with contextlib.suppress(SnapshotError):  # the next reader tells what is wrong
                        _read(path, header.identity, ())  # and marks it, so that nobody else need
            with contextlib.suppress(OSError):  # the next writer deletes it
                for older in _snapshots(folder, space_id)[:-1]:
                    _unlink(older)
    return newest[0]


def newest_seq(folder: Path, space_id: int) -> int | None:
    """The seq of a space's newest snapshot, as its name says; None when there is none."""
    try:
        found = _snapshots(folder, space_id)[-1:]
    except OSError:
        return None
    return int(found[0].stem.rpartition("-")[2]) if found else None


def newest_header(folder: Path, space_id: int) -> SnapshotHeader | None:
    """What a space's newest snapshot says of itself; its payload is neither read nor verified.

    None when there is none, or none whose header can be trusted.
    """
    for _ in range(_READ_ATTEMPTS):
        try:
            for path in _snapshots(folder, space_id)[-1:]:
                with path.open("rb") as file:
                    return _parse(path, _read_header(path, file))[0]
        except FileNotFoundError:
            continue  # a newer one was published, and then this one deleted
        except (OSError, SnapshotError):
            pass
        return None
    return None


def strays(folder: Path) -> list[Path]:
    """What writers that are gone left behind."""
    return abandoned_parts(folder, _EVERY)


def discard_strays(folder: Path) -> None:
    """Delete what writers that are gone left behind.

    Raises:
        ReadOnlyStoreError: the folder cannot be written.
        StorageError: the disk failed.
    """
    with _storage_errors(folder), contextlib.suppress(FileNotFoundError):
        discard_parts(folder, _EVERY)


def read_newest(
    folder: Path, expected: SnapshotIdentity, *, kinds: Collection[str] = ()
) -> Snapshot | None:
    """Read the newest snapshot of a space, every byte of it verified.

    Args:
        folder: where the snapshots lie; it need not exist.
        expected: whose index is wanted.
        kinds: kinds that will do as well as the one expected; the header says which it is.

    Returns:
        The snapshot, or None when there is none.

    Raises:
        SnapshotError: it is damaged, unreadable or another index's; the message names the cause.
            The way out is `discard_snapshots` and a replay from SQL.
    """
    for _ in range(_READ_ATTEMPTS):
        try:
            snapshots = _snapshots(folder, expected.space_id)
            return _read(snapshots[-1], expected, kinds) if snapshots else None
        except FileNotFoundError:
            continue  # a newer one was published, and then this one deleted
        except OSError as exc:
            raise SnapshotError(f"the snapshots in {folder} cannot be read: {exc}") from exc
    raise SnapshotError(f"the newest snapshot in {folder} vanished {_READ_ATTEMPTS} times")


def discard_snapshots(folder: Path, space_id: int) -> None:
    """Delete a space's snapshots: they are not trusted, or the space is gone.

    One that cannot be trusted would else keep off its successor of the same or a lower seq.

    Raises:
        ReadOnlyStoreError: the folder cannot be written.
        StorageError: the disk failed.
    """
    with _storage_errors(folder):
        for path in _snapshots(folder, space_id):
            _unlink(path)


def snapshot_spaces(folder: Path) -> set[int]:
    """The spaces that have snapshots."""
    return {int(match["space"]) for match in _named(folder)}


def discard_other_snapshots(folder: Path, space_ids: Collection[int]) -> None:
    """Delete the snapshots of all spaces but these: those spaces are gone. Raises as above."""
    with _storage_errors(folder):
        for match in _named(folder):
            if int(match["space"]) not in space_ids:
                _unlink(folder / match[0])


def _snapshots(folder: Path, space_id: int) -> list[Path]:
    """A space's snapshots, oldest first."""
    return [folder / match[0] for match in _named(folder) if match["space"] == str(space_id)]


def _named(folder: Path) -> list[re.Match[str]]:
    """The names of all snapshots, taken apart."""
    try:
        names = sorted(os.listdir(folder))
    except FileNotFoundError:
        return []
    return [match for match in map(_NAME.fullmatch, names) if match]


def _unlink(path: Path) -> None:
    """Delete a snapshot, and its mark first: one alone would be nobody's."""
    _mark(path).unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def _envelope(header: SnapshotHeader, payload: Sequence[Buffer]) -> bytes:
    """All that stands before the payload.

    sha256 finds every random damage and, for 80 MB, takes 55 ms on a processor that knows it
    (blake2b 170 ms; crc32 30 ms, but it misses one damage in 4 thousand million).
    """
    checksum = hashlib.sha256()
    for buffer in payload:
        checksum.update(buffer)
    described = asdict(header) | {
        "payload_bytes": sum(memoryview(buffer).nbytes for buffer in payload),
        "payload_sha256": checksum.hexdigest(),
    }
    text = json.dumps(described).encode()
    text += b" " * (-(_PREFIX.size + len(text) + checksum.digest_size) % _ALIGNED)
    head = _PREFIX.pack(_MAGIC, _FORMAT, len(text)) + text
    return head + hashlib.sha256(head).digest()


def _read(path: Path, expected: SnapshotIdentity, kinds: Collection[str]) -> Snapshot:
    with path.open("rb") as file:
        header, size, checksum = _parse(path, _read_header(path, file))
        if header.identity.kind in kinds:
            expected = replace(expected, kind=header.identity.kind)
        _check_expected(path, header, expected)
        stands = os.fstat(file.fileno())
        found = stands.st_size - file.tell()
        if found != size:
            raise SnapshotError(f"{path.name} has a payload of {size} bytes, found {found}")
        if size < _MAPPED_FROM or not _CAN_MAP:
            payload = memoryview(file.read(size))
        else:
            whole = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            payload = memoryview(whole)[file.tell() :]
    if len(payload) != size:
        raise SnapshotError(f"{path.name} changed while it was read")
    known = size >= _MAPPED_FROM and _is_marked(path, stands, checksum)
    if not known and hashlib.sha256(payload).hexdigest() != checksum:
        raise SnapshotError(f"{path.name} is damaged: its payload does not match its checksum")
    if not known and size >= _MAPPED_FROM:
        _set_mark(path, stands, checksum)
    return Snapshot(header, payload, known)


def _mark(path: Path) -> Path:
    return path.with_name(f"{path.name}.verified")


def _is_marked(path: Path, stands: os.stat_result, checksum: str) -> bool:
    try:
        return _mark(path).read_text("ascii") == _seen(stands, checksum)
    except (OSError, ValueError):
        return False


def _set_mark(path: Path, stands: os.stat_result, checksum: str) -> None:
    """Say that a file was verified; where that cannot be written, the next reader verifies too."""
    with contextlib.suppress(OSError):
        # Of a torn one no reader makes out its file.
        _mark(path).write_text(_seen(stands, checksum), "ascii")


def _seen(stands: os.stat_result, checksum: str) -> str:
    """What tells a file from another, and from itself before it was last written to."""
    times = f"{stands.st_mtime_ns} {stands.st_ctime_ns}"
    return f"{stands.st_dev} {stands.st_ino} {stands.st_size} {times} {checksum}\n"


def _read_header(path: Path, file: BinaryIO) -> bytes:
    """The JSON of the header, verified."""
    prefix = file.read(_PREFIX.size)
    if len(prefix) < _PREFIX.size:
        raise SnapshotError(f"{path.name} is cut off after {len(prefix)} bytes")
    magic, version, size = _PREFIX.unpack(prefix)
    if magic != _MAGIC:
        raise SnapshotError(f"{path.name} is no snapshot: it begins with {magic!r}")
    if version != _FORMAT:
        raise SnapshotError(f"{path.name} has format {version}, this Kronos reads {_FORMAT}")
    if size > _MAX_HEADER:
        raise SnapshotError(f"{path.name} is damaged: a header of {size} bytes")
    text, checksum = file.read(size), file.read(hashlib.sha256().digest_size)
    if hashlib.sha256(prefix + text).digest() != checksum:
        raise SnapshotError(f"{path.name} is damaged: its header does not match its checksum")
    return text


def _parse(path: Path, text: bytes) -> tuple[SnapshotHeader, int, str]:
    """The header, and the payload's length and checksum."""
    try:
        described = json.loads(text)
        identity = SnapshotIdentity(**described["identity"])
        measured = described.get("effort"), described.get("recall")
        header = SnapshotHeader(identity, described["seq"], described["count"], *measured)
        return header, described["payload_bytes"], described["payload_sha256"]
    except (KeyError, TypeError, ValueError) as exc:
        raise SnapshotError(f"{path.name} was written by another Kronos: {exc!r}") from exc


def _check_expected(path: Path, header: SnapshotHeader, expected: SnapshotIdentity) -> None:
    for field in fields(expected):
        found, wanted = getattr(header.identity, field.name), getattr(expected, field.name)
        if found != wanted:
            raise SnapshotError(
                f"{path.name} is of another index: {field.name} is {found!r}, expected {wanted!r}"
            )
    if not path.stem.endswith(f"-{header.seq:020d}"):
        raise SnapshotError(f"{path.name} was renamed: it holds seq {header.seq}")


@contextlib.contextmanager
def _storage_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        if exc.errno in FULL:
            raise StorageFullError(
                f"no room for an index snapshot in {folder}: free some disk space; nothing is "
                "lost, and the next save tries again"
            ) from exc
        if exc.errno in READ_ONLY:
            raise ReadOnlyStoreError(f"index snapshots cannot be written: {exc}") from exc
        raise StorageError(f"index snapshots cannot be written: {exc}") from exc
