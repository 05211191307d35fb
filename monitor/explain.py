"""Plain words for a person who was just woken up: what, where, how much, since when, and who is guilty."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from detectors.types import METRIC_PREFIX, Contribution
from monitor.clock import rfc3339
from monitor.inhibition import SOURCE_PREFIX
from monitor.windows import Slice

_WORDS: dict[str, tuple[str, str]] = {
    "request_count": ("request count", "requests"),
    "error_rate": ("error rate", "share"),
    "latency_p50_ms": ("median latency", "ms"),
    "latency_p95_ms": ("p95 latency", "ms"),
    "latency_p99_ms": ("p99 latency", "ms"),
    "ttft_p50_ms": ("median time to first token", "ms"),
    "ttft_p95_ms": ("p95 time to first token", "ms"),
    "tpot_p50_ms": ("median time per output token", "ms"),
    "queue_p95_ms": ("p95 queueing time", "ms"),
    "input_tokens_mean": ("mean input length", "tokens"),
    "output_tokens_mean": ("mean output length", "tokens"),
    "output_tokens_p95": ("p95 output length", "tokens"),
    "empty_output_rate": ("share of empty outputs", "share"),
    "max_output_rate": ("share of outputs cut at the length limit", "share"),
    "memory_mb_max": ("peak memory", "MB"),
    "gpu_util_mean": ("mean GPU utilisation", "share"),
    "confidence_mean": ("mean confidence", ""),
    "accuracy": ("accuracy", "share"),
    "cost_usd_sum": ("cost", "$"),
}
_SLICE_WORDS = {"model_version": "version", "error_type": "error type"}
_SECONDS_PER = (("year", 31_557_600.0), ("month", 2_629_800.0), ("week", 604_800.0), ("day", 86_400.0))
_SECONDS_PER_HOUR = 3_600.0
BLAME = "; new version "
"""What stands between the sentence of an alert and a comparison that came while it fired."""
MAX_GUILTY_SLICES = 4
MIN_GUILTY_SHARE = 0.5
MIN_GUILTY_LIFT = 1.5
"""A slice is guilty when it holds at least half of the trouble and 1.5 times its share of the traffic."""
MIN_SLICE_ERRORS = 3
MIN_REFERENCE_SHARE = 0.05
"""Slices with less of the traffic than this are too small to say what latency is usual."""


def feature_words(feature: str) -> str:
    """`latency_p95_ms` -> "p95 latency"; a user metric is called by its own name."""
    return _WORDS.get(feature, (feature.removeprefix(METRIC_PREFIX), ""))[0]


def quantity(feature: str, value: float) -> str:
    """A value with its unit, at about three significant digits: 2140 ms -> "2.14 s", 0.123 -> "12.3%"."""
    unit = _WORDS.get(feature, ("", ""))[1]
    if unit == "ms":
        return f"{_digits(value / 1000)} s" if abs(value) >= 1000 else f"{_digits(value)} ms"
    if unit == "share":
        return f"{_digits(value * 100)}%"
    if unit == "MB":
        return f"{_digits(value / 1024)} GB" if abs(value) >= 10_240 else f"{_digits(value)} MB"
    if unit == "$":
        return f"${value:,.2f}" if abs(value) >= 0.01 or value == 0 else f"${_digits(value)}"
    return f"{_digits(value)} {unit}".rstrip()


def _digits(value: float) -> str:
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    decimals = max(0, 2 - math.floor(math.log10(abs(value))))
    text = f"{value:.{min(decimals, 6)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def usual(c: Contribution) -> str:
    """ "usually 0.7-0.9 s at this hour", as exact as the band allows; "" when nothing is known."""
    if _known(c.low) and _known(c.high):
        assert c.low is not None and c.high is not None
        low, high = (
            quantity(c.feature, max(c.low, 0.0) if c.low < 0 <= c.high else c.low),
            quantity(c.feature, c.high),
        )
        if low == high:
            return f"usually {low} at this hour"
        number, _, unit = low.partition(" ")
        shared = unit and high.endswith(f" {unit}")
        return f"usually {number if shared else low} to {high} at this hour"
    if _known(c.expected):
        assert c.expected is not None
        return f"usually about {quantity(c.feature, c.expected)}"
    return ""


def _known(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def sentence(
    series: str,
    contributions: Sequence[Contribution],
    guilty: Sequence[dict[str, Any]],
    *,
    since_ms: int,
    window_ms: int,
    score: float,
    note: str = "",
) -> str:
    """One plain sentence about one alert; `since_ms` is the start of its first anomalous window, `note` what
    is known about a new model version."""
    parts = [
        _first_part(series, contributions[0], window_ms)
        if contributions
        else f"{series} behaves unlike itself"
    ]
    if not contributions:
        parts[0] += f" (score {score:.2f})"
    second = next((c for c in contributions[1:2] if c.contribution >= 0.15 and _is_telling(c)), None)
    if second is not None:
        assert second.observed is not None
        known = usual(second)
        text = f"{feature_words(second.feature)}{_over(second, window_ms)} "
        text += quantity(second.feature, second.observed)
        parts.append(f"also {text}" + (f", {known}" if known else ""))
    parts.append(f"since {rfc3339(since_ms)[11:16]} UTC")
    if guilty:
        worst = guilty[0]
        name = _SLICE_WORDS.get(str(worst["field"]), str(worst["field"]))
        share = "all of it" if worst["share"] >= 0.995 else f"{worst['share']:.0%} of it"
        parts.append(f"{share} from {name} {worst['value']}")
    if note:
        parts.append(note)
    return "; ".join(parts)


def _is_telling(c: Contribution) -> bool:
    """Measured, and not just as usual."""
    if not _known(c.observed):
        return False
    low, high, seen = c.low, c.high, c.observed
    return low is None or high is None or seen is None or not low <= seen <= high


def _over(c: Contribution, window_ms: int) -> str:
    """ " over the last 10 min" where it takes more than one window to see."""
    return f" over the last {duration(c.windows * window_ms)}" if c.windows > 1 else ""


def _first_part(series: str, c: Contribution, window_ms: int) -> str:
    known = usual(c)
    tail = f", {known}" if known else ""
    if not _known(c.observed):
        return f"{feature_words(c.feature)} of {series} cannot be measured any more{tail}"
    assert c.observed is not None
    if c.feature == "request_count" and c.observed == 0:
        return f"no requests reach {series}{tail}"
    over = _over(c, window_ms)
    return f"{feature_words(c.feature)} of {series}{over} is {quantity(c.feature, c.observed)}{tail}"


def title(top_features: Sequence[dict[str, Any]], series: Sequence[str], model: str) -> str:
    """The headline of an incident: "High p95 latency on m-large/app-3", or "... on 3 series of m-large".

    What befell partitions of the source is "Trouble reading logs/3"."""
    place = series[0] if len(series) == 1 else f"{len(series)} series of {model}"
    if not top_features and all(name.startswith(SOURCE_PREFIX) for name in series):
        partition = series[0].removeprefix(SOURCE_PREFIX)
        return f"Trouble reading {partition if len(series) == 1 else f'{len(series)} partitions'}"
    if not top_features:
        return f"Unusual behaviour on {place}"
    top = top_features[0]
    observed, expected = top.get("observed"), top.get("expected")
    if top["feature"] == "request_count" and observed == 0:
        return f"No requests on {place}"
    if observed is None or expected is None or observed == expected:
        return f"Unusual {feature_words(top['feature'])} on {place}"
    return f"{'High' if observed > expected else 'Low'} {feature_words(top['feature'])} on {place}"


def duration(ms: int) -> str:
    """A length of time for people: 1800000 -> "30 min", 7200000 -> "2 h"."""
    minutes = round(ms / 60_000)
    if minutes < 120:
        return f"{minutes} min"
    return f"{minutes / 60:.3g} h" if minutes < 2_880 else f"{minutes / 1_440:.3g} days"


def rarity(tail_probability: float, window_s: float) -> str:
    """How often a normal window of the series scores as high: "once in 3 months for this series"."""
    interval_s = return_period_s(tail_probability, window_s)
    if interval_s >= 100 * _SECONDS_PER[0][1]:
        return "less than once in 100 years for this series"
    for name, seconds in _SECONDS_PER:
        if interval_s >= 1.5 * seconds or (name == "day" and interval_s >= seconds):
            count = round(interval_s / seconds)
            return f"once in {count} {name}s for this series" if count > 1 else "once a day for this series"
    hours = max(1, round(interval_s / _SECONDS_PER_HOUR))
    return f"once in {hours} hours for this series" if hours > 1 else "once an hour or more for this series"


def return_period_s(tail_probability: float, window_s: float) -> float:
    """Mean seconds between two normal windows as extreme as this one: window length / tail probability."""
    return window_s / max(tail_probability, 1e-300)


def feature_rows(contributions: Iterable[Contribution], limit: int = 5) -> list[dict[str, Any]]:
    """The JSON form of an explanation, best first; numbers that are not finite become null."""
    rows: list[dict[str, Any]] = []
    for c in list(contributions)[:limit]:
        numbers = {
            "observed": c.observed,
            "expected": c.expected,
            "low": c.low,
            "high": c.high,
            "contribution": c.contribution,
        }
        rows.append(
            {
                "feature": c.feature,
                **{k: float(v) if v is not None and _known(v) else None for k, v in numbers.items()},
                "windows": c.windows,
            }
        )
    return rows


def guilty_slices(slices: Sequence[Slice], contributions: Sequence[Contribution]) -> list[dict[str, Any]]:
    """Who is to blame: [{"field", "value", "share", "traffic_share", "reason"}], largest share first.

    `share` is the part of the trouble (errors, or latency in excess of the fastest large slice of the
    field) that the slice holds. Only what the alert is about is divided: errors when an error feature
    explains it, latency when a latency feature does. Deterministic; ties go by field and value.
    """
    top = [c.feature for c in contributions[:3]]
    found: list[dict[str, Any]] = []
    if any(f in ("error_rate", "empty_output_rate") for f in top):
        found += _guilty_of_errors(slices)
    if any(f.startswith(("latency_", "ttft_", "tpot_", "queue_")) for f in top):
        found += _guilty_of_latency(slices)
    best: dict[tuple[str, str], dict[str, Any]] = {}
    for row in found:
        key = (row["field"], row["value"])
        if key not in best or row["share"] > best[key]["share"]:
            best[key] = row
    ordered = sorted(best.values(), key=lambda r: (-r["share"], r["traffic_share"], r["field"], r["value"]))
    return ordered[:MAX_GUILTY_SLICES]


def _guilty_of_errors(slices: Sequence[Slice]) -> list[dict[str, Any]]:
    rows = []
    for field_slices in _by_field(slices):
        errors, records = sum(s.errors for s in field_slices), sum(s.records for s in field_slices)
        for s in field_slices:
            if s.errors < MIN_SLICE_ERRORS:
                continue
            share, traffic = s.errors / errors, s.records / max(records, 1)
            typed = (
                s.field == "error_type"
            )  # every record of an error type is an error: no traffic to compare
            if share >= MIN_GUILTY_SHARE and (typed or share >= MIN_GUILTY_LIFT * traffic):
                rows.append(_guilty(s, share, share if typed else traffic, "errors"))
    return rows


def _guilty_of_latency(slices: Sequence[Slice]) -> list[dict[str, Any]]:
    rows = []
    for field_slices in _by_field([s for s in slices if s.field != "error_type"]):
        timed = [s for s in field_slices if math.isfinite(s.latency_mean_ms) and s.records > 0]
        records = sum(s.records for s in timed)
        large = [s.latency_mean_ms for s in timed if s.records >= MIN_REFERENCE_SHARE * records]
        if not large:
            continue
        excess = [max(0.0, s.latency_mean_ms - min(large)) * s.records for s in timed]
        total = math.fsum(excess)
        for s, own in zip(timed, excess, strict=True):
            share, traffic = own / total if total > 0 else 0.0, s.records / records
            clear = s.latency_mean_ms >= MIN_GUILTY_LIFT * min(large)
            if clear and share >= MIN_GUILTY_SHARE and share >= MIN_GUILTY_LIFT * traffic:
                rows.append(_guilty(s, share, traffic, "excess latency"))
    return rows


def _guilty(s: Slice, share: float, traffic: float, what: str) -> dict[str, Any]:
    of_traffic = "" if s.field == "error_type" else f", {traffic:.0%} of the traffic"
    return {
        "field": s.field,
        "value": s.value,
        "share": round(share, 4),
        "traffic_share": round(traffic, 4),
        "reason": f"{share:.0%} of the {what}{of_traffic}",
    }


def _by_field(slices: Sequence[Slice]) -> list[list[Slice]]:
    fields = sorted({s.field for s in slices})
    return [sorted((s for s in slices if s.field == f), key=lambda s: s.value) for f in fields]


def exemplars(
    by_kind: dict[str, list[str]], contributions: Sequence[Contribution], limit: int = 5
) -> list[str]:
    """request_ids worth looking at, those of the alert's own kind first."""
    top = contributions[0].feature if contributions else ""
    kinds = ("error", "slow", "any") if top == "error_rate" else ("slow", "error", "any")
    if not top.startswith(("latency_", "ttft_", "tpot_", "queue_", "error_")):
        kinds = ("any", "error", "slow")
    return list(dict.fromkeys(request_id for kind in kinds for request_id in by_kind.get(kind, [])))[:limit]
