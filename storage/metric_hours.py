"""Users' metrics in an hour: of each the mean, the lowest, the highest, and how many windows had it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

WEIGHT = "CASE WHEN w.request_count > 0 THEN w.request_count ELSE 1 END"
"""What a window counts in a mean over requests."""
_EACH = {
    "sqlite": "json_each(w.metrics) m",
    "postgresql": "jsonb_each(CAST(w.metrics AS jsonb)) m(key, value)",
}
_VALUE = {"sqlite": "m.value", "postgresql": "CAST(CAST(m.value AS text) AS double precision)"}
_IS_NUMBER = {"sqlite": "m.type IN ('integer', 'real')", "postgresql": "jsonb_typeof(m.value) = 'number'"}
Figures = dict[str, dict[str, float | int]]


def from_windows(tables: str, dialect: str) -> str:
    """The source of `columns`: `tables` holds `windows w`."""
    return f"{tables} CROSS JOIN {_EACH[dialect]}"


def is_measured(dialect: str) -> str:
    """The condition for a metric that was measured."""
    return f"w.metrics IS NOT NULL AND {_IS_NUMBER[dialect]}"


def columns(hour: str, dialect: str) -> str:
    """The figures of one metric in one hour; to be grouped by `grouped(hour)`."""
    value = _VALUE[dialect]
    return (
        f"w.series_id, {hour} AS hour_ms, m.key AS name, "
        f"sum({value} * 1.0 * {WEIGHT}) / sum({WEIGHT}) AS mean, "
        f"min({value}) AS lowest, max({value}) AS highest, count(*) AS n"
    )


def grouped(hour: str) -> str:
    return f"w.series_id, {hour}, m.key"


def gathered(rows: Iterable[Mapping[Any, Any]]) -> dict[tuple[int, int], Figures]:
    """Rows of `columns` by (series, start of the hour): name -> its figures."""
    found: dict[tuple[int, int], Figures] = {}
    for row in sorted(rows, key=lambda row: str(row["name"])):
        figures = {"mean": row["mean"], "min": row["lowest"], "max": row["highest"], "windows": row["n"]}
        found.setdefault((row["series_id"], row["hour_ms"]), {})[row["name"]] = figures
    return found
