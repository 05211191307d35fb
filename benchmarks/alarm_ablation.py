"""What each technique brings to the LSTM that ships, which says how likely a window is part of a fault.

    python -m benchmarks.alarm_ablation --data shared/data/servegen [--epochs 60] [--only NAME ...]

Imitated services and faults as in benchmarks/build_prior.py, fewer of them (`SIZES`), without the judged
workloads and kinds. Every variant learns from the same sequences with the same seed; early stopping looks
at the newest part of each, and what is printed comes from services that nothing was fitted to: average
precision of the LSTM alone, and of LSTM and GBDT as they are mixed in the product; bytes; serving steps per
second and core at a batch of 10,000; CPU seconds of training.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.build_prior import (
    BLANK,
    WARM,
    WINDOW_MS,
    Material,
    Recipe,
    Sizes,
    fit_forests,
    judges,
    lstm_options,
    recipes,
    sequences,
    side_by_side,
    slim,
)
from benchmarks.lstm_ablation import steps_per_second, switched
from detectors import judgement
from detectors.calibration import INPUTS
from detectors.compress import distil, load_quantised, prune, quantise
from detectors.gbdt import Forest
from detectors.lstm import LstmModel, LstmOptions, LstmSequence
from detectors.lstm_train import train_lstm
from detectors.training import Course, clock_of, score_course
from detectors.types import Bool, Float32, Float64

SIZES = Sizes(copies=1, few_copies=1, days=5, imitated=32, clean_copies=1, rounds=200)
SHARE = 0.6  # of the LSTM in the mix, as shipped


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """A course that nothing was fitted to, as the LSTM sees it, and what the GBDT says of it."""

    course: Course
    z: Float32
    mask: Bool
    extra: npt.NDArray[np.float16]
    inputs: Float32  # [T, n, len(INPUTS)] of the mix; those of the LSTM are still to be filled in


def _judged(task: tuple[Recipe, Forest]) -> Judged:
    recipe, forest = task
    course = recipe.course()
    scored = score_course(replace(BLANK, forest=forest), course, WINDOW_MS, keep_z=True)
    assert scored.z is not None and scored.mask is not None and scored.extra is not None
    return Judged(slim(course), scored.z.astype(np.float16), scored.mask, scored.extra, scored.inputs)


def said(model: LstmModel, judged: Judged) -> Float64:
    """[T, n] log-odds; all series step together."""
    steps, series = judged.course.label.shape
    clock = clock_of(judged.course.start_ms)
    state, found = model.new_state(series), np.zeros((steps, series))
    for t in range(steps):
        at = np.flatnonzero(judged.course.present[t])
        z, extra = judged.z[t, at].astype(np.float32), judged.extra[t, at].astype(np.float32)
        step = model.step(z, judged.mask[t, at], np.repeat(clock[t : t + 1], len(at), 0), state[at], extra)
        state[at], found[t, at] = step.state, step.logit
    return found


def quality(model: LstmModel, every: list[Judged]) -> tuple[float, float]:
    """-> average precision of the LSTM alone, and of the mix."""
    alone, mixed, truth = [], [], []
    for judged in every:
        odds, inputs = said(model, judged), judged.inputs.astype(float)
        padded = np.concatenate([odds[:1], odds[:1], odds])
        inputs[..., INPUTS.index("lstm")] = odds
        inputs[..., INPUTS.index("lstm_3")] = (padded[:-2] + padded[1:-1] + odds) / 3
        use = judged.course.present & (judged.course.label >= 0)
        use[:WARM] = False
        alone.append(odds[use])
        mixed.append((inputs @ judgement.mixed(SHARE))[use])
        truth.append(judged.course.label[use] == 1)
    positive = np.concatenate(truth)
    ap = judgement.average_precision
    return ap(np.concatenate(alone), positive), ap(np.concatenate(mixed), positive)


Variant = Callable[[list[LstmSequence]], tuple[LstmModel, int]]
"""sequences -> (model, bytes of its artefact)"""


def variants(base: LstmOptions) -> dict[str, Variant]:
    """Every row of the table."""

    def fit(learned: list[LstmSequence], options: LstmOptions) -> LstmModel:
        return train_lstm(learned, options, seed=1)[0]

    def trained(options: LstmOptions) -> Variant:
        def make(learned: list[LstmSequence]) -> tuple[LstmModel, int]:
            model = fit(learned, options)
            return model, len(model.to_bytes())

        return make

    def int8(learned: list[LstmSequence]) -> tuple[LstmModel, int]:
        data = quantise(fit(learned, base))
        return load_quantised(data), len(data)

    def pruned(learned: list[LstmSequence]) -> tuple[LstmModel, int]:
        model = prune(fit(learned, base), 0.5, learned)
        return model, len(model.to_bytes())

    def distilled(learned: list[LstmSequence]) -> tuple[LstmModel, int]:
        teacher = fit(learned, base)
        model = distil(teacher, dataclasses.replace(base, hidden=16), learned)
        return model, len(model.to_bytes())

    weights = {f"labels weigh {w:g}": dataclasses.replace(base, alarm_weight=w) for w in (1.0, 10.0)}
    chunk = {"backpropagation over 32 steps": dataclasses.replace(base, chunk=32)}
    table = {name: trained(options) for name, options in (switched(base) | weights | chunk).items()}
    table["as shipped, int8 weights"] = int8
    table["as shipped, half of the weights pruned"] = pruned
    table["16 units, distilled from the shipped ones"] = distilled
    return table


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", nargs="+", metavar="NAME")
    args = parser.parse_args()
    material = Material.of(args.data, held_out=True)
    work = recipes(material, 1, SIZES)
    with tempfile.TemporaryDirectory() as temporary:
        forest, halves, _ = fit_forests(work, SIZES, 1, args.threads, Path(temporary))
        learned = sequences(work, halves, args.threads, Path(temporary))
    tasks = [(recipe, forest) for recipe in judges(material, 1, SIZES, clean=False)]
    every = list(side_by_side(tasks, _judged, args.threads, "judged"))
    base = lstm_options(args.epochs)
    print(f"{len(learned)} series to learn from, {sum(j.course.label.shape[1] for j in every)} to judge")
    print("| variant | AP alone | AP mixed | kB | steps/s | training CPU s |\n|---|---|---|---|---|---|")
    for name, make in variants(base).items():
        if args.only and name not in args.only:
            continue
        began = time.process_time()
        model, size = make(learned)
        seconds = time.process_time() - began
        alone, mixed = quality(model, every)
        speed = steps_per_second(model)
        print(
            f"| {name} | {alone:.3f} | {mixed:.3f} | {size / 1000:.0f} | {speed:,.0f} | {seconds:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
