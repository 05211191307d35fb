"""Two shapes that most commands have: rows of the database as a list, and a change by a person.

Each turns a function of the database and of options of its own into a command with the shared options.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monitor.commands.common import (
    ByOption,
    CommentOption,
    ConfigOption,
    DatabaseOption,
    JsonOption,
    actor,
    looking,
    reading,
)
from monitor.output import Row, print_json, print_rows, say

if TYPE_CHECKING:
    from sqlalchemy import Engine as Engine

    from storage.actions import Actor as Actor
else:
    Engine = Actor = Any  # typer reads the annotations of commands

Rows = list[dict[str, Any]]


def _looking(
    config: ConfigOption = None, database: DatabaseOption = None, as_json: JsonOption = False
) -> None:
    """The options of every command that prints rows."""


def _acting(
    by: ByOption = None,
    comment: CommentOption = "",
    config: ConfigOption = None,
    database: DatabaseOption = None,
) -> None:
    """The options of every command by which a person changes something."""


def changing(
    by: ByOption = None,
    comment: CommentOption = "",
    config: ConfigOption = None,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """The options of every command by which a person changes something that can be shown."""


def prints(
    columns: Sequence[str], empty: str, said: Callable[[Row], Row] | None = None
) -> Callable[[Callable[..., Rows]], Callable[..., None]]:
    """A command out of a function of a database (and of options of its own) that returns rows.

    `columns` stand in the table; `empty` is said when there are no rows, with the options filled in; `said`
    makes of a row what the table shows of it.
    """

    def decorate(read: Callable[..., Rows]) -> Callable[..., None]:
        def command(config: Path | None, database: str | None, as_json: bool, **options: Any) -> None:
            with looking(config, database) as source:
                rows = read(source, **options)
            shown = rows if said is None or as_json else map(said, rows)
            print_rows(shown, columns, empty=empty.format(**options), as_json=as_json)

        return with_options(command, read, 1, _looking)

    return decorate


def acts(act: Callable[..., str]) -> Callable[..., None]:
    """A command out of a function of an engine, who acts, and its own options; it returns what to say."""

    def command(
        by: str | None, comment: str, config: Path | None, database: str | None, **options: Any
    ) -> None:
        with reading(config, database) as engine:
            said = act(engine, actor(by, comment), **options)
        say(said)

    return with_options(command, act, 2, _acting)


def answers(
    understand: Callable[..., object],
) -> Callable[[Callable[..., tuple[Any, str]]], Callable[..., None]]:
    """As `acts`; it returns what to print with --json and what to say without.

    `understand` gets the options first, before the database is looked at: it refuses what makes no sense, and
    what it makes of them is the third argument.
    """

    def decorate(act: Callable[..., tuple[Any, str]]) -> Callable[..., None]:
        def command(
            by: str | None, comment: str, config: Path | None, database: str | None, as_json: bool,
            **options: Any,
        ) -> None:  # fmt: skip
            meant = understand(**options)
            with reading(config, database) as engine:
                shown, said = act(engine, actor(by, comment), meant, **options)
            if as_json:
                print_json(shown)
            else:
                say(said)

        return with_options(command, act, 3, changing)

    return decorate


def with_options(
    command: Callable[..., None], own: Callable[..., Any], given: int, shared: Callable[..., None]
) -> Callable[..., None]:
    """`command` with name and help of `own`, its options behind the first `given`, and the shared ones."""
    functools.update_wrapper(command, own)
    mine = list(inspect.signature(own, eval_str=True).parameters.values())[given:]
    theirs = inspect.signature(shared, eval_str=True).parameters.values()
    both = [each.replace(kind=each.KEYWORD_ONLY) for each in (*mine, *theirs)]
    command.__signature__ = inspect.Signature(both)  # type: ignore[attr-defined]
    command.__annotations__ = {each.name: each.annotation for each in both}
    return command
