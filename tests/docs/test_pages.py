"""The code blocks of every page run, and print what the page says."""

from __future__ import annotations

import doctest
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.pages import PAGES, ROOT, RUN, blocks_of, environment, is_run, name_of

RUNNABLE = [name_of(page) for page in PAGES if any(is_run(block) for block in blocks_of(page))]


@pytest.mark.parametrize("name", RUNNABLE)
def test_the_blocks_of_a_page_run_and_print_what_it_says(name: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.docs.run_page", name],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
    )
    ran = {result["line"]: result for result in map(json.loads, done.stdout.splitlines())}
    assert done.returncode == 0, done.stderr
    checker = doctest.OutputChecker()
    options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    for block in filter(is_run, blocks_of(ROOT / name)):
        result = ran.get(block.line)
        assert result is not None, f"{name}:{block.line} did not run"
        assert result["error"] is None, result["error"]
        if block.output is not None:
            assert checker.check_output(block.output, result["printed"], options), (
                f"{name}:{block.line} printed\n{result['printed']}\nand not\n{block.output}"
            )


def test_a_block_of_commands_is_run_as_a_whole_or_only_checked() -> None:
    for page in PAGES:
        for block in blocks_of(page):
            if block.language == "sh" and not is_run(block):
                starts = {line.split()[0] for line in block.code.splitlines() if line.strip()}
                assert starts.isdisjoint(RUN), f"{name_of(page)}:{block.line}"


def test_every_python_block_is_formatted(tmp_path: Path) -> None:
    for page in PAGES:
        for block in blocks_of(page):
            if block.language == "python":
                file = tmp_path / f"{name_of(page)}-{block.line}.py".replace("/", "-")
                file.write_text(block.code, "utf-8")
    command = [sys.executable, "-m", "ruff", "format", "--diff", "--isolated", "--line-length=100"]
    done = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_block_names_its_language() -> None:
    for page in PAGES:
        for block in blocks_of(page):
            assert block.language in ("python", "sh", "text"), f"{name_of(page)}:{block.line}"
