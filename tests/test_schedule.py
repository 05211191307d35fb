"""Trainings and comparisons in event time: arithmetic against a walk hour by hour."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from monitor.schedule import ACTIVATION_DELAY_MS, DAY_MS, HOUR_MS, Schedule

ANCHOR = 20_000 * DAY_MS
SCHEDULES = st.builds(
    lambda first, every, check: Schedule(
        ANCHOR, ANCHOR + first * HOUR_MS, every * HOUR_MS, check * HOUR_MS, 60_000
    ),
    *(st.integers(1, 60), st.integers(2, 60), st.integers(0, 12)),
)


def walk(schedule: Schedule, drifted: set[int], until_ms: int) -> tuple[list[int], list[int]]:
    """(trainings, gates) up to `until_ms`, as somebody who looks at every hour would set them."""
    trainings, gates, due = [], [], schedule.first_ms
    for hour in range(ANCHOR, until_ms + 1, HOUR_MS):
        if hour == due or hour in drifted:
            trainings.append(hour)
            due = hour + schedule.every_ms
        check = schedule.check_every_ms and hour > ANCHOR and (hour - ANCHOR) % schedule.check_every_ms == 0
        if check or hour - ACTIVATION_DELAY_MS in trainings:
            gates.append(hour)
    return trainings, gates


@given(SCHEDULES, st.sets(st.integers(1, 40), max_size=4))
def test_the_arithmetic_is_that_of_a_walk(schedule: Schedule, drifting: set[int]) -> None:
    drifted = sorted(ANCHOR + n * schedule.check_every_ms for n in drifting if schedule.check_every_ms)
    end = ANCHOR + 200 * HOUR_MS
    trainings, gates = walk(schedule, set(drifted), end + 100 * HOUR_MS)
    for event_ms in range(ANCHOR, end, 7 * HOUR_MS // 2):
        before = [t for t in trainings if t <= event_ms]
        assert schedule.newest_training(event_ms, drifted) == max(before, default=None)
        assert schedule.next_gate(event_ms, drifted) == min(g for g in gates if g > event_ms)


@given(SCHEDULES, st.sets(st.integers(1, 40), max_size=4))
def test_a_verdict_that_is_not_in_yet_changes_no_gate_before_its_own(
    schedule: Schedule, drifting: set[int]
) -> None:
    """What a partition does up to a gate follows from the verdicts of gates it has passed."""
    drifted = sorted(ANCHOR + n * schedule.check_every_ms for n in drifting if schedule.check_every_ms)
    at = ANCHOR
    while at < ANCHOR + 200 * HOUR_MS:
        known = [check for check in drifted if check <= at]
        assert schedule.next_gate(at, known) == schedule.next_gate(at, drifted)
        assert schedule.newest_training(at, known) == schedule.newest_training(at, drifted)
        at = schedule.next_gate(at, known)


def test_a_comparison_lies_wholly_behind_what_it_is_compared_with() -> None:
    schedule = Schedule(ANCHOR, ANCHOR + DAY_MS, 7 * DAY_MS, 6 * HOUR_MS, 60_000)
    checks = [at for at in range(ANCHOR, ANCHOR + 10 * DAY_MS, HOUR_MS) if schedule.is_check(at)]
    ready = [at for at in checks if not schedule.too_early(at, ())]
    assert ready[0] == ANCHOR + 54 * HOUR_MS
    first = schedule.comparison(ready[0], ANCHOR + DAY_MS, 30 * DAY_MS)
    assert first.features[1] == ANCHOR + DAY_MS <= first.recent[0]
    assert first.scores is None  # the model has not been in force for long enough
    assert schedule.comparison(ready[4], ANCHOR + DAY_MS, 30 * DAY_MS).scores is None  # nor have they settled
    later = schedule.comparison(ANCHOR + 12 * DAY_MS, ANCHOR + 8 * DAY_MS, 30 * DAY_MS)
    assert later.scores is not None and later.scores[1] <= later.recent[0]
    assert later.scores[0] == ANCHOR + 8 * DAY_MS + ACTIVATION_DELAY_MS
    assert ANCHOR + 8 * DAY_MS not in ready  # trained at that time anyway
    assert schedule.too_early(ready[1], (ready[0],))


def test_long_windows_are_compared_over_more_than_a_day() -> None:
    schedule = Schedule(ANCHOR, ANCHOR + DAY_MS, 7 * DAY_MS, 6 * HOUR_MS, 15 * 60_000)
    assert schedule.span_ms == 3 * DAY_MS
