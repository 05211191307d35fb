"""`inferwatch evaluate`: score ready-made series from files, without ever looking at a label."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from monitor.errors import InferwatchError

NOT_METRICS = ("timestamp", "split", "label")


class EvaluationError(InferwatchError):
    """A file to evaluate is missing or is not what it should be."""


@dataclass(frozen=True, slots=True)
class Evaluated:
    """One file that was scored."""

    file: str  # relative to the input
    rows: int  # scored
    alarms: int  # episodes of consecutive alarm rows


def evaluate_windows(
    directory: Path, out: Path, *, progress: Callable[[Evaluated], None] | None = None
) -> list[Evaluated]:
    """Score every parquet file under `directory` (timestamp, split, metric columns).

    Fits on split == "train", which may hold anomalies, and goes through split == "test" in order, each
    row judged by the rows before it. Writes out/<stem>.csv (timestamp,score,alarm; score in [0, 1],
    alarm 0 or 1; the test rows in order). A column called label is not even read.
    Raises EvaluationError for a directory without parquet files or a file without these columns.
    """
    from detectors.readymade.multivariate import score_windows

    done = []
    for path in _files(directory, "*.parquet", recursive=False):
        times, split, values = _read_windows(path)
        train = split == "train"
        try:
            score, alarm = score_windows(np.concatenate([values[train], values[~train]]), int(train.sum()))
        except ValueError as error:
            raise EvaluationError(f"{path}: {error}") from None
        _write(out / f"{path.stem}.csv", times[~train], score, alarm)
        done.append(_report(path.name, alarm, progress))
    return done


def evaluate_nab(
    directory: Path, out: Path, *, progress: Callable[[Evaluated], None] | None = None
) -> list[Evaluated]:
    """Score the univariate series directory/data/<category>/<file>.csv (timestamp,value) as a stream.

    Writes out/<category>/<file>.csv (timestamp,score,alarm), one line per row; the leading 15 % of rows,
    at most 750, are only learned from and score 0. One fixed configuration serves all series.
    Raises EvaluationError for a directory without such files or a malformed file.
    """
    import pandas as pd

    from detectors.readymade.univariate import probation_rows, score_series

    root, done = directory / "data", []
    for path in _files(root, "*.csv", recursive=True):
        try:
            table = pd.read_csv(path, dtype={"timestamp": str})
            values = table["value"].to_numpy(dtype=float)
            times = table["timestamp"].to_numpy()
        except (KeyError, ValueError) as error:
            raise EvaluationError(f"{path}: needs the columns timestamp and value: {error}") from None
        score, alarm = score_series(values, probation_rows(len(values)))
        name = path.relative_to(root)
        _write(out / name, times, score, alarm)
        done.append(_report(str(name), alarm, progress))
    return done


def _files(directory: Path, pattern: str, *, recursive: bool) -> list[Path]:
    found = sorted(directory.rglob(pattern) if recursive else directory.glob(pattern))
    if not found:
        raise EvaluationError(f"{directory}: no {pattern} files")
    return found


def _read_windows(path: Path) -> tuple[Any, Any, Any]:
    """-> timestamps [n], split [n], metrics [n, C] in the file's order of columns."""
    from pyarrow import ArrowException, parquet

    try:
        names = parquet.read_schema(path).names
        if "timestamp" not in names or "split" not in names:
            raise EvaluationError(f"{path}: needs the columns timestamp and split; it has {', '.join(names)}")
        metrics = [name for name in names if name not in NOT_METRICS]
        table = parquet.read_table(path, columns=["timestamp", "split", *metrics]).to_pandas()
        values = table[metrics].to_numpy(dtype=float)
    except (ArrowException, OSError, ValueError) as error:
        raise EvaluationError(f"{path}: {error}") from None
    split = table["split"].astype(str).to_numpy()
    unknown = set(split) - {"train", "test"}
    if unknown:
        raise EvaluationError(f"{path}: split is {sorted(unknown)[0]!r}; it must be train or test")
    return table["timestamp"].to_numpy(), split, values


def _write(path: Path, times: Any, score: Any, alarm: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        file.write("timestamp,score,alarm\n")
        for time, value, on in zip(times, score, alarm, strict=True):
            file.write(f"{time},{value:.9g},{int(on)}\n")


def _report(name: str, alarm: Any, progress: Callable[[Evaluated], None] | None) -> Evaluated:
    episodes = int(np.sum(np.diff(np.concatenate([[0], alarm.astype(int)])) == 1))
    result = Evaluated(name, len(alarm), episodes)
    if progress is not None:
        progress(result)
    return result
