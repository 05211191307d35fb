"""A person with a terminal and eight questions; charts; what another budget would have found."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detectors.ensemble import Ensemble
from detectors.threshold import height_for
from monitor.chart import ALARM, DOT, Point, plot, sparkline
from monitor.clock import SystemClock
from monitor.config import ChannelSettings, Settings
from monitor.delivery import DeliveryWorker
from monitor.errors import InferwatchError
from monitor.incidents import make_fold
from monitor.output import age, number
from monitor.people import people
from monitor.what_if import alarms, episodes, height_of, levels_of, score_of
from storage import queries
from storage.engine import connect, upgrade
from storage.ledger import Ledger
from storage.outbox import Outbox
from storage.terminal import ScoredSeries
from storage.types import FEATURE_COLUMNS, AlertTransition
from tests.detector_windows import WINDOW_MS, batch, slow_down, windows
from tests.receivers import hook
from tests.storage_kit import MINUTE_MS, make_alert, make_commit, make_series, make_windows
from tests.test_cli import call, run

__all__ = ["call"]  # the fixture
Call = Callable[..., tuple[int, str, str]]
SERIES, OTHER = "chat-large/v1", "rank/search"
START_MS = int(datetime(2026, 3, 2, tzinfo=UTC).timestamp() * 1000)
BAND = {"feature": "latency_p99_ms", "observed": 900.0, "expected": 100.0, "low": 80.0, "high": 140.0}
ALERT: dict[str, Any] = {
    "severity": "critical",
    "tail_probability": 1e-9,
    "rarity": "once in 12 years for this series",
    "top_features": [{**BAND, "contribution": 0.7}],
    "slices": [
        {"field": "tenant", "value": "acme", "share": 0.93, "reason": "93% of the excess latency"},
        {"field": "model_version", "value": "v8", "share": 0.6, "reason": "60% of the excess latency"},
    ],
    "model_versions": ["v7", "v8"],
}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two hours of two series: an incident that is over and labelled, one that lasts and was acknowledged.

    The ledger, the fold, the outbox, the delivery worker and a receiver are the real ones.
    """
    database = f"sqlite:///{tmp_path_factory.mktemp('terminal') / 't.db'}"
    engine = connect(database)
    upgrade(engine)
    with hook(200) as server:
        settings = Settings(channels={"oncall": ChannelSettings(url=server.url, allow_private=True)})
        ledger = Ledger(
            engine, fold=make_fold(settings), owner="t", revision_horizon_ms=900_000, reopen_ms=1_800_000
        )
        claim = ledger.claim("logs", 0, now_ms=1)
        first = {**ALERT, "severity": "warning", "alert_id": "first"}
        steps = [
            AlertTransition(at(21), "fired", make_alert(SERIES, at(20), **first)),
            AlertTransition(at(31), "resolved", make_alert(SERIES, at(20), **first, status="resolved")),
            AlertTransition(at(101), "fired", make_alert(SERIES, at(100), **ALERT)),
        ]
        ledger.commit(
            make_commit(
                claim,
                None,
                10,
                watermark_ms=at(121),
                windows=[_windows(minute) for minute in range(120)],
                series=[make_series(SERIES), make_series(OTHER)],
                transitions=steps,
            )
        )
        worker = DeliveryWorker(Outbox(engine), settings, SystemClock(), owner="t")
        worker.start()
        assert worker.drain(20)
        worker.stop()
    newest, oldest = (row["incident_id"] for row in queries.incidents(engine))
    acting = people(engine, settings)
    acting.label(oldest, "true_positive", by="bob", now_ms=at(40))
    acting.acknowledge(newest, by="ada", now_ms=at(105), reason="looking")
    engine.dispose()
    return database


def at(minute: int) -> int:
    return START_MS + minute * MINUTE_MS


def _windows(minute: int) -> Any:
    features = np.full((2, len(FEATURE_COLUMNS)), np.nan)
    bad = 20 <= minute < 25 or 100 <= minute < 118
    features[:, 0], features[:, FEATURE_COLUMNS.index("latency_p99_ms")] = 60.0, 100.0 + minute % 7
    features[0, FEATURE_COLUMNS.index("latency_p99_ms")] = 900.0 if bad else 100.0 + minute % 7
    score = np.array([0.95 if bad else 0.05, 0.8 if minute == 50 else 0.1])
    flags = np.array([bad, False])
    return make_windows(at(minute), [SERIES, OTHER], features=features, score=score, is_anomalous=flags)


# ------------------------------------------------------------- eight questions


def test_what_is_broken_now_and_since_when(call: Call, url: str) -> None:
    code, out, _ = call("incidents", "list", "--status", "acknowledged", "--database", url)
    header, *rows = out.splitlines()
    assert code == 0 and len(rows) == 1
    row = dict(zip(header.split("\t"), rows[0].split("\t"), strict=True))
    assert (row["severity"], row["started_at"]) == ("critical", "2026-03-02T01:40:00Z")
    code, out, _ = call("top", "--once", "--database", url)
    assert code == 0 and "critical" in out and "2026-03-02T01:40:00Z" in out and "21m" in out
    assert "High p99 latency on" in out


def test_how_sure_are_we_and_why(call: Call, url: str) -> None:
    _, out, _ = call("incidents", "show", "1", "--database", url)
    assert "once in 12 years for this series" in out
    assert "latency_p99_ms\t900\t100\t80\t140\t0.7000" in out
    assert "latency_p99_ms, expected 80 to 140 (shaded)" in out
    chart = [line.partition("┤")[2] for line in out.splitlines() if "┤" in line]
    assert len(chart) == 8
    assert ALARM in chart[0] and DOT not in chart[0], "the anomalous windows stand at the top"
    assert DOT in chart[-1] and ALARM not in chart[-1] and "░" in chart[-1], "the others inside the band"


def test_which_version_or_tenant(call: Call, url: str) -> None:
    _, out, _ = call("incidents", "show", "1", "--database", url)
    assert "concentrated in tenant acme: 93% of the excess latency" in out
    assert "concentrated in model_version v8" in out and "versions seen: v7, v8" in out


def test_did_anyone_see_it(call: Call, url: str) -> None:
    _, out, _ = call("incidents", "show", "1", "--database", url)
    assert re.search(r"^acknowledged by +ada$", out, re.MULTILINE)
    assert re.search(r"acknowledged\tada\tlooking", out)
    _, out, _ = call("incidents", "show", "2", "--database", url)
    assert re.search(r"^acknowledged by +-$", out, re.MULTILINE)


def test_was_the_webhook_delivered(call: Call, url: str) -> None:
    _, out, _ = call("incidents", "show", "1", "--database", url)
    assert re.search(r"^incident.opened\toncall\tdelivered\t1\t\d{4}-", out, re.MULTILINE)
    _, out, _ = call("deliveries", "list", "--status", "delivered", "--database", url, "--json")
    assert [row["event"] for row in json.loads(out)] == [
        "incident.opened",
        "incident.resolved",
        "incident.opened",
    ]


def test_has_it_happened_before(call: Call, url: str) -> None:
    listed = json.loads(call("incidents", "list", "--database", url, "--json")[1])
    oldest = listed[-1]["incident_id"]
    _, out, _ = call("incidents", "show", "1", "--database", url, "--json")
    (earlier,) = json.loads(out)["earlier"]
    assert earlier["incident"]["incident_id"] == oldest
    assert [label["label"] for label in earlier["incident"]["labels"]] == ["true_positive"]
    assert earlier["score"] > 0.5 and f"series {SERIES}" in earlier["shared"]
    _, out, _ = call("incidents", "show", "1", "--database", url)
    assert re.search(
        rf"{oldest[:8]}\t2026-03-02T00:21:00Z\t\S+\trecovered\ttrue_positive\t{re.escape(number(earlier['score']))}",
        out,
    )
    _, _, err = call("incidents", "show", "2", "--database", url)
    assert "it has not happened before" in err


def test_what_would_have_fired_with_another_budget(call: Call, url: str) -> None:
    code, out, _ = call("evaluate", "--what-if", "40", "--what-if", "0.01", "--database", url, "--json")
    found = json.loads(out)
    one, many, few = found["budgets"]
    assert code == 0 and (one["budget"], many["budget"], few["budget"]) == (1.0, 40.0, 0.01)
    assert (
        one["threshold_score"] > many["threshold_score"] and few["threshold_score"] > one["threshold_score"]
    )
    assert many["alerts"] >= one["alerts"] >= few["alerts"]
    assert {e["series"] for e in many["episodes"]} >= {SERIES}
    code, out, _ = call("evaluate", "what-if", "40", "0.01", "--database", url)
    assert code == 0 and out.splitlines()[1].startswith("1\t") and "configured" in out
    assert json.loads(call("evaluate", "what-if", "40", "--series", OTHER, "--database", url, "--json")[1])
    for wrong in (["0"], ["101"], []):
        assert call("evaluate", "what-if", *wrong, "--database", url)[0] == 2


# ---------------------------------------------------------------- the rest of it


def test_every_list_takes_since(call: Call, url: str) -> None:
    lists = ["incidents list", "alerts", "series", "deliveries list", "silences list", "models list"]
    for command in lists:
        code, out, _ = call(*command.split(), "--since", "2030-01-01T00:00:00Z", "--database", url, "--json")
        rows = json.loads(out)
        assert code == 0
        assert (
            all(row.get("resolved_at") is None for row in rows) if command == "incidents list" else rows == []
        )
    code, out, _ = call("windows", SERIES, "--since", "2026-03-02T01:50:00Z", "--database", url, "--json")
    assert len(json.loads(out)) == 10


def test_top_is_live_on_a_terminal_and_plain_json_for_programs(call: Call, url: str) -> None:
    seen = json.loads(call("top", "--database", url, "--json")[1])
    assert seen["deliveries"] == {"delivered": 3}
    assert [row["series"] for row in seen["series"]] == [OTHER, SERIES]
    assert call("top", "--database", url)[1].count("Inferwatch") == 1, "in a pipe it is printed once"


def test_completion_knows_the_commands() -> None:
    asked = {"_INFERWATCH_COMPLETE": "complete_bash", "COMP_WORDS": "inferwatch inc", "COMP_CWORD": "1"}
    assert run(env=asked).stdout.split() == ["incidents"]
    asked |= {"COMP_WORDS": "inferwatch evaluate w", "COMP_CWORD": "2"}
    assert set(run(env=asked).stdout.split()) == {"windows", "what-if"}
    shown = run("--show-completion", "bash", env={"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"})
    assert "_INFERWATCH_COMPLETE=complete_bash" in shown.stdout


@pytest.mark.parametrize(
    "command", [["top", "--once"], ["incidents", "show", "1"], ["evaluate", "--what-if", "4"]], ids=" ".join
)
def test_they_load_nothing_heavy(url: str, command: list[str]) -> None:
    program = (
        "import sys\n"
        f"sys.argv = ['inferwatch', *{command!r}, '--database', {url!r}]\n"
        "from monitor.cli import main\n"
        "try:\n    main()\n"
        "except SystemExit as end:\n    assert end.code in (0, None), end.code\n"
        "heavy = {'torch', 'numba', 'lightgbm', 'pandas', 'scipy', 'kafka', 'fastapi'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0 and done.stderr.strip().splitlines()[-1] == "[]", done.stderr


# ----------------------------------------------------------------------- charts

VALUES = st.none() | st.floats(-1e12, 1e12) | st.just(float("nan")) | st.just(float("inf"))


@given(st.lists(st.builds(Point, VALUES, st.booleans()), max_size=200), VALUES, VALUES, st.integers(1, 90))
def test_a_chart_of_anything_stays_in_its_frame(
    points: list[Point], low: float | None, high: float | None, width: int
) -> None:
    lines = plot(points, low=low, high=high, width=width)
    finite = [p for p in points if p.value is not None and np.isfinite(p.value)]
    assert len(lines) == (8 if finite else 0)
    assert all(len(line) <= width and set(line) <= set(" •◆░") for line in lines)
    if len(points) <= width:
        marks = sum(line.count(ALARM) + line.count(DOT) for line in lines)
        assert marks == len(finite)
        assert sum(line.count(ALARM) for line in lines) == sum(p.is_anomalous for p in finite)


@given(st.lists(VALUES, max_size=100), st.integers(1, 60))
def test_a_sparkline_has_a_mark_for_every_stretch(values: list[float | None], width: int) -> None:
    line = sparkline(values, width)
    known = [v for v in values if v is not None and np.isfinite(v)]
    assert len(line) == (min(width, len(values)) if known else 0)
    if len(known) == len(values) <= width and len(set(known)) > 1:
        assert line[known.index(max(known))] == "█" and line[known.index(min(known))] == "▁"


def test_an_anomalous_window_is_never_hidden_by_its_neighbours() -> None:
    points = [Point(100.0)] * 1_000 + [Point(90.0, True)] + [Point(500.0)] * 999
    assert sum(line.count(ALARM) for line in plot(points, low=80, high=120, width=50)) == 1


@pytest.mark.parametrize(
    ("length", "shown"),
    [(0, "0m"), (59, "0m"), (60, "1m"), (5_400, "1h 30m"), (273_600, "3d 4h"), (-5, "0m")],
)
def test_ages(length: int, shown: str) -> None:
    assert age(length * 1000) == shown


# ---------------------------------------------------------------------- what if


@pytest.mark.parametrize("window_s", [1, 60, 300])
def test_the_threshold_of_a_budget_is_the_detectors_own(window_s: int) -> None:
    levels = levels_of(None)
    for budget in (0.001, 0.01, 0.3, 1.0, 2.5, 10.0, 100.0):
        prior = Ensemble.prior(false_alarms_per_week=budget, window_ms=window_s * 1000)
        theirs = height_for(prior.calibration, false_alarms_per_week=budget, window_ms=window_s * 1000)
        assert levels.threshold(budget, window_s * 1000) == pytest.approx(theirs, rel=1e-9)
        assert (levels.version, prior.threshold) == (prior.version, pytest.approx(theirs))


@given(st.floats(-30, 30))
def test_a_score_gives_its_height_back(height: float) -> None:
    assert height_of(score_of(height)) == pytest.approx(height, abs=1e-4)


@given(st.lists(st.floats(0, 1), max_size=80), st.integers(0, 100), st.floats(-2, 6), st.floats(0, 3))
def test_a_lower_threshold_never_finds_less(
    scores: list[float], before: int, threshold: float, less: float
) -> None:
    strict, loose = alarms(scores, before, threshold), alarms(scores, before, threshold - less)
    assert all(b or not a for a, b in zip(strict, loose, strict=True))


@given(st.lists(st.booleans(), max_size=60), st.integers(1, 6))
def test_episodes_hold_every_anomalous_window_once(flags: list[bool], resolve_after: int) -> None:
    starts = [n * MINUTE_MS for n in range(len(flags))]
    windows = ScoredSeries("s", 0, starts, MINUTE_MS, [0.5] * len(flags), flags)
    found = episodes(windows, flags, resolve_after)
    inside = [s for s, flag in zip(starts, flags, strict=True) if flag]
    assert all(sum(e.start_ms <= s < e.end_ms for e in found) == 1 for s in inside)
    gaps = [b.start_ms - a.end_ms for a, b in itertools.pairwise(found)]
    assert all(gap >= resolve_after * MINUTE_MS for gap in gaps)


def test_a_model_that_was_changed_is_not_read() -> None:
    artifact = bytearray((Path(__file__).parent.parent / "detectors/prior/prior.iwm").read_bytes())
    for broken in (
        b"",
        b"nonsense" * 10,
        bytes(artifact[:60]),
        bytes(artifact).replace(b'"signed"', b'"sIgned"', 1),
    ):
        with pytest.raises(InferwatchError, match="cannot be read"):
            levels_of(broken)


@pytest.mark.parametrize(("scored_with", "asked"), [(5.0, 5.0), (60.0, 60.0), (5.0, 60.0), (60.0, 5.0)])
def test_decisions_made_again_from_scores_are_those_of_the_detectors(
    scored_with: float, asked: float
) -> None:
    """The oracle: the same windows judged by an ensemble with each budget."""
    scores, _ = _judged_by_the_detectors(scored_with)
    _, flags = _judged_by_the_detectors(asked)
    threshold = levels_of(None).threshold(asked, WINDOW_MS)
    assert alarms(scores, 0, threshold) == flags
    assert 0 < sum(flags) < len(flags)


@functools.cache
def _judged_by_the_detectors(budget: float) -> tuple[list[float], list[bool]]:
    """Scores and alarms of one service that slows down a little, for long, and very much; no LSTM."""
    prior = Ensemble.prior(false_alarms_per_week=budget, window_ms=WINDOW_MS)
    scorer = dataclasses.replace(prior, lstm=None)
    values, counts = windows(np.random.default_rng(3), 600)
    for rows, factor in ((slice(20, 23), 2.0), (slice(200, 203), 1.25), (slice(300, 330), 1.15)):
        slow_down(values, rows, factor)
    slow_down(values, slice(500, 512), 1.8)
    states, scores, flags = scorer.new_states(), [], []
    for n in range(len(values)):
        found = scorer.score(batch(n, values[n : n + 1], counts[n : n + 1]), states)
        scores.append(float(found.score[0]))
        flags.append(bool(found.is_anomalous[0]))
    return scores, flags
