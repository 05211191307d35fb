"""The judged series: who they are, when they fail, and their windows kept on disk between runs.

Three suites over the same services, each of `days` days of one-minute windows:
`faulty` (about one change every 14 hours from 36 h on), `clean` (none) and `newborn` (two days, faults
in the second). Names, rates, characters and faults follow from the seed alone.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from benchmarks.fold import Bool, Float64, Int64, Windows, fold
from benchmarks.splits import JUDGE_CLIENTS, train_clients
from monitor.fault_plan import sample_faults
from monitor.generate import generate
from monitor.record_faults import Fault, Touched
from monitor.truth import TruthInterval, truth_of
from monitor.workload import ANCHOR_MS, DAY_MS, HOUR_MS, Profile, load_workloads, sample_profile

WINDOW_MS = 60_000
FORMAT = 2
SUITES = ("faulty", "clean", "newborn")


@dataclass(frozen=True, slots=True)
class Plan:
    """Size of a benchmark."""

    split: str = "judge"  # "judge" | "train" | "all": whose workloads
    seed: int = 1
    clients: int = 0  # at most so many of them; 0 = all
    copies: int = 2  # services per client, each with a character and rate of its own
    days: int = 14
    quiet_h: int = 36  # no fault before this
    least_size: float = 0.0  # of a fault, on the way from mild (0) to gross (1)

    @property
    def name(self) -> str:
        sizes = f"-z{self.least_size:g}" if self.least_size else ""
        return f"{self.split}-s{self.seed}-c{self.clients}x{self.copies}-d{self.days}{sizes}-f{FORMAT}"


QUICK = Plan(clients=6, copies=1, days=5)
FULL = Plan()


@dataclass(slots=True)
class Suite:
    """m series with common windows: arrays are [m, w, ...]."""

    name: str
    series: list[str]
    start_ms: Int64  # [w]
    values: Float64  # [m, w, S], float32 on disk
    counts: Float64  # [m, w, S]
    metrics: dict[str, tuple[Float64, Float64]]  # name -> [m, w] means and counts
    new_version: Bool  # [m, w]
    truth: list[TruthInterval]  # of all series; benign ones included

    def of(self, series: str) -> list[TruthInterval]:
        return [item for item in self.truth if item.series == series]


def services(plan: Plan) -> list[Profile]:
    """The services of a plan, the same in every suite."""
    every = list(load_workloads())
    names = {"judge": list(JUDGE_CLIENTS), "train": train_clients(every), "all": every}[plan.split]
    if plan.clients:
        rng = np.random.default_rng([plan.seed, 11])
        names = sorted(rng.choice(names, min(plan.clients, len(names)), replace=False).tolist())
    profiles = []
    for copy in range(plan.copies):
        for i, client in enumerate(names):
            rng = np.random.default_rng([plan.seed, copy, i])
            rate = float(np.exp(rng.uniform(np.log(0.03), np.log(2.5))))
            model = f"{plan.split}-{plan.seed}-{client}-{copy}"
            profiles.append(
                sample_profile(rng, model=model, endpoint="v1", clients=(client,), rate_per_s=rate)
            )
    return profiles


def load_suite(folder: Path, plan: Plan, name: str, *, progress: bool = True) -> Suite:
    """A suite from the cache in `folder`, generated first if it is not there."""
    stem = folder / plan.name / name
    if not stem.with_suffix(".json").exists():
        _build(stem, plan, name, progress=progress)
    return _read(stem, name)


def _build(stem: Path, plan: Plan, name: str, *, progress: bool) -> None:
    stem.parent.mkdir(parents=True, exist_ok=True)
    days = 2 if name == "newborn" else plan.days
    end_ms = ANCHOR_MS + days * DAY_MS
    folded: list[Windows] = []
    truth: list[TruthInterval] = []
    profiles = services(plan)
    for i, profile in enumerate(profiles):
        faults = plan_faults(profile, plan, name, end_ms)
        touched = Touched()
        batches = generate(profile, ANCHOR_MS, end_ms, plan.seed, faults=faults, touched=touched)
        folded.append(fold(batches, ANCHOR_MS, end_ms, WINDOW_MS))
        truth += truth_of(profile, faults, touched)
        if progress:
            print(f"\r{name}: {i + 1} of {len(profiles)} series", end="", flush=True)
    if progress:
        print()
    names = sorted({metric for item in folded for metric in item.metrics})
    blank = np.full(len(folded[0].start_ms), np.nan), np.zeros(len(folded[0].start_ms))
    metrics = {
        f"metric{part}.{metric}": np.stack([item.metrics.get(metric, blank)[part] for item in folded]).astype(
            "f4"
        )
        for metric in names
        for part in (0, 1)
    }
    np.savez_compressed(
        stem.with_suffix(".npz"),
        start_ms=folded[0].start_ms,
        values=np.stack([item.values for item in folded]).astype("f4"),
        counts=np.stack([item.counts for item in folded]).astype("f4"),
        new_version=np.stack([item.new_version for item in folded]),
        **metrics,  # type: ignore[arg-type]  # the stub takes no unknown names
    )
    described = {"series": [p.series for p in profiles], "truth": [asdict(item) for item in truth]}
    stem.with_suffix(".json").write_text(json.dumps(described, indent=1), encoding="utf-8")


def plan_faults(profile: Profile, plan: Plan, name: str, end_ms: int) -> list[Fault]:
    """The faults of one service in a suite."""
    if name == "clean":
        return []
    quiet_ms = DAY_MS if name == "newborn" else plan.quiet_h * HOUR_MS
    judged_ms = end_ms - ANCHOR_MS - quiet_ms
    count = max(round(judged_ms / (14 * HOUR_MS)), 1)
    rng = np.random.default_rng([plan.seed, profile.key, 5 if name == "newborn" else 4])
    least = plan.least_size
    return sample_faults(profile, rng, ANCHOR_MS + quiet_ms, end_ms, count, least_size=least)


def _read(stem: Path, name: str) -> Suite:
    described = json.loads(stem.with_suffix(".json").read_text(encoding="utf-8"))
    with np.load(stem.with_suffix(".npz")) as stored:
        data = {key: stored[key] for key in stored.files}
    metrics = {
        key.removeprefix("metric0."): (
            data[key].astype(float),
            data[key.replace("metric0.", "metric1.", 1)].astype(float),
        )
        for key in data
        if key.startswith("metric0.")
    }
    truth = [TruthInterval(**{**item, "guilty": tuple(item["guilty"])}) for item in described["truth"]]
    return Suite(
        name=name,
        series=described["series"],
        start_ms=data["start_ms"],
        values=data["values"],
        counts=data["counts"],
        metrics=metrics,
        new_version=data["new_version"],
        truth=truth,
    )
