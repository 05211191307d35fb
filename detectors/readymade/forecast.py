"""One-step forecasts of ready-made metric series: a linear one of all metrics, and trees for what it leaves.

Neither is told where a metric stands: one that has drifted away since training (memory that grows, a new
load) would be an error for ever. They see how the running means of the rows before differ from each other,
over spans from two rows to a hundred, and predict how the next row differs from the shortest. Trees alone
predict nothing larger than what training had, and need many steps for what is a straight line; ridge
regression goes on along it, and the trees, one small model per metric, learn what is bent.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from detectors.readymade.evidence import lagged, running_mean
from detectors.types import Float64

_SPANS = (2.0, 8.0, 32.0, 128.0)  # of the running means, in rows
_COARSE = 0.01  # of a metric's range: what moves less says little about others
_LIMIT = 8.0  # of an input of the linear forecast, in units of its usual size
_PENALTY = 0.1  # on the squared weights of such inputs, per training row
_ROWS = 10_000  # training rows of the trees at most, evenly thinned
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
_ROUNDS = 30  # few: the linear forecast has left little, and training rows are judged by the same trees


def forecast_errors(values: Float64, rows: int, seed: int) -> Float64:
    """values [n, C], finite -> observed minus predicted, [n, C]; fitted to the first `rows` rows.

    Row i's prediction uses rows before i only. A metric that never moved in training is predicted to stay.
    """
    changes, target = _changes(values)
    errors = linear_errors(changes, target, rows)
    moves = np.ptp(values[:rows], axis=0) >= 1e-9
    errors[:, moves] -= _tree_predictions(changes, errors[:, moves], rows, seed)
    return errors


def _changes(values: Float64) -> tuple[Float64, Float64]:
    """What the rows before say, [n, 4 C], and what is to be predicted from it, [n, C]."""
    means = [lagged(values, 1), *(lagged(running_mean(values, span), 1) for span in _SPANS)]
    steps = [shorter - longer for shorter, longer in pairwise(means)]
    return np.hstack(steps), values - means[1]


def linear_errors(inputs: Float64, target: Float64, rows: int) -> Float64:
    """inputs [n, P], target [n, C] -> what ridge regression on the first `rows` rows leaves, [n, C].

    The errors in these rows are those of a fit to all of them but the row itself (PRESS residuals: Allen,
    Technometrics, 1974): a row that was fitted to errs too little.
    """
    scaled = np.clip(inputs / (inputs[:rows].std(axis=0) + _COARSE), -_LIMIT, _LIMIT)
    fitted = scaled[:rows]
    inverse = np.linalg.inv(fitted.T @ fitted + _PENALTY * rows * np.eye(inputs.shape[1]))
    weights = inverse @ (fitted.T @ target[:rows])
    errors: Float64 = target - np.einsum("ij,jk->ik", scaled, weights)  # bits do not depend on rows behind
    leverage = np.einsum("ij,ij->i", fitted @ inverse, fitted)
    errors[:rows] /= np.maximum(1.0 - leverage, 0.01)[:, None]
    return errors


def _tree_predictions(inputs: Float64, target: Float64, rows: int, seed: int) -> Float64:
    """inputs [n, P], target [n, C] -> predictions of trees fitted to the first `rows` rows, [n, C]."""
    import lightgbm

    thinned = np.arange(0, rows, max(1, -(-rows // _ROWS)))
    parameters = {**_PARAMETERS, "seed": seed}
    data = lightgbm.Dataset(inputs[thinned], np.zeros(len(thinned)), params=parameters).construct()
    out = np.empty_like(target)
    for j in range(target.shape[1]):
        data.set_label(target[thinned, j])
        out[:, j] = lightgbm.train(parameters, data, _ROUNDS).predict(inputs)
    return out
