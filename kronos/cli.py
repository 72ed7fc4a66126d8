"""The command `kronos`: what people and scripts do to a store without writing a program.

It holds no rule of its own: it parses, calls the library and prints. Errors are one red line on
stderr. Exit codes: 0 done, or stopped as it was asked to (by a signal or `--max-seconds`) and to be
resumed; 1 failed; 2 asked wrongly; 3 a reindex that came to its end without a switch, because some
texts cannot be embedded. With `--json` a command prints JSON alone. Heavy modules are imported
inside the commands.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from kronos.errors import (
    ConfigurationError,
    InputError,
    KronosError,
    KronosWarning,
    StorageError,
)
from kronos.settings import DEFAULT_STORE, Location, default_store

if TYPE_CHECKING:
    from kronos.store import MemoryStore
    from kronos.types import Hit, Job, Memory, Progress, ReindexPlan, ReindexReport, Space, Stats

_PROGRESS_AFTER_S = 1.0
_SHOWN_CHARACTERS = 300
_UsageError: Any = typer.BadParameter.__bases__[0]
"""What an unknown option or a missing argument raises; typer has no public name for it."""

app = typer.Typer(
    name="kronos",
    help="A memory store whose memories outlive embedding models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
db = typer.Typer(no_args_is_help=True, help="The database's schema: upgrade, downgrade, look.")
app.add_typer(db, name="db")
reindex = typer.Typer(
    invoke_without_command=True,
    help="Embed what is pending, or change the embedding model, as a job that any number of "
    "workers share: start the same command again, here or elsewhere, and it joins in. A stopped or "
    "killed run goes on where it was.",
)
app.add_typer(reindex, name="reindex")

out = Console(soft_wrap=True, highlight=False)
err = Console(stderr=True, soft_wrap=True, highlight=False)

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
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Limit = Annotated[int, typer.Option("--limit", "-l", help="How many at most.")]


# -- Memories -----------------------------------------------------------------------------------


@app.command("import")
def import_(
    paths: Annotated[list[Path], typer.Argument(help="Files and folders.")],
    store: Store = None,
    namespace: Namespace = None,
    model: Model = None,
    as_json: Json = False,
) -> None:
    """Import text, Markdown and JSONL files, and exports. A second run adds nothing."""
    from kronos.exchange import is_export
    from kronos.importing import find_files, read_file

    files = find_files(paths)
    exports = [file for file in files if is_export(file)]
    others = [file for file in files if file not in exports]
    with _open(store, model=model, create=True) as memories:
        own = namespace or memories.namespace
        before = memories.count(namespace="*")
        with _progress("importing") as progress:
            items = (item for file in others for item in read_file(file, namespace=own))
            seen = len(memories.add_many(items, on_conflict="ignore", progress=progress))
            for file in exports:
                seen += len(memories.import_from(file, progress=progress))
        added = memories.count(namespace="*") - before
    _print(
        {"files": len(files), "passages": seen, "added": added},
        f"{added} memories added from {len(files)} files ({seen - added} were there already)",
        as_json,
    )


@app.command()
def add(
    text: Annotated[str, typer.Argument(help='The text; "-" reads it from standard input.')],
    store: Store = None,
    namespace: Namespace = None,
    metadata: Annotated[str | None, typer.Option(help="Metadata, a JSON object.")] = None,
    importance: Annotated[float, typer.Option(help="0 to 1.")] = 0.5,
    id: Annotated[str | None, typer.Option(help="An id; left out, a new UUID.")] = None,
    expires_at: Annotated[str | None, typer.Option(help="ISO 8601, with a time zone.")] = None,
    model: Model = None,
    as_json: Json = False,
) -> None:
    """Remember one text."""
    content = sys.stdin.read() if text == "-" else text
    expiry = None if expires_at is None else _parse_time(expires_at)
    details = None if metadata is None else _parse_json(metadata, "--metadata")
    with _open(store, model=model, create=True) as memories:
        added = memories.add(
            content,
            metadata=details,
            namespace=namespace,
            importance=importance,
            id=id,
            expires_at=expiry,
        )
    _print({"id": added}, added, as_json)


@app.command()
def search(
    query: Annotated[str, typer.Argument(help="What to look for, in your own words.")],
    store: Store = None,
    limit: Limit = 10,
    where: Where = None,
    namespace: Namespace = None,
    min_score: Annotated[float | None, typer.Option(help="Leave out hits below it.")] = None,
    as_json: Json = False,
) -> None:
    """Find memories by meaning."""
    condition = None if where is None else _parse_json(where, "--where")
    with _open(store) as memories:
        hits = memories.search(
            query, limit=limit, where=condition, namespace=namespace, min_score=min_score
        )
    if as_json:
        _print_json([_hit_fields(hit) for hit in hits])
        return
    for hit in hits:
        _show(hit.memory, f"{hit.score:.3f}")
    if not hits:
        err.print("nothing found")


@app.command()
def get(
    id: Annotated[str, typer.Argument(help="The memory's id.")],
    store: Store = None,
    as_json: Json = False,
) -> None:
    """Show one memory."""
    with _open(store, embeds=False) as memories:
        memory = memories.get(id)
    if as_json:
        _print_json(_memory_fields(memory))
        return
    table = Table(show_header=False, box=None)
    for name, value in _memory_fields(memory).items():
        shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        table.add_row(name, escape(shown))
    out.print(table)


@app.command("list")
def list_(
    store: Store = None,
    limit: Limit = 100,
    where: Where = None,
    namespace: Namespace = None,
    after: Annotated[str | None, typer.Option(help="The last id of the page before.")] = None,
    as_json: Json = False,
) -> None:
    """List memories in the order in which they were added."""
    condition = None if where is None else _parse_json(where, "--where")
    with _open(store, embeds=False) as memories:
        page = memories.list(where=condition, namespace=namespace, after=after, limit=limit)
    if as_json:
        _print_json([_memory_fields(memory) for memory in page])
        return
    for memory in page:
        _show(memory, memory.id)


@app.command()
def delete(
    ids: Annotated[list[str] | None, typer.Argument(help="Ids of memories.")] = None,
    store: Store = None,
    where: Where = None,
    namespace: Namespace = None,
    as_json: Json = False,
) -> None:
    """Delete memories, by id or by what they match."""
    condition = None if where is None else _parse_json(where, "--where")
    with _open(store, embeds=False) as memories:
        deleted = memories.delete(ids or None, where=condition, namespace=namespace)
    _print({"deleted": deleted}, f"{deleted} memories deleted", as_json)


# -- The store ----------------------------------------------------------------------------------


@app.command()
def info(store: Store = None, as_json: Json = False) -> None:
    """Show what the store holds, and who answers."""
    from dataclasses import asdict

    with _open(store, embeds=False) as memories:
        stats = memories.stats()
    if as_json:
        _print_json(asdict(stats))
    else:
        _show_stats(stats)


@app.command()
def compact(
    store: Store = None,
    keep_spaces: Annotated[
        int | None, typer.Option(help="Retired spaces to keep.  [KRONOS_KEEP_SPACES, else 1]")
    ] = None,
    as_json: Json = False,
) -> None:
    """Drop old spaces and expired memories, and give the free space back to the disk."""
    from dataclasses import asdict

    with _open(store, embeds=False) as memories:
        report = memories.compact(keep_spaces=keep_spaces)
    names = ", ".join(f"{space.id} ({space.model})" for space in report.dropped)
    _print(
        asdict(report),
        f"{(report.bytes_before - report.bytes_after) / 1e6:.1f} MB given back, "
        f"{report.bytes_after / 1e6:.1f} MB left; spaces dropped: {names or 'none'}; "
        f"memories that had expired: {report.expired}",
        as_json,
    )


@app.command()
def doctor(
    store: Store = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Mend what can be derived from the texts.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Compare everything that must agree; exit code 1 when something is wrong."""
    from dataclasses import asdict

    with _open(store, embeds=False) as memories:
        report = memories.check(repair=repair)
    if as_json:
        _print_json({"ok": report.ok, **asdict(report)})
    for found in () if as_json else (*report.problems, *report.advice):
        mended = "repaired: " if found.repaired else ""
        out.print(escape(f"{found.kind}: {mended}{found.detail}"))
    if not report.ok:
        raise StorageError("the store is not as it should be; see above")
    if not as_json:
        out.print("index and database agree, and nothing is damaged")


@app.command()
def export(
    path: Annotated[Path, typer.Argument(help="A file that ends with .jsonl or .parquet.")],
    store: Store = None,
    vectors: Annotated[bool, typer.Option("--vectors", help="With the vectors.")] = False,
    where: Where = None,
    namespace: Namespace = "*",
    as_json: Json = False,
) -> None:
    """Write memories to a file that `import` brings back exactly."""
    condition = None if where is None else _parse_json(where, "--where")
    with _open(store, embeds=False) as memories:
        count = memories.export_to(path, vectors=vectors, where=condition, namespace=namespace)
    _print({"memories": count, "path": str(path)}, f"{count} memories are in {path}", as_json)


@app.command()
def backup(
    path: Annotated[Path, typer.Argument(help="A new file, or a folder.")],
    store: Store = None,
    as_json: Json = False,
) -> None:
    """Copy the whole store to a file, while others read and write."""
    with _open(store, embeds=False) as memories:
        written = memories.backup(path)
    _print({"backup": str(written)}, f"the backup is {written}", as_json)


@app.command()
def restore(
    path: Annotated[Path, typer.Argument(help="What `backup` wrote.")],
    store: Store = None,
    as_json: Json = False,
) -> None:
    """Put a backup in the store's place; what was there is kept aside."""
    from kronos.store import MemoryStore

    aside = MemoryStore.restore(path, store or default_store())
    kept = f"; what was there before is {aside}" if aside else ""
    _print({"before": None if aside is None else str(aside)}, f"{path} was put back{kept}", as_json)


@app.command()
def recover(store: Store = None, as_json: Json = False) -> None:
    """Save what can still be read of a damaged store; the original is kept aside."""
    from dataclasses import asdict

    from kronos.store import MemoryStore

    report = MemoryStore.recover(store or default_store())
    lost = f"; damaged and left out: {', '.join(report.damaged[:20])}" if report.damaged else ""
    _print(
        asdict(report),
        f"{report.memories} memories and {report.vectors} vectors were saved{lost}; the damaged "
        f"database is {report.aside}",
        as_json,
    )


# -- Reindex jobs -------------------------------------------------------------------------------

Device = Annotated[str, typer.Option(help='"auto", "cpu", "cuda", "cuda:N" or "mps".')]
BatchSize = Annotated[int | None, typer.Option(help="Texts in a worker's hand, at most.")]
Workers = Annotated[int, typer.Option(help="Threads that share the model.")]
MaxSeconds = Annotated[float | None, typer.Option(help="Stop after so long; resume later.")]
Rate = Annotated[float | None, typer.Option(help="Texts a second, at most.")]
AllowFailed = Annotated[
    bool, typer.Option("--allow-failed", help="Switch without the texts that cannot be embedded.")
]


@reindex.callback()
def start(
    context: typer.Context,
    store: Store = None,
    model: Model = None,
    device: Device = "auto",
    batch_size: BatchSize = None,
    workers: Workers = 1,
    max_seconds: MaxSeconds = None,
    rate: Rate = None,
    keep_old: Annotated[
        bool, typer.Option("--keep-old", help="Drop no retired space after the switch.")
    ] = False,
    no_activate: Annotated[
        bool, typer.Option("--no-activate", help="Make the space, and do not switch to it.")
    ] = False,
    allow_failed: AllowFailed = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done; write nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Start a job, or join it."""
    if context.invoked_subcommand is not None:
        return
    # Without the model that it has: that may be lost, and what is pending is the job's to embed.
    with _open(store, embeds=False, device=device) as memories:
        if dry_run:
            _show_plan(memories.plan_reindex(model), as_json)
            return
        _work(
            memories,
            lambda stop, progress: memories.reindex(
                model,
                workers=workers,
                batch_size=batch_size,
                rate=rate,
                max_seconds=max_seconds,
                activate=not no_activate,
                allow_failed=allow_failed,
                keep_old=keep_old,
                stop=stop,
                progress=progress,
            ),
            as_json,
        )


@reindex.command()
def status(store: Store = None, as_json: Json = False) -> None:
    """Show the jobs, and the texts that could not be embedded."""
    from dataclasses import asdict

    with _open(store, embeds=False) as memories:
        jobs, failures = memories.jobs(), memories.failures()
    if as_json:
        _print_json(
            {"jobs": [asdict(job) for job in jobs], "failures": [asdict(f) for f in failures]}
        )
        return
    for job in jobs:
        out.print(escape(_job_line(job)))
    for failure in failures:
        ids = ", ".join(failure.memory_ids)
        out.print(escape(f"failed in space {failure.space_id}: {ids}: {failure.error}"))
    if not jobs:
        err.print("no reindex was ever started")


@reindex.command()
def resume(
    store: Store = None,
    device: Device = "auto",
    batch_size: BatchSize = None,
    workers: Workers = 1,
    max_seconds: MaxSeconds = None,
    rate: Rate = None,
    allow_failed: AllowFailed = False,
    as_json: Json = False,
) -> None:
    """Go on with the newest unfinished job; texts that failed are tried again."""
    with _open(store, embeds=False, device=device) as memories:
        _work(
            memories,
            lambda stop, progress: memories.resume_reindex(
                workers=workers,
                batch_size=batch_size,
                rate=rate,
                max_seconds=max_seconds,
                allow_failed=allow_failed or None,
                stop=stop,
                progress=progress,
            ),
            as_json,
        )


@reindex.command()
def activate(
    store: Store = None,
    device: Device = "auto",
    allow_failed: AllowFailed = False,
    as_json: Json = False,
) -> None:
    """Switch to the space of the newest unfinished job; what it lacks is embedded first."""
    with _open(store, embeds=False, device=device) as memories:
        _work(
            memories,
            lambda stop, progress: memories.activate_reindex(
                allow_failed=allow_failed or None, stop=stop, progress=progress
            ),
            as_json,
        )


@reindex.command()
def rollback(store: Store = None, device: Device = "auto", as_json: Json = False) -> None:
    """Switch back to the space before; only what changed since is embedded."""
    with _open(store, embeds=False, device=device) as memories:
        _work(
            memories,
            lambda stop, progress: memories.rollback(stop=stop, progress=progress),
            as_json,
        )


@reindex.command()
def cancel(store: Store = None, as_json: Json = False) -> None:
    """End the newest unfinished job; `kronos compact` drops what it made."""
    from dataclasses import asdict

    with _open(store, embeds=False) as memories:
        job = memories.cancel_reindex()
    _print(asdict(job), _job_line(job), as_json)


def _work(
    memories: MemoryStore,
    run: Callable[[threading.Event, Callable[[Progress], None] | None], ReindexReport],
    as_json: bool,
) -> None:
    """Run a job until it is over or a signal comes, and say how it ended."""
    from dataclasses import asdict

    with _stopped_by_signals() as stop, _job_progress(as_json) as progress:
        report = run(stop, progress)
    space = report.space
    if as_json:
        _print_json({"event": "end", **asdict(report)})
    else:
        out.print(
            escape(
                f"{report.embedded} texts embedded in {report.seconds:.1f} s, {report.pending} "
                f"memories pending, {report.failed} of them failed; space {space.id} "
                f"({space.model}, {space.dim} wide) is {space.state}, the job is {report.state}"
            )
        )
        if report.state == "open":
            err.print("stopped: `kronos reindex resume` goes on")
    if report.state == "failed":
        err.print(
            "not activated: `kronos reindex status` shows the texts, `kronos reindex activate "
            "--allow-failed` goes on without them"
        )
        raise typer.Exit(3)


@contextmanager
def _stopped_by_signals() -> Iterator[threading.Event]:
    """The first SIGTERM or SIGINT lets the batch be finished; a second SIGINT interrupts."""
    stop = threading.Event()

    def ask(number: int, frame: object) -> None:
        if number == signal.SIGINT and stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _job_progress(as_json: bool) -> Iterator[Callable[[Progress], None] | None]:
    """A bar, or with `--json` an object a line."""
    if not as_json:
        with _progress("embedding") as show:
            yield show
        return
    started = time.monotonic()
    first: list[tuple[float, int]] = []  # loading the model is no part of the rate

    def write(progress: Progress) -> None:
        now = time.monotonic()
        first[:] = first or [(now, progress.done)]
        since, before = now - first[0][0], progress.done - first[0][1]
        rate = before / since if since > 0 else 0.0
        left = None if progress.total is None else progress.total - progress.done
        _print_json(
            {
                "event": "progress",
                "done": progress.done,
                "total": progress.total,
                "seconds": round(now - started, 3),
                "rate": round(rate, 1),
                "seconds_left": None if left is None or not rate else round(left / rate, 1),
            }
        )
        sys.stdout.flush()

    yield write


def _show_plan(plan: ReindexPlan, as_json: bool) -> None:
    from dataclasses import asdict

    tokens = "" if plan.tokens is None else f" (about {plan.tokens:,} tokens)"
    _print(
        asdict(plan),
        f"{plan.memories} memories are pending for {plan.model} ({plan.dim} wide): {plan.texts} "
        f"texts to embed{tokens}, about {plan.seconds:.0f} s with one worker and "
        f"{plan.disk_bytes / 1e6:.1f} MB more on disk",
        as_json,
    )


def _job_line(job: Job) -> str:
    error = f"; {job.last_error}" if job.last_error else ""
    return (
        f"job {job.id}: {job.state}, {job.done} of {job.total} memories, {job.pending} pending, "
        f"{job.failed} failed, {job.workers} workers, {job.rate:.0f} a second, attempt "
        f"{job.attempts}, last heard of {job.heartbeat_at:%Y-%m-%d %H:%M:%S} UTC; space "
        f"{job.space.id} ({job.space.model}) is {job.space.state}{error}"
    )


# -- The schema ---------------------------------------------------------------------------------


@db.command()
def upgrade(
    revision: Annotated[str, typer.Argument(help="A revision.")] = "head",
    store: Store = None,
    as_json: Json = False,
) -> None:
    """Bring the database to a newer schema, after a backup."""
    from kronos.db import schema

    _migrate(store, lambda database: schema.upgrade(database, revision), as_json)


@db.command()
def downgrade(
    revision: Annotated[str, typer.Argument(help="A revision.")],
    store: Store = None,
    as_json: Json = False,
) -> None:
    """Bring the database to an older schema, after a backup."""
    from kronos.db import schema

    _migrate(store, lambda database: schema.downgrade(database, revision), as_json)


@db.command()
def current(store: Store = None, as_json: Json = False) -> None:
    """Show the database's revision."""
    from kronos.db import schema

    with _database(store) as database:
        revision = schema.current(database)
    _print({"revision": revision}, revision or "none: the database is empty", as_json)


@db.command()
def check(store: Store = None, as_json: Json = False) -> None:
    """Say whether the database's schema is this Kronos's own; exit code 1 when it is not."""
    from kronos.db import schema

    with _database(store) as database:
        schema.check(database)
    _print({"ok": True}, f"the schema is up to date ({schema.head()})", as_json)


@db.command()
def history(as_json: Json = False) -> None:
    """List all revisions, the oldest first."""
    from kronos.db import schema

    revisions = schema.history()
    if as_json:
        _print_json([{"revision": r.id, "description": r.summary} for r in revisions])
        return
    for revision in revisions:
        out.print(f"{revision.id}  {escape(revision.summary)}")


def _migrate(store: str | None, change: Callable[[Any], Path | None], as_json: bool) -> None:
    from kronos.db import schema

    with _database(store) as database:
        before = schema.current(database)
        backup = change(database)
        after = schema.current(database)
    saved = "" if backup is None else f"; the backup is {backup}"
    _print(
        {"before": before, "after": after, "backup": None if backup is None else str(backup)},
        f"the database went from {before or 'nothing'} to {after or 'nothing'}{saved}",
        as_json,
    )


# -- Opening ------------------------------------------------------------------------------------


@contextmanager
def _open(
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
    with _progress("embedding for the new model") as progress:
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
def _database(store: str | None) -> Iterator[Any]:
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


def _parse_json(text: str, option: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise InputError(f"{option} is no JSON: {exc}", field=option) from exc
    if not isinstance(value, dict):
        raise InputError(f"{option} must be a JSON object, not {text[:60]}", field=option)
    return value


def _parse_time(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text)
    except ValueError as exc:
        raise InputError(
            f"--expires-at is no ISO 8601 time: {text!r}", field="--expires-at"
        ) from exc


# -- Printing -----------------------------------------------------------------------------------


def _print(fields: dict[str, Any], line: str, as_json: bool) -> None:
    if as_json:
        _print_json(fields)
    else:
        out.print(escape(line))


def _print_json(value: Any) -> None:
    # Not through rich, which would wrap and colour it.
    sys.stdout.write(json.dumps(value, ensure_ascii=False, default=_plain) + "\n")


def _plain(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else str(value)


def _memory_fields(memory: Memory) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        name: value.isoformat() if isinstance(value, datetime) else value
        for name, value in asdict(memory).items()
    }


def _hit_fields(hit: Hit) -> dict[str, Any]:
    found = {"score": hit.score, "rank": hit.rank, "embedder": hit.embedder}
    return {**found, **_memory_fields(hit.memory)}


def _show(memory: Memory, label: str) -> None:
    source = memory.metadata.get("source")
    place = f"{source}:{memory.metadata.get('line', 1)}" if source else memory.id
    text = " ".join(memory.content.split())
    shown = text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 1] + "…"
    out.print(f"[bold]{escape(label)}[/bold]  [dim]{escape(str(place))}[/dim]\n  {escape(shown)}")


def _show_stats(stats: Stats) -> None:
    table = Table(show_header=False, box=None)
    table.add_row("store", escape(f"{stats.path} ({stats.store_id})"))
    table.add_row("memories", f"{stats.memories}")
    table.add_row("last change", f"seq {stats.seq}")
    active = next((e for e in stats.spaces if e.space.state == "active"), None)
    if active is not None:
        waiting = f"; {active.pending} memories wait for it" if active.pending else ""
        table.add_row("answers", escape(f"{active.space.model}{waiting}"))
    table.add_row("database", f"{stats.database_bytes / 1e6:.1f} MB, schema {stats.schema}")
    for entry in stats.spaces:
        space = entry.space
        asked = f", asked for as {space.alias}" if space.alias else ""
        revision = f", revision {space.revision[:12]}" if space.revision else ""
        table.add_row(
            f"space {space.id}",
            escape(
                f"{space.state}: {space.model}{asked}{revision}, fingerprint "
                f"{space.fingerprint[:16]}, {space.dim} wide, {entry.vectors} vectors, "
                f"{entry.pending} pending, {entry.failed} of them failed"
            ),
        )
    for job in stats.jobs:
        table.add_row(f"job {job.id}", escape(_job_line(job).partition(": ")[2]))
    out.print(table)


@contextmanager
def _progress(description: str) -> Iterator[Callable[[Progress], None] | None]:
    """A bar for what takes longer than a second; none when the output is no terminal."""
    if not err.is_terminal:
        yield None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    started = time.monotonic()
    columns = (TextColumn(description), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Bar(*columns, console=err, transient=True)
    task = bar.add_task(description, total=None)

    def show(progress: Progress) -> None:
        if time.monotonic() - started > _PROGRESS_AFTER_S:
            bar.start()
        bar.update(task, completed=progress.done, total=progress.total)

    try:
        yield show
    finally:
        bar.stop()


# -- The program --------------------------------------------------------------------------------


def main() -> None:
    """Run the command line; the program's entry point."""
    warnings.showwarning = _show_warning
    warnings.simplefilter("always", KronosWarning)
    try:
        # No arguments at all: show the help. Not standalone: errors are ours to print.
        app(sys.argv[1:] or ["--help"], standalone_mode=False)
    except _UsageError as exc:
        _fail(exc.format_message(), 2)
    except InputError as exc:
        _fail(exc, 2)
    except KronosError as exc:
        _fail(exc, 1)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
    except (KeyboardInterrupt, typer.Abort):
        _fail("stopped", 130)
    except Exception as exc:  # never a traceback: what a user can report is one line
        _fail(f"internal error, please report it: {type(exc).__name__}: {exc}", 1)


def _fail(message: object, code: int) -> None:
    err.print(f"[red]error: {escape(' '.join(str(message).split()))}[/red]")
    sys.exit(code)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: Any = None,
    line: str | None = None,
) -> None:
    if issubclass(category, KronosWarning):
        err.print(f"[yellow]warning: {escape(' '.join(str(message).split()))}[/yellow]")
