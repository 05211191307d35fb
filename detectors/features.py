"""Scores against the baselines -> the row of relative features that the GBDT sees.

No absolute level enters, so a model trained on some workloads transfers to others.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from detectors.baseline import FAMILIES
from detectors.channels import CHANNELS, KIND, N_CHANNELS, RATE, published_name
from detectors.counting import COUNT_FEATURES
from detectors.numeric import keep_largest
from detectors.types import Float32, Float64, Int64

_TOPS = 3  # largest, second largest, mean of the four largest
_Z = tuple(
    (c, f)
    for c in range(N_CHANNELS)
    for f in range(len(FAMILIES))
    if not (KIND[c] == RATE and FAMILIES[f].startswith("local"))
)
_Z_CHANNEL = np.array([c for c, _ in _Z])
_Z_FAMILY = np.array([f for _, f in _Z])
_SUMMARIES = tuple(f"{top}_{f}" for f in FAMILIES for top in ("max", "second", "top4"))
_METRIC_FAMILIES = 5
_METRIC_SUMMARIES = tuple(
    f"metric_{top}_{f}" for f in FAMILIES[:_METRIC_FAMILIES] for top in ("max", "second")
)

NAMES: tuple[str, ...] = (
    *(f"{CHANNELS[c]}.{FAMILIES[f]}" for c, f in _Z),
    *COUNT_FEATURES,
    *_SUMMARIES,
    *_METRIC_SUMMARIES,
)
N_FEATURES = len(NAMES)
N_NAMED = len(_Z)  # the first of them speak of one channel each


def sources() -> list[str | None]:
    """Per feature the published feature it speaks of; None for a summary over many."""
    named: list[str | None] = [published_name(CHANNELS[c]) for c, _ in _Z]
    named += ["request_count"] * len(COUNT_FEATURES)
    return named + [None] * (len(_SUMMARIES) + len(_METRIC_SUMMARIES))


def summary_families() -> list[tuple[int, bool]]:
    """For the features behind the named ones: (family, whether over the user metrics)."""
    fixed = [(f, False) for f in range(len(FAMILIES)) for _ in range(_TOPS)]
    return fixed + [(f, True) for f in range(_METRIC_FAMILIES) for _ in range(2)]


def build(z: Float64, extra: Float64, out: Float32) -> None:
    """z: [m, N_SLOTS, families], extra: [m, count features] -> out [m, N_FEATURES]."""
    # The layout goes in as arguments: a compiled function on disk would not notice a change of constants.
    _build(z, extra, _Z_CHANNEL, _Z_FAMILY, N_CHANNELS, out)


@njit(cache=True, nogil=True)
def _build(
    z: Float64, extra: Float64, channel: Int64, family: Int64, n_channels: int, out: Float32
) -> None:  # fmt: skip
    best = np.zeros(5)
    at_count = len(channel)
    at_summary = at_count + extra.shape[1]
    at_metric = at_summary + _TOPS * z.shape[2]
    for i in range(len(z)):
        for k in range(at_count):
            out[i, k] = z[i, channel[k], family[k]]
        for k in range(extra.shape[1]):
            out[i, at_count + k] = extra[i, k]
        for f in range(z.shape[2]):
            best[:] = 0.0
            for c in range(1, n_channels):
                keep_largest(best, abs(z[i, c, f]), 4)
            out[i, at_summary + _TOPS * f] = best[0]
            out[i, at_summary + _TOPS * f + 1] = best[1]
            out[i, at_summary + _TOPS * f + 2] = (best[0] + best[1] + best[2] + best[3]) / 4.0
        for f in range(_METRIC_FAMILIES):
            best[:] = 0.0
            for c in range(n_channels, z.shape[1]):
                keep_largest(best, abs(z[i, c, f]), 2)
            out[i, at_metric + 2 * f] = best[0]
            out[i, at_metric + 2 * f + 1] = best[1]
