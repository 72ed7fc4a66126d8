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
    payload
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import struct
import uuid
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import BinaryIO

from kronos.errors import ReadOnlyStoreError, SnapshotError, StorageError, StorageFullError
from kronos.files import FULL, READ_ONLY, is_left, locked, sync

_PREFIX = struct.Struct("<8sII")
_MAGIC = b"KRONOSIX"
_FORMAT = 1
_MAX_HEADER = 2**16
_NAME = re.compile(r"space-(?P<space>\d+)-(?P<seq>\d{20})\.kronos")
_TEMPORARY = re.compile(r"space-\d+-\d{20}\.kronos\.[0-9a-f]{32}\.tmp")
_READ_ATTEMPTS = 10


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


def write_snapshot(
    folder: Path, header: SnapshotHeader, payload: bytes, *, replace_equal: bool = False
) -> Path | None:
    """Publish a snapshot, and delete the older ones of its space.

    Args:
        folder: where the snapshots lie; made if need be.
        header: whose index it is, and how far it has come.
        payload: the index's `to_bytes()`.
        replace_equal: put it in the place of one of the same seq: it was built better.

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
        with locked(folder) as alone:
            if not alone:
                return None
            _discard_strays(folder)
            newest = _snapshots(folder, space_id)[-1:]
            # The names of one space sort as their seqs do.
            if not newest or newest[0].name < path.name + "+" * replace_equal:
                _publish(path, _envelope(header, payload), payload)
                newest = [path]
            with contextlib.suppress(OSError):  # the next writer deletes it
                for older in _snapshots(folder, space_id)[:-1]:
                    older.unlink(missing_ok=True)
    return newest[0]


def newest_seq(folder: Path, space_id: int) -> int | None:
    """The seq of a space's newest snapshot, as its name says; None when there is none."""
    try:
        found = _snapshots(folder, space_id)[-1:]
    except OSError:
        return None
    return int(found[0].stem.rpartition("-")[2]) if found else None


def strays(folder: Path) -> list[Path]:
    """What writers that are gone left behind; none while somebody writes."""
    try:
        with locked(folder) as alone:
            return _strays(folder) if alone else []
    except OSError:
        return []


def discard_strays(folder: Path) -> None:
    """Delete what writers that are gone left behind.

    Raises:
        ReadOnlyStoreError: the folder cannot be written.
        StorageError: the disk failed.
    """
    with _storage_errors(folder), contextlib.suppress(FileNotFoundError), locked(folder) as alone:
        if alone:
            _discard_strays(folder)


def read_newest(
    folder: Path, expected: SnapshotIdentity, *, kinds: Collection[str] = ()
) -> tuple[SnapshotHeader, bytes] | None:
    """Read the newest snapshot of a space, every byte of it verified.

    Args:
        folder: where the snapshots lie; it need not exist.
        expected: whose index is wanted.
        kinds: kinds that will do as well as the one expected; the header says which it is.

    Returns:
        The header and the payload, or None when there is no snapshot.

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
            path.unlink(missing_ok=True)


def snapshot_spaces(folder: Path) -> set[int]:
    """The spaces that have snapshots."""
    return {int(match["space"]) for match in _named(folder)}


def discard_other_snapshots(folder: Path, space_ids: Collection[int]) -> None:
    """Delete the snapshots of all spaces but these: those spaces are gone. Raises as above."""
    with _storage_errors(folder):
        for match in _named(folder):
            if int(match["space"]) not in space_ids:
                (folder / match[0]).unlink(missing_ok=True)


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


def _publish(path: Path, envelope: bytes, payload: bytes) -> None:
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(envelope)
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    sync(path.parent)


def _strays(folder: Path) -> list[Path]:
    found = [folder / name for name in os.listdir(folder) if _TEMPORARY.fullmatch(name)]
    return [path for path in found if is_left(path)]


def _discard_strays(folder: Path) -> None:
    for path in _strays(folder):
        path.unlink(missing_ok=True)


def _envelope(header: SnapshotHeader, payload: bytes) -> bytes:
    """All that stands before the payload.

    sha256 finds every random damage and, for 80 MB, takes 55 ms on a processor that knows it
    (blake2b 170 ms; crc32 30 ms, but it misses one damage in 4 thousand million).
    """
    described = asdict(header) | {
        "payload_bytes": len(payload),
        "payload_sha256": hashlib.sha256(payload).hexdigest(),
    }
    text = json.dumps(described).encode()
    head = _PREFIX.pack(_MAGIC, _FORMAT, len(text)) + text
    return head + hashlib.sha256(head).digest()


def _read(
    path: Path, expected: SnapshotIdentity, kinds: Collection[str]
) -> tuple[SnapshotHeader, bytes]:
    with path.open("rb") as file:
        header, size, checksum = _parse(path, _read_header(path, file))
        if header.identity.kind in kinds:
            expected = replace(expected, kind=header.identity.kind)
        _check_expected(path, header, expected)
        payload = file.read(size + 1)
    if len(payload) != size:
        found = "more" if len(payload) > size else len(payload)
        raise SnapshotError(f"{path.name} has a payload of {size} bytes, found {found}")
    if hashlib.sha256(payload).hexdigest() != checksum:
        raise SnapshotError(f"{path.name} is damaged: its payload does not match its checksum")
    return header, payload


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
        header = SnapshotHeader(identity, described["seq"], described["count"])
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
