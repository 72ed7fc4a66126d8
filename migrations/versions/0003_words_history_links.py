"""The words of every text, the past of the memories, links between them, fields with an index.

Why: memories are found by their words too, their past can be read, and they lead to others.
Cost: rewrites `memories` once and indexes the words of every text.
Older code: cannot open it; a downgrade drops the past and the links, and keeps every memory and
vector.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_Key = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
# The triggers keep the words of rows that change; the words of new rows are added with the rows. A
# later migration that rewrites `memories` or `versions` drops the triggers with the old table, and
# must make them again.
_WORDS = (
    """CREATE VIRTUAL TABLE {words} USING fts5(
    content, content='{table}', content_rowid='key',
    tokenize='porter unicode61 remove_diacritics 2'
)""",
    """CREATE TRIGGER {words}_delete AFTER DELETE ON {table} BEGIN
    INSERT INTO {words} ({words}, rowid, content) VALUES ('delete', old.key, old.content);
END""",
    """CREATE TRIGGER {words}_update AFTER UPDATE OF content ON {table}
WHEN old.content IS NOT new.content BEGIN
    INSERT INTO {words} ({words}, rowid, content) VALUES ('delete', old.key, old.content);
    INSERT INTO {words} (rowid, content) VALUES (new.key, new.content);
END""",
)
_TABLES = {"memory_words": "memories", "version_words": "versions"}


def upgrade() -> None:
    """Add the tables, and fill the words."""
    with op.batch_alter_table("memories", recreate="always") as memories:
        memories.add_column(
            sa.Column("recorded_at", sa.BigInteger(), nullable=False, server_default=sa.text("0"))
        )
    # The state of a memory before its last change is unknown.
    op.execute("UPDATE memories SET recorded_at = updated_at")
    op.create_index("ix_memories_seq", "memories", ["seq"])
    op.create_index("ix_memories_parent_id", "memories", ["parent_id"])
    _create_versions()
    _create_past_vectors()
    _create_links()
    _create_accesses()
    _create_fields()
    for words, table in _TABLES.items():
        for statement in _WORDS:
            op.execute(statement.format(words=words, table=table))
        op.execute(f"INSERT INTO {words} ({words}) VALUES ('rebuild')")  # noqa: S608


def downgrade() -> None:
    """Drop them."""
    fields = op.get_bind().execute(sa.text("SELECT id FROM fields")).scalars().all()
    for number in fields:
        op.execute(f"DROP INDEX IF EXISTS ix_memories_field_{number}")
    for words in _TABLES:
        for event in ("delete", "update"):
            op.execute(f"DROP TRIGGER {words}_{event}")
        op.execute(f"DROP TABLE {words}")
    for table in ("fields", "accesses", "links", "past_vectors", "versions"):
        op.drop_table(table)
    op.drop_index("ix_memories_parent_id", "memories")
    op.drop_index("ix_memories_seq", "memories")
    with op.batch_alter_table("memories", recreate="always") as memories:
        memories.drop_column("recorded_at")


def _create_versions() -> None:
    op.create_table(
        "versions",
        sa.Column("key", _Key, autoincrement=False, nullable=False),
        sa.Column("memory_key", sa.BigInteger(), nullable=False),
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
        sa.Column("recorded_at", sa.BigInteger(), nullable=False),
        sa.Column("replaced_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_versions")),
    )
    op.create_index("ix_versions_id_key", "versions", ["id", "key"])
    op.create_index("ix_versions_memory_key", "versions", ["memory_key"])
    op.create_index("ix_versions_content_hash", "versions", ["content_hash"])


def _create_past_vectors() -> None:
    op.create_table(
        "past_vectors",
        sa.Column("space_id", sa.Integer(), nullable=False),
        sa.Column("content_hash", sa.LargeBinary(), nullable=False),
        sa.Column("vector", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("space_id", "content_hash", name=op.f("pk_past_vectors")),
        sa.ForeignKeyConstraint(["space_id"], ["spaces.id"], name=op.f("fk_past_vectors_space_id")),
    )


def _create_links() -> None:
    op.create_table(
        "links",
        sa.Column("source_key", sa.BigInteger(), nullable=False),
        sa.Column("target_key", sa.BigInteger(), nullable=False),
        sa.Column("relation", sa.Text(), nullable=False),
        sa.Column("weight", sa.Float(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("source_key", "target_key", "relation", name=op.f("pk_links")),
        sa.ForeignKeyConstraint(
            ["source_key"], ["memories.key"], name=op.f("fk_links_source_key"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["target_key"], ["memories.key"], name=op.f("fk_links_target_key"), ondelete="CASCADE"
        ),
    )
    op.create_index("ix_links_target_key", "links", ["target_key"])


def _create_accesses() -> None:
    op.create_table(
        "accesses",
        sa.Column("memory_key", _Key, autoincrement=False, nullable=False),
        sa.Column("accessed_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("memory_key", name=op.f("pk_accesses")),
        sa.ForeignKeyConstraint(
            ["memory_key"],
            ["memories.key"],
            name=op.f("fk_accesses_memory_key"),
            ondelete="CASCADE",
        ),
    )


def _create_fields() -> None:
    op.create_table(
        "fields",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_fields")),
        sa.UniqueConstraint("path", name=op.f("uq_fields_path")),
    )
