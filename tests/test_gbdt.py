"""The compiled forest against LightGBM's own answer."""

from __future__ import annotations

import numpy as np
import pytest

from detectors.features import N_FEATURES
from detectors.gbdt import LANES, LEAVES, Forest, fit
from detectors.types import Float32


@pytest.fixture(scope="module")
def rows() -> Float32:
    """[3 * LANES + 5, N_FEATURES], a tenth of it missing."""
    rng = np.random.default_rng(4)
    x = rng.normal(size=(3 * LANES + 5, N_FEATURES)).astype(np.float32)
    x[rng.random(x.shape) < 0.1] = np.nan
    return x


@pytest.fixture(scope="module")
def forest() -> Forest:
    rng = np.random.default_rng(5)
    x = rng.normal(size=(600, N_FEATURES)).astype(np.float32)
    x[rng.random(x.shape) < 0.1] = np.nan
    y = (np.nan_to_num(x[:, 3]) + x[:, 7] > 1.0).astype(float)
    return fit(x, y, np.ones(len(x)), seed=1, rounds=12, min_data_in_leaf=5)


def test_the_compiled_forest_says_what_lightgbm_says(forest: Forest, rows: Float32) -> None:
    filled = np.nan_to_num(rows)
    wanted = forest.booster.predict(filled, raw_score=True, num_threads=1)
    np.testing.assert_allclose(forest.logit(filled), wanted, rtol=1e-12)
    assert len(np.unique(wanted)) > 20


def test_an_answer_does_not_depend_on_the_rows_beside_it(forest: Forest, rows: Float32) -> None:
    whole = forest.logit(rows)
    assert np.isfinite(whole).all()
    for size in (1, 7, 8, 9, LANES, LANES + 1):
        parts = [forest.logit(rows[at : at + size]) for at in range(0, len(rows), size)]
        np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_a_tree_of_one_leaf_counts(forest: Forest, rows: Float32) -> None:
    """LightGBM writes one when nothing is left to split."""
    lone = "Tree=99\nnum_leaves=1\nnum_cat=0\nleaf_value=0.25\nshrinkage=1\n\n\n"
    head, _, rest = forest.text.partition("\nTree=0")
    more = Forest(f"{head}\n{lone}Tree=0{rest}")
    np.testing.assert_allclose(more.logit(rows), forest.logit(rows) + 0.25, rtol=1e-12)


def test_a_number_on_a_threshold_goes_left(forest: Forest) -> None:
    """Thresholds are doubles and rows are not: the nearest floats on either side of each must part there."""
    near = {float(each) for line in forest.text.splitlines() if line.startswith("threshold=")
            for each in line.removeprefix("threshold=").split()}  # fmt: skip
    floats = np.array(sorted(near)).astype(np.float32)
    beside = np.concatenate([np.nextafter(floats, np.float32(side)) for side in (-np.inf, np.inf)])
    numbers = np.concatenate([floats, beside])
    x = np.repeat(numbers[:, None], N_FEATURES, axis=1)
    wanted = forest.booster.predict(x, raw_score=True, num_threads=1)
    np.testing.assert_allclose(forest.logit(x), wanted, rtol=1e-12)


def test_a_tree_of_too_many_leaves_is_refused() -> None:
    rng = np.random.default_rng(6)
    x = rng.normal(size=(4000, N_FEATURES)).astype(np.float32)
    bushy = fit(
        x, (x[:, 1] * x[:, 2] > 0).astype(float), np.ones(len(x)), seed=1, rounds=1, num_leaves=LEAVES + 9,
        min_data_in_leaf=5, feature_fraction=1.0,
    )  # fmt: skip
    with pytest.raises(ValueError, match=f"at most {LEAVES}"):
        bushy.logit(x[:1])
