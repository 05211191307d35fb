"""How many windows per second are scored, beside AWS Random Cut Forest and river's half-space trees.

Ours: features, both detectors, calibration and alarm decision for all series at once, on one core. RCF
(4.4.0, 30 trees, shingle 8; jars as benchmarks/rcf.py finds them) and half-space trees (RIVER_PYTHON names
an environment with river) see 12 statistics of the same windows, one series after the other.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import rcf, rounds

COLUMNS = 12
RIVER = """
import json, sys, time, numpy as np
from river import anomaly
data = np.load(sys.argv[1])
started = time.process_time()
for rows in data:
    forest = anomaly.HalfSpaceTrees(n_trees=25, height=8, window_size=250, seed=7)
    for row in rows.tolist():
        point = dict(enumerate(row))
        forest.score_one(point)
        forest.learn_one(point)
print(json.dumps({"windows": data.shape[0] * data.shape[1], "cpu_s": time.process_time() - started}))
"""


def batches(series: int, windows: int) -> list[Any]:
    """`windows` batches of all series: Poisson traffic around levels of their own."""
    from detectors.types import STATISTICS, WindowBatch
    from tests.detector_windows import WINDOW_MS
    from tests.detector_windows import windows as of_one_service

    rng = np.random.default_rng(3)
    values, counts = of_one_service(rng, series * windows)
    values = values.reshape(series, windows, len(STATISTICS))
    counts = counts.reshape(series, windows, len(STATISTICS))
    names = [f"m/{i:06d}" for i in range(series)]
    empty = np.zeros(series, np.bool_)
    return [
        WindowBatch(t * WINDOW_MS, WINDOW_MS, names, values[:, t].copy(), counts[:, t].copy(), {}, empty)
        for t in range(windows)
    ]


def ours(series: int, windows: int, halves: int) -> dict[str, Any]:
    """In a process of its own; one thread, or large batches in two halves as the daemon does it. The first
    batches warm up and are not counted."""
    import detectors.ensemble
    from detectors.ensemble import Ensemble
    from detectors.types import WindowBatch

    if not halves:
        detectors.ensemble.SIDE_BY_SIDE = sys.maxsize
    ensemble = Ensemble.prior(false_alarms_per_week=1.0, window_ms=60_000)
    states, given = ensemble.new_states(), batches(series, windows + 2)
    for batch in given[:2]:
        ensemble.score(batch, states)
    before, wall = rounds.cpu_s(), time.monotonic()
    scores = [ensemble.score(batch, states) for batch in given[2:]]
    cpu, wall = rounds.cpu_s() - before, time.monotonic() - wall
    alone, few = ensemble.new_states(), slice(0, min(series, 50))
    for batch, whole in zip(given, [None, None, *scores], strict=True):
        part = WindowBatch(
            batch.window_start_ms, batch.window_ms, batch.series[few], batch.values[few], batch.counts[few],
            {}, batch.new_version[few],
        )  # fmt: skip
        found = ensemble.score(part, alone)
        if whole is not None:
            np.testing.assert_array_equal(found.score, whole.score[few])
            assert np.isfinite(whole.gbdt_score).all() and np.isfinite(whole.lstm_score).all()
    return {"windows": series * windows, "cpu_s": cpu, "wall_s": wall}


def forest(data: np.ndarray[Any, Any]) -> dict[str, Any]:
    """RCF with its own clock around the scoring alone."""
    source = rcf.DRIVER.replace("width * 4", "width * 8").replace("shingleSize(4)", "shingleSize(8)")
    source = source.replace(
        "int rows = in.readInt();",
        "int rows = in.readInt(); long used = 0, seen = 0;"
        "var clock = java.lang.management.ManagementFactory.getThreadMXBean();",
    )
    source = source.replace(
        "out.writeDouble(forest.process(point, 60L * t).getRCFScore());",
        "long before = clock.getCurrentThreadCpuTime();"
        "double found = forest.process(point, 60L * t).getRCFScore();"
        "used += clock.getCurrentThreadCpuTime() - before; seen++; out.writeDouble(found);",
    )
    report = 'System.out.println("{\\"windows\\": " + seen + ", \\"cpu_s\\": " + used / 1e9 + "}");'
    source = source.replace("out.close();", f"out.close(); {report}")
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        (here / "Driver.java").write_text(source, encoding="utf-8")
        path = os.pathsep.join([*(str(jar) for jar in rcf.find_jars()), folder])
        subprocess.run(["javac", "-cp", path, "-d", folder, str(here / "Driver.java")], check=True)
        with (here / "in").open("wb") as file:
            file.write(np.array(len(data), ">i4").tobytes())
            for rows in data:
                file.write(np.array(rows.shape, ">i4").tobytes() + rows.astype(">f8").tobytes())
        return rounds.child(["java", "-cp", path, "Driver", str(here / "in"), str(here / "out")])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--series", type=int, default=10_000)
    parser.add_argument("--windows", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--ours", nargs=3, type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.ours:
        print(json.dumps(ours(*options.ours)))
        return
    here = [sys.executable, "-m", "benchmarks.scoring", "--ours"]
    first, halves = f"ours, {options.series:,} series", f"ours, {options.series:,} series in two halves"

    def child(series: int, halves: int) -> Callable[[], dict[str, Any]]:
        command = [*here, str(series), str(options.windows), str(halves)]
        return partial(rounds.child, command, OMP_NUM_THREADS="1")

    contenders = {f"ours, {n:,} series": child(n, 0) for n in (100, 1_000, options.series)}
    contenders[halves] = child(options.series, 1)
    given = batches(8, 400)
    data = np.nan_to_num(np.stack([batch.values[:, :COLUMNS] for batch in given], axis=1))
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder) / "windows.npy", data)
        if rcf.find_jars():
            contenders["AWS RCF, shingle 8"] = partial(forest, data)
        if python := os.environ.get("RIVER_PYTHON"):
            contenders["river half-space trees"] = partial(
                rounds.child, [python, "-c", RIVER, f"{folder}/windows.npy"]
            )
        found = rounds.interleave(contenders, options.rounds)
    print("| contender | windows per CPU second |\n|---|---|")
    rates = {name: [{"rate": r["windows"] / r["cpu_s"]} for r in results] for name, results in found.items()}
    for name, results in rates.items():
        print(f"| {name} | {rounds.spread([r['rate'] for r in results])} |")
    walls = {name: [{"rate": r["windows"] / r["wall_s"]} for r in found[name]] for name in (first, halves)}
    print(f"{halves} : {first}, wall time = {rounds.spread(rounds.ratios(walls, halves, first, 'rate'))}")
    compared = {to: rounds.ratios(rates, first, to, "rate") for to in rates if not to.startswith("ours")}
    for to, values in compared.items():
        print(f"{first} : {to} = {rounds.spread(values)}")
    rounds.save("scoring", {"machine": rounds.machine(), "results": found, "ratios": compared}, options.out)


if __name__ == "__main__":
    main()
