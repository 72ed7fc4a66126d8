"""Every error that Kronos raises, and the warning that it issues.

A message says what was expected, what was found and how to fix it. The first line of a class
docstring is the default message. Each class has a `code`, a stable name for programs: it never
changes, and no other class has it.

    KronosError                               `kronos_error`
    ├── InputError (ValueError)               `invalid_input`
    │   ├── ContentError                      `invalid_content`
    │   ├── MetadataError                     `invalid_metadata`
    │   ├── IdentifierError                   `invalid_identifier`
    │   ├── FilterError                       `invalid_filter`
    │   ├── VectorError                       `invalid_vector`
    │   │   └── DimensionMismatchError        `dimension_mismatch`
    │   └── ConfigurationError                `invalid_configuration`
    ├── NotFoundError (LookupError)           `not_found`
    ├── DuplicateIdError                      `duplicate_id`
    ├── StoreClosedError                      `store_closed`
    ├── StoreCopyError (TypeError)            `store_not_copyable`
    ├── StoppedError                          `stopped`
    ├── EmbeddingError                        `embedding_failed`
    │   ├── TransientEmbeddingError           `embedder_unavailable`
    │   ├── ModelLoadError                    `model_unavailable`
    │   ├── DeviceError                       `device_unavailable`
    │   ├── EmbedderMismatchError             `embedder_mismatch`
    │   ├── ReindexError                      `reindex_incomplete`
    │   └── NoEmbedderError                   `no_embedder`
    ├── SpaceChangedError                     `space_changed`
    ├── MissingDependencyError                `missing_dependency`
    └── StorageError                          `storage_failed`
        ├── SchemaOutdatedError               `schema_outdated`
        ├── SchemaTooNewError                 `schema_too_new`
        ├── MigrationError                    `migration_failed`
        ├── StoreBusyError                    `store_busy`
        ├── StorageFullError                  `storage_full`
        ├── ReadOnlyStoreError                `store_read_only`
        ├── CorruptStoreError                 `store_corrupt`
        ├── StoreReplacedError                `store_replaced`
        └── SnapshotError                     `snapshot_invalid`

    KronosWarning (UserWarning)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import ClassVar


class KronosError(Exception):
    """Kronos failed."""

    code: ClassVar[str] = "kronos_error"
    """A stable name of the kind of error, for programs."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or _summary(type(self)))
        self.stored_ids: list[str] = []
        """The ids that `add_many` or `import_from` stored before this error, in order."""


class InputError(KronosError, ValueError):
    """An argument is not valid; nothing was written."""

    code = "invalid_input"

    def __init__(self, message: str | None = None, *, field: str = "") -> None:
        super().__init__(message)
        self.field = field
        """The argument, as the caller wrote it: "content", "metadata.tags[2]"."""


class ContentError(InputError):
    """The text cannot be stored exactly."""

    code = "invalid_content"


class MetadataError(InputError):
    """Metadata must be a JSON object of limited size and depth."""

    code = "invalid_metadata"


class IdentifierError(InputError):
    """An id or a namespace is malformed."""

    code = "invalid_identifier"


class FilterError(InputError):
    """The filter is not valid."""

    code = "invalid_filter"


class VectorError(InputError):
    """A vector must be finite, float and of non-zero length."""

    code = "invalid_vector"


class DimensionMismatchError(VectorError):
    """The width of the vector differs from the width of its space."""

    code = "dimension_mismatch"


class ConfigurationError(InputError):
    """A setting, a path or an option is not valid."""

    code = "invalid_configuration"


class NotFoundError(KronosError, LookupError):
    """No memory has this id."""

    code = "not_found"


class DuplicateIdError(KronosError):
    """A memory with this id exists; pass on_conflict="replace" or "ignore" to allow it."""

    code = "duplicate_id"


class StoreClosedError(KronosError):
    """The store is not open; call connect() first, or open it with `with`."""

    code = "store_closed"


class StoreCopyError(KronosError, TypeError):
    """A store cannot be copied or sent to another process; open it there by its path."""

    code = "store_not_copyable"


class StoppedError(KronosError):
    """The call stopped early because its `stop` was set; no step is partially applied."""

    code = "stopped"


class EmbeddingError(KronosError):
    """The embedder failed."""

    code = "embedding_failed"


class TransientEmbeddingError(EmbeddingError):
    """The embedder failed temporarily; the same call may succeed later.

    Typical causes are a quota, a timeout or a lost connection. Kronos retries before it raises this
    error. Your own embedder may raise it too, to mark a failure as transient.

    Args:
        message: what failed.
        retry_after_s: seconds to wait at least before the next try; None: unknown.
    """

    code = "embedder_unavailable"

    def __init__(self, message: str | None = None, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        """Seconds to wait at least before the next try; None: unknown."""


class ModelLoadError(EmbeddingError):
    """The embedding model cannot be loaded."""

    code = "model_unavailable"


class DeviceError(EmbeddingError):
    """The requested device is not available on this machine."""

    code = "device_unavailable"


class EmbedderMismatchError(EmbeddingError):
    """Another embedder made the store's vectors; run `kronos reindex` to change it."""

    code = "embedder_mismatch"


class ReindexError(EmbeddingError):
    """The reindex ended without a switch; the previous space still serves."""

    code = "reindex_incomplete"


class NoEmbedderError(EmbeddingError):
    """This store embeds no texts (embedding_model=None): pass a vector."""

    code = "no_embedder"


class SpaceChangedError(KronosError):
    """Another space serves now, or the space is gone; Kronos repeats the call.

    Internal: it never reaches a caller.
    """

    code = "space_changed"


class MissingDependencyError(KronosError):
    """An optional package is not installed."""

    code = "missing_dependency"


class StorageError(KronosError):
    """The database or the disk failed."""

    code = "storage_failed"


class SchemaOutdatedError(StorageError):
    """The database is older than this Kronos; run `kronos db upgrade` or pass migrate=True."""

    code = "schema_outdated"


class SchemaTooNewError(StorageError):
    """The database is newer than this Kronos; upgrade the package kronos-memory."""

    code = "schema_too_new"


class MigrationError(StorageError):
    """A migration failed and was undone."""

    code = "migration_failed"


class StoreBusyError(StorageError):
    """Another process holds the write lock; try again."""

    code = "store_busy"


class StorageFullError(StorageError):
    """The disk is full; earlier writes are intact."""

    code = "storage_full"


class ReadOnlyStoreError(StorageError):
    """The store cannot be written."""

    code = "store_read_only"


class CorruptStoreError(StorageError):
    """The database file is damaged."""

    code = "store_corrupt"


class StoreReplacedError(StorageError):
    """The database file was removed or replaced while the store was open."""

    code = "store_replaced"


class SnapshotError(StorageError):
    """An index snapshot is not valid; Kronos rebuilds the index from SQL.

    Internal: it never reaches a caller.
    """

    code = "snapshot_invalid"


class KronosWarning(UserWarning):
    """Kronos continues, but not as requested."""


@contextmanager
def naming_stored(ids: Sequence[str]) -> Iterator[None]:
    """Set `stored_ids` of an error that leaves the block to the ids stored before it.

    Args:
        ids: grows while the block stores memories.
    """
    try:
        yield
    except KronosError as exc:
        if not ids:
            raise
        raise _with_ids(exc, ids) from (exc.__cause__ or exc.__context__)
    except BaseException as exc:  # from the caller's own iterable: raise it unchanged
        with suppress(Exception):
            exc.stored_ids = [*ids]  # type: ignore[attr-defined]
        _add_note(exc, ids)
        raise


def _with_ids(exc: KronosError, ids: Sequence[str]) -> KronosError:
    """Copy an error and set its ids: calls in one transaction share the error, but not the ids."""
    own = type(exc).__new__(type(exc))
    own.args = exc.args
    own.__dict__.update(exc.__dict__)
    if notes := [*getattr(exc, "__notes__", ())]:
        own.__dict__["__notes__"] = notes
    own.stored_ids = [*ids]
    _add_note(own, ids)
    return own.with_traceback(exc.__traceback__)


def _add_note(exc: BaseException, ids: Sequence[str]) -> None:
    if ids and hasattr(exc, "add_note"):  # Python 3.10 has no notes
        exc.add_note(f"{len(ids)} memories of this call are stored; `stored_ids` names them")


def _summary(kind: type) -> str:
    """The first line of a class docstring."""
    return (kind.__doc__ or "").strip().partition("\n")[0]
