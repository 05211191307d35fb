"""The judge of the detection benchmark, on verdicts whose worth is known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import plain_floor
from benchmarks.judging import Verdict, alarm_events, average_precision, judge, threshold_for
from benchmarks.product import judge_incidents
from benchmarks.splits import JUDGE_CLIENTS, train_clients
from benchmarks.suites import Plan, Suite, load_suite, services
from detectors.types import STATISTICS
from monitor.truth import TruthInterval
from monitor.workload import load_workloads

MINUTE = 60_000
WINDOWS = 7 * 1_440


def suite() -> Suite:
    """Two series of one week, the first with a fault of one hour and a benign change."""
    slow = TruthInterval(
        "slow",
        "a",
        1_000 * MINUTE,
        1_060 * MINUTE,
        1_000 * MINUTE,
        3.0,
        ("latency_p50_ms",),
        False,
        False,
        99,
    )
    shift = TruthInterval(
        "input_shift",
        "a",
        3_000 * MINUTE,
        3_100 * MINUTE,
        3_000 * MINUTE,
        1.2,
        ("input_tokens_mean",),
        True,
        False,
        99,
    )
    empty = np.zeros((2, WINDOWS, len(STATISTICS)))
    return Suite(
        name="x",
        series=["a", "b"],
        start_ms=np.arange(WINDOWS, dtype=np.int64) * MINUTE,
        values=empty,
        counts=empty,
        metrics={},
        new_version=np.zeros((2, WINDOWS), bool),
        truth=[slow, shift],
    )


def verdict(*hits: tuple[int, int]) -> Verdict:
    alarm = np.zeros((2, WINDOWS), bool)
    for row, window in hits:
        alarm[row, window] = True
    return Verdict(alarm.astype(float), alarm)


def test_silence_finds_nothing_and_raises_no_false_alarm() -> None:
    result = judge(suite(), verdict(), from_ms=0)
    assert result.recall == 0 and result.false_events == 0
    assert result.series_weeks == pytest.approx(2, abs=0.02)


def test_a_found_fault_its_delay_and_its_name() -> None:
    said = verdict((0, 1_003), (0, 1_004))
    said.top = {(0, 1_003): ("error_rate", "latency_p50_ms", "ttft_p50_ms")}
    result = judge(suite(), said, from_ms=0)
    assert result.recall == 1 and result.false_events == 0
    assert result.delay_min(gradual=False) == 4
    assert np.isnan(result.delay_min(gradual=True))
    assert result.named_share == 1 and result.events[0].named


def test_alarms_elsewhere_are_false_once_per_run_also_on_benign_changes() -> None:
    result = judge(suite(), verdict((1, 10), (1, 20), (1, 500), (0, 3_050), (0, 998), (0, 1_080)), from_ms=0)
    assert result.false_events == 3
    assert result.recall == 0
    assert result.benign_alarmed == result.benign == 1


def test_warm_up_is_not_judged() -> None:
    assert judge(suite(), verdict((1, 10)), from_ms=11 * MINUTE).false_events == 0


def test_runs_closer_than_a_quarter_of_an_hour_are_one_event() -> None:
    start = np.arange(100, dtype=np.int64) * MINUTE
    alarm = np.zeros(100, bool)
    alarm[[3, 4, 17, 40]] = True
    assert alarm_events(start, alarm) == [(3, 17), (40, 40)]


def test_average_precision_of_known_rankings() -> None:
    truth = np.array([True, False, True, False])
    assert average_precision(np.array([4.0, 2.0, 3.0, 1.0]), truth) == 1.0
    assert average_precision(np.ones(4), truth) == 0.5
    assert average_precision(np.array([1.0, 2.0, 3.0, 4.0]), truth) == pytest.approx((1 / 2 + 2 / 4) / 2)


def test_the_threshold_keeps_its_budget() -> None:
    rng = np.random.default_rng(1)
    clean = suite()
    clean.truth = []
    score = rng.random((2, WINDOWS))
    level = threshold_for(clean, score, 1.0, from_ms=0)
    result = judge(clean, Verdict(score, score >= level), from_ms=0)
    assert 0 < result.false_per_series_week <= 1


def test_judges_and_training_share_no_workload() -> None:
    every = list(load_workloads())
    learned = set(train_clients(every))
    assert not learned & set(JUDGE_CLIENTS)
    assert learned | set(JUDGE_CLIENTS) == set(every)
    plans = [Plan(split=split, copies=1) for split in ("judge", "train")]
    judged, trained = ({client for p in services(plan) for client in p.clients} for plan in plans)
    assert judged == set(JUDGE_CLIENTS) and trained == learned


def test_a_suite_comes_back_from_disk_as_it_was(tmp_path: Path) -> None:
    plan = Plan(clients=2, copies=1, days=3)
    built = load_suite(tmp_path, plan, "faulty", progress=False)
    again = load_suite(tmp_path, plan, "faulty", progress=False)
    assert built.truth == again.truth and built.truth
    assert np.array_equal(built.values, again.values, equal_nan=True)
    assert built.values.shape == (2, 3 * 1_440, len(STATISTICS))
    clean = load_suite(tmp_path, plan, "clean", progress=False)
    quiet = clean.start_ms < min(item.start_ms for item in built.truth) - MINUTE
    assert np.array_equal(built.values[:, quiet], clean.values[:, quiet], equal_nan=True)


def test_the_plain_floor_sees_no_future_and_learns_no_held_out_kind() -> None:
    one = suite()
    rng = np.random.default_rng(2)
    one.values[:] = rng.lognormal(2, 0.5, one.values.shape)
    one.counts[:] = 5.0
    before = plain_floor.features(one, 0)
    one.values[0, 2_000:] *= 3.0
    after = plain_floor.features(one, 0)
    np.testing.assert_array_equal(before[:2_000], after[:2_000])
    assert not np.array_equal(before[2_000:], after[2_000:], equal_nan=True)
    label = plain_floor.labels(one, 0)
    assert (label[1_000:1_060] == 1).all() and (label[1_060:1_100] == -1).all() and (label[3_050] == 0)
    one.truth = [replace(one.truth[0], kind="stuck")]
    assert (plain_floor.labels(one, 0)[1_000:1_060] == -1).all()


def test_incidents_are_real_benign_or_neither() -> None:
    found = judge_incidents(
        [
            [("a", 999 * MINUTE, 1_001 * MINUTE), ("b", 0, MINUTE)],
            [("a", 3_010 * MINUTE, 3_020 * MINUTE)],
            [("b", 1_010 * MINUTE, 1_020 * MINUTE)],
            [("a", 1_091 * MINUTE, 1_092 * MINUTE)],
        ],
        suite().truth,
        from_ms=0,
        series_weeks=2.0,
    )
    assert found["incidents"] == 4 and found["incidents_per_series_week"] == 2
    assert found["real_share_of_incidents"] == 0.25 and found["incidents_on_benign_changes"] == 1
