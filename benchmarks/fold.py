"""Records of one series -> windows, by plain NumPy and exactly: what the pipeline's sketches approximate."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from detectors.types import STATISTIC_INDEX, STATISTICS
from monitor.records import RecordColumns

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]


@dataclass(slots=True)
class Windows:
    """w consecutive windows of one series, silent ones included."""

    start_ms: Int64  # [w]
    values: Float64  # [w, len(STATISTICS)], NaN = nothing to measure
    counts: Float64  # [w, len(STATISTICS)]
    metrics: dict[str, tuple[Float64, Float64]]  # name -> mean [w], count [w]
    new_version: Bool  # [w]


class _Table:
    def __init__(self, windows: int) -> None:
        self.values = np.full((windows, len(STATISTICS)), np.nan)
        self.counts = np.zeros((windows, len(STATISTICS)))

    def put(self, name: str, values: Float64, counts: Float64) -> None:
        column = STATISTIC_INDEX[name]
        self.values[:, column] = np.where(counts > 0, values, np.nan)
        self.counts[:, column] = counts


class _Field:
    """The records that carry one number, grouped by window."""

    def __init__(self, window: Int64, values: Float64, windows: int) -> None:
        known = np.isfinite(values)
        self.window, self.values = window[known], values[known]
        self.windows = windows
        self.count = np.bincount(self.window, minlength=windows).astype(float)
        self.sum = np.bincount(self.window, self.values, windows).astype(float)
        with np.errstate(invalid="ignore", divide="ignore"):
            self.mean = self.sum / self.count

    def std(self) -> Float64:
        spread = np.bincount(self.window, (self.values - self.mean[self.window]) ** 2, self.windows)
        with np.errstate(invalid="ignore", divide="ignore"):
            deviation: Float64 = np.sqrt(spread / self.count)
        return deviation

    def quantiles(self, *shares: float) -> list[Float64]:
        """Nearest rank; NaN for a window without values."""
        if not self.values.size:
            return [np.full(self.windows, np.nan) for _ in shares]
        ordered = self.values[np.lexsort((self.values, self.window))]
        first = np.concatenate([[0], np.cumsum(self.count)[:-1]])
        found = []
        for share in shares:
            rank = np.clip(np.ceil(share * self.count) - 1, 0, np.maximum(self.count - 1, 0))
            place = np.minimum(first + rank, ordered.size - 1).astype(np.int64)
            found.append(np.where(self.count > 0, ordered[place], np.nan))
        return found


def fold(batches: Iterable[RecordColumns], start_ms: int, end_ms: int, window_ms: int = 60_000) -> Windows:
    """Windows of [start_ms, end_ms) from batches in event-time order. Request ids are taken as distinct.

    A batch must not end inside a window that the next one continues.
    """
    total = (end_ms - start_ms) // window_ms
    table = _Table(total)
    table.values[:, 0] = 0.0
    metrics: dict[str, tuple[Float64, Float64]] = {}
    new_version = np.zeros(total, bool)
    seen: set[str] = set()
    for records in batches:
        at = (records.timestamp_ms - start_ms) // window_ms
        first, last = int(at[0]), min(int(at[-1]) + 1, total)
        part = _fold_batch(records, at - first, last - first, window_ms, start_ms + first * window_ms)
        table.values[first:last], table.counts[first:last] = part.values, part.counts
        for name, values in records.metrics.items():
            mean, count = metrics.setdefault(name, (np.full(total, np.nan), np.zeros(total)))
            field = _Field(at - first, values, last - first)
            mean[first:last], count[first:last] = field.mean, field.count
        versions = records.text["model_version"]
        for code, name in enumerate(versions.values):
            rows = np.flatnonzero(versions.codes == code)
            if rows.size and name not in seen:
                new_version[int(at[rows[0]])] = bool(seen)
                seen.add(name)
    table.values[table.values[:, 0] == 0, STATISTIC_INDEX["largest_gap_s"]] = np.nan
    starts = start_ms + np.arange(total, dtype=np.int64) * window_ms
    return Windows(starts, table.values, table.counts, metrics, new_version)


def _fold_batch(records: RecordColumns, window: Int64, windows: int, window_ms: int, first_ms: int) -> _Table:
    table = _Table(windows)
    n = np.bincount(window, minlength=windows).astype(float)
    table.put("request_count", n, n)
    table.values[:, 0] = n
    with np.errstate(invalid="ignore", divide="ignore"):
        for name, hit in (
            ("error_rate", records.is_error == 1),
            ("throttled_rate", records.status == 429),
            ("server_error_rate", records.status >= 500),
        ):
            table.put(name, np.bincount(window, hit, windows) / n, n)
        reason = records.text["finish_reason"]
        given = np.where(reason.codes >= 0, 1.0, np.nan)
        cut = given * (np.array([*reason.values, ""])[reason.codes] == "length")
        _means(table, _Field(window, cut, windows), "max_output_rate")
        correct = np.where(records.correct >= 0, records.correct, np.nan)
        _means(table, _Field(window, correct, windows), "accuracy")
        _put_latency(table, records, window, windows)
        _put_tokens(table, records, window, windows)
    _put_gauges(table, records, window, windows)
    _put_gap(table, records, window, windows, window_ms, first_ms)
    return table


def _means(table: _Table, field: _Field, *names: str) -> None:
    for name in names:
        table.put(name, field.mean, field.count)


def _put_latency(table: _Table, records: RecordColumns, window: Int64, windows: int) -> None:
    latency = records.numbers["latency_ms"]
    field = _Field(window, latency, windows)
    names = ("latency_p50_ms", "latency_p95_ms", "latency_p99_ms", "latency_max_ms")
    for name, values in zip(names, field.quantiles(0.5, 0.95, 0.99, 1.0), strict=True):
        table.put(name, values, field.count)
    _means(table, field, "latency_mean_ms")
    logs = _Field(window, np.log(np.maximum(latency, 1e-3)), windows)
    table.put("latency_log_mean", logs.mean, logs.count)
    table.put("latency_log_std", logs.std(), logs.count)
    for source, shares, out in (
        ("ttft_ms", (0.5, 0.95), ("ttft_p50_ms", "ttft_p95_ms")),
        ("tpot_ms", (0.5, 0.95), ("tpot_p50_ms", "tpot_p95_ms")),
        ("queue_ms", (0.95,), ("queue_p95_ms",)),
    ):
        field = _Field(window, records.numbers[source], windows)
        for name, values in zip(out, field.quantiles(*shares), strict=True):
            table.put(name, values, field.count)


def _put_tokens(table: _Table, records: RecordColumns, window: Int64, windows: int) -> None:
    latency, inputs, outputs = (records.numbers[f] for f in ("latency_ms", "input_tokens", "output_tokens"))
    for side, tokens in (("input", inputs), ("output", outputs)):
        field = _Field(window, tokens, windows)
        p50, p95 = field.quantiles(0.5, 0.95)
        _means(table, field, f"{side}_tokens_mean")
        table.put(f"{side}_tokens_p95", p95, field.count)
        if side == "output":
            table.put("output_tokens_p50", p50, field.count)
        logs = _Field(window, np.log1p(tokens), windows)
        table.put(f"{side}_tokens_log_mean", logs.mean, logs.count)
        table.put(f"{side}_tokens_log_std", logs.std(), logs.count)
        both = np.isfinite(tokens) & np.isfinite(latency)
        x = _Field(window[both], np.log1p(tokens[both]), windows)
        y = _Field(window[both], np.log(np.maximum(latency[both], 1e-3)), windows)
        product = _Field(x.window, (x.values - x.mean[x.window]) * (y.values - y.mean[y.window]), windows)
        table.put(f"latency_{side}_log_cov", product.mean, product.count)
    given = np.where(np.isfinite(outputs), outputs == 0, np.nan)
    _means(table, _Field(window, given, windows), "empty_output_rate")
    both = np.isfinite(outputs) & np.isfinite(latency)
    spent = np.bincount(window[both], latency[both], windows)
    made = np.bincount(window[both], outputs[both], windows)
    carrying = np.bincount(window[both], minlength=windows).astype(float)
    count = np.where(made > 0, carrying, 0.0)
    table.put("latency_per_output_token_ms", spent / made, count)
    known = np.isfinite(inputs)
    w, tenants, tokens = window[known], records.text["tenant"].codes[known], inputs[known].astype(np.int64)
    pairs: Int64 = np.unique((w << 40) + ((tenants.astype(np.int64) + 1) << 32) + tokens)
    distinct = pairs >> 40
    carried = np.bincount(w, minlength=windows).astype(float)
    table.put("repeated_input_rate", 1 - np.bincount(distinct, minlength=windows) / carried, carried)


def _put_gauges(table: _Table, records: RecordColumns, window: Int64, windows: int) -> None:
    memory = _Field(window, records.numbers["memory_mb"], windows)
    table.put("memory_mb_max", memory.quantiles(1.0)[0], memory.count)
    _means(table, memory, "memory_mb_mean")
    _means(table, _Field(window, records.numbers["gpu_util"], windows), "gpu_util_mean")
    confidence = _Field(window, records.numbers["confidence"], windows)
    _means(table, confidence, "confidence_mean")
    table.put("confidence_std", confidence.std(), confidence.count)
    cost = _Field(window, records.numbers["cost_usd"], windows)
    table.put("cost_usd_sum", cost.sum, cost.count)


def _put_gap(
    table: _Table, records: RecordColumns, window: Int64, windows: int, window_ms: int, first_ms: int
) -> None:
    edges = first_ms + np.arange(windows + 1, dtype=np.int64) * window_ms
    at = np.concatenate([records.timestamp_ms, edges])
    at.sort()
    owner = np.minimum((at[:-1] - first_ms) // window_ms, windows - 1)
    gap = np.zeros(windows)
    np.maximum.at(gap, owner, np.diff(at) / 1000)
    column = STATISTIC_INDEX["largest_gap_s"]
    table.values[:, column] = gap
    table.counts[:, column] = np.bincount(window, minlength=windows)
