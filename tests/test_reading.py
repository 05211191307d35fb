"""Reading without SQLAlchemy and without a parser: the same rows and the same arguments as with them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import typer
from sqlalchemy import Engine

from monitor.cli import COMMANDS, READING, command_function, main
from monitor.similar import similar_to
from monitor.straight import bind
from storage import lists, queries, schema, terminal
from storage.engine import connect, reading, upgrade
from storage.model_schema import ModelTable
from storage.names import SCHEMA_VERSION
from storage.sql import plain
from tests.stored import HOSTILE, populate

if TYPE_CHECKING:
    from storage.queries import Source

FILLED: dict[str, Callable[[Source], Any]] = {
    "totals": queries.totals,
    "incidents": lambda s: queries.incidents(s, status="open", series=HOSTILE, since_ms=0),
    "a page": lambda s: queries.incidents(s, limit=1, after=(10**12, "x")),
    "incident": lambda s: queries.incident(s, queries.find_incident(s, "1")),
    "beginning": lambda s: queries.find_incident(s, queries.find_incident(s, "2")[:9]),
    "alerts": lambda s: queries.alerts(s, model="rank", since_ms=0),
    "windows": lambda s: queries.windows(s, HOSTILE, since_ms=0, until_ms=10**12, limit=2),
    "series": lambda s: queries.series(s, contains="EVIL<"),
    "deliveries": lambda s: queries.deliveries(s, status="pending"),
    "rejected": lambda s: queries.rejected(s, reason="not_json"),
    "sources": queries.sources,
    "earlier": lambda s: queries.earlier(s, queries.find_incident(s, "1")),
    "overview": terminal.overview,
    "newest window": terminal.newest_window,
    "scores": lambda s: list(
        terminal.scored_series(s, since_ms=0, until_ms=None, series=None, min_score=0.0)
    ),
}
EMPTY: dict[str, Callable[[Source], Any]] = {
    "models": queries.models,
    "silences": queries.silences,
    "underscore": lambda s: queries.series(s, contains="_"),
    "nothing like it": lambda s: similar_to(s, "unknown"),
}


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    """On a database with the tables of this version."""
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path / 'reading.db'}"
    else:
        url = request.getfixturevalue("postgres_database")
    engine = connect(url)
    upgrade(engine)
    yield engine
    engine.dispose()


def test_the_driver_alone_reads_what_an_engine_reads(engine: Engine) -> None:
    url = engine.url.render_as_string(hide_password=False)
    populate(url)
    opened = plain(url)
    assert opened is not None
    with opened, reading(engine) as connection:
        assert opened.version() == SCHEMA_VERSION
        for name, read in {**FILLED, **EMPTY}.items():
            found = read(opened)
            assert found == read(engine) == read(connection), name
            assert bool(found) == (name in FILLED), name


def test_named_columns_are_those_of_the_tables() -> None:
    named: dict[type[schema.Base], tuple[Sequence[str], set[str]]] = {
        schema.DeliveryTable: (lists.DELIVERY_COLUMNS, {"payload", "lease_owner"}),
        ModelTable: (lists.MODEL_COLUMNS, {"artifact"}),
        schema.WindowTable: (lists.WINDOW_COLUMNS, {"series_id", "statistics"}),
    }
    for table, (columns, left_out) in named.items():
        assert set(columns) == set(schema.table(table).columns.keys()) - left_out


@pytest.mark.parametrize(
    "url", ["nonsense", "", "sqlite://", "sqlite:///x.db?timeout=1", "sqlite:///:memory:", "mysql://h/d"]
)
def test_other_urls_are_left_to_the_engine(url: str) -> None:
    assert plain(url) is None


ARGUMENTS: list[list[str]] = [
    [],
    ["x"],
    ["x", "y"],
    ["--json"],
    ["--json", "x", "--database", "sqlite:///a b.db"],
    ["x", "--database=sqlite:///x.db?a=b", "--config", "inferwatch.toml"],
    ["--limit", "7", "--since=24h", "x"],
    ["--limit", "0"],
    ["--limit", "many", "x"],
    ["--status", "open", "--json", "--json"],
    ["--help"],
    ["--nonsense", "x"],
    ["--since"],
    ["--since", "--json"],
    ["--json=yes"],
    ["-5", "x"],
    ["--", "x"],
    ["x", ""],
]


@pytest.mark.parametrize("name", sorted(READING))
def test_plain_arguments_are_bound_as_typer_binds_them(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFERWATCH_CONFIG", "/etc/inferwatch.toml")
    function = command_function(name)
    seen: list[dict[str, Any]] = []

    @functools.wraps(function)
    def note(**given: Any) -> None:
        seen.append(given)

    app = typer.Typer()
    app.command("it")(note)
    app.callback()(lambda: None)
    bound_at_all = 0
    for arguments in ARGUMENTS:
        bound = bind(function, arguments)
        if bound is None:  # typer decides then, whatever it is
            continue
        bound_at_all += 1
        seen.clear()
        with pytest.raises(SystemExit) as end:
            app(["it", *arguments])
        assert (end.value.code, seen) == (0, [bound]), arguments
    assert bound_at_all >= 2


def test_every_such_command_exists() -> None:
    for name in READING:
        module = import_module(f"monitor.commands.{COMMANDS[name.split()[0]]}")
        assert command_function(name).__module__ == module.__name__


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["incidents", "list", "--since", "yesterday"], "Invalid value for --since"),
        (["incidents", "list", "--status", "broken"], "Invalid value for --status"),
        (["alerts", "--limit", "0"], "Invalid value for '--limit'"),
        (["incidents", "show"], "Missing argument 'INCIDENT'"),
    ],
)
def test_what_is_wrong_is_said_by_typer(
    arguments: list[str],
    said: str,
    engine: Engine,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url = engine.url.render_as_string(hide_password=False)
    monkeypatch.setattr("sys.argv", ["inferwatch", *arguments, "--database", url])
    with pytest.raises(SystemExit) as end:
        main()
    shown = capsys.readouterr()
    assert (end.value.code, shown.out) == (2, "")
    assert said in " ".join(shown.err.replace("│", " ").split())
