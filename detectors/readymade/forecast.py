"""One-step forecasts of ready-made metric series by gradient-boosted trees, one small model per metric.

Trees cannot predict a value that no training row had, so a metric that has drifted away since (memory that
grows, a new load) would be an error for ever. They are given differences only: how the rows before differ
from their own short mean, and that from a longer one; they predict how the next row differs from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from detectors.readymade.evidence import lagged, running_mean
from detectors.types import Float64

_OWN_LAGS = (2, 3, 6)
_SHORT, _LONG = 12.0, 100.0  # spans of the two running means, in rows
_ROWS = 10_000  # training rows at most, evenly thinned
_PARAMETERS: dict[str, Any] = {
    "objective": "regression",
    "learning_rate": 0.08,
    "num_leaves": 15,
    "min_data_in_leaf": 30,
    "feature_fraction": 0.5,
    "bagging_fraction": 0.7,
    "bagging_freq": 1,
    "max_bin": 63,
    "num_threads": 1,
    "deterministic": True,
    "force_row_wise": True,
    "verbosity": -1,
}
_ROUNDS = 60


@dataclass(frozen=True, slots=True, eq=False)
class TreeForecaster:
    """Predicts every metric from the rows before: its own recent changes and those of all the others."""

    boosters: list[Any]  # one per metric, None for a metric that never moved

    @classmethod
    def fit(cls, train: Float64, seed: int) -> TreeForecaster:
        """train: [n, C], finite."""
        import lightgbm

        rows = np.arange(0, len(train), max(1, -(-len(train) // _ROWS)))
        parameters = {**_PARAMETERS, "seed": seed}
        changes = _Changes.of(train)
        boosters: list[Any] = []
        for j in range(train.shape[1]):
            if np.ptp(train[:, j]) < 1e-9:
                boosters.append(None)
                continue
            data = lightgbm.Dataset(changes.inputs(train, j)[rows], changes.target(train, j)[rows])
            boosters.append(lightgbm.train(parameters, data, _ROUNDS))
        return cls(boosters)

    def errors(self, values: Float64) -> Float64:
        """values: [n, C] -> observed minus predicted, [n, C]; row i uses rows before i only.

        A metric that never moved in training is predicted to stay where it was in the row before.
        """
        changes = _Changes.of(values)
        out = np.empty_like(values)
        for j, booster in enumerate(self.boosters):
            if booster is None:
                out[:, j] = values[:, j] - changes.last[:, j]
            else:
                out[:, j] = changes.target(values, j) - booster.predict(changes.inputs(values, j))
        return out


@dataclass(frozen=True, slots=True, eq=False)
class _Changes:
    """What the rows before say, [n, C] each; nothing in it depends on where a metric stands."""

    last: Float64
    short: Float64  # running mean up to the row before
    shared: Float64  # [n, 2 C]

    @classmethod
    def of(cls, values: Float64) -> _Changes:
        last = lagged(values, 1)
        short, long = (lagged(running_mean(values, span), 1) for span in (_SHORT, _LONG))
        return cls(last, short, np.hstack([last - short, short - long]))

    def inputs(self, values: Float64, j: int) -> Float64:
        """What the model of metric j sees, [n, 2 C + 3]."""
        own = [lagged(values[:, [j]], k) - self.short[:, [j]] for k in _OWN_LAGS]
        return np.hstack([self.shared, *own])

    def target(self, values: Float64, j: int) -> Float64:
        """What it predicts, [n]."""
        out: Float64 = values[:, j] - self.short[:, j]
        return out
