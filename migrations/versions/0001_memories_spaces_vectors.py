"""The first tables: the store and its seq, memories, spaces, vectors, tombstones.

Why: text, metadata, vectors and the model's identity commit in one transaction.
Cost: none, the database is empty.
Older code: there is none.
"""

from __future__ import annotations

import time
import uuid

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_Key = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """Create the tables, and the one row that gives the store its identity."""
    _create_store()
    _create_memories()
    _create_spaces()
    _create_vectors()
    _create_tombstones()


def downgrade() -> None:
    """Drop the tables and everything in them."""
    for table in ("tombstones", "vectors", "spaces", "memories", "store"):
        op.drop_table(table)


def _create_store() -> None:
    store = op.create_table(
        "store",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("uuid", sa.Text(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_store")),
        sa.CheckConstraint("id = 1", name=op.f("ck_store_one_row")),
    )
    row = {"id": 1, "uuid": str(uuid.uuid4()), "seq": 0, "created_at": time.time_ns() // 1000}
    op.bulk_insert(store, [row])


def _create_memories() -> None:
    op.create_table(
        "memories",
        sa.Column("key", _Key, autoincrement=False, nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("namespace", sa.Text(), nullable=False),
        sa.Column("content", sa.Text(), nullable=False),
        sa.Column("content_hash", sa.LargeBinary(), nullable=False),
        sa.Column("metadata", sa.Text(), nullable=False),
        sa.Column("importance", sa.Float(), nullable=False),
        sa.Column("parent_id", sa.Text(), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=True),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_memories")),
        sa.UniqueConstraint("id", name=op.f("uq_memories_id")),
    )
    op.create_index("ix_memories_namespace_key", "memories", ["namespace", "key"])


def _create_spaces() -> None:
    op.create_table(
        "spaces",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("fingerprint", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("alias", sa.Text(), nullable=True),
        sa.Column("dim", sa.Integer(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("pruned_seq", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_spaces")),
        sa.UniqueConstraint("fingerprint", name=op.f("uq_spaces_fingerprint")),
        sa.CheckConstraint(
            "state IN ('building', 'active', 'retired')", name=op.f("ck_spaces_state")
        ),
        sa.CheckConstraint("dim > 0", name=op.f("ck_spaces_dim")),
    )
    only_active = sa.text("state = 'active'")
    op.create_index(
        "uq_spaces_active",
        "spaces",
        ["state"],
        unique=True,
        sqlite_where=only_active,
        postgresql_where=only_active,
    )


def _create_vectors() -> None:
    op.create_table(
        "vectors",
        sa.Column("space_id", sa.Integer(), nullable=False),
        sa.Column("memory_key", sa.BigInteger(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("content_hash", sa.LargeBinary(), nullable=False),
        sa.Column("vector", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("space_id", "memory_key", name=op.f("pk_vectors")),
        sa.ForeignKeyConstraint(["space_id"], ["spaces.id"], name=op.f("fk_vectors_space_id")),
        sa.ForeignKeyConstraint(
            ["memory_key"], ["memories.key"], name=op.f("fk_vectors_memory_key")
        ),
    )
    op.create_index("ix_vectors_space_id_seq", "vectors", ["space_id", "seq"])
    op.create_index("ix_vectors_memory_key", "vectors", ["memory_key"])


def _create_tombstones() -> None:
    op.create_table(
        "tombstones",
        sa.Column("space_id", sa.Integer(), nullable=False),
        sa.Column("memory_key", sa.BigInteger(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("space_id", "memory_key", name=op.f("pk_tombstones")),
        sa.ForeignKeyConstraint(["space_id"], ["spaces.id"], name=op.f("fk_tombstones_space_id")),
    )
    op.create_index("ix_tombstones_space_id_seq", "tombstones", ["space_id", "seq"])
