"""Power cuts: everything that writes is recorded, and then the power fails at any moment of it.

    python -m tests.faults.power [--cuts 50]

prints, for each durability, how many calls were recorded, how many disks were opened after a cut,
every violation, and how many syncs a write costs. With "full" nothing acknowledged is lost; with
"normal" a store may be older than its last acknowledgement, but it is whole, in a state that it had
before. `tests.faults.disk` says what a cut leaves.

A cut falls after each call but those writes that another one of the same file follows: the
adversaries make that of the cut after the last of them.
"""

from __future__ import annotations

import argparse
import random
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.faults.disk import ADVERSARIES, Adversary, Call, Disk
from tests.faults.walk import Zygote, build_shim

_WRITES = {"begin", "insert", "update", "delete", "replace", "add"}
STORE = Path("store")
_BACKUP = "kronos.db.mine"


@dataclass(frozen=True)
class Recording:
    """A run of everything that writes."""

    durability: str
    log: list[Call]
    """Calls on files, and between them marks: there a call on the store had returned."""
    names: list[str]
    """Of the calls on the store."""
    states: list[Any]
    """What the store held before the first of them, and after each."""

    @property
    def calls(self) -> int:
        """How many calls on files there are."""
        return sum(call.kind != "!" for call in self.log)

    def moments(self) -> list[int]:
        """The lines of the log after which the power may fail."""
        last = len(self.log) - 1
        return [at for at in range(len(self.log)) if at == last or not self._goes_on(at)]

    def _goes_on(self, at: int) -> bool:
        """Whether a line and the next one are writes of one file."""
        call, following = self.log[at : at + 2]
        return call.kind == following.kind == "w" and call.path == following.path

    def returned(self, name: str) -> list[int]:
        """The lines of the log that say that a call of this name has returned."""
        return [
            at
            for at, call in enumerate(self.log)
            if call.kind == "!" and self.names[call.offset] == name
        ]

    def syncs(self) -> list[int]:
        """How often each write of memories synced the database or its log before it returned."""
        found, count = [], 0
        for call in self.log:
            if call.kind == "s" and call.path.name in ("kronos.db", "kronos.db-wal"):
                count += 1
            if call.kind == "!":
                if self.names[call.offset] in _WRITES:
                    found.append(count)
                count = 0
        return found


def record(zygote: Zygote, folder: Path, durability: str) -> Recording:
    """Run everything that writes, on a store in a new folder."""
    root, log = folder / durability, folder / f"{durability}.log"
    root.mkdir()
    done = zygote.ask("record", root / STORE, log=str(log), durability=durability)
    assert done["end"] == "done", done
    return Recording(durability, [*_read(log, root)], done["calls"], done["states"])


def _read(log: Path, root: Path) -> Iterator[Call]:
    with log.open("rb") as file:
        while line := file.readline():
            kind, offset, size, path = line.decode().rstrip("\n").split(" ", 3)
            place = Path(path).relative_to(root) if path else Path()
            data = file.read(int(size))
            if kind in "rl":
                data = bytes(Path(data.decode()).relative_to(root))
            yield Call(kind, place, int(offset), data)


@dataclass
class Found:
    """What came of the cuts."""

    disks: int = 0
    violations: list[str] = field(default_factory=list)


class Cuts:
    """Fails the power, and opens what is left.

    Args:
        zygote: opens it.
        folder: where it lies meanwhile.
        recording: the run in which the power fails.
    """

    def __init__(self, zygote: Zygote, folder: Path, recording: Recording) -> None:
        self._zygote = zygote
        self._disk = folder / "disk"
        self._recording = recording

    def at(
        self,
        moments: Collection[int],
        adversaries: Sequence[Adversary] = ADVERSARIES,
        *,
        syncs: Callable[[Path], bool] = lambda path: True,
        write_first: bool = False,
        seed: int = 0,
    ) -> Found:
        """Let every adversary have the disk of every moment; equal disks are opened once.

        Args:
            moments: after which lines of the log.
            adversaries: who decides what survives.
            syncs: see `Disk`.
            write_first: write to what is left before the first search in it.
            seed: of the adversaries' choices.
        """
        chance = random.Random(seed)
        disk, found, acknowledged = Disk(syncs), Found(), 0
        seen: set[int] = set()
        for at, call in enumerate(self._recording.log):
            if call.kind == "!":
                acknowledged = call.offset + 1
            else:
                disk.do(call)
            for adversary in adversaries if at in moments else ():
                left = disk.after_cut(adversary, chance)
                key = hash((acknowledged, frozenset(left.items())))
                if key in seen:
                    continue
                seen.add(key)
                found.disks += 1
                for problem in self._problems(left, acknowledged, write_first):
                    doing = [*self._recording.names, "nothing"][acknowledged]
                    found.violations.append(
                        f"{self._recording.durability}: {acknowledged} acknowledged, in {doing}, "
                        f"after line {at}, {adversary.name} survives: {problem}"
                    )
        return found

    def _problems(
        self, left: dict[Path, bytes | None], acknowledged: int, write_first: bool
    ) -> Iterator[str]:
        """Open what is left, and the backup in it when that is what was done last."""
        self._lay_out(left)
        states = self._recording.states
        backup = self._recording.names.index("backup")
        if backup <= acknowledged <= backup + 1:
            copy, mine = self._disk / "copy", self._disk / STORE / _BACKUP
            if mine.exists():
                copy.mkdir()
                mine.rename(copy / "kronos.db")
                yield from (f"backup: {each}" for each in self._verify(copy, [states[backup]]))
            elif acknowledged > backup:
                yield "the backup is not there"
        oldest = acknowledged if self._recording.durability == "full" else 0
        allowed = states[oldest : acknowledged + 2]
        yield from self._verify(self._disk / STORE, allowed, write_first=write_first)

    def _lay_out(self, left: dict[Path, bytes | None]) -> None:
        shutil.rmtree(self._disk, ignore_errors=True)
        self._disk.mkdir()
        for path, content in left.items():
            if content is None:
                (self._disk / path).mkdir()
            else:
                (self._disk / path).write_bytes(content)

    def _verify(self, store: Path, states: list[Any], **order: Any) -> list[str]:
        answer = self._zygote.ask("verify", store, states=states, **order)
        problems: list[str] = answer.get("problems", [str(answer)])
        return problems


def main() -> None:
    """Cut, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cuts", type=int, default=10**9, help="so many of each run at most")
    options = parser.parse_args()
    violations = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        zygote = Zygote(build_shim(folder))
        for durability in ("full", "normal"):
            recording = record(zygote, folder, durability)
            syncs = recording.syncs()
            print(
                f"{durability}: {recording.calls} calls recorded; {len(syncs)} writes, syncs each: "
                f"{min(syncs)} to {max(syncs)}, mean {statistics.mean(syncs):.2f}",
                flush=True,
            )
            moments = recording.moments()
            moments = sorted(random.Random(0).sample(moments, min(options.cuts, len(moments))))
            for first in ("search", "write"):
                found = Cuts(zygote, folder, recording).at(moments, write_first=first == "write")
                violations += len(found.violations)
                print(
                    f"    {len(moments)} cuts, {len(ADVERSARIES)} adversaries, {found.disks} disks "
                    f"opened to {first} first: {len(found.violations)} violations",
                    flush=True,
                )
                for violation in found.violations[:5]:
                    print("       ", violation[:1500], flush=True)
        zygote.close()
    sys.exit(1 if violations else 0)


if __name__ == "__main__":
    main()
