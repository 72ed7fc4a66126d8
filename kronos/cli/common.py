"""What the commands share: options, opening a store, and parsing arguments."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kronos.embedding.registry import KEPT_MODEL, absolute_model
from kronos.errors import ConfigurationError, InputError
from kronos.settings import DEFAULT_STORE, Place, default_store

if TYPE_CHECKING:
    from kronos.search.filters import Filter
    from kronos.store.store import MemoryStore

Store = Annotated[
    str | None,
    typer.Option(
        "--store",
        "-s",
        metavar="PATH",
        help="The store: a folder or a SQLAlchemy URL. "
        f" [default: KRONOS_STORE, or else {DEFAULT_STORE}]",
    ),
]
Namespace = Annotated[
    str | None,
    typer.Option(
        "--namespace", "-n", help='A namespace, with all namespaces below it; "*" means all.'
    ),
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
        help='The model of a new store: mini, base, large, code, "hash", the name of a model, or a '
        "folder. For an existing store use `kronos reindex --model`.",
    ),
]
AsOf = Annotated[
    str | None,
    typer.Option(
        "--as-of",
        metavar="TIME",
        help="Read the store as it was at this time: ISO 8601, with a time zone.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Limit = Annotated[int, typer.Option("--limit", "-l", help="The maximum number of results.")]


@contextmanager
def open_store(
    store: str | None,
    *,
    model: str | None = None,
    create: bool = False,
    embeds: bool = True,
    device: str = "auto",
) -> Iterator[MemoryStore]:
    """Open a store with its own model; only `kronos reindex` changes the model of a store.

    Args:
        store: the value of --store.
        model: the model of a new store; an existing store must have this model already.
        create: make the store if it does not exist.
        embeds: whether the command may need the model.
        device: where the model runs.

    Raises:
        ConfigurationError: there is no store.
        EmbedderMismatchError: the store has another model.
    """
    from kronos.store.store import MemoryStore

    path = store or default_store()
    exists = Place.of(path).database.exists()
    if not exists and not create:
        raise _no_store(path)
    if model is None or (exists and absolute_model(model) == _model_of(path)):
        model = KEPT_MODEL
    with MemoryStore.open(
        path,
        device=device,
        embedding_model=model if embeds else None,
        on_model_change="error",
    ) as memories:
        yield memories


def _model_of(path: str) -> str | None:
    """The alias of a store's model."""
    from kronos.store.store import MemoryStore

    with MemoryStore.open(path, embedding_model=None) as memories:
        spaces = [entry.space for entry in memories.stats().spaces]
    return next((space.alias for space in spaces if space.state == "active"), None)


@contextmanager
def open_database(store: str | None) -> Iterator[Any]:
    """Open only the database of a store, with any schema."""
    from kronos.db.database import Database
    from kronos.settings import Settings

    path = store or default_store()
    place = Place.of(path)
    if not place.database.exists():
        raise _no_store(path)
    database = Database(place.database, Settings.from_env())
    try:
        yield database
    finally:
        database.close()


def _no_store(path: str) -> ConfigurationError:
    return ConfigurationError(
        f"there is no store at {path}: name another one with --store, or make one with `kronos "
        "add` or `kronos import`"
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


def parse_where(text: str | None) -> Filter | None:
    """Parse the filter of `--where`; None without the option.

    Raises:
        InputError: it is not a JSON object, or not a filter.
    """
    from kronos.search.filters import parse

    return parse(parse_json(text, "--where"))


def parse_time(text: str | None, option: str) -> datetime | None:
    """Parse an ISO 8601 time; None without the option. The store checks that it has a time zone.

    Raises:
        InputError: it is not a time.
    """
    if text is None:
        return None
    try:
        # Python 3.10 does not accept Z.
        return datetime.fromisoformat(text[:-1] + "+00:00" if text.endswith("Z") else text)
    except ValueError as exc:
        raise InputError(f"{option} is not an ISO 8601 time: {text!r}", field=option) from exc
