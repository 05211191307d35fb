"""`inferwatch incidents`: list, show, acknowledge, resolve, reopen, label, note."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from monitor.commands import completion
from monitor.commands.common import (
    ConfigOption,
    DatabaseOption,
    JsonOption,
    LimitOption,
    SinceOption,
    actor,
    group,
    load_settings,
    looking,
    one_of,
    reading,
    since_ms,
)
from monitor.commands.shapes import Actor, changing, with_options
from monitor.output import cell, complain, number, print_fields, print_json, print_rows, say

if TYPE_CHECKING:
    from storage.people import People as People
    from storage.queries import Source
else:
    People = Any  # typer reads the annotations of commands

incidents_app = group("Look at incidents and say what you know about them.")

COLUMNS = (
    "position",
    "incident_id",
    "status",
    "severity",
    "started_at",
    "resolved_at",
    "series_count",
    "title",
)
DETAILS = (
    "incident_id",
    "status",
    "severity",
    "summary",
    "started_at",
    "opened_at",
    "acknowledged_at",
    "acknowledged_by",
    "resolved_at",
    "resolution",
    "peak_score",
    "series",
    "labels",
)
STATES = ("open", "acknowledged", "resolved")
MAX_CHARTED_ALERTS, MAX_CHARTED_FEATURES, MAX_CHART_WINDOWS = 3, 2, 1_440
SHOWN_SHARED = 3
FEATURES = ("feature", "observed", "expected", "low", "high", "contribution", "windows")

Reference = Annotated[
    str,
    typer.Argument(
        metavar="INCIDENT",
        help="an id, its beginning, or the position in the list",
        autocompletion=completion.incidents,
    ),
]


@incidents_app.command("list")
def list_incidents(
    config: ConfigOption = None,
    database: DatabaseOption = None,
    since: SinceOption = None,
    status: Annotated[
        str | None,
        typer.Option(
            "--status", help="open, acknowledged or resolved", autocompletion=completion.among(*STATES)
        ),
    ] = None,
    limit: LimitOption = 50,
    as_json: JsonOption = False,
) -> None:
    """Incidents, newest first."""
    one_of(status, STATES, "--status")
    from storage import queries

    with looking(config, database) as engine:
        rows = queries.incidents(engine, status=status, since_ms=since_ms(since), limit=limit)
    if as_json:
        print_json(rows)
        return
    plain_list = status is None and since is None
    shown = [
        {"position": i, **row, "incident_id": str(row["incident_id"])[:8]} for i, row in enumerate(rows, 1)
    ]
    print_rows(shown, COLUMNS if plain_list else COLUMNS[1:], empty="no incidents")


@incidents_app.command("show")
def show_incident(
    incident: Reference,
    config: ConfigOption = None,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """One incident: what was seen, what was expected, what happened since, what was sent."""
    from monitor.similar import similar_to
    from storage import queries

    with looking(config, database) as engine:
        incident_id = queries.find_incident(engine, incident)
        found = queries.incident(engine, incident_id)
        before = similar_to(engine, incident_id)
        if as_json:
            print_json({**found, "earlier": before})
        else:
            _print_incident(engine, found, before)


def _windows_around(source: Source, alert: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Windows of an alert's series from an hour before it to a little behind it."""
    from storage import queries

    start_ms, end_ms = (round(alert[name].timestamp() * 1000) for name in ("window_start", "window_end"))
    margin_ms = max((end_ms - start_ms) // 4, 10 * 60_000)
    since_ms = start_ms - max(margin_ms, 3_600_000)
    return queries.windows(
        source, alert["series"], since_ms=since_ms, until_ms=end_ms + margin_ms, limit=MAX_CHART_WINDOWS
    )


def _print_incident(source: Source, found: Mapping[str, Any], before: Sequence[Mapping[str, Any]]) -> None:
    say(str(found["title"]))
    print_fields({**found, "acknowledged_by": _acknowledged_by(found)}, DETAILS)
    for place, alert in enumerate(found["alerts"]):
        say(f"\n{alert['series']}: {alert['summary']}")
        span = f"{cell(alert['window_start'])} to {cell(alert['window_end'])}"
        say(f"{span}, {alert['rarity']}, {alert['reason']}")
        print_rows(alert["top_features"], FEATURES, empty="no features")
        if place < MAX_CHARTED_ALERTS:
            _print_charts(alert, _windows_around(source, alert))
        for part in alert["slices"]:
            say(f"concentrated in {part['field']} {part['value']}: {part['reason']}")
        if alert["model_versions"]:
            say(f"versions seen: {', '.join(alert['model_versions'])}")
        if alert["exemplars"]:
            say(f"for example {', '.join(alert['exemplars'])}")
        if place < MAX_CHARTED_ALERTS or alert["status"] == "withdrawn":
            _print_changes(source, alert)
    if found["deployments"]:
        say("\nnew versions")
        versions = ("at", "series", "model_version", "verdict", "summary")
        print_rows(found["deployments"], versions, empty="none")
    say("\ntimeline")
    print_rows(found["events"], ("at", "kind", "actor", "reason"), empty="no events")
    say("\nearlier incidents like it")
    like_it = ("incident_id", "opened_at", "resolved_at", "resolution", "label", "score", "shared", "title")
    print_rows([_like_it(row) for row in before], like_it, empty="none: it has not happened before")
    say("\ndeliveries")
    columns = ("event", "channel", "status", "attempts", "delivered_at", "last_error")
    print_rows(found["deliveries"], columns, empty="nothing was sent")


def _print_changes(source: Source, alert: Mapping[str, Any]) -> None:
    """What an alert said before, and which of its windows late records have amended."""
    from storage import revisions

    if alert["status"] == "withdrawn":
        say("withdrawn: late records made every window of it normal")
    for window in revisions.amended(source, dict(alert)):
        start, revision = cell(window["window_start"]), window["revision"]
        say(f"late records amended the window of {start}: revision {revision}")
    alert_id = str(alert["alert_id"])
    steps = revisions.steps(source, [alert_id]).get(alert_id, [])
    if len(steps) > 1:
        say("what it said, step by step")
        print_rows(steps, ("at", "kind", "severity", "score", "summary"), empty="")


def _like_it(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of `similar_to` as a line of the table; the label is the last one that was given."""
    incident = row["incident"]
    return {
        **incident,
        "incident_id": str(incident["incident_id"])[:8],
        "label": incident["labels"][-1]["label"] if incident["labels"] else None,
        "score": row["score"],
        "shared": ", ".join(row["shared"][:SHOWN_SHARED]),
    }


def _acknowledged_by(found: Mapping[str, Any]) -> str:
    """Who acknowledged it, unless it was reopened since."""
    if found["acknowledged_at"] is None:
        return ""
    seen = [event["actor"] for event in found["events"] if event["kind"] == "acknowledged"]
    return str(seen[-1]) if seen else ""


def _print_charts(alert: Mapping[str, Any], windows: Sequence[Mapping[str, Any]]) -> None:
    """The worst features of an alert over time, each with the band that was expected at its worst window."""
    from monitor.chart import Point, labelled

    for row in alert["top_features"][:MAX_CHARTED_FEATURES]:
        name = str(row["feature"])
        values = [_value(window, name) for window in windows]
        points = [
            Point(value, bool(window["is_anomalous"])) for value, window in zip(values, windows, strict=True)
        ]
        low, high = row.get("low"), row.get("high")
        lines = labelled(points, low=low, high=high, number=number)
        if not lines:
            continue
        band = "" if low is None or high is None else f", expected {number(low)} to {number(high)} (shaded)"
        say(f"\n{name}{band}; ◆ anomalous")
        for line in lines:
            say(line)
        first, last = cell(windows[0]["window_start"]), cell(windows[-1]["window_end"])
        say(f"{'└':>{lines[0].index('┤') + 1}} {first} to {last}")


def _value(window: Mapping[str, Any], feature: str) -> float | None:
    bare = feature.removeprefix("metric.")
    found = window.get(feature) if bare == feature else (window.get("metrics") or {}).get(bare)
    return None if found is None else float(found)


def changes(change: Callable[..., None]) -> Callable[..., None]:
    """A command out of a function of People, who acts, an incident, and of arguments of its own; it says what
    the incident is then."""

    def command(
        incident: str, by: str | None, comment: str, config: Path | None, database: str | None,
        as_json: bool, **options: Any,
    ) -> None:  # fmt: skip
        from monitor.people import people
        from storage import queries

        with reading(config, database) as engine:
            incident_id = queries.find_incident(engine, incident)
            before = queries.incident(engine, incident_id)
            acting = people(engine, load_settings(config, database))
            change(acting, actor(by, comment), incident_id, **options)
            found = queries.incident(engine, incident_id)
        if as_json:
            print_json(found)
        else:
            _say_state(found)
        if found["revision"] == before["revision"]:
            complain(f"nothing was changed: {_why_not(found)}")

    return with_options(command, change, 2, changing)


def _say_state(found: Mapping[str, Any]) -> None:
    said = ", ".join(str(item["label"]) for item in found["labels"])
    seen = f", acknowledged by {_acknowledged_by(found)}" if found["acknowledged_at"] is not None else ""
    say(f"{found['title']}: {found['status']}{seen}" + (f", labelled {said}" if said else ""))


def _why_not(found: Mapping[str, Any]) -> str:
    """What a change met that left an incident as it was."""
    if found["acknowledged_at"] is not None:
        return f"it is {found['status']}, and {_acknowledged_by(found)} has acknowledged it"
    return f"it is {found['status']} already"


@incidents_app.command("ack")
@changes
def acknowledge(people: People, person: Actor, incident: Reference) -> None:
    """Say that somebody looks after an incident, or has seen it once it was over."""
    people.acknowledge(incident, by=person.name, now_ms=person.now_ms, reason=person.reason)


@incidents_app.command("resolve")
@changes
def resolve(people: People, person: Actor, incident: Reference) -> None:
    """Say that an incident is over; the channels that heard of it are told."""
    people.resolve(incident, by=person.name, now_ms=person.now_ms, reason=person.reason)


@incidents_app.command("reopen")
@changes
def reopen(people: People, person: Actor, incident: Reference) -> None:
    """Say that an incident is not over after all; the channels that heard of it are told."""
    people.reopen(incident, by=person.name, now_ms=person.now_ms, reason=person.reason)


def _not_blank(text: str) -> str:
    if not text.strip():
        raise typer.BadParameter("must say something")
    return text


@incidents_app.command("label")
@changes
def label(
    people: People,
    person: Actor,
    incident: Reference,
    label: Annotated[
        str,
        typer.Argument(
            metavar="LABEL",
            help="true_positive, false_positive or a word of yours",
            callback=_not_blank,
            autocompletion=completion.among("true_positive", "false_positive"),
        ),
    ],
) -> None:
    """Say what an incident was; true_positive and false_positive reach the next training."""
    people.label(incident, label, by=person.name, now_ms=person.now_ms, comment=person.reason)


@incidents_app.command("note")
@changes
def note(
    people: People,
    person: Actor,
    incident: Reference,
    note: Annotated[
        str, typer.Argument(metavar="TEXT", help="what is worth knowing the next time", callback=_not_blank)
    ],
) -> None:
    """Write down what you know about an incident; it stands in its timeline."""
    if person.reason:
        raise typer.BadParameter("say all of it in TEXT", param_hint="--comment")
    people.note(incident, note, by=person.name, now_ms=person.now_ms)
