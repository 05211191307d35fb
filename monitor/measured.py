"""What was measured of a model version, apart: plain figures, and curves of its training. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

MIN_CURVE = 2
HIDDEN = frozenset({"golden"})
"""Answers of a model that only tell whether it is still the same one."""


@dataclass(frozen=True, slots=True)
class Measured:
    """Of one version, each sorted by name."""

    figures: list[tuple[str, int | float | str]]
    curves: list[tuple[str, list[float]]]  # one finite number per epoch or round, at least two


def measured(metrics: Any) -> Measured:
    """The `metrics` of a version; what is neither a figure, a text nor a list of numbers is left out."""
    found = Measured([], [])
    for name, value in sorted(_flat(metrics if isinstance(metrics, Mapping) else {})):
        if isinstance(value, bool | int | float | str):
            found.figures.append((name, value))
        elif isinstance(value, Sequence):
            values = [float(v) for v in value if isinstance(v, int | float) and math.isfinite(v)]
            if len(values) == len(value) >= MIN_CURVE:
                found.curves.append((name, values))
            elif len(values) == len(value) == 1:  # a training of one epoch
                found.figures.append((name, values[0]))
    return found


def _flat(metrics: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in metrics.items():
        if key in HIDDEN:
            continue
        name = f"{prefix}{key}".replace("_", " ")
        if key == "curves" and isinstance(value, Mapping):
            found += _flat(value, prefix)
        else:
            found += _flat(value, f"{name}, ") if isinstance(value, Mapping) else [(name, value)]
    return found
