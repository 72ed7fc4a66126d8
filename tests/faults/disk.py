"""A disk after a power cut: what was synced, and of the rest whatever an adversary lets through.

It promises no more than POSIX does, which is less than ext4 keeps:

- What a file held at its last fsync or fdatasync is there. Of each later write or truncate the
  adversary decides whether it came to the disk, whatever the order; a write may be torn, so that
  any of its sectors of 512 bytes are missing (zeros, where the file did not reach so far before).
- A name that was made, renamed or deleted is so for certain once its folder was synced after it,
  and not before, even when the file itself was synced. Of later changes any may be missing. A
  rename happens whole or not at all.
- SQLite's -shm file is left out: the first to open a database empties it, whatever it holds.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias, TypeVar

_SECTOR = 512
_Change = TypeVar("_Change")


@dataclass(frozen=True, slots=True)
class Call:
    """A call that changed a file or a folder; its kind is a letter of the shim's.

    The path is relative to the disk. A rename's data is the other path.
    """

    kind: str
    path: Path
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Adversary:
    """Decides what of that which was not synced survives: each write and each name by chance."""

    name: str
    data: float
    names: float
    ordered: bool = False
    """What survives is what came first, up to some point."""

    def reached(self, changes: list[_Change], chance: random.Random) -> list[_Change]:
        """Of these changes those that the disk can have come to."""
        return changes[: chance.randint(0, len(changes))] if self.ordered else changes


NOTHING = Adversary("nothing", 0, 0)
EVERYTHING = Adversary("everything", 1, 1)
ADVERSARIES = (
    NOTHING,
    EVERYTHING,
    Adversary("all names, no data", 0, 1),
    Adversary("all data, no names", 1, 0),
    Adversary("a beginning", 1, 1, ordered=True),
    Adversary("little", 0.1, 0.5),
    Adversary("half", 0.5, 0.5),
    Adversary("most", 0.9, 0.5),
)


@dataclass(slots=True)
class File:
    """A file's bytes at its last sync, and what was done to it since."""

    synced: bytes = b""
    since: list[Call] = field(default_factory=list)

    def sync(self) -> None:
        """Let everything survive."""
        self.synced = self.after_cut(EVERYTHING, random.Random())
        self.since = []

    def after_cut(self, adversary: Adversary, chance: random.Random) -> bytes:
        """The bytes that are there."""
        content = bytearray(self.synced)
        for call in adversary.reached(self.since, chance):
            if chance.random() < adversary.data:
                _do(call, content)
            elif adversary.data and call.kind == "w" and chance.random() < 0.5:
                _tear(call, content, chance)
        return bytes(content)


def _do(call: Call, content: bytearray) -> None:
    end = call.offset + len(call.data)
    content.extend(bytes(max(0, end - len(content))))
    if call.kind == "w":
        content[call.offset : end] = call.data
    else:
        del content[end:]


def _tear(call: Call, content: bytearray, chance: random.Random) -> None:
    """Write some of the sectors."""
    end = call.offset + len(call.data)
    content.extend(bytes(max(0, end - len(content))))
    start = call.offset
    while start < end:
        stop = min(end, start - start % _SECTOR + _SECTOR)
        if chance.random() < 0.5:
            content[start:stop] = call.data[start - call.offset : stop - call.offset]
        start = stop


@dataclass(slots=True)
class Folder:
    """What names mean now, what they meant when the folder was last synced, each change since."""

    now: dict[str, Node] = field(default_factory=dict)
    synced: dict[str, Node] = field(default_factory=dict)
    since: list[dict[str, Node | None]] = field(default_factory=list)

    def change(self, names: dict[str, Node | None]) -> None:
        """Give names, or take them away, all at once."""
        self.since.append(names)
        _change(self.now, names)

    def sync(self) -> None:
        """Let every name survive as it is."""
        self.synced, self.since = dict(self.now), []

    def after_cut(self, adversary: Adversary, chance: random.Random) -> dict[str, Node]:
        """The names that are there."""
        found = dict(self.synced)
        for names in adversary.reached(self.since, chance):
            if chance.random() < adversary.names:
                _change(found, names)
        return found


Node: TypeAlias = File | Folder


def _change(found: dict[str, Node], names: dict[str, Node | None]) -> None:
    for name, node in names.items():
        if node is None:
            found.pop(name, None)
        else:
            found[name] = node


class Disk:
    """A disk, as calls change it.

    Args:
        syncs: whether a sync of a path does anything; for tests of the tests.
    """

    def __init__(self, syncs: Callable[[Path], bool] = lambda path: True) -> None:
        self._root = Folder()
        self._syncs = syncs

    def do(self, call: Call) -> None:
        """Do what was recorded."""
        name = call.path.name
        if name.endswith("-shm"):
            return
        if call.kind == "s":
            if self._syncs(call.path):
                self._at(call.path).sync()
            return
        folder = self._at(call.path.parent)
        assert isinstance(folder, Folder)
        if call.kind in "wt":
            file = folder.now[name]
            assert isinstance(file, File)
            file.since.append(call)
            return
        folder.change(_names(call, folder))

    def _at(self, path: Path) -> Node:
        node: Node = self._root
        for part in path.parts:
            assert isinstance(node, Folder)
            node = node.now[part]
        return node

    def after_cut(self, adversary: Adversary, chance: random.Random) -> dict[Path, bytes | None]:
        """What is there after a cut now: the bytes of each file, and None for each folder."""
        found: dict[Path, bytes | None] = {}
        folders = [(Path(), self._root)]
        for path, folder in folders:
            for name, node in folder.after_cut(adversary, chance).items():
                if isinstance(node, Folder):
                    folders.append((path / name, node))
                    found[path / name] = None
                else:
                    found[path / name] = node.after_cut(adversary, chance)
        return found


def _names(call: Call, folder: Folder) -> dict[str, Node | None]:
    """What a call makes of the names in a folder."""
    name = call.path.name
    match call.kind:
        case "n":
            return {name: File()}
        case "m":
            return {name: Folder()}
        case "u":
            return {name: None}
        case "r" | "l":
            target = Path(call.data.decode())
            assert target.parent == call.path.parent, "a rename stays in its folder"
            kept = folder.now[name] if call.kind == "l" else None
            return {name: kept, target.name: folder.now[name]}
        case _:
            raise ValueError(call.kind)
