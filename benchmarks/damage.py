"""Damaged files: each damage is found out or harmless; none changes an answer or ends the process.

    python -m benchmarks.damage [--files 10000] [--flips 10000]

First a store's snapshot is damaged in every way that a disk, a copy or a hand can: a byte is
flipped, the end is missing, a part is zeroed or random, the file is empty, is another store's, or
an older one under the newer name. Then one byte is flipped in each kind of file but SQLite's: a
snapshot, and exports to JSONL and Parquet, with vectors and without.

After each a snapshot's index is loaded anew and compared with the rows, and searches with what they
found before. An export is really imported, as `kronos import` does it, into an empty store: either
the file is refused and the store still empty, or memories, vectors and searches are the exported
ones. All of it runs in a child, and a new one goes on where one died. Exits with 1 when anything
was wrong.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeAlias

import numpy as np

import kronos.index.faiss.flat  # noqa: F401  loaded once, for all children
from kronos import MemoryStore, NewMemory, Settings
from kronos.embedding.hashing import HashEmbedder
from kronos.errors import KronosError
from kronos.transfer.export import export_rows, is_export
from kronos.transfer.importing import read_file

_DIM = 16
_COUNT = 120
_WORDS = ("amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "heron", "inlet", "joker")
_QUESTIONS = ("amber birch", "delta ember fjord", "a memory of number 77")
_FLIPPED_EXPORTS = {
    "JSONL export": ("plain.jsonl", False),
    "JSONL export with vectors": ("vectors.jsonl", True),
    "Parquet export": ("plain.parquet", False),
    "Parquet export with vectors": ("vectors.parquet", True),
}
_LONGEST_S = 60
"""An item that takes longer counts as a process death: the alarm kills it."""
_OUTCOMES = ("detected", "harmless", "silently different", "untyped errors", "process deaths")
_GOOD = ("detected", "harmless")

Damage: TypeAlias = Callable[[random.Random], bytes]
Found: TypeAlias = Counter[tuple[str, str]]
"""How many items of each kind had each outcome."""


def open_store(folder: Path, *, snapshot_changes: int) -> MemoryStore:
    """A store of hash vectors; it saves its index after so many changes, and at close."""
    settings = Settings(snapshot_changes=snapshot_changes)
    return MemoryStore.open(folder, embedder=HashEmbedder(_DIM), settings=settings)


def fill(folder: Path, seed: int) -> Path:
    """Make a small store, and return its snapshot."""
    chance = random.Random(seed)
    with open_store(folder, snapshot_changes=1) as store:
        texts = (" ".join(chance.choices(_WORDS, k=8)) for _ in range(_COUNT))
        store.add_many(
            NewMemory(f"{text}, a memory of number {n}", metadata={"n": n, "seed": seed})
            for n, text in enumerate(texts)
        )
        store.search("amber")
    return snapshot_of(store)


def snapshot_of(store: MemoryStore) -> Path:
    """The store's newest snapshot."""
    return max(store.location.index.glob("*.kronos"))


def hits_of(store: MemoryStore) -> list[tuple[str, float]]:
    """What some searches find."""
    return [(hit.id, hit.score) for text in _QUESTIONS for hit in store.search(text, limit=20)]


def damages(whole: bytes, other: bytes, older: bytes) -> dict[str, Damage]:
    """What may happen to a snapshot."""
    size = len(whole)

    def overwritten(chance: random.Random) -> bytes:
        start = chance.randrange(size)
        length = chance.randrange(1, size - start + 1)
        filler = chance.choice([bytes(length), chance.randbytes(length)])
        return whole[:start] + filler + whole[start + length :]

    def moved(chance: random.Random) -> bytes:
        cut = chance.randrange(1, size)
        return whole[cut:] + whole[:cut]

    return {
        "one byte flipped": lambda chance: flipped(whole, chance),
        "cut off": lambda chance: whole[: chance.randrange(size)],
        "overwritten": overwritten,
        "appended to": lambda chance: whole + chance.randbytes(chance.randrange(1, 100)),
        "moved": moved,
        "garbage": lambda chance: chance.randbytes(chance.randrange(2 * size)),
        "empty": lambda _: b"",
        "another store's": lambda _: other,
        "an older one": lambda _: older,
    }


def flipped(whole: bytes, chance: random.Random) -> bytes:
    """A file with one byte changed."""
    place = chance.randrange(len(whole))
    return whole[:place] + bytes([whole[place] ^ chance.randrange(1, 256)]) + whole[place + 1 :]


@dataclass(frozen=True)
class Subject:
    """A file to be damaged, and what tells how that ended."""

    path: Path
    whole: bytes
    look: Callable[[], str]

    def outcome(self, damaged: bytes) -> str:
        """Damage the file and look."""
        self.path.write_bytes(damaged)
        try:
            return self.look()
        except Exception:
            traceback.print_exc()
            return "untyped errors"


class Files:
    """A store with its snapshots and exports, made anew in a folder."""

    def __init__(self, folder: Path) -> None:
        other = fill(folder / "other", 1).read_bytes()
        older = fill(folder / "store", 2).read_bytes()
        with open_store(folder / "store", snapshot_changes=1) as store:
            store.delete([memory.id for memory in store.list(limit=10)])
            store.search("amber")
        # It saves nothing more: so nobody but a test writes the file.
        self._store = open_store(folder / "store", snapshot_changes=10**9)
        self._target = open_store(folder / "target", snapshot_changes=10**9)
        self._hits = hits_of(self._store)
        self._rows = self._rows_of(self._store)
        self.subjects = {"snapshot": self._snapshot()}
        for kind, (name, vectors) in _FLIPPED_EXPORTS.items():
            self._store.export_to(folder / name, vectors=vectors)
            self.subjects[kind] = self._export(folder / name)
        self.damages = damages(self.subjects["snapshot"].whole, other, older)

    def _snapshot(self) -> Subject:
        path = snapshot_of(self._store)
        return Subject(path, path.read_bytes(), self._look_at_index)

    def _export(self, path: Path) -> Subject:
        return Subject(path, path.read_bytes(), lambda: self._look_at_import(path))

    @staticmethod
    def _rows_of(store: MemoryStore) -> list[object]:
        with store._session.reader() as repository:
            return [*export_rows(repository, None, None, repository.spaces.active())]

    def _look_at_index(self) -> str:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            right = self._index_is_right() and hits_of(self._store) == self._hits
        if not right:
            return "silently different"
        return "detected" if said else "harmless"

    def _index_is_right(self) -> bool:
        """Whether the index, loaded anew, is equal to the rows."""
        replica = self._store._session.serving.replica
        with replica.lock, self._store._session.reader() as repository:
            replica._forget()
            index = replica.catch_up(repository, repository.head().seq)
            parts = [*repository.vectors.since(replica.space, 0)]
        keys = np.concatenate([part for part, _ in parts])
        return np.array_equal(np.sort(keys), index.keys()) and all(
            np.array_equal(index.vectors_of(part), vectors) for part, vectors in parts
        )

    def _look_at_import(self, path: Path) -> str:
        try:
            self._import(path)
            is_same = self._rows_of(self._target) == self._rows
            is_same = is_same and hits_of(self._target) == self._hits
            return "harmless" if is_same else "silently different"
        except KronosError:
            return "silently different" if self._target.count(namespace="*") else "detected"
        finally:
            if self._target.count(namespace="*"):
                self._target.delete(where={}, namespace="*")

    def _import(self, path: Path) -> None:
        """What `kronos import` does with a file."""
        if is_export(path):
            self._target.import_from(path)
        else:
            self._target.add_many(read_file(path, namespace="default"), on_conflict="ignore")


def damaged_snapshots(files: Files, number: int) -> tuple[str, Subject, bytes]:
    """An item of the first part: its kind, the file, and what becomes of it."""
    chance = random.Random(number)
    kind = chance.choice(["one byte flipped"] * 4 + list(files.damages))
    return kind, files.subjects["snapshot"], files.damages[kind](chance)


def flipped_files(files: Files, number: int) -> tuple[str, Subject, bytes]:
    """An item of the second part."""
    kind = list(files.subjects)[number % len(files.subjects)]
    subject = files.subjects[kind]
    return kind, subject, flipped(subject.whole, random.Random(number))


Items: TypeAlias = Callable[[Files, int], tuple[str, Subject, bytes]]


def work(folder: Path, items: Items, numbers: range, pipe: BinaryIO) -> None:
    """What a child does; it names each item before it looks at it, and the outcome after."""
    files = Files(folder)
    for number in numbers:
        kind, subject, damaged = items(files, number)
        pipe.write(f"{number}\t{kind}\t".encode())
        pipe.flush()
        signal.alarm(_LONGEST_S)
        outcome = subject.outcome(damaged)
        signal.alarm(0)
        pipe.write(f"{outcome}\n".encode())
        pipe.flush()


def watch(folder: Path, items: Items, numbers: range) -> Iterator[tuple[int, str, str]]:
    """Let a child work, and tell each item's number, kind and outcome.

    The last one is a process death when a signal ended the child.
    """
    readable, writable = os.pipe()
    if (pid := os.fork()) == 0:
        os.close(readable)
        code = 1
        try:
            with os.fdopen(writable, "wb") as pipe:
                work(folder, items, numbers, pipe)
            code = 0
        except Exception:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(writable)
    number, kind, outcome = "", "", "\n"
    with os.fdopen(readable) as pipe_end:
        for line in pipe_end:
            number, kind, outcome = line.split("\t")
            if outcome:
                yield int(number), kind, outcome.strip()
    ended = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if ended < 0 and not outcome:
        yield int(number), kind, "process deaths"
    elif ended:
        raise RuntimeError(f"a child ended with {ended} beside the files")


def run(folder: Path, items: Items, count: int) -> Found:
    """Look at all items, in as many children as it takes."""
    found: Found = Counter()
    at = 0
    while at < count:
        for number, kind, outcome in watch(folder / f"from-{at}", items, range(at, count)):
            found[kind, outcome] += 1
            at = number + 1
    return found


def show(title: str, found: Found) -> int:
    """Print the outcomes by kind, and return how many were wrong."""
    print(title)
    total: Counter[str] = Counter()
    for kind in sorted({kind for kind, _ in found}):
        counts = {outcome: found[kind, outcome] for outcome in _OUTCOMES}
        total.update(counts)
        _show_line(kind, counts)
    _show_line("all", total)
    return sum(total[outcome] for outcome in _OUTCOMES if outcome not in _GOOD)


def _show_line(kind: str, counts: dict[str, int] | Counter[str]) -> None:
    told = ", ".join(f"{counts[outcome]} {outcome}" for outcome in _OUTCOMES)
    print(f"  {kind}: {sum(counts.values())}: {told}", flush=True)


def main() -> int:
    """Damage, look, and print the counts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--flips", type=int, default=10_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found = run(folder / "files", damaged_snapshots, options.files)
        wrong = show("damaged snapshot files", found)
        found = run(folder / "flips", flipped_files, options.flips)
        wrong += show("single-byte flips", found)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
