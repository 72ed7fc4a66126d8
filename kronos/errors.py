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
    ├── StoreCopyError (TypeError)       a store was to be copied or sent to another process
    ├── StoppedError                     a long call ended because its `stop` was set
    ├── EmbeddingError                   an embedder failed on a text
    │   ├── TransientEmbeddingError      it failed in passing: a quota, a timeout, a lost connection
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

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress


class KronosError(Exception):
    """Kronos failed."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or _summary(type(self)))
        self.stored_ids: list[str] = []
        """The ids that `add_many` or `import_from` had stored before this error, in order."""


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


class StoreCopyError(KronosError, TypeError):
    """A store cannot be copied or sent to another process; open it there by its path."""


class StoppedError(KronosError):
    """The call was stopped before its end, as it was asked to; nothing is half done."""


class EmbeddingError(KronosError):
    """The embedder failed."""


class TransientEmbeddingError(EmbeddingError):
    """The embedder failed in passing; the same call may succeed later.

    Kronos waits and tries again before it raises this. An embedder of your own may raise it too, to
    say that a failure is of that kind.

    Args:
        message: what failed.
        retry_after_s: how many seconds to wait at least before the next try; None: not known.
    """

    def __init__(self, message: str | None = None, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        """How many seconds to wait at least before the next try; None: not known."""


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


@contextmanager
def naming_stored(ids: Sequence[str]) -> Iterator[None]:
    """Let an error that leaves the block name what was stored before it, as `stored_ids`.

    Args:
        ids: grows while the block stores memories.
    """
    try:
        yield
    except KronosError as exc:
        if not ids:
            raise
        raise _with_ids(exc, ids) from (exc.__cause__ or exc.__context__)
    except BaseException as exc:  # of the caller's own iterable: it stays what it is
        with suppress(Exception):
            exc.stored_ids = [*ids]  # type: ignore[attr-defined]
        _add_note(exc, ids)
        raise


def _with_ids(exc: KronosError, ids: Sequence[str]) -> KronosError:
    """A copy that names ids: calls that share a transaction share its error, and not their ids."""
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
