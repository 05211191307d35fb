"""One hour of one service: complete columns that faults may rewrite, and what of them is logged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from monitor.records import NUMBER_FIELDS, RecordColumns, TextColumn
from monitor.sources.base import Partition
from monitor.workload import ERROR_STATUS, ERROR_TYPES, FINISH_REASONS, HOUR_MS, Float64, Int64, Profile, Rng

Bool = npt.NDArray[np.bool_]
Array = npt.NDArray[Any]

_DECIMALS = {"memory_mb": 1, "gpu_util": 4, "confidence": 4, "cost_usd": 8}


@dataclass(slots=True)
class Draft:
    """One hour of one service before it is published: every field complete, faults may rewrite it.

    `columns` holds equally long arrays: timestamp_ms, status, correct, replica, label (0/1 present),
    the number fields, codes of the text fields and "metric.NAME". `versions` names version codes.
    """

    profile: Profile
    hour_ms: int
    columns: dict[str, Array]
    versions: list[str]

    def __len__(self) -> int:
        return len(self.columns["timestamp_ms"])

    @property
    def times(self) -> Int64:
        return self.columns["timestamp_ms"]

    def at(self, rows: Array) -> Int64:
        """Times of some rows."""
        times: Int64 = self.times[rows]
        return times

    def number(self, name: str) -> Float64:
        return self.columns[name]

    def keep(self, rows: Array) -> None:
        """Keep rows by mask or index, in the order given."""
        self.columns = {name: values[rows] for name, values in self.columns.items()}

    def sort(self) -> None:
        self.keep(np.argsort(self.times, kind="stable"))

    def settle(self, rows: Bool) -> None:
        """Latency and cost of successful `rows` anew from their parts."""
        c, p = self.columns, self.profile
        rows = rows & (c["status"] == 200)
        latency = self.number("queue_ms") + self.number("ttft_ms")
        latency = latency + self.number("tpot_ms") * np.maximum(self.number("output_tokens") - 1, 0)
        cost = self.number("input_tokens") * p.price_input + self.number("output_tokens") * p.price_output
        c["latency_ms"] = np.where(rows, latency, c["latency_ms"])
        c["cost_usd"] = np.where(rows, cost, c["cost_usd"])

    def fail(self, rows: Bool, kinds: Int64, rng: Rng) -> None:
        """Turn `rows` [n] into failures of `kinds` [n] (codes of ERROR_TYPES)."""
        c, p = self.columns, self.profile
        hit = np.flatnonzero(rows)
        kind = kinds[hit]
        c["status"][hit] = np.array(ERROR_STATUS)[kind]
        c["error_type"][hit] = kind
        c["finish_reason"][hit] = -1
        started = self.number("latency_ms")[hit]
        quick = rng.gamma(2.0, 4.0, hit.size)
        partial = started * rng.uniform(0.05, 1.0, hit.size)
        late = p.timeout_ms + rng.exponential(20.0, hit.size)
        c["latency_ms"][hit] = np.choose(kind, [quick, partial, quick, late, partial + quick])
        for name in ("ttft_ms", "tpot_ms", "confidence"):
            c[name][hit] = np.nan
        c["output_tokens"][hit] = p.failed_output_tokens
        c["queue_ms"][hit] = np.where((kind == 0) | (kind == 2), 0.0, c["queue_ms"][hit])
        c["cost_usd"][hit] = 0.0
        c["correct"][hit] = -1
        for metric in p.metrics:
            c[f"metric.{metric.name}"][hit] = np.nan


def publish(draft: Draft, first_offset: int = 0, *, request_ids: bool = False) -> RecordColumns:
    """What the service logs of a draft: rounded, and without the fields it does not log.

    `request_ids`: also make up the text of the ids (slow); `request_key` is unique either way.
    """
    p, c, n = draft.profile, draft.columns, len(draft)
    hidden = set(p.absent)
    if p.kind != "llm":
        hidden |= {"output_tokens", "ttft_ms", "tpot_ms", "finish_reason"}
    numbers = {}
    for name in NUMBER_FIELDS:
        if name in hidden:
            numbers[name] = np.full(n, np.nan)
        else:
            numbers[name] = np.round(draft.number(name), _DECIMALS.get(name, 2))
    places = {
        "model_version": draft.versions,
        "tenant": [f"tenant-{i}" for i in range(len(p.tenant_weights))],
        "region": [f"region-{i}" for i in range(len(p.region_weights))],
        "error_type": list(ERROR_TYPES),
        "finish_reason": list(FINISH_REASONS),
    }
    same = np.zeros(n, np.int32)
    text = {"model": TextColumn(same, [p.model]), "endpoint": TextColumn(same, [p.endpoint])}
    for name, values in places.items():
        codes = np.full(n, -1) if name in hidden else c[name]
        text[name] = TextColumn(codes.astype(np.int32), values)
    base = (p.key << 32) ^ ((draft.hour_ms // HOUR_MS) << 20)
    keys = np.arange(1, n + 1, dtype=np.uint64) + np.uint64(base)
    status = c["status"].astype(np.int32)
    return RecordColumns(
        partition=Partition(f"simulated:{p.series}", 0),
        offsets=np.arange(first_offset, first_offset + n, dtype=np.int64),
        timestamp_ms=draft.times,
        text=text,
        numbers=numbers,
        status=status,
        is_error=(status >= 400).astype(np.int8),
        correct=np.full(n, -1, np.int8) if "label" in hidden else c["correct"].astype(np.int8),
        request_key=keys,
        request_ids=[f"{key:016x}" for key in keys.tolist()] if request_ids else [None] * n,
        metrics={m.name: np.round(draft.number(f"metric.{m.name}"), 4) for m in p.metrics},
    )
