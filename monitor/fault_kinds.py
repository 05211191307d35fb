"""Every kind of fault by name: how it acts, what it really moves, and its usual sizes and lengths."""

from __future__ import annotations

from dataclasses import dataclass

from monitor import record_faults as act
from monitor.record_faults import Apply

LATENCY = ("latency_p50_ms", "latency_p95_ms", "latency_p99_ms")
TAIL = ("latency_p95_ms", "latency_p99_ms", "ttft_p95_ms")
TTFT = ("ttft_p50_ms", "ttft_p95_ms")
OUTPUT = ("output_tokens_mean", "output_tokens_p95")


@dataclass(frozen=True, slots=True)
class FaultKind:
    """A kind of fault: how it acts, what it moves, and what sizes and lengths are usual."""

    name: str
    help: str
    apply: Apply
    guilty: tuple[str, ...]  # published features it moves, the chief one first
    mild: float
    gross: float
    unit: str
    min_s: int = 300
    max_s: int = 7_200
    gradual: bool = False
    benign: bool = False  # a change that is no fault: an alarm on it is a false one
    needs: tuple[str, ...] = ()  # fields without which it cannot be seen


_LIST = (
    FaultKind("outage", "all traffic stops", act.outage, ("request_count",), 1, 1, "(no size)"),
    FaultKind(
        "traffic_loss",
        "a share of the records is lost",
        act.lose,
        ("request_count", "cost_usd_sum"),
        0.5,
        0.95,
        "share lost",
    ),
    FaultKind(
        "error_burst",
        "requests fail with 500 and 503",
        act.errors((1, 1, 2)),
        ("error_rate",),
        0.06,
        0.9,
        "share failing",
    ),
    FaultKind(
        "throttling",
        "requests are refused with 429",
        act.errors((0,)),
        ("error_rate",),
        0.08,
        0.9,
        "share refused",
    ),
    FaultKind(
        "timeouts",
        "requests run into the time limit",
        act.errors((3,)),
        ("error_rate", "latency_p99_ms", "latency_p95_ms"),
        0.04,
        0.5,
        "share timing out",
    ),
    FaultKind(
        "slow",
        "everything is slower",
        act.slow_all,
        (*LATENCY, *TTFT, "tpot_p50_ms", "queue_p95_ms"),
        1.4,
        8,
        "factor",
    ),
    FaultKind(
        "slow_tail", "one bad replica of many", act.slow_tail, TAIL, 4, 20, "factor on 4-15% of requests"
    ),
    FaultKind(
        "slow_creep",
        "slower and slower",
        act.slow_creep,
        (*LATENCY, *TTFT, "tpot_p50_ms"),
        1.6,
        6,
        "factor at the end",
        3_600,
        21_600,
        True,
    ),
    FaultKind(
        "slow_ttft",
        "the first token is late",
        act.slow_part(("ttft_ms",)),
        (*TTFT, *LATENCY),
        1.8,
        12,
        "factor",
        needs=("ttft_ms",),
    ),
    FaultKind(
        "slow_tpot",
        "tokens come slowly",
        act.slow_part(("tpot_ms",)),
        ("tpot_p50_ms", *LATENCY),
        1.4,
        5,
        "factor",
        needs=("tpot_ms",),
    ),
    FaultKind(
        "queue_buildup",
        "requests wait",
        act.queue,
        ("queue_p95_ms", *LATENCY),
        1,
        15,
        "times a usual request",
        600,
        7_200,
        True,
    ),
    FaultKind(
        "empty_outputs",
        "answers without a token",
        act.empty,
        ("empty_output_rate", *OUTPUT),
        0.06,
        0.95,
        "share empty",
        needs=("output_tokens",),
    ),
    FaultKind(
        "runaway_outputs",
        "answers run into the limit",
        act.runaway,
        ("max_output_rate", *OUTPUT, *LATENCY, "cost_usd_sum"),
        0.06,
        0.7,
        "share running on",
        needs=("output_tokens",),
    ),
    FaultKind(
        "truncated_outputs",
        "answers break off",
        act.truncated,
        ("max_output_rate", *OUTPUT),
        0.5,
        0.1,
        "share of the answer left",
        needs=("output_tokens",),
    ),
    FaultKind(
        "retry_storm",
        "failures are retried at once",
        act.retry_storm,
        ("request_count", "error_rate"),
        1.5,
        6,
        "retries per failure",
        300,
        3_600,
    ),
    FaultKind(
        "memory_leak",
        "memory grows",
        act.memory_leak,
        ("memory_mb_max",),
        0.2,
        1.2,
        "share grown at the end",
        3_600,
        21_600,
        True,
        needs=("memory_mb",),
    ),
    FaultKind(
        "gpu_drop",
        "the GPU idles",
        act.gpu_drop,
        ("gpu_util_mean",),
        0.6,
        0.05,
        "factor",
        needs=("gpu_util",),
    ),
    FaultKind(
        "accuracy_drop",
        "right answers turn wrong",
        act.accuracy,
        ("accuracy",),
        0.2,
        0.8,
        "share of right answers lost",
        3_600,
        21_600,
        needs=("label",),
    ),
    FaultKind(
        "confidence_drop",
        "confidence falls",
        act.confidence,
        ("confidence_mean",),
        0.06,
        0.45,
        "points lost",
        needs=("confidence",),
    ),
    FaultKind(
        "input_explosion",
        "prompts grow out of hand",
        act.inputs,
        ("input_tokens_mean", *TTFT, "cost_usd_sum", *LATENCY),
        3,
        12,
        "factor",
    ),
    FaultKind(
        "input_loss",
        "prompts lose their context",
        act.inputs,
        ("input_tokens_mean", *TTFT, "cost_usd_sum", *LATENCY),
        0.3,
        0.05,
        "factor",
    ),
    FaultKind(
        "cost_jump",
        "the same tokens cost more",
        act.cost,
        ("cost_usd_sum",),
        1.8,
        6,
        "factor",
        needs=("cost_usd",),
    ),
    FaultKind(
        "bad_version",
        "a release fails and is slow",
        act.bad_version,
        ("error_rate", *LATENCY, *TTFT, "tpot_p50_ms"),
        0.1,
        0.9,
        "share failing",
        600,
        7_200,
    ),
    FaultKind(
        "tenant_flood",
        "one tenant floods the service",
        act.tenant_flood,
        ("request_count", "queue_p95_ms", *LATENCY, "cost_usd_sum"),
        2,
        12,
        "times the usual traffic",
    ),
    FaultKind("region_down", "one region fails", act.region_down, ("error_rate",), 0.4, 1, "share failing"),
    FaultKind(
        "stuck",
        "readings freeze",
        act.stuck,
        (*LATENCY, "gpu_util_mean", "confidence_mean"),
        0.7,
        3,
        "times the usual reading",
    ),
    FaultKind(
        "flapping",
        "errors come and go",
        act.flapping,
        ("error_rate",),
        0.15,
        0.95,
        "share failing while on",
        1_200,
        7_200,
    ),
    FaultKind(
        "metric_shift",
        "a user metric moves",
        act.metric_shift,
        (),
        1.5,
        8,
        "standard deviations",
        needs=("metric",),
    ),
    FaultKind(
        "input_shift",
        "prompts get longer, latency with them",
        act.inputs,
        ("input_tokens_mean",),
        1.1,
        1.4,
        "factor",
        1_800,
        21_600,
        benign=True,
    ),
)
KINDS: dict[str, FaultKind] = {kind.name: kind for kind in _LIST}
"""Every kind of fault by name."""
