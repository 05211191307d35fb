"""The GBDT: a LightGBM model, evaluated by a small compiled function.

It gives the same answer whatever else is in the batch, and costs microseconds to call where
LightGBM's own predict costs a millisecond. LightGBM itself is imported only to train and to explain.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from detectors.features import N_FEATURES
from detectors.types import Float32, Float64, Int64

if TYPE_CHECKING:
    from lightgbm import Booster

Int32 = npt.NDArray[np.int32]
UInt32 = npt.NDArray[np.uint32]

LEAVES = 32  # of a tree at most: bits of a mask
LANES = 64  # rows that are looked at side by side
_DE_BRUIJN = 0x077CB531  # times a power of two: its five leading bits are another number for each
PARAMETERS: dict[str, Any] = {
    "objective": "binary",
    "learning_rate": 0.06,
    "num_leaves": LEAVES - 1,
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


class _Tables(NamedTuple):
    """What `_add_leaves` reads."""

    bounds: Int64  # per tree its first split
    feature: Int32  # of every split
    threshold: Float32
    mask: UInt32  # without the leaves on its left
    value: Float64  # LEAVES per tree


@dataclass(frozen=True, eq=False)
class Forest:
    """A LightGBM text model. Read it only after its hash was verified."""

    text: str

    def logit(self, x: Float32) -> Float64:
        """x: [m, N_FEATURES] -> [m] log-odds of an anomaly."""
        out = np.zeros(len(x))
        width = min(LANES, -(-len(x) // 16) * 16)
        _add_leaves(x, *_tables(self.text), out, width)
        return out

    @cached_property
    def booster(self) -> Booster:
        from lightgbm import Booster

        return Booster(model_str=self.text)

    def contributions(self, x: Float32) -> Float64:
        """x: [m, N_FEATURES] -> [m, N_FEATURES] shares of the log-odds (Lundberg et al. 2018)."""
        return np.asarray(self.booster.predict(x, pred_contrib=True, num_threads=1))[:, :N_FEATURES]


@lru_cache(maxsize=8)
def _tables(text: str) -> _Tables:
    """Raises ValueError for a tree of more than LEAVES leaves."""
    bounds, splits, values = [0], [], []
    for block in text.split("\nTree=")[1:]:
        tree = dict(line.split("=", 1) for line in block.split("\n\n")[0].splitlines()[1:] if "=" in line)
        own, leaves = _splits(tree)
        splits += own
        bounds.append(len(splits))
        values.append(leaves)
    feature, threshold, left = zip(*splits, strict=True) if splits else ((), (), ())
    above = np.array(threshold, np.float64)
    rounded = above.astype(np.float32)
    down = np.where(rounded > above, np.nextafter(rounded, np.float32(-np.inf)), rounded)
    return _Tables(
        np.array(bounds, np.int64),
        np.array(feature, np.int32),
        down.astype(np.float32),  # x <= above and x <= down are the same for every float32
        ~np.array(left, np.uint32),
        np.concatenate(values) if values else np.zeros(0),
    )


def _splits(tree: dict[str, str]) -> tuple[list[tuple[int, float, int]], Float64]:
    """Of a tree in LightGBM's text: (feature, threshold, leaves below its left side as bits) of every split,
    and its values, placed by the hash of their leaf's bit. Leaves count from left to right."""
    leaves, value = int(tree["num_leaves"]), np.array(tree["leaf_value"].split(), float)
    if leaves > LEAVES:
        raise ValueError(f"a tree has {leaves} leaves; at most {LEAVES} are supported")
    left, right = (list(map(int, tree.get(f"{side}_child", "").split())) for side in ("left", "right"))
    held, on_the_left, met = np.zeros(LEAVES), [0] * len(left), 0

    def visit(node: int) -> int:
        nonlocal met
        if node < 0:
            held[_place(met)] = value[~node]
            met += 1
            return 1 << (met - 1)
        on_the_left[node] = visit(left[node])
        return on_the_left[node] | visit(right[node])

    visit(0 if left else ~0)  # a leaf is written as the complement of its number
    feature = map(int, tree.get("split_feature", "").split())
    threshold = map(float, tree.get("threshold", "").split())
    return sorted(zip(feature, threshold, on_the_left, strict=True)), held


def _place(leaf: int) -> int:
    return ((1 << leaf) * _DE_BRUIJN & 0xFFFFFFFF) >> 27


@njit(cache=True, nogil=True)
def _add_leaves(
    x: Float32, bounds: Int64, feature: Int32, threshold: Float32, mask: UInt32, value: Float64,
    out: Float64, width: int,
) -> None:  # fmt: skip
    """Adds the leaves of every row, in the order of the trees.

    No walk: every split that a row fails takes the leaves on its left away, and the leftmost leaf that
    remains is the row's (Lucchese et al., "QuickScorer", SIGIR 2015). `width` rows are taken side by side, so
    that one instruction serves many; it is an argument, for a loop of known length is unrolled and not
    vectorised. NaN goes right, as it is not below anything.
    """
    full, one, hashing, shift = np.uint32(0xFFFFFFFF), np.uint32(1), np.uint32(_DE_BRUIJN), np.uint32(27)
    columns, left = np.empty((x.shape[1], width), np.float32), np.empty(width, np.uint32)
    for first in range(0, len(x), width):
        rows = min(width, len(x) - first)
        for i in range(rows):
            for f in range(x.shape[1]):
                columns[f, i] = x[first + i, f]
        for t in range(len(bounds) - 1):
            for i in range(width):
                left[i] = full
            for k in range(bounds[t], bounds[t + 1]):
                column, above, kept = columns[feature[k]], threshold[k], mask[k]
                for i in range(width):
                    left[i] &= full if column[i] <= above else kept
            for i in range(rows):
                lowest = np.uint32(left[i] & (~left[i] + one))
                out[first + i] += value[t * LEAVES + (np.uint32(lowest * hashing) >> shift)]


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
