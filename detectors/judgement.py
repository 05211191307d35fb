"""How two ensembles compare on a held-out part of a training course, and what a challenger's alarms mean."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from detectors.calibration import INPUTS, Calibration
from detectors.types import Bool, Float32, Float64

if TYPE_CHECKING:
    from detectors.ensemble import Ensemble
    from detectors.training import Course, Scored

Labels = np.ndarray[Any, np.dtype[np.int8]]

_LSTM_SHARES = np.linspace(0.0, 1.0, 6)
_GBDT_MIX = {"gbdt": 0.5, "gbdt_3": 0.5}
_LSTM_MIX = {"lstm": 1.0}
"""The GBDT sees one window and profits from a mean over three; the LSTM remembers by itself."""
_CLEAN_SHARE = 0.001  # normal windows that may lie above the threshold in a comparison
_GAIN_NEEDED = 0.002  # of average precision
_LOSS_ALLOWED = 0.02  # of recall
_DRAWS, _SURE = 50, 0.9
_LEVEL = 0.99
_EVIDENCE_WINDOWS = 5_000  # normal windows after which the user's own level counts as much as the prior's


def average_precision(score: Float64, positive: Bool) -> float:
    """Area under precision and recall, by steps; NaN without a positive."""
    if not positive.any():
        return float("nan")
    order = np.argsort(-score, kind="stable")
    hits = positive[order]
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    return float(precision[hits].mean())


def mixed(share: float) -> Float64:
    """Weights of the inputs [len(INPUTS)] that give the LSTM this share of the evidence, in [0, 1]."""
    weights = np.zeros(len(INPUTS))
    for mix, part in ((_GBDT_MIX, 1.0 - share), (_LSTM_MIX, share)):
        for name, weight in mix.items():
            weights[INPUTS.index(name)] = part * weight
    return weights


def weigh(inputs: Float32, label: Labels, present: Bool) -> tuple[float, dict[float, float]]:
    """The smallest share of the LSTM beyond which average precision gains nothing worth having, on windows
    that neither detector was fitted to, and the average precision of every share tried. The LSTM takes
    several windows to be sure where the GBDT needs one, so a larger share costs delay."""
    use = present & (label >= 0)
    x, positive = inputs[use].astype(float), label[use] == 1
    found = {float(share): average_precision(x @ mixed(share), positive) for share in _LSTM_SHARES}
    best = 0.0
    for share, value in found.items():
        if value > found[best] + _GAIN_NEEDED:
            best = share
    return best, found


def recalibrate(old: Calibration, after: Scored, before: Scored, course: Course, part: slice) -> Calibration:
    """The champion's calibration moved to the challenger's scores.

    The table of rare levels is kept, since a user's history is too short for it; where it begins moves by
    as much as a high quantile of normal windows moved, the more the more windows there are.
    """
    normal = (course.present & (course.label == 0) & course.real[None, :])[part]
    normal[:60] &= part.start > 0
    if not normal.any():
        return old
    weights = np.array(old.weights)
    own = after.inputs[part][normal].astype(float) @ weights
    prior = before.inputs[part][normal].astype(float) @ weights
    moved = float(np.quantile(own, _LEVEL) - np.quantile(prior, _LEVEL))
    trust = normal.sum() / (normal.sum() + _EVIDENCE_WINDOWS)
    shift = moved if moved > 0 else moved * trust
    return replace(old, daily=old.daily + shift)


def compare(
    course: Course, before: Float32, after: Float32, champion: Ensemble, challenger: Ensemble, part: slice
) -> tuple[dict[str, Any], bool, str]:
    """Figures of both on the windows `part`, whether the challenger is better, and why (not).

    Better is what gains average precision in most draws of as many series (Efron 1979) and loses no recall:
    a few held-out faults say little.
    """
    label, present, event = course.label[part], course.present[part], course.event[part]
    normal, use = present & (label == 0), present & (label >= 0)
    faults = np.unique(event[(event >= 0) & (label == 1) & present])
    figures: dict[str, Any] = {"held_out_faults": len(faults)}
    totals = []
    for name, inputs, ensemble in (("champion", before, champion), ("challenger", after, challenger)):
        total = inputs.astype(float) @ np.array(ensemble.calibration.weights)
        level = float(np.quantile(total[normal], 1 - _CLEAN_SHARE))
        found = np.unique(event[(total > level) & (event >= 0) & present])
        figures[f"{name}_average_precision"] = average_precision(total[use], label[use] == 1)
        figures[f"{name}_recall"] = float(np.isin(faults, found).mean()) if len(faults) else float("nan")
        totals.append(total)
    if not len(faults):
        return figures, False, "no held-out fault to compare on"
    gain = figures["challenger_average_precision"] - figures["champion_average_precision"]
    loss = figures["champion_recall"] - figures["challenger_recall"]
    sure = share_of_gains(totals[0], totals[1], label, use)
    figures["share_of_draws_better"] = sure
    if gain < _GAIN_NEEDED:
        return figures, False, f"average precision on held-out faults changes by {gain:+.3f}"
    if sure < _SURE:
        return figures, False, f"average precision gains {gain:+.3f}, but only in {sure:.0%} of the draws"
    if loss > _LOSS_ALLOWED:
        return figures, False, f"recall of held-out faults falls by {loss:.3f}"
    return figures, True, f"average precision on held-out faults changes by {gain:+.3f}"


def share_of_gains(old: Float64, new: Float64, label: Labels, use: Bool) -> float:
    """Share of draws of series, with replacement, in which `new` has the higher average precision."""
    rng = np.random.default_rng(0)
    gains = []
    for _ in range(_DRAWS):
        columns = rng.integers(0, label.shape[1], label.shape[1])
        kept = use[:, columns]
        positive = (label[:, columns] == 1)[kept]
        if positive.any():
            drawn = [average_precision(total[:, columns][kept], positive) for total in (old, new)]
            gains.append(drawn[1] > drawn[0])
    return float(np.mean(gains)) if gains else 0.0
