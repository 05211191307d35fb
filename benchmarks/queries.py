"""How long the API and the command line take over a large database.

`python -m benchmarks.queries` fills a SQLite file (long form: --windows 10000000 --incidents 100000), asks
the HTTP API for lists and single incidents, starts `inferwatch incidents list` as a process, and deletes a
tenth of the windows. Answers are checked against what was put in. Wall times: on a busy machine they say
little. --database postgresql starts a server of its own.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import Engine, func, select

from benchmarks import rounds
from benchmarks.large_database import MINUTE_MS, SERIES, START_MS, fill, incident_id, span_ms
from monitor.api.app import create_app
from monitor.api.server import serve_in_thread
from monitor.warming import spare_the_collector
from storage import schema
from storage.engine import connect, reading
from storage.retention import purge
from storage.schema import table

LIMIT = 100


def ask(url: str) -> tuple[tuple[float, float], Any]:
    """((ms of wall time, ms of CPU of this process, server and client), the answer)."""
    started, cpu = time.perf_counter(), rounds.cpu_s()
    with urllib.request.urlopen(url, timeout=60) as answer:
        text = answer.read()
    return (1000 * (time.perf_counter() - started), 1000 * (rounds.cpu_s() - cpu)), json.loads(text)


def api(url: str, incidents: int, times: int) -> dict[str, list[tuple[float, float]]]:
    """(ms of wall time, ms of CPU) of every kind of question, asked `times` times, the first one to the
    process included; answers are checked."""
    rng = np.random.default_rng(1)
    found: dict[str, list[tuple[float, float]]] = {}
    hour_ago = START_MS + (incidents - 60) * MINUTE_MS
    since = datetime.fromtimestamp(hour_ago / 1000, UTC).isoformat().replace("+00:00", "Z")
    for _ in range(times):
        n = int(rng.integers(0, incidents))
        asked = {
            "list incidents": "incidents?limit=100",
            "list open incidents": "incidents?status=open",
            "list critical incidents": "incidents?severity=critical",
            "list incidents of a series": f"incidents?series=m/{n % SERIES}",
            "list incidents since an hour ago": f"incidents?since={since}",
            "list alerts of a series": f"alerts?series=m/{n % SERIES}",
            "list deliveries of a channel": "deliveries?channel=c1",
            "show an incident": f"incidents/{incident_id(n)}",
            "list windows of a series": f"windows?series=m/{n % SERIES}&limit=100",
            "list series": "series?limit=100",
        }
        answers = {}
        for name, path in asked.items():
            ms, answers[name] = ask(f"{url}/api/v1/{path}")
            found.setdefault(name, []).append(ms)
        listed, shown = items(answers["list incidents"]), answers["show an incident"]
        assert len(listed) == min(LIMIT, incidents) and listed[0]["incident_id"] == incident_id(incidents - 1)
        assert shown.get("incident_id", shown.get("incident", {}).get("incident_id")) == incident_id(n)
        assert len(items(answers["list open incidents"])) == min(20, incidents)
        assert {row["severity"] for row in items(answers["list critical incidents"])} == {"critical"}
        assert 60 <= len(items(answers["list incidents since an hour ago"])) <= 100 or incidents < 100
        assert items(answers["list alerts of a series"])[0]["series"] == f"m/{n % SERIES}"
        assert items(answers["list windows of a series"])
    return found


def items(answer: Any) -> list[dict[str, Any]]:
    """The rows of a list as the API gives it."""
    if isinstance(answer, list):
        return answer
    return next(value for value in answer.values() if isinstance(value, list))


def terminal(database: str) -> list[tuple[float, float]]:
    """(ms of wall time, ms of CPU) of `inferwatch incidents list`, a process; the first is not counted."""
    command = [sys.executable, "-m", "monitor.cli", "incidents", "list", "--json", "--database", database]
    found = []
    for _ in range(6):
        started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=rounds.ROOT)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        found.append((1000 * (time.perf_counter() - started), 1000 * cpu_s))
        assert "High latency" in done.stdout
    return found[1:]


def retention(engine: Engine, windows: int) -> dict[str, float]:
    """Delete the oldest tenth of the time that windows cover, as the daily job does."""
    whole_ms, newest_ms = span_ms(windows), START_MS + span_ms(windows) - MINUTE_MS
    keep_ms = whole_ms * 9 // 10
    old = table(schema.WindowTable).c.window_start_ms < newest_ms - keep_ms
    with reading(engine) as connection:
        wanted = connection.execute(select(func.count()).where(old)).scalar_one()
    keep = {"keep_windows_ms": keep_ms, "keep_rejected_ms": 10**12, "keep_deliveries_ms": 10**13}
    started, cpu = time.perf_counter(), rounds.cpu_s()
    deleted = purge(engine, now_ms=newest_ms + MINUTE_MS, **keep)
    assert deleted["windows"] == wanted > 0, (deleted, wanted)
    return {
        "windows": deleted["windows"], "wall_s": time.perf_counter() - started, "cpu_s": rounds.cpu_s() - cpu,
    }  # fmt: skip


@contextmanager
def database_of(kind: str) -> Iterator[str]:
    """The URL of an empty database."""
    if kind == "postgresql":
        from tests import services

        server = services.Postgres().start()
        try:
            yield services.create_database(server.url)
        finally:
            server.stop()
        return
    with tempfile.TemporaryDirectory() as folder:
        yield f"sqlite:///{folder}/large.db"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--windows", type=int, default=200_000)
    parser.add_argument("--incidents", type=int, default=5_000)
    parser.add_argument("--times", type=int, default=100)
    parser.add_argument("--database", choices=("sqlite", "postgresql"), default="sqlite")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    with database_of(options.database) as database:
        engine = connect(database)
        started = time.monotonic()
        fill(engine, options.windows, options.incidents)
        filled_s = time.monotonic() - started
        with reading(engine) as connection:
            count = select(func.count()).select_from(table(schema.WindowTable))
            assert connection.execute(count).scalar_one() == options.windows
        print(f"{options.windows:,} windows, {options.incidents:,} incidents in {options.database}, "
              f"filled in {filled_s:.0f} s", flush=True)  # fmt: skip
        spare_the_collector()  # as `run` does
        handle = serve_in_thread(create_app(engine, health=dict), "127.0.0.1", 0)
        found = api(handle.url, options.incidents, options.times)
        handle.stop()
        found["`inferwatch incidents list`, a process"] = terminal(database)
        print("| question | wall ms: median | p99 | CPU ms: median | p99 |\n|---|---|---|---|---|")
        for name, values in found.items():
            figures = [f(v) for v in np.array(values).T for f in (np.median, partial(np.percentile, q=99))]
            print(f"| {name} | {' | '.join(f'{figure:.1f}' for figure in figures)} |", flush=True)
        purged = retention(engine, options.windows)
        print("retention: {windows:,} windows in {wall_s:.1f} s, CPU {cpu_s:.1f} s".format(**purged))
        engine.dispose()
    name = "queries" if options.database == "sqlite" else "queries-postgresql"
    rounds.save(name, {"machine": rounds.machine(), "windows": options.windows, "retention": purged,
                       "incidents": options.incidents, "ms": found}, options.out)  # fmt: skip


if __name__ == "__main__":
    main()
