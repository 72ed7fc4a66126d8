"""The commands `kronos reindex`: start or join a job, inspect it, resume it, cancel it, roll back.

A job that a signal or `--max-seconds` stops ends as requested, so its exit code is 0.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from kronos.cli.common import Json, Store, open_store
from kronos.cli.printing import err, job_line, out, print_json, print_result, progress_bar

if TYPE_CHECKING:
    from kronos.store.store import MemoryStore
    from kronos.types import Progress, ReindexPlan, ReindexReport

reindex = typer.Typer(
    invoke_without_command=True,
    help="Embed pending texts, or change the embedding model. The job can be shared: run the same "
    "command again, here or on another machine, and it joins the job. A job that was stopped or "
    "killed continues where it was.",
)

Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        help='The new model: mini, base, large, code, "hash", the name of a model, or a folder.  '
        "[default: the store's model]",
    ),
]
Device = Annotated[str, typer.Option(help='"auto", "cpu", "cuda", "cuda:0,cuda:1", "mps".')]
BatchSize = Annotated[int | None, typer.Option(help="Texts that a worker holds, at most.")]
Workers = Annotated[int, typer.Option(help="Threads that share the model.")]
MaxSeconds = Annotated[float | None, typer.Option(help="Stop after this time; resume later.")]
Rate = Annotated[float | None, typer.Option(help="Texts per second, at most.")]
AllowFailed = Annotated[
    bool, typer.Option("--allow-failed", help="Switch even if some texts cannot be embedded.")
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
        bool, typer.Option("--keep-old", help="Keep all retired spaces after the switch.")
    ] = False,
    no_activate: Annotated[
        bool, typer.Option("--no-activate", help="Fill the space, but do not switch to it.")
    ] = False,
    allow_failed: AllowFailed = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be done; write nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Start a job, or join it."""
    if context.invoked_subcommand is not None:
        return
    # Without the store's model: it may be missing, and the job embeds the pending texts.
    with open_store(store, embeds=False, device=device) as memories:
        if dry_run:
            _show_plan(memories.models.plan(model), as_json)
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
    """Show all jobs, and the texts that could not be embedded."""
    from dataclasses import asdict

    with open_store(store, embeds=False) as memories:
        jobs, failures = memories.models.jobs(), memories.models.failures()
    if as_json:
        print_json(
            {"jobs": [asdict(job) for job in jobs], "failures": [asdict(f) for f in failures]}
        )
        return
    for job in jobs:
        out.print(escape(job_line(job)))
    for failure in failures:
        ids = ", ".join(failure.memory_ids)
        out.print(escape(f"failed in space {failure.space_id}: {ids}: {failure.error}"))
    if not jobs:
        err.print("there are no jobs")


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
    """Continue the newest unfinished job; it also retries failed texts."""
    with open_store(store, embeds=False, device=device) as memories:
        _work(
            memories,
            lambda stop, progress: memories.models.resume(
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
    """Switch to the space of the newest unfinished job, after embedding its pending texts."""
    with open_store(store, embeds=False, device=device) as memories:
        _work(
            memories,
            lambda stop, progress: memories.models.activate(
                allow_failed=allow_failed or None, stop=stop, progress=progress
            ),
            as_json,
        )


@reindex.command()
def rollback(store: Store = None, device: Device = "auto", as_json: Json = False) -> None:
    """Switch back to the previous space; only texts that changed since are embedded."""
    with open_store(store, embeds=False, device=device) as memories:
        _work(
            memories,
            lambda stop, progress: memories.models.rollback(stop=stop, progress=progress),
            as_json,
        )


@reindex.command()
def cancel(store: Store = None, as_json: Json = False) -> None:
    """Cancel the newest unfinished job; `kronos compact` drops its space."""
    from dataclasses import asdict

    with open_store(store, embeds=False) as memories:
        job = memories.models.cancel()
    print_result(asdict(job), job_line(job), as_json)


def _work(
    memories: MemoryStore,
    run: Callable[[threading.Event, Callable[[Progress], None] | None], ReindexReport],
    as_json: bool,
) -> None:
    """Run a job until it is over or a signal arrives, and print how it ended."""
    from dataclasses import asdict

    with _stopped_by_signals() as stop, _job_progress(as_json) as progress:
        report = run(stop, progress)
    space = report.space
    if as_json:
        print_json({"event": "end", **asdict(report)})
    else:
        out.print(
            escape(
                f"{report.embedded} texts embedded in {report.seconds:.1f} s, {report.pending} "
                f"memories pending, {report.failed} of them failed; space {space.id} "
                f"({space.model}, {space.dim} wide) is {space.state}, the job is {report.state}"
            )
        )
        if report.state == "open":
            err.print("stopped: `kronos reindex resume` continues the job")
    if report.state == "failed":
        err.print(
            "not activated: `kronos reindex status` shows the failed texts, `kronos reindex "
            "activate --allow-failed` switches without them"
        )
        raise typer.Exit(3)


@contextmanager
def _stopped_by_signals() -> Iterator[threading.Event]:
    """The first SIGTERM or SIGINT stops after the current batch; a second SIGINT interrupts."""
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
    """Show a progress bar, or with `--json` print one object per line."""
    if not as_json:
        with progress_bar("embedding") as show:
            yield show
        return
    started = time.monotonic()
    first: list[tuple[float, int]] = []  # the rate does not include loading the model

    def write(progress: Progress) -> None:
        now = time.monotonic()
        first[:] = first or [(now, progress.done)]
        since, before = now - first[0][0], progress.done - first[0][1]
        rate = before / since if since > 0 else 0.0
        left = None if progress.total is None else progress.total - progress.done
        print_json(
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
    print_result(
        asdict(plan),
        f"{plan.memories} memories are pending for {plan.model} ({plan.dim} wide): {plan.texts} "
        f"texts to embed{tokens}, about {plan.seconds:.0f} s with one worker and "
        f"{plan.disk_bytes / 1e6:.1f} MB more on disk",
        as_json,
    )
