"""What late records changed: the steps of an alert, and its windows that were amended."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from storage.shown import Row, ms_of, shown, time_of
from storage.sql import Select, columns_of, fetch

if TYPE_CHECKING:
    from storage.queries import Source

MAX_STEPS, MAX_AMENDED = 1_000, 100
WINDOWS_OF = "windows JOIN series ON series.id = windows.series_id"


def steps(source: Source, alert_ids: Sequence[str]) -> dict[str, list[Row]]:
    """alert_id -> what it said when it fired, was updated, resolved or withdrawn, oldest first.

    They are kept as long as windows are. At most MAX_STEPS in all.
    """
    statement = (
        Select(columns_of("alert_transitions", ("alert_id", "at_ms", "kind", "alert")), "alert_transitions")
        .within("alert_transitions.alert_id", alert_ids)
        .ordered([("alert_transitions.at_ms", False), ("alert_transitions.id", False)])
    )
    found: dict[str, list[Row]] = {}
    for row in fetch(source, *statement.limited(MAX_STEPS)):
        then = json.loads(row["alert"])
        found.setdefault(row["alert_id"], []).append(
            {
                "at": time_of(row["at_ms"]),
                "kind": row["kind"],
                **{name: then[name] for name in ("severity", "score", "summary")},
                "window_start": time_of(then["window_start_ms"]),
                "window_end": time_of(then["window_end_ms"]),
            }
        )
    return found


def amended(source: Source, alert: Row) -> list[Row]:
    """Windows of an alert that late records have changed: `window_start` and `revision`, oldest first."""
    statement = (
        Select(
            "windows.window_start_ms, windows.revision",
            "windows JOIN series ON series.id = windows.series_id",
        )
        .equal("series", name=alert["series"])
        .from_to("windows.window_start_ms", ms_of(alert["window_start"]), ms_of(alert["window_end"]))
        .where("windows.revision > 0")
        .ordered([("windows.window_start_ms", False)])
    )
    return shown(fetch(source, *statement.limited(MAX_AMENDED)))
