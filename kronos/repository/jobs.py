"""The rows of the reindex jobs: which worker has which texts, and how far each job has come.

`Jobs` works over one open transaction, as `Repository` does. The texts of a job are handed out in
the order of their hashes: a claim moves the job's cursor by compare-and-set and leaves a lease, so
no two workers hold one text, in whichever threads, processes or hosts they run. A lease that ran
out, or whose worker is gone, is dropped; its texts are still pending, and the next sweep finds
them. There is no other coordinator.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, case, delete, insert, select, update

from kronos.db.tables import jobs, leases
from kronos.repository.owners import is_gone
from kronos.repository.pending import Pending
from kronos.repository.seqs import next_seqs
from kronos.repository.spaces import UNFINISHED, Spaces
from kronos.types import Job, JobState, Space
from kronos.validation import to_datetime

_FINISHED_JOBS_KEPT = 20


@dataclass(frozen=True, slots=True)
class JobOptions:
    """The options of a job; None keeps what the job has, or takes the default."""

    activate: bool | None = None
    allow_failed: bool | None = None
    keep_old: bool | None = None

    def given(self) -> dict[str, bool]:
        """The options that are not None."""
        named = {
            "activate": self.activate,
            "allow_failed": self.allow_failed,
            "keep_old": self.keep_old,
        }
        return {name: value for name, value in named.items() if value is not None}


_DEFAULTS = {"activate": True, "allow_failed": False, "keep_old": False}


@dataclass(frozen=True, slots=True)
class Position:
    """How far a job's texts have been handed out."""

    state: JobState
    sweep: int
    cursor: bytes
    remaining: int
    """Memories to come, as far as the job has counted."""


CANCELLED = Position("cancelled", 0, b"", 0)
"""The position of a job that is gone."""


@dataclass(frozen=True, slots=True)
class Advance:
    """How far a job has come, in memories."""

    state: JobState
    done: int
    total: int


class Jobs:
    """The jobs and their leases, over one open transaction."""

    def __init__(self, connection: Connection, now: int) -> None:
        self._connection = connection
        self._now = now
        self._spaces = Spaces(connection, now)
        self._pending = Pending(connection, now)

    # -- A job's life ---------------------------------------------------------------------------

    def open(self, space: Space, options: JobOptions) -> int:
        """Join a space's unfinished job, or begin one: its id.

        An unfinished job without a live worker begins a new attempt, in which failed texts are
        tried again. Of the jobs that are to activate their space only the last one that was opened
        goes on: the others are cancelled.
        """
        found = self._connection.execute(
            select(jobs.c.id, jobs.c.state).where(
                jobs.c.space_id == space.id, jobs.c.state.in_(UNFINISHED)
            )
        ).one_or_none()
        if found is None:
            job_id = self._begin(space, options)
        else:
            job_id, state = found
            given = options.given()
            if given:
                self._set(job_id, **given)
            if state != "open" or not self.live_leases(job_id):
                self._begin_again(job_id, space)
        if space.state != "active":
            self._supersede(job_id)
        return job_id

    def _begin(self, space: Space, options: JobOptions) -> int:
        (job_id,) = next_seqs(self._connection, 1)
        self._pending.retry_failures(space.id)
        self._connection.execute(
            insert(jobs).values(
                id=job_id,
                space_id=space.id,
                state="open",
                total=self._pending.count(space.id),
                done=0,
                embedded=0,
                done_before=0,
                cursor=b"",
                sweep=0,
                attempts=1,
                created_at=self._now,
                started_at=self._now,
                heartbeat_at=self._now,
                **{**_DEFAULTS, **options.given()},
            )
        )
        self._prune()
        return job_id

    def _begin_again(self, job_id: int, space: Space) -> None:
        self._pending.retry_failures(space.id)
        self._connection.execute(
            update(jobs)
            .where(jobs.c.id == job_id)
            .values(
                state="open",
                total=jobs.c.done + self._pending.count(space.id),
                done_before=jobs.c.done,
                attempts=jobs.c.attempts + 1,
                started_at=self._now,
                heartbeat_at=self._now,
                last_error=None,
            )
        )
        self.sweep_again(job_id)

    def _supersede(self, job_id: int) -> None:
        wanted = select(jobs.c.activate).where(jobs.c.id == job_id).scalar_subquery()
        others = (
            select(jobs.c.id)
            .where(jobs.c.id != job_id, jobs.c.state.in_(UNFINISHED), jobs.c.activate, wanted)
            .where(jobs.c.space_id != self._active_id())
        )
        for other in self._connection.execute(others).scalars().all():
            self.finish(other, "cancelled", f"job {job_id} took its place")

    def _active_id(self) -> int:
        active = self._spaces.active()
        return 0 if active is None else active.id

    def _prune(self) -> None:
        """Delete old jobs that are over."""
        over = (
            select(jobs.c.id)
            .where(jobs.c.state.not_in(UNFINISHED))
            .order_by(jobs.c.id.desc())
            .offset(_FINISHED_JOBS_KEPT)
        )
        # Not every database takes an offset without a limit.
        old = self._connection.execute(over.limit(1000)).scalars().all()
        self._connection.execute(delete(jobs).where(jobs.c.id.in_(old)))

    def finish(self, job_id: int, state: JobState, error: str | None = None) -> None:
        """End a job; its leases go with it."""
        self._connection.execute(delete(leases).where(leases.c.job_id == job_id))
        values: dict[str, Any] = {} if error is None else {"last_error": error}
        self._set(job_id, state=state, finished_at=self._now, heartbeat_at=self._now, **values)

    def note_error(self, job_id: int, error: str | None) -> None:
        """Note what stopped a worker, or what it waits for; the job stays open."""
        self._set(job_id, last_error=error, heartbeat_at=self._now)

    def _set(self, job_id: int, **values: Any) -> None:
        self._connection.execute(update(jobs).where(jobs.c.id == job_id).values(**values))

    # -- A job's texts --------------------------------------------------------------------------

    def position(self, job_id: int) -> Position:
        """How far the texts have been handed out."""
        row = self._connection.execute(
            select(jobs.c.state, jobs.c.sweep, jobs.c.cursor, jobs.c.total - jobs.c.done).where(
                jobs.c.id == job_id
            )
        ).one_or_none()
        return CANCELLED if row is None else Position(*row)

    def claim(
        self, job_id: int, seen: Position, last_hash: bytes, *, owner: str, lease_s: float
    ) -> bool:
        """Take the texts from where the cursor was seen up to a hash; False when it has moved."""
        moved = self._connection.execute(
            update(jobs)
            .where(
                jobs.c.id == job_id,
                jobs.c.state == "open",
                jobs.c.sweep == seen.sweep,
                jobs.c.cursor == seen.cursor,
            )
            .values(cursor=last_hash, heartbeat_at=self._now)
        )
        if moved.rowcount != 1:
            return False
        self._connection.execute(
            insert(leases).values(
                job_id=job_id, last_hash=last_hash, owner=owner, expires_at=_in(lease_s)
            )
        )
        return True

    def release(self, job_id: int, owner: str, last_hash: bytes | None = None) -> None:
        """Give back one lease of an owner, or all of them."""
        its = delete(leases).where(leases.c.job_id == job_id, leases.c.owner == owner)
        if last_hash is not None:
            its = its.where(leases.c.last_hash == last_hash)
        self._connection.execute(its)

    def renew(self, job_id: int, owner: str, lease_s: float) -> None:
        """Prolong the leases of an owner that still works on their texts."""
        self._connection.execute(
            update(leases)
            .where(leases.c.job_id == job_id, leases.c.owner == owner)
            .values(expires_at=_in(lease_s))
        )
        self._set(job_id, heartbeat_at=self._now)

    def live_leases(self, job_id: int) -> list[str]:
        """The owners that hold a lease of a job; leases of dead owners are dropped."""
        rows = self._connection.execute(
            select(leases.c.last_hash, leases.c.owner, leases.c.expires_at).where(
                leases.c.job_id == job_id
            )
        ).all()
        now = _in(0)
        dead = [row for row in rows if row.expires_at <= now or is_gone(row.owner)]
        for row in dead:
            self.release(job_id, row.owner, row.last_hash)
        return [row.owner for row in rows if row not in dead]

    def sweep_again(self, job_id: int) -> None:
        """Put the cursor back to the beginning, for texts that are still pending or again."""
        self._set(job_id, cursor=b"", sweep=jobs.c.sweep + 1)

    def advance(self, job_id: int, *, done: int, embedded: int) -> Advance:
        """Count the memories that got their vectors from a worker."""
        statement = (
            update(jobs)
            .where(jobs.c.id == job_id)
            .values(
                done=jobs.c.done + done,
                embedded=jobs.c.embedded + embedded,
                # More than were pending at the start: texts were added meanwhile.
                total=case(
                    (jobs.c.done + done > jobs.c.total, jobs.c.done + done), else_=jobs.c.total
                ),
                heartbeat_at=self._now,
            )
            .returning(jobs.c.state, jobs.c.done, jobs.c.total)
        )
        row = self._connection.execute(statement).one_or_none()
        return Advance("cancelled", 0, 0) if row is None else Advance(*row)

    # -- Reading --------------------------------------------------------------------------------

    def options(self, job_id: int) -> dict[str, bool]:
        """The options of a job; those of a job that is gone activate nothing."""
        row = self._connection.execute(
            select(jobs.c.activate, jobs.c.allow_failed, jobs.c.keep_old).where(jobs.c.id == job_id)
        ).one_or_none()
        if row is None:
            return {"activate": False, "allow_failed": False, "keep_old": True}
        return dict(row._mapping)

    def all(self, *, unfinished: bool = False) -> list[Job]:
        """All jobs, or only unfinished ones, the newest first."""
        statement = select(jobs).order_by(jobs.c.id.desc())
        if unfinished:
            statement = statement.where(jobs.c.state.in_(UNFINISHED))
        rows = self._connection.execute(statement).mappings().all()
        spaces = {space.id: space for space in self._spaces.all()}
        return [self._job(dict(row), spaces[row["space_id"]]) for row in rows]

    def _job(self, row: dict[str, Any], space: Space) -> Job:
        for name in ("space_id", "cursor", "sweep"):
            del row[name]
        seconds = (row["heartbeat_at"] - row["started_at"]) / 1e6
        made = row["done"] - row.pop("done_before")
        for name in ("created_at", "started_at", "heartbeat_at", "finished_at"):
            row[name] = None if row[name] is None else to_datetime(row[name])
        return Job(
            space=space,
            pending=self._pending.count(space.id),
            failed=self._pending.failed_count(space.id),
            workers=len(self.owners(row["id"])),
            rate=made / seconds if seconds > 0 else 0.0,
            **row,
        )

    def owners(self, job_id: int) -> set[str]:
        """The workers that hold a lease of a job."""
        statement = select(leases.c.owner).where(
            leases.c.job_id == job_id, leases.c.expires_at > _in(0)
        )
        found = self._connection.execute(statement).scalars().all()
        return {owner for owner in found if not is_gone(owner)}


def _in(seconds: float) -> int:
    """A time `seconds` from now, in microseconds since 1970 UTC, by the machine's own clock."""
    return time.time_ns() // 1000 + int(seconds * 1e6)
