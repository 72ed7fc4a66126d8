"""The command `kronos`: the library for people and scripts.

A command parses its arguments, calls the library and prints the result; it has no rules of its own.
An error is one red line on stderr. With `--json` a command prints only JSON. Input and output are
UTF-8 in every locale. Heavy modules are imported inside the commands.

Exit codes:

    0      done; also a job that a signal or `--max-seconds` stopped, and that can be resumed
    1      failed
    2      wrong usage
    3      a reindex that ended without a switch, because some texts cannot be embedded
    130    interrupted by Ctrl-C
"""

from __future__ import annotations

import sys
import warnings
from typing import Annotated, Any

import typer
from rich.markup import escape

from kronos import __version__
from kronos.cli import links, maintenance, memories, searching
from kronos.cli.encoding import decoded, speak_utf8
from kronos.cli.indexes import index
from kronos.cli.jobs import reindex, start
from kronos.cli.printing import err, out
from kronos.cli.schema import db
from kronos.errors import InputError, KronosError, KronosWarning

_UsageError: Any = typer.BadParameter.__bases__[0]
"""The error for an unknown option or a missing argument; typer has no public name for it."""

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
        # Without arguments, show the help. Not standalone, so that this function prints errors;
        # the code of typer.Exit is then returned.
        code = app(decoded(sys.argv[1:]) or ["--help"], standalone_mode=False)
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
    except Exception as exc:  # one line that a user can report, instead of a traceback
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
