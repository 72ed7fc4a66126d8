"""An index of the memories that expire.

Why: what has expired is found without a look at every memory.
Cost: reads every memory once.
Older code: cannot open it; a downgrade drops the index.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the index."""
    expires = sa.text("expires_at IS NOT NULL")
    op.create_index("ix_memories_expires_at", "memories", ["expires_at"], sqlite_where=expires)


def downgrade() -> None:
    """Drop it."""
    op.drop_index("ix_memories_expires_at", "memories")
