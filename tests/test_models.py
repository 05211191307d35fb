"""Which model is in force: gates, trainings in a process of their own, and what a person chooses."""

from __future__ import annotations

import hashlib
import json
import time
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from detectors import artifacts, trial
from detectors.ensemble import Ensemble
from detectors.trial import ModelRefusedError, check, golden, try_out
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


def resealed(artifact: bytes, change: Callable[[dict[str, bytes]], None]) -> bytes:
    """The artefact with changed parts and hashes that agree with them, as somebody would make it who can
    write to the database."""
    manifest, parts = artifacts._verified(artifact, None)
    change(parts)
    manifest["parts"] = [[n, len(data), hashlib.sha256(data).hexdigest()] for n, data in parts.items()]
    text = json.dumps(manifest, sort_keys=True).encode()
    head = artifacts._HEAD.pack(artifacts._MAGIC, len(text), artifacts._digest(text, None))
    return head + text + b"".join(parts.values())


def scrambled_trees(parts: dict[str, bytes]) -> None:
    text = zlib.decompress(parts["gbdt.txt.z"]).replace(b"left_child=", b"left_child=99999 ", 5)
    parts["gbdt.txt.z"] = zlib.compress(text)


def other_numbers(parts: dict[str, bytes]) -> None:
    parts["calibration.json"] = parts["calibration.json"].replace(b"0.", b"7.")


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: b"",
        lambda whole: whole[:-1000],
        lambda whole: whole[: len(whole) // 2] + b"x" + whole[len(whole) // 2 + 1 :],
        lambda whole: resealed(whole, scrambled_trees),
        lambda whole: resealed(whole, other_numbers),
    ],
    ids=["empty", "cut off", "one byte", "scrambled trees", "other numbers"],
)
def test_a_damaged_model_is_refused_and_the_old_one_serves_on(
    settings: Settings, damage: Callable[[bytes], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = ManualClock(0)
    models = models_for(settings, clock)
    good = register(models.registry, START_MS, promote=True)
    assert models.at_claim(good) is models.at_claim(None)
    serving = models.at_claim(good)
    monkeypatch.setattr(trial, "TIMEOUT_S", 10.0)  # the scrambled trees send their reader round for ever
    artifact = damage(artifacts.save(Ensemble.prior(false_alarms_per_week=1.0, window_ms=60_000)))
    golden_scores = golden(Ensemble.prior(false_alarms_per_week=1.0, window_ms=60_000))
    row = ModelVersionRow(
        "bad", "ensemble", START_MS + 1, "champion", {"golden": golden_scores}, artifact, "0" * 64
    )
    models.registry.add(row)
    assert models.registry.champion() == "bad"
    clock.advance(11_000)
    assert models.chosen(serving, START_MS + ACTIVATION_DELAY_MS + 2) is serving
    assert models.at_claim("bad") is serving
    fresh = models_for(settings, clock)  # a daemon that begins with it has the shipped prior
    assert (
        fresh.at_claim("bad").version == Ensemble.prior(false_alarms_per_week=1.0, window_ms=60_000).version
    )


@pytest.mark.timeout(900)  # what it asserts does not depend on how busy the machine is
def test_a_model_that_answers_as_it_did_is_used() -> None:
    prior = Ensemble.prior(false_alarms_per_week=1.0, window_ms=60_000)
    artifact, scores = artifacts.save(prior), golden(prior)
    assert len(scores) == 4 * 8 and all(0 <= x <= 1 for x in scores) and len(set(scores)) > 8
    try_out(artifact, scores, timeout_s=800.0)
    check(scores, scores)
    check(scores, None)
    for answered in ([1.0 - x for x in scores], scores[:-1]):
        with pytest.raises(ModelRefusedError, match="not those"):
            check(answered, scores)
    for odd in (float("nan"), -0.1, 1.1, float("inf")):
        with pytest.raises(ModelRefusedError, match="no probabilities"):
            check([odd, *scores[1:]], None)
    with pytest.raises(ModelRefusedError, match="longer"):
        try_out(artifact, scores, timeout_s=0.01)
