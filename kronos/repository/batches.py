"""Batches of new memories, and what becomes of each of their records."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kronos.errors import DuplicateIdError
from kronos.types import OnConflict, Space
from kronos.validation import Record

if TYPE_CHECKING:
    from kronos.types import Vectors

GIVEN = (
    "id",
    "namespace",
    "content",
    "content_hash",
    "folded",
    "metadata",
    "importance",
    "parent_id",
    "expires_at",
)
"""The columns that come from the caller, or are computed from its values."""
values_of = operator.attrgetter(*GIVEN)
"""The values of a record, in the order of `GIVEN`."""


@dataclass(slots=True)
class Batch:
    """What one caller adds at once: it is written whole or not at all."""

    records: list[Record]
    ids: list[str]
    """The ids of all records that the caller gave, also of those that need not be written."""
    on_conflict: OnConflict
    space: Space
    """The space of `vectors`, and of the vectors that the caller gave."""
    vectors: Vectors | None = None
    """(n, dim) float32 unit rows, one a record; None until the records are embedded."""
    match_content: bool = False
    """Whether a record without an id replaces a memory with its text."""


@dataclass(slots=True)
class Write:
    """One record on its way into the rows."""

    record: Record
    vector: bytes
    key: int | None
    """Of the memory that it replaces; None for a new one."""
    same_text: bool = False


@dataclass(frozen=True, slots=True)
class Edit:
    """The change of one memory's row."""

    key: int
    values: Sequence[Any]
    same_text: bool
    made: tuple[bytes, bytes] | None
    """The hash of its text and its vector; None leaves the vectors as they are."""


def resolve(
    batch: Batch,
    blobs: Sequence[bytes],
    taken: dict[str, tuple[int, bytes]],
    writes: dict[str, Write],
) -> list[str] | DuplicateIdError:
    """Decide what becomes of the records of a batch.

    Args:
        batch: the batch.
        blobs: the vectors of its records.
        taken: key and content hash of the live memories that have one of its ids.
        writes: what earlier batches write, by id; it gains all records of this one, or none.

    Returns:
        The ids of the batch, or why it is not written.
    """
    mine: dict[str, Write] = {}
    for record, blob in zip(batch.records, blobs, strict=True):
        known = record.id in taken or record.id in writes or record.id in mine
        if known and batch.on_conflict == "error":
            return DuplicateIdError(
                f"a memory with the id {record.id!r} exists; pass on_conflict='replace' or "
                "'ignore' to allow it"
            )
        if known and batch.on_conflict == "ignore":
            continue
        key, content_hash = taken.get(record.id, (None, None))
        mine[record.id] = Write(record, blob, key, content_hash == record.content_hash)
    writes.update(mine)
    return batch.ids
