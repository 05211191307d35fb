"""The project's own detection benchmark: faults in services on workloads that no training has seen.

    python -m benchmarks.detection run [--quick] [--copies N] [--days N] [--model FILE] [--budget 1]
                                       [--least-size S] [--reference] [--only NAME ...]
    python -m benchmarks.detection windows --split train [--quick]     # fill the cache only

Prints and writes benchmarks/results/detection.json: recall at the default alarm, false events per
series-week (also on clean series, for budgets 0.2, 1 and 5), median delay, average precision, share of
alerts whose first three features hold a right one, recall by kind, on held-out kinds and on series born
the day before. `--reference` runs EWMA, isolation forest, half-space trees, random cut forest and the
plain floor (`benchmarks/plain_floor.py`) beside it, each with the threshold that gives it one false event
per series-week on the clean suite; `recall_at_one_false_event` is ours at a threshold chosen so. `--only`
runs some of them; what the file of results holds of the others on the same plan stays.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import rcf, reference
from benchmarks.fold import Float64
from benchmarks.judging import Result, Verdict, judge, threshold_for
from benchmarks.splits import HELD_OUT_KINDS, HELD_OUT_MODEL
from benchmarks.suites import FULL, QUICK, SUITES, WINDOW_MS, Plan, Suite, load_suite
from detectors import artifacts
from detectors.ensemble import Ensemble
from detectors.types import WindowBatch
from monitor.fault_kinds import KINDS
from monitor.workload import ANCHOR_MS, DAY_MS

RESULTS = Path(__file__).resolve().parent / "results"
BUDGETS = (0.2, 1.0, 5.0)
OTHERS = ("ewma", "isolation-forest", "half-space-trees", "rcf", "plain-floor")
EXPIRE_WINDOWS = 1_440  # the pipeline forgets a series after a day of silence


def run_scorer(suite: Suite, scorer: Ensemble) -> Verdict:
    """Every window of the suite through a scorer, all series of one start together, as the pipeline does."""
    order = sorted(range(len(suite.series)), key=lambda i: suite.series[i])
    requests = suite.values[:, :, 0] > 0
    numbers = np.arange(requests.shape[1])
    newest = np.maximum.accumulate(np.where(requests, numbers, -10 * EXPIRE_WINDOWS), axis=1)
    live = numbers - newest <= EXPIRE_WINDOWS
    verdict = Verdict(np.zeros(live.shape), np.zeros(live.shape, bool))
    states = scorer.new_states()
    for t in numbers.tolist():
        rows = [i for i in order if live[i, t]]
        for i in order:
            if not live[i, t] and suite.series[i] in states:
                states.drop(suite.series[i])
        if not rows:
            continue
        batch = WindowBatch(
            window_start_ms=int(suite.start_ms[t]),
            window_ms=WINDOW_MS,
            series=[suite.series[i] for i in rows],
            values=suite.values[rows, t].astype(float),
            counts=suite.counts[rows, t].astype(float),
            metrics={name: (mean[rows, t], count[rows, t]) for name, (mean, count) in suite.metrics.items()},
            new_version=suite.new_version[rows, t],
        )
        scored = scorer.score(batch, states)
        verdict.score[rows, t] = scored.score
        verdict.alarm[rows, t] = scored.is_anomalous
        for k in np.flatnonzero(scored.is_anomalous).tolist():
            verdict.top[rows[k], t] = tuple(reason.feature for reason in scored.explanations[k][:3])
    return verdict


def figures(result: Result) -> dict[str, Any]:
    """A result as numbers for people and JSON."""
    kinds = {kind: result.recall_of([kind]) for kind in KINDS}
    seen = [kind for kind in KINDS if kind not in HELD_OUT_KINDS]
    return {
        "faults": len(result.events),
        "recall": result.recall,
        "recall_known_kinds": result.recall_of(seen),
        "recall_held_out_kinds": result.recall_of(HELD_OUT_KINDS),
        "false_events_per_series_week": result.false_per_series_week,
        "series_weeks": result.series_weeks,
        "benign_changes_alarmed": result.benign_alarmed / result.benign if result.benign else float("nan"),
        "average_precision": result.average_precision,
        "delay_min_abrupt": result.delay_min(gradual=False),
        "delay_min_gradual": result.delay_min(gradual=True),
        "right_feature_share": result.named_share,
        "recall_by_kind": {kind: value for kind, value in kinds.items() if value == value},
    }


def load_scorer(model: Path, budget: float) -> Ensemble:
    """A model file at a budget."""
    return artifacts.load(model.read_bytes(), false_alarms_per_week=budget, window_ms=WINDOW_MS)


def run_ours(suites: dict[str, Suite], plan: Plan, model: Path, budget: float) -> dict[str, Any]:
    """All figures of the ensemble."""
    from_ms = ANCHOR_MS + plan.quiet_h * 3_600_000
    began = time.perf_counter()
    verdict = run_scorer(suites["faulty"], load_scorer(model, budget))
    seconds = time.perf_counter() - began
    found = figures(judge(suites["faulty"], verdict, from_ms=from_ms))
    clean = {}
    for other in BUDGETS:
        said = run_scorer(suites["clean"], load_scorer(model, other))
        result = judge(suites["clean"], said, from_ms=from_ms)
        clean[str(other)] = result.false_per_series_week
        if other == 1.0:
            level = threshold_for(suites["clean"], said.score, 1.0, from_ms=from_ms)
            fair = judge(suites["faulty"], Verdict(verdict.score, verdict.score >= level), from_ms=from_ms)
            found["recall_at_one_false_event"] = fair.recall
    newborn = judge(
        suites["newborn"],
        run_scorer(suites["newborn"], load_scorer(model, budget)),
        from_ms=ANCHOR_MS + DAY_MS,
    )
    found["clean_false_events_by_budget"] = clean
    found["newborn_recall"] = newborn.recall
    found["newborn_share_of_recall"] = newborn.recall / found["recall"] if found["recall"] else float("nan")
    found["windows_per_s"] = suites["faulty"].values.shape[0] * suites["faulty"].values.shape[1] / seconds
    return found


Detector = Callable[[Suite], Float64]


def _plain_floor(plan: Plan, folder: Path) -> Detector:
    """The floor, fitted to faults in the workloads that no judge uses."""
    from benchmarks.plain_floor import PlainFloor

    return PlainFloor(load_suite(folder, replace(plan, split="train"), "faulty")).score


def _missing(what: str) -> Detector:
    def fail(_: Suite) -> Float64:
        raise SystemExit(what)

    return fail


def references(plan: Plan, folder: Path) -> dict[str, Callable[[], Detector]]:
    """Short name -> how to make the detector; making one may fit it."""
    jars = rcf.find_jars()
    installed = reference.river_is_installed()
    return {
        "ewma": lambda: reference.ewma,
        "isolation-forest": lambda: reference.isolation_forest,
        "half-space-trees": lambda: (
            reference.half_space_trees if installed else _missing("half-space trees: pip install river")
        ),
        "rcf": lambda: (
            (lambda suite: rcf.scores(suite, jars)) if jars else _missing(f"random cut forest: {rcf.__doc__}")
        ),
        "plain-floor": lambda: _plain_floor(plan, folder),
    }


def run_reference(detector: Detector, suites: dict[str, Suite], plan: Plan) -> dict[str, Any]:
    """Figures of another detector, at one false event per series-week on the clean suite."""
    from_ms = ANCHOR_MS + plan.quiet_h * 3_600_000
    began = time.perf_counter()
    level = threshold_for(suites["clean"], detector(suites["clean"]), 1.0, from_ms=from_ms)
    score = detector(suites["faulty"])
    found = figures(judge(suites["faulty"], Verdict(score, score >= level), from_ms=from_ms))
    found["seconds"] = time.perf_counter() - began
    return found


def show(name: str, found: dict[str, Any]) -> None:
    """Print the figures of one detector."""
    print(f"\n{name}")
    for key, value in found.items():
        if isinstance(value, dict):
            print(f"  {key}: " + ", ".join(f"{k} {v:.2f}" for k, v in value.items()))
        else:
            print(f"  {key}: {value:,.3f}" if isinstance(value, float) else f"  {key}: {value}")


def earlier(path: Path, plan: Plan) -> dict[str, Any]:
    """Results that stand in the file, if they are of the same plan."""
    if path.exists():
        stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if stored.get("plan") == plan.name:
            return stored
    return {"plan": plan.name}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=["run", "windows"])
    parser.add_argument("--quick", action="store_true", help="6 series of 5 days instead of 32 of 14")
    parser.add_argument("--copies", type=int, help="services per workload")
    parser.add_argument("--days", type=int, help="days of every series")
    parser.add_argument("--split", choices=["judge", "train"], default="judge", help="whose workloads")
    parser.add_argument("--seed", type=int, default=1, help="of characters, traffic and faults")
    parser.add_argument("--least-size", type=float, help="of a fault, from mild (0) to gross (1)")
    parser.add_argument("--budget", type=float, default=1.0, help="false alarms per series and week")
    parser.add_argument(
        "--model",
        type=Path,
        default=HELD_OUT_MODEL,
        help="model file; default: the held-out twin of the prior",
    )
    parser.add_argument("--reference", action="store_true", help="run the other detectors too")
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="NAME", help="of: ours, " + ", ".join(OTHERS)
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of cached windows and results")
    arguments = parser.parse_args()
    sizes = ("copies", "days", "least_size")
    chosen = {name: getattr(arguments, name) for name in sizes if getattr(arguments, name)}
    plan = replace(QUICK if arguments.quick else FULL, split=arguments.split, seed=arguments.seed, **chosen)
    suites = {name: load_suite(arguments.out, plan, name) for name in SUITES}
    if arguments.command == "windows":
        print(f"windows are in {arguments.out / plan.name}")
        return
    path = arguments.out / "detection.json"
    results = earlier(path, plan)
    wanted = set(arguments.only or (["ours", *OTHERS] if arguments.reference else ["ours"]))
    if "ours" in wanted:
        results["ensemble"] = run_ours(suites, plan, arguments.model, arguments.budget)
        show("Inferwatch", results["ensemble"])
    for name, make in references(plan, arguments.out).items():
        if name in wanted:
            results[name] = run_reference(make(), suites, plan)
            show(name, results[name])
    path.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(f"\nwritten to {path}")


if __name__ == "__main__":
    main()
