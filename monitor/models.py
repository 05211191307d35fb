"""Which detectors are in force, from which event time on, and when they are trained anew.

Trainings stand at fixed event times T. A model trained at T uses windows up to T only and comes into force
at T + ACTIVATION_DELAY: a partition that reaches this *gate* before the training has ended waits there
(reading is paused, the group membership is kept). In live operation the hour in between is ample; in a
replay the wait is the training time. So the model in force is a function of the log alone.

Every few hours of event time there is a gate for a comparison of the newest day with the windows trained
on. The first process whose partitions are all there makes the verdict, which is quick, and stores it; drift
makes the time of this gate the time of the next training.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import structlog

from detectors.base import Scorer
from monitor import metrics
from monitor.clock import rfc3339
from monitor.config import Settings
from monitor.drifting import DriftWatch
from monitor.schedule import ACTIVATION_DELAY_MS, HOUR_MS, NEVER_MS, SETTLED_MS, Schedule
from storage.drift import all_verdicts, recall
from storage.facts import Facts
from storage.models import ModelRegistry

if TYPE_CHECKING:
    from detectors.ensemble import Ensemble

log = structlog.get_logger()

STRAGGLER_WAIT_S = 30.0
CHOICE_CHECK_S = 10.0
RETRIAL_S = 600.0
ANCHOR_KEY = "training_anchor_ms"
LAST_IN_QUEUE = 19  # niceness of a training: reading a log that lags takes both of two cores


class Models(Protocol):
    """What the pipeline asks about models."""

    def at_claim(self, version: str | None) -> Scorer:
        """The scorer a partition was last committed with; None = never committed."""
        ...

    def gate_ms(self, event_ms: int) -> int:
        """The first event time behind `event_ms` at which a model or drift is decided; NEVER_MS = none."""
        ...

    def decided(self, gate_ms: int, current: Scorer) -> Scorer | None:
        """The scorer in force from `gate_ms` on; None while its training still runs.

        Everything up to the gate must have been committed.
        """
        ...

    def chosen(self, current: Scorer, event_ms: int) -> Scorer:
        """The scorer to go on with at `event_ms`: another one if a person has promoted or rolled back."""
        ...

    def observe(self, event_ms: list[int]) -> None:
        """Told how far event time is in each partition of this process."""
        ...


@dataclass(slots=True)
class FixedModel:
    """One scorer for ever: no training, no gates."""

    scorer: Scorer

    def at_claim(self, version: str | None) -> Scorer:
        return self.scorer

    def gate_ms(self, event_ms: int) -> int:
        return NEVER_MS

    def decided(self, gate_ms: int, current: Scorer) -> Scorer | None:
        return self.scorer

    def chosen(self, current: Scorer, event_ms: int) -> Scorer:
        return self.scorer

    def observe(self, event_ms: list[int]) -> None:
        return None


@dataclass(slots=True)
class TrainedModels:
    """Models of the registry, trained on the schedule of the settings in a process of its own."""

    settings: Settings
    registry: ModelRegistry
    facts: Facts
    train: Callable[[Settings, int], object]
    """(settings, trained_at_ms): importable by name; trains on windows up to then, registers the result"""
    monotonic_s: Callable[[], float]
    training_s: float = 0.0  # wall time in which trainings ran
    _loaded: dict[str | None, Scorer] = field(default_factory=dict)
    _newest: Scorer | None = None  # the scorer that was asked for last and is sound
    _refused_until_s: dict[str | None, float] = field(default_factory=dict)
    _schedule: Schedule | None = None  # from the first record on
    _drifted: tuple[int, ...] = ()  # comparisons that found drift, ascending; replaced as a whole
    _checked: set[int] = field(default_factory=set)
    _watch: DriftWatch | None = None
    _decided: set[int] = field(default_factory=set)
    _training_ms: int = 0
    _process: multiprocessing.process.BaseProcess | None = None
    _started_s: float = 0.0
    _waiting_since_s: float | None = None
    _slowest_ms: int | None = None
    _looked_s: float = float("-inf")
    _champion: tuple[str | None, int] = (None, 0)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def at_claim(self, version: str | None) -> Scorer:
        return self._scorer(version if version is not None else self.registry.champion())

    def _scorer(self, version: str | None) -> Scorer:
        """A registered version; the shipped prior for None and for a version that is not registered.

        A version that does not stand its trial is not used: the one in force before serves on, and the
        trial is repeated after RETRIAL_S.
        """
        if version in self._loaded:
            self._newest = self._loaded[version]
        elif self.monotonic_s() >= self._refused_until_s.get(version, float("-inf")):
            self._newest = self._tried(version)
        return self._newest if self._newest is not None else self._scorer(None)

    def _tried(self, version: str | None) -> Scorer | None:
        artifact = self.registry.artifact(version) if version is not None else None
        try:
            if artifact is not None:
                from detectors import trial

                trial.try_out(artifact, self.registry.golden(version), timeout_s=trial.TIMEOUT_S)
            scorer = self._loaded[version] = load_scorer(self.settings, artifact)
        except ValueError as error:
            metrics.MODELS_REFUSED.inc()
            log.error("model_refused", version=version, reason=str(error)[:300])
            self._refused_until_s[version] = self.monotonic_s() + RETRIAL_S
            return self._newest
        return scorer

    def gate_ms(self, event_ms: int) -> int:
        if not self.settings.training.enabled:
            return NEVER_MS
        if self._schedule is None:
            self._schedule = self._anchored(event_ms)
        if self._schedule.check_every_ms:  # other processes make verdicts too
            verdicts = all_verdicts(self.registry.engine)
            self._checked.update(row.checked_at_ms for row in verdicts)
            self._drifted = tuple(sorted(row.checked_at_ms for row in verdicts if row.drifted))
        return self._schedule.next_gate(event_ms, self._drifted)

    def _anchored(self, event_ms: int) -> Schedule:
        training = self.settings.training
        hour_ms = event_ms // HOUR_MS * HOUR_MS
        anchor_ms = int(self.facts.remember(ANCHOR_KEY, str(hour_ms)))
        return Schedule(
            anchor_ms=anchor_ms,
            first_ms=anchor_ms + int(training.first_after_h * HOUR_MS),
            every_ms=int(training.every_h * HOUR_MS),
            check_every_ms=int(training.drift_every_h * HOUR_MS),
            window_ms=self.settings.window.length_s * 1000,
        )

    def decided(self, gate_ms: int, current: Scorer) -> Scorer | None:
        assert self._schedule is not None
        trained_ms = gate_ms - ACTIVATION_DELAY_MS
        training = self._schedule.is_training(trained_ms, self._drifted)
        everyone_is_here = self._slowest_ms is not None and self._slowest_ms >= gate_ms
        if not self._is_checked(gate_ms):
            if not everyone_is_here and not self._waited_long():
                return None
            with self._lock:
                self._check(gate_ms)
        if training and not self._is_decided(trained_ms):
            if self._waited_long():
                with self._lock:
                    self._start(trained_ms)
            return None
        self._waiting_since_s = None
        return self.at_claim(None) if training else current

    def _waited_long(self) -> bool:
        """A straggler in this process holds the others back no longer than this at a gate."""
        now_s = self.monotonic_s()
        if self._waiting_since_s is None:
            self._waiting_since_s = now_s
        return now_s - self._waiting_since_s > STRAGGLER_WAIT_S

    def _is_checked(self, at_ms: int) -> bool:
        """True when there is nothing to compare at this event time, or its verdict is known."""
        assert self._schedule is not None
        if at_ms in self._checked or not self._schedule.is_check(at_ms):
            return True
        if self._schedule.too_early(at_ms, self._drifted):
            return True
        known = recall(self.registry.engine, at_ms)
        if known is not None:
            self._note(at_ms, known.drifted)
        return known is not None

    def _check(self, at_ms: int) -> None:
        assert self._schedule is not None
        if self._watch is None:
            self._watch = DriftWatch(self.registry.engine, self._schedule.window_ms)
        known_ms = self.registry.newest_training_ms(self._schedule.recent(at_ms)[0])
        history_ms = int(self.settings.training.history_days * 24 * HOUR_MS)
        comparison = self._schedule.comparison(at_ms, known_ms, history_ms)
        self._note(at_ms, self._watch.check(at_ms, comparison).drifted)

    def _note(self, at_ms: int, drifted: bool) -> None:
        self._checked.add(at_ms)
        if drifted:
            self._drifted = tuple(sorted({*self._drifted, at_ms}))

    def chosen(self, current: Scorer, event_ms: int) -> Scorer:
        now_s = self.monotonic_s()
        if now_s - self._looked_s >= CHOICE_CHECK_S:
            self._looked_s = now_s
            self._champion = (self.registry.champion(), self.registry.champion_trained_at_ms() or 0)
        version, trained_ms = self._champion
        if trained_ms + ACTIVATION_DELAY_MS > event_ms:
            return current  # its gate is still ahead
        return self._scorer(version)

    def observe(self, event_ms: list[int]) -> None:
        self._slowest_ms = min(event_ms, default=None)

    def tick(self) -> None:
        """End and start trainings; called every few seconds, from any one thread at a time."""
        with self._lock:
            self._reap()
            if self._schedule is None or self._slowest_ms is None:
                return
            at_ms = self._schedule.newest_training(self._slowest_ms - SETTLED_MS, self._drifted)
            if at_ms is not None and not self._is_decided(at_ms):
                self._start(at_ms)

    def _is_decided(self, at_ms: int) -> bool:
        if at_ms not in self._decided and self.registry.is_decided(at_ms):
            self._decided.add(at_ms)
            if self._process is not None and at_ms == self._training_ms:
                self.training_s += self.monotonic_s() - self._started_s
        return at_ms in self._decided

    def close(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.join(5)

    def _start(self, at_ms: int) -> None:
        if self._process is not None:
            return
        context = multiprocessing.get_context("spawn")
        self._process = context.Process(target=_train_politely, args=(self.train, self.settings, at_ms))
        self._training_ms, self._started_s = at_ms, self.monotonic_s()
        self._process.start()
        log.info("training_started", trained_at=rfc3339(at_ms))

    def _reap(self) -> None:
        """Notice that a training has ended; one that died or hangs is decided as failed."""
        process = self._process
        if process is None:
            return
        took_s = self.monotonic_s() - self._started_s
        if process.is_alive():
            if took_s <= self.settings.training.timeout_s:
                return
            process.kill()
        process.join()
        if not self._is_decided(self._training_ms):
            self.registry.record_failure(
                self._training_ms, f"training ended with exit code {process.exitcode}"
            )
            metrics.TRAININGS.labels("failed").inc()
        self._process = None
        log.info("training_ended", trained_at=rfc3339(self._training_ms), seconds=round(took_s, 1))


def load_scorer(settings: Settings, artifact: bytes | None) -> Ensemble:
    """The scorer of a registered artefact, or the shipped prior without one."""
    from detectors import artifacts, ensemble

    budget, window_ms = settings.detection.false_alarms_per_week, settings.window.length_s * 1000
    if artifact is None:
        return ensemble.Ensemble.prior(false_alarms_per_week=budget, window_ms=window_ms)
    return artifacts.load(artifact, false_alarms_per_week=budget, window_ms=window_ms)


def _train_politely(train: Callable[[Settings, int], object], settings: Settings, at_ms: int) -> None:
    os.nice(LAST_IN_QUEUE)
    train(settings, at_ms)
