"""Charts: what the browser draws, bands of the usual, and sparklines drawn here."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup
from sqlalchemy import Engine

from monitor import explain
from monitor.api.dashboard.render import epoch_ms
from monitor.output import clean
from storage import page_queries, queries
from storage.names import FEATURE_COLUMNS
from storage.rollups import hours

Row = Mapping[str, Any]

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
BEFORE_MS = 3 * HOUR_MS
AFTER_MS = HOUR_MS
SPARK_BEFORE_MS, SPARK_MAX_MS = HOUR_MS, 4 * HOUR_MS
SPARK_WIDTH, SPARK_HEIGHT = 168, 44
MAX_POINTS = 720
MAX_WINDOWS_MS, MAX_HOURS = 8 * DAY_MS, 400 * 24
"""Longer charts are made of hours."""
BAND_QUANTILES = (0.05, 0.95)
MIN_BAND_WINDOWS = 20
"""Fewer windows than this say nothing about what is usual."""


def usual_band(rows: Sequence[Row], feature: str) -> tuple[float, float] | None:
    """5% and 95% nearest-rank quantiles of the windows that were not anomalous; None for too few."""
    values = sorted(
        float(row[feature]) for row in rows if row[feature] is not None and not row["is_anomalous"]
    )
    if len(values) < MIN_BAND_WINDOWS:
        return None
    low, high = (values[max(0, math.ceil(q * len(values)) - 1)] for q in BAND_QUANTILES)
    return low, high


def thinned(
    rows: Sequence[Row], names: Sequence[str], limit: int = MAX_POINTS
) -> tuple[list[dict[str, Any]], int]:
    """At most `limit` rows, each the mean of as many neighbours as the second result says.

    A group is anomalous if one of its windows is; means leave out what was not measured.
    """
    stride = max(1, math.ceil(len(rows) / limit))
    if stride == 1:
        return [dict(row) for row in rows], 1
    groups = []
    for at in range(0, len(rows), stride):
        part = rows[at : at + stride]
        group: dict[str, Any] = {
            "start_ms": part[0]["start_ms"],
            "is_anomalous": any(row["is_anomalous"] for row in part),
        }
        for name in names:
            known = [float(row[name]) for row in part if row[name] is not None]
            group[name] = math.fsum(known) / len(known) if known else None
        groups.append(group)
    return groups, stride


def hot_spans(rows: Sequence[Row], window_ms: int) -> list[list[int]]:
    """[start_s, end_s] of runs of anomalous windows, touching ones joined."""
    spans: list[list[int]] = []
    for row in rows:
        if not row["is_anomalous"]:
            continue
        start_s, end_s = row["start_ms"] // 1000, (row["start_ms"] + window_ms) // 1000
        if spans and spans[-1][1] >= start_s:
            spans[-1][1] = end_s
        else:
            spans.append([start_s, end_s])
    return spans


def step_ms(rows: Sequence[Row]) -> int:
    """Distance of neighbouring windows, the smallest seen; a minute where it cannot be told."""
    gaps = [b["start_ms"] - a["start_ms"] for a, b in itertools.pairwise(rows)]
    return min((g for g in gaps if g > 0), default=60_000)


def alert_charts(engine: Engine, alert: Row, *, limit: int = 3) -> list[dict[str, Any]]:
    """Charts of the guilty features of one alert, the most guilty first, from 3 h before it on."""
    guilty = [f for f in alert["top_features"] if f.get("contribution", 0) or f is alert["top_features"][0]]
    guilty = guilty[:limit]
    names = [str(f["feature"]) for f in guilty]
    start_ms, end_ms = epoch_ms(alert["window_start"]), epoch_ms(alert["window_end"])
    since_ms, until_ms = start_ms - BEFORE_MS, end_ms + AFTER_MS
    rows = page_queries.measurements(
        engine, alert["series"], names, since_ms=since_ms - DAY_MS, until_ms=until_ms
    )
    day_before = [row for row in rows if start_ms - DAY_MS <= row["start_ms"] < start_ms]
    shown = [row for row in rows if row["start_ms"] >= since_ms]
    window_ms = step_ms(shown)
    marks = version_marks(engine, alert["series"], since_ms, until_ms)
    points, stride = thinned(shown, names)
    return [
        {
            "title": explain.feature_words(str(feature["feature"])),
            "series": alert["series"],
            "unit": unit(str(feature["feature"])),
            "feature": feature["feature"],
            "observed": feature.get("observed"),
            "expected": feature.get("expected"),
            "stride": stride,
            "data": {
                "label": f"{explain.feature_words(str(feature['feature']))} of {alert['series']}",
                "unit": unit(str(feature["feature"])),
                "t": [row["start_ms"] // 1000 for row in points],
                "v": [row[feature["feature"]] for row in points],
                "hot": hot_spans(points, window_ms * stride),
                "span": [start_ms // 1000, end_ms // 1000],
                "day": usual_band(day_before, str(feature["feature"])),
                "told": told_band(feature),
                "marks": marks,
            },
        }
        for feature in guilty
    ]


def version_marks(engine: Engine, series: str, since_ms: int, until_ms: int) -> list[list[Any]]:
    """[s, version] of the model versions that were new in [since_ms, until_ms), oldest first."""
    newest = queries.deployments(engine, series=series, since_ms=since_ms, until_ms=until_ms)
    return [[epoch_ms(row["at"]) // 1000, clean(row["model_version"])] for row in reversed(newest)]


def told_band(feature: Row) -> list[float] | None:
    """[low, high] as the alert itself gave them; shares and counts never below nothing."""
    low, high = feature.get("low"), feature.get("high")
    if low is None or high is None:
        return None
    return [max(0.0, float(low)), float(high)]


def unit(feature: str) -> str:
    """How the browser writes the values of a feature: "ms", "share", "MB", "$" or "" for a bare number."""
    if feature.endswith("_ms"):
        return "ms"
    if feature.endswith(("_rate", "gpu_util_mean")) or feature in ("accuracy", "confidence_mean"):
        return "share"
    return "MB" if feature == "memory_mb_max" else "$" if feature == "cost_usd_sum" else ""


def series_charts(engine: Engine, series: str, *, since_ms: int, until_ms: int) -> dict[str, Any]:
    """Every feature of a series that was measured in [since_ms, until_ms), and its scores.

    `features`: charts as `alert_charts` makes them; `scores`: score and rarity; `stride`: windows per point;
    `hourly`: points are made of hours, not of windows.
    """
    names, rows = _measured(engine, series, since_ms, until_ms)
    bands = {name: usual_band(rows, name) for name in names}
    every = [*names, *page_queries.SCORES]
    window_ms = step_ms(rows)
    points, stride = thinned(rows, every)
    shared = {
        "t": [row["start_ms"] // 1000 for row in points],
        "hot": hot_spans(points, window_ms * stride),
        "marks": version_marks(engine, series, since_ms, until_ms),
    }
    measured = [name for name in names if any(row[name] is not None for row in points)]
    features = [
        {
            "title": explain.feature_words(name),
            "feature": name,
            "data": {
                "label": explain.feature_words(name),
                "unit": unit(name),
                "v": [row[name] for row in points],
                "day": bands[name],
            },
        }
        for name in measured
    ]
    tails = [row["tail_probability"] for row in points]
    scores = [
        {"title": "score", "data": {"label": "score", "unit": "", "v": [row["score"] for row in points]}},
        {
            "title": "rarity",
            "data": {
                "label": "one in so many normal windows scores as high",
                "unit": "one in",
                "log": True,
                "v": [None if not p else 1 / p for p in tails],
            },
        },
    ]
    return {
        "shared": shared,
        "features": features,
        "scores": scores,
        "stride": stride,
        "windows": len(rows),
        "hourly": until_ms - since_ms > MAX_WINDOWS_MS,
    }


def _measured(engine: Engine, series: str, since_ms: int, until_ms: int) -> tuple[list[str], Sequence[Row]]:
    """Features, and the windows that start in [since_ms, until_ms); hours instead for a longer time."""
    if until_ms - since_ms > MAX_WINDOWS_MS:
        found = hours(engine, series, since_ms=since_ms, until_ms=until_ms, limit=MAX_HOURS)
        metrics = sorted({name for row in found for name in row["metrics"] or ()})
        names = [*FEATURE_COLUMNS, *(page_queries.METRIC_PREFIX + name for name in metrics)]
        return names, [_hour_row(row, metrics) for row in found]
    names = [*FEATURE_COLUMNS, *page_queries.metric_names(engine, series)]
    return names, page_queries.measurements(engine, series, names, since_ms=since_ms, until_ms=until_ms)


def _hour_row(row: Row, metrics: Sequence[str]) -> Row:
    """An hour as a window is measured: the user's metrics by their means."""
    known = row["metrics"] or {}
    means = {page_queries.METRIC_PREFIX + name: known.get(name, {}).get("mean") for name in metrics}
    return {**row, **means, "start_ms": epoch_ms(row["window_start"])}


def spark(engine: Engine, alert: Row | None) -> Markup:
    """A small picture of the guilty feature around the beginning of an alert, as inline SVG."""
    if alert is None or not alert["top_features"]:
        return Markup("")
    feature = alert["top_features"][0]
    name = str(feature["feature"])
    start_ms, end_ms = epoch_ms(alert["window_start"]), epoch_ms(alert["window_end"])
    since_ms = start_ms - SPARK_BEFORE_MS
    until_ms = min(end_ms + SPARK_BEFORE_MS // 2, since_ms + SPARK_MAX_MS)
    rows = page_queries.measurements(engine, alert["series"], [name], since_ms=since_ms, until_ms=until_ms)
    known = [(row["start_ms"], float(row[name])) for row in rows if row[name] is not None]
    if len(known) < 2:
        return Markup("")
    band = told_band(feature)
    return sparkline(
        known, since_ms, until_ms, hot=(start_ms, end_ms), band=band, label=_spark_label(feature)
    )


def _spark_label(feature: Row) -> str:
    name = str(feature["feature"])
    observed = feature.get("observed")
    seen = "not measured" if observed is None else explain.quantity(name, float(observed))
    band = told_band(feature)
    usual = (
        f", usually {explain.quantity(name, band[0])} to {explain.quantity(name, band[1])}" if band else ""
    )
    return f"{explain.feature_words(name)}: {seen}{usual}"


def sparkline(
    points: Sequence[tuple[int, float]],
    since_ms: int,
    until_ms: int,
    *,
    hot: tuple[int, int],
    band: Sequence[float] | None,
    label: str,
) -> Markup:
    """SVG of `points` (ms, value) in [since_ms, until_ms); `hot` is shaded, `band` drawn behind."""
    values = [v for _, v in points] + list(band or ())
    low, high = min(values), max(values)
    if high == low:
        low, high = low - 1, high + 1

    def x(ms: float) -> float:
        return round((min(max(ms, since_ms), until_ms) - since_ms) / (until_ms - since_ms) * SPARK_WIDTH, 1)

    def y(value: float) -> float:
        return round(SPARK_HEIGHT - 3 - (value - low) / (high - low) * (SPARK_HEIGHT - 6), 1)

    path = "M" + "L".join(f"{x(ms):g} {y(v):g}" for ms, v in points)
    shapes = [
        Markup('<rect class="hot" x="{}" y="0" width="{}" height="{}"/>').format(
            x(hot[0]), max(2.0, round(x(hot[1]) - x(hot[0]), 1)), SPARK_HEIGHT
        )
    ]
    if band is not None:
        top, bottom = y(band[1]), y(band[0])
        shapes.append(
            Markup('<rect class="usual" x="0" y="{}" width="{}" height="{}"/>').format(
                top, SPARK_WIDTH, max(1.0, round(bottom - top, 1))
            )
        )
    shapes.append(Markup('<path class="line" d="{}"/>').format(path))
    return Markup(
        '<svg class="spark" viewBox="0 0 {} {}" role="img" aria-label="{}" '
        'preserveAspectRatio="none">{}</svg>'
    ).format(SPARK_WIDTH, SPARK_HEIGHT, clean(label), Markup("").join(shapes))
