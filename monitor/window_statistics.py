"""Aggregates -> the statistics that detectors see. Importing this module loads numba: do it lazily.

A bucket [l, u) of a histogram has u/l <= 33/32, so that its harmonic middle 2lu/(l+u) is within
1/65 < 2 % of everything in it. Everything is computed row by row in one compiled pass, so that a close of
five series costs little more than one of one series.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from detectors.types import STATISTIC_INDEX, STATISTICS
from monitor.sketches import (
    GRID_CELLS,
    HISTOGRAMS,
    NUMBERS,
    SUM_INDEX,
    Aggregate,
    bucket_values,
)
from monitor.tables import compiled

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
UInt32 = npt.NDArray[np.uint32]
UInt16 = npt.NDArray[np.uint16]
UInt8 = npt.NDArray[np.uint8]


def _plan(rows: tuple[tuple[str, ...], ...]) -> tuple[tuple[int, ...], ...]:
    """(name of a statistic, names of sums...) -> their places."""
    return tuple((STATISTIC_INDEX[name], *(SUM_INDEX[each] for each in sums)) for name, *sums in rows)


_TOTALS = _plan((("request_count", "records", "records"), ("cost_usd_sum", "cost", "cost_n")))
_SHARES = _plan(  # statistic = first / second, and rests on the third
    (
        ("error_rate", "errors", "records", "records"),
        ("input_tokens_mean", "input", "input_n", "input_n"),
        ("output_tokens_mean", "output", "output_n", "output_n"),
        ("empty_output_rate", "output_zero", "output_n", "output_n"),
        ("max_output_rate", "truncated", "finish_n", "finish_n"),
        ("gpu_util_mean", "gpu", "gpu_n", "gpu_n"),
        ("confidence_mean", "confidence", "confidence_n", "confidence_n"),
        ("accuracy", "correct", "labelled", "labelled"),
        ("latency_mean_ms", "latency", "latency_n", "latency_n"),
        ("latency_log_mean", "latency_log", "latency_n", "latency_n"),
        ("input_tokens_log_mean", "input_log", "input_n", "input_n"),
        ("output_tokens_log_mean", "output_log", "output_n", "output_n"),
        ("throttled_rate", "throttled", "status_n", "status_n"),
        ("server_error_rate", "server_errors", "status_n", "status_n"),
        ("memory_mb_mean", "memory", "memory_n", "memory_n"),
        (
            *("latency_per_output_token_ms", "timed_output_ms"),
            *("timed_output_tokens", "latency_output_n"),
        ),
    )
)
_DEVIATIONS = _plan(  # of a sum, its sum of squares, and the count
    (
        ("latency_log_std", "latency_log", "latency_log_square", "latency_n"),
        ("input_tokens_log_std", "input_log", "input_log_square", "input_n"),
        ("output_tokens_log_std", "output_log", "output_log_square", "output_n"),
        ("confidence_std", "confidence", "confidence_square", "confidence_n"),
    )
)
_COVARIANCES = _plan(  # count, two sums, sum of products
    tuple(
        (f"{pair}_log_cov", *(f"{pair}_{part}" for part in ("n", "x", "y", "xy")))
        for pair in ("latency_input", "latency_output")
    )
)
_QUANTILES = tuple(  # statistic, histogram, percent, count
    (STATISTIC_INDEX[name], h, percent, SUM_INDEX[f"{NUMBERS[h]}_n"])
    for name, h, percent in (
        ("latency_p50_ms", 0, 50),
        ("latency_p95_ms", 0, 95),
        ("latency_p99_ms", 0, 99),
        ("ttft_p50_ms", 1, 50),
        ("ttft_p95_ms", 1, 95),
        ("tpot_p50_ms", 2, 50),
        ("tpot_p95_ms", 2, 95),
        ("queue_p95_ms", 3, 95),
        ("input_tokens_p95", 4, 95),
        ("output_tokens_p50", 5, 50),
        ("output_tokens_p95", 5, 95),
    )
)
_LATENCY_MAX, _MEMORY_MAX = STATISTIC_INDEX["latency_max_ms"], STATISTIC_INDEX["memory_mb_max"]
_REPEATED, _GAP = STATISTIC_INDEX["repeated_input_rate"], STATISTIC_INDEX["largest_gap_s"]
_RECORDS, _LATENCY_N = SUM_INDEX["records"], SUM_INDEX["latency_n"]
_INPUT_N, _MEMORY_N = SUM_INDEX["input_n"], SUM_INDEX["memory_n"]


_BUCKET_VALUES = bucket_values()


@compiled
def _quantile(buckets: UInt16, counts: UInt32, percent: int) -> float:
    """Nearest-rank quantile of one histogram, NaN if it is empty."""
    rank, seen = max((counts.sum() * percent + 99) // 100, 1), 0
    for i in range(len(buckets)):
        seen += counts[i]
        if seen >= rank:
            return float(_BUCKET_VALUES[buckets[i]])
    return np.nan


@compiled
def _largest_gap_cells(grid: UInt8) -> int:
    """Longest run of empty cells: at most two cells shorter than the true gap, never longer."""
    largest, run = 0, 0
    for cell in grid:
        run = 0 if cell else run + 1
        largest = max(largest, run)
    return largest


@compiled
def _put(values: Float64, counts: Float64, column: int, value: float, n: float) -> None:
    if n > 0.0 and not np.isnan(value):
        values[column], counts[column] = value, n


@compiled
def _from_sums(s: Float64, values: Float64, counts: Float64) -> None:
    """The statistics of one row that follow from its sums alone."""
    for column, total, n in _TOTALS:
        _put(values, counts, column, s[total], s[n])
    for column, part, whole, n in _SHARES:
        if s[whole] > 0.0:
            _put(values, counts, column, s[part] / s[whole], s[n])
    for column, total, squares, n in _DEVIATIONS:
        if s[n] > 0.0:
            mean = s[total] / s[n]
            _put(values, counts, column, np.sqrt(max(s[squares] / s[n] - mean * mean, 0.0)), s[n])
    for column, n, x, y, product in _COVARIANCES:
        if s[n] > 0.0:
            _put(values, counts, column, s[product] / s[n] - (s[x] / s[n]) * (s[y] / s[n]), s[n])


@compiled
def _fill(
    sums: Float64,
    minima: Float64,
    maxima: Float64,
    grid: UInt8,
    bounds: Int64,
    buckets: UInt16,
    bucket_counts: UInt32,
    pair_bounds: Int64,
    cell_s: float,
    all_values: Float64,
    all_counts: Float64,
) -> None:
    for row in range(len(sums)):
        s, values, counts = sums[row], all_values[row], all_counts[row]
        _from_sums(s, values, counts)
        for column, h, percent, n in _QUANTILES:
            low, high = bounds[row * HISTOGRAMS + h], bounds[row * HISTOGRAMS + h + 1]
            found = _quantile(buckets[low:high], bucket_counts[low:high], percent)
            _put(values, counts, column, min(max(found, minima[row, h]), maxima[row, h]), s[n])
        _put(values, counts, _LATENCY_MAX, maxima[row, 0], s[_LATENCY_N])
        _put(values, counts, _MEMORY_MAX, maxima[row, HISTOGRAMS], s[_MEMORY_N])
        _put(values, counts, _GAP, _largest_gap_cells(grid[row]) * cell_s, s[_RECORDS])
        if s[_INPUT_N] > 0.0:
            distinct = pair_bounds[row + 1] - pair_bounds[row]
            _put(values, counts, _REPEATED, 1.0 - distinct / s[_INPUT_N], s[_INPUT_N])


def statistics(aggregate: Aggregate, window_ms: int) -> tuple[Float64, Float64]:
    """values, counts: [m, len(STATISTICS)]; every row has at least one record."""
    a, h = aggregate, aggregate.histograms
    values = np.full((len(a), len(STATISTICS)), np.nan)
    counts = np.zeros((len(a), len(STATISTICS)))
    cell_s = window_ms / 1000.0 / GRID_CELLS
    _fill(
        *(a.sums, a.minima, a.maxima, a.grid, h.bounds, h.buckets, h.counts),
        *(a.pair_bounds, cell_s, values, counts),
    )
    return values, counts


def metric_means(aggregate: Aggregate) -> dict[str, tuple[Float64, Float64]]:
    """User metrics: name -> (mean [m], count [m]), NaN where there is none."""
    return {
        name: (
            _mean(aggregate.metric_sums[:, i], aggregate.metric_counts[:, i]),
            aggregate.metric_counts[:, i],
        )
        for i, name in enumerate(aggregate.metric_names)
    }


def _mean(total: Float64, n: Float64) -> Float64:
    return np.asarray(np.divide(total, n, out=np.full(len(n), np.nan), where=n > 0))
