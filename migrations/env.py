"""What Alembic runs: migrations on the connection that `kronos.db.schema` hands over.

A developer's `alembic` command hands over none and works on the file named in alembic.ini. The
transaction belongs to whoever opened it, and the host's logging is left alone.
"""

from pathlib import Path

from alembic import context
from sqlalchemy import Connection, make_url

from kronos.db.database import Database
from kronos.db.fulltext.fts5 import is_word_table
from kronos.db.tables import metadata
from kronos.settings import Settings


def migrate(connection: Connection) -> None:
    """Run the migrations that Alembic was asked for."""
    context.configure(
        connection=connection,
        target_metadata=metadata,
        render_as_batch=True,
        include_name=lambda name, type_, _: type_ != "table" or not is_word_table(name or ""),
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
