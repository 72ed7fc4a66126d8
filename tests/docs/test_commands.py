"""Commands, options, settings and presets that the pages name are those that exist."""

from __future__ import annotations

import ast
import re
import shlex
from dataclasses import fields
from typing import Any

import pytest
import typer.main

from kronos import EMBEDDING_MODELS, Settings
from kronos.cli import app
from tests.docs.pages import DOCS, PAGES, ROOT, RUN, commands_of, name_of

COMMANDS = [(name_of(page), command) for page in PAGES for command in commands_of(page)]
PYPROJECT = (ROOT / "pyproject.toml").read_text("utf-8")
TOOLS = ("ruff", "mypy", "lint-imports", "pre-commit", "mkdocs", "git", ".ci/run")
"""Development tools; the checks of every change run them."""


def kronos_commands() -> dict[str, Any]:
    """Every command, by its name with the group before it."""
    root: Any = typer.main.get_command(app)
    found: dict[str, Any] = {}
    for name, command in root.commands.items():
        if getattr(command, "commands", None) is None or command.invoke_without_command:
            found[name] = command
        for inner, each in (getattr(command, "commands", None) or {}).items():
            found[f"{name} {inner}"] = each
    return found


def test_the_command_page_lists_every_command_and_no_other() -> None:
    page = (DOCS / "how-to/command-line.md").read_text("utf-8")
    listed = re.findall(r"^\| `kronos ([a-z ]+)` \|", page, re.MULTILINE)
    assert sorted(listed) == sorted(kronos_commands())


@pytest.mark.parametrize(("page", "line"), COMMANDS)
def test_a_command_exists_with_the_options_shown(page: str, line: str) -> None:
    words = [word for word in shlex.split(line) if word != "|"]
    if words[0] == "kronos":
        check_kronos(words[1:])
    elif words[:2] == ["python", "-m"]:
        check_module(words[2], [word for word in words[3:] if word.startswith("--")])
    elif words[:2] == ["pip", "install"]:
        check_extras(words[2:])
    elif words[0] == "pytest":
        assert all((ROOT / word).exists() for word in words[1:] if word.endswith(".py"))
    else:
        assert words[0] in (*TOOLS, *RUN), f"{page}: {line}"


def check_kronos(words: list[str]) -> None:
    known = kronos_commands()
    name = words[0]
    if len(words) > 1 and f"{name} {words[1]}" in known:
        name = f"{name} {words[1]}"
    options = {option for param in known[name].params for option in param.opts}
    assert {word for word in words if re.match(r"--?[a-z]", word)} <= options


def check_module(name: str, options: list[str]) -> None:
    """Look for the options among the texts of a module, which may not be importable here."""
    path = ROOT / name.replace(".", "/")
    file = path / "__main__.py" if path.is_dir() else path.with_suffix(".py")
    texts = {
        node.value
        for node in ast.walk(ast.parse(file.read_text("utf-8")))
        if isinstance(node, ast.Constant)
    }
    assert set(options) <= texts


def check_extras(words: list[str]) -> None:
    extras = {
        extra
        for word in words
        for part in re.findall(r"\[(.*?)\]", word)
        for extra in part.split(",")
    }
    section = PYPROJECT.split("[project.optional-dependencies]")[1].split("\n[")[0]
    assert extras <= set(re.findall(r"^(\w+) = \[", section, re.MULTILINE))


def test_the_commands_named_in_a_sentence_exist() -> None:
    for page in PAGES:
        for line in re.findall(r"`((?:kronos|python -m) [^`…]+)`", page.read_text("utf-8")):
            words = shlex.split(line.replace("\n", " "))
            if words[0] == "python":
                check_module(words[2], words[3:])
            elif not words[1].startswith("--"):
                check_kronos(words[1:])


def test_the_extras_that_the_pages_name_exist() -> None:
    for page in PAGES:
        for names in re.findall(r"pip install '?[a-z.-]*\[([a-z,]+)\]", page.read_text("utf-8")):
            check_extras([f"[{names}]"])


def test_the_variables_named_are_settings() -> None:
    known = {f"KRONOS_{field.name.upper()}" for field in fields(Settings)} | {"KRONOS_STORE"}
    for page in PAGES:
        named = set(re.findall(r"\bKRONOS_[A-Z_]+\b", page.read_text("utf-8"))) - {"KRONOS_"}
        assert named <= known, name_of(page)


def test_the_settings_named_are_those_that_exist() -> None:
    known = {field.name for field in fields(Settings)}
    for page in PAGES:
        for arguments in re.findall(r"Settings\(([^)]*)\)", page.read_text("utf-8")):
            assert set(re.findall(r"(\w+)=", arguments)) <= known, name_of(page)
    tuning = (DOCS / "how-to/tuning.md").read_text("utf-8")
    by_goal = tuning.split("| goal | setting |")[1].split("\n\n")[0]
    assert set(re.findall(r"`([a-z_]+)[=`]", by_goal)) <= known | {"add_many", "reindex"}


def test_the_presets_named_are_those_that_exist() -> None:
    page = (DOCS / "how-to/choose-a-model.md").read_text("utf-8")
    rows = re.findall(r"\| `(\w+)` \| (\S+) \| (\d+) \| (.*?) \| (.*?) \| (\d+) \|", page)
    assert {
        name: (model, int(dim), speed, quality, int(size))
        for name, model, dim, speed, quality, size in rows
    } == {
        name: (model.name, model.dim, model.speed, model.quality, model.size_mb)
        for name, model in EMBEDDING_MODELS.items()
    }
