"""The commands for a whole store: inspect, check, compact, tune, export, back up, restore."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from kronos.cli.common import Json, Namespace, Store, Where, open_store, parse_time, parse_where
from kronos.cli.printing import (
    err,
    index_line,
    job_line,
    out,
    print_json,
    print_result,
    tune_line,
)
from kronos.errors import InputError, StorageError
from kronos.settings import default_store

if TYPE_CHECKING:
    from kronos.types import Stats


def info(store: Store = None, as_json: Json = False) -> None:
    """Show what the store holds, and which model serves it."""
    from dataclasses import asdict

    with open_store(store, embeds=False) as memories:
        stats = memories.stats()
    if as_json:
        print_json(asdict(stats))
    else:
        _show_stats(stats)


def compact(
    store: Store = None,
    keep_spaces: Annotated[
        int | None,
        typer.Option(help="Retired spaces to keep.  [default: KRONOS_KEEP_SPACES, or else 1]"),
    ] = None,
    forget_before: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="Also delete versions that were replaced before this time: ISO 8601, with a time "
            "zone.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Delete old spaces and expired memories, and return free space to the disk."""
    from dataclasses import asdict

    before = parse_time(forget_before, "--forget-before")
    with open_store(store, embeds=False) as memories:
        report = memories.maintenance.compact(keep_spaces=keep_spaces, forget_before=before)
    names = ", ".join(f"{space.id} ({space.model})" for space in report.dropped)
    print_result(
        asdict(report),
        f"{(report.bytes_before - report.bytes_after) / 1e6:.1f} MB freed, "
        f"{report.bytes_after / 1e6:.1f} MB left; spaces dropped: {names or 'none'}; "
        f"expired memories deleted: {report.expired}",
        as_json,
    )


def tune(
    path: Annotated[
        str | None,
        typer.Argument(metavar="[PATH]", help="The store, instead of --store."),
    ] = None,
    store: Store = None,
    target: Annotated[
        float,
        typer.Option(
            help="The recall@10 to reach: the share of the 10 nearest that searches find."
        ),
    ] = 0.98,
    as_json: Json = False,
) -> None:
    """Build the index if due, measure its recall, and search as hard as the target needs."""
    from dataclasses import asdict

    if path is not None and store is not None:
        raise InputError("name the store once: as PATH or with --store", field="store")
    with (
        err.status("building the index and measuring its recall"),
        open_store(path or store, embeds=False) as memories,
    ):
        report = memories.maintenance.tune(target)
    print_result(asdict(report) | {"reached": report.reached}, tune_line(report), as_json)
    if not report.reached:
        raise StorageError(
            f"a recall of {target:g} is out of reach: the index reaches {report.recall:.4f} at "
            'most. Searches are exact with Settings(index="flat") or KRONOS_INDEX=flat. An index '
            "with more links, such as HNSW32, finds more"
        )


def doctor(
    store: Store = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Repair what can be derived from the texts.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Check the whole store; exit code 1 if there is a problem."""
    from dataclasses import asdict

    with open_store(store, embeds=False) as memories:
        report = memories.maintenance.check(repair=repair)
    if as_json:
        print_json({"ok": report.ok, **asdict(report)})
    for found in () if as_json else (*report.problems, *report.advice):
        repaired = "repaired: " if found.repaired else ""
        out.print(escape(f"{found.kind}: {repaired}{found.detail}"))
    if report.index_kind is not None and not as_json:
        line = index_line(report.index_kind, report.index_effort, report.index_recall)
        out.print(escape(f"searches: {line}"))
    if not report.ok:
        raise StorageError("the store has problems; see above")
    if not as_json:
        out.print("no problems: nothing is damaged, and the index matches the database")


def export(
    path: Annotated[Path, typer.Argument(help="The new file; it ends with .jsonl or .parquet.")],
    store: Store = None,
    vectors: Annotated[bool, typer.Option("--vectors", help="Export the vectors too.")] = False,
    where: Where = None,
    namespace: Namespace = "*",
    as_json: Json = False,
) -> None:
    """Write memories to a file, from which `kronos import` restores them exactly."""
    condition = parse_where(where)
    with open_store(store, embeds=False) as memories:
        count = memories.export_to(path, vectors=vectors, where=condition, namespace=namespace)
    print_result(
        {"memories": count, "path": str(path)}, f"{count} memories exported to {path}", as_json
    )


def backup(
    path: Annotated[Path, typer.Argument(help="A new file, or a folder.")],
    store: Store = None,
    as_json: Json = False,
) -> None:
    """Copy the whole store to a file; other processes may read and write meanwhile."""
    with open_store(store, embeds=False) as memories:
        written = memories.maintenance.backup(path)
    print_result({"backup": str(written)}, f"the backup is {written}", as_json)


def restore(
    path: Annotated[Path, typer.Argument(help="A file that `kronos backup` wrote.")],
    store: Store = None,
    as_json: Json = False,
) -> None:
    """Replace the store's database by a backup; the old database is kept aside."""
    from kronos.store.store import MemoryStore

    aside = MemoryStore(store or default_store()).maintenance.restore(path)
    kept = f"; the old database is {aside}" if aside else ""
    print_result(
        {"before": None if aside is None else str(aside)}, f"{path} was restored{kept}", as_json
    )


def recover(store: Store = None, as_json: Json = False) -> None:
    """Save all readable data of a damaged store; the damaged database is kept aside."""
    from dataclasses import asdict

    from kronos.store.store import MemoryStore

    report = MemoryStore(store or default_store()).maintenance.recover()
    lost = f"; damaged and left out: {', '.join(report.damaged[:20])}" if report.damaged else ""
    print_result(
        asdict(report),
        f"{report.memories} memories and {report.vectors} vectors saved{lost}; the damaged "
        f"database is {report.aside}",
        as_json,
    )


def _show_stats(stats: Stats) -> None:
    table = Table(show_header=False, box=None)
    table.add_row("store", escape(f"{stats.path} ({stats.store_id})"))
    past = f", {stats.versions} earlier versions" if stats.versions else ""
    table.add_row("memories", f"{stats.memories}{past}")
    table.add_row("last change", f"seq {stats.seq}")
    active = next((e for e in stats.spaces if e.space.state == "active"), None)
    if active is not None:
        pending = f"; {active.pending} memories are pending" if active.pending else ""
        table.add_row("model", escape(f"{active.space.model}{pending}"))
    indexed = f"; indexed keys: {', '.join(stats.indexed_fields)}" if stats.indexed_fields else ""
    table.add_row("full text", escape(f"tokenizer {stats.tokenizer}{indexed}"))
    index = index_line(stats.index_kind, stats.index_effort, stats.index_recall)
    table.add_row("searches", escape(index))
    table.add_row("database", f"{stats.database_bytes / 1e6:.1f} MB, schema {stats.schema}")
    for entry in stats.spaces:
        space = entry.space
        alias = f", alias {space.alias}" if space.alias else ""
        revision = f", revision {space.revision[:12]}" if space.revision else ""
        table.add_row(
            f"space {space.id}",
            escape(
                f"{space.state}: {space.model}{alias}{revision}, fingerprint "
                f"{space.fingerprint[:16]}, {space.dim} wide, {entry.vectors} vectors, "
                f"{entry.pending} pending, {entry.failed} of them failed"
            ),
        )
    for job in stats.jobs:
        table.add_row(f"job {job.id}", escape(job_line(job).partition(": ")[2]))
    out.print(table)
