"""The command itself: its verbs, and the one place where an error becomes a sentence and an exit code."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterable, Sequence
from importlib import import_module
from keyword import iskeyword
from types import FrameType
from typing import Annotated, NoReturn, cast

import typer
from rich.markup import escape

from afterwrite import __version__
from afterwrite.cli.face import prose, say, show_error
from afterwrite.errors import AfterwriteError, ExitCode

_INTERRUPTED = 128 + signal.SIGINT
_TERMINATED = 128 + signal.SIGTERM
# Typer carries its own click, whose usage error is not exported: it is BadParameter's base.
_UsageError = cast("type[typer.BadParameter]", typer.BadParameter.__mro__[1])

app = typer.Typer(
    name="afterwrite",
    help="Activity logging that leaves the write path of PostgreSQL: a way out of audit triggers that loses nothing.",
    epilog="Exit codes: 0 ok, 1 error, 2 usage, 3 a gate is not met, 4 drift, 5 refused as unsafe. "
    "stdout is data, stderr is talk.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"afterwrite {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say it and exit.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", envvar="AFTERWRITE_DEBUG", help="Show the traceback of an error.")
    ] = False,
) -> None:
    """Options of every verb."""


# In the order of --help. Each is a module of its name (with an underscore after what Python keeps for itself) with a
# function of that name, or an ``app`` of several commands.
_VERBS = (
    "demo",
    "doctor",
    "scan",
    "plan",
    "install",
    "capture",
    "prove",
    "migrate",
    "defer",
    "stamp",
    "outbox",
    "broker",
    "tail",
    "search",
    "show",
    "history",
    "analytics",
    "serve",
    "key",
    "import",
    "export",
    "maintain",
    "lake",
    "bench",
)
_added: set[str] = set()


def _asked_for(arguments: Sequence[str]) -> Iterable[str]:
    """The verbs that this line can be about: to import them all takes most of a second."""
    verb = next((word for word in arguments if not word.startswith("-")), None)
    if verb is None and "--version" in arguments:
        return ["tail"]  # any
    return [verb] if verb in _VERBS else _VERBS


def command(verbs: Iterable[str] = _VERBS) -> typer.Typer:
    """The command, with these of its verbs."""
    for verb in verbs:
        if verb in _added:
            continue
        _added.add(verb)
        module = import_module(f"afterwrite.cli.{verb}{'_' if iskeyword(verb) else ''}")
        inner: typer.Typer | None = getattr(module, "app", None)
        if inner is None:
            app.command(verb, epilog=getattr(module, "EXAMPLES", None))(getattr(module, verb))
        else:
            app.add_typer(inner, name=verb)
        for each in (inner or app).registered_commands:
            each.help = prose(each.callback.__doc__ or "")
    return app


def main() -> NoReturn:
    """Run the command and exit with a code that means something."""
    arguments = sys.argv[1:]
    # --debug is welcome anywhere on the line.
    debug = "--debug" in arguments or bool(os.environ.get("AFTERWRITE_DEBUG"))
    arguments = [word for word in arguments if word != "--debug"]
    signal.signal(signal.SIGTERM, _terminated)
    try:
        code = command(_asked_for(arguments))(arguments, standalone_mode=False)
        if code == _INTERRUPTED:  # typer makes an exit code of Ctrl-C
            raise KeyboardInterrupt
        raise SystemExit(code if isinstance(code, int) else ExitCode.OK)
    except AfterwriteError as error:
        if debug:
            raise
        show_error(error)
        raise SystemExit(error.exit_code) from None
    except _UsageError as error:
        error.show()
        raise SystemExit(ExitCode.USAGE) from None
    except (KeyboardInterrupt, typer.Abort):
        say("afterwrite: interrupted; nothing was left half done")
        raise SystemExit(_INTERRUPTED) from None
    except SystemExit as error:
        if isinstance(error.__context__, BrokenPipeError):  # rich makes exit code 1 of it
            _leave_quietly()
        if error.code == _TERMINATED:
            say("afterwrite: terminated; nothing was left half done")
        raise
    except BrokenPipeError:
        _leave_quietly()
    except Exception as error:
        if debug:
            raise
        say(f"[red]afterwrite:[/] unexpected {type(error).__name__}: {escape(str(error))}")
        say("  [green]→[/] run it again with --debug and report what it shows")
        raise SystemExit(ExitCode.ERROR) from None


def _leave_quietly() -> NoReturn:
    """The reader of our output went away (`| head`): that is its right, and no error."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:
            os.dup2(nowhere, stream.fileno())
    os.dup2(nowhere, sys.stdout.fileno())
    raise SystemExit(128 + signal.SIGPIPE) from None


def _terminated(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
