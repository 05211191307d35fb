"""Windows of steady imaginary services, for the tests of the detectors."""

from __future__ import annotations

import numpy as np

from detectors.types import STATISTIC_INDEX, STATISTICS, Float64, WindowBatch

WINDOW_MS = 60_000
_I = STATISTIC_INDEX
_LEVELS = {  # statistic -> (level, relative noise of one record)
    "latency_p50_ms": (400.0, 0.5),
    "latency_p95_ms": (900.0, 1.0),
    "latency_p99_ms": (1300.0, 2.0),
    "latency_mean_ms": (450.0, 0.6),
    "latency_max_ms": (1500.0, 3.0),
    "ttft_p50_ms": (90.0, 0.5),
    "ttft_p95_ms": (200.0, 1.0),
    "queue_p95_ms": (20.0, 1.5),
    "input_tokens_mean": (700.0, 0.8),
    "output_tokens_mean": (150.0, 0.8),
    "output_tokens_p95": (400.0, 1.0),
    "input_tokens_p95": (1500.0, 1.0),
    "output_tokens_p50": (120.0, 0.8),
    "memory_mb_max": (20_000.0, 0.02),
    "memory_mb_mean": (19_800.0, 0.02),
    "gpu_util_mean": (0.5, 0.3),
    "confidence_mean": (0.85, 0.12),
    "latency_per_output_token_ms": (3.0, 0.8),
    "largest_gap_s": (4.0, 3.0),
}
_LOGS = {"latency_log_mean": 0.5, "input_tokens_log_mean": 0.8, "output_tokens_log_mean": 0.8}
_RATES = (
    "error_rate",
    "empty_output_rate",
    "max_output_rate",
    "throttled_rate",
    "server_error_rate",
    "repeated_input_rate",
)


def windows(
    rng: np.random.Generator, length: int, *, requests: float = 60.0, error_rate: float = 0.002
) -> tuple[Float64, Float64]:
    """values, counts [length, statistics] of one service with Poisson traffic."""
    values = np.full((length, len(STATISTICS)), np.nan)
    counts = np.zeros((length, len(STATISTICS)))
    n = rng.poisson(requests, length).astype(float)
    some = n > 0
    root = np.sqrt(np.maximum(n, 1))
    counts[:] = n[:, None]
    for name, (level, noise) in _LEVELS.items():
        values[:, _I[name]] = level * np.exp(noise / root * rng.standard_normal(length))
    for name, noise in _LOGS.items():
        values[:, _I[name]] = 6.0 + noise / root * rng.standard_normal(length)
        values[:, _I[name.replace("mean", "std")]] = noise * np.exp(0.7 / root * rng.standard_normal(length))
    for name in _RATES:
        values[:, _I[name]] = rng.binomial(n.astype(int), error_rate) / np.maximum(n, 1)
    values[~some] = np.nan
    counts[np.isnan(values)] = 0.0
    values[:, 0], counts[:, 0] = n, n
    values[~some, _I["largest_gap_s"]] = 60.0
    return values, counts


def batch(t: int, values: Float64, counts: Float64, series: list[str] | None = None) -> WindowBatch:
    """Window number t of several services; values, counts: [m, statistics]."""
    names = series or [f"model/{i:03d}" for i in range(len(values))]
    return WindowBatch(1_767_571_200_000 + t * WINDOW_MS, WINDOW_MS, names, values, counts)


def scale(values: Float64, rows: slice, names: tuple[str, ...], factor: float) -> None:
    """Multiply statistics in place over some windows."""
    for name in names:
        values[rows, _I[name]] *= factor


def slow_down(values: Float64, rows: slice, factor: float) -> None:
    """Everything about latency times `factor`."""
    names = ("latency_p50_ms", "latency_p95_ms", "latency_p99_ms", "latency_mean_ms", "latency_max_ms")
    scale(values, rows, (*names, "ttft_p50_ms", "ttft_p95_ms", "latency_per_output_token_ms"), factor)
    values[rows, _I["latency_log_mean"]] += np.log(factor)
