"""Evidence that needs no training: what is beyond doubt is an alarm, whatever the trees have learned.

Two kinds are covered, because the trees cannot know them well: user metrics, which no training of the prior
has seen, and silence of a series that is never silent.
"""

from __future__ import annotations

import numpy as np

from detectors.baseline import FAMILIES
from detectors.channels import N_CHANNELS
from detectors.counting import COUNT_FEATURES
from detectors.types import Float64

METRIC_Z = 7.0
"""Of a metric's mean over 10 and over 40 windows; clean services stay below it for weeks."""
SILENCE_RARITY, SILENCE_RARITY_AT_LEVEL, MISSED_REQUESTS = 6.5, 6.0, float(np.log1p(15.0))
"""Silences this long, silences that began at such traffic (both as -ln of their share), requests missing."""
_Z10, _Z40 = FAMILIES.index("z10"), FAMILIES.index("z40")
_SILENCE = [COUNT_FEATURES.index(n) for n in ("silence_rarity", "silence_rarity_at_level", "missed_requests")]
_BARS = np.array([SILENCE_RARITY, SILENCE_RARITY_AT_LEVEL, MISSED_REQUESTS])


def beyond_doubt(z: Float64, extra: Float64) -> Float64:
    """z: [m, N_SLOTS, families], extra: [m, count features] -> [m], above 0 where there is no doubt."""
    metrics = np.abs(z[:, N_CHANNELS:])
    moved = np.minimum(metrics[..., _Z10], metrics[..., _Z40]).max(axis=1) - METRIC_Z
    silent = (extra[:, _SILENCE] - _BARS).min(axis=1)
    found: Float64 = np.maximum(moved, silent)
    return found
