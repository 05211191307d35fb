"""Services to imitate: real arrival and token shapes, and a sampled character for everything else.

The shapes (rate per 10 minutes, its burstiness, token quantiles per 6 hours) come from production
workloads; see data/ATTRIBUTION.md. Latency, errors, memory and the rest are not in them: a `Profile`
says how one imaginary service behaves on top of such a shape.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import resources
from typing import Any

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
Rng = np.random.Generator

BIN_S = 600
BINS = 2016  # 14 days; later time repeats them
BINS_PER_DAY = 144
SLOTS = 56  # of 6 hours
HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
ANCHOR_MS = 1_767_571_200_000
"""2026-01-05T00:00:00Z, a Monday: where bin 0 of every workload stands."""

ERROR_TYPES = ("rate_limited", "internal", "unavailable", "timeout", "upstream")
ERROR_STATUS = (429, 500, 503, 504, 502)
FINISH_REASONS = ("stop", "length")
SIGNALS = ("latency", "errors", "memory", "confidence", "gpu", "tokens", "metric")


@dataclass(frozen=True, slots=True, eq=False)
class Workload:
    """The real shape of one client: 14 days in 10-minute bins, tokens in 6-hour slots."""

    name: str
    rate_per_s: Float64  # [BINS]
    cv: Float64  # [BINS], coefficient of variation of the time between arrivals; 0 = unknown
    quantiles: Float64  # [16], where the token quantiles are taken
    input_tokens_q: Float64  # [SLOTS, 16]; a slot without data repeats the nearest one that has some
    output_tokens_q: Float64  # [SLOTS, 16]


@lru_cache(maxsize=1)
def load_workloads() -> dict[str, Workload]:
    """Every bundled workload by name, in ascending order of names."""
    path = resources.files("monitor") / "data" / "workloads.npz"
    with path.open("rb") as file, np.load(file) as data:
        stored = {key: data[key] for key in data.files}
    found = {}
    for i, name in enumerate(stored["names"].tolist()):
        mine = np.flatnonzero(stored["slot_owner"] == i)
        slots = stored["slot"][mine]
        nearest = mine[np.abs(np.arange(SLOTS)[:, None] - slots[None, :]).argmin(axis=1)]
        found[name] = Workload(
            name=name,
            rate_per_s=stored["rate_per_s"][i].astype(float),
            cv=stored["cv"][i].astype(float),
            quantiles=stored["quantiles"],
            input_tokens_q=stored["input_tokens_q"][nearest].astype(float),
            output_tokens_q=stored["output_tokens_q"][nearest].astype(float),
        )
    return found


@dataclass(frozen=True, slots=True)
class UserMetric:
    """A number of the user's own on every record."""

    name: str
    mean: float
    sigma: float


@dataclass(frozen=True, slots=True, eq=False)
class Profile:
    """The character of one service. Times in ms, shares in [0, 1], rates in records per s."""

    model: str
    endpoint: str
    clients: tuple[str, ...]  # workloads whose traffic adds up
    scales: tuple[float, ...]  # multiplier of each client's rate
    shift_bins: int  # whole days by which the shape is moved
    kind: str  # "llm" | "classifier" | "embedding"
    ttft_base_ms: float
    prefill_ms: float  # per input token
    tpot_ms: float  # per output token
    noise_sigma: float  # of ln(ttft) and, smaller, ln(tpot)
    replica_speed: tuple[float, ...]  # latency factor of each replica, about 1
    queue_ms: float  # mean wait at half load
    capacity: float  # busy ms per ms that the pool can serve
    tail_share: float
    hiccups_per_day: float
    error_rate: float
    error_mix: tuple[float, ...]  # shares of the first four ERROR_TYPES
    timeout_ms: float
    failed_output_tokens: float  # 0, or NaN where failures carry no output_tokens
    memory_mb: float
    memory_swing: float  # height of the sawtooth, share of memory_mb
    memory_period_h: float
    gpu_idle: float
    confidence_mean: float
    confidence_sigma: float
    accuracy: float
    label_share: float
    price_input: float  # per token
    price_output: float
    max_output_tokens: float
    tenant_weights: tuple[float, ...]
    region_weights: tuple[float, ...]
    deploy_every_d: float
    deploy_sigma: float  # size of the level changes that a deployment brings
    wave_sigma: tuple[float, ...]  # slow drift of each of SIGNALS
    metrics: tuple[UserMetric, ...] = ()
    absent: frozenset[str] = field(default_factory=frozenset)  # fields this service does not log

    @property
    def series(self) -> str:
        return f"{self.model}/{self.endpoint}"

    @property
    def key(self) -> int:
        """A stable number for random streams of this series."""
        return zlib.crc32(self.series.encode())

    def bin_of(self, time_ms: int) -> int:
        """Number of the 10-minute bin of the source data that `time_ms` is imitated from."""
        return (int(time_ms - ANCHOR_MS) // (BIN_S * 1000) + self.shift_bins) % BINS

    def rate_per_s(self, time_ms: int) -> float:
        """Expected records per s at `time_ms`, before faults."""
        number = self.bin_of(time_ms)
        shapes = load_workloads()
        pairs = zip(self.clients, self.scales, strict=True)
        return float(sum(shapes[name].rate_per_s[number] * scale for name, scale in pairs))

    def mean_rate_per_s(self) -> float:
        shapes = load_workloads()
        pairs = zip(self.clients, self.scales, strict=True)
        return float(sum(shapes[name].rate_per_s.mean() * scale for name, scale in pairs))


def sample_profile(
    rng: Rng,
    *,
    model: str,
    endpoint: str = "chat",
    clients: tuple[str, ...] | None = None,
    rate_per_s: float | None = None,
    kind: str | None = None,
    complete: bool = False,
) -> Profile:
    """A service drawn from what is usual in production.

    `clients`: bundled workloads to add up (one or two of all by default); `rate_per_s`: mean rate of
    the whole (0.03 to 8 by default, most below 1); `kind`: "llm", "classifier" or "embedding";
    `complete`: log every field. Raises KeyError for an unknown client.
    """
    shapes = load_workloads()
    if clients is None:
        clients = tuple(rng.choice(list(shapes), size=1 if rng.random() < 0.7 else 2, replace=False).tolist())
    rate = _between(rng, 0.03, 8.0) if rate_per_s is None else rate_per_s
    kind = kind or str(rng.choice(["llm", "classifier", "embedding"], p=[0.75, 0.17, 0.08]))
    shares = rng.dirichlet(np.full(len(clients), 3.0))
    scales = tuple(
        float(rate * share / max(shapes[name].rate_per_s.mean(), 1e-9))
        for name, share in zip(clients, shares, strict=True)
    )
    shift = int(rng.integers(0, 2)) * 7 * BINS_PER_DAY
    timing = _sample_timing(rng, kind, clients, scales)
    return Profile(
        model=model,
        endpoint=endpoint,
        clients=clients,
        scales=scales,
        shift_bins=shift,
        kind=kind,
        **timing,
        **_sample_health(rng),
        **_sample_business(rng, clients),
        absent=frozenset() if complete else _sample_absent(rng),
    )


def _between(rng: Rng, low: float, high: float) -> float:
    """Log-uniform."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _sample_timing(
    rng: Rng, kind: str, clients: tuple[str, ...], scales: tuple[float, ...]
) -> dict[str, Any]:
    replicas = int(rng.integers(2, 25))
    fast = kind != "llm"
    base = float(np.exp(rng.uniform(np.log(4), np.log(40)) if fast else rng.uniform(np.log(40), np.log(400))))
    prefill = float(
        np.exp(rng.uniform(np.log(0.01), np.log(0.05)) if fast else rng.uniform(np.log(0.03), np.log(0.4)))
    )
    tpot = 0.0 if fast else _between(rng, 7, 60)
    shapes = load_workloads()
    busy = np.zeros(BINS)
    for name, scale in zip(clients, scales, strict=True):
        shape = shapes[name]
        work = base + prefill * shape.input_tokens_q[:, 7].mean() + tpot * shape.output_tokens_q[:, 7].mean()
        busy += shape.rate_per_s * scale * work / 1000
    peak = float(np.quantile(busy[busy > 0], 0.97))
    longest = max(float(shapes[name].output_tokens_q[:, 12].max()) for name in clients)
    limits = [30_000.0, 60_000.0, 120_000.0]
    patience = [ms for ms in limits if ms > 6 * (base + 4_000 * prefill + tpot * longest)] or [600_000.0]
    return {
        "ttft_base_ms": base,
        "prefill_ms": prefill,
        "tpot_ms": tpot,
        "noise_sigma": float(rng.uniform(0.08, 0.35)),
        "replica_speed": tuple(np.exp(rng.normal(0, rng.uniform(0.01, 0.12), replicas)).tolist()),
        "queue_ms": _between(rng, 2, 60) * (0.2 if fast else 1.0),
        "capacity": max(peak / rng.uniform(0.25, 0.75), 2.0),
        "timeout_ms": float(rng.choice(patience)),
        "tail_share": _between(rng, 0.0005, 0.015),
        "hiccups_per_day": float(rng.uniform(0.0, 1.5)),
        "deploy_every_d": float(rng.uniform(2.5, 12)),
        "deploy_sigma": float(rng.uniform(0.0, 0.05)),
        "wave_sigma": tuple((rng.uniform(0.2, 1.0, 7) * [0.08, 0.4, 0.02, 0.012, 0.05, 0.05, 0.25]).tolist()),
    }


def _sample_health(rng: Rng) -> dict[str, Any]:
    return {
        "error_rate": _between(rng, 0.0002, 0.02),
        "error_mix": tuple(rng.dirichlet([2.0, 2.0, 1.0, 1.0]).tolist()),
        "failed_output_tokens": float("nan") if rng.random() < 0.5 else 0.0,
        "memory_mb": _between(rng, 2_000, 80_000),
        "memory_swing": float(rng.uniform(0.0, 0.15)),
        "memory_period_h": float(rng.uniform(4, 60)),
        "gpu_idle": float(rng.uniform(0.02, 0.3)),
        "confidence_mean": float(rng.uniform(0.6, 0.95)),
        "confidence_sigma": float(rng.uniform(0.02, 0.12)),
        "accuracy": float(rng.uniform(0.72, 0.985)),
        "label_share": _between(rng, 0.01, 0.5),
    }


def _sample_business(rng: Rng, clients: tuple[str, ...]) -> dict[str, Any]:
    shapes = load_workloads()
    limits = max(float(shapes[name].output_tokens_q[:, -4:-1].max()) for name in clients)
    tenants, regions = int(np.exp(rng.uniform(0, np.log(30)))), int(rng.integers(1, 5))
    names = rng.choice(["retrieval_score", "toxicity", "cache_hit_ratio", "answer_chars"], 2, replace=False)
    count = int(rng.choice([0, 1, 2], p=[0.5, 0.35, 0.15]))
    metrics = tuple(
        UserMetric(str(name), float(mean := np.exp(rng.uniform(-2, 4))), float(mean * rng.uniform(0.05, 0.4)))
        for name in names[:count]
    )
    return {
        "price_input": _between(rng, 1e-7, 5e-6),
        "price_output": _between(rng, 4e-7, 2e-5),
        "max_output_tokens": float(np.ceil(max(limits * rng.uniform(0.5, 1.5), 8))),
        "tenant_weights": tuple(rng.dirichlet(np.full(tenants, 0.7)).tolist()),
        "region_weights": tuple(rng.dirichlet(np.full(regions, 3.0)).tolist()),
        "metrics": metrics,
    }


def _sample_absent(rng: Rng) -> frozenset[str]:
    odds = {
        "ttft_ms": 0.25,
        "tpot_ms": 0.35,
        "queue_ms": 0.4,
        "memory_mb": 0.3,
        "gpu_util": 0.35,
        "confidence": 0.5,
        "label": 0.5,
        "cost_usd": 0.35,
        "model_version": 0.15,
        "tenant": 0.2,
        "region": 0.3,
        "finish_reason": 0.25,
    }
    return frozenset(name for name, chance in odds.items() if rng.random() < chance)
