"""How each kind of fault rewrites the records of a draft; fault_kinds.py lists the kinds.

A fault changes nothing before its start and nothing from its end on.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from monitor.draft import Array, Bool, Draft
from monitor.workload import HOUR_MS, Float64, Int64, Rng


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault: `size` is in the unit of its kind (see `KINDS`)."""

    kind: str
    series: str
    start_ms: int
    end_ms: int
    size: float

    def rng(self, *salt: int) -> Rng:
        """A random stream of this fault alone; without `salt` the same for its whole life."""
        name = zlib.crc32(f"{self.kind} {self.series} {self.start_ms}".encode())
        return np.random.Generator(np.random.SFC64([name, *salt]))

    def progress(self, times: Int64) -> Float64:
        """0 at the start, 1 at the end."""
        return (times - self.start_ms) / max(self.end_ms - self.start_ms, 1)


@dataclass(slots=True)
class Effect:
    """What became of a fault: records changed, removed or added, and when the first and last were."""

    records: int = 0
    first_ms: int = 0
    last_ms: int = 0


@dataclass(slots=True)
class Touched:
    """Collects effects while records are generated."""

    effects: dict[Fault, Effect] = field(default_factory=dict)

    def add(self, fault: Fault, times: Int64) -> None:
        if times.size == 0:
            return
        effect = self.effects.setdefault(fault, Effect(0, int(times.min()), 0))
        effect.records += times.size
        effect.first_ms = min(effect.first_ms, int(times.min()))
        effect.last_ms = max(effect.last_ms, int(times.max()))


Apply = Callable[[Draft, Fault, Bool, Rng], Int64]
"""(draft, fault, rows inside its time, stream of this hour) -> times of the records it changed."""


def _share(draft: Draft, inside: Bool, share: float, rng: Rng) -> Bool:
    return inside & (rng.random(len(draft)) < share)


def _scale(draft: Draft, names: tuple[str, ...], rows: Bool, factor: Float64 | float) -> None:
    for name in names:
        draft.columns[name] = np.where(rows, draft.number(name) * factor, draft.number(name))


def _slow(draft: Draft, rows: Bool, factor: Float64 | float) -> Int64:
    """Every part of the latency of `rows` times `factor`, failures' latency too."""
    _scale(draft, ("ttft_ms", "tpot_ms", "queue_ms"), rows, factor)
    _scale(draft, ("latency_ms",), rows & (draft.columns["status"] != 200), factor)
    draft.settle(rows)
    return draft.at(rows)


def lose(draft: Draft, fault: Fault, inside: Bool, rng: Rng) -> Int64:
    gone = _share(draft, inside, fault.size, rng)
    times = draft.times[gone]
    draft.keep(~gone)
    return times


def outage(draft: Draft, fault: Fault, inside: Bool, rng: Rng) -> Int64:
    times = draft.times[inside]
    draft.keep(~inside)
    return times


def errors(kinds: tuple[int, ...]) -> Apply:
    def apply(draft: Draft, fault: Fault, inside: Bool, rng: Rng) -> Int64:
        hit = _share(draft, inside & (draft.columns["status"] == 200), fault.size, rng)
        draft.fail(hit, rng.choice(kinds, len(draft)), rng)
        return draft.at(hit)

    return apply


def slow_all(draft: Draft, fault: Fault, inside: Bool, rng: Rng) -> Int64:
    return _slow(draft, inside, fault.size)


def slow_tail(draft: Draft, fault: Fault, inside: Bool, rng: Rng) -> Int64:
    bad = fault.rng().uniform(0.04, 0.15)
    return _slow(draft, _share(draft, inside, bad, rng), fault.size)


def slow_creep(draft: Draft, fault: Fault, inside: Bool, rng: Rng) -> Int64:
    factor = 1 + (fault.size - 1) * np.clip(fault.progress(draft.times), 0, 1)
    _slow(draft, inside, factor)
    return draft.at(inside & (factor >= 1.15))


def slow_part(names: tuple[str, ...]) -> Apply:
    def apply(draft: Draft, fault: Fault, inside: Bool, rng: Rng) -> Int64:
        rows = inside & (draft.columns["status"] == 200)
        _scale(draft, names, rows, fault.size)
        draft.settle(rows)
        return draft.at(rows)

    return apply


def queue(draft: Draft, fault: Fault, inside: Bool, rng: Rng) -> Int64:
    usual = draft.profile.ttft_base_ms + 20 * draft.profile.tpot_ms
    height = np.minimum(1.0, 1.6 * np.clip(fault.progress(draft.times), 0, 1) + 0.1)
    wait = fault.size * usual * height * rng.uniform(0.6, 1.2, len(draft))
    rows = inside & (draft.columns["status"] == 200)
    draft.columns["queue_ms"] = draft.number("queue_ms") + np.where(rows, wait, 0.0)
    draft.settle(rows)
    return draft.at(rows)


def _outputs(draft: Draft, rows: Bool, tokens: Float64 | float, reason: int) -> Int64:
    rows = rows & (draft.columns["status"] == 200)
    draft.columns["output_tokens"] = np.where(rows, tokens, draft.number("output_tokens"))
    draft.columns["finish_reason"] = np.where(rows, reason, draft.columns["finish_reason"])
    draft.settle(rows)
    return draft.at(rows)


def empty(draft: Draft, fault: Fault, inside: Bool, rng: Rng) -> Int64:
    return _outputs(draft, _share(draft, inside, fault.size, rng), 0.0, 0)


def runaway(draft: Draft, fault: Fault, inside: Bool, rng: Rng) -> Int64:
    return _outputs(draft, _share(draft, inside, fault.size, rng), draft.profile.max_output_tokens, 1)


def truncated(draft: Draft, fault: Fault, inside: Bool, rng: Rng) -> Int64:
    short = np.maximum(np.rint(draft.number("output_tokens") * fault.size), 1.0)
    return _outputs(draft, inside & (draft.number("output_tokens") > 1), short, 1)


def inputs(draft: Draft, fault: Fault, inside: Bool, rng: Rng) -> Int64:
    """Inputs times `size`, with just the latency and cost that go with them."""
    p = draft.profile
    old = draft.number("input_tokens")
    new = np.where(inside, np.maximum(np.rint(old * fault.size), 1.0), old)
    ratio = (p.ttft_base_ms + p.prefill_ms * new) / (p.ttft_base_ms + p.prefill_ms * old)
    draft.columns["input_tokens"] = new
    _scale(draft, ("ttft_ms",), inside, ratio)
    draft.settle(inside)
    return draft.at(inside)


def _copies(draft: Draft, rows: Array, delay_ms: Array, fault: Fault) -> Int64:
    """Add copies of `rows` (indices, repeats allowed), later by `delay_ms`, within hour and fault."""
    extra = {name: values[rows] for name, values in draft.columns.items()}
    last = min(fault.end_ms, draft.hour_ms + HOUR_MS) - 1
    times = np.minimum(draft.times[rows] + delay_ms.astype(np.int64), last)
    extra["timestamp_ms"] = times
    draft.columns = {name: np.concatenate([values, extra[name]]) for name, values in draft.columns.items()}
    draft.sort()
    return times


def retry_storm(draft: Draft, fault: Fault, inside: Bool, rng: Rng) -> Int64:
    hit = _share(draft, inside, fault.rng().uniform(0.3, 0.8), rng)
    draft.fail(hit, rng.choice((0, 2, 3), len(draft), p=(0.4, 0.3, 0.3)), rng)
    rows = np.repeat(np.flatnonzero(hit), rng.poisson(fault.size, int(hit.sum())))
    changed = draft.times[hit]
    added = _copies(draft, rows, rng.exponential(4_000, rows.size) + 200, fault)
    return np.concatenate([changed, added])


def tenant_flood(draft: Draft, fault: Fault, inside: Bool, rng: Rng) -> Int64:
    """One tenant sends `size` times the whole usual traffic on top, and the pool queues up."""
    tenant = int(fault.rng().integers(0, len(draft.profile.tenant_weights)))
    rows = np.repeat(np.flatnonzero(inside), rng.poisson(fault.size, int(inside.sum())))
    draft.columns["input_tokens"] = draft.number("input_tokens").copy()
    mark = len(draft)
    draft.columns["origin"] = np.arange(mark)
    added = _copies(draft, rows, rng.uniform(-30_000, 30_000, rows.size).clip(0), fault)
    _, first = np.unique(draft.columns["origin"], return_index=True)
    copy = np.ones(len(draft), bool)
    copy[first] = False
    del draft.columns["origin"]
    draft.columns["tenant"] = np.where(copy, tenant, draft.columns["tenant"]).astype(np.int32)
    during = (draft.times >= fault.start_ms) & (draft.times < fault.end_ms)
    wait = rng.exponential(draft.profile.queue_ms * fault.size, len(draft))
    draft.columns["queue_ms"] = draft.number("queue_ms") + np.where(during, wait, 0.0)
    draft.settle(during)
    return added


def memory_leak(draft: Draft, fault: Fault, inside: Bool, rng: Rng) -> Int64:
    factor = 1 + fault.size * np.clip(fault.progress(draft.times), 0, 1)
    _scale(draft, ("memory_mb",), inside, factor)
    return draft.at(inside & (factor >= 1.05))


def gpu_drop(draft: Draft, fault: Fault, inside: Bool, rng: Rng) -> Int64:
    _scale(draft, ("gpu_util",), inside, fault.size)
    return draft.at(inside)


def accuracy(draft: Draft, fault: Fault, inside: Bool, rng: Rng) -> Int64:
    hit = _share(draft, inside & (draft.columns["correct"] == 1), fault.size, rng)
    draft.columns["correct"] = np.where(hit, 0, draft.columns["correct"]).astype(np.int8)
    return draft.at(hit)


def confidence(draft: Draft, fault: Fault, inside: Bool, rng: Rng) -> Int64:
    lower = np.clip(draft.number("confidence") - fault.size, 0.01, 1)
    draft.columns["confidence"] = np.where(inside, lower, draft.number("confidence"))
    return draft.at(inside)


def cost(draft: Draft, fault: Fault, inside: Bool, rng: Rng) -> Int64:
    _scale(draft, ("cost_usd",), inside, fault.size)
    return draft.at(inside)


def bad_version(draft: Draft, fault: Fault, inside: Bool, rng: Rng) -> Int64:
    """A release on a share of the traffic that fails and is slow in proportion to `size`."""
    fixed = fault.rng()
    canary = _share(draft, inside, float(fixed.choice([0.25, 0.5, 1.0])), rng)
    draft.versions = [*draft.versions, f"v{fixed.integers(500, 600)}"]
    code = len(draft.versions) - 1
    draft.columns["model_version"] = np.where(canary, code, draft.columns["model_version"]).astype(np.int32)
    _slow(draft, canary, 1 + 3 * fault.size)
    hit = _share(draft, canary & (draft.columns["status"] == 200), fault.size, rng)
    draft.fail(hit, np.ones(len(draft), np.int64), rng)
    return draft.at(canary)


def region_down(draft: Draft, fault: Fault, inside: Bool, rng: Rng) -> Int64:
    """The largest region fails for a share `size` of its requests."""
    region = int(np.argmax(draft.profile.region_weights))
    hit = _share(draft, inside & (draft.columns["region"] == region), fault.size, rng)
    draft.fail(hit, rng.choice((2, 3, 4), len(draft)), rng)
    return draft.at(hit)


def stuck(draft: Draft, fault: Fault, inside: Bool, rng: Rng) -> Int64:
    """Measured values freeze at one reading, `size` times the usual."""
    fixed = draft.profile
    rows = inside & (draft.columns["status"] == 200)
    reading = (fixed.ttft_base_ms + fixed.prefill_ms * 800 + fixed.tpot_ms * 60) * fault.size
    for name, value in (("latency_ms", reading), ("gpu_util", fixed.gpu_idle), ("confidence", 0.5)):
        draft.columns[name] = np.where(rows, value, draft.number(name))
    return draft.at(rows)


def flapping(draft: Draft, fault: Fault, inside: Bool, rng: Rng) -> Int64:
    """Errors that come and go: on for 1 to 3 minutes, off for 2 to 6."""
    fixed = fault.rng()
    on_ms, off_ms = fixed.uniform(60_000, 180_000), fixed.uniform(120_000, 360_000)
    on = inside & ((draft.times - fault.start_ms) % (on_ms + off_ms) < on_ms)
    hit = _share(draft, on & (draft.columns["status"] == 200), fault.size, rng)
    draft.fail(hit, rng.choice((1, 2), len(draft)), rng)
    return draft.at(hit)


def metric_shift(draft: Draft, fault: Fault, inside: Bool, rng: Rng) -> Int64:
    metric = draft.profile.metrics[0]
    name = f"metric.{metric.name}"
    sign = 1.0 if fault.rng().random() < 0.5 else -1.0
    shift = np.where(inside, sign * fault.size * metric.sigma, 0.0)
    draft.columns[name] = draft.number(name) + shift
    return draft.at(inside)
