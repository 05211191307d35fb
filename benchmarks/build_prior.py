"""Build detectors/prior/prior.iwm: the model that scores a series before it has a training of its own.

    python -m benchmarks.build_prior --data shared/data/servegen [--held-out] [--seed 1] [--threads 2]

Trains on imitated services over real traffic (benchmarks/prior_courses.py), of all workloads and with all
kinds of faults. `--held-out` builds the model that benchmarks/detection.py judges, in the same way but
without the workloads and the kinds that it judges on (benchmarks/splits.py). Equal arguments give equal
bytes.

Rows come out of the serving code. The LSTM sees what the GBDT says of a window, so it learns from courses
scored by a GBDT that was fitted to the other half of them. How often clean services score high is counted on
courses that neither was fitted to.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import pickle
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from benchmarks.prior_courses import KNOWN, SUBTLE, TRAFFIC, WINDOW_MS, Generated, Imitated, services_of
from benchmarks.prior_workloads import Client, load_clients
from benchmarks.splits import HELD_OUT_MODEL, JUDGE_CLIENTS
from detectors import artifacts, fitting, gbdt, judgement
from detectors.calibration import Calibration
from detectors.ensemble import Ensemble
from detectors.lstm import LstmModel, LstmOptions, LstmSequence
from detectors.training import LSTM_OPTIONS, Course, Scored, score_course, sequences_of
from detectors.types import Bool, Float32, Float64
from monitor.fault_kinds import KINDS

SHIPPED = Path(__file__).resolve().parents[1] / "detectors" / "prior" / "prior.iwm"
CHUNK = 32  # services at once
NORMAL_SHARE, PER_FAULT, WARM = 0.06, 40, 60
_NEUTRAL = Calibration(tuple(judgement.mixed(0.0)), 0.0, (0.0, 1.0), (1.0, 0.5), (1.0, 0.5))
_CONSTANT = (
    "tree\n\nTree=0\nnum_leaves=2\nsplit_feature=0\nthreshold=0\n"
    "left_child=-1\nright_child=-2\nleaf_value=0 0\n"
)
BLANK = Ensemble("blank", gbdt.Forest(_CONSTANT), _NEUTRAL)
Recipe = Generated | Imitated
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of everything."""

    copies: int = 4  # services per workload, with faults of every kind
    few_copies: int = 2  # likewise with faults of the traffic, and with subtle ones
    days: int = 6
    imitated: int = 192
    clean_copies: int = 3
    rounds: int = 400
    epochs: int = 200


SMALL = Sizes(copies=1, few_copies=1, days=2, imitated=32, clean_copies=1, rounds=60, epochs=3)


@dataclass(frozen=True, slots=True)
class Material:
    """What may be learned from."""

    split: str  # of benchmarks/suites.py
    clients: tuple[Client, ...]
    kinds: tuple[str, ...]

    @classmethod
    def of(cls, folder: Path, *, held_out: bool) -> Material:
        clients = tuple(load_clients(folder))
        if not held_out:
            return cls("all", clients, tuple(KINDS))
        seen = tuple(c for c in clients if c.name.replace("m-large", "servegen") not in JUDGE_CLIENTS)
        return cls("train", seen, KNOWN)


def recipes(material: Material, seed: int, sizes: Sizes) -> list[Recipe]:
    """The courses to learn from, in chunks, so ordered that both halves hold every sort."""
    made: list[Recipe] = []
    subtle = tuple(kind for kind in SUBTLE if kind in material.kinds)
    for n, (copies, kinds) in enumerate(
        ((sizes.copies, material.kinds), (sizes.few_copies, TRAFFIC), (sizes.few_copies, subtle))
    ):
        firsts = range(0, services_of(material.split, copies), CHUNK)
        made += [
            Generated(seed * 1000 + n, material.split, first, CHUNK, copies, sizes.days, kinds)
            for first in firsts
        ]
    for first in range(0, sizes.imitated, CHUNK):
        seeds = tuple(seed * 1_000_000 + first + i for i in range(CHUNK))
        made.append(Imitated(material.clients, seeds, float(sizes.days)))
    return made


def judges(material: Material, seed: int, sizes: Sizes, *, clean: bool) -> list[Recipe]:
    """Courses that nothing is fitted to: with faults to weigh the detectors, without to calibrate them."""
    copies = sizes.clean_copies if clean else 1
    days = sizes.days + 3 if clean else sizes.days
    made: list[Recipe] = [
        Generated(
            seed * 1000 + (20 if clean else 10),
            material.split,
            first,
            CHUNK,
            copies,
            days,
            () if clean else material.kinds,
            12.0,
        )
        for first in range(0, services_of(material.split, copies), CHUNK)
    ]
    seeds = tuple(seed * 1_000_000 + (700_000 if clean else 500_000) + i for i in range(CHUNK))
    return [*made, Imitated(material.clients, seeds, float(days), None if clean else 9.0)]


def pick(course: Course, rng: np.random.Generator) -> Bool:
    """Windows for the GBDT: a share of the normal ones, at most PER_FAULT of every fault."""
    picked: Bool = (course.label == 0) & (rng.random(course.label.shape) < NORMAL_SHARE)
    for number in np.unique(course.event[course.event >= 0]).tolist():
        t, j = np.nonzero((course.event == number) & (course.label == 1))
        if len(t) > PER_FAULT:
            later = rng.choice(np.arange(8, len(t)), PER_FAULT - 8, replace=False)
            chosen = np.concatenate([np.arange(8), np.sort(later)])
            t, j = t[chosen], j[chosen]
        picked[t, j] = True
    picked[:WARM] = False
    return picked


def kept(folder: Path, name: str, made_of: object, make: Callable[[], T]) -> T:
    """What `make` gives: made once for equal texts of `made_of`, then read from the folder, whose files are
    trusted. A change of the code is not noticed."""
    path = folder / f"{name}-{hashlib.sha256(repr(made_of).encode()).hexdigest()[:16]}"
    if path.exists():
        with path.open("rb") as file:
            found: T = pickle.load(file)
            return found
    made, part = make(), path.with_suffix(".part")
    with part.open("wb") as file:
        pickle.dump(made, file, protocol=pickle.HIGHEST_PROTOCOL)
    part.rename(path)
    return made


def _rows(task: tuple[Recipe, int, Path]) -> tuple[Float32, Float64]:
    recipe, number, folder = task
    course = kept(folder, "course", recipe, recipe.course)
    picked = pick(course, np.random.default_rng(number))
    return score_course(BLANK, course, WINDOW_MS, wanted=picked).rows, course.label[picked].astype(float)


def _sequences(task: tuple[Recipe, gbdt.Forest, Path]) -> list[LstmSequence]:
    recipe, forest, folder = task
    course = kept(folder, "course", recipe, recipe.course)
    scored = score_course(replace(BLANK, forest=forest), course, WINDOW_MS, keep_z=True)
    return [
        replace(s, z=s.z.astype(np.float16), time=s.time.astype(np.float16))  # on its way between processes
        for s in sequences_of(course, scored, len(course.start_ms))
    ]


def _scored(task: tuple[Recipe, Ensemble]) -> tuple[Course, Scored]:
    recipe, ensemble = task
    course = recipe.course()
    return slim(course), score_course(ensemble, course, WINDOW_MS)


def slim(course: Course) -> Course:
    """Without what was measured: labels are all that is asked of a course once it is scored."""
    nothing = np.empty((*course.label.shape, 0), np.float32)
    return replace(course, values=nothing, counts=nothing, metrics={})


def side_by_side(work: Sequence, function, threads: int, name: str) -> Iterator:
    """Results in order of the work, whatever the number of processes."""
    began = time.perf_counter()
    with multiprocessing.get_context("spawn").Pool(threads) as pool:
        for done, result in enumerate(pool.imap(function, work), 1):
            print(f"{name} {done}/{len(work)}, {time.perf_counter() - began:.0f} s", flush=True)
            yield result


def fit_forests(
    work: list[Recipe], sizes: Sizes, seed: int, threads: int, folder: Path
) -> tuple[gbdt.Forest, list[gbdt.Forest], int]:
    """The GBDT, and the two that were fitted to every other course only; and how many rows there were."""
    tasks = [(recipe, number, folder) for number, recipe in enumerate(work)]
    parts = kept(folder, "rows", work, lambda: list(side_by_side(tasks, _rows, threads, "rows")))

    def fit(part: list[tuple[Float32, Float64]]) -> gbdt.Forest:
        x, y = np.concatenate([x for x, _ in part]), np.concatenate([y for _, y in part])
        return gbdt.fit(x, y, np.ones(len(y)), seed=seed, rounds=sizes.rounds, threads=threads)

    halves = [fit(parts[0::2]), fit(parts[1::2])]
    return fit(parts), halves, sum(len(y) for _, y in parts)


def sequences(
    work: list[Recipe], halves: list[gbdt.Forest], threads: int, folder: Path
) -> list[LstmSequence]:
    """The courses as the LSTM sees them, each scored by the forest that has not seen it."""
    tasks = [(recipe, halves[(n + 1) % 2], folder) for n, recipe in enumerate(work)]
    parts = side_by_side(tasks, _sequences, threads, "sequences")
    made_of = (work, [forest.text for forest in halves])
    small = kept(folder, "sequences", made_of, lambda: [s for part in parts for s in part])
    return [replace(s, z=s.z.astype(np.float32), time=s.time.astype(np.float32)) for s in small]


def lstm_options(epochs: int) -> LstmOptions:
    """Of the LSTM that ships: the whole schedule, of which the best epoch is kept."""
    return replace(LSTM_OPTIONS, epochs=epochs, early_stopping=epochs)


def fit_lstm(learned: list[LstmSequence], sizes: Sizes, seed: int, log_dir: Path | None) -> LstmModel:
    """The LSTM over courses scored by the GBDT that has not seen them."""
    from detectors.lstm_train import train_lstm

    model, report = train_lstm(learned, lstm_options(sizes.epochs), seed=seed, log_dir=log_dir)
    print(f"LSTM: {report.epochs} epochs, held-out {min(report.held_out_nll):.3f}, {report.seconds:.0f} s")
    return model


def calibrated(ensemble: Ensemble, courses: list[tuple[Course, Scored]]) -> Ensemble:
    """Levels of clean services; the shift of each series is replayed with the level found first."""
    weights = np.array(ensemble.calibration.weights)
    longest = max(len(course.start_ms) for course, _ in courses)
    total = np.full((longest, sum(course.label.shape[1] for course, _ in courses)), np.nan)
    at = 0
    for course, scored in courses:
        height, width = course.label.shape
        total[:height, at : at + width] = scored.inputs.astype(float) @ weights
        at += width
    total[:WARM] = np.nan
    daily = fitting.level_for_rate(total, 7.0, int(np.isfinite(total).sum()))
    return replace(ensemble, calibration=fitting.tabulate(weights, daily, fitting.shifted(total, daily)))


def fitted(
    work: list[Recipe], sizes: Sizes, args: argparse.Namespace, folder: Path
) -> tuple[Ensemble, dict[str, object]]:
    """Both detectors, not weighed or calibrated, and what to note about them."""
    forest, halves, rows = fit_forests(work, sizes, args.seed, args.threads, folder)
    print(f"{rows} rows", flush=True)
    lstm = fit_lstm(sequences(work, halves, args.threads, folder), sizes, args.seed, args.log_dir)
    made_of = hashlib.sha256(forest.text.encode() + lstm.to_bytes()).hexdigest()
    ensemble = replace(BLANK, version=f"prior-{made_of[:8]}", forest=forest, lstm=lstm)
    return ensemble, {"seed": args.seed, "rows": rows, "series": CHUNK * len(work)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--small", action="store_true", help="a quick try of everything, not a usable model")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--log-dir", type=Path, help="TensorBoard event files of the LSTM")
    parser.add_argument("--keep", type=Path, help="folder of courses, rows and sequences for another build")
    parser.add_argument("--carry", type=Path, help="weigh and calibrate the detectors of this file anew")
    parser.add_argument("--held-out", action="store_true", help="the model that the benchmark judges")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.keep is not None:
        args.keep.mkdir(parents=True, exist_ok=True)
    sizes = SMALL if args.small else Sizes()
    began = time.perf_counter()
    material = Material.of(args.data, held_out=args.held_out)
    out = args.out or (HELD_OUT_MODEL if args.held_out else SHIPPED)
    if args.carry is not None:
        old = artifacts.load(args.carry.read_bytes(), false_alarms_per_week=1.0, window_ms=WINDOW_MS)
        ensemble = replace(BLANK, version=old.version, forest=old.forest, lstm=old.lstm)
        notes = dict(old.metadata)
    else:
        with tempfile.TemporaryDirectory() as temporary:
            work = recipes(material, args.seed, sizes)
            ensemble, notes = fitted(work, sizes, args, args.keep or Path(temporary))
    faulty = [(recipe, ensemble) for recipe in judges(material, args.seed, sizes, clean=False)]
    inputs, label = [], []
    for course, scored in side_by_side(faulty, _scored, args.threads, "weighing"):
        inputs.append(scored.inputs[WARM:].reshape(-1, scored.inputs.shape[2]))
        label.append(course.label[WARM:].ravel())
    known = np.concatenate(label)
    share, found = judgement.weigh(np.concatenate(inputs), known, np.ones(len(known), bool))
    print("average precision by share of the LSTM:", {k: round(v, 4) for k, v in found.items()})
    ensemble = replace(ensemble, calibration=replace(_NEUTRAL, weights=tuple(judgement.mixed(share))))
    clean = [(recipe, ensemble) for recipe in judges(material, args.seed, sizes, clean=True)]
    ensemble = calibrated(ensemble, list(side_by_side(clean, _scored, args.threads, "clean")))
    noted = {**notes, "lstm_share": round(share, 2)}
    blob = artifacts.save(replace(ensemble, metadata=noted), key=artifacts.SHIPPED)
    out.write_bytes(blob)
    print(f"{out}: {len(blob)} bytes, {ensemble.version}, {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
