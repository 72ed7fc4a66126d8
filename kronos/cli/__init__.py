"""The command `kronos`: what people and scripts do to a store without writing a program.

It holds no rule of its own: it parses, calls the library and prints. Errors are one red line on
stderr. Exit codes: 0 done, or stopped as it was asked to (by a signal or `--max-seconds`) and to be
resumed; 1 failed; 2 asked wrongly; 3 a reindex that came to its end without a switch, because some
texts cannot be embedded; 130 interrupted by Ctrl-C. With `--json` a command prints JSON alone. Text
goes in and out as UTF-8, whatever the locale. Heavy modules are imported inside the commands.
"""

from __future__ import annotations

import sys
import warnings
from typing import Annotated, Any

import typer
from rich.markup import escape

from kronos import __version__
from kronos.cli import links, maintenance, memories, searching
from kronos.cli.encoding import speak_utf8, typed
from kronos.cli.indexes import index
from kronos.cli.jobs import reindex, start
from kronos.cli.printing import err, out
from kronos.cli.schema import db
from kronos.errors import InputError, KronosError, KronosWarning

_UsageError: Any = typer.BadParameter.__bases__[0]
"""What an unknown option or a missing argument raises; typer has no public name for it."""

_INTERRUPTED = 130

app = typer.Typer(
    name="kronos",
    help="A memory store whose memories outlive embedding models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("import")(memories.import_)
app.command()(memories.add)
app.command()(searching.search)
app.command()(memories.get)
app.command("list")(memories.list_)
app.command()(memories.delete)
app.command()(memories.history)
app.command()(memories.duplicates)
app.command()(links.link)
app.command()(links.unlink)
app.command()(links.links)
app.command()(links.trace)
app.command()(maintenance.info)
app.command()(maintenance.tune)
app.command()(maintenance.compact)
app.command()(maintenance.doctor)
app.command()(maintenance.export)
app.command()(maintenance.backup)
app.command()(maintenance.restore)
app.command()(maintenance.recover)
app.add_typer(index, name="index")
app.add_typer(db, name="db")
app.add_typer(reindex, name="reindex")


def _show_version(is_wanted: bool) -> None:
    if is_wanted:
        out.print(f"kronos {__version__}")
        raise typer.Exit


@app.callback()
def kronos(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """A memory store whose memories outlive embedding models."""


def main() -> None:
    """Run the command line; the program's entry point."""
    warnings.showwarning = _show_warning
    warnings.simplefilter("always", KronosWarning)
    speak_utf8()
    try:
        # No arguments at all: show the help. Not standalone: errors are ours to print.
        # What a command leaves with typer.Exit comes back as a number.
        code = app(typed(sys.argv[1:]) or ["--help"], standalone_mode=False)
        if code == _INTERRUPTED:
            raise KeyboardInterrupt
        sys.exit(code)
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
        _fail("stopped", _INTERRUPTED)
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


__all__ = ["app", "db", "index", "main", "reindex", "start"]
