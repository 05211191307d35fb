"""A log to measure on: JSON records of 250-300 bytes whose every window is known in advance."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

START_MS = 1_772_409_600_000  # 2026-03-02T00:00:00Z
MINUTE_MS = 60_000
REGIONS, ERRORS = ("eu-1", "us-1", "us-2", "ap-1"), ("timeout", "internal", "overloaded")


@dataclass(frozen=True, slots=True)
class Load:
    """n records of `series` services over `minutes` minutes, in event-time order."""

    at_ms: Int64  # [n]
    series: Int64  # [n]
    latency_ms: Float64  # [n], two decimals
    failed: npt.NDArray[np.bool_]  # [n]
    tokens: Int64  # [n], output
    names: list[str]  # of the series, as the database has them

    def __len__(self) -> int:
        return len(self.at_ms)


def make(records: int, series: int, minutes: int, seed: int = 7) -> Load:
    """Plain services of different speed, 0.4% failures, no faults."""
    rng = np.random.default_rng(seed)
    at_ms = START_MS + np.sort(rng.integers(0, minutes * MINUTE_MS, records))
    service = rng.integers(0, series, records)
    tokens = rng.lognormal(5, 0.6, records).astype(np.int64) + 1
    latency = (80 + 2 * tokens * (1 + service % 5)) * rng.lognormal(0, 0.15, records)
    failed = rng.random(records) < 0.004
    names = [f"chat-{i % 7}-large/v1%2Fchat-{i:06d}".replace("%2F", "-") for i in range(series)]
    return Load(at_ms, service, np.round(latency, 2), failed, np.where(failed, 0, tokens), names)


def lines(load: Load, seed: int = 7) -> list[bytes]:
    """The records as JSON, without line ends."""
    rng = np.random.default_rng(seed + 1)
    n = len(load)
    tenant, region = rng.integers(0, 24, n).tolist(), rng.integers(0, len(REGIONS), n).tolist()
    input_tokens = rng.integers(20, 3000, n).tolist()
    ids = rng.integers(0, 1 << 62, n).tolist()
    day = dt.datetime.fromtimestamp(START_MS / 1000, dt.UTC)
    minutes = {}
    for minute in range(int((load.at_ms[-1] - START_MS) // MINUTE_MS) + 1):
        minutes[minute] = f"{day + dt.timedelta(minutes=minute):%Y-%m-%dT%H:%M}"
    offset = load.at_ms - START_MS
    heads = [minutes[m] for m in (offset // MINUTE_MS).tolist()]
    tails = (offset % MINUTE_MS).tolist()
    columns = zip(
        *(heads, tails, load.series.tolist(), load.latency_ms.tolist(), load.failed.tolist()),
        *(load.tokens.tolist(), tenant, region, input_tokens, ids),
        strict=True,
    )
    split = [name.split("/") for name in load.names]
    found = []
    for head, ms, s, latency, failed, tokens, t, r, tokens_in, rid in columns:
        model, endpoint = split[s]
        outcome = (
            f'"status":500,"error_type":"{ERRORS[rid % 3]}"'
            if failed
            else '"status":200,"finish_reason":"stop"'
        )
        found.append(
            f'{{"timestamp":"{head}:{ms // 1000:02d}.{ms % 1000:03d}Z","request_id":"{rid:016x}",'
            f'"model":"{model}","model_version":"v{s % 3}","endpoint":"{endpoint}","tenant":"tenant-{t}",'
            f'"region":"{REGIONS[r]}",{outcome},"latency_ms":{latency},"input_tokens":{tokens_in},'
            f'"output_tokens":{tokens}}}'.encode()
        )
    return found


def write(load: Load, path: Path) -> list[bytes]:
    found = lines(load)
    path.write_bytes(b"\n".join(found) + b"\n")
    return found


def truth(load: Load) -> dict[tuple[str, int], tuple[int, int, float]]:
    """(series, window start in ms) -> records, failures, mean output tokens of those windows."""
    minute = (load.at_ms - START_MS) // MINUTE_MS
    code = load.series * (int(minute[-1]) + 1) + minute
    found, where = np.unique(code, return_inverse=True)
    count = np.bincount(where)
    failed = np.bincount(where, load.failed)
    tokens = np.bincount(where, load.tokens)
    width = int(minute[-1]) + 1
    return {
        (load.names[c // width], START_MS + (c % width) * MINUTE_MS): (int(n), int(f), float(t / n))
        for c, n, f, t in zip(found.tolist(), count, failed, tokens, strict=True)
    }
