"""Ready-made windows of many metrics (a server's, say): fitted once without labels, then scored causally.

Two forecasters say how surprising a row is given the rows before: a linear one with trees upon it, which
sees changes only, and an LSTM that carries the level along; both keep their judgement when a metric drifts
away from where it was in training. How far a row lies from where the metrics stood finds what forecasters
get used to; it counts only beyond both the training mean and the recent mean, so that neither a lasting
drift nor the way back from an anomaly counts. The squares of the robust z of all are added up, where one
sure witness outweighs indifferent ones.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from detectors.lstm import LstmOptions, LstmSequence
from detectors.readymade import evidence as ev
from detectors.readymade.forecast import forecast_errors
from detectors.types import Bool, Float64

LEAST_ROWS = 50  # to fit on
_COARSE = 0.02  # of a metric's range: smaller errors of trees and level say little
_RECENT = 500.0  # span of the recent mean of a metric, in rows


@dataclass(frozen=True, slots=True)
class MultivariateOptions:
    """One fixed configuration for all files."""

    lstm: LstmOptions = field(default_factory=lambda: LstmOptions(hidden=64, noise_std=0.05, jitter_std=0.1))
    score_span: float = 20.0  # rows of smoothing of the reported score
    alarm_span: float = 2.0  # rows of smoothing of the evidence that the alarm sees
    alarm_rows_per_1000: float = 6.5  # rows over the threshold per 1,000, were all normal and alike
    hold: int = 20  # calm rows that end an alarm
    hold_at_most: int = 60  # rows without a new crossing that end it too
    seed: int = 7


WITNESSES = {"changes": 1.0, "lstm_whitened": 1.0, "lstm_relative": 0.3, "level": 1.0}
"""Weight of the squared robust z of each witness."""


def score_windows(
    values: Float64, train_rows: int, options: MultivariateOptions | None = None, *, budget: float = 1.0
) -> tuple[Float64, Bool]:
    """values: [n, C], rows in time order, NaN = missing; the first `train_rows` are for fitting.

    Returns score in [0, 1] and alarm, one entry per row behind the training rows; entry i depends on
    nothing after its row. Alarms fire `budget` times as often as the options say (at most 20 rows per 1,000).
    Raises ValueError with fewer than 50 rows to fit on or no metric.
    """
    options = options or MultivariateOptions()
    if train_rows < LEAST_ROWS or values.shape[1] == 0:
        raise ValueError(
            f"{train_rows} training rows of {values.shape[1]} metrics are too few; "
            f"at least {LEAST_ROWS} rows and a metric are needed"
        )
    scaled = _unit_range(values, train_rows)
    known = np.isfinite(scaled)
    filled = _filled(scaled, train_rows)
    streams = _lstm_streams(filled, known, train_rows, options)
    streams["changes"] = _change_stream(filled, train_rows, options.seed)
    streams["level"] = level_stream(filled, train_rows)
    fused = np.zeros(len(values))
    for name, weight in WITNESSES.items():
        fused += weight * ev.signed_square(ev.centred(streams[name], train_rows))
    smoothed = ev.smooth(fused, options.score_span)
    unit = max(float(np.quantile(smoothed[:train_rows], 0.99)), 1e-6)
    positive = np.logaddexp(0.0, smoothed / unit)  # > 0, the identity for large values
    over = ev.excess(ev.smooth(ev.signed_root(fused), options.alarm_span), train_rows)
    fire = ev.fire_level(min(budget * options.alarm_rows_per_1000, 20.0))
    alarm = ev.held_alarm(over, fire, 0.5 * fire - 1.0, options.hold, options.hold_at_most)
    return (positive / (positive + 4.0))[train_rows:], alarm[train_rows:]


def _unit_range(values: Float64, rows: int) -> Float64:
    """Metrics of any unit -> about [0, 1] by their training range."""
    out = np.array(values, dtype=float)
    out[~np.isfinite(out)] = np.nan
    for j in range(out.shape[1]):
        known = out[:rows, j][np.isfinite(out[:rows, j])]
        low, high = (known.min(), known.max()) if len(known) else (0.0, 1.0)
        if low < -1e-9 or high > 1.0 + 1e-9:
            out[:, j] = (out[:, j] - low) / (high - low if high > low else 1.0)
    return out


def _filled(values: Float64, rows: int) -> Float64:
    """Missing -> the last value seen, at the start the training median."""
    out = values.copy()
    for j in range(out.shape[1]):
        known = np.isfinite(out[:, j])
        if known.all():
            continue
        start = float(np.median(out[:rows, j][known[:rows]])) if known[:rows].any() else 0.0
        out[:, j] = ev.carried(out[:, j], start)
    return out


def _lstm_streams(
    values: Float64, known: Bool, rows: int, options: MultivariateOptions
) -> dict[str, Float64]:
    from detectors.lstm_train import train_lstm

    low, middle, high = np.quantile(values[:rows], [0.25, 0.5, 0.75], axis=0)
    unit = np.maximum(np.maximum((high - low) / 1.349, 0.1 * values[:rows].std(axis=0)), 1e-3)
    z = np.clip((values - middle) / unit, -8.0, 8.0).astype(np.float32)
    none = np.zeros((len(values), 0), np.float32)
    model, _ = train_lstm([LstmSequence(z[:rows], known[:rows], none[:rows])], options.lstm, options.seed)
    trace = model.sequence(z, known, none)
    absolute = ev.robust_errors(np.where(known, z - trace.mean, 0.0) * unit, rows)
    relative = ev.robust_errors(trace.residual.astype(float), rows)
    return {"lstm_whitened": ev.many(ev.whitened(absolute, rows)), "lstm_relative": ev.few(relative)}


def _change_stream(values: Float64, rows: int, seed: int) -> Float64:
    errors = forecast_errors(values, rows, seed)
    return ev.few(ev.robust_errors(errors, rows, _COARSE))


def level_stream(values: Float64, rows: int) -> Float64:
    """[n, C] -> [n]: how far metrics stand outside of what lies between their training and recent mean."""
    recent = ev.lagged(ev.running_mean(values, _RECENT), 1)
    usual = values[:rows].mean(axis=0)
    outside = values - np.clip(values, np.minimum(recent, usual), np.maximum(recent, usual))
    return ev.many(ev.robust_errors(outside, rows, _COARSE))
