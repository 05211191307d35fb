"""What a window looks like to a detector, and what a detector answers.

A window is a row of *statistics*. The first `len(FEATURES)` statistics are the published features
(`window_history` columns, names in alerts); the others exist so that detectors can see what the
published ones hide (tails, latency given tokens, gaps). Both are fixed; user metrics come beside them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]
Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]

FEATURES: tuple[str, ...] = (
    "request_count",
    "error_rate",
    "latency_p50_ms",
    "latency_p95_ms",
    "latency_p99_ms",
    "ttft_p50_ms",
    "ttft_p95_ms",
    "tpot_p50_ms",
    "queue_p95_ms",
    "input_tokens_mean",
    "output_tokens_mean",
    "output_tokens_p95",
    "empty_output_rate",  # share of records with output_tokens == 0
    "max_output_rate",  # share of records with finish_reason "length"
    "memory_mb_max",
    "gpu_util_mean",
    "confidence_mean",
    "accuracy",  # share of labelled records whose prediction equals the label
    "cost_usd_sum",
)
"""The fixed, published vocabulary, in the order of the `window_history` columns."""

INTERNAL_STATISTICS: tuple[str, ...] = (
    "latency_mean_ms",
    "latency_max_ms",
    "latency_log_mean",  # mean of ln(latency_ms)
    "latency_log_std",
    "input_tokens_log_mean",  # mean of ln(1 + input_tokens)
    "output_tokens_log_mean",  # mean of ln(1 + output_tokens)
    "input_tokens_log_std",
    "output_tokens_log_std",
    "latency_input_log_cov",  # covariance of ln(latency_ms) and ln(1 + input_tokens) inside the window
    "latency_output_log_cov",
    "input_tokens_p95",
    "output_tokens_p50",
    "latency_per_output_token_ms",  # sum of latency_ms / sum of output_tokens
    "throttled_rate",  # share of records with status 429
    "server_error_rate",  # share of records with status >= 500
    "repeated_input_rate",  # 1 - distinct (tenant, input_tokens) / records that carry input_tokens
    "largest_gap_s",  # longest stretch of the window without a record, its edges included
    "memory_mb_mean",
    "confidence_std",
    "tpot_p95_ms",
)

STATISTICS: tuple[str, ...] = FEATURES + INTERNAL_STATISTICS
STATISTIC_INDEX: dict[str, int] = {name: i for i, name in enumerate(STATISTICS)}
METRIC_PREFIX = "metric."


@dataclass(frozen=True, slots=True)
class WindowBatch:
    """Windows with one common start, one row per series, in ascending order of series name.

    All rows of a batch are scored in one call. Window starts of successive batches of one partition
    never decrease; a series is absent from a batch only before its first record or after it expired.
    """

    window_start_ms: int
    window_ms: int
    series: list[str]  # m names, unique, sorted
    values: Float64  # [m, len(STATISTICS)], NaN = nothing to measure; request_count is never NaN
    counts: Float64  # [m, len(STATISTICS)], how many records the value rests on (0 where NaN)
    metrics: dict[str, tuple[Float64, Float64]] = field(default_factory=dict)
    """user metrics: bare name -> (mean [m], count [m]); the feature is called "metric." + name"""
    new_version: Bool | None = None
    """[m], True where the window holds a model_version that the series had not shown before"""

    def __len__(self) -> int:
        return len(self.series)

    def take(self, rows: slice) -> WindowBatch:
        """Some of the series; the arrays are shared."""
        return WindowBatch(
            self.window_start_ms,
            self.window_ms,
            self.series[rows],
            self.values[rows],
            self.counts[rows],
            {name: (mean[rows], count[rows]) for name, (mean, count) in self.metrics.items()},
            None if self.new_version is None else self.new_version[rows],
        )


@dataclass(frozen=True, slots=True)
class Contribution:
    """One reason of a score: what was seen, what was expected and how much it weighs."""

    feature: str  # a name of FEATURES or "metric.NAME", never an internal statistic
    observed: float | None
    expected: float | None
    low: float | None  # the usual band at this hour
    high: float | None
    contribution: float  # >= 0; shares of one explanation sum to about 1
    windows: int = 1  # the newest ones that were put together: one is not always enough to see anything


@dataclass(frozen=True, slots=True)
class ScoreBatch:
    """The answer to a WindowBatch; every array has one entry per row, aligned with `series`."""

    score: Float64  # in [0, 1], higher = more anomalous; the ensemble
    gbdt_score: Float64  # in [0, 1]
    lstm_score: Float64  # in [0, 1]
    tail_probability: Float64  # in (0, 1]: chance that a normal window of this series scores as high
    is_anomalous: Bool  # the alarm decision at the configured false-alarm budget
    reason: list[str]  # named reason of the decision: "normal", "learning", "spike", "sustained", ...
    windows_seen: Int64  # scored windows of the series so far, this one included
    explanations: list[tuple[Contribution, ...]]  # best first; empty unless is_anomalous
