"""Imports go down only, and foreign packages stay in the rooms that are theirs."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import numpy as np
import pytest

PACKAGE = Path(__file__).parents[1] / "kronos"
HOMES = {
    "faiss": ["index/faiss/"],
    "torch": ["embedding/", "index/gpu/"],
    "sentence_transformers": ["embedding/"],
    "transformers": ["embedding/"],
    "huggingface_hub": ["embedding/"],
    "onnxruntime": ["embedding/onnx_model.py"],
    "onnx": ["embedding/onnx_model.py"],
    "tokenizers": ["embedding/onnx_model.py"],
    "tenacity": ["embedding/retry.py"],
    "sqlalchemy": [
        "db/",
        "repository/",
        "search/",
        "settings.py",
    ],
    "alembic": ["db/schema.py"],
    "pickle": [],
}


def imports_of(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize(("package", "homes"), HOMES.items())
def test_a_foreign_package_is_imported_at_home_alone(package: str, homes: list[str]) -> None:
    places = [
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        if package in imports_of(path)
    ]
    assert [place for place in places if not place.startswith(tuple(homes) or ("nowhere",))] == []


def test_only_the_settings_read_the_environment() -> None:
    readers = [
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        if re.search(r"\b(environ|getenv)\b", path.read_text("utf-8"))
    ]
    assert readers == ["settings.py"]


def test_every_module_says_what_it_owns() -> None:
    for path in PACKAGE.rglob("*.py"):
        assert ast.get_docstring(ast.parse(path.read_text("utf-8"))), path


FILE_LINES, CLASS_LINES, FUNCTION_MEDIAN, FUNCTION_P90, FLOORS = 450, 350, 6, 18, 14


def test_files_and_classes_are_short() -> None:
    too_long = []
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text("utf-8")
        if (lines := text.count("\n")) > FILE_LINES:
            too_long.append((str(path.relative_to(PACKAGE)), lines))
        too_long += [
            (node.name, length)
            for node in ast.walk(ast.parse(text))
            if isinstance(node, ast.ClassDef)
            and (length := (node.end_lineno or 0) - node.lineno + 1) > CLASS_LINES
        ]
    assert too_long == []


def statements_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """The lines of a function's body, without its docstring."""
    body = function.body[1 if ast.get_docstring(function) is not None else 0 :]
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def test_functions_are_short() -> None:
    lengths = [
        statements_of(node)
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    assert np.median(lengths) <= FUNCTION_MEDIAN
    assert np.percentile(lengths, 90) <= FUNCTION_P90


def test_the_floors_are_few() -> None:
    project = (PACKAGE.parent / "pyproject.toml").read_text("utf-8")
    floors = project.split("layers = [", 1)[1].split("]", 1)[0].split(",\n")
    assert 10 <= len(floors) - 1 <= FLOORS


def test_the_wheel_holds_every_package() -> None:
    project = (PACKAGE.parent / "pyproject.toml").read_text("utf-8")
    listed = re.findall(r'"(kronos[.\w]*)"', project.split("packages = [", 1)[1].split("]", 1)[0])
    folders = [path.parent.relative_to(PACKAGE.parent) for path in PACKAGE.rglob("__init__.py")]
    ours = [".".join(folder.parts) for folder in folders]
    assert sorted(name for name in listed if "._migrations" not in name) == sorted(ours)


# -- One seam to the database -------------------------------------------------------------------

MIGRATIONS = PACKAGE.with_name("migrations")
ONE_DATABASE = re.compile(
    r"sqlite|pragma|fts5|rowid|json_(each|extract|group_array)|nocase", re.IGNORECASE
)
"""Words of one database. Everything else is plain SQL, or an element of `kronos.db.sql`."""
OF_SQLITE = ("db/sqlite", "db/fulltext/fts5.py")
"""The modules of that database."""
CHOICES = {
    "db/choice.py": r"fts5\b|\bSQLite\b|kronos\.db\.sqlite\b|\"sqlite\"",
    # SQLAlchemy's names for the options that a table has in one database.
    "db/tables.py": r"sqlite_(where|with_rowid)=|\"sqlite\"\)|# 64 bits on every database. SQLite",
    # URLs, and the errors of other ones.
    "settings.py": r"\bsqlite:///|\(sqlite\||\"sqlite(\+pysqlite)?\"|and SQLite has none",
}
"""Modules that speak of the choice of a database, and the words that they use."""
SQL_TEXT = re.compile(r"\s*(SELECT|INSERT|UPDATE|DELETE|REPLACE|VALUES|WITH|CREATE|DROP|ALTER)\s")


def outside_the_seam() -> list[tuple[str, str]]:
    files = {str(path.relative_to(PACKAGE)): path for path in PACKAGE.rglob("*.py")}
    files["migrations/env.py"] = MIGRATIONS / "env.py"
    return [
        (name, path.read_text("utf-8"))
        for name, path in sorted(files.items())
        if not name.startswith(OF_SQLITE)
    ]


def test_no_module_outside_the_seam_names_a_database() -> None:
    found = [
        f"{name}:{number}: {line.strip()}"
        for name, text in outside_the_seam()
        for number, line in enumerate(text.splitlines(), 1)
        if ONE_DATABASE.search(re.sub(CHOICES.get(name, "$^"), "", line))
    ]
    assert found == []


def test_no_module_outside_the_seam_holds_sql_text() -> None:
    found = [
        f"{name}:{node.lineno}: {node.value[:60]}"
        for name, text in outside_the_seam()
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        if SQL_TEXT.match(node.value)
    ]
    assert found == []
