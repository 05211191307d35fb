"""Is a new model version of one series like the one before it? Statistics of both, and what differs.

Two tests, each with a two-sided p-value per metric:

- `placebo.before_after`: windows behind the change against those in front of it. How far two neighbouring
  stretches of this series lie apart *without* a deployment is measured on its own past (a placebo test), and
  what the counts of records leave uncertain is added, so neither a moody series nor a handful of requests
  differs.
- `paired.Paired`: windows that hold records of both versions. Ranks (van Elteren's stratified Wilcoxon test,
  1960) of latency given tokens, times and lengths, and stratified two-by-two tables (Mantel and Haenszel
  1959) of shares: the hour, the load and the mix of a window are the same for both. Where the windows
  disagree more than chance lets them, their own scatter is the yardstick.

`findings` corrects for the number of metrics (Holm 1979) and of looks, and asks for a least effect.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

LATENCY_GIVEN_TOKENS = "latency_given_tokens"
ALPHA = 0.005
"""Chance that anything is found about a version that is like the one before, over all metrics and looks."""
LOOKS = 4
MIN_RECORDS = 30
"""On either side, below which a metric is not compared."""
MAX_SLOPE = 1.5  # of ln latency over ln tokens


@dataclass(frozen=True, slots=True)
class Metric:
    """What is compared. `least`: smallest change worth a word, relative for "log", absolute otherwise."""

    name: str
    kind: Literal["log", "share", "mean"]
    worse: int  # 1: higher is worse, -1: lower is, 0: neither, it is only different
    least: float


METRICS: tuple[Metric, ...] = (
    Metric(LATENCY_GIVEN_TOKENS, "log", 1, 0.10),
    Metric("latency_p95_ms", "log", 1, 0.10),
    Metric("ttft_p50_ms", "log", 1, 0.10),
    Metric("error_rate", "share", 1, 0.005),
    Metric("empty_output_rate", "share", 1, 0.005),
    Metric("max_output_rate", "share", 0, 0.01),
    Metric("output_tokens_mean", "log", 0, 0.10),
    Metric("confidence_mean", "mean", -1, 0.02),
    Metric("accuracy", "share", -1, 0.02),
)
PLACE = {metric.name: i for i, metric in enumerate(METRICS)}


@dataclass(frozen=True, slots=True)
class Difference:
    """One metric of both versions, in its own unit; latency given tokens is relative, the old one being 1."""

    metric: str
    old: float
    new: float
    p: float  # two-sided, before any correction
    records: int  # of the new version that carry it
    says: Literal["worse", "better", "different", "alike"] = "alike"

    @property
    def change(self) -> float:
        """Relative change of a "log" metric, difference of the others."""
        if METRICS[PLACE[self.metric]].kind == "log":
            return self.new / self.old - 1 if self.old > 0 else 0.0
        return self.new - self.old


def findings(differences: Sequence[Difference]) -> list[Difference]:
    """The same with `says` filled in: Holm's correction at ALPHA / LOOKS, then the least effect."""
    order = sorted(range(len(differences)), key=lambda i: differences[i].p)
    said: dict[int, Literal["worse", "better", "different", "alike"]] = {}
    holds = True
    for rank, i in enumerate(order):
        d, metric = differences[i], METRICS[PLACE[differences[i].metric]]
        holds = holds and d.p <= ALPHA / LOOKS / (len(order) - rank)
        change = math.log1p(d.change) if metric.kind == "log" else d.change
        least = math.log1p(metric.least) if metric.kind == "log" else metric.least
        if not holds or not abs(change) >= least:
            said[i] = "alike"
        elif metric.worse == 0:
            said[i] = "different"
        else:
            said[i] = "worse" if change * metric.worse > 0 else "better"
    return [Difference(d.metric, d.old, d.new, d.p, d.records, said[i]) for i, d in enumerate(differences)]


def two_sided_p(z: float, freedom: float) -> float:
    """Of a t-distributed value; by Wallace's (1959) normal equivalent, exact to about 1% of itself."""
    if not math.isfinite(z):
        return 1.0
    normal = math.sqrt(freedom * math.log1p(z * z / freedom)) * (8 * freedom + 1) / (8 * freedom + 3)
    return math.erfc(normal / math.sqrt(2.0))
