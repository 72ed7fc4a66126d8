"""What memories were: kept when they change or go, and read as the store knew them at a moment.

`History` speaks over one open transaction, as `Repository` does. The versions of one memory follow
each other without a gap: each holds from its `recorded_at` to the next one's, also where the clock
was put back meanwhile. So at any moment a memory was exactly one thing, or was not there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    FromClause,
    Row,
    Subquery,
    and_,
    bindparam,
    case,
    delete,
    exists,
    func,
    insert,
    null,
    select,
    union_all,
)

from kronos.db import words
from kronos.db.dialect import Prepared, listed
from kronos.db.tables import memories, past_vectors, vectors, versions
from kronos.db.words import VERSION_WORDS
from kronos.spaces import Spaces, checked_blobs, parts

if TYPE_CHECKING:
    from kronos.types import Space, Vectors

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


def rows_at(moment: int) -> Subquery:
    """The memories as the store knew them at a moment, expired ones included.

    Args:
        moment: microseconds since 1970 UTC.

    Returns:
        A selectable with the columns of `memories` that a memory is read from, `key` among them,
        and `version_key`: null where the row of `memories` itself held already.
    """
    present = select(
        memories.c.key, null().label("version_key"), *(memories.c[name] for name in _KEPT)
    ).where(memories.c.recorded_at <= moment)
    past = select(
        versions.c.memory_key.label("key"),
        versions.c.key.label("version_key"),
        *(versions.c[name] for name in _KEPT),
    ).where(versions.c.recorded_at <= moment, versions.c.replaced_at > moment)
    return union_all(present, past).subquery("known")


@dataclass(frozen=True, slots=True)
class PastText:
    """A text that memories held, and its vector in some space, if it was ever made."""

    key: int
    """The memory's key."""
    content_hash: bytes
    content: str
    vector: bytes | None


class History:
    """What memories were, over one open transaction."""

    def __init__(self, connection: Connection, now: int) -> None:
        self._connection = connection
        self._now = now

    def keep(self, keys: list[int], *, text_goes: bool) -> None:
        """Keep what memories are, before they are changed or deleted.

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
        """What the memories with an id were, and are: rows of `rows_at`, with `replaced_at`.

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
        return int(
            self._connection.execute(select(func.count()).select_from(versions)).scalar_one()
        )

    def key_of(self, id: str) -> int | None:
        """The key of the last memory that had this id and is gone."""
        found = select(versions.c.memory_key).where(versions.c.id == id)
        return self._connection.execute(found.order_by(versions.c.key.desc()).limit(1)).scalar()

    def texts(
        self, known: FromClause, conditions: Sequence[ColumnElement[bool]], space: Space
    ) -> list[PastText]:
        """Those texts of `rows_at` that their memories no longer hold.

        Args:
            known: what `rows_at` returned.
            conditions: which of its rows.
            space: whose vectors are wanted.
        """
        made = and_(
            past_vectors.c.space_id == space.id,
            past_vectors.c.content_hash == known.c.content_hash,
        )
        statement = (
            select(known.c.key, known.c.content_hash, known.c.content, past_vectors.c.vector)
            .select_from(known.outerjoin(past_vectors, made))
            .where(known.c.version_key.is_not(None), ~_held(known), *conditions)
            .order_by(known.c.key)
        )
        return [PastText(*row) for row in self._connection.execute(statement)]

    def add_vectors(self, space: Space, hashes: Sequence[bytes], rows: Vectors) -> None:
        """Keep the vectors of past texts, made after a model change; in a write transaction.

        Raises:
            SpaceChangedError: the space is gone.
        """
        Spaces(self._connection, self._now).require(space)
        blobs = checked_blobs(space, rows)
        self._connection.execute(
            insert(past_vectors).prefix_with("OR IGNORE"),
            [
                {"space_id": space.id, "content_hash": content_hash, "vector": blob}
                for content_hash, blob in zip(hashes, blobs, strict=True)
            ],
        )

    def forget(self, limit: int, *, before: int | None = None) -> int:
        """Forget some of what memories were: those that are gone, and what was before a moment.

        Returns:
            How many versions.
        """
        unwanted = ~exists().where(memories.c.key == versions.c.memory_key)
        if before is not None:
            unwanted |= versions.c.replaced_at < before
        found = select(versions.c.key).where(unwanted).limit(limit)
        keys = self._connection.execute(found).scalars().all()
        for part in parts(keys):
            self._connection.execute(delete(versions).where(versions.c.key.in_(part)))
        return len(keys)

    def forget_vectors(self, limit: int) -> int:
        """Forget some vectors of texts that no version holds. Returns how many."""
        unused = (
            select(past_vectors.c.space_id, past_vectors.c.content_hash)
            .where(~exists().where(versions.c.content_hash == past_vectors.c.content_hash))
            .limit(limit)
        )
        rows = self._connection.execute(unused).all()
        for space_id, content_hash in rows:
            self._connection.execute(
                delete(past_vectors).where(
                    past_vectors.c.space_id == space_id,
                    past_vectors.c.content_hash == content_hash,
                )
            )
        return len(rows)


_THESE = memories.c.key.in_(listed("keys"))
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
_KEEP_WORDS = words.adding(
    VERSION_WORDS,
    select(memories.c.seq, words.text_of(memories)).where(_THESE).order_by(memories.c.seq),
)
_KEEP_VECTORS = Prepared(
    insert(past_vectors)
    .prefix_with("OR IGNORE")  # equal texts have equal vectors
    .from_select(
        ["space_id", "content_hash", "vector"],
        select(vectors.c.space_id, vectors.c.content_hash, vectors.c.vector).where(
            vectors.c.memory_key.in_(listed("keys"))
        ),
    )
)


def still_held(known: FromClause) -> ColumnElement[bool]:
    """Whether a row of `rows_at` has the text that its memory holds now."""
    return known.c.version_key.is_(None) | _held(known)


def _held(known: FromClause) -> ColumnElement[bool]:
    return exists().where(
        memories.c.key == known.c.key, memories.c.content_hash == known.c.content_hash
    )
