"""The whole product measured: log files in, SQL views out, with its own training on the way.

    python -m benchmarks.product [--days 7] [--seed 4] [--rate 0.02 0.2] [--config FILE] [--keep FOLDER]

Services on workloads that the prior was not built on write one log of JSON lines, with faults from 36 hours
on. `inferwatch replay` reads it as a user would, with the default configuration and trainings of its own
after 24 hours and when traffic drifts; only the shipped prior is replaced by its held-out twin. Judged is
what the views say: `window_history` (average precision, recall, false events, delay), `alert_history` (right
features) and `incident_history` (how many, how many of them real). Printed and written to
benchmarks/results/product.json.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.detection import figures
from benchmarks.judging import AFTER_MS, BEFORE_MS, WEEK_MS, Verdict, judge
from benchmarks.splits import HELD_OUT_MODEL, JUDGE_CLIENTS
from benchmarks.suites import WINDOW_MS, Plan, Suite, plan_faults
from monitor.generate import generate
from monitor.lines import encode_lines
from monitor.record_faults import Fault, Touched
from monitor.records import RecordColumns
from monitor.truth import TruthInterval, truth_of
from monitor.workload import ANCHOR_MS, DAY_MS, HOUR_MS, Profile, sample_profile

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
TOP = 3


def services(plan: Plan, rates: tuple[float, float]) -> list[Profile]:
    """One service per judged workload, its mean rate (records per second) drawn from `rates`."""
    low, high = np.log(rates)
    made = []
    for i, client in enumerate(JUDGE_CLIENTS):
        rng = np.random.default_rng([plan.seed, 21, i])
        rate = float(np.exp(rng.uniform(low, high)))
        name = f"product-{plan.seed}-{client}"
        made.append(sample_profile(rng, model=name, endpoint="v1", clients=(client,), rate_per_s=rate))
    return made


def write_log(
    path: Path, profiles: Sequence[Profile], faults: dict[str, list[Fault]], plan: Plan
) -> tuple[int, dict[str, Touched]]:
    """The records of all services in event-time order; returns how many, and what the faults changed."""
    end_ms = ANCHOR_MS + plan.days * DAY_MS
    touched = {profile.series: Touched() for profile in profiles}
    streams = [
        _by_hour(
            generate(
                profile,
                *(ANCHOR_MS, end_ms, plan.seed),
                faults=faults[profile.series],
                touched=touched[profile.series],
                request_ids=True,
            )
        )
        for profile in profiles
    ]
    waiting = [next(stream, None) for stream in streams]
    records = 0
    with path.open("wb") as file:
        for hour in range(ANCHOR_MS // HOUR_MS, end_ms // HOUR_MS):
            lines: list[bytes] = []
            times = []
            for i, stream in enumerate(streams):
                found = waiting[i]
                if found is not None and found[0] == hour:
                    lines += encode_lines(found[1])
                    times.append(found[1].timestamp_ms)
                    waiting[i] = next(stream, None)
            if lines:
                order = np.argsort(np.concatenate(times), kind="stable").tolist()
                file.write(b"\n".join([lines[k] for k in order]) + b"\n")
            records += len(lines)
    return records, touched


def _by_hour(batches: Iterator[RecordColumns]) -> Iterator[tuple[int, RecordColumns]]:
    for batch in batches:
        yield int(batch.timestamp_ms[0]) // HOUR_MS, batch


def replay(log: Path, database: str, config: Path | None, folder: Path) -> dict[str, Any]:
    """What `inferwatch replay` printed, with the prior that has not seen the judged workloads.

    `folder` gets a copy of the detectors with that prior, which goes before the real ones.
    """
    shutil.rmtree(folder / "detectors", ignore_errors=True)
    shutil.copytree(ROOT / "detectors", folder / "detectors", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(HELD_OUT_MODEL, folder / "detectors" / "prior" / "prior.iwm")
    command = [sys.executable, "-m", "monitor.cli", "replay", str(log.resolve()), "--database", database]
    command += ["--json", *(["--config", str(config.resolve())] if config else [])]
    path = os.pathsep.join([str(folder), str(ROOT)])
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    summary: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return summary


def read(database: Path, series: Sequence[str], days: int) -> tuple[Suite, Verdict, list[list[Any]]]:
    """The views as the judge wants them, and the alerts of every incident: (series, start_ms, end_ms)."""
    windows = days * DAY_MS // WINDOW_MS
    start_ms = ANCHOR_MS + np.arange(windows, dtype=np.int64) * WINDOW_MS
    shape = (len(series), windows)
    verdict = Verdict(np.zeros(shape), np.zeros(shape, bool))
    row_of = {name: row for row, name in enumerate(series)}
    incidents: dict[str, list[Any]] = {}
    with sqlite3.connect(database) as connection:
        rows = "select series, window_start, score, is_anomalous from window_history"
        for name, at, score, anomalous in connection.execute(rows):
            t = (_ms(at) - ANCHOR_MS) // WINDOW_MS
            if t < windows:
                verdict.score[row_of[name], t] = score
                verdict.alarm[row_of[name], t] = anomalous
        rows = """select a.incident_id, a.series, a.window_start, a.window_end, a.top_features
            from alert_history a join incident_history i on i.incident_id = a.incident_id"""
        for incident, name, start, end, top in connection.execute(rows):
            begin, until = _ms(start), _ms(end)
            incidents.setdefault(incident, []).append((name, begin, until))
            names = tuple(feature["feature"] for feature in json.loads(top)[:TOP])
            for t in range((begin - ANCHOR_MS) // WINDOW_MS, (until - ANCHOR_MS) // WINDOW_MS):
                verdict.top[row_of[name], t] = names
    blank = np.zeros((*shape, 0))
    suite = Suite("product", list(series), start_ms, blank, blank, {}, np.zeros(shape, bool), [])
    return suite, verdict, list(incidents.values())


def _ms(text: str) -> int:
    return round(datetime.fromisoformat(text).timestamp() * 1000)


def judge_incidents(
    incidents: list[list[Any]], truth: list[TruthInterval], from_ms: int, series_weeks: float
) -> dict[str, float]:
    """How many there are, and the share that holds an alert about a real fault."""
    counted = [alerts for alerts in incidents if min(begin for _, begin, _ in alerts) >= from_ms]
    real = [alerts for alerts in counted if any(_touches(alert, truth, benign=False) for alert in alerts)]
    benign = [
        alerts
        for alerts in counted
        if alerts not in real and any(_touches(alert, truth, benign=True) for alert in alerts)
    ]
    return {
        "incidents": len(counted),
        "incidents_per_series_week": len(counted) / series_weeks,
        "real_share_of_incidents": len(real) / len(counted) if counted else float("nan"),
        "incidents_on_benign_changes": len(benign),
    }


def _touches(alert: tuple[str, int, int], truth: list[TruthInterval], *, benign: bool) -> bool:
    name, begin, end = alert
    return any(
        item.series == name
        and item.benign == benign
        and begin < item.end_ms + AFTER_MS
        and end > item.start_ms - BEFORE_MS
        for item in truth
    )


def run(plan: Plan, rates: tuple[float, float], config: Path | None, folder: Path) -> dict[str, Any]:
    """Write, replay and judge; everything is left in `folder`."""
    profiles = services(plan, rates)
    end_ms = ANCHOR_MS + plan.days * DAY_MS
    faults = {profile.series: plan_faults(profile, plan, "faulty", end_ms) for profile in profiles}
    log, database = folder / "product.jsonl", folder / "product.db"
    began = time.perf_counter()
    records, touched = write_log(log, profiles, faults, plan)
    written_s = time.perf_counter() - began
    print(f"{records:,} records written in {written_s:.0f} s", flush=True)
    database.unlink(missing_ok=True)
    summary = replay(log, f"sqlite:///{database}", config, folder)
    print(json.dumps(summary), flush=True)
    suite, verdict, incidents = read(database, [profile.series for profile in profiles], plan.days)
    for profile in profiles:
        suite.truth += truth_of(profile, faults[profile.series], touched[profile.series])
    from_ms = ANCHOR_MS + plan.quiet_h * HOUR_MS
    found = figures(judge(suite, verdict, from_ms=from_ms))
    weeks = len(profiles) * (end_ms - from_ms) / WEEK_MS
    found |= judge_incidents(incidents, suite.truth, from_ms, weeks)
    found["models"] = _models(database)
    return {"plan": plan.name, "rates_per_s": rates, "replay": summary, **found}


def _models(database: Path) -> list[list[str]]:
    """When each model was trained, what became of it, and why."""
    statement = """select v.trained_at, v.status, m.reason
        from model_versions v join models m using (version) order by v.trained_at"""
    with sqlite3.connect(database) as connection:
        return [list(row) for row in connection.execute(statement)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--days", type=int, default=7, help="of every series")
    parser.add_argument("--seed", type=int, default=4, help="of characters, traffic and faults")
    parser.add_argument(
        "--rate", type=float, nargs=2, default=(0.02, 0.2), help="records per second and series"
    )
    parser.add_argument("--config", type=Path, help="configuration of the replay; default: none")
    parser.add_argument("--keep", type=Path, help="folder for the log and the database; default: thrown away")
    arguments = parser.parse_args()
    plan = Plan(copies=1, days=arguments.days, seed=arguments.seed)
    with tempfile.TemporaryDirectory() as thrown_away:
        folder = arguments.keep or Path(thrown_away)
        folder.mkdir(parents=True, exist_ok=True)
        found = run(plan, tuple(arguments.rate), arguments.config, folder)
    for key, value in found.items():
        print(f"  {key}: {value}")
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "product.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
