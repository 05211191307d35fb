"""Train on a user's own windows: faults injected into them, the prior's trees carried on, champion or not.

The rows to learn from come out of the very code that serves, run over the history and over copies of it with
faults in them. Time splits every series: the first part trains, the second weighs the two detectors against
each other, the last one compares challenger and champion on faults that neither saw.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from detectors import artifacts, faults, gbdt, judgement
from detectors.baseline import horizons
from detectors.calibration import INPUTS
from detectors.channels import N_CHANNELS
from detectors.ensemble import EXTRAS, Ensemble, Evidence, lstm_extra, lstm_input
from detectors.features import N_FEATURES
from detectors.lstm import LstmModel, LstmOptions, LstmSequence
from detectors.types import STATISTICS, Bool, Float32, Float64, Int64, WindowBatch

FIT_UNTIL, WEIGH_UNTIL = 0.65, 0.8  # shares of the history
_WARM_WINDOWS = 60
_MIN_WINDOWS = 600
_ROUNDS = 80
_PRIOR_ROWS = 300_000  # so many rows of the user's own are worth as much as what the forest says already
_NORMAL_SHARE = 0.25
_WINDOWS_PER_FAULT = 16
_AFTER_WINDOWS = 40  # behind a fault, whose means still hold it: neither
_LSTM_WINDOWS = 250_000  # of all epochs of a training that carries a champion on
LSTM_OPTIONS = LstmOptions(
    hidden=48,
    dropout=0.2,
    weight_decay=2e-2,
    averaging=0.999,
    chunk=64,
    chunks_per_segment=4,
    alarm_weight=3.0,
)
"""Of the LSTM that watches services: see docs/detectors.md."""


@dataclass(frozen=True, slots=True, eq=False)
class SeriesHistory:
    """The stored windows of one series in ascending order; gaps are allowed."""

    window_start_ms: Int64  # [T]
    values: Float64  # [T, len(STATISTICS)]
    counts: Float64  # [T, len(STATISTICS)]


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """What came out: the ensemble to serve from now on if `promoted`, the challenger's bytes either way."""

    ensemble: Ensemble
    artifact: bytes
    metrics: dict[str, Any]
    promoted: bool
    reason: str


@dataclass(slots=True)
class Course:
    """n series, real ones and copies with faults, on one time axis of T windows."""

    start_ms: Int64  # [T]
    values: Float32  # [T, n, statistics]
    counts: Float32
    present: Bool  # [T, n]
    label: np.ndarray[Any, np.dtype[np.int8]]  # [T, n]: 1 anomalous, 0 normal, -1 neither
    event: Int64  # [T, n]: number of the fault, -1 outside
    real: Bool  # [n], no injected faults
    metrics: dict[str, tuple[Float64, Float64]] = field(default_factory=dict)  # name -> [T, n] means, counts

    @property
    def names(self) -> list[str]:
        return [f"{i:06d}" for i in range(self.values.shape[1])]


@dataclass(slots=True)
class Scored:
    """What scoring a course gave, for every window."""

    inputs: Float32  # [T, n, len(INPUTS)]
    height: Float64  # [T, n], NaN where absent
    rows: Float32  # [k, N_FEATURES] of the windows asked for
    z: Float32 | None = field(default=None)  # [T, n, N_CHANNELS], on request
    mask: Bool | None = field(default=None)
    extra: npt.NDArray[np.float16] | None = field(default=None)  # [T, n, EXTRAS]


Interval = tuple[str, int, int]
Labels = np.ndarray[Any, np.dtype[np.int8]]


def _align(
    history: Mapping[str, SeriesHistory], max_windows: int
) -> tuple[Int64, list[str], Float32, Float32, Bool]:
    """Histories -> one time axis; the oldest windows go if there are more than `max_windows` in all."""
    names = sorted(name for name, h in history.items() if len(h.window_start_ms))
    start_ms = np.unique(np.concatenate([history[name].window_start_ms for name in names]))
    start_ms = start_ms[-max(max_windows // max(len(names), 1), 1) :]
    shape = (len(start_ms), len(names))
    values = np.full((*shape, len(STATISTICS)), np.nan, np.float32)
    counts = np.zeros((*shape, len(STATISTICS)), np.float32)
    present = np.zeros(shape, bool)
    for j, name in enumerate(names):
        own = history[name]
        keep = own.window_start_ms >= start_ms[0]
        at = np.searchsorted(start_ms, own.window_start_ms[keep])
        values[at, j], counts[at, j], present[at, j] = own.values[keep], own.counts[keep], True
    return start_ms, names, values, counts, present


@dataclass(frozen=True, slots=True, eq=False)
class Known:
    """What is known of the real windows [T, n] before faults are injected."""

    label: Labels  # -1 in excluded intervals, the user's labels where there are some, else 0
    told: Labels  # the user's labels, -1 = none
    event: Int64  # number of the labelled interval, -1 = none: each is a fault, or a false alarm, of its own


def _known(
    start_ms: Int64,
    names: list[str],
    excluded: Sequence[Interval],
    labels: Sequence[tuple[str, int, int, bool]],
) -> Known:
    shape = (len(start_ms), len(names))
    label, told, event = np.zeros(shape, np.int8), np.full(shape, -1, np.int8), np.full(shape, -1, np.int64)
    column = {name: j for j, name in enumerate(names)}
    marks = [(s, a, b, -1) for s, a, b in excluded] + [(s, a, b, int(fault)) for s, a, b, fault in labels]
    for number, (series, begin, end, mark) in enumerate(marks):
        if series in column:
            part = slice(*np.searchsorted(start_ms, [begin, end]).tolist()), column[series]
            label[part] = mark
            if number >= len(excluded):
                told[part], event[part] = mark, number
    return Known(label, told, event)


def _unjudged(known: Known, from_window: int) -> Known:
    """Labels from `from_window` on, and what lies just behind them, are left to the training of the trees.

    What a challenger was told it must not be judged on, and no fault is injected there.
    """
    label, event = known.label.copy(), known.event.copy()
    behind = known.told >= 0
    for _ in range(_AFTER_WINDOWS):
        behind[1:] |= behind[:-1].copy()
    behind[:from_window] = False
    label[behind], event[behind] = -1, -1
    return Known(label, known.told, event)


def _pick_told(known: Known, present: Bool, rng: np.random.Generator) -> Bool:
    """[T, n]: some windows of every labelled interval, wherever it lies."""
    picked = np.zeros(present.shape, bool)
    for number in np.unique(known.event[known.event >= 0]).tolist():
        t, j = np.nonzero((known.event == number) & present)
        if len(t) > 2 * _WINDOWS_PER_FAULT:
            kept = np.sort(rng.choice(len(t), 2 * _WINDOWS_PER_FAULT, replace=False))
            t, j = t[kept], j[kept]
        picked[t, j] = True
    picked[:_WARM_WINDOWS] = False
    return picked


def _course(
    start_ms: Int64, values: Float32, counts: Float32, present: Bool, known: Known,
    *, copies: int, window_ms: int, rng: np.random.Generator,
) -> Course:  # fmt: skip
    """The real series and `copies` copies of each with faults in its normal windows."""
    n = values.shape[1]
    longest = int(3 * 3_600_000 / window_ms)
    every = int(3 * 3_600_000 / window_ms)
    parts_v, parts_c = [values], [counts]
    label, event = [known.label], [np.where(known.label == 1, known.event, -1).astype(np.int64)]
    number = int(known.event.max(initial=-1)) + 1
    for _ in range(copies):
        v, c = values.copy(), counts.copy()
        mine, events = known.label.copy(), np.full(known.label.shape, -1, np.int64)
        for j in range(n):
            normal = present[:, j] & (known.label[:, j] == 0)
            v64, c64 = v[:, j].astype(float), c[:, j].astype(float)
            v64, c64, changed, done = faults.inject(
                v64, c64, normal=normal, rng=rng, every=every, longest=longest
            )
            v[:, j], c[:, j] = v64, c64
            for fault in done:
                mine[fault.end : fault.end + _AFTER_WINDOWS, j] = -1
            for fault in done:
                part = slice(fault.start, fault.end)
                mine[part, j] = np.where(changed[part], 1, -1)
                events[part, j] = number
                number += 1
        parts_v.append(v)
        parts_c.append(c)
        label.append(mine)
        event.append(events)
    real = np.arange(n * (copies + 1)) < n
    return Course(
        start_ms,
        np.concatenate(parts_v, axis=1),
        np.concatenate(parts_c, axis=1),
        np.tile(present, (1, copies + 1)),
        np.concatenate(label, axis=1),
        np.concatenate(event, axis=1),
        real,
    )


def stream(ensemble: Ensemble, course: Course, window_ms: int) -> Iterator[tuple[int, Int64, Evidence]]:
    """Score a course window by window with the serving code: (t, columns present, evidence)."""
    states = ensemble.new_states()
    names = course.names
    rows = states.rows(names)
    for t, start_ms in enumerate(course.start_ms.tolist()):
        here = np.flatnonzero(course.present[t])
        if not len(here):
            continue
        series = names if len(here) == len(names) else [names[j] for j in here.tolist()]
        batch = WindowBatch(
            start_ms,
            window_ms,
            series,
            course.values[t, here].astype(float),
            course.counts[t, here].astype(float),
            {name: (mean[t, here], count[t, here]) for name, (mean, count) in course.metrics.items()},
        )
        yield t, here, ensemble.evidence(batch, states, rows[here])


def score_course(
    ensemble: Ensemble, course: Course, window_ms: int, *, wanted: Bool | None = None, keep_z: bool = False
) -> Scored:
    """Score a whole course. wanted: [T, n], the windows whose feature rows are kept, in order of (t, n)."""
    shape = course.present.shape
    inputs = np.zeros((*shape, len(INPUTS)), np.float32)
    height = np.full(shape, np.nan)
    rows: list[Float32] = []
    z = np.zeros((*shape, N_CHANNELS), np.float32) if keep_z else None
    mask = np.zeros((*shape, N_CHANNELS), bool) if keep_z else None
    extra = np.zeros((*shape, EXTRAS), np.float16) if keep_z else None
    for t, here, found in stream(ensemble, course, window_ms):
        inputs[t, here], height[t, here] = found.inputs, found.height
        if wanted is not None:
            rows.append(found.x[wanted[t, here]])
        if z is not None and mask is not None and extra is not None:
            extra[t, here] = lstm_extra(found.z, found.x, found.logit)
            z[t, here], mask[t, here] = lstm_input(found.z, course.counts[t, here].astype(float))
    kept = np.concatenate(rows) if rows else np.empty((0, N_FEATURES), np.float32)
    return Scored(inputs, height, kept, z, mask, extra)


def _pick(course: Course, until: int, rng: np.random.Generator) -> Bool:
    """Windows to learn from: a share of the normal ones, the first and some more of every fault."""
    picked: Bool = course.present & (course.label == 0) & (rng.random(course.label.shape) < _NORMAL_SHARE)
    for number in np.unique(course.event[course.event >= 0]).tolist():
        t, j = np.nonzero((course.event == number) & (course.label == 1) & course.present)
        if len(t) > _WINDOWS_PER_FAULT:
            half = _WINDOWS_PER_FAULT // 2
            later = rng.choice(np.arange(half, len(t)), half, replace=False)
            t, j = np.concatenate([t[:half], t[later]]), np.concatenate([j[:half], j[later]])
        picked[t, j] = True
    picked[:_WARM_WINDOWS] = False
    picked[until:] = False
    return picked


def clock_of(start_ms: Int64) -> Float32:
    """start_ms: [T] -> [T, 2], the hour of the day as the LSTM sees it."""
    angle = 2 * np.pi * (start_ms // 3_600_000 % 24) / 24
    return np.stack([np.sin(angle), np.cos(angle)], axis=1).astype(np.float32)


def sequences_of(course: Course, scored: Scored, until: int) -> list[LstmSequence]:
    """What the LSTM learns from: every series of a course up to window `until`, faults and all."""
    assert scored.z is not None and scored.mask is not None and scored.extra is not None
    time = clock_of(course.start_ms)
    sequences = []
    for j in range(course.present.shape[1]):
        at = np.flatnonzero(course.present[:until, j])[_WARM_WINDOWS:]
        if len(at) >= 200:
            sequences.append(
                LstmSequence(
                    scored.z[at, j],
                    scored.mask[at, j],
                    time[at],
                    scored.extra[at, j],
                    course.label[at, j],
                )
            )
    return sequences


def _train_lstm(
    champion: LstmModel | None, course: Course, scored: Scored, until: int, seed: int
) -> tuple[LstmModel | None, dict[str, list[float]]]:
    """The champion's LSTM carried on, or a new one; and its losses per epoch."""
    from detectors.lstm_train import train_lstm

    sequences = sequences_of(course, scored, until)
    if not sequences:
        return champion, {}
    windows = sum(len(s.z) for s in sequences)
    options = replace(
        champion.options if champion is not None else LSTM_OPTIONS,
        epochs=int(np.clip(_LSTM_WINDOWS // windows, 1, 6)),
        learning_rate=1e-3 if champion is not None else LSTM_OPTIONS.learning_rate,
    )
    model, report = train_lstm(sequences, options, seed=seed, start_from=champion)
    return model, {"lstm_train_loss": report.train_nll, "lstm_held_out_loss": report.held_out_nll}


def train(
    history: Mapping[str, SeriesHistory],
    *,
    champion: Ensemble,
    excluded: Sequence[Interval],
    labels: Sequence[tuple[str, int, int, bool]],
    seed: int,
    window_ms: int,
    max_windows: int,
    trained_at_ms: int,
) -> TrainingResult:
    """Train a challenger on the user's windows and compare it with the champion.

    The trees hold what the champion says of every window and move as far as the user's windows are many; how
    much the LSTM weighs stays as it is. Both were learned from far more services than a user has.

    history: series -> windows; excluded: (series, start_ms, end_ms) of incidents, not normal; labels: the
    same with is_fault. Those of the newest part train the trees and judge nothing. Deterministic for equal
    arguments. Too little history is a refusal, not an error.
    """
    windows = sum(len(h.window_start_ms) for h in history.values())
    if windows < _MIN_WINDOWS:
        reason = f"only {windows} windows of history; {_MIN_WINDOWS} are needed"
        return TrainingResult(champion, artifacts.save(champion), {"windows": windows}, False, reason)
    start_ms, names, values, counts, present = _align(history, max_windows)
    fit_until, weigh_until = int(len(start_ms) * FIT_UNTIL), int(len(start_ms) * WEIGH_UNTIL)
    everything = _known(start_ms, names, excluded, labels)
    known = _unjudged(everything, fit_until)
    copies = int(np.clip(60_000 // present.sum(), 1, 6))
    rng = np.random.default_rng(seed)
    course = _course(start_ms, values, counts, present, known, copies=copies, window_ms=window_ms, rng=rng)
    picked = _pick(course, fit_until, rng)
    told = np.zeros_like(picked)
    told[:, : len(names)] = _pick_told(everything, present, rng)
    truth = course.label.copy()
    truth[:, : len(names)][everything.told >= 0] = everything.told[everything.told >= 0]
    picked |= told
    before = score_course(champion, course, window_ms, wanted=picked, keep_z=True)
    y = truth[picked].astype(float)
    if y.sum() < 20:
        reason = "too few normal windows to inject faults into"
        return TrainingResult(champion, artifacts.save(champion), {"windows": windows}, False, reason)
    # What a user says of a window is beyond doubt.
    trust = np.where(told[picked], 1.0, len(y) / (len(y) + _PRIOR_ROWS))
    trees: list[float] = []
    forest = gbdt.go_on(champion.forest, before.rows, y, trust, seed=seed, rounds=_ROUNDS, losses=trees)
    lstm, epochs = _train_lstm(champion.lstm, course, before, fit_until, seed)
    made_of = f"{champion.version}|{seed}|{trained_at_ms}|{forest.text}"
    version = hashlib.sha256(made_of.encode()).hexdigest()[:12]
    challenger = replace(champion, version=version, forest=forest, lstm=lstm)
    after = score_course(challenger, course, window_ms)
    weigh = slice(fit_until, weigh_until)
    challenger = replace(
        challenger, calibration=judgement.recalibrate(champion.calibration, after, before, course, weigh)
    )
    rest = slice(weigh_until, len(start_ms))
    figures, promoted, reason = judgement.compare(
        course, before.inputs[rest], after.inputs[rest], champion, challenger, rest
    )
    figures |= {
        "windows": int(present.sum()),
        "series": len(names),
        "patience": float(horizons(window_ms)[2]),
    }
    challenger = replace(
        challenger, metadata={**champion.metadata, "trained_at_ms": trained_at_ms, **figures}
    )
    blob = artifacts.save(challenger)
    losses = {"trees_loss": trees, **epochs}
    curves = {name: [round(float(v), 5) for v in values] for name, values in losses.items()}
    return TrainingResult(challenger, blob, {**figures, "curves": curves}, promoted, reason)
