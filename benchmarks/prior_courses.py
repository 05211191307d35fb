"""What the shipped prior is trained on: imitated services with known faults, as courses of windows.

Two imitations that share no code, so that the detectors learn faults and not one imitation's habits: the log
generator of the product over real traffic, and the services of benchmarks/prior_workloads.py. What the
benchmark judges on (its workloads, the kinds of faults that it holds out) is left out on request.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.fold import fold
from benchmarks.prior_workloads import Client, Simulated, simulate
from benchmarks.splits import HELD_OUT_KINDS
from benchmarks.suites import Plan, services
from detectors.training import Course
from detectors.types import STATISTIC_INDEX
from monitor.fault_kinds import KINDS
from monitor.fault_plan import sample_faults
from monitor.generate import generate
from monitor.record_faults import Touched
from monitor.truth import truth_of
from monitor.workload import ANCHOR_MS, DAY_MS, HOUR_MS, Profile

WINDOW_MS = 60_000
AFTER = 30  # windows behind a fault that are neither normal nor faulty
KNOWN = tuple(kind for kind in KINDS if kind not in HELD_OUT_KINDS)
TRAFFIC = ("outage", "traffic_loss", "tenant_flood", "input_shift")
SUBTLE = (
    "accuracy_drop", "confidence_drop", "gpu_drop", "memory_leak", "cost_jump", "slow_tail", "slow_creep",
    "slow_ttft", "input_explosion", "truncated_outputs", "metric_shift", "input_shift", "input_loss", "stuck",
)  # fmt: skip
AS_METRIC = ("confidence_mean", "gpu_util_mean", "memory_mb_max", "queue_p95_ms", "tpot_p50_ms", "accuracy")
QUIET_H, APART_S = 2, 5_400


@dataclass(frozen=True, slots=True)
class Generated:
    """A course out of the log generator: `copies` services per workload."""

    seed: int
    split: str  # "train" | "all", of benchmarks/suites.py
    first: int  # services first .. first + count - 1 of the plan
    count: int
    copies: int
    days: int
    kinds: tuple[str, ...]  # () = no faults
    gap_h: float = 6.0

    def course(self) -> Course:
        plan = Plan(split=self.split, seed=self.seed, copies=self.copies, days=self.days)
        profiles = services(plan)[self.first : self.first + self.count]
        return generated(profiles, self.seed, self.days, self.kinds, self.gap_h)


@dataclass(frozen=True, slots=True)
class Imitated:
    """A course out of benchmarks/prior_workloads.py: one service per seed."""

    clients: tuple[Client, ...]
    seeds: tuple[int, ...]
    days: float
    gap_h: float | None = 4.0  # None = no faults

    def course(self) -> Course:
        sims = [
            simulate(
                self.clients[s % len(self.clients)], s, days=self.days, quiet_h=QUIET_H, gap_h=self.gap_h
            )
            for s in self.seeds
        ]
        return imitated(sims, self.seeds[0])


def services_of(split: str, copies: int) -> int:
    """How many services a plan with so many copies per workload has."""
    return len(services(Plan(split=split, copies=copies)))


def generated(
    profiles: Sequence[Profile], seed: int, days: int, kinds: tuple[str, ...], gap_h: float
) -> Course:
    """Logs of these services, folded and labelled: a fault from its first changed record to its end."""
    end_ms = ANCHOR_MS + days * DAY_MS
    folded, truths = [], []
    for profile in profiles:
        faults = []
        if kinds:
            begin_ms = ANCHOR_MS + QUIET_H * HOUR_MS
            rng = np.random.default_rng([seed, profile.key, 7])
            count = max(round((end_ms - begin_ms) / (gap_h * HOUR_MS)), 1)
            faults = sample_faults(profile, rng, begin_ms, end_ms, count, kinds=kinds, apart_s=APART_S)
        touched = Touched()
        batches = generate(profile, ANCHOR_MS, end_ms, seed, faults=faults, touched=touched)
        folded.append(fold(batches, ANCHOR_MS, end_ms, WINDOW_MS))
        truths.append(truth_of(profile, faults, touched))
    start_ms = folded[0].start_ms
    label = np.zeros((len(start_ms), len(profiles)), np.int8)
    event = np.full(label.shape, -1, np.int64)
    number = 0
    for j, truth in enumerate(truths):
        true = [item for item in truth if not item.benign]
        for item in true:
            near = (start_ms + WINDOW_MS > item.start_ms) & (start_ms < item.end_ms + AFTER * WINDOW_MS)
            label[near, j] = -1
        for item in (item for item in true if item.visible):
            inside = (start_ms + WINDOW_MS > item.visible_from_ms) & (start_ms < item.end_ms)
            label[inside, j], event[inside, j] = 1, number
            number += 1
    metrics = {}
    for name in sorted({name for item in folded for name in item.metrics}):
        blank = np.full(len(start_ms), np.nan), np.zeros(len(start_ms))
        pairs = [item.metrics.get(name, blank) for item in folded]
        metrics[name] = (np.stack([p[0] for p in pairs], axis=1), np.stack([p[1] for p in pairs], axis=1))
    return Course(
        start_ms,
        np.stack([item.values for item in folded], axis=1).astype(np.float32),
        np.stack([item.counts for item in folded], axis=1).astype(np.float32),
        np.ones(label.shape, bool),
        label,
        event,
        np.ones(len(profiles), bool),
        metrics,
    )


def imitated(sims: Sequence[Simulated], seed: int) -> Course:
    """Simulated services -> one course with labels; windows in which a fault shows nothing are unknown.

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
