"""Build detectors/prior/prior.iwm: the model that scores a series before it has a training of its own.

    python benchmarks/build_prior.py --data shared/data/servegen [--services 300] [--seed 1]

Trains on imitated services (benchmarks/prior_workloads.py) over real traffic of the training workloads
only (benchmarks/splits.py); equal arguments give equal bytes. Rows come out of the serving code. A window of
a fault is learned from only if something it is guilty of stands out, so that noise is not taught as fault.
Real workloads change by themselves and stay changed for hours: such a change is one event, so a run of
normal windows that a first, smaller model finds odd weighs no more than ODD_WEIGHT windows. All such windows
are learned from, but only a share of the others.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.prior_workloads import EFFECTS, GUILTY, Client, Simulated, load_clients, simulate
from benchmarks.splits import JUDGE_CLIENTS
from detectors import artifacts, features, fitting, gbdt
from detectors.calibration import INPUTS, Calibration
from detectors.ensemble import Ensemble
from detectors.judgement import average_precision
from detectors.lstm import LstmModel, LstmOptions, LstmSequence
from detectors.training import Course, score_course
from detectors.types import STATISTIC_INDEX, Bool, Float32, Float64

WINDOW_MS = 60_000
OUT = Path(__file__).resolve().parents[1] / "detectors" / "prior" / "prior.iwm"
FIRST_SERVICES, FIRST_ROUNDS = 60, 100
ODD_QUANTILE, ODD_GAP, ODD_WEIGHT = 0.97, 15, 6.0
AS_METRIC = ("confidence_mean", "gpu_util_mean", "memory_mb_max", "queue_p95_ms", "tpot_p50_ms", "accuracy")
CHUNK = 30  # services at once
NORMAL_SHARE, PER_FAULT, AFTER = 0.05, 20, 30
TRAFFIC_WEIGHT = 2.0  # of faults in the traffic, the ones that resemble real changes most
VISIBLE = 3.5  # size of a feature at which a fault counts as visible
MIX = (0.0, 0.2, 0.4, 0.4, 0.0, 0.0, 0.0)  # of calibration.INPUTS: now, means over 3, 10 and 30 windows, LSTM
"""A mean over ten windows loses little delay and most of the single odd windows that every service has."""
_NEUTRAL = Calibration((0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0), 0.0, (0.0, 1.0), (1.0, 0.5), (1.0, 0.5))
_CONSTANT = (
    "tree\n\nTree=0\nnum_leaves=2\nsplit_feature=0\nthreshold=0\n"
    "left_child=-1\nright_child=-2\nleaf_value=0 0\n"
)


def course_of(sims: list[Simulated], seed: int) -> Course:
    """Simulated services -> one course with labels; windows behind a fault are left out.

    Some services log one of their readings as a metric of their own instead, so that such are learned too.
    """
    values = np.stack([s.values for s in sims], axis=1).astype(np.float32)
    counts = np.stack([s.counts for s in sims], axis=1).astype(np.float32)
    rng = np.random.default_rng(seed)
    own, own_count = np.full(values.shape[:2], np.nan), np.zeros(values.shape[:2])
    for j in np.flatnonzero(rng.random(len(sims)) < 0.4).tolist():
        column = STATISTIC_INDEX[str(rng.choice(AS_METRIC))]
        own[:, j], own_count[:, j] = values[:, j, column], counts[:, j, column]
        values[:, j, column], counts[:, j, column] = np.nan, 0.0
    label = np.zeros(values.shape[:2], np.int8)
    event = np.full(values.shape[:2], -1, np.int64)
    number = 0
    for j, s in enumerate(sims):
        label[:, j] = np.where(s.hit > 0, 1, np.where(s.hit < 0, -1, 0))
        for fault in s.faults:
            behind = slice(fault.end, fault.end + AFTER)
            label[behind, j] = np.where(label[behind, j] == 1, 1, -1)
            event[fault.start : fault.end, j] = number
            number += 1
    return Course(
        np.arange(len(values), dtype=np.int64) * WINDOW_MS,
        values,
        counts,
        np.ones(label.shape, bool),
        label,
        event,
        np.ones(len(sims), bool),
        {"own": (own, own_count)},
    )


def head(course: Course, windows: int) -> Course:
    """The first windows of a course."""
    own = {name: (mean[:windows], count[:windows]) for name, (mean, count) in course.metrics.items()}
    arrays = (course.start_ms, course.values, course.counts, course.present, course.label, course.event)
    return Course(*(array[:windows] for array in arrays), course.real, own)


def guilty_columns() -> dict[str, np.ndarray]:
    """Effect -> columns of the features in which it should show."""
    named = features.sources()
    skipped = {
        "silent_windows",
        "silent_share",
        "missed_requests",
        "log_count",
        "log_seen",
        "log_usual_rate",
        "busy_run",
    }
    usable = [name not in skipped for name in features.NAMES]
    return {
        effect: np.array(
            [
                k
                for k, (s, name) in enumerate(zip(named, features.NAMES, strict=True))
                if (s in GUILTY[effect] and usable[k]) or name.startswith("metric_max")
            ]
        )
        for effect in EFFECTS
    }


def pick(course: Course, rng: np.random.Generator, odd: Bool) -> Bool:
    """Windows to learn from: odd normal ones, a share of the others, the first and more of every fault."""
    picked = (course.label == 0) & (odd | (rng.random(course.label.shape) < NORMAL_SHARE))
    for j in range(course.label.shape[1]):
        for number in np.unique(course.event[course.event[:, j] >= 0, j]).tolist():
            at = np.flatnonzero((course.event[:, j] == number) & (course.label[:, j] == 1))
            if len(at) > PER_FAULT:
                at = np.concatenate([at[:8], rng.choice(at[8:], PER_FAULT - 8, replace=False)])
            picked[at, j] = True
    picked[:20] = False
    return picked


def find_odd(course: Course, logit: Float32) -> Bool:
    """[T, n], the normal windows that score highest."""
    normal = course.label == 0
    level = float(np.quantile(logit[normal], ODD_QUANTILE))
    odd: Bool = normal & (logit > level)
    return odd


def lighten(odd: Bool) -> Float64:
    """[T, n] weights: runs of odd normal windows together weigh ODD_WEIGHT at most, others 1 each."""
    weight = np.ones(odd.shape)
    for j in range(weight.shape[1]):
        at = np.flatnonzero(odd[:, j])
        for run in np.split(at, np.flatnonzero(np.diff(at) > ODD_GAP) + 1):
            weight[run, j] = min(1.0, ODD_WEIGHT / max(len(run), 1))
    return weight


Rows = tuple[Float32, Float64, Float64]


def _chunk_rows(task: tuple[list[Client], list[int], float, Ensemble, bool]) -> Rows:
    clients, seeds, days, scorer, first = task
    columns = guilty_columns()
    sims = [simulate(clients[seed % len(clients)], seed, days=days, quiet_h=3.0, gap_h=3.0) for seed in seeds]
    course = course_of(sims, seeds[0])
    odd = np.zeros(course.label.shape, bool)
    if not first:
        odd = find_odd(course, score_course(scorer, course, WINDOW_MS).inputs[..., 1])
    picked = pick(course, np.random.default_rng(seeds[0]), odd)
    x = score_course(scorer, course, WINDOW_MS, wanted=picked).rows
    y = course.label[picked].astype(float)
    effects = [fault.effect for s in sims for fault in s.faults]
    event = course.event[picked]
    visible = np.ones(len(y), bool)
    for k in np.flatnonzero(y == 1).tolist():
        visible[k] = np.abs(x[k, columns[effects[event[k]]]]).max() >= VISIBLE
    weight = lighten(odd)[picked]
    for k in np.flatnonzero(y == 1).tolist():
        weight[k] = TRAFFIC_WEIGHT if effects[event[k]] == "rate" else 1.0
    return x[visible], y[visible], weight[visible]


def rows(
    clients: list[Client], seeds: Iterable[int], days: float, scorer: Ensemble, *, first: bool, jobs: int
) -> Rows:
    """Training rows, their labels and their weights, in order of seeds whatever the number of processes."""
    seeds = list(seeds)
    tasks = [(clients, seeds[at : at + CHUNK], days, scorer, first) for at in range(0, len(seeds), CHUNK)]
    parts: list[Rows] = []
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        for x, y, weight in pool.imap(_chunk_rows, tasks):
            parts.append((x, y, weight))
            print(f"rows {len(parts)}/{len(tasks)}: {len(y)}, positive {y.mean():.3f}", flush=True)
    xs, ys, weights = zip(*parts, strict=True)
    return np.concatenate(xs), np.concatenate(ys), np.concatenate(weights)


def forecaster(blank: Ensemble, clean: Course, epochs: int, seed: int) -> LstmModel:
    """An LSTM over the normalised windows of clean services."""
    from detectors.lstm_train import train_lstm

    scored = score_course(blank, clean, WINDOW_MS, keep_z=True)
    assert scored.z is not None and scored.mask is not None
    angle = 2 * np.pi * (clean.start_ms // 3_600_000 % 24) / 24
    clock = np.stack([np.sin(angle), np.cos(angle)], axis=1).astype(np.float32)
    sequences = [
        LstmSequence(scored.z[60:, j], scored.mask[60:, j], clock[60:]) for j in range(scored.z.shape[1])
    ]
    model, report = train_lstm(sequences, LstmOptions(epochs=epochs), seed=seed)
    print(
        f"LSTM: {report.epochs} epochs, held-out {report.held_out_nll[-1]:.3f}, {report.seconds:.0f} s",
        flush=True,
    )
    return model


def weigh(course: Course, inputs: Float32) -> Float64:
    """Weights of the inputs: MIX of the GBDT's running means, and the share of the LSTM that ranks best."""
    use = (course.label >= 0) & (np.arange(len(course.label)) > 60)[:, None]
    x, positive = inputs[use].astype(float), course.label[use] == 1
    best, chosen = -1.0, np.array(MIX)
    for share in np.linspace(0.0, 0.6, 7):
        tried = np.array(MIX)
        tried[INPUTS.index("lstm_3")] = share
        found = average_precision(x @ tried, positive)
        print(f"LSTM share {share:.1f}: average precision {found:.4f}", flush=True)
        if found > best + 1e-4:
            best, chosen = found, tried
    return chosen


def calibrate(ensemble: Ensemble, clean: Course) -> Ensemble:
    """Levels of clean services; the shift of each series is replayed with the level found first."""
    weights = np.array(ensemble.calibration.weights)
    total = score_course(ensemble, clean, WINDOW_MS).inputs.astype(float) @ weights
    total[:60] = np.nan
    daily = fitting.level_for_rate(total, 7.0, int(np.isfinite(total).sum()))
    height = fitting.shifted(total, daily)
    return replace(ensemble, calibration=fitting.tabulate(weights, daily, height))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--services", type=int, default=300)
    parser.add_argument("--days", type=float, default=5.0)
    parser.add_argument("--clean", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--lstm-epochs", type=int, default=6, help="0 = no LSTM")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rows", type=Path, help="also keep the training rows here")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    began = time.perf_counter()
    clients = [
        c for c in load_clients(args.data) if c.name.replace("m-large", "servegen") not in JUDGE_CLIENTS
    ]
    blank = Ensemble("blank", gbdt.Forest(_CONSTANT), _NEUTRAL)
    first = args.seed * 1_000_000
    few = range(first + 300_000, first + 300_000 + min(FIRST_SERVICES, args.services))
    x, y, weight = rows(clients, few, args.days, blank, first=True, jobs=args.threads)
    forest = gbdt.fit(x, y, weight, seed=args.seed, rounds=FIRST_ROUNDS, threads=args.threads)
    scorer = replace(blank, forest=forest)
    x, y, weight = rows(
        clients, range(first, first + args.services), args.days, scorer, first=False, jobs=args.threads
    )
    forest = gbdt.fit(x, y, weight, seed=args.seed, rounds=args.rounds, threads=args.threads)
    if args.rows is not None:
        np.savez(args.rows, x=x, y=y, weight=weight)
    print(f"{len(y)} rows, {time.perf_counter() - began:.0f} s", flush=True)
    version = "prior-" + hashlib.sha256(forest.text.encode()).hexdigest()[:8]
    clean = course_of(
        [
            simulate(clients[s % len(clients)], s, days=10.0, gap_h=None)
            for s in range(first + 700_000, first + 700_000 + args.clean)
        ],
        first,
    )
    lstm = None
    if args.lstm_epochs:
        lstm = forecaster(blank, head(clean, 4 * 1440), args.lstm_epochs, args.seed)
    ensemble = Ensemble(version, forest, _NEUTRAL, lstm)
    sims = [
        simulate(clients[s % len(clients)], s, days=args.days, quiet_h=6.0, gap_h=9.0)
        for s in range(first + 500_000, first + 500_000 + max(args.clean // 2, 4))
    ]
    course = course_of(sims, first)
    weights = weigh(course, score_course(ensemble, course, WINDOW_MS).inputs)
    ensemble = replace(ensemble, calibration=replace(_NEUTRAL, weights=tuple(weights.tolist())))
    ensemble = calibrate(ensemble, clean)
    notes: dict[str, object] = {"services": args.services, "seed": args.seed, "rows": len(y)}
    blob = artifacts.save(replace(ensemble, metadata=notes))
    args.out.write_bytes(blob)
    print(f"{args.out}: {len(blob)} bytes, {version}, weights {weights.round(3).tolist()}")


if __name__ == "__main__":
    main()
