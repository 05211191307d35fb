"""How often the drift check says "drift" in clean weeks, and how often and when after a lasting change.

    python -m benchmarks.drift [--seeds 1 2 4] [--days 14] [--trained-at 2]

Services on the real 14-day workloads that no prior was built on, one installation per seed with all its
series, windows as the pipeline makes them. The check runs as the product does (`monitor.schedule`): every six
hours the newest day against the windows trained on; before the first training, after a day, against the first
day. Verdicts of drift move the training, as they do in the product; a training always ends well here. Changes
set in at once, hold to the end and hit all series, or the share of them that is printed: the mix of inputs
shifts (as a change of the users does), traffic doubles, a new model answers at other lengths.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from benchmarks.fold import Float64
from benchmarks.suites import WINDOW_MS, Plan, Suite, load_suite
from detectors import drift
from detectors.types import FEATURES, STATISTIC_INDEX
from monitor.drifting import RECENT_WINDOWS, REFERENCE_WINDOWS
from monitor.schedule import DAY_MS, HOUR_MS, Schedule, Span
from monitor.workload import ANCHOR_MS

RESULTS = Path(__file__).resolve().parent / "results"
CHANGES: tuple[tuple[str, float, float], ...] = (  # name, size, share of the series
    ("inputs longer", 1.5, 1.0),
    ("inputs longer", 2.0, 1.0),
    ("inputs longer", 2.0, 0.4),
    ("traffic doubled", 2.0, 1.0),
    ("traffic doubled", 2.0, 0.4),
    ("answers longer", 1.3, 1.0),
    ("answers longer", 1.6, 1.0),
    ("answers longer", 1.6, 0.4),
)


@dataclass(slots=True)
class Outcome:
    """What the checks of one installation said."""

    checks: int
    drifts: list[int]  # event times, ms
    shifted: dict[str, int]  # feature -> how often


def changed(suite: Suite, name: str, size: float, share: float, from_ms: int) -> Float64:
    """Values [m, w, S] with a lasting change from `from_ms` on in the first part of the series."""
    values = suite.values.astype(float)
    hit = np.arange(len(suite.series)) < round(share * len(suite.series))
    part = np.ix_(hit, suite.start_ms >= from_ms)
    slope = {"inputs longer": 0.4, "answers longer": 0.8, "traffic doubled": 0.0}[name]
    moved = {
        "inputs longer": ("input_tokens_mean",),
        "answers longer": ("output_tokens_mean", "output_tokens_p95"),
        "traffic doubled": ("request_count", "cost_usd_sum"),
    }[name]
    for feature in moved:
        values[(*part, STATISTIC_INDEX[feature])] *= size
    times = [f for f in FEATURES if f.startswith("latency_p") or (f.startswith("ttft") and slope == 0.4)]
    for feature in times if slope else ():
        values[(*part, STATISTIC_INDEX[feature])] *= size**slope
    return values


def columns(suite: Suite, values: Float64, row: int) -> Float64:
    """[w, len(drift.COLUMNS)] of one series; scores are left out."""
    return np.concatenate([values[row, :, : len(FEATURES)], np.full((values.shape[1], 1), np.nan)], axis=1)


def sample(suite: Suite, whole: Float64, span: Span, limit: int) -> drift.Sample:
    """As the product reads windows, but for alarms: about `limit` of them, evenly over the span."""
    at = np.flatnonzero((suite.start_ms >= span[0]) & (suite.start_ms < span[1]))
    every = max((span[1] - span[0]) // WINDOW_MS // limit, 1)
    at = at[suite.start_ms[at] // WINDOW_MS % every == 0]
    return drift.Sample(whole[at], ((suite.start_ms[at] - span[0]) // DAY_MS).astype(np.int64))


def run(suite: Suite, values: Float64, *, days: int, history_ms: int = 14 * DAY_MS) -> Outcome:
    """All checks of one installation."""
    schedule = Schedule(ANCHOR_MS, ANCHOR_MS + DAY_MS, 7 * DAY_MS, 6 * HOUR_MS, WINDOW_MS)
    series = [columns(suite, values, row) for row in range(len(suite.series))]
    outcome = Outcome(0, [], {})
    cache: dict[Span, list[drift.Reference | None]] = {}
    for check_ms in range(ANCHOR_MS + 6 * HOUR_MS, ANCHOR_MS + days * DAY_MS + 1, 6 * HOUR_MS):
        if schedule.too_early(check_ms, outcome.drifts):
            continue
        trained_ms = schedule.newest_training(check_ms - 1, outcome.drifts)
        compared = schedule.comparison(check_ms, trained_ms, history_ms)
        if compared.features not in cache:
            cache[compared.features] = [
                drift.prepare(s)
                if len((s := sample(suite, whole, compared.features, REFERENCE_WINDOWS)).values)
                >= drift.MIN_WINDOWS
                else None
                for whole in series
            ]
        references = {
            name: found
            for name, found in zip(suite.series, cache[compared.features], strict=True)
            if found is not None
        }
        recent = {
            name: sample(suite, whole, compared.recent, RECENT_WINDOWS)
            for name, whole in zip(suite.series, series, strict=True)
        }
        said = drift.judge(references, recent)
        outcome.checks += 1
        if said.drifted:
            outcome.drifts.append(check_ms)
            for feature in said.shifted:
                outcome.shifted[feature] = outcome.shifted.get(feature, 0) + 1
    return outcome


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 4], help="one installation each")
    parser.add_argument("--days", type=int, default=14, help="of every series")
    parser.add_argument("--changed-on-day", type=float, nargs="+", default=[4.3, 7.0], help="counted from 0")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of cached windows")
    arguments = parser.parse_args()
    plans = [replace(Plan(copies=1, days=arguments.days), seed=seed) for seed in arguments.seeds]
    suites = [load_suite(arguments.out, plan, "clean") for plan in plans]
    print(
        "| change | share of series | installations | checks | drifts | found within 36 h | median delay, h |"
    )
    print("|---|---|---|---|---|---|---|")
    clean = [run(suite, suite.values.astype(float), days=arguments.days) for suite in suites]
    checks, drifts = sum(o.checks for o in clean), sum(len(o.drifts) for o in clean)
    print(f"| none | | {len(clean)} | {checks} | {drifts} | | |")
    for outcome in clean:
        print(
            "  " + ", ".join(f"day {(ms - ANCHOR_MS) / DAY_MS:.2f}" for ms in outcome.drifts), outcome.shifted
        )
    for name, size, share in CHANGES:
        delays, checks, drifts, tries = [], 0, 0, 0
        for suite in suites:
            for day in arguments.changed_on_day:
                from_ms = ANCHOR_MS + int(day * DAY_MS)
                outcome = run(suite, changed(suite, name, size, share, from_ms), days=arguments.days)
                after = [ms for ms in outcome.drifts if from_ms < ms <= from_ms + 36 * HOUR_MS]
                delays += [(after[0] - from_ms) / HOUR_MS] if after else []
                checks, drifts, tries = checks + outcome.checks, drifts + len(outcome.drifts), tries + 1
        delay = f"{np.median(delays):.0f}" if delays else "-"
        figures = f"{tries} | {checks} | {drifts} | {len(delays)} | {delay}"
        print(f"| {name} {size:g} times | {share:.0%} | {figures} |", flush=True)


if __name__ == "__main__":
    main()
