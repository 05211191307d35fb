"""VUS-PR, event recall and false episodes of what `inferwatch evaluate windows` wrote, per file and half.

    python -m benchmarks.labelled DIR SCORES      (DIR: parquet files with label, SCORES: <stem>.csv)

Options of the detector were chosen mainly on the files named in CHOOSING; docs/detectors.md says what was
seen of the others meanwhile.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.vus import events, vus_pr, window_of

CHOOSING = frozenset(
    {"omi-1", "omi-3", "omi-5", "omi-7"}
    | {f"machine-{n}" for n in ("1-2", "1-4", "1-6", "2-2", "2-4", "3-2")}
)


@dataclass(frozen=True, slots=True)
class Judged:
    """One file's figures."""

    name: str
    vus: float
    events: int
    found: int  # events with at least one alarm row
    false_episodes: int  # runs of alarm rows that touch no event
    normal_rows: int
    normal_alarm_rows: int


def judge(parquet: Path, scores: Path) -> Judged:
    """Compare SCORES/<stem>.csv with the labels of one file. Raises ValueError if the rows do not match."""
    table = pd.read_parquet(parquet, columns=["timestamp", "split", "label"])
    table = table[table["split"] == "test"]
    ours = pd.read_csv(scores / f"{parquet.stem}.csv")
    if list(ours["timestamp"].astype(str)) != list(table["timestamp"].astype(str)):
        raise ValueError(f"{parquet.stem}: the rows of the scores are not those of the test split")
    labels = table["label"].to_numpy(dtype=int)
    alarm = ours["alarm"].to_numpy(dtype=int)
    spans = events(labels)
    return Judged(
        parquet.stem,
        vus_pr(labels, ours["score"].to_numpy(dtype=float), window_of(len(labels))),
        len(spans),
        sum(bool(alarm[a : b + 1].any()) for a, b in spans),
        sum(not labels[a : b + 1].any() for a, b in events(alarm)),
        int(np.sum(labels == 0)),
        int(np.sum(alarm[labels == 0])),
    )


def summary(rows: list[Judged]) -> str:
    """One line over several files."""
    normal = sum(r.normal_rows for r in rows)
    return (
        f"VUS-PR {np.mean([r.vus for r in rows]):.3f}  "
        f"event recall {sum(r.found for r in rows) / max(1, sum(r.events for r in rows)):.2f}  "
        f"false episodes per 1,000 normal rows {1000 * sum(r.false_episodes for r in rows) / normal:.2f}  "
        f"normal rows under alarm {sum(r.normal_alarm_rows for r in rows) / normal:.1%}"
    )


def main(directory: Path, scores: Path) -> None:
    rows = [judge(path, scores) for path in sorted(directory.glob("*.parquet"))]
    for r in rows:
        half = "chosen on" if r.name in CHOOSING else "other half"
        print(f"{r.name:14} {half:9} {summary([r])}")
    for title, part in (
        ("chosen on", [r for r in rows if r.name in CHOOSING]),
        ("other half", [r for r in rows if r.name not in CHOOSING]),
        ("all", rows),
    ):
        if part:
            print(f"{title:24} {summary(part)}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
