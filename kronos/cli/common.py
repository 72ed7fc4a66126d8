"""What the commands share: options, opening a store, reading what was typed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kronos.cli.printing import progress_bar
from kronos.errors import ConfigurationError, InputError
from kronos.settings import DEFAULT_STORE, Location, default_store

if TYPE_CHECKING:
    from kronos.store import MemoryStore
    from kronos.types import Space

Store = Annotated[
    str | None,
    typer.Option(
        "--store",
        "-s",
        metavar="PATH",
        help=f"The store: a folder or a SQLAlchemy URL.  [KRONOS_STORE, else {DEFAULT_STORE}]",
    ),
]
Namespace = Annotated[
    str | None,
    typer.Option("--namespace", "-n", help='A namespace and all below it; "*" is every one.'),
]
Where = Annotated[
    str | None,
    typer.Option("--where", "-w", metavar="JSON", help="""A filter: '{"year": {"$gte": 2020}}'."""),
]
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        help='mini, base, large, code, "hash", a model\'s name or a folder; a store keeps the one '
        "it has.",
    ),
]
AsOf = Annotated[
    str | None,
    typer.Option(
        "--as-of", metavar="TIME", help="As the store knew it then: ISO 8601, with a time zone."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Limit = Annotated[int, typer.Option("--limit", "-l", help="How many at most.")]


@contextmanager
def open_store(
    store: str | None,
    *,
    model: str | None = None,
    create: bool = False,
    embeds: bool = True,
    device: str = "auto",
) -> Iterator[MemoryStore]:
    """Open a store with the model it has, so that no command changes the model by accident."""
    from kronos.store import MemoryStore

    path = store or default_store()
    exists = Location.of(path).database.exists()
    if not exists and not create:
        raise _no_store(path)
    options: dict[str, Any] = {"embedding_model": (model or "mini") if embeds else None}
    if embeds and exists and model is None:
        space = _active_space(path)
        # With its width: that of hash vectors is anybody's choice.
        options = {"embedding_model": space.alias, "embedding_dim": space.dim}
    with progress_bar("embedding for the new model") as progress:
        memories = MemoryStore.open(path, device=device, progress=progress, **options)
    with memories:
        yield memories


def _active_space(path: str) -> Space:
    """The space whose model, as its maker asked for it, a command keeps."""
    from kronos.store import MemoryStore

    with MemoryStore.open(path, embedding_model=None) as memories:
        (space,) = [s.space for s in memories.stats().spaces if s.space.state == "active"]
    return space


@contextmanager
def open_database(store: str | None) -> Iterator[Any]:
    """Open the database alone, whatever its schema is."""
    from kronos.db.engine import Database
    from kronos.settings import Settings

    path = store or default_store()
    location = Location.of(path)
    if not location.database.exists():
        raise _no_store(path)
    database = Database(location.database, Settings.from_env())
    try:
        yield database
    finally:
        database.close()


def _no_store(path: str) -> ConfigurationError:
    return ConfigurationError(
        f"there is no store at {path}: name one with --store, or make one with `kronos add` "
        "or `kronos import`"
    )


def parse_json(text: str | None, option: str) -> dict[str, Any] | None:
    """Read a JSON object; None where the option was left out.

    Raises:
        InputError: it is something else.
    """
    if text is None:
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise InputError(f"{option} is no JSON: {exc}", field=option) from exc
    if not isinstance(value, dict):
        raise InputError(f"{option} must be a JSON object, not {text[:60]}", field=option)
    return value


def parse_time(text: str | None, option: str) -> datetime | None:
    """Read an ISO 8601 time; None where the option was left out. The store wants a time zone.

    Raises:
        InputError: it is something else.
    """
    if text is None:
        return None
    try:
        # Python 3.10 does not know Z.
        return datetime.fromisoformat(text[:-1] + "+00:00" if text.endswith("Z") else text)
    except ValueError as exc:
        raise InputError(f"{option} is no ISO 8601 time: {text!r}", field=option) from exc
