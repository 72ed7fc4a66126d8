"""The walk: a fault at every system call that writes, in everything that writes.

    python -m tests.faults.walk [--points 20]

prints, for each thing done, how many points there are, and every violation of the oracle: it opens,
nothing acknowledged is lost or risen, what was under way is whole or absent, index and rows agree,
searches are right, it takes a write, no temporary file is left, and errors are typed.
"""

from __future__ import annotations

import argparse
import errno
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
OLD = ROOT / "tests/db/assets/0001.db"

COUNT, KILL_BEFORE, KILL_WITHIN, FAIL_ONCE, FAIL_ON = range(5)
OPERATIONS = [
    "create", "insert", "update", "delete", "replace", "snapshot", "reindex", "compact", "backup",
    "close", "reopen", "migrate", "restore", "recover",
]  # fmt: skip
KILLS = [(KILL_BEFORE, 0), (KILL_WITHIN, 0)]
ERRORS = [
    (FAIL_ONCE, errno.ENOSPC), (FAIL_ON, errno.ENOSPC), (FAIL_ONCE, errno.EIO), (FAIL_ON, errno.EIO)
]  # fmt: skip


class Zygote:
    """The process that does things under a fault."""

    def __init__(self, shim: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "tests.faults.zygote"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={"LD_PRELOAD": str(shim), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
        )

    def ask(self, what: str, folder: Path, **order: Any) -> dict[str, Any]:
        """Have one thing done; what came of it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        line = json.dumps({"what": what, "folder": str(folder), **order})
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def close(self) -> None:
        """Let it end."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(30)
        self._process.stdout.close()


@dataclass
class Outcome:
    """What the walk through one operation found."""

    points: int = 0
    attempts: int = 0
    violations: list[str] = field(default_factory=list)


def build_shim(folder: Path) -> Path:
    """Compile the shim; FileNotFoundError where there is no C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise FileNotFoundError("no C compiler")
    shim = folder / "shim.so"
    source = HERE / "shim.c"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", shim, source, "-ldl"], check=True)
    return shim


class Walk:
    """Does everything under every fault, each time on a fresh copy of the same store."""

    def __init__(self, zygote: Zygote, folder: Path) -> None:
        self._zygote = zygote
        self._folder = folder
        self._template = folder / "template"
        self._before = zygote.ask("fill", self._template)["state"]
        shutil.copy(self._template / "kronos.db", folder / "backup.db")

    @contextmanager
    def _store(self, operation: str) -> Iterator[Path]:
        store = self._folder / "store"
        shutil.rmtree(store, ignore_errors=True)
        if operation == "migrate":
            store.mkdir()
            shutil.copy(OLD, store / "kronos.db")
        elif operation != "create":
            shutil.copytree(self._template, store)
        yield store
        shutil.rmtree(store, ignore_errors=True)

    def _states(self, operation: str) -> tuple[Any, Any, int]:
        """What is there before and after, and how many calls lie between."""
        with self._store(operation) as store:
            done = self._zygote.ask(operation, store, mode=COUNT)
            assert done["end"] == "done", done
            after = self._verify(operation, store, [])["state"]
        before: Any = self._before
        if operation == "create":
            before = {}
        if operation == "migrate":
            before = after
        return before, after, done["calls"]

    def _verify(self, operation: str, store: Path, states: list[Any]) -> dict[str, Any]:
        return self._zygote.ask("verify", store, states=states, migrate=operation == "migrate")

    def through(self, operation: str, faults: list[tuple[int, int]], points: int) -> Outcome:
        """Walk through one operation, at so many points or at all."""
        before, after, calls = self._states(operation)
        outcome = Outcome(points=calls)
        for at in range(1, calls + 1, max(1, calls // points)):
            for mode, number in faults:
                outcome.attempts += 1
                for problem in self._try(operation, before, after, mode, at, number):
                    outcome.violations.append(f"{operation} call {at} mode {mode}: {problem}")
        return outcome

    def through_recovery(self, operation: str, points: int) -> Outcome:
        """Kill the operation, then kill what opens it next, at every point of both."""
        before, after, calls = self._states(operation)
        outcome = Outcome()
        for at in range(max(1, calls // points // 2), calls + 1, max(1, calls // points)):
            with self._store(operation) as store:
                self._zygote.ask(operation, store, mode=KILL_WITHIN, at=at)
                killed = self._folder / "killed"
                shutil.rmtree(killed, ignore_errors=True)
                shutil.copytree(store, killed)
            again = 0
            while True:
                again += 1
                store = self._folder / "store"
                shutil.copytree(killed, store)
                done = self._zygote.ask("reopen", store, mode=KILL_BEFORE, at=again)
                states = [before, after, _recovered(before), _recovered(after)]
                outcome.attempts += 1
                for problem in self._verify(operation, store, states)["problems"]:
                    outcome.violations.append(f"{operation} call {at}, then {again}: {problem}")
                shutil.rmtree(store)
                if done["end"] != "killed":
                    break
            outcome.points += again - 1
        return outcome

    def _try(
        self, operation: str, before: Any, after: Any, mode: int, at: int, number: int
    ) -> Iterator[str]:
        with self._store(operation) as store:
            done = self._zygote.ask(operation, store, mode=mode, at=at, errno=number)
            yield from _end_problems(done, mode)
            acknowledged = done["end"] == "done"
            states = [after] if acknowledged else [before, after]
            checked = self._verify(operation, store, states)
            yield from checked.get("problems", [json.dumps(checked)])


def _recovered(state: Any) -> Any:
    return {**state, "again": ["written after recovery", {}, 0.5, "default"]}


def _end_problems(done: dict[str, Any], mode: int) -> Iterator[str]:
    """Whether it ended as it should."""
    if mode in (KILL_BEFORE, KILL_WITHIN):
        if done["end"] not in ("killed", "done"):
            yield f"expected a kill: {json.dumps(done)}"
        return
    typed = ("StorageFullError", "StorageError", "MigrationError", "ReadOnlyStoreError")
    if done["end"] not in ("done", *typed):
        yield f"the error is not typed: {json.dumps(done)}"
    if done.get("service") not in (None, True):
        yield f"no service when the fault is over: {done['service']}"


def main() -> None:
    """Walk, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=10**9, help="so many for each at most")
    parser.add_argument("operations", nargs="*", default=OPERATIONS)
    options = parser.parse_args()
    violations: list[str] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        zygote = Zygote(build_shim(folder))
        walk = Walk(zygote, folder)
        total = 0
        for operation in options.operations:
            found = walk.through(operation, [*KILLS, *ERRORS], options.points)
            total += found.attempts
            violations += found.violations
            print(
                f"{operation}: {found.points} calls, {found.attempts} faults, "
                f"{len(found.violations)} violations",
                flush=True,
            )
            for violation in found.violations[:3]:
                print("   ", violation[:1500], flush=True)
        for operation in ("insert", "delete", "snapshot", "close"):
            if operation in options.operations:
                found = walk.through_recovery(operation, max(1, options.points // 4))
                total += found.attempts
                violations += found.violations
                print(
                    f"killed in {operation}, then in the recovery: {found.points} points, "
                    f"{len(found.violations)} violations",
                    flush=True,
                )
                for violation in found.violations[:3]:
                    print("   ", violation[:1500], flush=True)
        zygote.close()
    print(f"{total} faults, {len(violations)} violations")


if __name__ == "__main__":
    main()
