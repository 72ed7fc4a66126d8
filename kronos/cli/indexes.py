"""The commands `kronos index`: indexes of metadata keys for fast filters, and full-text search."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape

from kronos.cli.common import Json, Store, open_store
from kronos.cli.printing import err, out, print_json, print_result

index = typer.Typer(
    no_args_is_help=True,
    help="Indexes of metadata keys, which make filters on them fast, and the full-text index.",
)

Field = Annotated[str, typer.Argument(help="A metadata key; dots separate nested keys.")]


@index.command()
def add(field: Field, store: Store = None, as_json: Json = False) -> None:
    """Add an index for a metadata key."""
    with open_store(store, embeds=False) as memories:
        added = memories.maintenance.index_field(field)
    line = f"{field} has an index now" if added else f"{field} already had an index"
    print_result({"field": field, "added": added}, line, as_json)


@index.command()
def remove(field: Field, store: Store = None, as_json: Json = False) -> None:
    """Remove the index of a metadata key."""
    with open_store(store, embeds=False) as memories:
        removed = memories.maintenance.unindex_field(field)
    line = f"the index of {field} is removed" if removed else f"{field} had no index"
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
        typer.Option(help="porter, unicode61 or trigram.  [default: the store's tokenizer]"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Rebuild the full-text index from the texts, with the same or another tokenizer."""
    with open_store(store, embeds=False) as memories:
        memories.maintenance.rebuild_fulltext(tokenizer)  # type: ignore[arg-type]  # the store checks it
    by = "" if tokenizer is None else f" with the tokenizer {tokenizer}"
    print_result({"tokenizer": tokenizer}, f"the full-text index was rebuilt{by}", as_json)
