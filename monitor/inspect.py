"""`inferwatch inspect`: what a log file holds and what Inferwatch would make of it. Writes nothing."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from monitor.clock import Clock, rfc3339
from monitor.config import Settings
from monitor.records import NUMBER_FIELDS, TEXT_FIELDS, Decoder, RecordColumns, RejectedRecord
from monitor.sources.base import Assigned, EndOfLog, RawBatch, Undecodable
from monitor.sources.file import FileSource

SAMPLED_LINES = 2_000
TOP_SERIES = 20
MANY_SERIES = 1_000
FEW_RECORDS_PER_WINDOW = 3.0

KNOWN_FIELDS = frozenset(
    (*TEXT_FIELDS, *NUMBER_FIELDS, "timestamp", "request_id", "status", "prediction", "label", "metrics")
)
OTHER_NAMES = {
    "time": "timestamp",
    "ts": "timestamp",
    "@timestamp": "timestamp",
    "created": "timestamp",
    "created_at": "timestamp",
    "start_time": "timestamp",
    "model_name": "model",
    "model_id": "model",
    "engine": "model",
    "version": "model_version",
    "path": "endpoint",
    "route": "endpoint",
    "url": "endpoint",
    "user": "tenant",
    "customer": "tenant",
    "org": "tenant",
    "status_code": "status",
    "http_status": "status",
    "error": "error_type",
    "latency": "latency_ms",
    "duration": "latency_ms",
    "duration_ms": "latency_ms",
    "elapsed_ms": "latency_ms",
    "response_time_ms": "latency_ms",
    "ttft": "ttft_ms",
    "tpot": "tpot_ms",
    "prompt_tokens": "input_tokens",
    "completion_tokens": "output_tokens",
    "generated_tokens": "output_tokens",
    "stop_reason": "finish_reason",
    "cost": "cost_usd",
    "id": "request_id",
    "trace_id": "request_id",
}
"""Names that other logs use, and what such a field is called here."""


@dataclass(slots=True)
class _Seen:
    """Counts over all batches of all files."""

    accepted: int = 0
    present: Counter[str] = field(default_factory=Counter)
    series: Counter[str] = field(default_factory=Counter)
    rejects: Counter[str] = field(default_factory=Counter)
    first_rejects: dict[str, RejectedRecord] = field(default_factory=dict)
    unused: Counter[str] = field(default_factory=Counter)
    sampled: int = 0
    first_ms: int | None = None
    last_ms: int | None = None
    newest_ms: int = 0
    out_of_order: int = 0


def inspect(paths: list[Path], settings: Settings, clock: Clock) -> dict[str, Any]:
    """Read every file once and describe it.

    Returns records, rejected (with the first example of each reason), fields with the share of records that
    lack them, fields that are not used and what they may be meant as, series with counts, the time span, and
    advice. Raises SourceError for a file that cannot be read.
    """
    decoder = Decoder(settings.record, settings.source, settings.window)
    seen = _Seen()
    for event in _events(FileSource(paths, settings.source)):
        if isinstance(event, Undecodable):
            seen.rejects[event.reason] += event.end - event.first
            continue
        _sample_names(event, seen)
        columns, rejected = decoder.decode(event, now_ms=clock.now_ms())
        for reject in rejected:
            seen.rejects[reject.reason] += 1
            seen.first_rejects.setdefault(reject.reason, reject)
        if len(columns):
            _count(columns, settings.record.series_by, seen)
    return _report(paths, settings, seen)


def _events(source: FileSource) -> Iterator[RawBatch | Undecodable]:
    waiting = 0
    started = False
    try:
        while waiting or not started:
            for event in source.poll(0.5):
                if isinstance(event, Assigned):
                    source.start(event.partition, 0)
                    waiting, started = waiting + 1, True
                elif isinstance(event, EndOfLog):
                    waiting -= 1
                elif isinstance(event, RawBatch | Undecodable):
                    yield event
    finally:
        source.close()


def _sample_names(batch: RawBatch, seen: _Seen) -> None:
    """Which names the objects carry that Inferwatch does not use; only the first lines are looked at."""
    for i in range(min(len(batch), SAMPLED_LINES - seen.sampled)):
        seen.sampled += 1
        try:
            value = json.loads(batch.value(i) or b"null")
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            seen.unused.update(name for name in value if name not in KNOWN_FIELDS)


def _count(columns: RecordColumns, series_by: list[str], seen: _Seen) -> None:
    seen.accepted += len(columns)
    for name in TEXT_FIELDS:
        seen.present[name] += int((columns.text[name].codes >= 0).sum())
    for name in NUMBER_FIELDS:
        seen.present[name] += int(np.isfinite(columns.numbers[name]).sum())
    seen.present["status"] += int((columns.status > 0).sum())
    seen.present["request_id"] += int((columns.request_key != 0).sum())
    seen.present["label"] += int((columns.correct >= 0).sum())
    for name, values in columns.metrics.items():
        seen.present[f"metric.{name}"] += int(np.isfinite(values).sum())
    codes = np.stack([columns.text[name].codes for name in series_by], axis=1)
    combinations, counts = np.unique(codes, axis=0, return_counts=True)
    for combination, n in zip(combinations, counts, strict=True):
        parts = [
            columns.text[name].values[code] if code >= 0 else ""
            for name, code in zip(series_by, combination, strict=True)
        ]
        seen.series["/".join(parts)] += int(n)
    times = columns.timestamp_ms
    newest = np.maximum(np.maximum.accumulate(times), seen.newest_ms)
    seen.out_of_order += int((times < newest).sum())
    seen.newest_ms = int(newest[-1])
    first_ms, last_ms = int(times.min()), int(times.max())
    seen.first_ms = first_ms if seen.first_ms is None else min(first_ms, seen.first_ms)
    seen.last_ms = last_ms if seen.last_ms is None else max(last_ms, seen.last_ms)


def _report(paths: list[Path], settings: Settings, seen: _Seen) -> dict[str, Any]:
    total = seen.accepted + sum(seen.rejects.values())
    span_s = 0.0 if seen.first_ms is None or seen.last_ms is None else (seen.last_ms - seen.first_ms) / 1000
    return {
        "files": [str(path) for path in paths],
        "format": settings.record.format,
        "messages": total,
        "records": seen.accepted,
        "rejected": [
            {"reason": reason, "messages": n, **_example(seen.first_rejects.get(reason))}
            for reason, n in seen.rejects.most_common()
        ],
        "first": None if seen.first_ms is None else rfc3339(seen.first_ms),
        "last": None if seen.last_ms is None else rfc3339(seen.last_ms),
        "span_s": span_s,
        "out_of_order": seen.out_of_order,
        "fields": [
            {"field": name, "records": n, "missing_share": round(1 - n / seen.accepted, 4)}
            for name, n in sorted(seen.present.items(), key=lambda item: -item[1])
            if n
        ],
        "absent_fields": sorted(
            name for name in (*TEXT_FIELDS, *NUMBER_FIELDS, "status") if not seen.present[name]
        ),
        "unused_fields": [
            {"field": name, "records": n, "meant_as": OTHER_NAMES.get(name.lower())}
            for name, n in seen.unused.most_common(30)
        ],
        "series_count": len(seen.series),
        "series": [{"series": name, "records": n} for name, n in seen.series.most_common(TOP_SERIES)],
        "advice": advice(
            settings, seen.accepted, dict(seen.present), dict(seen.unused), len(seen.series), span_s
        ),
        "config": _config(paths, settings, dict(seen.present), len(seen.series), seen.accepted, span_s),
    }


def _example(reject: RejectedRecord | None) -> dict[str, Any]:
    if reject is None:
        return {"first_line": None, "sample": ""}
    return {"first_line": reject.offset, "sample": reject.sample}


def advice(
    settings: Settings,
    records: int,
    present: dict[str, int],
    unused: dict[str, int],
    series: int,
    span_s: float,
) -> list[str]:
    """What a person should know or change before this log is watched, most important first."""
    found = []
    for name in unused:
        meant = OTHER_NAMES.get(name.lower())
        if meant is not None and not present.get(meant):
            found.append(f"`{name}` may be what is called `{meant}` here: rename it where the log is written")
    if not records:
        found.append("no message is a record; a record needs at least `timestamp` and `model`")
        return found
    if not present.get("latency_ms"):
        found.append("no latency_ms: slow answers cannot be seen")
    if not present.get("status") and not present.get("error_type"):
        found.append("no status and no error_type: errors cannot be seen")
    if not present.get("request_id"):
        found.append("no request_id: a message that is delivered twice counts twice")
    if series > MANY_SERIES:
        found.append(f"{series} series: `record.series_by` may name a field with too many values")
    windows = max(span_s / settings.window.length_s, 1.0)
    if records / series / windows < FEW_RECORDS_PER_WINDOW:
        found.append("few records per series and window: a longer `window.length_s` says more")
    if span_s < settings.training.first_after_h * 3600:
        found.append(
            f"{span_s / 3600:.1f} h of log: too short to train on (that begins after "
            f"{settings.training.first_after_h:g} h), the detectors that ship with the package score it"
        )
    return found


def _config(
    paths: list[Path], settings: Settings, present: dict[str, int], series: int, records: int, span_s: float
) -> str:
    """A configuration that fits this log, as TOML."""
    names = [name for name in settings.record.series_by if name == "model" or present.get(name)]
    lines = ["[source]", 'kind = "file"', f"paths = {json.dumps([str(path) for path in paths])}"]
    lines += ["", "[record]", f"series_by = {json.dumps(names or ['model'])}"]
    per_window = records / max(series, 1) / max(span_s / settings.window.length_s, 1.0)
    if records and per_window < FEW_RECORDS_PER_WINDOW:
        length_s = next((s for s in (120, 300, 600) if per_window * s / 60 >= FEW_RECORDS_PER_WINDOW), 900)
        lines += ["", "[window]", f"length_s = {length_s}"]
    return "\n".join(lines) + "\n"
