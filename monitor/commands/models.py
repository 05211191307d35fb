"""`inferwatch models`: versions, what was measured of them, which one is in force."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from monitor.commands import completion
from monitor.commands.common import (
    ConfigOption,
    DatabaseOption,
    JsonOption,
    SinceOption,
    Source,
    group,
    looking,
    newer,
)
from monitor.commands.shapes import Actor, Engine, Rows, acts, prints
from monitor.errors import InferwatchError
from monitor.output import number, print_fields, print_json, say

models_app = group("Trained models.")
CHART_WIDTH = 60
DETAILS = ("version", "detector", "trained_at", "status", "reason", "sha256")
VersionArgument = Annotated[str, typer.Argument(metavar="VERSION", autocompletion=completion.models)]


def unknown(version: str) -> InferwatchError:
    return InferwatchError(f"no model version {version}; `inferwatch models list` shows them")


@models_app.command("list")
@prints(
    ("version", "detector", "trained_at", "status", "reason"),
    empty="no model was trained yet; the one that ships with the package is in force",
)
def list_models(source: Source, since: SinceOption = None) -> Rows:
    """Model versions, newest first."""
    from storage import queries

    return newer(queries.models(source), "trained_at", since)


@models_app.command("show")
def show_model(
    version: VersionArgument,
    config: ConfigOption = None,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """One model version: what was measured of it, and how its training went, as charts."""
    from storage import queries

    with looking(config, database) as source:
        found = queries.models(source, version=version)
    if not found:
        raise unknown(version)
    if as_json:
        print_json(found[0])
    else:
        _print_model(found[0])


def _print_model(row: Mapping[str, Any]) -> None:
    from monitor.chart import Point, labelled
    from monitor.measured import measured

    print_fields(row, DETAILS)
    drift = row["drift"]
    if drift is not None:
        said = f", {', '.join(drift['shifted'])}" if drift["shifted"] else ""
        say(f"compared with the newest windows: {drift['reason']}{said}")
    found = measured(row["metrics"])
    if found.figures:
        say()
        print_fields(dict(found.figures), [name for name, _ in found.figures])
    for name, values in found.curves:
        say(f"\n{name}: {number(values[0])} to {number(values[-1])} in {len(values)} rounds")
        apart = [Point(None)] * (CHART_WIDTH // len(values))
        points = [point for value in values for point in (Point(value), *apart)]
        for line in labelled(points, low=None, high=None, number=number):
            say(line)


@models_app.command("drift")
@prints(
    ("checked_at", "reason", "shifted", "largest_index", "series", "trained_at"),
    empty="nothing was compared yet: the first comparison comes two days after the first training data",
)
def list_drift(source: Source, since: SinceOption = None) -> Rows:
    """Comparisons of the newest windows with those trained on, newest first."""
    from storage import verdicts

    found = [verdicts.shown(row) for row in verdicts.all_verdicts(source)]
    for row in found:
        row["largest_index"] = max(row["index"].values(), default=None)
    return newer(found, "checked_at", since)


@models_app.command("promote")
@acts
def promote_model(engine: Engine, person: Actor, version: VersionArgument) -> str:
    """Put a stored version in force."""
    from storage.models import ModelRegistry

    if not ModelRegistry(engine).promote(version, person):
        raise unknown(version)
    return f"{version} is the champion"


@models_app.command("refuse")
@acts
def refuse_model(engine: Engine, person: Actor, version: VersionArgument) -> str:
    """Mark a version that is not in force as refused, with why."""
    from storage import queries
    from storage.models import ModelRegistry

    reason = person.reason or f"refused by {person.name}"
    if not ModelRegistry(engine).refuse(version, reason, person):
        if not queries.models(engine, version=version):
            raise unknown(version)
        raise InferwatchError(f"{version} is in force; `inferwatch models rollback` takes it back")
    return f"{version} is refused"


@models_app.command("rollback")
@acts
def rollback_model(engine: Engine, person: Actor) -> str:
    """Take the champion back; the one before is in force again."""
    from storage.models import ModelRegistry

    version = ModelRegistry(engine).rollback(person)
    return f"{version or 'the model that ships with the package'} is in force again"
