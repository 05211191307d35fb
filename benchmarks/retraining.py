"""What a training on a large history takes, and how far it slows the ingestion beside it.

`python -m benchmarks.retraining` fills a SQLite file with one window a minute of 1,000 series (long form:
--days 30, 43 million windows), whose statistics are those of SERVICES imitated services at shifted times.
Logs are then read through the whole path into the same file, alone and while `train_at` runs as the daemon
runs it: a process of its own, behind everything else in the queue for the CPU. Printed are its wall time,
its largest memory, and the rate of the ingestion beside it, in records per second of wall time.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from sqlalchemy import Engine, text

from benchmarks import load, rounds
from benchmarks.large_database import DAY, SERIES, START_MS, insert_series, insert_windows, span_ms
from benchmarks.throughput import settings_for, whole_path

SERVICES, PAST = 40, 3 * DAY  # imitated services, and windows of each before they repeat
LOG_SERIES, LOG_MINUTES = 100, 60


def fill(engine: Engine, windows: int) -> None:
    """The windows, each with the statistics of one of SERVICES services."""
    from detectors.pack import pack_rows
    from tests.detector_windows import windows as of_one_service

    insert_series(engine, windows)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE imitated (i INTEGER PRIMARY KEY, statistics BLOB)"))
        for service in range(SERVICES):
            rng = np.random.default_rng(service)
            values, counts = of_one_service(rng, PAST, requests=float(rng.uniform(5, 200)))
            rows = zip(range(service * PAST, (service + 1) * PAST), pack_rows(values, counts), strict=True)
            connection.exec_driver_sql("INSERT INTO imitated VALUES (?, ?)", list(rows))
    series, minute = f"(i / {DAY} % {SERIES})", f"(i / {SERIES * DAY} * {DAY} + i % {DAY})"
    place = f"{series} % {SERVICES} * {PAST} + ({minute} + {series} * 37) % {PAST}"
    insert_windows(engine, windows, f"(SELECT statistics FROM imitated WHERE imitated.i = {place})")


def train(folder: str, windows: int) -> dict[str, Any]:
    """One training on everything stored, in this process."""
    from monitor.jobs import train_at
    from monitor.models import LAST_IN_QUEUE

    os.nice(LAST_IN_QUEUE)
    started = time.monotonic()
    told = train_at(settings_for({"kind": "file"}, folder), START_MS + span_ms(windows))
    return {
        "wall_s": time.monotonic() - started, "cpu_s": rounds.cpu_s(), "promoted": told["promoted"],
        "reason": told["reason"], "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "events": told["metrics"].get("events"),
    }  # fmt: skip


def ingest(folder: str, log: str, records: int) -> dict[str, Any]:
    """A log through the whole path into the large file. A short run elsewhere warms up."""
    from monitor.sources.file import FileSource
    from storage.engine import connect, upgrade

    def run_in(place: str, path: str, wanted: int) -> tuple[float, float]:
        settings = settings_for({"kind": "file"}, place)
        started, cpu = time.monotonic(), rounds.cpu_s()
        read = whole_path(settings, FileSource([Path(path)], settings.source), wanted)
        assert read == wanted, (read, wanted)
        return time.monotonic() - started, rounds.cpu_s() - cpu

    with tempfile.TemporaryDirectory() as cold:
        upgrade(connect(f"sqlite:///{cold}/bench.db"))
        run_in(cold, f"{folder}/warm.jsonl", 10_000)
    wall, cpu = run_in(folder, log, records)
    return {"records": records, "wall_s": wall, "cpu_s": cpu}


def write_logs(folder: str, number: int, records: int) -> list[str]:
    """Logs of one shape, each with series of its own, in a folder that was used before, too."""
    made, run = load.make(records, LOG_SERIES, LOG_MINUTES), round(time.time())
    paths = []
    for n in range(number):
        names = [name.replace("chat", f"run{run}-{n}") for name in made.names]
        paths.append(f"{folder}/log-{run}-{n}.jsonl")
        messages = load.write(replace(made, names=names), Path(paths[-1]))
    Path(folder, "warm.jsonl").write_bytes(b"\n".join(messages[:10_000]) + b"\n")
    return paths


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--days", type=int, default=2)
    parser.add_argument("--records", type=int, default=400_000, help="of each log")
    parser.add_argument("--logs", type=int, default=12, help="a third is read before, the rest beside it")
    parser.add_argument("--folder", type=Path, help="of the database, kept; filled if it is not there")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--one", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    windows = options.days * DAY * SERIES
    if options.one:
        kind, folder, *log = options.one
        result = train(folder, windows) if kind == "train" else ingest(folder, log[0], options.records)
        print(json.dumps(result))
        return
    from storage.engine import connect

    here = [sys.executable, "-m", "benchmarks.retraining", f"--days={options.days}"]
    here += [f"--records={options.records}", "--one"]
    with tempfile.TemporaryDirectory() as thrown_away:
        folder = str(options.folder or thrown_away)
        if not Path(folder, "bench.db").exists():
            started = time.monotonic()
            fill(connect(f"sqlite:///{folder}/bench.db"), windows)
            print(
                f"{windows:,} windows of {SERIES:,} series in {time.monotonic() - started:.0f} s", flush=True
            )
        logs = write_logs(folder, options.logs, options.records)
        alone = [rounds.child([*here, "ingest", folder, log]) for log in logs[: options.logs // 3]]
        command = [*here, "train", folder]
        training = subprocess.Popen(
            command, cwd=rounds.ROOT, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": str(rounds.ROOT)},
        )  # fmt: skip
        beside = []
        for log in logs[options.logs // 3 :]:
            result = rounds.child([*here, "ingest", folder, log])
            if training.poll() is not None:
                break
            beside.append(result)
        told, _ = training.communicate()
        if training.returncode != 0:
            raise SystemExit(f"the training ended with {training.returncode}")
        trained = json.loads(told.strip().splitlines()[-1])
    report(trained, alone, beside)
    rounds.save(
        "retraining",
        {"machine": rounds.machine(), "windows": windows, "training": trained, "alone": alone,
         "beside": beside},
        options.out,
    )  # fmt: skip


def report(trained: dict[str, Any], alone: list[dict[str, Any]], beside: list[dict[str, Any]]) -> None:
    print(f"training: {trained}")
    rates = {}
    for name, results in (("alone", alone), ("beside the training", beside)):
        per_s = [r["records"] / r["wall_s"] / 1000 for r in results]
        if per_s:
            rates[name] = median(per_s)
            print(f"ingestion {name}: {rounds.spread(per_s)} thousand records/s, {len(per_s)} logs")
    if len(rates) == 2:
        slower = 100 * (1 - rates["beside the training"] / rates["alone"])
        print(f"slower beside the training: {slower:.0f}% of the median rate")


if __name__ == "__main__":
    main()
