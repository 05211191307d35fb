"""`inferwatch evaluate`: ready-made series from files, and what another budget would have found."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from monitor.clock import SystemClock
from monitor.commands import completion
from monitor.commands.common import (
    ConfigOption,
    DatabaseOption,
    JsonOption,
    SinceOption,
    load_settings,
    reading,
)
from monitor.errors import InferwatchError
from monitor.output import complain, print_json, print_rows, say

if TYPE_CHECKING:
    from monitor.evaluate import Evaluated
    from monitor.what_if import Judged

    Evaluate = Callable[..., list[Evaluated]]

evaluate_app = typer.Typer(
    help="Score ready-made series from files (labels are never looked at), or judge stored windows anew.",
    no_args_is_help=True,
    invoke_without_command=True,
    pretty_exceptions_enable=False,
)
BUDGETS = "acceptable false alarms per series and week"

SeriesOption = Annotated[
    str | None,
    typer.Option("--series", metavar="NAME", help="only this series", autocompletion=completion.series),
]
DirectoryArgument = Annotated[Path, typer.Argument(metavar="DIR", help="where the series are")]
ScoresOption = Annotated[
    Path, typer.Option("--scores", metavar="OUT", help="folder for files of timestamp,score,alarm")
]
BudgetOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        envvar="INFERWATCH_CONFIG",
        help="TOML file, of which the alarms heed detection.false_alarms_per_week; nothing else applies here",
    ),
]
NoDatabaseOption = Annotated[
    str | None,
    typer.Option("--database", metavar="URL", help="refused here: nothing is read from a database"),
]


@evaluate_app.callback()
def evaluate_root(
    context: typer.Context,
    what_if: Annotated[
        list[float] | None,
        typer.Option("--what-if", metavar="BUDGET", help="as `evaluate what-if`; may stand several times"),
    ] = None,
    since: SinceOption = None,
    series: SeriesOption = None,
    config: ConfigOption = None,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    if context.invoked_subcommand is None:
        evaluate_what_if(what_if or [], since, series, config, database, as_json)
    elif what_if:
        raise typer.BadParameter("stands alone, without another command", param_hint="--what-if")


@evaluate_app.command("what-if")
def evaluate_what_if(
    budgets: Annotated[list[float], typer.Argument(metavar="BUDGET...", help=BUDGETS)],
    since: SinceOption = None,
    series: SeriesOption = None,
    config: ConfigOption = None,
    database: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """What would have fired with other budgets, from stored scores; 7d counts back from the newest window."""
    from monitor import what_if
    from storage import queries

    if not budgets or not all(0 < budget <= 100 for budget in budgets):
        raise typer.BadParameter("name budgets above 0 and up to 100", param_hint="BUDGET")
    detection = load_settings(config, database).detection
    with reading(config, database) as engine:
        if series is not None and not queries.series(engine, name=series, limit=1):
            raise InferwatchError(f"no series {series!r}; `inferwatch series` shows them")
        now_ms = SystemClock().now_ms()
        try:
            found = what_if.ask(engine, detection, budgets, since=since or "7d", series=series, now_ms=now_ms)
        except ValueError as error:
            raise typer.BadParameter(str(error), param_hint="--since") from None
    if as_json:
        print_json(found.as_json())
    else:
        _print_judged(found.judged)


@evaluate_app.command("windows")
def evaluate_windows(
    directory: DirectoryArgument,
    scores: ScoresOption,
    config: BudgetOption = None,
    database: NoDatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Parquet files of ready-made windows: fit on split = train, then go through the rest in order.

    Columns: timestamp, split (train or test), numeric metrics; a label is not read.
    """
    from monitor import evaluate

    _run(evaluate.evaluate_windows, directory, scores, config, database, as_json)


@evaluate_app.command("nab")
def evaluate_nab(
    directory: DirectoryArgument,
    scores: ScoresOption,
    config: BudgetOption = None,
    database: NoDatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """The series of the Numenta Anomaly Benchmark, each as a stream: DIR/data/CATEGORY/FILE.csv."""
    from monitor import evaluate

    _run(evaluate.evaluate_nab, directory, scores, config, database, as_json)


def _run(
    evaluate: Evaluate,
    directory: Path,
    scores: Path,
    config: Path | None,
    database: str | None,
    as_json: bool,
) -> None:
    from monitor.evaluate import EvaluationError

    if database is not None:
        raise typer.BadParameter(
            "ready-made series are read from files and written to files; leave it out",
            param_hint="--database",
        )
    budget = load_settings(config, None).detection.false_alarms_per_week

    def show(one: Evaluated) -> None:
        if one.error:
            complain(f"inferwatch: {one.error}")
        elif not as_json:
            say(f"{one.file}: {one.rows:,} rows, {one.alarms:,} alarms")

    done = evaluate(directory, scores, budget=budget, progress=show)
    if as_json:
        print_json([dataclasses.asdict(one) for one in done])
    failed = sum(bool(one.error) for one in done)
    if failed:
        raise EvaluationError(f"{failed} of {len(done)} files could not be scored; the others are done")


def _print_judged(judged: list[Judged]) -> None:
    configured, others = judged[0], judged[1:]
    rows = [
        {
            "budget": one.budget,
            "alerts": len(one.episodes),
            "windows": one.windows,
            "series": len({e.series for e in one.episodes}),
            "new": len(one.beside(configured)),
            "gone": len(configured.beside(one)),
            "": "configured" if one is configured else "",
        }
        for one in judged
    ]
    print_rows(rows, ("budget", "alerts", "windows", "series", "new", "gone", ""), empty="no windows")
    for one in others:
        for title, found in (("more", one.beside(configured)), ("no more", configured.beside(one))):
            for episode in found[:20]:
                row = episode.as_json()
                say(f"budget {one.budget:g}, {title}: {row['start']} to {row['end']} {episode.series}")
            if len(found) > 20:
                say(f"budget {one.budget:g}, {title}: and {len(found) - 20} others")
