"""One-step forecasts of ready-made metric series by gradient-boosted trees, one small model per metric."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from detectors.readymade.evidence import running_mean
from detectors.types import Float64

_OWN_LAGS = (2, 3, 6, 12)
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


def _lagged(values: Float64, steps: int) -> Float64:
    """values `steps` rows earlier; the first row stands in for what lies before it."""
    return np.concatenate([np.repeat(values[:1], steps, axis=0), values[:-steps]])[: len(values)]


@dataclass(frozen=True, slots=True, eq=False)
class TreeForecaster:
    """Predicts every metric from the rows before: its own recent past and everyone's last value and mean."""

    boosters: list[Any]  # one per metric, None for a metric that never moved
    level: Float64  # [C], what a metric without a model is expected to be

    @classmethod
    def fit(cls, train: Float64, seed: int) -> TreeForecaster:
        """train: [n, C], finite."""
        import lightgbm

        rows = np.arange(0, len(train), max(1, -(-len(train) // _ROWS)))
        parameters = {**_PARAMETERS, "seed": seed}
        shared = _shared(train)
        boosters: list[Any] = []
        for j in range(train.shape[1]):
            if np.ptp(train[:, j]) < 1e-9:
                boosters.append(None)
                continue
            data = lightgbm.Dataset(np.hstack([shared, _own(train, j)])[rows], train[rows, j])
            boosters.append(lightgbm.train(parameters, data, _ROUNDS))
        return cls(boosters, train[0].copy())

    def errors(self, values: Float64) -> Float64:
        """values: [n, C] -> observed minus predicted, [n, C]; row i uses rows before i only."""
        shared = _shared(values)
        out = np.empty_like(values)
        for j, booster in enumerate(self.boosters):
            if booster is None:
                out[:, j] = values[:, j] - self.level[j]
            else:
                out[:, j] = values[:, j] - booster.predict(np.hstack([shared, _own(values, j)]))
        return out


def _shared(values: Float64) -> Float64:
    return np.hstack([_lagged(values, 1), _lagged(running_mean(values, 12), 1)])


def _own(values: Float64, j: int) -> Float64:
    column = values[:, [j]]
    lags = [_lagged(column, k) for k in _OWN_LAGS]
    return np.hstack([*lags, _lagged(running_mean(column, 100), 1)])
