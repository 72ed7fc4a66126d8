"""The tables, as SQLAlchemy Core. The migrations build the same schema; a test compares the two.

Laws of the rows, kept by `kronos.repository.memories`:

- `store` has one row. Its `seq` is the last number given to a committed change; it is raised inside
  the write transaction by UPDATE ... RETURNING, so no number is ever given twice.
- A memory's `key` is the seq of its first write and is never given again, so a key that an index
  once forgot never comes back with another meaning.
- (space, key) stands in `vectors` or in `tombstones` or in neither, never in both. A row of
  `vectors` is the embedding of the memory's current text (`content_hash` says so): a unit vector,
  float32 little-endian, as wide as its space. A row of `tombstones` says that an index of this
  space may still hold the key and must forget it.
- At most one space is active. A space's `id` is the seq of its creation, so a dropped space's id
  never comes back; `activated_seq` is the seq of its last activation, null before the first.
  A space's `vectors` is how many rows of `vectors` it has, except those that it gained as the
  active one: `store.active_gain` counts them, as each write changes that row anyway.
- A row of `deletions` says at which seq a memory was deleted. Rows up to `store.pruned_seq` are
  gone, and so may be versions that stood at that seq: a follower of the rows that is older begins
  anew.
- A row of `versions` is a memory as it was from `recorded_at` until `replaced_at`, when it was
  changed or deleted; its `key` is the seq that the memory had then. `memories.recorded_at` is when
  the store learnt the memory's present state. The vectors of texts that no longer stand are kept in
  `past_vectors`, by the text's hash.
- A row of `fields` names a metadata key that has an index of its own, `ix_memories_field_<id>`.
- `folded` is what the full-text indexes read instead of the content; null: they read the content.
  Rows above `store.words_cursor` may lack their fold, if an older Kronos wrote them; null: no row
  does. See `kronos.db.fulltext.base`.
- A row of `failures` says that the space's embedder cannot embed the text with this hash.
- A space has at most one unfinished job. It goes through the texts in the order of their hashes, so
  that equal texts are one piece of work: those up to `cursor` have been handed out, each range of
  hashes with a lease; `sweep` counts how often the cursor went back to the beginning.

Times are microseconds since 1970 UTC.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
    UniqueConstraint,
    text,
)

# Every constraint has a name: migrations that rebuild a table cannot drop one that has none.
metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# 64 bits on every database. SQLite's INTEGER has them too, and as a primary key it is the row's own
# number.
Key = BigInteger().with_variant(Integer(), "sqlite")

store = Table(
    "store",
    metadata,
    Column("id", Key, nullable=False),
    Column("uuid", Text, nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("words_cursor", BigInteger),
    Column("pruned_seq", BigInteger, nullable=False, server_default=text("0")),
    Column("active_gain", BigInteger, nullable=False, server_default=text("0")),
    PrimaryKeyConstraint("id"),
    CheckConstraint("id = 1", name="one_row"),
)

memories = Table(
    "memories",
    metadata,
    Column("key", Key, nullable=False, autoincrement=False),
    Column("id", Text, nullable=False),
    Column("namespace", Text, nullable=False),
    Column("content", Text, nullable=False),
    Column("content_hash", LargeBinary, nullable=False),
    Column("metadata", Text, nullable=False),
    Column("importance", Float, nullable=False),
    Column("parent_id", Text),
    Column("created_at", BigInteger, nullable=False),
    Column("updated_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger),
    Column("seq", BigInteger, nullable=False),
    Column("recorded_at", BigInteger, nullable=False, server_default=text("0")),
    Column("folded", Text),
    PrimaryKeyConstraint("key"),
    UniqueConstraint("id"),
    Index("ix_memories_namespace_key", "namespace", "key"),
    # A reindex works through the texts in the order of their hashes.
    Index("ix_memories_content_hash", "content_hash"),
    # The kept matches of a filter follow the changes; new memories are found by their keys.
    Index(
        "ix_memories_seq",
        "seq",
        sqlite_where=text("seq <> key"),
        postgresql_where=text("seq <> key"),
    ),
    Index("ix_memories_parent_id", "parent_id"),
    Index(
        "ix_memories_expires_at",
        "expires_at",
        sqlite_where=text("expires_at IS NOT NULL"),
        postgresql_where=text("expires_at IS NOT NULL"),
    ),
    # The state at a moment is the present one, except for rows that were changed since.
    Index("ix_memories_recorded_at", "recorded_at"),
)

deletions = Table(
    "deletions",
    metadata,
    Column("seq", BigInteger, nullable=False),
    Column("memory_key", BigInteger, nullable=False),
    PrimaryKeyConstraint("seq", "memory_key"),
    sqlite_with_rowid=False,
)

versions = Table(
    "versions",
    metadata,
    Column("key", Key, nullable=False, autoincrement=False),
    Column("memory_key", BigInteger, nullable=False),
    Column("id", Text, nullable=False),
    Column("namespace", Text, nullable=False),
    Column("content", Text, nullable=False),
    Column("content_hash", LargeBinary, nullable=False),
    Column("metadata", Text, nullable=False),
    Column("importance", Float, nullable=False),
    Column("parent_id", Text),
    Column("created_at", BigInteger, nullable=False),
    Column("updated_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger),
    Column("recorded_at", BigInteger, nullable=False),
    Column("replaced_at", BigInteger, nullable=False),
    Column("folded", Text),
    PrimaryKeyConstraint("key"),
    Index("ix_versions_id_key", "id", "key"),
    Index("ix_versions_memory_key", "memory_key"),
    Index("ix_versions_content_hash", "content_hash"),
    Index("ix_versions_replaced_at", "replaced_at"),
)

spaces = Table(
    "spaces",
    metadata,
    Column("id", Key, nullable=False),
    Column("fingerprint", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("alias", Text),
    Column("dim", Integer, nullable=False),
    Column("state", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("pruned_seq", BigInteger, nullable=False, server_default=text("0")),
    Column("revision", Text),
    Column("activated_seq", BigInteger),
    Column("vectors", BigInteger, nullable=False, server_default=text("0")),
    PrimaryKeyConstraint("id"),
    UniqueConstraint("fingerprint"),
    CheckConstraint("state IN ('building', 'active', 'retired')", name="state"),
    CheckConstraint("dim > 0", name="dim"),
)
# At most one active space, held by the database itself.
Index(
    "uq_spaces_active",
    spaces.c.state,
    unique=True,
    sqlite_where=spaces.c.state == "active",
    postgresql_where=spaces.c.state == "active",
)

vectors = Table(
    "vectors",
    metadata,
    Column("space_id", Key, ForeignKey("spaces.id"), nullable=False),
    Column("memory_key", BigInteger, ForeignKey("memories.key"), nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("content_hash", LargeBinary, nullable=False),
    Column("vector", LargeBinary, nullable=False),
    PrimaryKeyConstraint("space_id", "memory_key"),
    Index("ix_vectors_space_id_seq", "space_id", "seq"),
    # Deleting a memory asks for its vectors in every space.
    Index("ix_vectors_memory_key", "memory_key"),
)

tombstones = Table(
    "tombstones",
    metadata,
    Column("space_id", Key, ForeignKey("spaces.id"), nullable=False),
    Column("memory_key", BigInteger, nullable=False),
    Column("seq", BigInteger, nullable=False),
    PrimaryKeyConstraint("space_id", "memory_key"),
    Index("ix_tombstones_space_id_seq", "space_id", "seq"),
)

past_vectors = Table(
    "past_vectors",
    metadata,
    Column("space_id", Key, ForeignKey("spaces.id"), nullable=False),
    Column("content_hash", LargeBinary, nullable=False),
    Column("vector", LargeBinary, nullable=False),
    PrimaryKeyConstraint("space_id", "content_hash"),
)

links = Table(
    "links",
    metadata,
    Column(
        "source_key", BigInteger, ForeignKey("memories.key", ondelete="CASCADE"), nullable=False
    ),
    Column(
        "target_key", BigInteger, ForeignKey("memories.key", ondelete="CASCADE"), nullable=False
    ),
    Column("relation", Text, nullable=False),
    Column("weight", Float, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    PrimaryKeyConstraint("source_key", "target_key", "relation"),
    Index("ix_links_target_key", "target_key"),
)

accesses = Table(
    "accesses",
    metadata,
    Column(
        "memory_key",
        Key,
        ForeignKey("memories.key", ondelete="CASCADE"),
        nullable=False,
        autoincrement=False,
    ),
    Column("accessed_at", BigInteger, nullable=False),
    PrimaryKeyConstraint("memory_key"),
)

fields = Table(
    "fields",
    metadata,
    Column("id", Key, nullable=False),
    Column("path", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    PrimaryKeyConstraint("id"),
    UniqueConstraint("path"),
)

failures = Table(
    "failures",
    metadata,
    Column("space_id", Key, ForeignKey("spaces.id"), nullable=False),
    Column("content_hash", LargeBinary, nullable=False),
    Column("error", Text, nullable=False),
    Column("failed_at", BigInteger, nullable=False),
    PrimaryKeyConstraint("space_id", "content_hash"),
)

jobs = Table(
    "jobs",
    metadata,
    Column("id", Key, nullable=False),
    Column("space_id", Key, ForeignKey("spaces.id"), nullable=False),
    Column("state", Text, nullable=False),
    Column("activate", Boolean, nullable=False),
    Column("allow_failed", Boolean, nullable=False),
    Column("keep_old", Boolean, nullable=False),
    Column("total", BigInteger, nullable=False),
    Column("done", BigInteger, nullable=False),
    Column("embedded", BigInteger, nullable=False),
    Column("done_before", BigInteger, nullable=False),
    Column("cursor", LargeBinary, nullable=False),
    Column("sweep", BigInteger, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("started_at", BigInteger, nullable=False),
    Column("heartbeat_at", BigInteger, nullable=False),
    Column("finished_at", BigInteger),
    Column("last_error", Text),
    PrimaryKeyConstraint("id"),
    CheckConstraint("state IN ('open', 'ready', 'failed', 'done', 'cancelled')", name="state"),
)
# At most one unfinished job a space, held by the database itself.
_UNFINISHED = text("state IN ('open', 'ready', 'failed')")
Index(
    "uq_jobs_unfinished",
    jobs.c.space_id,
    unique=True,
    sqlite_where=_UNFINISHED,
    postgresql_where=_UNFINISHED,
)

leases = Table(
    "leases",
    metadata,
    Column("job_id", Key, ForeignKey("jobs.id"), nullable=False),
    Column("last_hash", LargeBinary, nullable=False),
    Column("owner", Text, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
    PrimaryKeyConstraint("job_id", "last_hash"),
)
