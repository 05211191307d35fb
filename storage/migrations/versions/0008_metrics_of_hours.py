"""Hours keep what users' own metrics were in them"""

from __future__ import annotations

import json
from collections import defaultdict
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"

HOUR_MS = 3_600_000
WEIGHT = "CASE WHEN w.request_count > 0 THEN w.request_count ELSE 1 END"
WINDOWS = sa.text(
    f"SELECT w.window_start_ms - w.window_start_ms % {HOUR_MS} AS hour_ms, {WEIGHT} AS weight, w.metrics "
    "FROM windows w WHERE w.series_id = :series AND w.metrics IS NOT NULL AND w.window_start_ms < "
    f"(SELECT max(h.window_start_ms) + {HOUR_MS} FROM window_hours h WHERE h.series_id = :series)"
)
KEEP = sa.text(
    "UPDATE window_hours SET metrics = :kept WHERE series_id = :series AND window_start_ms = :hour"
)


def upgrade() -> None:
    """Hours whose windows are still stored get theirs now."""
    op.add_column("window_hours", sa.Column("metrics", sa.Text(), nullable=True))
    connection = op.get_bind()
    for series in connection.execute(sa.text("SELECT DISTINCT series_id FROM window_hours")).scalars().all():
        hours: dict[int, dict[str, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
        for hour, weight, text in connection.execute(WINDOWS, {"series": series}):
            for name, value in json.loads(text).items():
                if isinstance(value, int | float):
                    hours[hour][name].append((value, weight))
        kept = [
            {"series": series, "hour": hour, "kept": json.dumps(_figures(metrics))}
            for hour, metrics in hours.items()
            if metrics
        ]
        if kept:
            connection.execute(KEEP, kept)


def _figures(metrics: dict[str, list[tuple[float, float]]]) -> dict[str, dict[str, Any]]:
    return {
        name: {
            "mean": sum(value * weight for value, weight in seen) / sum(weight for _, weight in seen),
            "min": min(value for value, _ in seen),
            "max": max(value for value, _ in seen),
            "windows": len(seen),
        }
        for name, seen in sorted(metrics.items())
    }
