"""Hours: sums of windows that say what the windows say, come without a seam and outlive the windows."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import Engine, text

from monitor.api.dashboard.charts import DAY_MS, series_charts
from storage import queries
from storage.engine import connect, upgrade
from storage.names import FEATURE_COLUMNS
from storage.retention import purge
from storage.rollups import HOUR_MS, LARGEST, SUMS, hours, roll_up
from storage.shown import ms_of
from storage.sql import plain
from storage.views import drop
from tests.storage_kit import MINUTE_MS, make_commit, make_ledger, make_series, make_windows

BUSY, QUIET = "chat/a", "rank/b"
STEP_MS = 10 * MINUTE_MS
HORIZON_MS = 15 * MINUTE_MS
WINDOWS = 6 * 4 + 3  # four hours and a half


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    """Two series with a window every ten minutes; the second one ends within the second hour."""
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path / 'hours.db'}"
    else:
        url = request.getfixturevalue("postgres_database")
    engine = connect(url)
    upgrade(engine)
    random = np.random.default_rng(3)
    ledger = make_ledger(engine)
    claim = ledger.claim("logs", 0, now_ms=0)
    batches = []
    for n in range(WINDOWS):
        names = [BUSY, QUIET] if n < 8 else [BUSY]
        features = random.uniform(0.0, 100.0, (len(names), len(FEATURE_COLUMNS)))
        features[random.random(features.shape) < 0.2] = np.nan
        features[:, 0] = random.integers(0, 4, len(names))
        scores = random.random(len(names))
        measured = {"features": features, "score": scores, "is_anomalous": scores > 0.8}
        metrics = [metrics_of(random) if name == BUSY else None for name in names]
        batches.append(make_windows(n * STEP_MS, names, metrics=metrics, **measured))
    series = [make_series(BUSY), make_series(QUIET)]
    ledger.commit(make_commit(claim, None, 10, windows=batches, series=series))
    with engine.begin() as connection:
        connection.execute(text("UPDATE series SET live = (name = :busy)"), {"busy": BUSY})
    yield engine
    engine.dispose()


def metrics_of(random: np.random.Generator) -> dict[str, float]:
    """Two of a user's metrics, each of them sometimes not measured; one always a whole number."""
    found = {"queue: depth": float(random.integers(1, 9)), "hit%": float(random.random())}
    return {name: value for name, value in found.items() if random.random() < 0.8}


def by_hand(windows: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """The same sums, in Python."""
    groups: dict[int, list[dict[str, Any]]] = {}
    for window in windows:
        start_ms = ms_of(window["window_start"])
        groups.setdefault(start_ms - start_ms % HOUR_MS, []).append(window)
    return {start_ms: _sum(part) for start_ms, part in groups.items()}


def _sum(part: list[dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {"windows": len(part), "anomalous_windows": sum(w["is_anomalous"] for w in part)}
    found["score"] = max(w["score"] for w in part)
    for name in FEATURE_COLUMNS:
        known = [(w[name], max(w["request_count"], 1.0)) for w in part if w[name] is not None]
        if not known:
            found[name] = None
        elif name in SUMS:
            found[name] = math.fsum(value for value, _ in known)
        elif name in LARGEST:
            found[name] = max(value for value, _ in known)
        else:
            found[name] = math.fsum(v * n for v, n in known) / math.fsum(n for _, n in known)
    return {**found, "metrics": _metrics(part)}


def _metrics(part: list[dict[str, Any]]) -> dict[str, dict[str, Any]] | None:
    names = sorted({name for w in part for name in w["metrics"] or ()})
    found = {}
    for name in names:
        known = [
            (w["metrics"][name], max(w["request_count"], 1.0)) for w in part if name in (w["metrics"] or {})
        ]
        values = [value for value, _ in known]
        mean = math.fsum(v * n for v, n in known) / math.fsum(n for _, n in known)
        found[name] = {
            "mean": pytest.approx(mean),
            "min": min(values),
            "max": max(values),
            "windows": len(values),
        }
    return found or None


def check(engine: Engine, series: str, windows: list[dict[str, Any]]) -> None:
    expected = by_hand(windows)
    found = hours(engine, series)
    assert [ms_of(row["window_start"]) for row in found] == sorted(expected)
    for row in found:
        wanted = expected[ms_of(row["window_start"])]
        assert row["metrics"] == wanted.pop("metrics")
        for name, value in wanted.items():
            assert row[name] == (None if value is None else pytest.approx(value)), name
        assert row["is_anomalous"] is (row["anomalous_windows"] > 0)


def test_hours_say_what_windows_say_before_and_after_they_are_summed_up(engine: Engine) -> None:
    windows = {name: queries.windows(engine, name) for name in (BUSY, QUIET)}
    for name in windows:
        check(engine, name, windows[name])
    # the newest window starts at 4:20: what began at 4:00 goes on, and 3:00 to 4:00 has settled
    assert roll_up(engine, horizon_ms=HORIZON_MS) == 4 + 2
    for name in windows:
        check(engine, name, windows[name])
    assert roll_up(engine, horizon_ms=HORIZON_MS) == 0, "each hour once"


def test_an_hour_that_late_records_may_amend_is_not_summed_up_yet(engine: Engine) -> None:
    assert roll_up(engine, horizon_ms=21 * MINUTE_MS) == 3 + 2


def test_hours_outlive_their_windows(engine: Engine) -> None:
    windows = {name: queries.windows(engine, name) for name in (BUSY, QUIET)}
    roll_up(engine, horizon_ms=HORIZON_MS)
    keep = {"now_ms": 10**12, "keep_rejected_ms": 1, "keep_windows_ms": HOUR_MS}
    assert purge(engine, **keep)["windows"] == 20 + 8
    assert not queries.windows(engine, QUIET)
    for name in windows:
        check(engine, name, windows[name])
    assert purge(engine, **keep, keep_hours_ms=2 * HOUR_MS + 1)["window_hours"] == 3 + 2
    assert len(hours(engine, BUSY)) == 2 and not hours(engine, QUIET)


def test_pages_of_hours_and_spans(engine: Engine) -> None:
    roll_up(engine, horizon_ms=HORIZON_MS)
    every = hours(engine, BUSY)
    assert len(every) == 5
    newest = hours(engine, BUSY, limit=2)
    assert newest == every[3:]
    before = hours(engine, BUSY, limit=2, after=[ms_of(newest[0]["window_start"])])
    assert before == every[1:3]
    assert hours(engine, BUSY, since_ms=HOUR_MS, until_ms=3 * HOUR_MS) == every[1:3]
    assert hours(engine, BUSY, since_ms=HOUR_MS + 1, until_ms=5 * HOUR_MS) == every[2:]
    assert hours(engine, "nobody") == []


def test_charts_of_months_are_made_of_hours(engine: Engine) -> None:
    roll_up(engine, horizon_ms=HORIZON_MS)
    drawn = series_charts(engine, BUSY, since_ms=5 * HOUR_MS - 90 * DAY_MS, until_ms=5 * HOUR_MS)
    assert (drawn["hourly"], drawn["windows"], len(drawn["shared"]["t"])) == (True, 5, 5)
    count = next(chart for chart in drawn["features"] if chart["feature"] == "request_count")
    assert count["data"]["v"] == [row["request_count"] for row in hours(engine, BUSY)]
    depth = next(chart for chart in drawn["features"] if chart["feature"] == "metric.queue: depth")
    kept = [(row["metrics"] or {}).get("queue: depth", {}).get("mean") for row in hours(engine, BUSY)]
    assert depth["data"]["v"] == kept and any(kept)
    near = series_charts(engine, BUSY, since_ms=0, until_ms=5 * HOUR_MS)
    assert (near["hourly"], near["windows"]) == (False, WINDOWS)


def test_hours_are_the_same_through_a_driver_alone_and_in_the_view(engine: Engine) -> None:
    roll_up(engine, horizon_ms=HORIZON_MS)
    url = engine.url.render_as_string(hide_password=False).replace("+psycopg", "")
    opened = plain(url)
    assert opened is not None
    with opened:
        assert hours(opened, BUSY) == hours(engine, BUSY)
    with engine.connect() as connection:
        found = connection.execute(
            text("SELECT metrics FROM hour_history WHERE series = :name ORDER BY hour_start"), {"name": BUSY}
        ).scalars()
        seen = [json.loads(row) if isinstance(row, str) else row for row in found]
    assert seen == [row["metrics"] for row in hours(engine, BUSY)][:4]
    assert any(seen)


def test_hours_of_an_older_database_get_the_metrics_of_windows_that_are_still_stored(engine: Engine) -> None:
    """Schema 0007 had hours without them; an hour whose windows were purged has none to get."""
    expected = [row["metrics"] for row in hours(engine, BUSY)]
    roll_up(engine, horizon_ms=HORIZON_MS)
    with engine.begin() as connection:
        drop(connection)
        connection.execute(text("ALTER TABLE window_hours DROP COLUMN metrics"))
        connection.execute(text("UPDATE alembic_version SET version_num = '0007'"))
        connection.execute(text("DELETE FROM windows WHERE window_start_ms < :hour"), {"hour": HOUR_MS})
    upgrade(engine)
    found = hours(engine, BUSY)
    assert [row["windows"] for row in found] == [6, 6, 6, 6, 3]
    assert found[0]["metrics"] is None
    for row, wanted in zip(found[1:], expected[1:], strict=True):
        assert row["metrics"].keys() == wanted.keys()
        for name, figures in wanted.items():
            assert row["metrics"][name] == {**figures, "mean": pytest.approx(figures["mean"])}
