"""Evidence that needs no training: the silence of a series that is never silent is an alarm, whatever the
trees have learned. Real traffic falls silent so often that they learn to be patient with it.
"""

from __future__ import annotations

import numpy as np

from detectors.counting import COUNT_FEATURES
from detectors.types import Float64

SILENCE_RARITY, SILENCE_RARITY_AT_LEVEL, MISSED_REQUESTS = 8.0, 6.0, float(np.log1p(15.0))
"""Silences this long, silences that began at such traffic (both as -ln of their share), requests missing."""
_SILENCE = [COUNT_FEATURES.index(n) for n in ("silence_rarity", "silence_rarity_at_level", "missed_requests")]
_BARS = np.array([SILENCE_RARITY, SILENCE_RARITY_AT_LEVEL, MISSED_REQUESTS])


def beyond_doubt(extra: Float64) -> Float64:
    """extra: [m, count features] -> [m], above 0 where there is no doubt."""
    found: Float64 = (extra[:, _SILENCE] - _BARS).min(axis=1)
    return found
