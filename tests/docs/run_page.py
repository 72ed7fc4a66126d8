"""Runs the blocks of a page in this process and folder, and prints what each of them printed.

    python -m tests.docs.run_page docs/tutorial.md

A line of JSON for each block: where it stands, and what it printed. It ends with the first block
that fails.
"""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
import traceback
from typing import Any

from tests.docs.pages import ROOT, Block, blocks_of, is_run


def main(name: str) -> None:
    """Run a page."""
    names: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks_of(ROOT / name):
        if not is_run(block):
            continue
        run = run_python if block.language == "python" else run_sh
        printed, error = run(block, f"{name}:{block.line}", names)
        sys.stdout.write(json.dumps({"line": block.line, "printed": printed, "error": error}))
        sys.stdout.write("\n")
        sys.stdout.flush()
        if error is not None:
            break


def run_python(block: Block, place: str, names: dict[str, Any]) -> tuple[str, str | None]:
    """Run code among the names of the blocks before; what it printed, and why it failed."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            exec(compile(block.code, place, "exec"), names)
    except Exception:
        return printed.getvalue(), traceback.format_exc()
    return printed.getvalue(), None


def run_sh(block: Block, place: str, names: dict[str, Any]) -> tuple[str, str | None]:
    """Run commands until one fails; what they printed, and why the last one failed."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block.code], capture_output=True, text=True
    )
    return done.stdout, None if done.returncode == 0 else f"{place}: {done.stderr}"


if __name__ == "__main__":
    main(sys.argv[1])
