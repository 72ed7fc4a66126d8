"""What the commands share: options, opening a store, reading what was typed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kronos.embedding.registry import KEPT_MODEL, absolute
from kronos.errors import ConfigurationError, InputError
from kronos.settings import DEFAULT_STORE, Location, default_store

if TYPE_CHECKING:
    from kronos.store.store import MemoryStore

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
        help='For a new store: mini, base, large, code, "hash", a model\'s name or a folder. '
        "`kronos reindex --model` changes the model of a store.",
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
    """Open a store with the model it has; to change that is the matter of `kronos reindex` alone.

    Args:
        store: as it was typed.
        model: what a new store is to get; a store that exists must have it already.
        create: make the store where there is none.
        embeds: whether the command may need the model.
        device: where the model runs.

    Raises:
        ConfigurationError: there is no store.
        EmbedderMismatchError: the store has another model than the one that was named.
    """
    from kronos.store.store import MemoryStore

    path = store or default_store()
    exists = Location.of(path).database.exists()
    if not exists and not create:
        raise _no_store(path)
    if model is None or (exists and absolute(model) == _model_of(path)):
        model = KEPT_MODEL
    with MemoryStore.open(
        path,
        device=device,
        embedding_model=model if embeds else None,
        on_model_change="error",
    ) as memories:
        yield memories


def _model_of(path: str) -> str | None:
    """The model of a store, as its maker asked for it."""
    from kronos.store.store import MemoryStore

    with MemoryStore.open(path, embedding_model=None) as memories:
        spaces = [entry.space for entry in memories.stats().spaces]
    return next((space.alias for space in spaces if space.state == "active"), None)


@contextmanager
def open_database(store: str | None) -> Iterator[Any]:
    """Open the database alone, whatever its schema is."""
    from kronos.db.database import Database
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
