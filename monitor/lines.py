"""Record columns -> native JSON lines."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np

from monitor.records import RecordColumns
from monitor.workload import Float64

_WHOLE = ("input_tokens", "output_tokens")
_CLASSES = ("spam", "question", "order", "complaint")


class _Line(msgspec.Struct, omit_defaults=True):
    """The fields of a native record in the order in which they are written; None is left out."""

    timestamp: int
    request_id: str | None = None
    model: str | None = None
    model_version: str | None = None
    endpoint: str | None = None
    tenant: str | None = None
    region: str | None = None
    status: int | None = None
    error_type: str | None = None
    latency_ms: float | None = None
    ttft_ms: float | None = None
    tpot_ms: float | None = None
    queue_ms: float | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    finish_reason: str | None = None
    memory_mb: float | None = None
    gpu_util: float | None = None
    confidence: float | None = None
    prediction: str | None = None
    label: str | None = None
    cost_usd: float | None = None
    metrics: dict[str, float] | None = None


def encode_lines(records: RecordColumns) -> list[bytes]:
    """One JSON object per record, without the line end. Timestamps are epoch milliseconds."""
    n = len(records)
    columns: dict[str, list[Any]] = {
        "timestamp": records.timestamp_ms.tolist(),
        "request_id": list(records.request_ids),
        "status": [code or None for code in records.status.tolist()],
    }
    for name, text in records.text.items():
        columns[name] = np.array([*text.values, None], object)[text.codes].tolist()
    for name, values in records.numbers.items():
        columns[name] = _optional(values, whole=name in _WHOLE)
    columns["label"], columns["prediction"] = _labels(records)
    columns["metrics"] = _metrics(records) if records.metrics else [None] * n
    encode = msgspec.json.Encoder().encode
    rows = zip(*(columns[name] for name in _Line.__struct_fields__), strict=True)
    return [encode(_Line(*row)) for row in rows]


def _optional(values: Float64, *, whole: bool) -> list[Any]:
    absent = np.isnan(values)
    if absent.all():
        return [None] * len(values)
    filled = np.where(absent, 0, values)
    listed: list[Any] = (filled.astype(np.int64) if whole else filled).tolist()
    for i in np.flatnonzero(absent).tolist():
        listed[i] = None
    return listed


def _labels(records: RecordColumns) -> tuple[list[str | None], list[str | None]]:
    """Labels and predictions that agree or differ as `correct` says."""
    n = len(records)
    label: list[str | None] = [None] * n
    prediction: list[str | None] = [None] * n
    for i in np.flatnonzero(records.correct >= 0).tolist():
        right = int(records.timestamp_ms[i]) % len(_CLASSES)
        label[i] = _CLASSES[right]
        prediction[i] = _CLASSES[right if records.correct[i] else right - 1]
    return label, prediction


def _metrics(records: RecordColumns) -> list[dict[str, float] | None]:
    listed = {name: _optional(values, whole=False) for name, values in records.metrics.items()}
    rows = zip(*listed.values(), strict=True)
    return [
        {name: value for name, value in zip(listed, row, strict=True) if value is not None} or None
        for row in rows
    ]
