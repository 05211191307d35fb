"""A `Profile` -> inference records as columns, hour by hour, in event-time order.

Every hour has its own random stream, so a record depends on (profile, seed, hour) only: not on
where generation began, and not on faults elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from monitor.draft import Array, Draft, publish
from monitor.fault_plan import apply_faults
from monitor.record_faults import Fault, Touched
from monitor.records import RecordColumns
from monitor.workload import (
    ANCHOR_MS,
    BIN_S,
    DAY_MS,
    HOUR_MS,
    SIGNALS,
    SLOTS,
    Float64,
    Int64,
    Profile,
    Rng,
    load_workloads,
)

_MINUTE = np.arange(60)
_SMOOTH = np.tril(0.55 * 0.45 ** np.clip(_MINUTE[:, None] - _MINUTE[None, :], 0, 59))
"""[60, 60]: load of a minute -> what the pool feels, an exponential mean of the minutes before."""


def generate(
    profile: Profile,
    start_ms: int,
    end_ms: int,
    seed: int,
    *,
    faults: Sequence[Fault] = (),
    touched: Touched | None = None,
    request_ids: bool = False,
) -> Iterator[RecordColumns]:
    """Records of start_ms <= time < end_ms, one batch per hour that has any; offsets count from 0.

    Faults of other series are ignored. `touched`, if given, learns which records each fault changed.
    """
    offset = 0
    mine = [fault for fault in faults if fault.series == profile.series]
    for hour_ms in range(start_ms - start_ms % HOUR_MS, end_ms, HOUR_MS):
        draft = draft_hour(profile, hour_ms, seed)
        apply_faults(draft, mine, seed, touched)
        if hour_ms < start_ms or hour_ms + HOUR_MS > end_ms:
            draft.keep((draft.times >= start_ms) & (draft.times < end_ms))
        if len(draft):
            yield publish(draft, offset, request_ids=request_ids)
        offset += len(draft)


def hour_stream(profile: Profile, seed: int, hour_ms: int, salt: int = 0) -> Rng:
    """The random stream of one hour of one series."""
    return np.random.Generator(np.random.SFC64([seed, profile.key, hour_ms // HOUR_MS, salt]))


def draft_hour(profile: Profile, hour_ms: int, seed: int) -> Draft:
    """All records of the hour that begins at `hour_ms` (a multiple of one hour), fault free."""
    assert hour_ms % HOUR_MS == 0
    rng = hour_stream(profile, seed, hour_ms)
    times, inputs, outputs = _arrivals(profile, hour_ms, rng)
    n = times.size
    waves = dict(zip(SIGNALS, _waves(profile, hour_ms), strict=True))
    minute = (times - hour_ms) // 60_000
    versions, version = _versions(profile, times, rng)
    level = np.array([_version_level(profile, v) for v in versions]).reshape(-1, 3)[version]
    c: dict[str, Array] = {"timestamp_ms": times, "model_version": version}
    if profile.kind != "llm":
        outputs = np.zeros(n)
    length = outputs >= profile.max_output_tokens
    c["input_tokens"] = np.maximum(np.rint(inputs * waves["tokens"][minute]), 1.0)
    c["output_tokens"] = np.where(length, profile.max_output_tokens, np.rint(outputs))
    c["finish_reason"] = length.astype(np.int32)
    busy = _latency(profile, c, minute, waves["latency"], level[:, 0], rng)
    tenants, regions = np.array(profile.tenant_weights), np.array(profile.region_weights)
    c["tenant"] = np.searchsorted(np.cumsum(tenants)[:-1], rng.random(n)).astype(np.int32)
    c["region"] = np.searchsorted(np.cumsum(regions)[:-1], rng.random(n)).astype(np.int32)
    c["error_type"] = np.full(n, -1, np.int32)
    c["status"] = np.full(n, 200, np.int32)
    _gauges(profile, c, minute, waves, level, busy, rng)
    draft = Draft(profile, hour_ms, c, [f"v{v}" for v in versions])
    draft.settle(np.ones(n, bool))
    overload = np.clip(busy - 0.92, 0, None) * 0.4
    failed = rng.random(n) < profile.error_rate * waves["errors"][minute] + overload
    mix = np.searchsorted(np.cumsum(profile.error_mix)[:-1], rng.random(n))
    draft.fail(failed, np.where(rng.random(n) < overload / (overload + profile.error_rate), 0, mix), rng)
    late = (c["status"] == 200) & (draft.number("latency_ms") > profile.timeout_ms)
    draft.fail(late, np.full(n, 3), rng)
    return draft


def _arrivals(profile: Profile, hour_ms: int, rng: Rng) -> tuple[Int64, Float64, Float64]:
    """Times in ms and tokens: per bin a Poisson count, spread by gamma gaps of the source's variation."""
    shapes = load_workloads()
    first = profile.bin_of(hour_ms)
    slot = (first // 36) % SLOTS
    times, inputs, outputs = [], [], []
    for name, scale in zip(profile.clients, profile.scales, strict=True):
        shape = shapes[name]
        counts = rng.poisson(shape.rate_per_s[first : first + 6] * scale * BIN_S)
        cv = shape.cv[first : first + 6]
        thinned = np.sqrt(np.maximum(min(scale, 1.0) * (cv**2 - 1) + 1, 0.05))
        regularity = 1.0 / np.clip(np.where(cv > 0, thinned, 1.0), 0.3, 12.0) ** 2
        owner = np.repeat(np.arange(6), counts)
        reached = np.cumsum(rng.standard_gamma(regularity[owner]) + 1e-9)
        before = np.concatenate([[0.0], reached])[np.concatenate([[0], np.cumsum(counts)])]
        span = np.diff(before)
        place = (reached - before[:-1][owner]) / np.where(span > 0, span, 1.0)[owner]
        place = (place + rng.random(6)[owner]) % 1.0
        times.append(hour_ms + ((owner + place) * (BIN_S * 1000)).astype(np.int64))
        n = owner.size
        u, v = rng.random(n), rng.random(n)
        tied = rng.random(n) < 0.25
        inputs.append(np.interp(u, shape.quantiles, shape.input_tokens_q[slot]))
        outputs.append(np.interp(np.where(tied, u, v), shape.quantiles, shape.output_tokens_q[slot]))
    at = np.concatenate(times)
    order = np.argsort(at, kind="stable")
    return at[order], np.concatenate(inputs)[order], np.concatenate(outputs)[order]


def _waves(profile: Profile, hour_ms: int) -> Float64:
    """[len(SIGNALS), 60]: slow factors around 1, one per minute, sums of waves of 2 h to 4 days."""
    character = np.random.default_rng([profile.key, 1])
    count = 5
    period_h = np.exp(character.uniform(np.log(2), np.log(96), (len(SIGNALS), count, 1)))
    phase = character.uniform(0, 2 * np.pi, (len(SIGNALS), count, 1))
    at_h = (hour_ms - ANCHOR_MS) / HOUR_MS + (_MINUTE + 0.5) / 60
    waves = np.sin(2 * np.pi * at_h / period_h + phase).sum(axis=1) * np.sqrt(2 / count)
    factors: Float64 = np.exp(np.array(profile.wave_sigma)[:, None] * waves)
    return factors


def _versions(profile: Profile, times: Int64, rng: Rng) -> tuple[list[int], Array]:
    """Version numbers that occur and the code of each record's; a rollout takes up to half an hour."""
    every_ms = profile.deploy_every_d * DAY_MS
    phase = np.random.default_rng([profile.key, 2]).random()
    felt = times - rng.random(times.size) * 1_800_000 * phase
    number = np.floor((felt - ANCHOR_MS) / every_ms + phase).astype(np.int64) + 20
    names, codes = np.unique(number, return_inverse=True)
    return names.tolist(), codes.astype(np.int32)


def _version_level(profile: Profile, version: int) -> Float64:
    """[3]: what a version changes: latency factor, memory factor, shift of confidence and accuracy."""
    draw = np.random.default_rng([profile.key, 3, version % 2**32]).normal(0, profile.deploy_sigma, 3)
    return np.asarray([np.exp(draw[0]), np.exp(draw[1]), np.clip(draw[2], -0.05, 0.05) * 0.3])


def _latency(
    profile: Profile, c: dict[str, Array], minute: Int64, wave: Float64, level: Float64, rng: Rng
) -> Float64:
    """Fill ttft, tpot, queue and replica; return the pool's utilisation felt by each record, 0..0.96."""
    n = minute.size
    inputs: Float64 = c["input_tokens"]
    work = profile.ttft_base_ms + profile.prefill_ms * inputs + profile.tpot_ms * c["output_tokens"]
    load = _SMOOTH @ np.bincount(minute, work, 60) / (60_000 * profile.capacity)
    busy: Float64 = np.clip(load, 0, 0.96)[minute]
    speeds = np.array(profile.replica_speed)
    replica = rng.integers(0, speeds.size, n)
    slow = speeds[replica] * wave[minute] * level
    tail = np.where(rng.random(n) < profile.tail_share, 1 + rng.pareto(1.8, n), 1.0)
    slow = slow * np.minimum(tail, 25.0) * _hiccups(profile, n, minute, rng)
    sigma = profile.noise_sigma
    c["ttft_ms"] = (
        (profile.ttft_base_ms + profile.prefill_ms * inputs)
        * slow
        * (1 + 0.4 * busy)
        * np.exp(sigma * rng.standard_normal(n))
    )
    c["tpot_ms"] = profile.tpot_ms * slow * (1 + 0.6 * busy) * np.exp(0.4 * sigma * rng.standard_normal(n))
    waits = rng.random(n) < busy
    c["queue_ms"] = waits * rng.exponential(profile.queue_ms, n) * busy / (1 - busy) + rng.exponential(0.4, n)
    c["latency_ms"] = np.zeros(n)
    c["replica"] = replica
    return busy


def _hiccups(profile: Profile, n: int, minute: Int64, rng: Rng) -> Float64:
    """Natural short slowdowns (a collection, a neighbour): up to 2 minutes, at most threefold."""
    factor = np.ones(60)
    for _ in range(rng.poisson(profile.hiccups_per_day / 24)):
        start = int(rng.integers(0, 60))
        factor[start : start + int(rng.integers(1, 3))] = rng.uniform(1.2, 3.0)
    share = rng.random(n) < 0.5
    return np.where(share, factor[minute], 1.0)


def _gauges(
    p: Profile,
    c: dict[str, Array],
    minute: Int64,
    waves: dict[str, Float64],
    level: Float64,
    busy: Float64,
    rng: Rng,
) -> None:
    """Fill memory, GPU, confidence, labels, cost and user metrics."""
    n = minute.size
    age = ((c["timestamp_ms"] - ANCHOR_MS) / (p.memory_period_h * HOUR_MS)) % 1.0
    swing = 1 + p.memory_swing * age + 0.05 * busy
    noise = 1 + 0.004 * rng.standard_normal(n)
    c["memory_mb"] = p.memory_mb * swing * waves["memory"][minute] * level[:, 1] * noise
    gpu = (p.gpu_idle + (0.95 - p.gpu_idle) * busy) * waves["gpu"][minute] + 0.03 * rng.standard_normal(n)
    c["gpu_util"] = np.clip(gpu, 0, 1)
    centre = p.confidence_mean * waves["confidence"][minute] + level[:, 2]
    c["confidence"] = np.clip(centre + p.confidence_sigma * rng.standard_normal(n), 0.01, 1)
    right = rng.random(n) < np.clip(p.accuracy + level[:, 2], 0, 1)
    c["correct"] = np.where(rng.random(n) < p.label_share, right, -1).astype(np.int8)
    c["cost_usd"] = np.zeros(n)
    for metric in p.metrics:
        drift = metric.mean * (1 + 0.1 * np.log(waves["metric"][minute]))
        c[f"metric.{metric.name}"] = drift + metric.sigma * rng.standard_normal(n)
