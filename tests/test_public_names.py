"""The public names: what `import kronos` provides, what it costs, and that it is typed."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any, get_type_hints

import pytest

import kronos
from kronos import errors, types
from kronos.errors import KronosError

HEAVY = [
    "torch",
    "sentence_transformers",
    "transformers",
    "faiss",
    "alembic",
    "sqlalchemy",
    "numpy",
]
IMPORT_MS = 30
"""The limit for `import kronos`, measured by `python -X importtime -c "import kronos"`."""
ERRORS = [
    value
    for value in vars(errors).values()
    if isinstance(value, type) and issubclass(value, KronosError)
]


@pytest.mark.parametrize("name", kronos.__all__)
def test_every_public_name_exists_and_is_documented(name: str) -> None:
    assert getattr(kronos, name).__doc__ or name == "EMBEDDING_MODELS"
    assert name in dir(kronos)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nonsense"):
        kronos.nonsense  # noqa: B018


# -- Light ----------------------------------------------------------------------------------------


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=True)


@pytest.mark.parametrize("module", ["kronos", "kronos.settings", "kronos.errors"])
def test_import_loads_no_heavy_module(module: str) -> None:
    loaded = run("-c", f"import {module}, sys; print([m for m in {HEAVY!r} if m in sys.modules])")
    assert loaded.stdout.strip() == "[]"


def test_import_is_fast() -> None:
    # The fastest of several runs: other processes only make an import slower.
    assert min(import_ms() for _ in range(5)) <= IMPORT_MS


def import_ms() -> float:
    lines = run("-X", "importtime", "-c", "import kronos").stderr.splitlines()
    (line,) = (line for line in lines if re.search(r"\| kronos$", line))
    return int(line.split("|")[1]) / 1000


# -- Typed ----------------------------------------------------------------------------------------


def public(home: ModuleType) -> dict[str, Any]:
    names = getattr(home, "__all__", None) or [name for name in vars(home) if name[0] != "_"]
    return {name: getattr(home, name) for name in names}


def methods(kind: type) -> Iterator[tuple[str, Any]]:
    for name, value in inspect.getmembers(kind):
        if name.startswith("_") and name != "__init__":
            continue
        value = value.fget if isinstance(value, property) else value
        if inspect.isroutine(value) and hasattr(value, "__annotations__"):
            yield f"{kind.__name__}.{name}", value


def annotated() -> dict[str, Any]:
    """Every public class, function and method, by name."""
    found: dict[str, Any] = {}
    for home in (kronos, errors, types):
        for name, value in public(home).items():
            if inspect.isfunction(value) or (isinstance(value, type) and is_own(value)):
                found[name] = value
            if isinstance(value, type) and is_own(value):
                found.update(methods(value))
    return found


def is_own(kind: type) -> bool:
    return kind.__module__.split(".")[0] == "kronos"


@pytest.mark.parametrize("name", sorted(annotated()))
def test_the_type_hints_of_every_public_name_can_be_resolved(name: str) -> None:
    get_type_hints(annotated()[name])


def test_the_type_hints_of_values_name_their_types() -> None:
    from datetime import datetime
    from pathlib import Path

    assert get_type_hints(types.Memory)["expires_at"] == datetime | None
    assert get_type_hints(types.RecoveryReport)["aside"] is Path
    assert get_type_hints(types.Embedder.embed_queries)["return"] == types.Vectors
    assert "MemoryStore.add_many" in annotated()
    assert "KronosMemory.search" in annotated()


def test_the_types_package_exports_all_that_its_modules_define() -> None:
    defined = {
        name
        for module in vars(types).values()
        if isinstance(module, ModuleType) and module.__name__.startswith("kronos.types.")
        for name, value in vars(module).items()
        if isinstance(value, type) and value.__module__ == module.__name__
    }
    assert defined <= set(types.__all__)
    assert len(types.__all__) == len(set(types.__all__))


def test_a_hit_gives_the_id_the_content_and_the_metadata_of_its_memory() -> None:
    from datetime import datetime, timezone

    now = datetime.now(timezone.utc)
    memory = kronos.Memory("m1", "default", "a text", {"year": 2024}, 0.5, now, now)
    hit = kronos.Hit(memory, score=0.9, embedder="hash", rank=0)
    assert (hit.id, hit.content, hit.metadata) == ("m1", "a text", {"year": 2024})


# -- Errors ---------------------------------------------------------------------------------------


def test_the_error_tree_in_the_docstring_names_every_error_and_its_code() -> None:
    assert errors.__doc__ is not None
    drawn = dict(re.findall(r"(\w+Error)(?: \(\w+\))? +`(\w+)`", errors.__doc__))
    assert drawn == {kind.__name__: kind.code for kind in ERRORS}
    own = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and value.__module__ == errors.__name__
    }
    assert own == {*drawn, "KronosWarning"}


@pytest.mark.parametrize("kind", ERRORS)
def test_every_error_has_a_code_of_its_own(kind: type[KronosError]) -> None:
    assert re.fullmatch(r"[a-z]+(_[a-z]+)*", kind.code)
    assert "code" in vars(kind), "inherited codes are not unique"
    assert [other for other in ERRORS if other.code == kind.code] == [kind]


def test_the_codes_are_stable() -> None:
    """Programs compare codes, and HTTP will send them: a changed code is a breaking change."""
    assert {kind.__name__: kind.code for kind in ERRORS} == CODES


CODES = {
    "KronosError": "kronos_error",
    "InputError": "invalid_input",
    "ContentError": "invalid_content",
    "MetadataError": "invalid_metadata",
    "IdentifierError": "invalid_identifier",
    "FilterError": "invalid_filter",
    "VectorError": "invalid_vector",
    "DimensionMismatchError": "dimension_mismatch",
    "ConfigurationError": "invalid_configuration",
    "NotFoundError": "not_found",
    "DuplicateIdError": "duplicate_id",
    "StoreClosedError": "store_closed",
    "StoreCopyError": "store_not_copyable",
    "StoppedError": "stopped",
    "EmbeddingError": "embedding_failed",
    "TransientEmbeddingError": "embedder_unavailable",
    "ModelLoadError": "model_unavailable",
    "DeviceError": "device_unavailable",
    "EmbedderMismatchError": "embedder_mismatch",
    "ReindexError": "reindex_incomplete",
    "NoEmbedderError": "no_embedder",
    "SpaceChangedError": "space_changed",
    "MissingDependencyError": "missing_dependency",
    "StorageError": "storage_failed",
    "SchemaOutdatedError": "schema_outdated",
    "SchemaTooNewError": "schema_too_new",
    "MigrationError": "migration_failed",
    "StoreBusyError": "store_busy",
    "StorageFullError": "storage_full",
    "ReadOnlyStoreError": "store_read_only",
    "CorruptStoreError": "store_corrupt",
    "StoreReplacedError": "store_replaced",
    "SnapshotError": "snapshot_invalid",
}


def test_an_error_without_a_message_uses_its_docstring() -> None:
    assert str(errors.StoreClosedError()) == errors.StoreClosedError.__doc__


def test_the_base_error_is_a_public_name() -> None:
    assert kronos.KronosError is KronosError
