"""The schema's versions: which one a database has, and how it gets to another one.

A version is a file in `migrations/versions/`, named by its number: the history is one line, and the
newest file is what this Kronos needs. A migration happens whole or not at all, after a backup.
Alembic, which takes most of a second to import, is loaded only when something must be migrated.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Connection, inspect, text

from kronos.concurrency.forking import Lock
from kronos.db.fulltext import fts5 as words
from kronos.errors import (
    ConfigurationError,
    MigrationError,
    SchemaOutdatedError,
    SchemaTooNewError,
)

if TYPE_CHECKING:
    from alembic.config import Config

    from kronos.db.database import Database

BASE = "base"
HEAD = "head"
_VERSION_TABLE = "alembic_version"
# Alembic's `op` and `context` are global: two threads must not migrate at once, be it two stores.
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
    """The database's revision; None for an empty database.

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
    """Bring an empty database to head, and make sure that any other one is there.

    Several processes may do so at once.

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
    """Make sure that the database has the schema that this Kronos needs; changes nothing.

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
            f"`kronos db upgrade --store {_store_argument(database.path)}` (it takes a backup "
            "first), or open the store with migrate=True"
        )


def upgrade(database: Database, revision: str = HEAD, *, keep: bool = True) -> Path | None:
    """Bring the database to a later revision, whole or not at all.

    Args:
        database: the database; an empty one gets its first tables.
        revision: the revision to reach.
        keep: take a backup before; False for what is a copy itself.

    Returns:
        The backup taken before; None when there was nothing to do or nothing to keep.

    Raises:
        ConfigurationError: the revision is not known, or earlier than the database's.
        SchemaTooNewError: the database is newer than this Kronos.
        MigrationError: a migration failed; the database is as it was.
    """
    return _migrate(database, revision, upwards=True, keep=keep)


def finish(database: Database, *, wait: bool = True) -> None:
    """Do what a migration left to be done by and by: old texts are folded, a batch a transaction.

    It goes on where it was stopped, be it by a kill; others may read and write meanwhile, or do the
    same. Does nothing where nothing is left to do.

    Args:
        database: one at head.
        wait: for other writers; False leaves the rest to whoever opens the store next.

    Raises:
        StorageError: the database is busy or cannot be written; what was done is kept.
    """
    with database.read() as connection:
        is_left = words.cursor(connection) is not None
    while is_left:
        with database.write(wait=wait) as connection:
            is_left = words.refold_some(connection)


def downgrade(database: Database, revision: str) -> Path | None:
    """Bring the database back to an earlier revision, whole or not at all.

    What the earlier schema cannot hold is lost; "base" has no tables and loses every memory. The
    backup then holds all that is left.

    Args:
        database: the database.
        revision: the revision to go back to.

    Returns:
        The backup taken before; None when there was nothing to do.

    Raises:
        ConfigurationError: the revision is not known, or later than the database's.
        SchemaTooNewError: the database is newer than this Kronos.
        MigrationError: a migration failed; the database is as it was.
    """
    return _migrate(database, revision, upwards=False)


def alembic_config(migrations: Path, connection: Connection | None = None) -> Config:
    """What Alembic is to run, on an open connection."""
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
    if not tables - {_VERSION_TABLE}:
        return None
    found: str | None = None
    if {_VERSION_TABLE, "store"} <= tables:
        found = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
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
    # Imported before the write lock is taken, so that nobody waits for it.
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
        # Under the write lock, so that the backup is what the migration begins with.
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


def _store_argument(path: Path) -> str:
    return shlex.quote(str(path.parent if path.name == "kronos.db" else f"sqlite:///{path}"))
