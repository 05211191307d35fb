"""Reduce the real workloads to the small file that the package ships, and write the demo's sample log.

    python benchmarks/build_sample_data.py workloads SHARED_DATA   # -> monitor/data/workloads.npz
    python benchmarks/build_sample_data.py demo                    # -> monitor/data/demo/

SHARED_DATA holds servegen/ (rates.parquet, tokens.parquet) and traces/; see monitor/data/ATTRIBUTION.md.
"""

from __future__ import annotations

import argparse
import csv
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from monitor.simulate import SimulateOptions, simulate
from monitor.workload import sample_profile

Float64 = npt.NDArray[np.float64]

DATA = Path(__file__).resolve().parent.parent / "monitor" / "data"
QUANTILES = np.array([0, 0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999, 1])
BINS = 2016  # 14 days of 10 minutes
BIN_S = 600


def read_servegen(folder: Path) -> dict[str, tuple[Float64, Float64, Float64, Float64, Float64]]:
    """name -> rate per s [2016], cv [2016], slot number [k], input and output token quantiles [k, 16]."""
    rates = pq.read_table(folder / "rates.parquet").to_pylist()
    tokens = pq.read_table(folder / "tokens.parquet").to_pylist()
    found = {}
    for row in rates:
        slots = sorted((t for t in tokens if t["client"] == row["client"]), key=lambda t: float(t["t_s"]))
        found[f"servegen-{row['client']}"] = (
            np.array(row["rate_per_s"], float),
            np.array(row["cv"], float),
            np.array([t["t_s"] // 21_600 for t in slots], float),
            np.array([t["input_tokens_q"] for t in slots], float),
            np.array([t["output_tokens_q"] for t in slots], float),
        )
    return found


def read_trace(path: Path) -> tuple[Float64, Float64, Float64]:
    """Arrival times in s from the first request, input tokens, output tokens of one trace."""
    with path.open(encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    if "TIMESTAMP" in rows[0]:
        times = [datetime.fromisoformat(row["TIMESTAMP"][:26]).timestamp() for row in rows]
        names = ("ContextTokens", "GeneratedTokens")
    else:
        times = [float(row["timestamp_ms"]) / 1000 for row in rows]
        names = ("input_tokens", "output_tokens")
    inputs, outputs = (np.array([row[name] for row in rows], float) for name in names)
    at = np.array(times)
    return np.sort(at - at.min()), inputs, outputs


def tile_trace(at_s: Float64, inputs: Float64, outputs: Float64) -> tuple[Float64, ...]:
    """One recorded hour as a fortnight: its own 10-minute rates, under a day-and-night wave of our making."""
    bins = max(int(at_s.max() // BIN_S), 1)
    number = (at_s // BIN_S).astype(int)
    rate = np.bincount(number, minlength=bins)[:bins] / BIN_S
    gaps = [np.diff(at_s[number == b]) for b in range(bins)]
    cv = np.array([float(g.std() / g.mean()) if g.size > 1 and g.mean() > 0 else 1.0 for g in gaps])
    hour = np.arange(BINS) / 6.0
    wave = 0.62 - 0.38 * np.cos(2 * np.pi * (hour - 3) / 24)
    weekend = np.where((hour // 24) % 7 >= 5, 0.55, 1.0)
    slot = np.zeros(1)
    return (
        np.resize(rate, BINS) * wave * weekend,
        np.resize(cv, BINS),
        slot,
        np.quantile(inputs, QUANTILES)[None, :],
        np.quantile(outputs, QUANTILES)[None, :],
    )


def build_workloads(source: Path) -> Path:
    """Write monitor/data/workloads.npz (under 1 MB)."""
    found: dict[str, tuple[Float64, ...]] = dict(read_servegen(source / "servegen"))
    traces = source / "traces"
    found["azure-code"] = tile_trace(*read_trace(traces / "azure_llm_2023_code.csv"))
    found["mooncake-chat"] = tile_trace(*read_trace(traces / "mooncake_conversation.csv"))
    names = sorted(found)
    target = DATA / "workloads.npz"
    np.savez_compressed(
        target,
        names=np.array(names),
        quantiles=QUANTILES,
        rate_per_s=np.stack([found[name][0] for name in names]).astype("f4"),
        cv=np.stack([found[name][1] for name in names]).astype("f4"),
        slot_owner=np.concatenate([np.full(len(found[name][2]), i) for i, name in enumerate(names)]).astype(
            "i2"
        ),
        slot=np.concatenate([found[name][2] for name in names]).astype("i2"),
        input_tokens_q=np.concatenate([found[name][3] for name in names]).astype("f4"),
        output_tokens_q=np.concatenate([found[name][4] for name in names]).astype("f4"),
    )
    return target


DEMO_DAYS = 3
DEMO_SERVICES = (  # model, endpoint, kind, workload, records per s
    ("chat-large", "assistant", "llm", "servegen-48", 0.14),
    ("chat-small", "support", "llm", "servegen-91", 0.12),
    ("code-complete", "editor", "llm", "azure-code", 0.07),
    ("rank", "search", "classifier", "servegen-34", 0.16),
    ("embed", "documents", "embedding", "servegen-56", 0.07),
)
DEMO_FAULTS = (
    "slow@chat-large/assistant:1d14h5m+40m*3",
    "bad_version@chat-small/support:1d20h30m+25m*0.4",
    "input_shift@chat-large/assistant:2d1h+2h*1.25",
    "outage@rank/search:2d3h10m+20m",
    "memory_leak@embed/documents:2d7h+4h*0.6",
    "runaway_outputs@code-complete/editor:2d10h40m+45m*0.6",
    "accuracy_drop@rank/search:2d14h30m+2h*0.6",
    "slow_tail@chat-large/assistant:2d18h15m+1h*12",
    "error_burst@chat-small/support:2d23h20m+40m*0.35",
)


def build_demo() -> Path:
    """Write monitor/data/demo/services.jsonl.gz and truth.json: quiet for a day and a half, then faults."""
    folder = DATA / "demo"
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(20260105)
    profiles = []
    for model, endpoint, kind, workload, rate in DEMO_SERVICES:
        drawn = sample_profile(
            rng,
            model=model,
            endpoint=endpoint,
            clients=(workload,),
            rate_per_s=rate,
            kind=kind,
            complete=True,
        )
        absent = frozenset({"gpu_util", "queue_ms"} if kind != "llm" else {"label", "confidence"})
        profiles.append(replace(drawn, absent=absent, shift_bins=0, hiccups_per_day=0.3, label_share=0.3))
    options = SimulateOptions(
        out=folder / "services.jsonl.gz",
        days=DEMO_DAYS,
        seed=5,
        faults=DEMO_FAULTS,
        truth=folder / "truth.json",
    )
    summary = simulate(options, profiles=profiles)
    print(f"{summary.records:,} records: {summary.series}")
    assert options.out is not None
    return options.out


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("workloads").add_argument("source", type=Path)
    commands.add_parser("demo")
    arguments = parser.parse_args()
    target = build_demo() if arguments.command == "demo" else build_workloads(arguments.source)
    print(f"{target}: {target.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
