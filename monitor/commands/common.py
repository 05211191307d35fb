"""Options that every command shares, and the short way to the database for commands that read."""

from __future__ import annotations

import getpass
import os
import tomllib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from monitor.clock import SystemClock
from monitor.errors import ConfigError, InferwatchError
from monitor.output import parse_time

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from monitor.config import Settings
    from storage.actions import Actor
    from storage.sql import Plain

    Source = Engine | Plain
else:
    Source = Any  # typer reads the annotations of commands

DEFAULT_URL = "sqlite:///inferwatch.db"
URL_VARIABLE = "INFERWATCH_DATABASE__URL"

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config", metavar="FILE", envvar="INFERWATCH_CONFIG", help="TOML file; see `inferwatch init`"
    ),
]
DatabaseOption = Annotated[
    str | None,
    typer.Option("--database", metavar="URL", help="sqlite:///FILE or postgresql://...; wins over FILE"),
]
JsonOption = Annotated[bool, typer.Option("--json", help="print JSON")]
SinceOption = Annotated[
    str | None, typer.Option("--since", metavar="TIME", help="24h, 7d, 90m, or an RFC 3339 time")
]
LimitOption = Annotated[int, typer.Option("--limit", min=1, max=100_000, help="rows at most")]
ByOption = Annotated[
    str | None, typer.Option("--by", metavar="NAME", help="who says so; default: the login name")
]
CommentOption = Annotated[str, typer.Option("--comment", metavar="TEXT", help="why")]


def group(help_text: str) -> typer.Typer:
    """A command group that shows its help when it is called bare."""
    return typer.Typer(help=help_text, no_args_is_help=True, pretty_exceptions_enable=False)


def load_settings(config: Path | None, database: str | None) -> Settings:
    """The full, checked settings. Raises ConfigError."""
    from monitor.config import load

    return load(config, database_url=database)


def database_url(config: Path | None, database: str | None) -> str:
    """The database URL alone, by the same order as monitor.config.load: flag, environment, file, default.

    Reading commands need nothing else of the settings, and checking all of them takes longer than the
    query. Raises ConfigError for a file that is missing or not TOML.
    """
    values: object = {}
    if config is not None:
        try:
            values = tomllib.loads(config.read_text(encoding="utf-8")).get("database", {})
        except FileNotFoundError:
            raise ConfigError("--config", str(config), "no such file; `inferwatch init` writes one") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
            raise ConfigError("--config", str(config), f"not readable as TOML: {error}") from None
    in_file = values.get("url", DEFAULT_URL) if isinstance(values, dict) else values
    url = database or os.environ.get(URL_VARIABLE) or in_file
    if not isinstance(url, str):
        raise ConfigError("database.url", url, "must be a text such as sqlite:///inferwatch.db")
    return url


OTHER_SCHEMA = "the tables of this database are not of this version; run `inferwatch db upgrade`"


@contextmanager
def looking(config: Path | None, database: str | None) -> Iterator[Engine | Plain]:
    """As `reading`, for commands that only look: without SQLAlchemy where the URL is a plain one.

    Loading SQLAlchemy takes longer than everything else that such a command does.
    """
    from storage.names import SCHEMA_VERSION
    from storage.sql import plain

    url = database_url(config, database)
    kind, _, file = url.partition(":///")
    if kind == "sqlite" and "?" not in file:
        _require_file(file)
    opened = plain(url)
    if opened is None:
        with reading(config, database) as engine:
            yield engine
        return
    with opened:
        if opened.version() != SCHEMA_VERSION:
            raise InferwatchError(OTHER_SCHEMA)
        yield opened


def _require_file(file: str) -> None:
    if file not in ("", ":memory:") and not Path(file).is_file():
        raise InferwatchError(f"no database at {file}; `inferwatch run` or `replay` makes one")


@contextmanager
def reading(config: Path | None, database: str | None) -> Iterator[Engine]:
    """An engine on a database that exists and has the tables of this version.

    Raises ConfigError for a URL that cannot work, InferwatchError for a database that is not there.
    """
    from storage.engine import connect, current_version
    from storage.names import SCHEMA_VERSION

    engine = connect(database_url(config, database))
    try:
        if engine.dialect.name == "sqlite":
            _require_file(engine.url.database or "")
        if current_version(engine) != SCHEMA_VERSION:
            raise InferwatchError(OTHER_SCHEMA)
        yield engine
    finally:
        engine.dispose()


def since_ms(since: str | None, option: str = "--since", now_ms: int | None = None) -> int | None:
    """A time such as that of `--since` as ms since the epoch; a usage error when it is none.

    A length counts back from `now_ms`, by default from now: of a log of last year from its newest window.
    """
    if since is None:
        return None
    try:
        return parse_time(since, SystemClock().now_ms() if now_ms is None else now_ms)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=option) from None


def one_of(value: str | None, allowed: Iterable[str], option: str) -> None:
    """A usage error unless `value` is left out or one of `allowed`."""
    allowed = list(allowed)
    if value is not None and value not in allowed:
        *most, last = allowed
        raise typer.BadParameter(f"use {', '.join(most)} or {last}", param_hint=option)


def newer(rows: list[dict[str, Any]], column: str, since: str | None) -> list[dict[str, Any]]:
    """Rows whose time in `column` is not before `since`."""
    at_ms = since_ms(since)
    return rows if at_ms is None else [row for row in rows if row[column].timestamp() * 1000 >= at_ms]


def who(by: str | None) -> str:
    """The person who acts."""
    return by or getpass.getuser()


def actor(by: str | None, comment: str = "") -> Actor:
    """Who acts now, and why."""
    from storage.actions import Actor

    return Actor(who(by), SystemClock().now_ms(), comment)
