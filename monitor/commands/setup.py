"""Commands to set up: init, config, doctor, inspect, db."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from monitor.clock import SystemClock
from monitor.commands.common import ConfigOption, DatabaseOption, JsonOption, group, load_settings
from monitor.errors import InferwatchError
from monitor.output import complain, print_json, print_rows, say

if TYPE_CHECKING:
    from monitor.config import Settings
    from monitor.doctor import Check

config_app = group("Check and show the configuration.")
db_app = group("Look after the database.")


def init(
    output: Annotated[Path, typer.Option("--output", metavar="FILE", help="file to write")] = Path(
        "inferwatch.toml"
    ),
    config: ConfigOption = None,
    database: DatabaseOption = None,
) -> None:
    """Write a commented configuration file; an existing one is never overwritten."""
    from monitor.initialise import write_config

    write_config(output)
    say(f"wrote {output}\nnext: inferwatch config check --config {output}")


@config_app.command("check")
def config_check(
    config: ConfigOption = None, database: DatabaseOption = None, as_json: JsonOption = False
) -> None:
    """Check the configuration and what it refers to on this machine. Exit code 78 if something is wrong."""
    from monitor.doctor import check_settings

    settings = load_settings(config, database)
    checks = check_settings(settings, os.environ)
    _print_checks(checks, as_json)
    if not all(check.ok for check in checks):
        raise typer.Exit(78)
    _say_next("doctor", config, as_json)


@config_app.command("show")
def config_show(
    config: ConfigOption = None, database: DatabaseOption = None, as_json: JsonOption = False
) -> None:
    """Print the configuration in force, secrets hidden."""
    shown = redacted(load_settings(config, database))
    if as_json:
        print_json(shown)
        return
    for section, values in shown.items():
        if section == "channels":
            tables = [(f"[channels.{name}]", v) for name, v in values.items()]
        elif section == "routes":
            tables = [("[[routes]]", route) for route in values]
        else:
            tables = [(f"[{section}]", values)]
        for title, options in tables:
            say(title)
            for key, value in options.items():
                say(f"# {key} is not set" if value is None else f"{key} = {json.dumps(value)}")
            say()


def redacted(settings: Settings) -> dict[str, Any]:
    """The settings as plain values without a secret in them."""
    from monitor.doctor import HIDDEN, redact_url

    shown = settings.model_dump(mode="json")
    shown["database"]["url"] = redact_url(settings.database.url)
    for channel in shown["channels"].values():
        if channel["url"] is not None:
            scheme = channel["url"].partition("://")[0]
            is_http = scheme in ("http", "https")
            channel["url"] = redact_url(channel["url"]) if is_http else f"{scheme}://{HIDDEN}"
        if channel["secret"] is not None:
            channel["secret"] = HIDDEN
    return shown


def doctor(config: ConfigOption = None, database: DatabaseOption = None, as_json: JsonOption = False) -> None:
    """Try everything the daemon needs: settings, database, broker, topics, receivers."""
    from monitor.doctor import check_settings, check_world

    settings = load_settings(config, database)
    checks = check_settings(settings, os.environ)
    checks += check_world(settings, wrong={check.name for check in checks if not check.ok})
    _print_checks(checks, as_json)
    if not all(check.ok for check in checks):
        raise typer.Exit(1)
    _say_next("run", config, as_json)


def _say_next(command: str, config: Path | None, as_json: bool) -> None:
    if not as_json:
        say(f"next: inferwatch {command}" + (f" --config {config}" if config is not None else ""))


def _print_checks(checks: list[Check], as_json: bool) -> None:
    rows = [{"check": c.name, "ok": c.ok, "detail": c.detail, "fix": c.fix} for c in checks]
    if as_json:
        print_json(rows)
        return
    for check in checks:
        say(f"{'ok  ' if check.ok else 'FAIL'}  {check.name}: {check.detail}")
        if check.fix:
            say(f"      fix: {check.fix}" if not check.ok else f"      you may {check.fix}")


def inspect(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="log files; - is stdin")],
    config: ConfigOption = None,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say what a log file holds, what is missing, what would be rejected, and which configuration fits."""
    from monitor.inspect import inspect as inspect_files

    report = inspect_files(files, load_settings(config, database), SystemClock())
    if as_json:
        print_json(report)
    else:
        _print_report(report)
    if not report["records"]:
        complain("no message of this log is a record")
        raise typer.Exit(1)


def _print_report(report: dict[str, Any]) -> None:
    rejected = sum(row["messages"] for row in report["rejected"])
    say(f"{', '.join(report['files'])}: {report['messages']:,} messages")
    say(f"{report['records']:,} records, {rejected:,} rejected, {report['out_of_order']:,} out of time order")
    if report["first"] is not None:
        say(f"from {report['first']} to {report['last']} ({report['span_s'] / 3600:.1f} h)")
    sections = (
        ("rejected", ("reason", "messages", "first_line", "why", "sample")),
        ("fields", ("field", "records", "missing_share")),
        ("unused_fields", ("field", "records", "meant_as")),
        ("series", ("series", "records")),
    )
    for key, columns in sections:
        if report[key]:
            more = f" (the largest of {report['series_count']:,})" if key == "series" else ""
            more = " (letters of samples are shown as a, digits as 9)" if key == "rejected" else more
            say(f"\n{key.replace('_', ' ')}{more}")
            print_rows(report[key], columns, empty="")
    if report["records"] and report["absent_fields"]:
        say(f"\nnowhere present: {', '.join(report['absent_fields'])}")
    say()
    for line in report["advice"]:
        say(f"* {line}")
    if report["convert"] is not None:
        assumed = "".join(f"\n(taken for granted: {text})" for text in report["convert"]["assumed"])
        say("\nRecords of this log, if its fields are what their names say:\n")
        say(f"{report['convert']['command']}{assumed}")
    if report["config"] is not None:
        say(f"\nA configuration for this log:\n\n{report['config']}")


@db_app.command("upgrade")
def db_upgrade(config: ConfigOption = None, database: DatabaseOption = None) -> None:
    """Create the tables, or bring them to this version."""
    from sqlalchemy.exc import OperationalError

    from storage.engine import connect, upgrade

    settings = load_settings(config, database)
    from monitor.doctor import redact_url

    shown = redact_url(settings.database.url)
    engine = connect(settings.database.url)
    try:
        upgrade(engine)
    except OperationalError as error:
        raise InferwatchError(f"{shown}: {str(error.orig).splitlines()[0]}") from None
    finally:
        engine.dispose()
    say(f"{shown} is up to date")
