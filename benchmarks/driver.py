"""`Process`: a peer in a process of its own, told what to do over pipes (`benchmarks.worker`)."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any


class Failed(Exception):
    """A peer failed, or cannot do what was asked."""


class Process:
    """A worker, as the parent sees it.

    Args:
        name: the peer.
        store: the folder of its store, made if it is not there.
        data: the folder of what it stores.
    """

    def __init__(self, name: str, store: Path, data: Path) -> None:
        self._said = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", name, str(store), str(data)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
        )

    def __call__(self, call: str, **options: Any) -> Any:
        """Have a worker do something: what it returns.

        Raises:
            Failed: the peer cannot do it, failed, or is gone.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"call": call, **options}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except OSError:
            line = ""
        if not line:
            raise Failed(f"its process ended with {self._process.wait()}: {self._last_words()}")
        answer = json.loads(line)
        if "value" not in answer:
            raise Failed(answer.get("cannot") or answer["error"])
        return answer["value"]

    def _last_words(self) -> str:
        self._said.seek(0)
        return self._said.read().strip().rpartition("\n")[2]

    def end(self) -> None:
        """Let the process end."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._said.close()
