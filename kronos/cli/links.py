"""The commands for links between memories, and for tracing memories along them."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from kronos.cli.common import Json, Store, open_store
from kronos.cli.printing import err, memory_fields, out, print_json, print_result, show

if TYPE_CHECKING:
    from kronos.types import Step

Id = Annotated[str, typer.Argument(help="The memory's id.")]
Source = Annotated[str, typer.Argument(help="The id of the memory that the link starts from.")]
Target = Annotated[str, typer.Argument(help="The id of the memory that the link points to.")]


def link(
    source: Source,
    target: Target,
    relation: Annotated[str, typer.Argument(help='The relation, such as "supports".')],
    store: Store = None,
    weight: Annotated[
        float, typer.Option(help="The weight in searches that follow links, 0 to 1.")
    ] = 1.0,
    as_json: Json = False,
) -> None:
    """Link a memory to another one; an existing link gets the new weight."""
    with open_store(store, embeds=False) as memories:
        memories.link(source, target, relation, weight)
    made = {"source_id": source, "target_id": target, "relation": relation, "weight": weight}
    print_result(made, f"{source} {relation} {target}", as_json)


def unlink(
    source: Source,
    target: Target,
    relation: Annotated[str | None, typer.Argument(help="A relation.  [default: all]")] = None,
    store: Store = None,
    as_json: Json = False,
) -> None:
    """Remove links from one memory to another one."""
    with open_store(store, embeds=False) as memories:
        removed = memories.unlink(source, target, relation)
    print_result({"removed": removed}, f"{removed} links removed", as_json)


def links(id: Id, store: Store = None, as_json: Json = False) -> None:
    """List the links from and to a memory."""
    with open_store(store, embeds=False) as memories:
        found = memories.links(id)
    if as_json:
        print_json([asdict(each) for each in found])
        return
    for each in found:
        out.print(
            escape(f"{each.source_id} {each.relation} {each.target_id} (weight {each.weight:g})")
        )
    if not found:
        err.print("nothing found")


def trace(
    id: Id,
    store: Store = None,
    direction: Annotated[str, typer.Option(help="ancestors, descendants or both.")] = "ancestors",
    depth: Annotated[int, typer.Option(help="The maximum number of steps.")] = 10,
    as_json: Json = False,
) -> None:
    """Show where a memory comes from or where it leads, along parents and links."""
    with open_store(store, embeds=False) as memories:
        steps = memories.trace(id, direction, depth)  # type: ignore[arg-type]  # the store checks it
    if as_json:
        print_json([_step_fields(step) for step in steps])
        return
    for step in steps:
        show(step.memory, f"{step.depth} from {step.from_id} by {step.relation}")
    if not steps:
        err.print("nothing found")


def _step_fields(step: Step) -> dict[str, Any]:
    way = {"depth": step.depth, "relation": step.relation, "from_id": step.from_id}
    return {**way, **memory_fields(step.memory)}
