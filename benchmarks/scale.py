"""What more series cost: CPU per record and window, memory, stored state, and a restart with all of them.

`python -m benchmarks.scale` (long form: --series 10 100 1000 10000 100000) sends the same traffic per series
through the whole path, from a file into SQLite, each size in a process of its own. --plot FILE draws cost
and memory over the number of series (needs matplotlib, of the dependency group `bench`).
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import load, rounds
from benchmarks.throughput import check, settings_for, whole_path

PER_WINDOW, MINUTES, LEAST_WINDOWS = 5, 4, 20_000


def minutes(series: int) -> int:
    """Of the log: few series have more of them, so that what is paid once per process does not show."""
    return max(MINUTES, min(240, LEAST_WINDOWS // series))


def one(series: int) -> dict[str, Any]:
    """The figures of one size, in this process; every window is checked."""
    from sqlalchemy import create_engine, text

    from monitor.sources.file import FileSource

    records = series * PER_WINDOW * minutes(series)
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as cold:
        path, warm = Path(folder) / "log.jsonl", Path(cold) / "warm.jsonl"
        command = [sys.executable, "-m", "benchmarks.scale", "--write", str(series), str(path)]
        subprocess.run(command, check=True, cwd=rounds.ROOT)  # its memory is not ours
        small = settings_for({"kind": "file"}, cold)
        few = load.make(2_000, 20, MINUTES)
        load.write(few, warm)
        whole_path(small, FileSource([warm], small.source), len(few))
        settings = settings_for({"kind": "file"}, folder)
        before, wall = rounds.cpu_s(), time.monotonic()
        whole_path(settings, FileSource([path], settings.source), records)
        cpu, wall = rounds.cpu_s() - before, time.monotonic() - wall
        states = " + ".join(f"length(coalesce({kind}_state, ''))" for kind in ("detector", "window", "alert"))
        query = f"select count(*), avg({states}) from series"
        with create_engine(f"sqlite:///{folder}/bench.db").connect() as connection:
            stored, state_bytes = connection.execute(text(query)).one()
        restart_cpu, restart_s = restart(settings, path)
        memory_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        truth = load.truth(load.make(records, series, minutes(series)))
        right = check(folder, truth, unfinished=2 * series)
    return {
        "series": stored,
        "records": records,
        "windows_right": right,
        "cpu_s": cpu,
        "wall_s": wall,
        "cpu_us_per_record": 1e6 * cpu / records,
        "cpu_us_per_window": 1e6 * cpu / max(right, 1),
        "state_bytes_per_series": state_bytes,
        "peak_memory_mb": memory_mb,
        "restart_cpu_s": restart_cpu,
        "restart_s": restart_s,
    }


def restart(settings: Any, path: Path) -> tuple[float, float]:
    """(CPU seconds, seconds) from opening the database to the first batch of records worked on."""
    from monitor.runtime import Runtime
    from monitor.sources.file import FileSource

    before, started = rounds.cpu_s(), time.monotonic()
    with Runtime(settings) as runtime:
        pipeline = runtime.pipeline(FileSource([path], settings.source))
        while not pipeline.records_read and pipeline.turn(0.0, 1_000):
            pass
        return rounds.cpu_s() - before, time.monotonic() - started


def plot(found: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """CPU per window and per record, and the peak of memory, over the number of series; medians."""
    from matplotlib import pyplot

    series = [int(name) for name in found]
    figure, (cost, memory) = pyplot.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    for axes, column, label in (
        (cost, "cpu_us_per_window", "per window"), (cost, "cpu_us_per_record", "per record"),
        (memory, "peak_memory_mb", "peak"),
    ):  # fmt: skip
        axes.plot(series, [median(r[column] for r in runs) for runs in found.values()], "o-", label=label)
    for axes, name in ((cost, "CPU, microseconds"), (memory, "memory, MB")):
        axes.set(xscale="log", yscale="log", xlabel="series", ylabel=name)
        axes.grid(visible=True, which="major", alpha=0.3)
    cost.set_ylim(bottom=1)
    cost.legend()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--series", type=int, nargs="+", default=[10, 100, 1_000, 10_000])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--write", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.write:
        series, path = int(options.write[0]), Path(options.write[1])
        load.write(load.make(series * PER_WINDOW * minutes(series), series, minutes(series)), path)
        return
    if options.one:
        print(json.dumps(one(options.one)))
        return
    here = [sys.executable, "-m", "benchmarks.scale", "--one"]
    found = rounds.interleave(
        {f"{n}": lambda n=n: rounds.child([*here, str(n)]) for n in options.series}, options.rounds
    )
    columns = ("cpu_us_per_record", "cpu_us_per_window", "state_bytes_per_series", "peak_memory_mb",
               "restart_cpu_s", "restart_s")  # fmt: skip
    print("| series | " + " | ".join(columns) + " |\n|" + "---|" * (len(columns) + 1))
    for name, results in found.items():
        shown = (rounds.spread([r[column] for r in results]) for column in columns)
        print(f"| {int(name):,} | " + " | ".join(shown) + " |")
    if options.plot:
        plot(found, options.plot)
    rounds.save("scale", {"machine": rounds.machine(), "results": found}, options.out)


if __name__ == "__main__":
    main()
