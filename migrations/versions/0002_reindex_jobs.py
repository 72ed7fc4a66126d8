"""Reindex jobs, their leases, texts that cannot be embedded; where a space's model came from.

Why: a model change is a job that any number of workers share, and that survives them.
Cost: one index over the texts' hashes, which reads every row of `memories` once.
Older code: cannot open it; a downgrade drops the jobs and keeps every memory and vector.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the tables of the jobs and the columns of the spaces."""
    with op.batch_alter_table("spaces", recreate="always") as spaces:
        spaces.add_column(sa.Column("revision", sa.Text(), nullable=True))
        spaces.add_column(sa.Column("activated_seq", sa.BigInteger(), nullable=True))
    op.execute("UPDATE spaces SET activated_seq = 0 WHERE state <> 'building'")
    # From now on a space's id is a seq: the next seq must be above every id that a space has.
    op.execute(
        "UPDATE store SET seq = (SELECT max(id) FROM spaces)"
        " WHERE seq < (SELECT max(id) FROM spaces)"
    )
    op.create_index("ix_memories_content_hash", "memories", ["content_hash"])
    _create_failures()
    _create_jobs()
    _create_leases()


def downgrade() -> None:
    """Drop them; a job that was running begins anew with the texts that are pending then."""
    for table in ("leases", "jobs", "failures"):
        op.drop_table(table)
    op.drop_index("ix_memories_content_hash", "memories")
    with op.batch_alter_table("spaces", recreate="always") as spaces:
        spaces.drop_column("activated_seq")
        spaces.drop_column("revision")


def _create_failures() -> None:
    op.create_table(
        "failures",
        sa.Column("space_id", sa.Integer(), nullable=False),
        sa.Column("content_hash", sa.LargeBinary(), nullable=False),
        sa.Column("error", sa.Text(), nullable=False),
        sa.Column("failed_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("space_id", "content_hash", name=op.f("pk_failures")),
        sa.ForeignKeyConstraint(["space_id"], ["spaces.id"], name=op.f("fk_failures_space_id")),
    )


def _create_jobs() -> None:
    op.create_table(
        "jobs",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("space_id", sa.Integer(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("activate", sa.Boolean(), nullable=False),
        sa.Column("allow_failed", sa.Boolean(), nullable=False),
        sa.Column("keep_old", sa.Boolean(), nullable=False),
        sa.Column("total", sa.BigInteger(), nullable=False),
        sa.Column("done", sa.BigInteger(), nullable=False),
        sa.Column("embedded", sa.BigInteger(), nullable=False),
        sa.Column("done_before", sa.BigInteger(), nullable=False),
        sa.Column("cursor", sa.LargeBinary(), nullable=False),
        sa.Column("sweep", sa.BigInteger(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("started_at", sa.BigInteger(), nullable=False),
        sa.Column("heartbeat_at", sa.BigInteger(), nullable=False),
        sa.Column("finished_at", sa.BigInteger(), nullable=True),
        sa.Column("last_error", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_jobs")),
        sa.CheckConstraint(
            "state IN ('open', 'ready', 'failed', 'done', 'cancelled')",
            name=op.f("ck_jobs_state"),
        ),
        sa.ForeignKeyConstraint(["space_id"], ["spaces.id"], name=op.f("fk_jobs_space_id")),
    )
    unfinished = sa.text("state IN ('open', 'ready', 'failed')")
    op.create_index(
        "uq_jobs_unfinished",
        "jobs",
        ["space_id"],
        unique=True,
        sqlite_where=unfinished,
        postgresql_where=unfinished,
    )


def _create_leases() -> None:
    op.create_table(
        "leases",
        sa.Column("job_id", sa.Integer(), nullable=False),
        sa.Column("last_hash", sa.LargeBinary(), nullable=False),
        sa.Column("owner", sa.Text(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("job_id", "last_hash", name=op.f("pk_leases")),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_leases_job_id")),
    )
