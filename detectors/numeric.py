"""Small compiled helpers of the baselines and features."""

from __future__ import annotations

from numba import njit

from detectors.types import Float64


@njit(cache=True)
def clip(x: float, bound: float) -> float:
    return float(min(max(x, -bound), bound))


@njit(cache=True)
def keep_largest(best: Float64, v: float, size: int) -> None:
    """Put `v` among the `size` largest, which `best` holds in descending order."""
    for k in range(size):
        if v > best[k]:
            for j in range(size - 1, k, -1):
                best[j] = best[j - 1]
            best[k] = v
            return
