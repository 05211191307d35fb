"""How often a new version that is like the old one is called different, and how often a worse one is found.

    python -m benchmarks.rollouts [--seeds 1 2 3 4] [--times 40]

`before_after` on the clean judged series (cached by benchmarks.detection): at random times from the second
day on nothing changes, or everything behind that time is made worse. `Paired` on their records of one random
stretch each: a share of them is called the new version, as they are or made worse. Printed per case: how
many deployments could be compared, and in how many something was found at any look.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.fold import Float64
from benchmarks.suites import WINDOW_MS, Plan, Suite, load_suite, services
from detectors.paired import Paired, Records
from detectors.placebo import before_after
from detectors.types import STATISTIC_INDEX
from detectors.versions import Difference, findings
from monitor.generate import generate
from monitor.records import RecordColumns
from monitor.rollouts import LOOKS_MS
from monitor.workload import ANCHOR_MS, HOUR_MS

RESULTS = Path(__file__).resolve().parent / "results"
DAY_WINDOWS = 1_440
LOOKS = tuple(ms // WINDOW_MS for ms in LOOKS_MS[:3])
TIMES = [name for name in STATISTIC_INDEX if name.startswith(("latency_p", "ttft_")) and name.endswith("_ms")]
CASES: tuple[tuple[str, float], ...] = (
    ("alike", 0.0),
    ("slower", 1.2),
    ("slower", 1.4),
    ("slower", 2.0),
    ("failing", 0.01),
    ("failing", 0.03),
    ("failing", 0.1),
    ("longer", 1.3),
)
WANTED = {
    "slower": ("latency_given_tokens", "latency_p95_ms", "ttft_p50_ms"),
    "failing": ("error_rate",),
    "longer": ("output_tokens_mean",),
}


def worsened(values: Float64, counts: Float64, case: str, size: float, rng: np.random.Generator) -> Float64:
    """Statistics [w, S] as they would be with a version so much worse; `failing` adds a share of errors."""
    changed = values.copy()
    if case == "slower":
        for name in TIMES:
            changed[:, STATISTIC_INDEX[name]] *= size
        changed[:, STATISTIC_INDEX["latency_log_mean"]] += np.log(size)
    elif case == "failing":
        n = np.nan_to_num(counts[:, STATISTIC_INDEX["error_rate"]])
        at = STATISTIC_INDEX["error_rate"]
        changed[:, at] = np.minimum(changed[:, at] + rng.binomial(n.astype(int), size) / np.maximum(n, 1), 1)
    elif case == "longer":
        changed[:, STATISTIC_INDEX["output_tokens_mean"]] *= size
    return changed


def one_after_another(
    suite: Suite, case: str, size: float, times: int, seed: int
) -> Iterator[list[Difference]]:
    """Everything found about each deployment, at all looks together; only of those that can be compared."""
    rng = np.random.default_rng(seed)
    for row in range(len(suite.series)):
        values, counts = suite.values[row].astype(float), suite.counts[row].astype(float)
        for _ in range(times):
            at = int(rng.integers(DAY_WINDOWS + 200, len(suite.start_ms) - max(LOOKS)))
            after = slice(at, at + max(LOOKS))
            changed = worsened(values[after], counts[after], case, size, rng)
            found: list[Difference] = []
            for length in LOOKS:
                since = at - DAY_WINDOWS * (1 if length < 60 else 2)
                span = slice(max(since, 0), at + length)
                both = np.concatenate([values[span][: at - span.start], changed[:length]])
                live = both[:, 0] > 0
                found += findings(
                    before_after(
                        *(
                            suite.start_ms[span][live],
                            both[live],
                            counts[span][live],
                            np.ones(live.sum(), bool),
                        ),
                        old_until_ms=int(suite.start_ms[at]),
                        new_from_ms=int(suite.start_ms[at]),
                        new_until_ms=int(suite.start_ms[at]) + length * WINDOW_MS,
                    )
                )
            if found:
                yield found


def side_by_side(
    plan: Plan, case: str, size: float, times: int, share: float = 0.2
) -> Iterator[list[Difference]]:
    """The same for canaries that get a share of the traffic for two hours."""
    for i, profile in enumerate(services(plan)):
        rng = np.random.default_rng([plan.seed, i, 7])
        for _ in range(times):
            begin = ANCHOR_MS + int(rng.integers(24, plan.days * 24 - 2)) * HOUR_MS
            batches = list(generate(profile, begin, begin + 2 * HOUR_MS, plan.seed))
            found, evidence, looks = [], Paired(), list(LOOKS)
            windows = _windows(batches, begin)
            for minute in range(max(LOOKS)):
                if minute in windows:
                    everything = windows[minute]
                    new = rng.random(len(everything)) < share
                    evidence.add(_of(everything, ~new), _worse(_of(everything, new), case, size, rng))
                if minute + 1 == looks[0]:
                    looks.pop(0)
                    found += findings(evidence.differences())
            if found:
                yield found


def _windows(batches: list[RecordColumns], begin_ms: int) -> dict[int, Records]:
    by_minute: dict[int, list[Records]] = {}
    for batch in batches:
        minute = (batch.timestamp_ms - begin_ms) // WINDOW_MS
        truncated = np.array([v == "length" for v in batch.text["finish_reason"].values] + [False], np.int8)
        codes = batch.text["finish_reason"].codes
        whole = Records(
            *(batch.numbers[f"{name}"].astype(float) for name in ("latency_ms", "ttft_ms")),
            *(batch.numbers[name].astype(float) for name in ("input_tokens", "output_tokens", "confidence")),
            batch.is_error.astype(np.int8),
            np.where(codes < 0, -1, truncated[codes]).astype(np.int8),
            batch.correct.astype(np.int8),
        )
        for each in np.unique(minute).tolist():
            by_minute.setdefault(int(each), []).append(_of(whole, minute == each))
    return {minute: parts[0] for minute, parts in by_minute.items()}


def _of(records: Records, chosen: np.ndarray) -> Records:
    return Records(*(getattr(records, name)[chosen] for name in Records.__dataclass_fields__))


def _worse(records: Records, case: str, size: float, rng: np.random.Generator) -> Records:
    if case == "slower":
        return replace(records, latency_ms=records.latency_ms * size, ttft_ms=records.ttft_ms * size)
    if case == "failing":
        more = (rng.random(len(records)) < size).astype(np.int8)
        return replace(records, is_error=np.maximum(records.is_error, more))
    if case == "longer":
        return replace(records, output_tokens=np.rint(records.output_tokens * size))
    return records


def row(name: str, case: str, size: float, deployments: list[list[Difference]]) -> str:
    """One line of the table."""
    wanted = WANTED.get(case)
    hits = [
        any(d.says != "alike" and (wanted is None or d.metric in wanted) for d in found)
        for found in deployments
    ]
    share = np.mean(hits) if hits else float("nan")
    return f"| {name} | {case}{f' {size:g}' if size else ''} | {len(hits)} | {sum(hits)} | {share:.3f} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[4], help="of the judged suites")
    parser.add_argument("--times", type=int, default=40, help="deployments per series without a change")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of cached windows")
    arguments = parser.parse_args()
    plans = [Plan(copies=1, days=7, seed=seed) for seed in arguments.seeds]
    ways: dict[str, Callable[[Plan, str, float, int], Iterator[list[Difference]]]] = {
        "before and after": lambda plan, case, size, times: one_after_another(
            load_suite(arguments.out, plan, "clean"), case, size, times, plan.seed
        ),
        "same windows": lambda plan, case, size, times: side_by_side(plan, case, size, max(times // 8, 1)),
    }
    print("| compared | new version | compared | something found | share |\n|---|---|---|---|---|")
    for name, way in ways.items():
        for case, size in CASES:
            times = arguments.times if case == "alike" else max(arguments.times // 5, 1)
            found = [each for plan in plans for each in way(plan, case, size, times)]
            print(row(name, case, size, found), flush=True)


if __name__ == "__main__":
    main()
