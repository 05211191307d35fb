"""Channels: the quantities a baseline is kept for, and what each of them is called in an alert.

A channel is one statistic of a window, or something derived from several (tails relative to the median,
latency given tokens), brought onto a scale on which its noise is about Gaussian and its size is relative.
"""

from __future__ import annotations

import numpy as np

from detectors.types import STATISTIC_INDEX, STATISTICS, Float64

LOG, LINEAR, RATE, COUNT = 0, 1, 2, 3  # how a channel is transformed and how its noise depends on the count

_RATES = (
    "error_rate",
    "empty_output_rate",
    "max_output_rate",
    "accuracy",
    "throttled_rate",
    "server_error_rate",
    "repeated_input_rate",
)
_LINEAR = (
    "gpu_util_mean",
    "confidence_mean",
    "latency_log_mean",
    "latency_log_std",
    "input_tokens_log_mean",
    "output_tokens_log_mean",
    "input_tokens_log_std",
    "output_tokens_log_std",
    "latency_input_log_cov",
    "latency_output_log_cov",
    "confidence_std",
)
DERIVED: tuple[str, ...] = (
    "latency_given_tokens",  # latency_log_mean less what the token counts explain
    "latency_p99_to_p50",  # natural logarithms of ratios
    "latency_p95_to_p50",
    "latency_max_to_p50",
    "ttft_p95_to_p50",
    "tpot_p95_to_p50",
    "cost_per_token",  # logarithm, an output token counting as three
)
CHANNELS: tuple[str, ...] = STATISTICS + DERIVED
N_CHANNELS = len(CHANNELS)
N_METRICS = 16  # user metrics per series that get a baseline
N_SLOTS = N_CHANNELS + N_METRICS

RATIOS: tuple[tuple[int, int], ...] = tuple(
    (STATISTIC_INDEX[upper], STATISTIC_INDEX[lower])
    for upper, lower in (
        ("latency_p99_ms", "latency_p50_ms"),
        ("latency_p95_ms", "latency_p50_ms"),
        ("latency_max_ms", "latency_p50_ms"),
        ("ttft_p95_ms", "ttft_p50_ms"),
        ("tpot_p95_ms", "tpot_p50_ms"),
    )
)

_PUBLISHED: dict[str, str] = {
    "latency_mean_ms": "latency_p50_ms",
    "latency_max_ms": "latency_p99_ms",
    "latency_log_mean": "latency_p50_ms",
    "latency_log_std": "latency_p99_ms",
    "input_tokens_log_mean": "input_tokens_mean",
    "output_tokens_log_mean": "output_tokens_mean",
    "input_tokens_log_std": "input_tokens_mean",
    "output_tokens_log_std": "output_tokens_p95",
    "latency_input_log_cov": "latency_p50_ms",
    "latency_output_log_cov": "latency_p50_ms",
    "input_tokens_p95": "input_tokens_mean",
    "output_tokens_p50": "output_tokens_mean",
    "latency_per_output_token_ms": "latency_p50_ms",
    "throttled_rate": "error_rate",
    "server_error_rate": "error_rate",
    "repeated_input_rate": "request_count",
    "largest_gap_s": "request_count",
    "memory_mb_mean": "memory_mb_max",
    "confidence_std": "confidence_mean",
    "tpot_p95_ms": "tpot_p50_ms",
    "latency_given_tokens": "latency_p50_ms",
    "latency_p99_to_p50": "latency_p99_ms",
    "latency_p95_to_p50": "latency_p95_ms",
    "latency_max_to_p50": "latency_p99_ms",
    "ttft_p95_to_p50": "ttft_p95_ms",
    "tpot_p95_to_p50": "tpot_p50_ms",
    "cost_per_token": "cost_usd_sum",
}


def published_name(channel: str) -> str:
    """Channel -> the name of FEATURES under which an alert speaks of it."""
    return _PUBLISHED.get(channel, channel)


def _kind(channel: str) -> int:
    if channel == "request_count":
        return COUNT
    if channel in _RATES:
        return RATE
    return LINEAR if channel in _LINEAR or channel in DERIVED else LOG


KIND = np.array([_kind(name) for name in CHANNELS] + [LINEAR] * N_METRICS, dtype=np.int64)

_NOISE: dict[str, tuple[float, float]] = {  # channel -> variance between windows, variance of one record
    "gpu_util_mean": (1e-3, 0.01),
    "confidence_mean": (1e-4, 0.01),
    "confidence_std": (1e-4, 0.01),
    "memory_mb_max": (1e-4, 1e-4),
    "memory_mb_mean": (1e-4, 1e-4),
    "request_count": (0.2, 0.2),
    "cost_per_token": (0.01, 0.1),
}


def _noise_prior() -> Float64:
    pairs = [_NOISE.get(name, (0.01, 0.5)) for name in CHANNELS] + [(0.05, 0.5)] * N_METRICS
    prior: Float64 = np.log(np.array(pairs, dtype=np.float64))
    return prior


NOISE_PRIOR = _noise_prior()  # [N_SLOTS, 2], natural logarithms

_FLOOR: dict[str, float] = {  # changes of this size are never worth an alarm, however steady the channel
    "gpu_util_mean": 0.02,
    "confidence_mean": 0.006,
    "confidence_std": 0.006,
    "memory_mb_max": 0.012,
    "memory_mb_mean": 0.012,
    "request_count": 0.1,
    "largest_gap_s": 0.1,
    "latency_p99_to_p50": 0.08,
    "latency_p95_to_p50": 0.08,
    "latency_max_to_p50": 0.1,
    "latency_max_ms": 0.1,
    "ttft_p95_to_p50": 0.08,
    "tpot_p95_to_p50": 0.06,
    "queue_p95_ms": 0.15,
    "cost_per_token": 0.03,
}
NOISE_FLOOR = 2 * np.log(np.array([_FLOOR.get(name, 0.04) for name in CHANNELS] + [0.03] * N_METRICS))
"""[N_SLOTS], ln of the variance between windows that is assumed at least; scales are ln for most channels."""

_RATE_PRIOR: dict[str, float] = {"accuracy": 0.9, "max_output_rate": 0.02, "repeated_input_rate": 0.05}
RATE_PRIOR = np.array([_RATE_PRIOR.get(name, 0.004) for name in CHANNELS] + [0.0] * N_METRICS)
