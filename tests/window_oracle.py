"""Event-time windows the slow way: one record at a time, plain Python, nothing shared with the product."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from monitor.config import WindowSettings
from monitor.records import NUMBER_FIELDS, TEXT_FIELDS, RecordColumns, TextColumn
from monitor.sources.base import Partition

PARTITION = Partition("log", 0)


@dataclass(frozen=True)
class Record:
    at_ms: int
    model: str = "m"
    endpoint: str | None = "e"
    model_version: str | None = None
    tenant: str | None = None
    region: str | None = None
    error_type: str | None = None
    finish_reason: str | None = None
    status: int = 0
    is_error: int = 0
    correct: int = -1
    request_id: int | None = None
    numbers: dict[str, float] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def series(self) -> str:
        return self.model if self.endpoint is None else f"{self.model}/{self.endpoint}"


def columns(records: Sequence[Record], first_offset: int = 0) -> RecordColumns:
    """Records -> what the decoder would hand out, at consecutive offsets."""
    text = {}
    for name in TEXT_FIELDS:
        values = sorted({v for r in records if (v := getattr(r, name)) is not None})
        codes = [values.index(v) if (v := getattr(r, name)) is not None else -1 for r in records]
        text[name] = TextColumn(np.array(codes, np.int32), values)
    names = sorted({name for r in records for name in r.metrics})
    return RecordColumns(
        partition=PARTITION,
        offsets=np.arange(first_offset, first_offset + len(records), dtype=np.int64),
        timestamp_ms=np.array([r.at_ms for r in records], np.int64),
        text=text,
        numbers={n: np.array([r.numbers.get(n, np.nan) for r in records]) for n in NUMBER_FIELDS},
        status=np.array([r.status for r in records], np.int32),
        is_error=np.array([r.is_error for r in records], np.int8),
        correct=np.array([r.correct for r in records], np.int8),
        request_key=np.array([r.request_id or 0 for r in records], np.uint64),
        request_ids=[None if r.request_id is None else f"r{r.request_id}" for r in records],
        metrics={n: np.array([r.metrics.get(n, np.nan) for r in records]) for n in names},
    )


def nearest_rank(values: Sequence[float], percent: int) -> float:
    return sorted(values)[max(math.ceil(len(values) * percent / 100), 1) - 1]


QUANTILES = {
    "latency_p50_ms": ("latency_ms", 50),
    "latency_p95_ms": ("latency_ms", 95),
    "latency_p99_ms": ("latency_ms", 99),
    "ttft_p50_ms": ("ttft_ms", 50),
    "ttft_p95_ms": ("ttft_ms", 95),
    "tpot_p50_ms": ("tpot_ms", 50),
    "tpot_p95_ms": ("tpot_ms", 95),
    "queue_p95_ms": ("queue_ms", 95),
    "input_tokens_p95": ("input_tokens", 95),
    "output_tokens_p50": ("output_tokens", 50),
    "output_tokens_p95": ("output_tokens", 95),
}


def statistics(records: Sequence[Record], start_ms: int, window_ms: int) -> dict[str, tuple[float, int]]:
    """Every statistic that is there: name -> (value, number of records it rests on)."""
    out: dict[str, tuple[float, int]] = {"request_count": (len(records), len(records))}

    def put(name: str, values: Sequence[float], fold: Any = np.mean) -> None:
        if len(values):
            out[name] = (float(fold(values)), len(values))

    def of(name: str) -> list[float]:
        return [r.numbers[name] for r in records if name in r.numbers]

    latency, inputs, outputs = of("latency_ms"), of("input_tokens"), of("output_tokens")
    put("error_rate", [r.is_error for r in records])
    for name, (source, percent) in QUANTILES.items():
        put(name, of(source), lambda values, percent=percent: nearest_rank(values, percent))
    put("input_tokens_mean", inputs)
    put("output_tokens_mean", outputs)
    put("empty_output_rate", [x == 0 for x in outputs])
    put("max_output_rate", [r.finish_reason == "length" for r in records if r.finish_reason is not None])
    put("memory_mb_max", of("memory_mb"), max)
    put("memory_mb_mean", of("memory_mb"))
    put("gpu_util_mean", of("gpu_util"))
    put("confidence_mean", of("confidence"))
    put("confidence_std", of("confidence"), np.std)
    put("accuracy", [r.correct for r in records if r.correct >= 0])
    put("cost_usd_sum", of("cost_usd"), sum)
    put("latency_mean_ms", latency)
    put("latency_max_ms", latency, max)
    logs = {"latency": np.log(np.maximum(latency, 1e-3)), "input_tokens": np.log1p(inputs)}
    logs["output_tokens"] = np.log1p(outputs)
    for name, values in logs.items():
        put(f"{name}_log_mean", list(values))
        put(f"{name}_log_std", list(values), np.std)
    for name, source in (
        ("latency_input_log_cov", "input_tokens"),
        ("latency_output_log_cov", "output_tokens"),
    ):
        both = [
            (math.log(max(r.numbers["latency_ms"], 1e-3)), math.log1p(r.numbers[source]))
            for r in records
            if "latency_ms" in r.numbers and source in r.numbers
        ]
        put(name, both, lambda pairs: np.cov(np.array(pairs).T, bias=True)[0, 1])
    timed = [r.numbers for r in records if "latency_ms" in r.numbers and "output_tokens" in r.numbers]
    if sum(n["output_tokens"] for n in timed) > 0:
        ms_per_token = sum(n["latency_ms"] for n in timed) / sum(n["output_tokens"] for n in timed)
        out["latency_per_output_token_ms"] = (ms_per_token, len(timed))
    put("throttled_rate", [r.status == 429 for r in records if r.status])
    put("server_error_rate", [r.status >= 500 for r in records if r.status])
    if inputs:
        distinct = {(r.tenant, r.numbers["input_tokens"]) for r in records if "input_tokens" in r.numbers}
        out["repeated_input_rate"] = (1 - len(distinct) / len(inputs), len(inputs))
    edges = sorted([start_ms, *(r.at_ms for r in records), start_ms + window_ms])
    out["largest_gap_s"] = (max(b - a for a, b in itertools.pairwise(edges)) / 1000, len(records))
    return out


@dataclass
class Oracle:
    """The semantics, record by record. `steps` are plain tuples."""

    settings: WindowSettings
    steps: list[tuple[Any, ...]] = field(default_factory=list)
    accepted: int = 0
    late: int = 0
    duplicates: int = 0
    watermark_ms: int | None = None
    frontier_ms: int | None = None
    windows: dict[tuple[int, str], list[Record]] = field(default_factory=dict)  # open and closed
    live: dict[str, list[int]] = field(default_factory=dict)  # series -> [first, last], ms
    versions: dict[str, set[str]] = field(default_factory=dict)
    flags: dict[tuple[int, str], bool] = field(default_factory=dict)
    pending: list[Record] = field(default_factory=list)

    @property
    def length_ms(self) -> int:
        return self.settings.length_s * 1000

    def start_of(self, at_ms: int) -> int:
        return at_ms - at_ms % self.length_ms

    def frontier_at(self, watermark_ms: int) -> int:
        """Start of the oldest window that is open at this watermark."""
        return self.start_of(watermark_ms - int(self.settings.allowed_lateness_s * 1000))

    def add(self, record: Record) -> None:
        start = self.start_of(record.at_ms)
        if self.frontier_ms is not None and start < self.frontier_ms:
            self.late += 1
            closed_at = self.frontier_ms + int(self.settings.allowed_lateness_s * 1000)
            if start + self.length_ms + int(self.settings.revision_horizon_s * 1000) > closed_at:
                self.pending.append(record)
            return
        if self.watermark_ms is None or record.at_ms > self.watermark_ms:
            self.advance(record.at_ms)
        held = self.windows.setdefault((start, record.series), [])
        if self.is_duplicate(record, held):
            self.duplicates += 1
            return
        self.accepted += 1
        held.append(record)
        self.see(record)

    @staticmethod
    def is_duplicate(record: Record, held: list[Record]) -> bool:
        return record.request_id is not None and any(record.request_id == h.request_id for h in held)

    def see(self, record: Record) -> None:
        span = self.live.setdefault(record.series, [record.at_ms, record.at_ms])
        span[:] = min(span[0], record.at_ms), max(span[1], record.at_ms)

    def advance(self, watermark_ms: int) -> None:
        self.watermark_ms = watermark_ms
        frontier = self.frontier_at(watermark_ms)
        if self.frontier_ms == frontier:
            return
        self.amend()
        at = self.frontier_ms
        self.frontier_ms = frontier
        if at is None:
            return
        while at < frontier and self.live:
            members = sorted(s for s, span in self.live.items() if self.start_of(span[0]) <= at)
            if members:
                self.close(at, members)
            at += self.length_ms

    def close(self, at: int, members: list[str]) -> None:
        rows = [self.row(at, series) for series in members]
        self.steps.append(("closed", at, rows))
        end = at + self.length_ms
        gone = [s for s in members if end - self.live[s][1] > self.settings.empty_for_s * 1000]
        if gone:
            self.steps.append(("expired", end, gone))
        for series in gone:
            del self.live[series]
            self.versions.pop(series, None)

    def row(self, at: int, series: str) -> tuple[str, list[Record], bool]:
        records = self.windows.get((at, series), [])
        shown = {r.model_version for r in records if r.model_version is not None}
        known = self.versions.setdefault(series, set())
        flag = bool(known) and bool(shown - known)
        known |= shown
        self.flags[at, series] = self.flags.get((at, series), False) or flag
        return series, list(records), self.flags[at, series]

    def amend(self) -> None:
        fresh: dict[tuple[int, str], int] = {}
        for record in self.pending:
            key = (self.start_of(record.at_ms), record.series)
            held = self.windows.setdefault(key, [])
            if not self.is_duplicate(record, held):
                held.append(record)
                self.see(record)
                fresh[key] = fresh.get(key, 0) + 1
        self.pending = []
        for at, series in sorted(fresh):
            self.steps.append(("amended", at, [self.row(at, series)], fresh[at, series]))

    def finish(self) -> None:
        self.amend()
        still_open = [at for at, _ in self.windows if self.frontier_ms is not None and at >= self.frontier_ms]
        if still_open and self.watermark_ms is not None:
            end = max(still_open) + self.length_ms + int(self.settings.allowed_lateness_s * 1000)
            self.advance(max(self.watermark_ms, end))
