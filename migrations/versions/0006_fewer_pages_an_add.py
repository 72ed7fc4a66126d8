"""An add writes two pages less: no entry in the index of changes, and no count in its space's row.

Why: a memory that was never changed has its key as its seq, so the index of changes needs only the
others; and the row of `store`, which each write changes, counts what the active space gains.
Cost: one index is made anew, which reads every memory once.
Older code: cannot open it; a downgrade restores both.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Narrow the index, and add the column."""
    op.drop_index("ix_memories_seq", "memories")
    changed = sa.text("seq <> key")
    op.create_index(
        "ix_memories_seq", "memories", ["seq"], sqlite_where=changed, postgresql_where=changed
    )
    with op.batch_alter_table("store", recreate="always") as store:
        store.add_column(
            sa.Column("active_gain", sa.BigInteger(), nullable=False, server_default=sa.text("0"))
        )


def downgrade() -> None:
    """Widen the index, and count in the space's row."""
    op.execute(
        "UPDATE spaces SET vectors = vectors + (SELECT active_gain FROM store)"
        " WHERE state = 'active'"
    )
    with op.batch_alter_table("store", recreate="always") as store:
        store.drop_column("active_gain")
    op.drop_index("ix_memories_seq", "memories")
    op.create_index("ix_memories_seq", "memories", ["seq"])
