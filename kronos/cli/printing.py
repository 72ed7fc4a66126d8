"""How commands print: a line or JSON on stdout, a bar on stderr."""

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

# No emoji codes: a text that holds `:smile:` or `a:A:b` is shown as it is.
out = Console(soft_wrap=True, highlight=False, emoji=False)
err = Console(stderr=True, soft_wrap=True, highlight=False, emoji=False)


def print_result(fields: dict[str, Any], line: str, as_json: bool) -> None:
    """Say what came of a command: an object with `--json`, else a line."""
    if as_json:
        print_json(fields)
    else:
        out.print(escape(line))


def print_json(value: Any) -> None:
    """Write one value as a line of JSON."""
    # Not through rich, which would wrap and colour it.
    sys.stdout.write(json.dumps(value, ensure_ascii=False, default=_plain) + "\n")


def _plain(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else str(value)


def memory_fields(memory: Memory) -> dict[str, Any]:
    """What JSON says of a memory."""
    from dataclasses import asdict

    return {
        name: value.isoformat() if isinstance(value, datetime) else value
        for name, value in asdict(memory).items()
    }


def show(memory: Memory, label: str) -> None:
    """Print a memory on two lines: what it is and where it stands, and its text."""
    source = memory.metadata.get("source")
    place = f"{source}:{memory.metadata.get('line', 1)}" if source else memory.id
    out.print(
        f"[bold]{escape(label)}[/bold]  [dim]{escape(str(place))}[/dim]\n  "
        f"{escape(one_line(memory.content))}"
    )


def one_line(text: str) -> str:
    """The beginning of a text, on one line."""
    text = " ".join(text.split())
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 1] + "…"


def job_line(job: Job) -> str:
    """A reindex job in a sentence."""
    error = f"; {job.last_error}" if job.last_error else ""
    return (
        f"job {job.id}: {job.state}, {job.done} of {job.total} memories, {job.pending} pending, "
        f"{job.failed} failed, {job.workers} workers, {job.rate:.0f} a second, attempt "
        f"{job.attempts}, last heard of {job.heartbeat_at:%Y-%m-%d %H:%M:%S} UTC; space "
        f"{job.space.id} ({job.space.model}) is {job.space.state}{error}"
    )


def index_line(kind: str, effort: int | None, recall: float | None) -> str:
    """What kind of index there is and how well it finds, in a few words."""
    if effort is None:
        return f"{kind}, exact"
    found = "never measured: run `kronos tune`" if recall is None else f"{recall:.4f} when measured"
    return f"{kind}, effort {effort}, recall@10 {found}"


def tune_line(report: TuneReport) -> str:
    """What came of tuning, in a sentence."""
    if report.effort is None:
        return f"{report.vectors} vectors, {report.index_kind}: every search is exact"
    kept = "" if report.saved else "; it could not be saved, so the next open does without"
    return (
        f"{report.vectors} vectors, {report.index_kind}: recall@10 is {report.recall:.4f} with an "
        f"effort of {report.effort}{kept}"
    )


@contextmanager
def progress_bar(description: str) -> Iterator[Callable[[Progress], None] | None]:
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
