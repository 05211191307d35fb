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
    """One file: what was scored, or why it was not."""

    file: str  # relative to the input
    rows: int = 0  # scored
    alarms: int = 0  # episodes of consecutive alarm rows
    error: str = ""  # what is wrong with the file and how to mend it; empty if it was scored


Progress = Callable[[Evaluated], None]
_Scored = tuple[Any, Any, Any]  # timestamps, score, alarm: one entry per scored row


def evaluate_windows(
    directory: Path, out: Path, *, budget: float = 1.0, progress: Progress | None = None
) -> list[Evaluated]:
    """Score every parquet file in `directory` (timestamp, split, numeric metric columns).

    Fits on split == "train", which may hold anomalies, and goes through split == "test" in order, each
    row judged by the rows before it. Writes out/<stem>.csv (timestamp,score,alarm; score in [0, 1],
    alarm 0 or 1; the test rows in order). A column called label is not even read. `budget`: false alarms
    per series and week; the rate of alarms goes with it, 1 being the rate that was measured.
    A file that cannot be scored is reported with its error, and the others are done.
    Raises EvaluationError for a directory without parquet files.
    """
    from detectors.readymade.multivariate import score_windows

    def score(path: Path) -> _Scored:
        times, train, values = _read_windows(path)
        ordered = np.concatenate([values[train], values[~train]])
        return times[~train], *score_windows(ordered, int(train.sum()), budget=budget)

    paths = _files(directory, directory.glob("*.parquet"), "*.parquet")
    return [_done(path, path.name, out / f"{path.stem}.csv", score, progress) for path in paths]


def evaluate_nab(
    directory: Path, out: Path, *, budget: float = 1.0, progress: Progress | None = None
) -> list[Evaluated]:
    """Score the univariate series directory/data/<category>/<file>.csv (timestamp,value) as a stream.

    Writes out/<category>/<file>.csv (timestamp,score,alarm), one line per row; the leading 15 % of rows,
    at most 750, are only learned from and score 0. One fixed configuration serves all series. Timestamps
    give the time of day; one that is no date and time counts as the one before it. `budget` and files that
    cannot be scored: as in `evaluate_windows`.
    Raises EvaluationError for a directory without such files.
    """
    from detectors.readymade.univariate import probation_rows, score_series

    def score(path: Path) -> _Scored:
        times, values = _read_series(path)
        probation = probation_rows(len(values))
        return times, *score_series(values, probation, seconds=_seconds(times), budget=budget)

    root = directory / "data"
    paths = _files(root, root.rglob("*.csv"), "*.csv")
    names = [path.relative_to(root) for path in paths]
    return [
        _done(path, str(name), out / name, score, progress) for path, name in zip(paths, names, strict=True)
    ]


def _files(directory: Path, found: Any, pattern: str) -> list[Path]:
    paths: list[Path] = sorted(found) if directory.is_dir() else []
    if not paths:
        raise EvaluationError(f"{directory}: no {pattern} files")
    return paths


def _done(
    path: Path, name: str, out: Path, score: Callable[[Path], _Scored], progress: Progress | None
) -> Evaluated:
    try:
        times, scores, alarm = score(path)
    except (ValueError, EvaluationError) as error:
        result = Evaluated(name, error=f"{path}: {error}")
    else:
        _write(out, times, scores, alarm)
        episodes = int(np.sum(np.diff(np.concatenate([[0], alarm.astype(int)])) == 1))
        result = Evaluated(name, len(alarm), episodes)
    if progress is not None:
        progress(result)
    return result


def _read_windows(path: Path) -> tuple[Any, Any, Any]:
    """-> timestamps [n], is it for training [n], metrics [n, C] in the file's order of columns."""
    from pyarrow import ArrowException, parquet

    try:
        names = parquet.read_schema(path).names
        if "timestamp" not in names or "split" not in names:
            raise EvaluationError(f"needs the columns timestamp and split; it has {', '.join(names)}")
        metrics = [name for name in names if name not in NOT_METRICS]
        if not metrics:
            raise EvaluationError(f"has no metrics; its columns are {', '.join(names)}")
        table = parquet.read_table(path, columns=["timestamp", "split", *metrics]).to_pandas()
    except (ArrowException, OSError) as error:
        raise EvaluationError(f"not readable as parquet: {error}") from None
    split = table["split"].astype(str).to_numpy()
    unknown = sorted(set(split) - {"train", "test"})
    if unknown:
        raise EvaluationError(f"split is {unknown[0]!r}; it must be train or test in every row")
    train = split == "train"
    if train.all() or not train.any():
        has, lacks = ("train", "test") if train.any() else ("test", "train")
        raise EvaluationError(f"all {len(table)} rows have split = {has}; it needs rows of {lacks} as well")
    times = table["timestamp"]
    for part in (train, ~train):
        _must_be_in_order(times[part], np.flatnonzero(part))
    return times.to_numpy(), train, np.column_stack([_numbers(table[name], name) for name in metrics])


def _read_series(path: Path) -> tuple[Any, Any]:
    """-> timestamps [n] as they stand in the file, values [n]."""
    import pandas as pd

    try:
        table = pd.read_csv(path, dtype={"timestamp": str})
    except (ValueError, OSError) as error:
        raise EvaluationError(f"not readable as CSV: {error}") from None
    if "timestamp" not in table or "value" not in table:
        raise EvaluationError(f"needs the columns timestamp and value; it has {', '.join(table.columns)}")
    if table.empty:
        raise EvaluationError("has no rows")
    return table["timestamp"].to_numpy(), _numbers(table["value"], "value")


def _seconds(times: Any) -> Any:
    """Timestamps as seconds, [n]; NaN where one is no date and time."""
    import pandas as pd

    known = _as_times(pd.Series(times))
    return ((known - pd.Timestamp(0, tz="UTC")) / pd.Timedelta(seconds=1)).to_numpy(dtype=float)


def _as_times(texts: Any) -> Any:
    """A column of dates and times, missing where a text is none."""
    import pandas as pd

    return pd.to_datetime(texts, errors="coerce", format="mixed", utc=True)


def _numbers(column: Any, name: str) -> Any:
    """A metric as floats, missing values as NaN. Raises EvaluationError for text, times and the like."""
    import pandas as pd
    from pandas.api import types

    if types.is_numeric_dtype(column):
        return column.to_numpy(dtype=float, na_value=np.nan)
    text = column.astype(object) if not types.is_datetime64_any_dtype(column) else column.astype(str)
    numbers = pd.to_numeric(text, errors="coerce")
    strange = text[numbers.isna() & column.notna()]
    if len(strange):
        raise EvaluationError(
            f"column {name} holds {str(strange.iloc[0])!r}, which is no number; take the column out, or turn "
            "it into numbers (missing ones may be empty)"
        )
    return numbers.to_numpy(dtype=float, na_value=np.nan)


def _must_be_in_order(times: Any, rows: Any) -> None:
    """Raises EvaluationError unless the timestamps never fall. times: a column, rows: their row numbers."""
    import pandas as pd
    from pandas.api import types

    if times.isna().any():
        raise EvaluationError(f"row {rows[times.isna().to_numpy().argmax()] + 1} has no timestamp")
    known = times
    if not (types.is_numeric_dtype(times) or types.is_datetime64_any_dtype(times)):
        known = pd.to_numeric(times.astype(object), errors="coerce")
        if known.isna().any():
            known = _as_times(times.astype(str))
    if known.isna().any():
        first = times[known.isna()].iloc[0]
        raise EvaluationError(f"timestamp {str(first)!r} is neither a number nor a time")
    falls = np.flatnonzero(known.to_numpy()[1:] < known.to_numpy()[:-1])
    if len(falls):
        at = int(falls[0])
        raise EvaluationError(
            f"row {rows[at + 1] + 1} ({times.iloc[at + 1]}) is earlier than the row before it "
            f"({times.iloc[at]}); sort the rows by timestamp"
        )


def _write(path: Path, times: Any, score: Any, alarm: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        file.write("timestamp,score,alarm\n")
        for time, value, on in zip(times, score, alarm, strict=True):
            file.write(f"{time},{value:.9g},{int(on)}\n")
