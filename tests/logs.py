"""Small recorded logs for whole-path tests: plain services with one clear fault each."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

START_MS = 1_772_409_600_000  # 2026-03-02T00:00:00Z
MINUTE_MS = 60_000


def records(
    *, services: int = 3, minutes: int = 360, per_minute: int = 20, fault_at: int | None = 300, seed: int = 11
) -> Iterator[dict[str, object]]:
    """Native records of all services in event-time order; service 0 turns slow and failing at `fault_at`."""
    rng = np.random.default_rng(seed)
    n = services * per_minute
    for minute in range(minutes):
        at_ms = START_MS + minute * MINUTE_MS + np.sort(rng.integers(0, MINUTE_MS, n))
        service = rng.integers(0, services, n)
        tokens = rng.lognormal(5, 0.6, n).astype(int) + 1
        latency = (80 + 20 * tokens * (1 + service)) * rng.lognormal(0, 0.15, n)
        broken = (service == 0) & (fault_at is not None and minute >= fault_at)
        latency = np.where(broken, latency * 6, latency)
        failed = rng.random(n) < np.where(broken, 0.4, 0.004)
        for i in range(n):
            yield {
                "timestamp": datetime.fromtimestamp(int(at_ms[i]) / 1000, UTC).isoformat(
                    timespec="milliseconds"
                ),
                "request_id": f"req-{seed}-{minute}-{i}",
                "model": "m-small",
                "endpoint": f"svc-{service[i]}",
                "model_version": "v2" if broken[i] else "v1",
                "tenant": f"t{i % 4}",
                "status": 500 if failed[i] else 200,
                "error_type": "internal" if failed[i] else None,
                "latency_ms": round(float(latency[i]), 2),
                "input_tokens": int(tokens[i] * 3),
                "output_tokens": 0 if failed[i] else int(tokens[i]),
            }


def lines(**options: int | None) -> list[bytes]:
    """The same as JSON lines, absent fields left out."""
    return [
        json.dumps({name: value for name, value in record.items() if value is not None}).encode()
        for record in records(**options)  # type: ignore[arg-type]
    ]


BAD_LINES: tuple[tuple[bytes, str], ...] = (
    (b"not json at all", "not_json"),
    (b"\xff\xfe\x00", "invalid_utf8"),
    (b"[1, 2, 3]", "not_an_object"),
    (b'{"model": "m-small"}', "missing_field"),
    (b'{"timestamp": "2026-03-02T00:10:00Z", "model": 7}', "wrong_type"),
    (b'{"timestamp": "yesterday", "model": "m-small"}', "timestamp_invalid"),
    (b'{"timestamp": "2126-03-02T00:10:00Z", "model": "m-small"}', "timestamp_out_of_range"),
    (b'{"timestamp": "2036-03-02T00:10:00Z", "model": "m-small"}', "timestamp_in_future"),
    (b'{"timestamp": "2026-03-02T00:10:00Z", "model": "m-small", "latency_ms": -4}', "out_of_range"),
)
"""Messages that are no records, with the reason each is rejected for."""


def write_log(path: Path, messages: list[bytes]) -> Path:
    path.write_bytes(b"\n".join(messages) + b"\n")
    return path


def with_bad_lines(messages: list[bytes]) -> list[bytes]:
    """Bad messages spread evenly over a log."""
    mixed = list(messages)
    step = max(len(mixed) // (len(BAD_LINES) + 1), 1)
    for i, (bad, _) in enumerate(BAD_LINES):
        mixed.insert((i + 1) * step + i, bad)
    return mixed
