"""Deletions and changes by seq and by time, and how many vectors a space has.

Why: the kept matches of a filter, and the kept state at a moment, follow only the changes; the
number of pending memories is known without counting vectors.
Cost: two indexes; reads every memory, version and vector once.
Older code: cannot open it; a downgrade drops all of it, and kept matches are found anew.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the table, the columns and the indexes."""
    op.create_table(
        "deletions",
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("memory_key", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("seq", "memory_key", name=op.f("pk_deletions")),
        sqlite_with_rowid=False,
    )
    with op.batch_alter_table("store", recreate="always") as store:
        store.add_column(
            sa.Column("pruned_seq", sa.BigInteger(), nullable=False, server_default=sa.text("0"))
        )
    # Earlier deletions are unknown: every follower begins anew.
    op.execute("UPDATE store SET pruned_seq = seq")
    with op.batch_alter_table("spaces", recreate="always") as spaces:
        spaces.add_column(
            sa.Column("vectors", sa.BigInteger(), nullable=False, server_default=sa.text("0"))
        )
    op.execute(
        "UPDATE spaces SET vectors ="
        " (SELECT count(*) FROM vectors WHERE vectors.space_id = spaces.id)"
    )
    op.create_index("ix_memories_recorded_at", "memories", ["recorded_at"])
    op.create_index("ix_versions_replaced_at", "versions", ["replaced_at"])


def downgrade() -> None:
    """Drop them."""
    op.drop_index("ix_versions_replaced_at", "versions")
    op.drop_index("ix_memories_recorded_at", "memories")
    with op.batch_alter_table("spaces", recreate="always") as spaces:
        spaces.drop_column("vectors")
    with op.batch_alter_table("store", recreate="always") as store:
        store.drop_column("pruned_seq")
    op.drop_table("deletions")
