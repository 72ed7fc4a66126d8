"""Texts as the full-text index reads them, where that is not how they were written; expiry.

Why: a text's words are found however they were typed and in every script: a question is folded in
the same way. Expired memories are found by an index.
Cost: indexes the words of every text anew. The texts themselves are folded later, in batches, when
the store is opened: see `kronos.db.fulltext.base`.
Older code: cannot open it; a downgrade keeps every text, and indexes them as they were written.
"""

from __future__ import annotations

import re

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_VIEW = """CREATE VIEW {texts} AS
    SELECT key, coalesce(folded, content) AS content FROM {table}"""
# A later migration that rewrites `memories` or `versions` drops the triggers with the old table: it
# must make them again.
_WORDS = (
    """CREATE VIRTUAL TABLE {words} USING fts5(
    content, content='{texts}', content_rowid='key',
    tokenize='{tokenize}'
)""",
    """CREATE TRIGGER {words}_delete AFTER DELETE ON {table} BEGIN
    INSERT INTO {words} ({words}, rowid, content)
    VALUES ('delete', old.key, coalesce(old.folded, old.content));
END""",
    """CREATE TRIGGER {words}_update AFTER UPDATE OF content, folded ON {table}
WHEN coalesce(old.folded, old.content) IS NOT coalesce(new.folded, new.content) BEGIN
    INSERT INTO {words} ({words}, rowid, content)
    VALUES ('delete', old.key, coalesce(old.folded, old.content));
    INSERT INTO {words} (rowid, content) VALUES (new.key, coalesce(new.folded, new.content));
END""",
)
_WORDS_BEFORE = (
    """CREATE VIRTUAL TABLE {words} USING fts5(
    content, content='{table}', content_rowid='key',
    tokenize='{tokenize}'
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
_TEXTS = {"memory_words": "memory_texts", "version_words": "version_texts"}


def upgrade() -> None:
    """Add the columns, and let the indexes read them."""
    tokenize = _tokenize()
    _drop_words()
    op.add_column("store", sa.Column("words_cursor", sa.BigInteger(), nullable=True))
    for table in _TABLES.values():
        op.add_column(table, sa.Column("folded", sa.Text(), nullable=True))
    # Keys count from 1: no text is folded yet, if there is one.
    op.execute(
        "UPDATE store SET words_cursor = 0"
        " WHERE EXISTS (SELECT 1 FROM memories) OR EXISTS (SELECT 1 FROM versions)"
    )
    for words, table in _TABLES.items():
        op.execute(_VIEW.format(texts=_TEXTS[words], table=table))
    _make_words(_WORDS, tokenize)
    expires = sa.text("expires_at IS NOT NULL")
    op.create_index(
        "ix_memories_expires_at",
        "memories",
        ["expires_at"],
        sqlite_where=expires,
        postgresql_where=expires,
    )


def downgrade() -> None:
    """Drop them; the indexes read the texts again."""
    tokenize = _tokenize()
    _drop_words()
    for texts in _TEXTS.values():
        op.execute(f"DROP VIEW {texts}")
    op.drop_index("ix_memories_expires_at", "memories")
    for table in _TABLES.values():
        op.execute(f"ALTER TABLE {table} DROP COLUMN folded")
    op.execute("ALTER TABLE store DROP COLUMN words_cursor")
    _make_words(_WORDS_BEFORE, tokenize)


def _tokenize() -> str:
    """How texts are cut into words, which a store may have changed."""
    query = sa.text("SELECT sql FROM sqlite_master WHERE name = 'memory_words'")
    found = re.search("tokenize='([^']*)'", op.get_bind().execute(query).scalar_one())
    assert found is not None
    return found[1]


def _drop_words() -> None:
    for words in _TABLES:
        for event in ("delete", "update"):
            op.execute(f"DROP TRIGGER IF EXISTS {words}_{event}")
        op.execute(f"DROP TABLE {words}")


def _make_words(statements: tuple[str, ...], tokenize: str) -> None:
    for words, table in _TABLES.items():
        names = {"words": words, "texts": _TEXTS[words], "table": table, "tokenize": tokenize}
        for statement in statements:
            op.execute(statement.format(**names))
        op.execute(f"INSERT INTO {words} ({words}) VALUES ('rebuild')")  # noqa: S608
