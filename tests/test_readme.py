"""The README's snippets run as they stand, and its commands exist."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
OUTPUTS = [
    "Ada keeps bees on the roof.",
    "Standup is at half past nine.",
    "The invoice KX-4711 is due in May.",
    "The launch is in June.\n['The launch is in June.', 'The launch is in September.']",
    "",
    "[1, 2]",
]


@pytest.mark.parametrize(("snippet", "output"), list(zip(SNIPPETS, OUTPUTS, strict=True)))
def test_a_snippet_runs_and_prints_what_it_says(tmp_path: Path, snippet: str, output: str) -> None:
    if "import" not in snippet:
        snippet = f"from kronos import KronosMemory\n{snippet}"
    done = subprocess.run(
        [sys.executable, "-c", snippet],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert output in done.stdout


def test_the_commands_named_are_those_that_exist() -> None:
    from kronos.cli import app, db, index, reindex

    def names(commands: object) -> set[str]:
        return {c.name or c.callback.__name__ for c in commands}  # type: ignore[attr-defined]

    section = README.split("## Commands")[1].split("## ")[0]
    own, indexes, jobs, schema = re.findall(r"`(?:kronos (?:db |index )?)?(\w+ \| [^`]*)`", section)
    assert set(own.split(" | ")) == names(app.registered_commands)
    assert set(indexes.split(" | ")) == names(index.registered_commands)
    assert set(jobs.split(" | ")) == names(reindex.registered_commands)
    assert set(schema.split(" | ")) == names(db.registered_commands)


def test_the_reindex_commands_shown_take_the_options_shown() -> None:
    from kronos.cli import start

    shown = set(re.findall(r"kronos reindex .*?--model", README))
    assert shown
    options = set(
        re.findall(r"--([a-z-]+)", " ".join(re.findall(r"^kronos reindex .*", README, re.M)))
    )
    known = {name.replace("_", "-") for name in inspect.signature(start).parameters}
    assert options <= {*known, "json"}


def test_the_settings_named_are_those_that_exist() -> None:
    from dataclasses import fields

    from kronos import Settings

    section = README.split("## Settings")[1].split("## ")[0]
    named = set(re.findall(r"`([a-z_]+)`", section))
    assert {field.name for field in fields(Settings)} <= named


def test_the_presets_named_are_those_that_exist() -> None:
    from kronos import EMBEDDING_MODELS

    rows = re.findall(r"\| `(\w+)` \| (\S+) \| (\d+) \| (.*?) \| (.*?) \| (\d+) \|", README)
    assert {
        name: (model, int(dim), speed, quality, int(size))
        for name, model, dim, speed, quality, size in rows
    } == {
        name: (model.name, model.dim, model.speed, model.quality, model.size_mb)
        for name, model in EMBEDDING_MODELS.items()
    }
