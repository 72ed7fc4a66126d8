"""The versions of the schema: which one a database has, and how it gets to another one.

A version is a file in `migrations/versions/`, named by its number. The history is one line, and the
newest file is the schema that this Kronos needs. A migration happens whole or not at all, after a
backup. Alembic is slow to import, and loaded only when a database must be migrated.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Connection, column, inspect, select, table

from kronos.concurrency.forking import Lock
from kronos.db.choice import fulltext_of
from kronos.errors import (
    ConfigurationError,
    MigrationError,
    SchemaOutdatedError,
    SchemaTooNewError,
)
from kronos.settings import DATABASE_NAME

if TYPE_CHECKING:
    from alembic.config import Config

    from kronos.db.database import Database

BASE = "base"
HEAD = "head"
_VERSION = table("alembic_version", column("version_num"))
# Alembic's `op` and `context` are global: two threads must not migrate at once, even two stores.
_alembic = Lock()


@dataclass(frozen=True, slots=True)
class Revision:
    """One version of the schema."""

    id: str
    summary: str


def migrations_path() -> Path:
    """The folder of the migrations: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    packaged = package / "_migrations"
    return packaged if packaged.is_dir() else package.with_name("migrations")


def head() -> str:
    """The revision that this Kronos needs."""
    return _known()[-1]


def current(database: Database) -> str | None:
    """The revision of a database; None for an empty one.

    Raises:
        ConfigurationError: the database holds tables that are not Kronos's.
    """
    with database.read() as connection:
        return _revision(connection, database)


def history() -> tuple[Revision, ...]:
    """Every revision that this Kronos knows, the oldest first."""
    from alembic.script import ScriptDirectory

    script = ScriptDirectory.from_config(alembic_config(migrations_path()))
    found = [Revision(each.revision, each.doc) for each in script.walk_revisions()]
    return tuple(reversed(found))


def prepare(database: Database, *, migrate: bool = False) -> None:
    """Bring an empty database to head, and check that any other one is at head.

    Several processes may do this at once.

    Args:
        database: the database to open.
        migrate: upgrade an older one, after a backup, instead of refusing it.

    Raises:
        SchemaOutdatedError: the database is older, and `migrate` is not set.
        SchemaTooNewError: the database is newer.
        MigrationError: the upgrade failed; the database is as it was.
        ConfigurationError: the database holds tables that are not Kronos's.
    """
    if migrate or current(database) is None:
        upgrade(database)
    check(database)


def check(database: Database) -> None:
    """Check that a database has the schema that this Kronos needs; changes nothing.

    Raises:
        SchemaOutdatedError: it is older, or empty.
        SchemaTooNewError: it is newer.
        ConfigurationError: the database holds tables that are not Kronos's.
    """
    found = current(database)
    _refuse_unknown(found, database)
    if found != head():
        raise SchemaOutdatedError(
            f"{database.path} has schema {found or 'none'}, this Kronos needs {head()}: run "
            f"`kronos db upgrade --store {_store_argument(database)}` (it takes a backup "
            "first), or open the store with migrate=True"
        )


def upgrade(database: Database, revision: str = HEAD, *, keep: bool = True) -> Path | None:
    """Bring a database to a later revision, whole or not at all.

    Args:
        database: the database; an empty one gets its first tables.
        revision: the revision to reach.
        keep: take a backup first; False for a database that is a copy itself.

    Returns:
        The backup; None when there was nothing to do or nothing to keep.

    Raises:
        ConfigurationError: the revision is not known, or earlier than the database's.
        SchemaTooNewError: the database is newer than this Kronos.
        MigrationError: a migration failed; the database is as it was.
    """
    return _migrate(database, revision, upwards=True, keep=keep)


def finish(database: Database, *, wait: bool = True) -> None:
    """Do the work that a migration left for later: fold old texts, a batch a transaction.

    It goes on where it was stopped, also after a kill. Other processes may read and write
    meanwhile, or do the same work. Does nothing when no text is left.

    Args:
        database: one at head.
        wait: for other writers; False leaves the rest to the next opening of the store.

    Raises:
        StorageError: the database is busy or cannot be written; finished batches are kept.
    """
    with database.read() as connection:
        is_left = fulltext_of(connection).cursor(connection) is not None
    while is_left:
        with database.write(wait=wait) as connection:
            is_left = fulltext_of(connection).refold_some(connection)


def downgrade(database: Database, revision: str) -> Path | None:
    """Bring a database back to an earlier revision, whole or not at all.

    Data that the earlier schema cannot hold is lost; "base" has no tables and loses every memory.
    Then only the backup holds it.

    Args:
        database: the database.
        revision: the revision to go back to.

    Returns:
        The backup; None when there was nothing to do.

    Raises:
        ConfigurationError: the revision is not known, or later than the database's.
        SchemaTooNewError: the database is newer than this Kronos.
        MigrationError: a migration failed; the database is as it was.
    """
    return _migrate(database, revision, upwards=False)


def alembic_config(migrations: Path, connection: Connection | None = None) -> Config:
    """Alembic's configuration for some migrations, on an open connection."""
    from alembic.config import Config

    config = Config()
    # The value passes through ConfigParser, to which a percent sign means a variable.
    config.set_main_option("script_location", str(migrations).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


def _known() -> list[str]:
    files = (migrations_path() / "versions").glob("[0-9]*.py")
    return sorted(file.name.partition("_")[0] for file in files)


def _revision(connection: Connection, database: Database) -> str | None:
    tables = set(inspect(connection).get_table_names())
    if not tables - {_VERSION.name}:
        return None
    found: str | None = None
    if {_VERSION.name, "store"} <= tables:
        found = connection.execute(select(_VERSION.c.version_num)).scalar()
    if found is None:
        raise ConfigurationError(
            f"{database.path} is the database of another program: it holds "
            f"{', '.join(sorted(tables)[:5])} and no Kronos store. Nothing was changed; choose "
            "another storage_path",
            field="storage_path",
        )
    return found


def _refuse_unknown(found: str | None, database: Database) -> None:
    if found is not None and found not in _known():
        raise SchemaTooNewError(
            f"{database.path} has schema {found}, and {head()} is the newest that this Kronos "
            "knows: upgrade the package kronos-memory. Nothing was changed"
        )


def _migrate(database: Database, revision: str, *, upwards: bool, keep: bool = True) -> Path | None:
    target = _resolve(revision)
    if (current(database) or BASE) == target:
        return None
    # Imported before the write lock is taken, so that no other writer waits for it.
    import alembic.command  # noqa: F401

    with database.migration() as connection:
        found = _revision(connection, database)
        if (found or BASE) == target:
            return None
        _refuse_unknown(found, database)
        _refuse_direction(found or BASE, target, upwards=upwards)
        if found is None:
            _run(connection, target, upwards=upwards)
            return None
        # Under the write lock, so that the migration begins with exactly what the backup holds.
        backup = _back_up(database, found) if keep else None
        try:
            _run(connection, target, upwards=upwards)
            _check_foreign_keys(database, connection)
        except Exception as exc:
            raise MigrationError(
                f"migrating from schema {found} to {target} failed: {exc}. {database.path} is as "
                f"it was before{'' if backup is None else f'; a backup lies in {backup}'}"
            ) from exc
    return backup


def _resolve(revision: str) -> str:
    known = _known()
    target = known[-1] if revision == HEAD else revision
    if target not in (BASE, *known):
        raise ConfigurationError(
            f"there is no revision {revision!r}: known are {HEAD}, {BASE}, {', '.join(known)}",
            field="revision",
        )
    return target


def _refuse_direction(found: str, target: str, *, upwards: bool) -> None:
    line = [BASE, *_known()]
    if (line.index(found) < line.index(target)) != upwards:
        raise ConfigurationError(
            f"the database has schema {found}: use {'downgrade' if upwards else 'upgrade'} to "
            f"reach {target}",
            field="revision",
        )


def _back_up(database: Database, found: str) -> Path:
    moment = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%S.%fZ")
    backup = database.path.with_name(f"{database.path.name}.backup-{found}-{moment}")
    database.backup(backup)
    return backup


def _run(connection: Connection, target: str, *, upwards: bool) -> None:
    from alembic import command

    config = alembic_config(migrations_path(), connection)
    with _alembic:
        (command.upgrade if upwards else command.downgrade)(config, target)


def _check_foreign_keys(database: Database, connection: Connection) -> None:
    problems = database.dialect.foreign_key_problems(connection)
    if problems:
        raise MigrationError("; ".join(problems[:5]))


def _store_argument(database: Database) -> str:
    is_in_a_folder = database.path.name == DATABASE_NAME
    return shlex.quote(str(database.path.parent) if is_in_a_folder else database.dialect.url)
