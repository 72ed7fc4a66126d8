"""What `import kronos` gives, and what it does not load."""

from __future__ import annotations

import subprocess
import sys

import pytest

import kronos
from kronos import errors

HEAVY = [
    "torch",
    "sentence_transformers",
    "transformers",
    "faiss",
    "alembic",
    "sqlalchemy",
    "numpy",
]


@pytest.mark.parametrize("name", kronos.__all__)
def test_every_public_name_exists_and_is_documented(name: str) -> None:
    assert getattr(kronos, name).__doc__ or name == "EMBEDDING_MODELS"
    assert name in dir(kronos)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nonsense"):
        kronos.nonsense  # noqa: B018


def test_import_loads_no_heavy_module() -> None:
    code = f"import kronos, sys; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_error_tree_in_the_docstring_names_every_error() -> None:
    assert errors.__doc__ is not None
    found = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and value.__module__ == "kronos.errors"
    }
    drawn = set(errors.__doc__.replace("│", " ").replace("├──", " ").replace("└──", " ").split())
    assert found <= drawn
    assert all(
        issubclass(getattr(errors, n), errors.KronosError) for n in found - {"KronosWarning"}
    )


def test_an_error_without_a_message_says_what_its_docstring_says() -> None:
    assert str(errors.StoreClosedError()) == errors.StoreClosedError.__doc__
