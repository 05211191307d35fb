"""The GBDT: a LightGBM model, evaluated by a small compiled forest walker.

The walker gives the same answer whatever else is in the batch, and costs microseconds to call where
LightGBM's own predict costs a millisecond. LightGBM itself is imported only to train and to explain.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numba import njit

from detectors.features import N_FEATURES
from detectors.types import Float32, Float64, Int64

if TYPE_CHECKING:
    from lightgbm import Booster

PARAMETERS: dict[str, Any] = {
    "objective": "binary",
    "learning_rate": 0.06,
    "num_leaves": 31,
    "min_data_in_leaf": 60,
    "feature_fraction": 0.3,
    "bagging_fraction": 0.7,
    "bagging_freq": 1,
    "lambda_l2": 5.0,
    "max_bin": 63,
    "deterministic": True,
    "force_row_wise": True,
    "verbosity": -1,
}


@dataclass(frozen=True, eq=False)
class Forest:
    """A LightGBM text model. Read it only after its hash was verified."""

    text: str

    @cached_property
    def _tables(self) -> tuple[Int64, Int64, Float64, Int64, Int64, Float64, Int64]:
        roots: list[int] = []
        leaf_at: list[int] = []
        feature: list[Int64] = []
        left: list[Int64] = []
        right: list[Int64] = []
        threshold: list[Float64] = []
        leaf: list[Float64] = []
        for block in self.text.split("\nTree=")[1:]:
            tree = dict(line.split("=", 1) for line in block.split("\n\n")[0].splitlines()[1:] if "=" in line)
            base, leaf_base = sum(len(part) for part in feature), sum(len(part) for part in leaf)
            splits = int(tree["num_leaves"]) - 1
            roots.append(base if splits else -1)
            leaf_at.append(leaf_base)
            leaf.append(np.array(tree["leaf_value"].split(), float))
            if splits:
                feature.append(np.array(tree["split_feature"].split(), np.int64))
                threshold.append(np.array(tree["threshold"].split(), float))
                for child, into in (("left_child", left), ("right_child", right)):
                    nodes = np.array(tree[child].split(), np.int64)
                    into.append(np.where(nodes >= 0, nodes + base, nodes - leaf_base))
        return (
            np.array(roots, np.int64),
            np.concatenate(feature),
            np.concatenate(threshold),
            np.concatenate(left),
            np.concatenate(right),
            np.concatenate(leaf),
            np.array(leaf_at, np.int64),
        )

    def logit(self, x: Float32) -> Float64:
        """x: [m, N_FEATURES] -> [m] log-odds of an anomaly."""
        out = np.zeros(len(x))
        _walk(x, *self._tables, out)
        return out

    @cached_property
    def booster(self) -> Booster:
        from lightgbm import Booster

        return Booster(model_str=self.text)

    def contributions(self, x: Float32) -> Float64:
        """x: [m, N_FEATURES] -> [m, N_FEATURES] shares of the log-odds (Lundberg et al. 2018)."""
        return np.asarray(self.booster.predict(x, pred_contrib=True, num_threads=1))[:, :N_FEATURES]


@njit(cache=True)
def _walk(
    x: Float32, roots: Int64, feature: Int64, threshold: Float64, left: Int64, right: Int64,
    leaf: Float64, leaf_at: Int64, out: Float64,
) -> None:  # fmt: skip
    for i in range(len(x)):
        total = 0.0
        for t in range(len(roots)):
            node = roots[t]
            if node < 0:
                total += leaf[leaf_at[t]]
                continue
            while node >= 0:
                node = left[node] if x[i, feature[node]] <= threshold[node] else right[node]
            total += leaf[-node - 1]
        out[i] = total


def fit(
    x: Float32, y: Float64, weight: Float64, *, seed: int, rounds: int = 300, threads: int = 1, **changes: Any
) -> Forest:
    """Train on rows x [n, N_FEATURES] with y in {0, 1} and their weights. Deterministic for a seed."""
    import lightgbm

    data = lightgbm.Dataset(x, y, weight=weight, params={"max_bin": 63, "verbosity": -1}, free_raw_data=False)
    parameters = PARAMETERS | {"seed": seed, "num_threads": threads} | changes
    return Forest(lightgbm.train(parameters, data, num_boost_round=rounds).model_to_string())


def go_on(
    forest: Forest, x: Float32, y: Float64, trust: Float64, *, seed: int, rounds: int, threads: int = 1,
    losses: list[float] | None = None,
) -> Forest:  # fmt: skip
    """More trees behind those of `forest`, towards y as far as each row is trusted.

    x: [n, N_FEATURES]; y: [n] in {0, 1}; trust: [n] in [0, 1]. The target of a row is what `forest` says of
    it, moved by its trust towards y: rows that are not trusted hold the forest where it is.
    `losses` receives the cross-entropy (nats) on these rows after each round.
    """
    import lightgbm

    said = 1.0 / (1.0 + np.exp(-forest.logit(x)))
    target = (1.0 - trust) * said + trust * y
    data = lightgbm.Dataset(x, target, params={"max_bin": 63, "verbosity": -1}, free_raw_data=False)
    parameters = PARAMETERS | {
        "objective": "cross_entropy", "seed": seed, "num_threads": threads, "learning_rate": 0.04,
        "num_leaves": 15, "min_data_in_leaf": 30,
    }  # fmt: skip
    model = lightgbm.train(
        parameters,
        data,
        num_boost_round=rounds,
        init_model=forest.booster,
        valid_sets=None if losses is None else [data],
        callbacks=None if losses is None else [lambda now: losses.append(now.evaluation_result_list[0][2])],
    )
    return Forest(model.model_to_string())
