"""The GBDT: a LightGBM model, evaluated by a small compiled forest walker.

The walker gives the same answer whatever else is in the batch, and costs microseconds to call where
LightGBM's own predict costs a millisecond. LightGBM itself is imported only to train and to explain.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from numba import njit

from detectors.features import N_FEATURES
from detectors.types import Float32, Float64, Int64

if TYPE_CHECKING:
    from lightgbm import Booster

Int32 = npt.NDArray[np.int32]

BLOCK_ROWS = 32
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
    def _tables(self) -> tuple[Int64, Int32, Float64, Int32, Float64]:
        """roots [trees], and by node: feature, threshold, children (two places each), value.

        A leaf is a node, too: its children are itself, so that a walk may go on after it has arrived.
        """
        roots: list[int] = []
        feature: list[Int64] = []
        threshold: list[Float64] = []
        child: list[Int64] = []
        value: list[Float64] = []
        base = 0
        for block in self.text.split("\nTree=")[1:]:
            tree = dict(line.split("=", 1) for line in block.split("\n\n")[0].splitlines()[1:] if "=" in line)
            leaves = int(tree["num_leaves"])
            splits, itself = leaves - 1, np.arange(2 * leaves - 1)
            both = np.stack([itself, itself], axis=1)
            held, above = np.zeros(len(itself), np.int64), np.full(len(itself), np.inf)
            if splits:
                held[:splits] = np.array(tree["split_feature"].split(), np.int64)
                above[:splits] = np.array(tree["threshold"].split(), float)
                for side, name in enumerate(("left_child", "right_child")):
                    nodes = np.array(tree[name].split(), np.int64)
                    both[:splits, side] = np.where(nodes >= 0, nodes, splits - 1 - nodes)
            roots.append(base)
            feature.append(held)
            threshold.append(above)
            child.append((both + base).reshape(-1))
            value += [np.zeros(splits), np.array(tree["leaf_value"].split(), float)]
            base += len(itself)
        return (
            np.array(roots, np.int64),
            np.concatenate(feature).astype(np.int32),
            np.concatenate(threshold),
            np.concatenate(child).astype(np.int32),
            np.concatenate(value),
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
    x: Float32, roots: Int64, feature: Int32, threshold: Float64, child: Int32, value: Float64, out: Float64
) -> None:
    """Adds the leaves of every row, in the order of the trees.

    A tree stays in the fastest cache for a block of rows, and eight rows go down together, so that the
    processor has eight loads to wait for instead of one. NaN goes right, as no number is above it.
    """
    for first in range(0, len(x), BLOCK_ROWS):
        last = min(first + BLOCK_ROWS, len(x))
        for t in range(len(roots)):
            root = np.int32(roots[t])
            i = first
            while i + 8 <= last:
                a = b = c = d = e = f = g = h = root
                while True:
                    na = child[2 * a + (1 - (x[i + 0, feature[a]] <= threshold[a]))]
                    nb = child[2 * b + (1 - (x[i + 1, feature[b]] <= threshold[b]))]
                    nc = child[2 * c + (1 - (x[i + 2, feature[c]] <= threshold[c]))]
                    nd = child[2 * d + (1 - (x[i + 3, feature[d]] <= threshold[d]))]
                    ne = child[2 * e + (1 - (x[i + 4, feature[e]] <= threshold[e]))]
                    nf = child[2 * f + (1 - (x[i + 5, feature[f]] <= threshold[f]))]
                    ng = child[2 * g + (1 - (x[i + 6, feature[g]] <= threshold[g]))]
                    nh = child[2 * h + (1 - (x[i + 7, feature[h]] <= threshold[h]))]
                    if (
                        na == a
                        and nb == b
                        and nc == c
                        and nd == d
                        and ne == e
                        and nf == f
                        and ng == g
                        and nh == h
                    ):
                        break
                    a, b, c, d, e, f, g, h = na, nb, nc, nd, ne, nf, ng, nh
                out[i + 0] += value[a]
                out[i + 1] += value[b]
                out[i + 2] += value[c]
                out[i + 3] += value[d]
                out[i + 4] += value[e]
                out[i + 5] += value[f]
                out[i + 6] += value[g]
                out[i + 7] += value[h]
                i += 8
            while i < last:
                a = root
                while True:
                    e = child[2 * a + (1 - (x[i, feature[a]] <= threshold[a]))]
                    if e == a:
                        break
                    a = e
                out[i] += value[a]
                i += 1


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
