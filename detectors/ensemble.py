"""Both detectors, their calibration and the alarm decision: windows in, scores out."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from functools import cached_property
from importlib import resources

import numpy as np

from detectors import (
    base,
    baseline,
    calibration,
    counting,
    explain,
    features,
    layout,
    learning,
    plain,
    threshold,
)
from detectors.calibration import Calibration
from detectors.channels import KIND, N_CHANNELS, N_SLOTS, RATE
from detectors.gbdt import Forest
from detectors.lstm import LstmModel
from detectors.state import FIXED_WIDTH, SeriesStates
from detectors.types import Bool, Contribution, Float32, Float64, Int64, ScoreBatch, WindowBatch

ALARM_AT = layout.STATE_WIDTH
_HOUR_MS = 3_600_000
SIDE_BY_SIDE = 2_000  # series that close together, from which on two cores are used


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a window looks like before anything is decided; one entry per row."""

    z: Float64  # [m, N_SLOTS, families]
    x: Float32  # [m, N_FEATURES]
    logit: Float64  # [m], log-odds of the GBDT
    odds: Float64  # [m], log-odds of the LSTM, the GBDT's where there is no LSTM
    inputs: Float64  # [m, len(calibration.INPUTS)]
    height: Float64  # [m]


@dataclass(frozen=True, eq=False)
class Ensemble:
    """GBDT and LSTM over running baselines; immutable, all memory is in the states."""

    version: str
    forest: Forest
    calibration: Calibration
    lstm: LstmModel | None = None
    false_alarms_per_week: float = 1.0
    window_ms: int = 60_000
    metadata: dict[str, object] = field(default_factory=dict)

    @classmethod
    def prior(cls, *, false_alarms_per_week: float, window_ms: int) -> Ensemble:
        """The model that ships with the package, for series without a training of their own."""
        from detectors import artifacts

        blob = (resources.files("detectors") / "prior" / "prior.iwm").read_bytes()
        return artifacts.load(
            blob,
            false_alarms_per_week=false_alarms_per_week,
            window_ms=window_ms,
            key=artifacts.SHIPPED,
        )

    @cached_property
    def threshold(self) -> float:
        """Height at which a window is an alarm."""
        return threshold.height_for(
            self.calibration, false_alarms_per_week=self.false_alarms_per_week, window_ms=self.window_ms
        )

    def new_states(self) -> SeriesStates:
        return SeriesStates(self.lstm.state_size if self.lstm else 0, self.version if self.lstm else "")

    def score(self, batch: WindowBatch, states: base.SeriesStates) -> ScoreBatch:
        """Score one window of every series of the batch and advance the states of just these series."""
        own = self._own(states)
        return self._score(batch, own, own.rows(batch.series))

    def rescore(self, batch: WindowBatch, states: base.SeriesStates) -> ScoreBatch:
        """Score amended windows against the present states, which stay as they are."""
        copy, rows = self._own(states).peek(batch.series)
        return self._score(batch, copy, rows)

    def _own(self, states: base.SeriesStates) -> SeriesStates:
        if not isinstance(states, SeriesStates):
            raise TypeError("these states were not made by new_states")
        if self.lstm is not None:
            states.adopt(self.lstm.state_size, self.version)
        return states

    def evidence(self, batch: WindowBatch, states: SeriesStates, rows: Int64) -> Evidence:
        """Advance baselines, LSTM and calibration by one window; the same code in training and serving.

        Large batches in two halves side by side: somebody waits for them, and each row is for itself.
        """
        if len(rows) < SIDE_BY_SIDE:
            return self._evidence(batch, states, rows)
        half = len(rows) // 2
        with ThreadPoolExecutor(1, "score") as other:
            rest = other.submit(self._evidence, batch.take(slice(half, None)), states, rows[half:])
            first = self._evidence(batch.take(slice(half)), states, rows[:half])
        parts = first, rest.result()
        return Evidence(
            *(np.concatenate([getattr(part, each.name) for part in parts]) for each in fields(first))
        )

    def _evidence(self, batch: WindowBatch, states: SeriesStates, rows: Int64) -> Evidence:
        m = len(rows)
        names = sorted(batch.metrics)
        metric_x = np.zeros((m, len(names)))
        metric_n = np.zeros((m, len(names)))
        for k, name in enumerate(names):
            value, count = batch.metrics[name]
            known = np.isfinite(value)
            metric_x[:, k] = np.where(known, _compress(value), 0.0)
            metric_n[:, k] = np.where(known, count, 0.0)
        slots = states.metric_slots(rows, names) if names else np.empty((m, 0), np.int64)
        z = np.empty((m, N_SLOTS, len(baseline.FAMILIES)))
        extra = np.empty((m, len(counting.COUNT_FEATURES)))
        hour = batch.window_start_ms // _HOUR_MS % layout.HOURS_OF_WEEK
        values = np.ascontiguousarray(batch.values, dtype=np.float64)
        counts = np.ascontiguousarray(batch.counts, dtype=np.float64)
        spans = baseline.horizons(batch.window_ms)
        baseline.advance(values, counts, rows, states.data, hour, spans, metric_x, metric_n, slots, z, extra)
        x = np.empty((m, features.N_FEATURES), np.float32)
        features.build(z, extra, x)
        logit = self.forest.logit(x)
        odds = self._lstm_step(z, x, logit, counts, hour, states, rows)
        inputs = np.empty((m, len(calibration.INPUTS)))
        height = np.empty(m)
        calibration.advance(
            logit, odds, rows, states.data, ALARM_AT, np.array(self.calibration.weights),
            self.calibration.daily, inputs, height,
        )  # fmt: skip
        doubtless = plain.beyond_doubt(z, extra, self.false_alarms_per_week)
        height = np.where(doubtless > 0, np.maximum(height, self.threshold + doubtless), height)
        return Evidence(z, x, logit, odds, inputs, height)

    def _lstm_step(
        self, z: Float64, x: Float32, logit: Float64, counts: Float64, hour: int, states: SeriesStates,
        rows: Int64,
    ) -> Float64:  # fmt: skip
        if self.lstm is None:
            return logit
        now, mask = lstm_input(z, counts)
        angle = 2 * np.pi * (hour % layout.HOURS) / layout.HOURS
        time = np.tile(np.array([np.sin(angle), np.cos(angle)], np.float32), (len(rows), 1))
        extra = lstm_extra(z, x, logit)
        step = self.lstm.step(now, mask, time, states.data[rows, FIXED_WIDTH:], extra)
        states.data[rows, FIXED_WIDTH:] = step.state
        return step.logit.astype(float)

    def _score(self, batch: WindowBatch, states: SeriesStates, rows: Int64) -> ScoreBatch:
        found = self.evidence(batch, states, rows)
        seen = states.data[rows, ALARM_AT + calibration.SEEN].astype(np.int64)
        weights = np.array(self.calibration.weights)
        now = found.inputs.copy()
        now[:, 2:5], now[:, 6] = now[:, 1:2], now[:, 5]
        latest = now @ weights - (found.inputs @ weights - found.height)
        relearned = states.data[rows, layout.H_RELEARN] == learning.RELEARN_WINDOWS
        alarm, reason = threshold.decide(
            found.height, latest, seen, relearned, self.threshold, rows, states.data, ALARM_AT
        )
        return ScoreBatch(
            score=_squash(found.height / 2.0),
            gbdt_score=_squash(found.logit),
            lstm_score=_squash(found.odds),
            tail_probability=self.calibration.tail_probability(found.height),
            is_anomalous=alarm,
            reason=reason,
            windows_seen=seen,
            explanations=self._explain(batch, states, rows, found, alarm),
        )

    def _explain(
        self, batch: WindowBatch, states: SeriesStates, rows: Int64, found: Evidence, alarm: Bool
    ) -> list[tuple[Contribution, ...]]:
        answers: list[tuple[Contribution, ...]] = [()] * len(rows)
        picked = np.flatnonzero(alarm)
        if not len(picked):
            return answers
        contributions = self.forest.contributions(found.x[picked])
        for k, i in enumerate(picked.tolist()):
            metrics = {
                name: (float(value[i]), float(count[i])) for name, (value, count) in batch.metrics.items()
            }
            answers[i] = explain.explain(
                contributions[k], found.z[i], states.data[rows[i]], batch.values[i], batch.counts[i],
                metrics, states.metric_names(int(rows[i])),
            )  # fmt: skip
        return answers


def lstm_input(z: Float64, counts: Float64) -> tuple[Float32, Bool]:
    """Scores of one window -> what the LSTM sees: z [m, N_CHANNELS] clipped to +-8, and what was measured."""
    now = np.clip(z[:, :N_CHANNELS, 0], -8.0, 8.0).astype(np.float32)
    mask = np.abs(z[:, :N_CHANNELS, 0]) > 0
    rates = (KIND[: counts.shape[1]] == RATE) & (counts > 0)
    mask[:, : counts.shape[1]] |= rates
    return now, mask


def lstm_extra(z: Float64, x: Float32, logit: Float64) -> Float32:
    """What the LSTM sees beside the channels of a window, clipped to +-8: each channel over ten windows, the
    count features and the summaries, and what the GBDT says of the window. [m, EXTRAS]"""
    parts = (z[:, :N_CHANNELS, _Z10], x[:, features.N_NAMED :], logit[:, None])
    extra: Float32 = np.clip(np.concatenate(parts, axis=1), -8.0, 8.0).astype(np.float32)
    return extra


EXTRAS = N_CHANNELS + features.N_FEATURES - features.N_NAMED + 1
_Z10 = baseline.FAMILIES.index("z10")


def _compress(value: Float64) -> Float64:
    """A user metric of any scale -> a scale on which changes are relative, exact near 0."""
    return np.sign(value) * np.log1p(np.abs(value) * 1e3)


def _squash(x: Float64) -> Float64:
    return 1.0 / (1.0 + np.exp(-np.clip(x, -40.0, 40.0)))
