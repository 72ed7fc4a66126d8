"""Every error that Kronos raises, and nothing else.

An error says what was expected, what was found and what mends it. The class docstring is the
default message, so the two cannot drift apart.

    KronosError
    ├── InputError (ValueError)          an argument is refused, nothing written; see `field`
    │   ├── ContentError                 a text that cannot be stored exactly
    │   ├── MetadataError                metadata that is no JSON object of bounded size
    │   ├── IdentifierError              an id or a namespace
    │   ├── FilterError                  a `where` that cannot be understood
    │   ├── VectorError                  a vector of the wrong kind, with NaN or inf, or of length 0
    │   │   └── DimensionMismatchError   a vector of another width than the space
    │   └── ConfigurationError           a setting, a path or an option
    ├── NotFoundError (LookupError)      no memory has this id
    ├── DuplicateIdError                 a memory with this id exists
    ├── StoreClosedError                 the store is not open
    ├── EmbeddingError                   an embedder failed on a text
    │   ├── ModelLoadError               a model cannot be had, and `strict` forbids the fallback
    │   ├── DeviceError                  the device asked for is absent
    │   ├── EmbedderMismatchError        the store's vectors were made by another embedder
    │   ├── ReindexError                 a job did not make its space the active one
    │   └── NoEmbedderError              the store holds vectors handed in, and a text came without
    ├── SpaceChangedError                another space took this one's place; never reaches a caller
    ├── MissingDependencyError           an optional package is not installed
    └── StorageError                     the database or the disk
        ├── SchemaOutdatedError          the database is older than this Kronos
        ├── SchemaTooNewError            the database is newer than this Kronos
        ├── MigrationError               an upgrade or downgrade failed and was undone
        ├── StoreBusyError               another process holds the write lock
        ├── StorageFullError             the disk is full
        ├── ReadOnlyStoreError           the folder or the database cannot be written
        ├── CorruptStoreError            the database file is damaged
        ├── StoreReplacedError           the file was removed, or is another store's now
        └── SnapshotError                an index snapshot cannot be trusted; never reaches a caller

    KronosWarning (UserWarning)          Kronos goes on, but not as it was asked to
"""

from __future__ import annotations


class KronosError(Exception):
    """Kronos failed."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or (type(self).__doc__ or "").strip())


class InputError(KronosError, ValueError):
    """An argument was refused; nothing was written."""

    def __init__(self, message: str | None = None, *, field: str = "") -> None:
        super().__init__(message)
        self.field = field
        """The argument that was refused, as the caller wrote it: "content", "metadata.tags[2]"."""


class ContentError(InputError):
    """The text cannot be stored exactly."""


class MetadataError(InputError):
    """Metadata must be a JSON object of bounded size and depth."""


class IdentifierError(InputError):
    """An id or a namespace is malformed."""


class FilterError(InputError):
    """The filter cannot be understood."""


class VectorError(InputError):
    """A vector must be finite, float and of non-zero length."""


class DimensionMismatchError(VectorError):
    """The vector has another width than the space it is meant for."""


class ConfigurationError(InputError):
    """A setting is not valid."""


class NotFoundError(KronosError, LookupError):
    """No memory has this id."""


class DuplicateIdError(KronosError):
    """A memory with this id exists; pass on_conflict="replace" or "ignore" to allow it."""


class StoreClosedError(KronosError):
    """The store is not open; call connect() first, or open it with `with`."""


class EmbeddingError(KronosError):
    """The embedder failed."""


class ModelLoadError(EmbeddingError):
    """The embedding model cannot be loaded."""


class DeviceError(EmbeddingError):
    """The device asked for is not present on this machine."""


class EmbedderMismatchError(EmbeddingError):
    """The store's vectors were made by another embedder; run `kronos reindex` to change it."""


class ReindexError(EmbeddingError):
    """A reindex ended without a switch; the space before still answers."""


class NoEmbedderError(EmbeddingError):
    """This store embeds no texts (embedding_model=None): hand in a vector."""


class SpaceChangedError(KronosError):
    """Another space serves now, or the one that was meant is gone; the call is made anew."""


class MissingDependencyError(KronosError):
    """An optional package is not installed."""


class StorageError(KronosError):
    """The database or the disk failed."""


class SchemaOutdatedError(StorageError):
    """The database is older than this Kronos; run `kronos db upgrade` or pass migrate=True."""


class SchemaTooNewError(StorageError):
    """The database is newer than this Kronos; upgrade the package kronos-memory."""


class MigrationError(StorageError):
    """A migration failed and was undone."""


class StoreBusyError(StorageError):
    """Another process holds the write lock; try again."""


class StorageFullError(StorageError):
    """The disk is full; what was written before is intact."""


class ReadOnlyStoreError(StorageError):
    """The store cannot be written."""


class CorruptStoreError(StorageError):
    """The database file is damaged."""


class StoreReplacedError(StorageError):
    """The database file was removed or replaced while the store was open."""


class SnapshotError(StorageError):
    """An index snapshot cannot be trusted; the index is rebuilt from SQL."""


class KronosWarning(UserWarning):
    """Kronos goes on, but not as it was asked to."""
