"""The command line: puts the commands together and turns errors into one line and an exit code.

Exit codes: 0 done, 1 failed, 2 wrong usage, 78 wrong configuration. Only the command that was asked for is
imported and built, and it imports what it needs when it runs, so that reading ones start fast.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Annotated

import typer

from monitor.errors import InferwatchError
from monitor.output import complain

COMMANDS: dict[str, str] = {
    "demo": "work",
    "run": "work",
    "replay": "work",
    "simulate": "simulate",
    "inspect": "setup",
    "init": "setup",
    "config": "setup",
    "doctor": "setup",
    "train": "work",
    "evaluate": "evaluate",
    "top": "top",
    "incidents": "incidents",
    "alerts": "history",
    "windows": "history",
    "series": "history",
    "deployments": "history",
    "silences": "silences",
    "deliveries": "history",
    "models": "models",
    "tokens": "tokens",
    "notify": "notify",
    "webhook": "notify",
    "db": "setup",
}
"""Command -> its module in monitor.commands. A function there has the command's name, a group NAME_app."""


READING = frozenset(
    (
        *("alerts", "windows", "series", "deployments", "incidents list", "incidents show"),
        *("deliveries list", "models list", "models show", "models drift", "silences list"),
    )
)
"""Commands that only look: their arguments are bound without building a parser, where they are plain."""


def build_app(only: str | None = None) -> typer.Typer:
    """The application with all commands, or with just the one named `only` if it exists."""
    app = typer.Typer(
        help="Watches the logs of models in production and keeps an incident database.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
    )
    app.callback()(_root)
    for name in [only] if only in COMMANDS else COMMANDS:
        module = import_module(f"monitor.commands.{COMMANDS[name]}")
        group = getattr(module, f"{name}_app", None)
        if group is not None:
            app.add_typer(group, name=name)
        else:
            app.command(name)(getattr(module, name))
    return app


def command_function(name: str) -> Callable[..., None]:
    """What stands behind a command such as "alerts" or "incidents list"."""
    command, _, sub = name.partition(" ")
    module = import_module(f"monitor.commands.{COMMANDS[command]}")
    if not sub:
        function: Callable[..., None] = getattr(module, command)
        return function
    app: typer.Typer = getattr(module, f"{command}_app")
    (found,) = (each.callback for each in app.registered_commands if each.name == sub)
    assert found is not None
    return found


def run_straight(arguments: list[str]) -> bool:
    """Run a command of READING whose arguments are plain; False = nothing has happened, ask typer."""
    for length in (1, 2):
        name = " ".join(arguments[:length])
        if name in READING:
            break
    else:
        return False
    from monitor.straight import bind

    function = command_function(name)
    bound = bind(function, arguments[length:])
    if bound is None:
        return False
    try:
        function(**bound)
    except typer.BadParameter:  # before anything was printed; typer says which option and shows the usage
        return False
    return True


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        sys.stdout.write(f"inferwatch {version('inferwatch')}\n")
        raise typer.Exit


def _root(
    show_version: Annotated[
        bool, typer.Option("--version", help="print the version", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    pass


def main() -> None:
    """Entry point of the `inferwatch` command."""
    gc.set_threshold(20_000, 20, 20)  # imports make no garbage: looking for it is a tenth of a short command
    try:
        arguments = sys.argv[1:]
        if not run_straight(arguments):
            build_app(arguments[0] if arguments else None)(prog_name="inferwatch")
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # the reader of the pipe has gone; nothing more can be said
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        code = exit_code(error)
        if code is None:
            raise
        complain(f"inferwatch: {first_line(error)}{hint(error)}")
        sys.exit(code)


def exit_code(error: Exception) -> int | None:
    """The exit code of an error that a person can do something about; None for a defect of this software."""
    if isinstance(error, InferwatchError):
        return error.exit_code
    if isinstance(error, OSError):
        return 1
    storage = sys.modules.get("storage.names")
    if storage is not None:
        if isinstance(error, storage.DatabaseUrlError):
            return 78
        if isinstance(error, storage.DatabaseInUse | storage.SchemaTooNew | storage.UnknownIncident):
            return 1
    drivers = (("sqlalchemy.exc", "DBAPIError"), ("sqlite3", "Error"), ("psycopg", "Error"))
    loaded = [getattr(sys.modules[module], name) for module, name in drivers if module in sys.modules]
    return 1 if isinstance(error, tuple(loaded)) else None


def hint(error: Exception) -> str:
    """What to type next, for errors that do not say so themselves."""
    storage = sys.modules.get("storage.names")
    if storage is not None and isinstance(error, storage.UnknownIncident):
        return "; `inferwatch incidents list` shows them"
    drivers = ("OperationalError", "InterfaceError")
    return "; `inferwatch doctor` tries the database" if type(error).__name__ in drivers else ""


def first_line(error: Exception) -> str:
    """What went wrong, without the statement and parameters that a database error carries."""
    text = str(getattr(error, "orig", None) or error) or type(error).__name__
    return text.strip().splitlines()[0][:500]


if __name__ == "__main__":
    main()
