"""Output of the commands: a line or JSON on stdout, a progress bar on stderr."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape

if TYPE_CHECKING:
    from kronos.types import Job, Memory, Progress, TuneReport

_PROGRESS_AFTER_S = 1.0
_SHOWN_CHARACTERS = 300

# No emoji codes: a text with `:smile:` or `a:A:b` is printed unchanged.
out = Console(soft_wrap=True, highlight=False, emoji=False)
err = Console(stderr=True, soft_wrap=True, highlight=False, emoji=False)


def print_result(fields: dict[str, Any], line: str, as_json: bool) -> None:
    """Print the result of a command: an object with `--json`, otherwise a line."""
    if as_json:
        print_json(fields)
    else:
        out.print(escape(line))


def print_json(value: Any) -> None:
    """Print one value as a line of JSON."""
    # Without rich, which would wrap and colour it.
    sys.stdout.write(json.dumps(value, ensure_ascii=False, default=_plain) + "\n")


def _plain(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else str(value)


def memory_fields(memory: Memory) -> dict[str, Any]:
    """A memory as a JSON object."""
    from dataclasses import asdict

    return {
        name: value.isoformat() if isinstance(value, datetime) else value
        for name, value in asdict(memory).items()
    }


def show(memory: Memory, label: str) -> None:
    """Print a memory on two lines: a label with its id or source, and its text."""
    source = memory.metadata.get("source")
    place = f"{source}:{memory.metadata.get('line', 1)}" if source else memory.id
    out.print(
        f"[bold]{escape(label)}[/bold]  [dim]{escape(str(place))}[/dim]\n  "
        f"{escape(one_line(memory.content))}"
    )


def one_line(text: str) -> str:
    """The beginning of a text on one line."""
    text = " ".join(text.split())
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 1] + "…"


def job_line(job: Job) -> str:
    """A reindex job as a sentence."""
    error = f"; {job.last_error}" if job.last_error else ""
    return (
        f"job {job.id}: {job.state}, {job.done} of {job.total} memories, {job.pending} pending, "
        f"{job.failed} failed, {job.workers} workers, {job.rate:.0f} per second, attempt "
        f"{job.attempts}, last active {job.heartbeat_at:%Y-%m-%d %H:%M:%S} UTC; space "
        f"{job.space.id} ({job.space.model}) is {job.space.state}{error}"
    )


def index_line(kind: str, effort: int | None, recall: float | None) -> str:
    """The kind of an index, and how well it finds."""
    if effort is None:
        return f"{kind}, exact"
    measured = "unknown: run `kronos tune`" if recall is None else f"{recall:.4f} when measured"
    return f"{kind}, effort {effort}, recall@10 {measured}"


def tune_line(report: TuneReport) -> str:
    """The result of tuning as a sentence."""
    if report.effort is None:
        return f"{report.vectors} vectors, {report.index_kind}: every search is exact"
    saved = "" if report.saved else "; it could not be saved, so it holds for this process only"
    return (
        f"{report.vectors} vectors, {report.index_kind}: recall@10 is {report.recall:.4f} with an "
        f"effort of {report.effort}{saved}"
    )


@contextmanager
def progress_bar(description: str) -> Iterator[Callable[[Progress], None] | None]:
    """Show a progress bar after one second; None if stderr is not a terminal."""
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
