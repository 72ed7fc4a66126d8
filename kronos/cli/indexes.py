"""The commands `kronos index`: metadata keys that filters find fast, and the word index."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape

from kronos.cli.common import Json, Store, open_store
from kronos.cli.printing import err, out, print_json, print_result

index = typer.Typer(
    no_args_is_help=True,
    help="Indexes of metadata keys, so that filters on them are fast, and the word index.",
)

Field = Annotated[str, typer.Argument(help="A metadata key, with dots to go down.")]


@index.command()
def add(field: Field, store: Store = None, as_json: Json = False) -> None:
    """Give a metadata key an index of its own."""
    with open_store(store, embeds=False) as memories:
        added = memories.maintenance.index_field(field)
    line = f"{field} has an index of its own now" if added else f"{field} has one already"
    print_result({"field": field, "added": added}, line, as_json)


@index.command()
def remove(field: Field, store: Store = None, as_json: Json = False) -> None:
    """Take a metadata key's index away."""
    with open_store(store, embeds=False) as memories:
        removed = memories.maintenance.unindex_field(field)
    line = f"{field} has no index any more" if removed else f"{field} had no index"
    print_result({"field": field, "removed": removed}, line, as_json)


@index.command("list")
def list_(store: Store = None, as_json: Json = False) -> None:
    """List the metadata keys that have an index."""
    with open_store(store, embeds=False) as memories:
        fields = memories.maintenance.indexed_fields()
    if as_json:
        print_json(fields)
        return
    for field in fields:
        out.print(escape(field))
    if not fields:
        err.print("no metadata key has an index")


@index.command()
def words(
    store: Store = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(help="porter, unicode61 or trigram.  [the one that the store has]"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Make the word index anew from the texts, which can be cut into words in another way."""
    with open_store(store, embeds=False) as memories:
        memories.maintenance.rebuild_fulltext(tokenizer)  # type: ignore[arg-type]  # the store checks it
    cut = "" if tokenizer is None else f", cut by {tokenizer}"
    print_result({"tokenizer": tokenizer}, f"the word index was made anew{cut}", as_json)
