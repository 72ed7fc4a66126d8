"""The commands `kronos db`: the schema of the database and its revisions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from kronos.cli.common import Json, Store, open_database
from kronos.cli.printing import out, print_json, print_result

if TYPE_CHECKING:
    from kronos.db.database import Database

db = typer.Typer(no_args_is_help=True, help="Inspect, upgrade or downgrade the database schema.")


@db.command()
def upgrade(
    revision: Annotated[str, typer.Argument(help="A revision.")] = "head",
    store: Store = None,
    as_json: Json = False,
) -> None:
    """Upgrade the database to a newer schema, after a backup."""
    from kronos.db import schema

    def change(database: Database) -> Path | None:
        backup = schema.upgrade(database, revision)
        if schema.current(database) == schema.head():
            schema.finish(database)
        return backup

    _migrate(store, change, as_json)


@db.command()
def downgrade(
    revision: Annotated[str, typer.Argument(help="A revision.")],
    store: Store = None,
    as_json: Json = False,
) -> None:
    """Downgrade the database to an older schema, after a backup."""
    from kronos.db import schema

    _migrate(store, lambda database: schema.downgrade(database, revision), as_json)


@db.command()
def current(store: Store = None, as_json: Json = False) -> None:
    """Show the revision of the database."""
    from kronos.db import schema

    with open_database(store) as database:
        revision = schema.current(database)
    print_result({"revision": revision}, revision or "none: the database is empty", as_json)


@db.command()
def check(store: Store = None, as_json: Json = False) -> None:
    """Check that the schema is the one of this Kronos; exit code 1 if it is not."""
    from kronos.db import schema

    with open_database(store) as database:
        schema.check(database)
    print_result({"ok": True}, f"the schema is up to date ({schema.head()})", as_json)


@db.command()
def history(as_json: Json = False) -> None:
    """List all revisions, the oldest first."""
    from kronos.db import schema

    revisions = schema.history()
    if as_json:
        print_json([{"revision": r.id, "description": r.summary} for r in revisions])
        return
    for revision in revisions:
        out.print(f"{revision.id}  {escape(revision.summary)}")


def _migrate(store: str | None, change: Callable[[Any], Path | None], as_json: bool) -> None:
    from kronos.db import schema

    with open_database(store) as database:
        before = schema.current(database)
        backup = change(database)
        after = schema.current(database)
    saved = "" if backup is None else f"; the backup is {backup}"
    print_result(
        {"before": before, "after": after, "backup": None if backup is None else str(backup)},
        f"the schema changed from {before or 'none'} to {after or 'none'}{saved}",
        as_json,
    )
