"""Faults worked into drafts, what a service's logs can show of them, and faults placed at random."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from monitor.draft import Draft
from monitor.fault_kinds import KINDS
from monitor.record_faults import Fault, Touched
from monitor.workload import BIN_S, HOUR_MS, Profile, Rng


def apply_faults(draft: Draft, faults: Sequence[Fault], seed: int, touched: Touched | None = None) -> None:
    """Work every fault that overlaps the draft's hour into it, in the order given."""
    for fault in faults:
        if fault.end_ms <= draft.hour_ms or fault.start_ms >= draft.hour_ms + HOUR_MS:
            continue
        inside = (draft.times >= fault.start_ms) & (draft.times < fault.end_ms)
        if not inside.any():
            continue
        times = KINDS[fault.kind].apply(draft, fault, inside, fault.rng(seed, draft.hour_ms // HOUR_MS))
        if touched is not None:
            touched.add(fault, times)


def guilty_features(kind: str, profile: Profile) -> tuple[str, ...]:
    """Features that a fault of `kind` moves and that this service logs."""
    logged = set(logged_features(profile))
    names = KINDS[kind].guilty
    if kind == "metric_shift":
        return tuple(f"metric.{metric.name}" for metric in profile.metrics[:1])
    return tuple(name for name in names if name in logged)


def logged_features(profile: Profile) -> list[str]:
    """Published features that the logs of this service can fill."""
    sources = {
        "request_count": "",
        "error_rate": "",
        "latency_p50_ms": "",
        "latency_p95_ms": "",
        "latency_p99_ms": "",
        "ttft_p50_ms": "ttft_ms",
        "ttft_p95_ms": "ttft_ms",
        "tpot_p50_ms": "tpot_ms",
        "queue_p95_ms": "queue_ms",
        "input_tokens_mean": "",
        "output_tokens_mean": "output_tokens",
        "output_tokens_p95": "output_tokens",
        "empty_output_rate": "output_tokens",
        "max_output_rate": "finish_reason",
        "memory_mb_max": "memory_mb",
        "gpu_util_mean": "gpu_util",
        "confidence_mean": "confidence",
        "accuracy": "label",
        "cost_usd_sum": "cost_usd",
    }
    hidden = hidden_fields(profile)
    return [name for name, source in sources.items() if source not in hidden]


def hidden_fields(profile: Profile) -> frozenset[str]:
    """Fields of a record that this service never logs."""
    silent = () if profile.kind == "llm" else ("output_tokens", "ttft_ms", "tpot_ms", "finish_reason")
    return profile.absent | frozenset(silent)


def usable_kinds(profile: Profile, kinds: Sequence[str] | None = None) -> list[str]:
    """Kinds (of `kinds`, all by default) that the logs of this service can show."""
    hidden = hidden_fields(profile)
    usable = []
    for name in kinds or KINDS:
        needs = set(KINDS[name].needs)
        if "metric" in needs and not profile.metrics:
            continue
        if not needs & hidden:
            usable.append(name)
    return usable


def sample_faults(
    profile: Profile,
    rng: Rng,
    start_ms: int,
    end_ms: int,
    count: int,
    *,
    kinds: Sequence[str] | None = None,
    apart_s: int = 7_200,
    records: int = 20,
    least_size: float = 0.0,
) -> list[Fault]:
    """Up to `count` faults at random times, sizes (log-uniform from mild, 0, to gross, 1) and lengths.

    None is smaller than `least_size`, and this leaves times and kinds as they are.

    At least `apart_s` lies between two. Each falls where about `records` (for accuracy: labelled)
    requests are expected during it; where the service is nearly idle nobody could notice anything.
    """
    usable = usable_kinds(profile, kinds)
    placed: list[Fault] = []
    for _ in range(count * 30):
        if len(placed) == count or not usable:
            break
        kind = KINDS[str(rng.choice(usable))]
        length_ms = int(np.exp(rng.uniform(np.log(kind.min_s), np.log(kind.max_s)))) * 1000
        if end_ms - start_ms <= length_ms:
            continue
        begin = int(rng.integers(start_ms, end_ms - length_ms))
        end = begin + length_ms
        if any(begin < f.end_ms + apart_s * 1000 and end > f.start_ms - apart_s * 1000 for f in placed):
            continue
        share = least_size + (1 - least_size) * rng.random()
        size = float(kind.mild * (kind.gross / kind.mild) ** share)
        seen = expected_records(profile, begin, end)
        if kind.name == "accuracy_drop":
            seen *= profile.label_share
        if seen >= records:
            placed.append(Fault(kind.name, profile.series, begin, end, round(size, 4)))
    return sorted(placed, key=lambda fault: fault.start_ms)


def expected_records(profile: Profile, start_ms: int, end_ms: int) -> float:
    """Expected number of records in [start_ms, end_ms), before faults."""
    step = BIN_S * 1000
    total = 0.0
    for at in range(start_ms - start_ms % step, end_ms, step):
        overlap = min(at + step, end_ms) - max(at, start_ms)
        total += profile.rate_per_s(at) * overlap / 1000
    return total
