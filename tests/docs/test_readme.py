"""The README is short, its links lead somewhere, and `.ci/run` finds its test command."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.docs.pages import ROOT, environment

TEXT = (ROOT / "README.md").read_text("utf-8")
LINKED = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]


def anchors_of(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", each.lower()).replace(" ", "-") for each in headings}


def test_it_has_at_most_200_lines() -> None:
    assert len(TEXT.splitlines()) <= 200


@pytest.mark.parametrize("page", LINKED, ids=lambda page: page.name)
def test_its_links_lead_to_files_and_headings(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text("utf-8")):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), target
        assert not anchor or anchor in anchors_of(file), target


def test_it_links_to_every_guide() -> None:
    guides = {str(path.relative_to(ROOT)) for path in (ROOT / "docs/how-to").iterdir()}
    assert guides <= set(re.findall(r"\]\(([^)]+)\)", TEXT))


def test_its_test_command_is_the_one_that_the_checks_look_for() -> None:
    assert len(re.findall(r"^pip install -e '\.\[dev\]' && pytest$", TEXT, re.MULTILINE)) == 1


def test_its_set_up_command_answers_from_the_docs(tmp_path: Path) -> None:
    set_up = r"^pip install '\.\[[a-z,]+\]' && (kronos import .*)$"
    (command,) = re.findall(set_up, TEXT, re.MULTILINE)
    done = subprocess.run(
        ["bash", "-euc", command],
        cwd=ROOT,
        env={**environment(), "KRONOS_STORE": str(tmp_path / "store")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "memories added from" in done.stdout
    assert "model" in done.stdout.split("already existed)")[1]
