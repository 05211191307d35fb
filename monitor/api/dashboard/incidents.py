"""The list of incidents and the page of one: what broke, since when, why, who knows, and what was before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Engine

from monitor.api.dashboard import charts
from monitor.api.dashboard.render import epoch_ms
from monitor.similar import similar_to
from storage import page_queries, queries, revisions
from storage.names import WARM_UP_WINDOWS

Row = Mapping[str, Any]

PAGE_SIZE = 40
SHOWN_LEARNING = 5
SHOWN_CHARTED_ALERTS = 4
SHOWN_ALERTS = 40
STATES: dict[str, tuple[str, tuple[str, ...]]] = {
    "": ("All", ()),
    "active": ("Not resolved", ("open", "acknowledged")),
    "open": ("Nobody yet", ("open",)),
    "acknowledged": ("Acknowledged", ("acknowledged",)),
    "resolved": ("Resolved", ("resolved",)),
}
SEVERITIES = ("critical", "major", "warning")


def index(
    engine: Engine, *, state: str, severity: str, text: str, page: int, now_ms: int
) -> tuple[dict[str, Any], int]:
    """Context of the list, and how many incidents match."""
    found = page_queries.incident_page(
        engine,
        statuses=STATES[state][1],
        severity=severity or None,
        text=text,
        limit=PAGE_SIZE,
        offset=(page - 1) * PAGE_SIZE,
    )
    counts = page_queries.incident_counts(engine)
    series = page_queries.series_counts(engine, warm_up=WARM_UP_WINDOWS)
    learning = (
        page_queries.series_page(engine, state="learning", warm_up=WARM_UP_WINDOWS, limit=SHOWN_LEARNING).rows
        if series["learning"]
        else []
    )
    context = {
        "incidents": _cards(engine, found.rows, now_ms),
        "state": state,
        "severity": severity,
        "text": text,
        "states": [(name, label) for name, (label, _) in STATES.items()],
        "severities": SEVERITIES,
        "counts": _summed(counts),
        "series": series,
        "learning": learning,
        "warm_up": WARM_UP_WINDOWS,
        "deliveries": queries.delivery_totals(engine),
        "filtered": bool(state or severity or text),
    }
    return context, found.total


def _summed(counts: Mapping[tuple[str, str], int]) -> dict[str, int]:
    """Totals by status, and of what is not resolved by severity."""
    summed = dict.fromkeys(("open", "acknowledged", "resolved", "active", *SEVERITIES), 0)
    for (status, severity), n in counts.items():
        summed[status] = summed.get(status, 0) + n
        if status != "resolved":
            summed["active"] += n
            summed[severity] = summed.get(severity, 0) + n
    return summed


def _cards(engine: Engine, rows: Sequence[Row], now_ms: int) -> list[dict[str, Any]]:
    ids = [str(row["incident_id"]) for row in rows]
    leading = page_queries.leading_alerts(engine, ids)
    told = page_queries.delivery_counts(engine, ids)
    return [
        {
            **row,
            "spark": charts.spark(engine, leading.get(row["incident_id"])),
            "lasts_ms": lasts_ms(row, now_ms),
            "rarity": leading[row["incident_id"]]["rarity"] if row["incident_id"] in leading else "",
            "told": told_words(told.get(row["incident_id"], {})),
        }
        for row in rows
    ]


def lasts_ms(incident: Row, now_ms: int) -> int:
    """From the first anomalous window to the end, or to now."""
    end = incident["resolved_at"]
    return (epoch_ms(end) if end is not None else now_ms) - epoch_ms(incident["started_at"])


def told_words(counts: Mapping[str, int]) -> dict[str, str]:
    """What became of the notifications: `kind` is none, good, waiting or bad; `text` says it."""
    total, delivered, dead = sum(counts.values()), counts.get("delivered", 0), counts.get("dead", 0)
    if not total:
        return {"kind": "none", "text": "nobody was notified"}
    if dead:
        return {"kind": "bad", "text": f"{dead} of {total} notifications failed"}
    if delivered < total:
        return {"kind": "waiting", "text": f"{delivered} of {total} notifications delivered"}
    return {"kind": "good", "text": "notified" if total == 1 else f"{total} notifications delivered"}


def _untold(events: Sequence[Row]) -> dict[str, str]:
    """Why nobody was notified."""
    kinds = {event["kind"] for event in events}
    if "notification_silenced" in kinds:
        return {"kind": "none", "text": "kept quiet by a silence"}
    if "notification_inhibited" in kinds:
        return {"kind": "none", "text": "kept quiet by what explains it"}
    return told_words({})


def one(engine: Engine, found: Row, now_ms: int) -> dict[str, Any]:
    """Context of the page of an incident that `queries.incident` has found."""
    alerts = sorted(
        (a for a in found["alerts"] if a["status"] != "withdrawn"), key=lambda a: a["score"], reverse=True
    )
    withdrawn = [a for a in found["alerts"] if a["status"] == "withdrawn"]
    chartable = [a for a in _one_per_series(alerts) if a["top_features"]]
    charted = chartable[:SHOWN_CHARTED_ALERTS]
    leading = alerts[0] if alerts else None
    statuses: dict[str, int] = {}
    for row in found["deliveries"]:
        statuses[row["status"]] = statuses.get(row["status"], 0) + 1
    return {
        "incident": found,
        "deployments": found["deployments"],
        "alerts": alerts[:SHOWN_ALERTS],
        "steps": revisions.steps(engine, [str(a["alert_id"]) for a in [*alerts[:SHOWN_ALERTS], *withdrawn]]),
        "amended": {
            a["alert_id"]: revisions.amended(engine, a)
            for a in (*alerts[:SHOWN_CHARTED_ALERTS], *withdrawn[:SHOWN_CHARTED_ALERTS])
        },
        "more_alerts": len(alerts[SHOWN_ALERTS:]),
        "withdrawn": withdrawn,
        "leading": leading,
        "charts": [(a, charts.alert_charts(engine, a, limit=3 if len(charted) == 1 else 2)) for a in charted],
        "uncharted": len(chartable) - len(charted),
        "events": found["events"],
        "deliveries": found["deliveries"],
        "notes": found["notes"],
        "label": found["labels"][-1] if found["labels"] else None,
        "seen": [e for e in found["events"] if e["kind"] == "acknowledged" and found["acknowledged_at"]][-1:],
        "told": told_words(statuses) if statuses else _untold(found["events"]),
        "versions": sorted({str(v) for a in alerts for v in a["model_versions"]}),
        "slices": guilty_slices(alerts),
        "exemplars": list(dict.fromkeys(str(x) for a in alerts for x in a["exemplars"]))[:12],
        "similar": similar_to(engine, found["incident_id"]),
        "lasts_ms": lasts_ms(found, now_ms),
        "silence_fields": silence_choices(found["series"], alerts),
        "page_of": queries.time_of(now_ms),
    }


def _one_per_series(alerts: Sequence[Row]) -> list[Row]:
    best: dict[str, Row] = {}
    for alert in alerts:
        best.setdefault(str(alert["series"]), alert)
    return list(best.values())


def guilty_slices(alerts: Sequence[Row]) -> list[dict[str, Any]]:
    """The guilty slices of all alerts, the largest share of each kept, best first."""
    best: dict[tuple[str, str], dict[str, Any]] = {}
    for alert in alerts:
        for part in alert["slices"]:
            key = (str(part["field"]), str(part["value"]))
            if key not in best or part["share"] > best[key]["share"]:
                best[key] = dict(part)
    return sorted(best.values(), key=lambda s: (-s["share"], str(s["field"]), str(s["value"])))[:8]


def silence_choices(series: Sequence[str], alerts: Sequence[Row]) -> list[tuple[str, str]]:
    """(field, value) of what may be silenced, the narrowest first."""
    found = [("series", name) for name in series]
    found += [("model", str(a["model"])) for a in alerts]
    found += [
        (str(s["field"]), str(s["value"]))
        for s in guilty_slices(alerts)
        if s["field"] in ("tenant", "region", "model_version")
    ]
    return list(dict.fromkeys(found))[:20]
