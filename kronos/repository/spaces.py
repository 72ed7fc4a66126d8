"""The spaces: one for each embedder whose vectors the store holds, at most one of them active.

`Spaces` works over one open transaction, as `Repository` does. The vectors of a space are in
`kronos.repository.vectors`, and the memories that still lack one in `kronos.repository.pending`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import (
    Connection,
    bindparam,
    case,
    delete,
    func,
    insert,
    literal_column,
    select,
    update,
)

from kronos.db.statements import Prepared
from kronos.db.tables import (
    failures,
    jobs,
    leases,
    past_vectors,
    spaces,
    store,
    tombstones,
    vectors,
)
from kronos.errors import DimensionMismatchError, SpaceChangedError
from kronos.repository.seqs import next_seqs
from kronos.types import Space
from kronos.validation import to_datetime

UNFINISHED = ("open", "ready", "failed")
"""The states of a job whose space is still wanted."""


class Spaces:
    """The spaces, over one open transaction."""

    def __init__(self, connection: Connection, now: int) -> None:
        self._connection = connection
        self._now = now

    # -- Reading --------------------------------------------------------------------------------

    def all(self) -> list[Space]:
        """All spaces, the oldest first."""
        return [_space(row) for row in self._connection.execute(_SPACES)]

    def get(self, space_id: int) -> Space | None:
        """A space by its id; None when it was dropped."""
        return next((space for space in self.all() if space.id == space_id), None)

    def has(self, space: Space) -> bool:
        """Whether a space still exists: the same one, and not another one with its id."""
        return self.now(space) is not None

    def now(self, space: Space) -> Space | None:
        """A space as it is now; None when it is gone, also where another one has its id."""
        found = self.get(space.id)
        return found if found is not None and found.fingerprint == space.fingerprint else None

    def require(self, space: Space) -> None:
        """Check that a space still exists, before vectors that were made for it are stored.

        Raises:
            SpaceChangedError: the space was dropped, or another store's space has its id now.
        """
        if not self.has(space):
            raise SpaceChangedError(f"space {space.id} ({space.model}) is gone")

    def by_fingerprint(self, fingerprint: str) -> Space | None:
        """The space of an embedder."""
        return next((space for space in self.all() if space.fingerprint == fingerprint), None)

    def active(self) -> Space | None:
        """The space that searches are answered from."""
        return next((space for space in self.all() if space.state == "active"), None)

    def last_retired(self) -> Space | None:
        """The space that was the active one before."""
        return max(
            (s for s in self.all() if s.state != "active" and s.activated_seq is not None),
            key=lambda space: (space.activated_seq, space.id),
            default=None,
        )

    def pruned_seq(self, space_id: int) -> int:
        """Tombstones up to this seq are gone: an index that has applied less replays from zero."""
        rows = _PRUNED.fetch(self._connection, space=space_id)
        return int(rows[0][0]) if rows else 0

    # -- Writing --------------------------------------------------------------------------------

    def find_or_create(
        self,
        *,
        fingerprint: str,
        model: str,
        alias: str | None,
        dim: int,
        revision: str | None = None,
    ) -> Space:
        """The space of a fingerprint; a new, building one when there is none.

        It keeps the last alias and revision that were asked for: commands reopen the store with
        them.

        Raises:
            DimensionMismatchError: the fingerprint is known with another width.
        """
        known = self.by_fingerprint(fingerprint)
        if known is None:
            return self._create(fingerprint, model, alias, dim, revision)
        if known.dim != dim:
            raise DimensionMismatchError(
                f"space {known.id} ({known.model}) is {known.dim} wide, but the embedder with the "
                f"same fingerprint makes vectors {dim} wide: one fingerprint must mean one width"
            )
        asked = replace(known, alias=alias or known.alias, revision=revision or known.revision)
        if asked != known:
            self._set(known, alias=asked.alias, revision=asked.revision)
        return asked

    def _create(
        self, fingerprint: str, model: str, alias: str | None, dim: int, revision: str | None
    ) -> Space:
        (seq,) = next_seqs(self._connection, 1)
        self._connection.execute(
            insert(spaces).values(
                id=seq,
                fingerprint=fingerprint,
                model=model,
                alias=alias,
                dim=dim,
                state="building",
                created_at=self._now,
                pruned_seq=0,
                revision=revision,
            )
        )
        return next(space for space in self.all() if space.id == seq)

    def activate(self, space: Space) -> Space:
        """Make a space the active one and retire the one before; the caller saw zero pending.

        Raises:
            SpaceChangedError: the space is gone.
        """
        self.require(space)
        (seq,) = next_seqs(self._connection, 1)
        self._connection.execute(
            update(spaces)
            .where(spaces.c.state == "active")
            .values(state="retired", vectors=VECTOR_COUNT)
        )
        self._connection.execute(update(store).values(active_gain=0))
        self._set(space, state="active", activated_seq=seq)
        return replace(space, state="active", activated_seq=seq)

    def _set(self, space: Space, **values: Any) -> None:
        self._connection.execute(update(spaces).where(spaces.c.id == space.id).values(**values))

    # -- Dropping -------------------------------------------------------------------------------

    def droppable(self, keep: int, *, leftovers: bool = False) -> list[Space]:
        """The spaces that no job needs and that no rollback goes to.

        Args:
            keep: how many retired spaces are kept: those that were active last.
            leftovers: include spaces that never became active and that no job builds: those of
                cancelled jobs and of fallbacks.
        """
        wanted = set(
            self._connection.execute(
                select(jobs.c.space_id).where(jobs.c.state.in_(UNFINISHED))
            ).scalars()
        )
        idle = [s for s in self.all() if s.state != "active" and s.id not in wanted]
        retired = sorted(
            (s for s in idle if s.activated_seq is not None),
            key=lambda space: (space.activated_seq, space.id),
            reverse=True,
        )
        return retired[keep:] + [s for s in idle if leftovers and s.activated_seq is None]

    def drop_some(self, space: Space, limit: int) -> bool:
        """Delete some rows of a space; after the last of them the space, and return True."""
        parts = (vectors.c.memory_key, past_vectors.c.content_hash, tombstones.c.memory_key)
        for column in parts:
            its = column.table.c.space_id == space.id
            some = select(column).where(its).limit(limit).scalar_subquery()
            gone = self._connection.execute(delete(column.table).where(its, column.in_(some)))
            if column.table is vectors:
                count_vectors(self._connection, space.id, -gone.rowcount)
            if gone.rowcount == limit:
                return False
        its_jobs = select(jobs.c.id).where(jobs.c.space_id == space.id).scalar_subquery()
        self._connection.execute(delete(leases).where(leases.c.job_id.in_(its_jobs)))
        for table in (jobs, failures):
            self._connection.execute(delete(table).where(table.c.space_id == space.id))
        self._connection.execute(delete(spaces).where(spaces.c.id == space.id))
        return True


def count_vectors(connection: Connection, space_id: int, change: int) -> None:
    """Note that a space has gained vectors, or lost some."""
    of = {"space": space_id, "change": change}
    if change and not _COUNT_ACTIVE.run(connection, **of):
        COUNT.run(connection, **of)


# Not bound: when a bound value decides whether a partial index may be used, SQL databases compile
# the statement anew for each value.
IS_ACTIVE = spaces.c.state == literal_column("'active'")
"""Whether a space is the active one."""
_GAIN = select(store.c.active_gain).scalar_subquery()
VECTOR_COUNT = spaces.c.vectors + case((IS_ACTIVE, _GAIN), else_=0)
"""How many vectors a space has."""
_ACTIVE = select(spaces.c.id).where(IS_ACTIVE).scalar_subquery()
IS_SERVING = func.coalesce(bindparam("space") == _ACTIVE, 0)
"""1 where the space of the parameter is the active one, else 0."""
_COUNT_ACTIVE = Prepared(
    update(store)
    .where(IS_SERVING == 1)
    .values(active_gain=store.c.active_gain + bindparam("change"))
)
COUNT = Prepared(
    update(spaces)
    .where(spaces.c.id == bindparam("space"))
    .values(vectors=spaces.c.vectors + bindparam("change"))
)
"""Notes a change of the number of vectors of a space that is not the active one."""
_PRUNED = Prepared(select(spaces.c.pruned_seq).where(spaces.c.id == bindparam("space")))
_SPACES = select(
    spaces.c.id,
    spaces.c.fingerprint,
    spaces.c.model,
    spaces.c.alias,
    spaces.c.dim,
    spaces.c.state,
    spaces.c.created_at,
    spaces.c.pruned_seq,
    spaces.c.revision,
    spaces.c.activated_seq,
).order_by(spaces.c.id)


def _space(row: Sequence[Any]) -> Space:
    id, fingerprint, model, alias, dim, state, created_at, *rest = row
    return Space(id, fingerprint, model, alias, dim, state, to_datetime(created_at), *rest)
