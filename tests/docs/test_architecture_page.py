"""The architecture page shows the folders, files and floors that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from tests.docs.pages import DOCS, ROOT

PAGE = (DOCS / "architecture.md").read_text("utf-8")
PACKAGE = ROOT / "kronos"
BELONGS = (".py", ".typed")


def block_of(heading: str) -> str:
    """The first fenced block below a heading."""
    return PAGE.split(f"## {heading}\n")[1].split("```text\n")[1].split("```")[0]


def drawn() -> dict[str, str]:
    """The tree's paths, folders ending with a slash, and what each owns."""
    found: dict[str, str] = {}
    parents: list[str] = []
    for line in block_of("The tree").splitlines()[1:]:
        match = re.fullmatch(r"((?:  )+)(\S+)(?: +(.*))?", line)
        assert match, f"two spaces a level, a name, and what it owns: {line!r}"
        indent, name, owns = match.groups()
        parents = [*parents[: len(indent) // 2 - 1], name]
        found["".join(parents)] = owns or ""
    return found


def on_disk() -> dict[str, str]:
    """The same of the disk; the line of a folder stands for its `__init__.py`."""
    found: dict[str, str] = {}
    for path in PACKAGE.rglob("*"):
        inside = path.relative_to(PACKAGE)
        if path.is_dir() and any(each.suffix in BELONGS for each in path.rglob("*")):
            found[f"{inside}/"] = summary_of(path / "__init__.py")
        elif path.suffix in BELONGS and (path.name != "__init__.py" or path.parent == PACKAGE):
            found[str(inside)] = summary_of(path)
    return {path: owns for path, owns in found.items() if "__pycache__" not in path}


def summary_of(path: Path) -> str:
    """The first line of a module's docstring."""
    code = path.read_text("utf-8") if path.suffix == ".py" else ""
    return (ast.get_docstring(ast.parse(code)) or "").partition("\n")[0]


def test_the_tree_is_the_one_on_disk() -> None:
    shown, there = drawn(), on_disk()
    missing = [f"{path}  {owns}" for path, owns in sorted(there.items()) if path not in shown]
    assert missing == []
    assert [path for path in shown if path not in there] == []


def test_every_line_of_the_tree_says_what_the_file_owns() -> None:
    assert [path for path, owns in drawn().items() if not owns] == []


def test_the_floors_are_those_that_import_linter_holds() -> None:
    pyproject = (ROOT / "pyproject.toml").read_text("utf-8")
    layers = re.search(r"^layers = \[(.*?)^\]", pyproject, re.DOTALL | re.MULTILINE)
    assert layers is not None
    assert block_of("The floors").splitlines() == re.findall(r'"(.*?)"', layers[1])


def test_the_five_files_of_a_readers_path_exist() -> None:
    section = PAGE.split("## A reader's path of five files\n")[1].split("\n## ")[0]
    files = re.findall(r"^\d\. `(kronos/[^`]+)`", section, re.MULTILINE)
    assert len(files) == 5
    named = re.findall(r"`(kronos/[^`]+)`", section)
    assert [file for file in named if not (ROOT / file).is_file()] == []


def test_the_calls_of_a_readers_path_exist() -> None:
    section = PAGE.split("## A reader's path of five files\n")[1].split("\n## ")[0]
    for file, text in re.findall(r"^\d\. `(kronos/[^`]+)`(.*?)(?=^\d\. |\Z)", section, re.M | re.S):
        code = (ROOT / file).read_text("utf-8")
        for owner, method in re.findall(r"`([A-Z]\w+)\.(\w+)`", text):
            assert f"class {owner}" in code, file
            assert f"def {method}(" in code, file
