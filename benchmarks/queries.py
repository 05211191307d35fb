"""How long the API and the command line take over a large database.

`python -m benchmarks.queries` fills a SQLite file (long form: --windows 10000000 --incidents 100000), asks
the HTTP API for lists and single incidents, and starts `inferwatch incidents list` as a process. Answers are
checked against what was put in. Wall times: on a busy machine they say little.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import Engine, func, select

from benchmarks import rounds
from monitor.api.app import create_app
from monitor.api.server import serve_in_thread
from storage import schema
from storage.bulk import insert_many
from storage.engine import connect, reading, upgrade
from storage.names import FEATURE_COLUMNS
from storage.schema import table

MINUTE_MS, START_MS = 60_000, 1_772_409_600_000
SERIES, LIMIT = 1_000, 100


def window_rows(windows: int) -> Iterator[dict[str, Any]]:
    rng = np.random.default_rng(5)
    for n in range(windows):
        start = START_MS + n // SERIES * MINUTE_MS
        row: dict[str, Any] = dict.fromkeys(FEATURE_COLUMNS, 0.5)
        yield {
            **row, "request_count": 60.0, "series_id": n % SERIES + 1, "window_start_ms": start,
            "window_end_ms": start + MINUTE_MS, "score": 0.1, "gbdt_score": 0.1, "lstm_score": 0.1,
            "tail_probability": 0.5, "is_anomalous": bool(rng.random() < 0.001), "revision": 0,
            "metrics": None, "statistics": bytes(400),
        }  # fmt: skip


def incident_rows(incidents: int) -> Iterator[dict[str, Any]]:
    for n in range(incidents):
        at = START_MS + n * MINUTE_MS
        still = n >= incidents - 20
        yield {
            "incident_id": f"{n:08x}-0000-5000-8000-000000000000", "group_key": f"m{n % 50}",
            "status": "open" if still else "resolved", "severity": "major", "title": f"High latency {n}",
            "summary": "latency of m/x is 900 ms, usually 200 to 300 ms at this hour", "started_at_ms": at,
            "opened_at_ms": at, "acknowledged_at_ms": None, "last_fired_at_ms": at,
            "resolved_at_ms": None if still else at + 10 * MINUTE_MS, "resolution": None if still else "calm",
            "peak_score": 0.9, "series": json.dumps([f"m/{n % SERIES}"]), "firing": "[]", "revision": 2,
        }  # fmt: skip


def fill(engine: Engine, windows: int, incidents: int) -> None:
    upgrade(engine)
    partition = {"topic": "t", "partition": 0, "epoch": 1, "updated_at_ms": START_MS}
    with engine.begin() as connection:
        connection.execute(table(schema.PartitionTable).insert(), [partition])
        names = [
            {"id": i + 1, "name": f"m/{i}", "model": "m", "endpoint": str(i), "partition_id": 1,
             "first_seen_ms": START_MS, "last_record_ms": START_MS, "live": True, "windows": 0}
            for i in range(SERIES)
        ]  # fmt: skip
        connection.execute(table(schema.SeriesTable).insert(), names)
    for of, rows in (
        (schema.WindowTable, window_rows(windows)),
        (schema.IncidentTable, incident_rows(incidents)),
    ):
        while part := list(islice(rows, 50_000)):
            with engine.begin() as connection:
                insert_many(connection, table(of), part)
    with engine.begin() as connection:
        events = [
            {"incident_id": row["incident_id"], "revision": revision, "at_ms": row["opened_at_ms"],
             "kind": "opened", "actor": "inferwatch", "reason": "r", "detail": "{}"}
            for row in incident_rows(incidents) for revision in (1, 2)
        ]  # fmt: skip
        insert_many(connection, table(schema.IncidentEventTable), events)


def ask(url: str) -> tuple[float, Any]:
    started = time.perf_counter()
    with urllib.request.urlopen(url, timeout=60) as answer:
        text = answer.read()
    return 1000 * (time.perf_counter() - started), json.loads(text)


def api(url: str, windows: int, incidents: int, times: int) -> dict[str, list[float]]:
    """ms of every kind of question, asked `times` times; answers are checked."""
    rng = np.random.default_rng(1)
    newest = f"{incidents - 1:08x}-0000-5000-8000-000000000000"
    found: dict[str, list[float]] = {}
    for _ in range(times):
        n = int(rng.integers(0, incidents))
        one = f"{n:08x}-0000-5000-8000-000000000000"
        asked = {
            "list incidents": "incidents?limit=100",
            "list open incidents": "incidents?status=open",
            "show an incident": f"incidents/{one}",
            "list windows of a series": f"windows?series=m/{n % SERIES}&limit=100",
            "list series": "series?limit=100",
        }
        answers = {}
        for name, path in asked.items():
            ms, answers[name] = ask(f"{url}/api/v1/{path}")
            found.setdefault(name, []).append(ms)
        listed, shown = answers["list incidents"], answers["show an incident"]
        rows = listed if isinstance(listed, list) else next(v for v in listed.values() if isinstance(v, list))
        assert len(rows) == min(LIMIT, incidents) and rows[0]["incident_id"] == newest
        assert shown.get("incident_id", shown.get("incident", {}).get("incident_id")) == one
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--windows", type=int, default=200_000)
    parser.add_argument("--incidents", type=int, default=5_000)
    parser.add_argument("--times", type=int, default=100)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        database = f"sqlite:///{folder}/large.db"
        engine = connect(database)
        started = time.monotonic()
        fill(engine, options.windows, options.incidents)
        filled_s = time.monotonic() - started
        with reading(engine) as connection:
            count = select(func.count()).select_from(table(schema.WindowTable))
            assert connection.execute(count).scalar_one() == options.windows
        handle = serve_in_thread(create_app(engine, health=dict), "127.0.0.1", 0)
        found = api(handle.url, options.windows, options.incidents, options.times)
        handle.stop()
        engine.dispose()
        command = [sys.executable, "-m", "monitor.cli", "incidents", "list", "--json", "--database", database]
        for _ in range(5):
            started = time.perf_counter()
            done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=rounds.ROOT)
            assert "High latency" in done.stdout
            ms = 1000 * (time.perf_counter() - started)
            found.setdefault("`inferwatch incidents list`, a process", []).append(ms)
    print(f"{options.windows:,} windows, {options.incidents:,} incidents, filled in {filled_s:.0f} s")
    print("| question | median ms | p99 ms |\n|---|---|---|")
    for name, values in found.items():
        print(f"| {name} | {np.median(values):.1f} | {np.percentile(values, 99):.1f} |")
    rounds.save("queries", {"machine": rounds.machine(), "windows": options.windows,
                            "incidents": options.incidents, "ms": found}, options.out)  # fmt: skip


if __name__ == "__main__":
    main()
