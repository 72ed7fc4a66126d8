"""The pages of the documentation and their code blocks.

A page is README.md, CONTRIBUTING.md or a file below docs/. The blocks of one page run in order, in
one folder that is empty at first; Python blocks share their names. A `text` block right behind a
Python or `sh` block is what that block prints, where `...` stands for any text.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]

RUN = ("kronos", "printf", "cat", "cp", "ls", "mkdir", "mv", "rm", "sleep")
"""Commands that tests run. All others are only checked; see `test_commands`."""

_BLOCK = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    language: str
    line: int
    """The line of the page where its code begins, from 1 on."""
    code: str
    output: str | None = None
    """What it prints; None where the page does not say."""


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks_of(page: Path) -> list[Block]:
    """The blocks of a page, each with the output that stands behind it."""
    text = page.read_text("utf-8")
    found: list[Block] = []
    end = 0
    for match in _BLOCK.finditer(text):
        indent, language, code = match.groups()
        code = re.sub(rf"^{indent}", "", code, flags=re.MULTILINE)
        block = Block(language, text[: match.start(3)].count("\n") + 1, code)
        is_output = language == "text" and not text[end : match.start()].strip()
        if is_output and found and found[-1].language in ("python", "sh"):
            last = found[-1]
            found[-1] = Block(last.language, last.line, last.code, code)
        else:
            found.append(block)
        end = match.end()
    return found


def commands_of(page: Path) -> Iterator[str]:
    """The shell commands of a page, one a line; comments and `&&` are cut off."""
    for block in blocks_of(page):
        if block.language != "sh":
            continue
        for line in block.code.splitlines():
            for command in re.split(r" && ", re.sub(r"(^|\s)#.*", "", line)):
                if command.strip():
                    yield command.strip()


def is_run(block: Block) -> bool:
    """Whether tests run a block: Python, and commands that need no package index and no hours."""
    if block.language == "python":
        return True
    lines = [line for line in block.code.splitlines() if line.strip() and line[0] not in "# "]
    return block.language == "sh" and all(line.split()[0] in RUN for line in lines)


def environment() -> dict[str, str]:
    """For the commands of a page: those of this Python come first, and import this checkout."""
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    programs = [str(Path(sys.executable).parent), os.environ["PATH"]]
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("KRONOS_")},
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "PATH": os.pathsep.join(programs),
    }
