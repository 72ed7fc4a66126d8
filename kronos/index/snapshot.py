"""Snapshots: an index on disk, so that a process need not replay a whole space from SQL.

A snapshot is published by one rename, complete and synced, and only if it is newer than the newest
one (or of the same seq and better built). Its seq is in its name, so an older snapshot can never
hide a newer one, whatever the order in which processes publish. One process writes at a time: it
locks the folder, and others skip their turn. Reading verifies every byte, and whose index it is,
before any other code sees a byte. A snapshot is a copy: deleting it at any moment loses nothing.
Only the index kinds know what the payload means.

    magic · format version · length of the header          16 bytes
    header: JSON, with the payload's length and checksum
    checksum of all the above                              32 bytes
    payload, at a multiple of 64 bytes

A large payload is mapped, not read, and verified once. Then a mark beside the snapshot records
which file on this disk was verified, and when it last changed. A file that was replaced or written
to, or that lost its mark, is verified again.
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
_NAME_PREFIX = "space-"
"""The beginning of every snapshot's name."""
Buffer: TypeAlias = bytes | memoryview
_READ_ATTEMPTS = 10
_ALIGNMENT = 64
# sha256 of a smaller payload takes only milliseconds: it is not worth a mark.
_MAPPED_FROM = 2**24
# On other systems a mapped file can be neither replaced nor deleted.
_CAN_MAP = os.name == "posix"


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotIdentity:
    """Whose index it is; a snapshot that differs in any field belongs to another index."""

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
    """The last change that was applied to the index."""
    count: int
    """The number of keys in the index."""
    effort: int | None = None
    """The effort of a search; None: every search is exact."""
    recall: float | None = None
    """The recall@10 that was measured with this effort, 0..1; None: it was not measured."""


class Snapshot(NamedTuple):
    """A snapshot that was read and verified."""

    header: SnapshotHeader
    payload: memoryview
    known: bool
    """Whether an earlier reader verified it, rather than this one."""


def write_snapshot(
    folder: Path,
    header: SnapshotHeader,
    payload: Sequence[Buffer],
    *,
    replace_equal: bool = False,
    mode: int | None = None,
) -> Path | None:
    """Publish a snapshot, and delete the older snapshots of its space.

    Args:
        folder: the folder of the snapshots; created if it is missing.
        header: whose index it is, and up to which change.
        payload: the index's `to_buffers()`.
        replace_equal: replace a snapshot of the same seq, since this one is better built.
        mode: the permission bits of the file; None: those of any new file.

    Returns:
        The space's newest snapshot, which is another process's if that is as new or newer. None if
        another process is writing one now.

    Raises:
        StorageFullError: the disk is full.
        ReadOnlyStoreError: the folder is not writable.
        StorageError: the disk failed. After all three errors the older snapshot is intact.
    """
    space_id = header.identity.space_id
    path = folder / f"space-{space_id}-{header.seq:020d}.kronos"
    with _storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        discard_parts(folder, _NAME_PREFIX)
        with locked(folder) as alone:
            if not alone:
                return None
            newest = _snapshots(folder, space_id)[-1:]
            # A space's snapshots sort by name as they do by seq.
            if not newest or newest[0].name < path.name + "+" * replace_equal:
                with publishing(path, mode=mode) as part, part.open("wb") as file:
                    file.writelines([_envelope(header, payload), *payload])
                newest = [path]
                if path.stat().st_size >= _MAPPED_FROM:
                    with contextlib.suppress(SnapshotError):  # the next reader reports damage
                        _read(path, header.identity, ())  # marks it as verified for other readers
            with contextlib.suppress(OSError):  # the next writer deletes it
                for older in _snapshots(folder, space_id)[:-1]:
                    _unlink(older)
    return newest[0]


def newest_seq(folder: Path, space_id: int) -> int | None:
    """The seq in the name of a space's newest snapshot; None if there is none."""
    try:
        found = _snapshots(folder, space_id)[-1:]
    except OSError:
        return None
    return int(found[0].stem.rpartition("-")[2]) if found else None


def newest_header(folder: Path, space_id: int) -> SnapshotHeader | None:
    """The header of a space's newest snapshot; its payload is neither read nor verified.

    Returns:
        None if there is no snapshot, or its header is damaged.
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


def leftovers(folder: Path) -> list[Path]:
    """Unfinished files of writers that have ended."""
    return abandoned_parts(folder, _NAME_PREFIX)


def discard_leftovers(folder: Path) -> None:
    """Delete the unfinished files of writers that have ended.

    Raises:
        ReadOnlyStoreError: the folder is not writable.
        StorageError: the disk failed.
    """
    with _storage_errors(folder), contextlib.suppress(FileNotFoundError):
        discard_parts(folder, _NAME_PREFIX)


def read_newest(
    folder: Path, expected: SnapshotIdentity, *, kinds: Collection[str] = ()
) -> Snapshot | None:
    """Read the newest snapshot of a space, and verify every byte.

    Args:
        folder: the folder of the snapshots; it need not exist.
        expected: whose index is expected.
        kinds: further kinds that are accepted; the header tells which kind it is.

    Returns:
        The snapshot; None if there is none.

    Raises:
        SnapshotError: it is damaged, unreadable or another index's; the message names the cause.
            To recover, call `discard_snapshots` and replay from SQL.
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

    An untrusted snapshot would otherwise block its successor of the same or a lower seq.

    Raises:
        ReadOnlyStoreError: the folder is not writable.
        StorageError: the disk failed.
    """
    with _storage_errors(folder):
        for path in _snapshots(folder, space_id):
            _unlink(path)


def snapshot_spaces(folder: Path) -> set[int]:
    """The spaces that have snapshots."""
    return {int(match["space"]) for match in _named(folder)}


def discard_other_snapshots(folder: Path, space_ids: Collection[int]) -> None:
    """Delete the snapshots of all other spaces, which are gone; raises as `discard_snapshots`."""
    with _storage_errors(folder):
        for match in _named(folder):
            if int(match["space"]) not in space_ids:
                _unlink(folder / match[0])


def _snapshots(folder: Path, space_id: int) -> list[Path]:
    """A space's snapshots, oldest first."""
    return [folder / match[0] for match in _named(folder) if match["space"] == str(space_id)]


def _named(folder: Path) -> list[re.Match[str]]:
    """The names of all snapshots, parsed, in ascending order."""
    try:
        names = sorted(os.listdir(folder))
    except FileNotFoundError:
        return []
    return [match for match in map(_NAME.fullmatch, names) if match]


def _unlink(path: Path) -> None:
    """Delete a snapshot, and its mark first: a mark without a snapshot would stay forever."""
    _mark(path).unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def _envelope(header: SnapshotHeader, payload: Sequence[Buffer]) -> bytes:
    """Everything that precedes the payload.

    The checksum is sha256: most processors compute it in hardware, and unlike crc32 it misses no
    random damage in practice.
    """
    checksum = hashlib.sha256()
    for buffer in payload:
        checksum.update(buffer)
    described = asdict(header) | {
        "payload_bytes": sum(memoryview(buffer).nbytes for buffer in payload),
        "payload_sha256": checksum.hexdigest(),
    }
    text = json.dumps(described).encode()
    text += b" " * (-(_PREFIX.size + len(text) + checksum.digest_size) % _ALIGNMENT)
    head = _PREFIX.pack(_MAGIC, _FORMAT, len(text)) + text
    return head + hashlib.sha256(head).digest()


def _read(path: Path, expected: SnapshotIdentity, kinds: Collection[str]) -> Snapshot:
    with path.open("rb") as file:
        header, size, checksum = _parse(path, _read_header(path, file))
        if header.identity.kind in kinds:
            expected = replace(expected, kind=header.identity.kind)
        _check_expected(path, header, expected)
        status = os.fstat(file.fileno())
        found = status.st_size - file.tell()
        if found != size:
            raise SnapshotError(f"{path.name} has a payload of {size} bytes, found {found}")
        if size < _MAPPED_FROM or not _CAN_MAP:
            payload = memoryview(file.read(size))
        else:
            whole = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            payload = memoryview(whole)[file.tell() :]
    if len(payload) != size:
        raise SnapshotError(f"{path.name} changed while it was read")
    known = size >= _MAPPED_FROM and _is_marked(path, status, checksum)
    if not known and hashlib.sha256(payload).hexdigest() != checksum:
        raise SnapshotError(f"{path.name} is damaged: its payload does not match its checksum")
    if not known and size >= _MAPPED_FROM:
        _set_mark(path, status, checksum)
    return Snapshot(header, payload, known)


def _mark(path: Path) -> Path:
    return path.with_name(f"{path.name}.verified")


def _is_marked(path: Path, status: os.stat_result, checksum: str) -> bool:
    try:
        return _mark(path).read_text("ascii") == _seen(status, checksum)
    except (OSError, ValueError):
        return False


def _set_mark(path: Path, status: os.stat_result, checksum: str) -> None:
    """Record that a file was verified; if that cannot be written, the next reader verifies too."""
    with contextlib.suppress(OSError):
        # A torn mark matches no file.
        _mark(path).write_text(_seen(status, checksum), "ascii")


def _seen(status: os.stat_result, checksum: str) -> str:
    """Identifies a file's current content: it differs for other files, and after any write."""
    times = f"{status.st_mtime_ns} {status.st_ctime_ns}"
    return f"{status.st_dev} {status.st_ino} {status.st_size} {times} {checksum}\n"


def _read_header(path: Path, file: BinaryIO) -> bytes:
    """The header's JSON, verified."""
    prefix = file.read(_PREFIX.size)
    if len(prefix) < _PREFIX.size:
        raise SnapshotError(f"{path.name} is cut off after {len(prefix)} bytes")
    magic, version, size = _PREFIX.unpack(prefix)
    if magic != _MAGIC:
        raise SnapshotError(f"{path.name} is not a snapshot: it begins with {magic!r}")
    if version != _FORMAT:
        raise SnapshotError(
            f"{path.name} has format {version}, this version of Kronos reads {_FORMAT}"
        )
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
        raise SnapshotError(
            f"{path.name} was written by another version of Kronos: {exc!r}"
        ) from exc


def _check_expected(path: Path, header: SnapshotHeader, expected: SnapshotIdentity) -> None:
    for field in fields(expected):
        found, wanted = getattr(header.identity, field.name), getattr(expected, field.name)
        if found != wanted:
            raise SnapshotError(
                f"{path.name} belongs to another index: {field.name} is {found!r}, "
                f"expected {wanted!r}"
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
                f"the disk has no room for an index snapshot in {folder}: free some disk space; "
                "nothing is lost, and the next save tries again"
            ) from exc
        if exc.errno in READ_ONLY:
            raise ReadOnlyStoreError(f"index snapshots cannot be written: {exc}") from exc
        raise StorageError(f"index snapshots cannot be written: {exc}") from exc
