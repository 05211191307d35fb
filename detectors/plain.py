"""Evidence that needs no training: what leaves no doubt is an alarm, whatever the detectors have learned.

The silence of a series that is never silent: real traffic falls silent so often that the trees learn to be
patient with it. And many channels far off at once, now and in the windows before: trees do not extrapolate,
so that a change beyond all that they were trained on may look to them like less than a smaller one.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from detectors.baseline import FAMILIES
from detectors.channels import N_CHANNELS
from detectors.counting import COUNT_FEATURES
from detectors.numeric import keep_largest
from detectors.types import Float64

SILENCE_RARITY, SILENCE_RARITY_AT_LEVEL, MISSED_REQUESTS = 8.0, 6.0, float(np.log1p(15.0))
"""Silences this long, silences that began at such traffic (both as -ln of their share), requests missing."""
BROAD_NOW, BROAD_LATELY, PER_DECADE = 9.0, 4.0, 2.0
"""Mean of the eight largest |z1| and |z3|; how much more of the first a budget of a tenth asks for."""
_SILENCE = [COUNT_FEATURES.index(n) for n in ("silence_rarity", "silence_rarity_at_level", "missed_requests")]
_BARS = np.array([SILENCE_RARITY, SILENCE_RARITY_AT_LEVEL, MISSED_REQUESTS])
_WIDEST = 8
_CAP = 0.5  # it opens an alarm; how grave it is the detectors say
_NOW, _LATELY = FAMILIES.index("z1"), FAMILIES.index("z3")


def beyond_doubt(z: Float64, extra: Float64, budget: float) -> Float64:
    """z: [m, N_SLOTS, families], extra: [m, count features], budget: false alarms per week -> [m], above 0
    where there is no doubt."""
    silence = (extra[:, _SILENCE] - _BARS).min(axis=1)
    now, lately = _widest(z, N_CHANNELS, _NOW), _widest(z, N_CHANNELS, _LATELY)
    bar = BROAD_NOW - PER_DECADE * np.log10(budget)
    found: Float64 = np.minimum(np.maximum(silence, np.minimum(now - bar, lately - BROAD_LATELY)), _CAP)
    return found


@njit(cache=True, nogil=True)
def _widest(z: Float64, channels: int, family: int) -> Float64:
    """[m], mean of the _WIDEST largest absolute scores of the channels behind the request count."""
    means = np.empty(len(z))
    best = np.zeros(_WIDEST)
    for i in range(len(z)):
        best[:] = 0.0
        for c in range(1, channels):
            keep_largest(best, abs(z[i, c, family]), _WIDEST)
        means[i] = best.mean()
    return means
