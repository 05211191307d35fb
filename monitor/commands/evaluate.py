"""`inferwatch evaluate windows` and `inferwatch evaluate nab`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from monitor.commands.common import ConfigOption, DatabaseOption, JsonOption, group
from monitor.output import print_json, say

if TYPE_CHECKING:
    from monitor.evaluate import Evaluated

    Evaluate = Callable[..., list[Evaluated]]

evaluate_app = group("Score ready-made series from files; labels are never looked at.")

DirectoryArgument = Annotated[Path, typer.Argument(metavar="DIR", help="where the series are")]
ScoresOption = Annotated[
    Path, typer.Option("--scores", metavar="OUT", help="folder for files of timestamp,score,alarm")
]


@evaluate_app.command("windows")
def evaluate_windows(
    directory: DirectoryArgument,
    scores: ScoresOption,
    config: ConfigOption = None,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Parquet files of ready-made windows: fit on split = train, then go through the rest in order."""
    from monitor import evaluate

    _run(evaluate.evaluate_windows, directory, scores, as_json)


@evaluate_app.command("nab")
def evaluate_nab(
    directory: DirectoryArgument,
    scores: ScoresOption,
    config: ConfigOption = None,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """The series of the Numenta Anomaly Benchmark, each as a stream."""
    from monitor import evaluate

    _run(evaluate.evaluate_nab, directory, scores, as_json)


def _run(evaluate: Evaluate, directory: Path, scores: Path, as_json: bool) -> None:
    def show(one: Evaluated) -> None:
        say(f"{one.file}: {one.rows:,} rows, {one.alarms:,} alarms")

    done = evaluate(directory, scores, progress=None if as_json else show)
    if as_json:
        print_json([{"file": one.file, "rows": one.rows, "alarms": one.alarms} for one in done])
