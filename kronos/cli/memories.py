"""The commands for memories: import, add, show, list, delete, their history, and duplicates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from kronos.cli.common import (
    AsOf,
    Json,
    Limit,
    Model,
    Namespace,
    Store,
    Where,
    open_store,
    parse_json,
    parse_time,
    parse_where,
)
from kronos.cli.encoding import standard_input
from kronos.cli.printing import (
    err,
    memory_fields,
    one_line,
    out,
    print_json,
    print_result,
    progress_bar,
    show,
)

if TYPE_CHECKING:
    from kronos.types import DuplicateGroup, Version

_TIME = "%Y-%m-%d %H:%M:%S UTC"


def import_(
    paths: Annotated[list[Path], typer.Argument(help="Files and folders.")],
    store: Store = None,
    namespace: Namespace = None,
    model: Model = None,
    as_json: Json = False,
) -> None:
    """Import text, Markdown and JSONL files, and exports; a second run adds nothing."""
    from kronos.settings import Settings
    from kronos.transfer.export import is_export
    from kronos.transfer.importing import find_files, read_file

    files = find_files(paths)
    exports = [file for file in files if is_export(file)]
    others = [file for file in files if file not in exports]
    with open_store(store, model=model, create=True) as memories:
        own = namespace or memories.namespace
        before = memories.count(namespace="*")
        with progress_bar("importing") as progress:
            limits = Settings.from_env()
            items = (
                item for file in others for item in read_file(file, namespace=own, settings=limits)
            )
            seen = len(memories.add_many(items, on_conflict="ignore", progress=progress))
            for file in exports:
                seen += len(memories.import_from(file, progress=progress))
        added = memories.count(namespace="*") - before
    print_result(
        {"files": len(files), "passages": seen, "added": added},
        f"{added} memories added from {len(files)} files ({seen - added} already existed)",
        as_json,
    )


def add(
    text: Annotated[str, typer.Argument(help='The text; "-" reads standard input.')],
    store: Store = None,
    namespace: Namespace = None,
    metadata: Annotated[str | None, typer.Option(help="Metadata: a JSON object.")] = None,
    importance: Annotated[float, typer.Option(help="0 to 1.")] = 0.5,
    id: Annotated[str | None, typer.Option(help="An id.  [default: a new UUID]")] = None,
    parent: Annotated[
        str | None, typer.Option(metavar="ID", help="The memory that this one comes from.")
    ] = None,
    upsert: Annotated[
        bool,
        typer.Option("--upsert", help="Replace the memory with this id, or else with this text."),
    ] = False,
    expires_at: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="When the memory expires: ISO 8601, with a time zone."),
    ] = None,
    model: Model = None,
    as_json: Json = False,
) -> None:
    """Store one text as a memory."""
    content = standard_input() if text == "-" else text
    expiry = parse_time(expires_at, "--expires-at")
    details = parse_json(metadata, "--metadata")
    with open_store(store, model=model, create=True) as memories:
        store_it = memories.upsert if upsert else memories.add
        added = store_it(
            content,
            metadata=details,
            namespace=namespace,
            importance=importance,
            parent_id=parent,
            id=id,
            expires_at=expiry,
        )
    print_result({"id": added}, added, as_json)


def get(
    id: Annotated[str, typer.Argument(help="The memory's id.")],
    store: Store = None,
    as_of: AsOf = None,
    as_json: Json = False,
) -> None:
    """Show one memory."""
    moment = parse_time(as_of, "--as-of")
    with open_store(store, embeds=False) as memories:
        memory = memories.get(id, as_of=moment)
    if as_json:
        print_json(memory_fields(memory))
        return
    table = Table(show_header=False, box=None)
    for name, value in memory_fields(memory).items():
        shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        table.add_row(name, escape(shown))
    out.print(table)


def list_(
    store: Store = None,
    limit: Limit = 100,
    where: Where = None,
    namespace: Namespace = None,
    after: Annotated[str | None, typer.Option(help="The last id of the previous page.")] = None,
    as_of: AsOf = None,
    as_json: Json = False,
) -> None:
    """List memories, in the order in which they were added."""
    condition = parse_where(where)
    moment = parse_time(as_of, "--as-of")
    with open_store(store, embeds=False) as memories:
        page = memories.list(
            where=condition, namespace=namespace, after=after, limit=limit, as_of=moment
        )
    if as_json:
        print_json([memory_fields(memory) for memory in page])
        return
    for memory in page:
        show(memory, memory.id)


def delete(
    ids: Annotated[list[str] | None, typer.Argument(help="Ids of memories.")] = None,
    store: Store = None,
    where: Where = None,
    namespace: Namespace = None,
    as_json: Json = False,
) -> None:
    """Delete memories by id or by filter."""
    condition = parse_where(where)
    with open_store(store, embeds=False) as memories:
        deleted = memories.delete(ids or None, where=condition, namespace=namespace)
    print_result({"deleted": deleted}, f"{deleted} memories deleted", as_json)


def history(
    id: Annotated[str, typer.Argument(help="The memory's id.")],
    store: Store = None,
    as_json: Json = False,
) -> None:
    """Show all versions of a memory, the oldest first."""
    with open_store(store, embeds=False) as memories:
        versions = memories.history(id)
    if as_json:
        print_json([_version_fields(version) for version in versions])
        return
    for version in versions:
        memory, until = version.memory, version.replaced_at
        end = "now" if until is None else f"{until:{_TIME}}"
        out.print(f"[bold]{version.recorded_at:{_TIME}} to {end}[/bold]")
        out.print(escape(f"  {one_line(memory.content)}"))
        if memory.metadata:
            out.print(escape(f"  {json.dumps(memory.metadata, ensure_ascii=False)}"))


def duplicates(
    store: Store = None,
    threshold: Annotated[
        float, typer.Option("--threshold", "-t", help="The minimum cosine, above 0 and at most 1.")
    ] = 0.95,
    where: Where = None,
    namespace: Namespace = None,
    as_json: Json = False,
) -> None:
    """Find groups of memories with nearly the same content."""
    condition = parse_where(where)
    # The vectors are stored, so no model is needed.
    with open_store(store, embeds=False) as memories:
        groups = memories.duplicates(threshold, where=condition, namespace=namespace)
    if as_json:
        print_json([_group_fields(group) for group in groups])
        return
    for group in groups:
        out.print(f"[bold]{group.score:.3f}[/bold]")
        for memory in group.memories:
            out.print(f"  [dim]{escape(memory.id)}[/dim]  {escape(one_line(memory.content))}")
    if not groups:
        err.print("nothing found")


def _version_fields(version: Version) -> dict[str, Any]:
    known = {"recorded_at": version.recorded_at, "replaced_at": version.replaced_at}
    return {**known, **memory_fields(version.memory)}


def _group_fields(group: DuplicateGroup) -> dict[str, Any]:
    return {
        "score": group.score,
        "memories": [memory_fields(memory) for memory in group.memories],
    }
