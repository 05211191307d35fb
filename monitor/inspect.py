"""`inferwatch inspect`: what a log file holds and what Inferwatch would make of it. Writes nothing."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from monitor.clock import Clock, rfc3339
from monitor.config import Settings
from monitor.log_shapes import require_files, shape_of
from monitor.lookalikes import Objects, conversion, meaning_of
from monitor.records import NUMBER_FIELDS, TEXT_FIELDS, Decoder, RecordColumns, RejectedRecord
from monitor.refusals import troubles
from monitor.sources.base import Assigned, EndOfLog, Partition, RawBatch, Undecodable
from monitor.sources.file import FileSource

SAMPLED_LINES = 2_000
TOP_SERIES = 20
MANY_SERIES = 1_000
FEW_RECORDS_PER_WINDOW = 3.0

KNOWN_FIELDS = frozenset(
    (*TEXT_FIELDS, *NUMBER_FIELDS, "timestamp", "request_id", "status", "prediction", "label", "metrics")
)


@dataclass(slots=True)
class _Seen:
    """Counts over all batches of all files."""

    accepted: int = 0
    present: Counter[str] = field(default_factory=Counter)
    series: Counter[str] = field(default_factory=Counter)
    rejects: Counter[str] = field(default_factory=Counter)
    first_rejects: dict[str, RejectedRecord] = field(default_factory=dict)
    why: dict[str, str] = field(default_factory=dict)  # reason -> what the first such message lacks
    unused: Counter[str] = field(default_factory=Counter)
    objects: Objects = field(default_factory=Objects)
    sampled: int = 0
    first_ms: int | None = None
    last_ms: int | None = None
    newest_ms: int = 0
    out_of_order: int = 0


def inspect(paths: list[Path], settings: Settings, clock: Clock) -> dict[str, Any]:
    """Read every file once and describe it.

    Returns records, rejected (with the first example of each reason, and what is wrong with it), fields with
    the share of records that lack them, fields that are not used and what they may be meant as, series with
    counts, the time span, advice, `convert` (a command that makes records of the log, or None) and a
    configuration (None for a log without a record). Raises SourceError for a file that cannot be read.
    """
    require_files(paths)
    decoders: dict[Partition, Decoder] = {}
    seen = _Seen()
    for event in _events(FileSource(paths, settings.source)):
        if isinstance(event, Undecodable):
            seen.rejects[event.reason] += event.end - event.first
            continue
        _sample_names(event, seen)
        if event.partition not in decoders:
            decoders[event.partition] = Decoder(settings.record, settings.source, settings.window)
        columns, rejected = decoders[event.partition].decode(event, now_ms=clock.now_ms())
        for reject in rejected:
            seen.rejects[reject.reason] += 1
            if reject.reason not in seen.first_rejects:
                seen.first_rejects[reject.reason] = reject
                seen.why[reject.reason] = _why(event, reject)
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
            seen.objects.add(value)


def _why(batch: RawBatch, reject: RejectedRecord) -> str:
    """What is wrong with a rejected message, as far as its fields say; never what they hold."""
    if reject.reason == "timestamp_in_future":
        return "`timestamp` lies ahead of this machine's clock"
    try:
        found = json.loads(batch.value(int(np.searchsorted(batch.offsets, reject.offset))) or b"null")
    except (ValueError, RecursionError):
        return ""
    return "; ".join(troubles(found)) if isinstance(found, dict) else ""


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
            {"reason": reason, "messages": n, **_example(reason, seen)}
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
            {"field": name, "records": n, "meant_as": meaning_of(name)}
            for name, n in seen.unused.most_common(30)
        ],
        "series_count": len(seen.series),
        "series": [{"series": name, "records": n} for name, n in seen.series.most_common(TOP_SERIES)],
        "advice": [*_about_files(paths, seen), *_about_names(seen), *_about_records(settings, seen, span_s)],
        "convert": _convert(paths, seen),
        "config": _config(paths, settings, dict(seen.present), len(seen.series), seen.accepted, span_s)
        if seen.accepted
        else None,
    }


def _example(reason: str, seen: _Seen) -> dict[str, Any]:
    reject = seen.first_rejects.get(reason)
    if reject is None:
        return {"first_line": None, "why": "", "sample": ""}
    return {"first_line": reject.offset + 1, "why": seen.why[reason], "sample": reject.sample}


def _about_files(paths: list[Path], seen: _Seen) -> list[str]:
    """Files whose lines cannot be JSON objects, each with what makes such a file of it."""
    if seen.accepted and not seen.rejects:
        return []
    shapes = {path: shape_of(path) for path in paths}
    said = [f"{path} {shape.what}: {shape.fix}" for path, shape in shapes.items() if shape is not None]
    if seen.rejects["corrupt_batch"] and not said:
        said.append("a file ends early or is damaged: what stands before the damage was read")
    if seen.rejects["too_large"]:
        said.append("a message is longer than `source.max_record_bytes`: log no texts, or raise it")
    return said


def _about_names(seen: _Seen) -> list[str]:
    return [
        f"`{name}` may be what is called `{meant}` here: rename it where the log is written"
        for name in seen.unused
        if (meant := meaning_of(name)) is not None
        and not seen.present.get(meant)
        and (meant,) not in seen.objects.values
    ]


def _about_records(settings: Settings, seen: _Seen, span_s: float) -> list[str]:
    """What a person should know or change before this log is watched, most important first."""
    if not seen.accepted:
        return ["no message is a record; a record needs at least `timestamp` and `model`"]
    found, present, series = [], seen.present, len(seen.series)
    if not present["latency_ms"]:
        found.append("no latency_ms: slow answers cannot be seen")
    if not present["status"] and not present["error_type"]:
        found.append("no status and no error_type: errors cannot be seen")
    if not present["request_id"]:
        found.append("no request_id: a message that is delivered twice counts twice")
    if series > MANY_SERIES:
        found.append(f"{series} series: `record.series_by` may name a field with too many values")
    windows = max(span_s / settings.window.length_s, 1.0)
    if seen.accepted / series / windows < FEW_RECORDS_PER_WINDOW:
        found.append("few records per series and window: a longer `window.length_s` says more")
    if span_s < settings.training.first_after_h * 3600:
        found.append(
            f"{span_s / 3600:.1f} h of log: too short to train on (that begins after "
            f"{settings.training.first_after_h:g} h), the detectors that ship with the package score it"
        )
    return found


def _convert(paths: list[Path], seen: _Seen) -> dict[str, Any] | None:
    """A command that makes native records of the first file, and what it takes for granted."""
    found = conversion(seen.objects)
    if found is None:
        return None
    path = str(paths[0])
    reader = {".gz": "gzip -dc", ".zst": "zstd -dc"}.get(paths[0].suffix, "cat")
    command = f"{reader} {shlex.quote(path)} | jq -c {shlex.quote(found.program)} > records.jsonl"
    return {"command": command, "assumed": found.assumed}


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
