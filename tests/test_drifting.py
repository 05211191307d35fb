"""Drift end to end: stored windows are compared at gates; the verdict shows and brings training forward."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import Engine
from typer.testing import CliRunner

from monitor import metrics
from monitor.clock import ManualClock
from monitor.commands.models import models_app
from monitor.config import Settings, TrainingSettings, WindowSettings
from monitor.models import STRAGGLER_WAIT_S, TrainedModels
from monitor.schedule import ACTIVATION_DELAY_MS, DAY_MS, HOUR_MS
from storage import drift, queries
from storage.engine import connect, upgrade
from storage.facts import Facts
from storage.models import ModelRegistry
from storage.types import ModelVersionRow, SeriesRow
from tests.scorers import PlainScorer
from tests.storage_kit import FEATURE_COLUMNS, make_commit, make_ledger, make_windows

START_MS = 20_000 * DAY_MS
WINDOW_MS = 300_000
SERIES = ["chat/a", "chat/b", "chat/c"]
SHIFT_MS = START_MS + 3 * DAY_MS
TRAINED_MS = START_MS + DAY_MS
LATENCY, ERRORS = FEATURE_COLUMNS.index("latency_p50_ms"), FEATURE_COLUMNS.index("error_rate")
CURRENT = PlainScorer()


def never(settings: Settings, trained_at_ms: int) -> None:
    raise AssertionError("no training is started in this test")


def fill(url: str, *, days: int = 6) -> None:
    """Windows of three services for some days; from SHIFT_MS on latency is 40% higher in all of them."""
    engine = connect(url)
    upgrade(engine)
    ledger = make_ledger(engine)
    claim = ledger.claim("logs", 0, now_ms=0)
    rng = np.random.default_rng(5)
    windows = []
    for start_ms in range(START_MS, START_MS + days * DAY_MS, WINDOW_MS):
        features = np.full((len(SERIES), len(FEATURE_COLUMNS)), np.nan)
        features[:, 0] = rng.poisson(60, len(SERIES))
        features[:, LATENCY] = 400 * np.exp(0.1 * rng.standard_normal(len(SERIES)))
        features[:, ERRORS] = 0.0
        if start_ms >= SHIFT_MS:
            features[:, LATENCY] *= 1.4
        incident = start_ms // WINDOW_MS % 20 == 0  # wild, but anomalous: no part of any comparison
        if incident:
            features[:, ERRORS] = 1.0
        windows.append(
            make_windows(
                start_ms,
                SERIES,
                window_end_ms=start_ms + WINDOW_MS,
                features=features,
                score=rng.random(len(SERIES)) * 0.3,
                is_anomalous=np.full(len(SERIES), incident),
                sketches=[None] * len(SERIES),
            )
        )
    series = [SeriesRow(name, "chat", name[-1], START_MS, START_MS, b"", b"", None) for name in SERIES]
    ledger.commit(make_commit(claim, None, 10, windows=windows, series=series))
    engine.dispose()


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("drift") / "filled.db"
    fill(f"sqlite:///{path}")
    return path


@pytest.fixture
def models(filled: Path, tmp_path: Path) -> Iterator[TrainedModels]:
    """The models of a process on a copy of the filled database."""
    path = tmp_path / "drift.db"
    path.write_bytes(filled.read_bytes())
    made = process(path)
    made.gate_ms(START_MS)  # the first record: all times count from here
    register(made.registry, TRAINED_MS)
    yield made
    made.registry.engine.dispose()


def process(path: Path) -> TrainedModels:
    settings = Settings(
        training=TrainingSettings(first_after_h=24, every_h=168),
        window=WindowSettings(length_s=WINDOW_MS // 1000),
    )
    engine: Engine = connect(f"sqlite:///{path}")
    return TrainedModels(settings, ModelRegistry(engine), Facts(engine), never, ManualClock().monotonic_s)


def register(registry: ModelRegistry, at_ms: int) -> None:
    row = ModelVersionRow(f"v-{at_ms}", "ensemble", at_ms, "refused", {}, b"artifact", "0" * 64)
    assert registry.add(row)


def pass_gates(models: TrainedModels, until_ms: int, from_ms: int = START_MS) -> list[int]:
    """One partition goes through every gate; a training that is due ends as refused. Returns all gates."""
    at_ms, gates = from_ms, []
    while (at_ms := models.gate_ms(at_ms)) <= until_ms:
        models.observe([at_ms])
        gates.append(at_ms)
        if models.decided(at_ms, CURRENT) is None:
            register(models.registry, at_ms - ACTIVATION_DELAY_MS)
            assert models.decided(at_ms, CURRENT) is not None
    return gates


def trainings(models: TrainedModels) -> list[int]:
    found = [row["trained_at"] for row in queries.models(models.registry.engine)]
    return sorted(int(at.timestamp() * 1000) for at in found)


def test_a_lasting_shift_brings_the_next_training_forward(
    models: TrainedModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        TrainedModels, "at_claim", lambda self, version: CURRENT
    )  # what is registered here cannot score
    gates = pass_gates(models, START_MS + 5 * DAY_MS + HOUR_MS)
    verdicts = {row.checked_at_ms: row for row in drift.all_verdicts(models.registry.engine)}
    assert min(verdicts) == START_MS + 54 * HOUR_MS
    before = [row for at, row in verdicts.items() if at <= SHIFT_MS]
    assert before and all(row.reason == "stable" and max(row.index.values()) < 0.2 for row in before)
    drifted = [at for at, row in verdicts.items() if row.drifted]
    drifted.sort()
    assert SHIFT_MS < drifted[0] <= SHIFT_MS + DAY_MS
    assert verdicts[drifted[0]].shifted == ["latency_p50_ms"]
    assert verdicts[drifted[0]].series == 3
    assert trainings(models) == [TRAINED_MS, *drifted]
    assert drifted[0] in gates and drifted[0] + ACTIVATION_DELAY_MS in gates
    # a training right behind the shift has seen little of it; the next verdict comes a day later
    assert not [at for at in verdicts if drifted[0] < at <= drifted[0] + DAY_MS]
    assert len(drifted) == 2


def test_verdicts_and_gates_are_the_same_for_another_process(
    models: TrainedModels, filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TrainedModels, "at_claim", lambda self, version: CURRENT)
    gates = pass_gates(models, START_MS + 5 * DAY_MS)
    verdicts = drift.all_verdicts(models.registry.engine)
    again = TrainedModels(models.settings, models.registry, models.facts, never, models.monotonic_s)
    assert pass_gates(again, START_MS + 5 * DAY_MS) == gates  # from the beginning, with all verdicts known
    other = tmp_path / "other.db"
    other.write_bytes(filled.read_bytes())
    interrupted = process(other)
    register(interrupted.registry, TRAINED_MS)
    half = pass_gates(interrupted, START_MS + 4 * DAY_MS)
    interrupted.registry.engine.dispose()
    resumed = process(other)  # the rest in another process
    rest = pass_gates(resumed, START_MS + 5 * DAY_MS, from_ms=half[-1])
    assert [*half, *rest] == gates
    assert drift.all_verdicts(resumed.registry.engine) == verdicts
    resumed.registry.engine.dispose()


def test_a_comparison_waits_for_partitions_behind_but_not_for_ever(models: TrainedModels) -> None:
    check_ms = START_MS + 54 * HOUR_MS
    assert models.gate_ms(check_ms - 1) == check_ms
    models.observe([check_ms, check_ms - HOUR_MS])
    assert models.decided(check_ms, CURRENT) is None
    assert not drift.all_verdicts(models.registry.engine)
    clock = ManualClock()
    models.monotonic_s = clock.monotonic_s
    assert models.decided(check_ms, CURRENT) is None
    clock.advance(int(1000 * STRAGGLER_WAIT_S) + 1000)
    assert models.decided(check_ms, CURRENT) is CURRENT
    assert [row.checked_at_ms for row in drift.all_verdicts(models.registry.engine)] == [check_ms]


def test_people_see_the_verdict(models: TrainedModels) -> None:
    check_ms = START_MS + 54 * HOUR_MS
    models.gate_ms(check_ms - 1)
    models.observe([check_ms])
    assert models.decided(check_ms, CURRENT) is CURRENT
    (model,) = queries.models(models.registry.engine)
    assert model["drift"]["reason"] == "stable" and not model["drift"]["drifted"]
    assert set(model["drift"]["index"]) == {"request_count", "latency_p50_ms", "error_rate"}
    value = metrics.REGISTRY.get_sample_value("inferwatch_drift_index", {"feature": "latency_p50_ms"})
    assert value == model["drift"]["index"]["latency_p50_ms"]
    database = ("--database", str(models.registry.engine.url))
    listed = CliRunner().invoke(models_app, ["list", "--json", *database])
    (row,) = json.loads(listed.stdout)
    assert row["drift"]["reason"] == "stable" and row["drift"]["series"] == 3
    shown = CliRunner().invoke(models_app, ["drift", "--json", *database])
    (verdict,) = json.loads(shown.stdout)
    assert verdict["series"] == 3 and verdict["trained_at"] == row["trained_at"]
