"""Which model is in force: gates, trainings in a process of their own, and what a person chooses."""

from __future__ import annotations

import hashlib
import time
from functools import cache
from pathlib import Path

import pytest

from detectors import artifacts
from detectors.ensemble import Ensemble
from monitor.clock import ManualClock
from monitor.config import Settings, TrainingSettings
from monitor.models import ACTIVATION_DELAY_MS, HOUR_MS, SETTLED_MS, TrainedModels
from storage.engine import connect, upgrade
from storage.facts import Facts
from storage.models import ModelRegistry
from storage.types import ModelVersionRow

DAY_MS = 24 * HOUR_MS


@cache
def prior() -> Ensemble:
    return Ensemble.prior(false_alarms_per_week=1.0, window_ms=60_000)


START_MS = 20_000 * DAY_MS


def register(registry: ModelRegistry, trained_at_ms: int, *, promote: bool) -> str:
    """A version with the prior's content, as a training leaves it."""
    artifact = artifacts.save(prior())
    version = f"trained-{trained_at_ms}"
    status = "champion" if promote else "refused"
    sha256 = hashlib.sha256(artifact).hexdigest()
    registry.add(ModelVersionRow(version, "ensemble", trained_at_ms, status, {}, artifact, sha256))
    return version


def train_and_refuse(settings: Settings, trained_at_ms: int) -> None:
    engine = connect(settings.database.url)
    register(ModelRegistry(engine), trained_at_ms, promote=False)
    engine.dispose()


def die(settings: Settings, trained_at_ms: int) -> None:
    raise SystemExit(3)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    made = Settings(training=TrainingSettings(first_after_h=24, every_h=48, drift_every_h=0))
    url = f"sqlite:///{tmp_path / 'models.db'}"
    return made.model_copy(update={"database": made.database.model_copy(update={"url": url})})


def models_for(settings: Settings, clock: ManualClock, train=train_and_refuse) -> TrainedModels:  # type: ignore[no-untyped-def]
    engine = connect(settings.database.url)
    upgrade(engine)
    return TrainedModels(settings, ModelRegistry(engine), Facts(engine), train, clock.monotonic_s)


def finish_training(models: TrainedModels) -> None:
    deadline = time.monotonic() + 240
    while models._process is not None and time.monotonic() < deadline:
        models.tick()
        time.sleep(0.02)
    assert models._process is None


def test_gates_stand_at_fixed_event_times_for_every_process(settings: Settings) -> None:
    models = models_for(settings, ManualClock())
    first = START_MS + DAY_MS + ACTIVATION_DELAY_MS
    assert models.gate_ms(START_MS + 60_000) == first
    assert models.gate_ms(first - 1) == first
    assert models.gate_ms(first) == first + 2 * DAY_MS
    later = models_for(settings, ManualClock())
    assert later.gate_ms(START_MS + 5 * HOUR_MS) == first  # the anchor is the database's, not the process's


def test_a_training_runs_beside_and_decides_its_gate(settings: Settings) -> None:
    models = models_for(settings, ManualClock())
    gate = models.gate_ms(START_MS)
    models.observe([START_MS + DAY_MS + SETTLED_MS - 1])
    models.tick()
    assert models.decided(gate, prior()) is None
    models.observe([START_MS + DAY_MS + SETTLED_MS, gate])
    models.tick()
    finish_training(models)
    found = models.decided(gate, prior())
    assert found is not None
    assert found.version == models.at_claim(None).version  # refused: the prior goes on
    assert models.training_s >= 0


def test_a_training_that_dies_is_decided_as_failed(settings: Settings) -> None:
    models = models_for(settings, ManualClock(), die)
    gate = models.gate_ms(START_MS)
    models.observe([gate])
    models.tick()
    finish_training(models)
    assert models.decided(gate, prior()) is not None


def test_a_promoted_model_comes_into_force_at_its_gate_and_not_before(settings: Settings) -> None:
    clock = ManualClock()
    models = models_for(settings, clock)
    gate = models.gate_ms(START_MS)
    before = models.at_claim(None)
    version = register(models.registry, START_MS + DAY_MS, promote=True)
    assert models.chosen(before, gate - 1) is before
    decided = models.decided(gate, prior())
    assert decided is not None
    clock.advance(60_000)
    assert models.chosen(decided, gate) is decided
    assert models.at_claim(version) is decided


def test_a_rollback_reaches_a_running_process(settings: Settings) -> None:
    clock = ManualClock()
    models = models_for(settings, clock)
    gate = models.gate_ms(START_MS)
    before = models.at_claim(None)
    register(models.registry, START_MS + DAY_MS, promote=True)
    trained = models.decided(gate, prior())
    assert trained is not None
    assert trained is not before
    models.registry.rollback()
    clock.advance(60_000)
    assert models.chosen(trained, gate + HOUR_MS) is before
