"""What each technique of the LSTM brings: every option switched on its own, on real labelled servers.

    python -m benchmarks.lstm_ablation DIR [--files omi-1,omi-3,...]

DIR holds parquet files of ready-made windows (shared/data/labelled/ASD). Per variant, means over the files:
held-out likelihood (nats per metric and row over the normal test rows, lower is better), VUS-PR of the
forecaster alone, bytes of the artefact, serving steps per second and core at a batch of 10,000, seconds of
training. Labels are used to judge only.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.vus import vus_pr, window_of
from detectors.compress import distil, load_quantised, prune, quantise
from detectors.lstm import LstmModel, LstmOptions, LstmSequence
from detectors.lstm_train import train_lstm
from detectors.readymade import evidence as ev

BASE = LstmOptions()


def switched(base: LstmOptions) -> dict[str, LstmOptions]:
    """`base`, and each technique switched off, or on, alone."""
    changes: dict[str, dict[str, Any]] = {
        "as shipped": {},
        "no weight decay": {"weight_decay": 0.0},
        "no dropout": {"dropout": 0.0},
        "dropout 0.3": {"dropout": 0.3},
        "no layer norm": {"layer_norm": False},
        "no gradient clipping": {"clip_norm": 0.0},
        "no averaging of the weights": {"averaging": 0.0},
        "averaging over about 1,000 steps": {"averaging": 0.999},
        "no early stopping (all epochs, all data)": {"early_stopping": 0},
        "torch's own initialisation": {"initialisation": "default"},
        "no residual connections": {"residual": False},
        "attention over 8 summaries": {"attention": 8},
        "noise 0.05": {"noise_std": 0.05},
        "jitter 0.1": {"jitter_std": 0.1},
        "noise 0.05 and jitter 0.1": {"noise_std": 0.05, "jitter_std": 0.1},
        "no masking": {"mask_rate": 0.0},
        "Gaussian instead of Student-t": {"dof": math.inf},
        "two layers": {"layers": 2},
        "16 units": {"hidden": 16},
        "64 units": {"hidden": 64},
    }
    return {name: dataclasses.replace(base, **change) for name, change in changes.items()}


@dataclass(frozen=True, slots=True, eq=False)
class Server:
    """One file, normalised by its training part."""

    z: np.ndarray  # [n, C], float32
    mask: np.ndarray
    time: np.ndarray  # [n, 0]
    rows: int  # of the training part
    labels: np.ndarray  # of the rest

    def training(self) -> list[LstmSequence]:
        return [LstmSequence(self.z[: self.rows], self.mask[: self.rows], self.time[: self.rows])]


def read_server(path: Path) -> Server:
    table = pd.read_parquet(path)
    metrics = [c for c in table.columns if c not in ("timestamp", "split", "label")]
    values, train = table[metrics].to_numpy(dtype=float), (table["split"] == "train").to_numpy()
    rows = int(train.sum())
    low, middle, high = np.quantile(values[:rows], [0.25, 0.5, 0.75], axis=0)
    unit = np.maximum(np.maximum((high - low) / 1.349, 0.1 * values[:rows].std(axis=0)), 1e-3)
    z = np.clip((values - middle) / unit, -8, 8).astype(np.float32)
    labels = table["label"].to_numpy(dtype=int)[rows:]
    return Server(z, np.ones(z.shape, bool), np.zeros((len(z), 0), np.float32), rows, labels)


def quality(model: LstmModel, server: Server) -> tuple[float, float]:
    """-> (held-out likelihood on normal test rows, VUS-PR)."""
    trace = model.sequence(server.z, server.mask, server.time)
    errors = ev.robust_errors((server.z - trace.mean).astype(float), server.rows)
    score = ev.smooth(ev.centred(ev.many(errors), server.rows), 15.0)[server.rows :]
    normal = trace.nll[server.rows :][server.labels == 0]
    return float(normal.mean()), vus_pr(server.labels, score, window_of(len(server.labels)))


def steps_per_second(model: LstmModel, batch: int = 10_000) -> float:
    random = np.random.default_rng(0)
    z = random.normal(size=(batch, model.feature_count)).astype(np.float32)
    mask, times = np.ones(z.shape, bool), np.zeros((batch, model.time_count), np.float32)
    extra = np.zeros((batch, model.extra_count), np.float32)
    state, best = model.new_state(batch), math.inf
    for _ in range(7):
        began = time.perf_counter()
        state = model.step(z, mask, times, state, extra).state
        best = min(best, time.perf_counter() - began)
    return batch / best


Variant = Callable[[Server], tuple[LstmModel, int, float]]
"""server -> (model, bytes of its artefact, seconds of training)"""


def trained(options: LstmOptions) -> Variant:
    def make(server: Server) -> tuple[LstmModel, int, float]:
        model, report = train_lstm(server.training(), options)
        return model, len(model.to_bytes()), report.seconds

    return make


def compressed(kind: str) -> Variant:
    def make(server: Server) -> tuple[LstmModel, int, float]:
        began = time.perf_counter()
        if kind == "int8":
            data = quantise(train_lstm(server.training(), BASE)[0])
            model, size = load_quantised(data), len(data)
        elif kind == "pruned":
            model = prune(train_lstm(server.training(), BASE)[0], 0.5, server.training())
            size = len(model.to_bytes())
        else:
            teacher, _ = train_lstm(server.training(), dataclasses.replace(BASE, hidden=64))
            model = distil(teacher, dataclasses.replace(BASE, hidden=16), server.training())
            size = len(model.to_bytes())
        return model, size, time.perf_counter() - began

    return make


def variants() -> dict[str, Variant]:
    """Every row of the table."""
    table = {name: trained(options) for name, options in switched(BASE).items()}
    table["as shipped, int8 weights"] = compressed("int8")
    table["as shipped, half of the weights pruned"] = compressed("pruned")
    table["16 units, distilled from 64"] = compressed("distilled")
    return table


def main(directory: Path, names: list[str]) -> None:
    servers = [read_server(directory / f"{name}.parquet") for name in names]
    print("| variant | held-out nats | VUS-PR | kB | steps/s | training s |\n|---|---|---|---|---|---|")
    for name, make in variants().items():
        rows = []
        for server in servers:
            model, size, seconds = make(server)
            rows.append((*quality(model, server), size / 1000, steps_per_second(model), seconds))
        nll, vus, size, speed, seconds = np.mean(rows, axis=0)
        print(f"| {name} | {nll:.3f} | {vus:.3f} | {size:.0f} | {speed:,.0f} | {seconds:.1f} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=Path)
    parser.add_argument("--files", default="omi-1,omi-3,omi-5,omi-7")
    arguments = parser.parse_args()
    main(arguments.directory, arguments.files.split(","))
