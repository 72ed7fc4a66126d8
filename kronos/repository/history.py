"""The past of the memories: kept when they change or go, and read as it was at a moment.

`History` works over one open transaction, as `Repository` does. The versions of one memory follow
each other without a gap: each holds from its `recorded_at` to the next one's, also where the clock
was put back meanwhile. So at any moment a memory had exactly one version, or did not exist.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from sqlalchemy import (
    ColumnElement,
    Connection,
    FromClause,
    Row,
    SelectBase,
    Subquery,
    bindparam,
    case,
    delete,
    exists,
    func,
    insert,
    null,
    select,
    tuple_,
    union_all,
    update,
)

from kronos.db.fulltext.base import AddWords, text_of
from kronos.db.numbers import read_numbers
from kronos.db.sql import InsertMissing, list_parameter
from kronos.db.statements import Prepared
from kronos.db.tables import memories, past_vectors, store, vectors, versions
from kronos.repository.seqs import next_seqs
from kronos.repository.spaces import Spaces
from kronos.repository.vectors import checked_blobs

if TYPE_CHECKING:
    from kronos.types import Keys, Space, Vectors

PastVector: TypeAlias = tuple[int, bytes]
"""The identity of a vector of a past text: its space and the text's hash."""

_KEPT = (
    "id",
    "namespace",
    "content",
    "content_hash",
    "metadata",
    "importance",
    "parent_id",
    "created_at",
    "updated_at",
    "expires_at",
    "recorded_at",
)


def later_of(now: Any, column: ColumnElement[int]) -> ColumnElement[int]:
    """The time of a change to a row: now, but never before the row's own time."""
    return case((column > now, column), else_=now)


def rows_at(moment: int, among: SelectBase | None = None) -> Subquery:
    """The memories as the store knew them at a moment, expired ones included.

    Where the clock was put back between a delete and another memory of the same id, both existed
    at once by the clock: only the later one counts.

    Args:
        moment: microseconds since 1970 UTC.
        among: selects keys; these memories alone.

    Returns:
        A selectable with the columns of `memories` that a memory is read from, `key` among them,
        and `version_key`: null where the row of `memories` itself held already.
    """
    present = select(
        memories.c.key, null().label("version_key"), *(memories.c[name] for name in _KEPT)
    ).where(memories.c.recorded_at <= moment)
    later, later_past = memories.alias("later"), versions.alias("later_past")
    past = select(
        versions.c.memory_key.label("key"),
        versions.c.key.label("version_key"),
        *(versions.c[name] for name in _KEPT),
    ).where(
        versions.c.recorded_at <= moment,
        versions.c.replaced_at > moment,
        ~exists().where(
            later.c.id == versions.c.id,
            later.c.key > versions.c.memory_key,
            later.c.recorded_at <= moment,
        ),
        ~exists().where(
            later_past.c.id == versions.c.id,
            later_past.c.memory_key > versions.c.memory_key,
            later_past.c.recorded_at <= moment,
            later_past.c.replaced_at > moment,
        ),
    )
    if among is not None:
        present = present.where(memories.c.key.in_(among))
        past = past.where(versions.c.memory_key.in_(among))
    return union_all(present, past).subquery("known")


@dataclass(frozen=True, slots=True)
class PastText:
    """A text that a memory held."""

    key: int
    """Of the version."""
    content_hash: bytes
    content: str


class History:
    """The past of the memories, over one open transaction."""

    def __init__(self, connection: Connection, now: int) -> None:
        self._connection = connection
        self._now = now

    def keep(self, keys: list[int], *, text_goes: bool) -> None:
        """Keep memories as they are, before they are changed or deleted.

        Args:
            keys: the memories.
            text_goes: keep the vectors of their texts too.
        """
        if not keys:
            return
        _KEEP.run(self._connection, keys=keys, now=self._now)
        _KEEP_WORDS.run(self._connection, keys=keys)
        if text_goes:
            _KEEP_VECTORS.run(self._connection, keys=keys)

    def of(self, id: str) -> Sequence[Row[Any]]:
        """All versions of the memories with an id: rows of `rows_at`, with `replaced_at`.

        Returns:
            The oldest first.
        """
        past = select(
            versions.c.key.label("seq"),
            versions.c.memory_key.label("key"),
            *(versions.c[name] for name in _KEPT),
            versions.c.replaced_at,
        ).where(versions.c.id == id)
        present = select(
            memories.c.seq,
            memories.c.key,
            *(memories.c[name] for name in _KEPT),
            null().label("replaced_at"),
        ).where(memories.c.id == id)
        both = union_all(past, present).subquery()
        return self._connection.execute(select(both).order_by(both.c.seq)).all()

    def count(self) -> int:
        """How many earlier versions are kept."""
        ((count,),) = _COUNT.fetch(self._connection)
        return int(count)

    def vectors(self, space: Space, keys: list[int]) -> dict[int, bytes]:
        """The vectors of the texts of versions, by the versions' keys, where they were made."""
        return dict(_VECTORS.fetch(self._connection, space=space.id, keys=keys))

    def texts(self, keys: list[int]) -> list[PastText]:
        """The texts of versions, by the versions' keys."""
        return [PastText(*row) for row in _TEXTS.fetch(self._connection, keys=keys)]

    def add_vectors(self, space: Space, hashes: Sequence[bytes], rows: Vectors) -> None:
        """Keep the vectors of past texts, made after a model change; in a write transaction.

        Raises:
            SpaceChangedError: the space is gone.
        """
        Spaces(self._connection, self._now).require(space)
        blobs = checked_blobs(space, rows)
        self._connection.execute(
            InsertMissing(past_vectors),
            [
                {"space_id": space.id, "content_hash": content_hash, "vector": blob}
                for content_hash, blob in zip(hashes, blobs, strict=True)
            ],
        )

    def unwanted(self, *, before: int | None = None) -> Keys:
        """Find the versions of deleted memories, and those before a moment; reads all versions.

        Returns:
            (n,) int64 keys of versions.
        """
        unwanted = ~exists().where(memories.c.key == versions.c.memory_key)
        if before is not None:
            unwanted |= versions.c.replaced_at < before
        return read_numbers(self._connection, select(versions.c.key).where(unwanted))[:, 0]

    def forget(self, keys: list[int]) -> None:
        """Delete versions."""
        _FORGET.run(self._connection, keys=keys)

    def unused_vectors(self, after: PastVector, limit: int) -> list[PastVector]:
        """Find the next vectors of texts that no version holds, behind a given one."""
        place = tuple_(past_vectors.c.space_id, past_vectors.c.content_hash)
        unused = (
            select(past_vectors.c.space_id, past_vectors.c.content_hash)
            .where(place > tuple_(*after), ~_IN_USE)
            .order_by(past_vectors.c.space_id, past_vectors.c.content_hash)
            .limit(limit)
        )
        return [(space_id, hash) for space_id, hash in self._connection.execute(unused)]

    def forget_vectors(self, found: Sequence[PastVector]) -> None:
        """Delete vectors of past texts, unless a version holds the text by now."""
        for space_id, content_hash in found:
            self._connection.execute(
                delete(past_vectors).where(
                    past_vectors.c.space_id == space_id,
                    past_vectors.c.content_hash == content_hash,
                    ~_IN_USE,
                )
            )

    def begin_anew(self) -> None:
        """Have every follower of the rows begin anew, as versions were deleted."""
        (seq,) = next_seqs(self._connection, 1)
        self._connection.execute(update(store).values(pruned_seq=seq))


_COUNT = Prepared(select(func.count()).select_from(versions))
_IN_USE = exists().where(versions.c.content_hash == past_vectors.c.content_hash)
_FORGET = Prepared(delete(versions).where(versions.c.key.in_(list_parameter("keys"))))
_VECTORS = Prepared(
    select(versions.c.key, past_vectors.c.vector)
    .join(past_vectors, past_vectors.c.content_hash == versions.c.content_hash)
    .where(
        past_vectors.c.space_id == bindparam("space"), versions.c.key.in_(list_parameter("keys"))
    )
)
_TEXTS = Prepared(
    select(versions.c.key, versions.c.content_hash, versions.c.content).where(
        versions.c.key.in_(list_parameter("keys"))
    )
)
_THESE = memories.c.key.in_(list_parameter("keys"))
_KEEP = Prepared(
    insert(versions).from_select(
        ["key", "memory_key", *_KEPT, "folded", "replaced_at"],
        select(
            memories.c.seq,
            memories.c.key,
            *(memories.c[name] for name in _KEPT),
            memories.c.folded,
            later_of(bindparam("now"), memories.c.recorded_at),
        ).where(_THESE),
    )
)
_KEEP_WORDS = Prepared(
    AddWords(
        select(memories.c.seq, text_of(memories)).where(_THESE).order_by(memories.c.seq), past=True
    )
)
_KEEP_VECTORS = Prepared(
    InsertMissing(past_vectors).from_select(  # equal texts have equal vectors
        ["space_id", "content_hash", "vector"],
        select(vectors.c.space_id, vectors.c.content_hash, vectors.c.vector).where(
            vectors.c.memory_key.in_(list_parameter("keys"))
        ),
    )
)


def still_held(known: FromClause) -> ColumnElement[bool]:
    """Whether a row of `rows_at` has the text that its memory holds now."""
    has_same_text = exists().where(
        memories.c.key == known.c.key, memories.c.content_hash == known.c.content_hash
    )
    return known.c.version_key.is_(None) | has_same_text
