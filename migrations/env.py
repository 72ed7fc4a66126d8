"""What Alembic runs: migrations on the connection that `kronos.db.schema` passes.

A developer's `alembic` command passes none and works on the file that alembic.ini names. The caller
that opened the transaction ends it, and the host's logging is left alone.
"""

from pathlib import Path

from alembic import context
from sqlalchemy import Connection, make_url

from kronos.db.choice import fulltext_of
from kronos.db.database import Database
from kronos.db.tables import metadata
from kronos.settings import Settings


def migrate(connection: Connection) -> None:
    """Run the migrations that Alembic was asked for."""
    is_index_table = fulltext_of(connection).is_index_table
    context.configure(
        connection=connection,
        target_metadata=metadata,
        render_as_batch=True,
        include_name=lambda name, type_, _: type_ != "table" or not is_index_table(name or ""),
    )
    context.run_migrations()


def migrate_scratch_file() -> None:
    """Do the same for a developer."""
    url = make_url(context.config.get_main_option("sqlalchemy.url", ""))
    database = Database(Path(url.database or ""), Settings())
    with database.migration() as connection:
        migrate(connection)
    database.close()


if context.config.attributes.get("connection") is None:
    migrate_scratch_file()
else:
    migrate(context.config.attributes["connection"])
