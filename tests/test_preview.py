"""`train --preview` and labels: what people said of incidents reaches the next training, seen before."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import Engine
from typer.testing import CliRunner

from detectors.pack import pack_rows
from detectors.training import SeriesHistory
from detectors.types import STATISTIC_INDEX, WindowBatch
from monitor import preview
from monitor.cli import build_app
from monitor.clock import rfc3339
from monitor.config import Settings
from monitor.jobs import challenger, train_now, unpacked
from monitor.models import load_scorer
from monitor.what_if import Episode
from storage import queries
from storage.engine import connect, upgrade
from storage.models import ModelRegistry, PastAlert
from storage.people import People
from storage.types import AlertTransition, SeriesRow
from tests.detector_windows import scale, slow_down, windows
from tests.scorers import PlainScorer
from tests.storage_kit import make_alert, make_commit, make_ledger, make_windows

MINUTE_MS = 60_000
START_MS = 1_767_571_200_000
LENGTH = 400
NAMES = ["chat/a", "chat/b"]
ODD = {"chat/a": [(90, 120), (150, 180), (220, 245)], "chat/b": [(120, 150)]}
"""Windows of what looks like trouble: longer outputs and with them latency, by the same factor each time."""


def history() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    found = {}
    for k, name in enumerate(NAMES):
        values, counts = windows(np.random.default_rng(k), LENGTH, requests=40.0)
        for begin, end in ODD[name]:
            slow_down(values, slice(begin, end), 1.5)
            scale(values, slice(begin, end), ("output_tokens_mean", "output_tokens_p50"), 1.5)
            values[begin:end, STATISTIC_INDEX["output_tokens_log_mean"]] += np.log(1.5)
        found[name] = values, counts
    return found


def fill(url: str) -> None:
    """All windows, one alert and one incident for every odd stretch."""
    engine = connect(url)
    upgrade(engine)
    ledger = make_ledger(engine)
    claim = ledger.claim("logs", 0, now_ms=0)
    stored = history()
    made = []
    for t in range(LENGTH):
        values = np.stack([stored[name][0][t] for name in NAMES])
        counts = np.stack([stored[name][1][t] for name in NAMES])
        made.append(
            make_windows(
                START_MS + t * MINUTE_MS,
                NAMES,
                features=values[:, :19],
                statistics=pack_rows(values, counts),
                sketches=[None] * len(NAMES),
            )
        )
    steps = []
    for name, spans in ODD.items():
        for begin, end in spans:
            start_ms, end_ms = START_MS + begin * MINUTE_MS, START_MS + end * MINUTE_MS
            steps.append((start_ms, "fired", make_alert(name, start_ms, window_end_ms=end_ms)))
            ended = make_alert(name, start_ms, window_end_ms=end_ms, status="resolved", resolved_at_ms=end_ms)
            steps.append((end_ms, "resolved", ended))
    steps.sort(key=lambda step: (step[0], step[2].series))
    series = [SeriesRow(name, "chat", name[-1], START_MS, START_MS, b"", b"", None) for name in NAMES]
    transitions = [AlertTransition(at_ms + MINUTE_MS, kind, alert) for at_ms, kind, alert in steps]
    changes = {"windows": made, "series": series, "transitions": transitions}
    end_ms = START_MS + LENGTH * MINUTE_MS
    ledger.commit(make_commit(claim, None, 10, watermark_ms=end_ms, **changes))
    engine.dispose()


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("preview") / "filled.db"
    fill(f"sqlite:///{path}")
    return path


@pytest.fixture
def engine(filled: Path, tmp_path: Path) -> Iterator[Engine]:
    path = tmp_path / "preview.db"
    path.write_bytes(filled.read_bytes())
    made = connect(f"sqlite:///{path}")
    yield made
    made.dispose()


def settings_for(engine: Engine) -> Settings:
    made = Settings()
    url = str(engine.url)
    return made.model_copy(update={"database": made.database.model_copy(update={"url": url})})


def label_all(engine: Engine, label: str) -> None:
    for number, incident in enumerate(queries.incidents(engine)):
        People(engine).label(incident["incident_id"], label, by="ann", now_ms=number)


def odd_score(engine: Engine, artifact: bytes | None) -> float:
    """Mean score of the trees for the odd windows under a model, replayed from empty memory."""
    scorer = load_scorer(settings_for(engine), artifact)
    registry = ModelRegistry(engine)
    until_ms = START_MS + LENGTH * MINUTE_MS
    stored = registry.training_set(since_ms=START_MS, until_ms=until_ms, max_windows=10_000)
    states = scorer.new_states()
    columns = {name: unpacked(name, found) for name, found in stored.series.items()}
    found = []
    for t in range(LENGTH):
        values = np.stack([columns[name].values[t] for name in NAMES])
        counts = np.stack([columns[name].counts[t] for name in NAMES])
        scores = scorer.score(WindowBatch(START_MS + t * MINUTE_MS, MINUTE_MS, NAMES, values, counts), states)
        odd = [any(a <= t < b for a, b in ODD[name]) for name in NAMES]
        found += scores.gbdt_score[odd].tolist()
    return float(np.mean(found))


def test_labels_reach_the_next_training(engine: Engine) -> None:
    """After the next training a false alarm scores far lower than before it, a true one is as sure."""
    settings, registry = settings_for(engine), ModelRegistry(engine)
    until_ms = START_MS + LENGTH * MINUTE_MS
    scores = {}
    for label in ("true_positive", "false_positive"):  # the newest label counts
        label_all(engine, label)
        scores[label] = odd_score(engine, challenger(settings, registry, until_ms).artifact)
    before = odd_score(engine, None)
    assert scores["false_positive"] < before - 0.2, (scores, before)
    assert scores["true_positive"] > max(before - 0.02, scores["false_positive"] + 0.2), (scores, before)
    assert registry.champion() is None and not queries.models(engine), "nothing was registered"


def test_a_true_positive_is_not_excluded_from_training(engine: Engine) -> None:
    registry, until_ms = ModelRegistry(engine), START_MS + LENGTH * MINUTE_MS
    spans = {
        (name, START_MS + begin * MINUTE_MS, START_MS + end * MINUTE_MS)
        for name in NAMES
        for begin, end in ODD[name]
    }
    label_all(engine, "true_positive")
    judged = registry.training_set(since_ms=START_MS, until_ms=until_ms, max_windows=10_000)
    assert {(x.series, x.start_ms, x.end_ms) for x in judged.labels} == spans
    assert {x.label for x in judged.labels} == {"true_positive"}
    label_all(engine, "false_positive")
    judged = registry.training_set(since_ms=START_MS, until_ms=until_ms, max_windows=10_000)
    assert {x.label for x in judged.labels} == {"false_positive"} and not judged.excluded


def test_training_again_on_the_same_windows_is_registered(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """New labels are a reason to train although no window is new."""
    settings = settings_for(engine)
    settings = settings.model_copy(
        update={"training": settings.training.model_copy(update={"history_days": 0.1})}
    )  # too little to learn from: the decision is what matters here
    first, second = train_now(settings), train_now(settings)
    assert first["trained_at"] != second["trained_at"]
    assert "decided before" not in second["reason"]
    assert ModelRegistry(engine).is_decided(START_MS + LENGTH * MINUTE_MS + 1)


def test_the_preview_writes_nothing_and_answers_in_json(engine: Engine) -> None:
    label_all(engine, "true_positive")
    path = Path(str(engine.url.database))
    engine.dispose()
    before = hashlib.sha256(path.read_bytes()).hexdigest()
    arguments = ["train", "--preview", "--since", "4h", "--json", "--database", str(engine.url)]
    done = CliRunner().invoke(build_app("train"), arguments)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["until"] == rfc3339(START_MS + LENGTH * MINUTE_MS)
    listed = [*found["stays"], *found["goes"], *found["not_reproduced"]]
    assert {(each["series"], each["start"], each["label"]) for each in listed} == {
        ("chat/a", rfc3339(START_MS + begin * MINUTE_MS), "true_positive") for begin in (150, 220)
    }
    assert found["champion"] != found["challenger"] and found["reason"]
    assert hashlib.sha256(path.read_bytes()).hexdigest() == before
    assert not Path(f"{path}-wal").exists() or Path(f"{path}-wal").stat().st_size == 0


def past(number: int, label: str | None, incident: str | None = None, series: str = "m/a") -> PastAlert:
    start = number * 100 * MINUTE_MS
    name = f"alert-{series}-{number}"
    return PastAlert(name, incident, series, start, start + 10 * MINUTE_MS, "major", "slow", label)


def episode(number: int, offset: int = 0, series: str = "m/a") -> Episode:
    start = (number * 100 + offset) * MINUTE_MS
    return Episode(series, start, start + 5 * MINUTE_MS, 0.9)


def test_changes_are_told_apart() -> None:
    alerts = [
        *(past(0, None, "i0"), past(1, "false_positive", "i1"), past(2, "true_positive", "i2")),
        *(past(3, "true_positive", "i3"), past(3, "true_positive", "i3", "m/b"), past(4, None)),
    ]
    champion = [*(episode(n) for n in range(4)), episode(3, series="m/b"), episode(5)]
    new = [episode(0, 9), episode(3, series="m/b"), episode(5), episode(6), episode(4, 10)]
    found = preview.compare(alerts, champion, new)
    assert [a.alert_id for a in found.stays] == ["alert-m/a-0", "alert-m/b-3"]
    assert [a.alert_id for a in found.goes] == ["alert-m/a-1", "alert-m/a-2", "alert-m/a-3"]
    assert [a.alert_id for a in found.not_reproduced] == ["alert-m/a-4"]
    assert found.comes == [episode(6), episode(4, 10)]
    assert found.lost_incidents == ["i2"]  # of i3 one alert is left


def test_stored_windows_are_replayed_as_they_were_scored() -> None:
    slow = history()
    starts = START_MS + MINUTE_MS * np.arange(LENGTH)
    slow["chat/a"][0][300:310, STATISTIC_INDEX["latency_p95_ms"]] *= 9
    series = {
        "chat/a": SeriesHistory(starts, *slow["chat/a"]),
        "chat/b": SeriesHistory(starts[50:], *(x[50:] for x in slow["chat/b"])),  # born later
    }
    for from_ms, expected in ((START_MS, 1), (START_MS + 320 * MINUTE_MS, 0)):
        found = preview.replayed(
            PlainScorer(), series, window_ms=MINUTE_MS, from_ms=from_ms, resolve_after_windows=3
        )
        assert [(e.series, e.start_ms) for e in found] == [("chat/a", START_MS + 300 * MINUTE_MS)] * expected
