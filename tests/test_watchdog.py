"""A loop that does not turn is noticed from outside, and ends the process so that it is started again."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass

import pytest

from monitor.clock import SystemClock
from monitor.watchdog import EXIT_STALLED, Watchdog, judge

SPINS = """
import sys
from monitor import logs
from monitor.clock import SystemClock
from monitor.watchdog import Watchdog

class Loop:
    turned_at_s = SystemClock().monotonic_s()
    in_database = False

def poll_that_spins():
    while True:
        pass

logs.configure("info")
Watchdog(Loop(), 1.0, SystemClock()).start()
poll_that_spins()
"""


@pytest.mark.parametrize(
    ("waited_s", "in_database", "verdict"),
    [
        (0.0, False, "turning"),
        (59.9, False, "turning"),
        (60.0, False, "stuck"),
        (119.9, False, "stuck"),
        (120.0, False, "hopeless"),
        (9_999.0, True, "turning"),
    ],
)
def test_what_the_time_without_a_turn_means(waited_s: float, in_database: bool, verdict: str) -> None:
    assert judge(waited_s, 60.0, in_database=in_database) == verdict


def test_a_spinning_poll_is_shown_with_its_stack_and_ends_the_process() -> None:
    done = subprocess.run([sys.executable, "-c", SPINS], capture_output=True, text=True, timeout=60)
    assert done.returncode == EXIT_STALLED
    stuck, hopeless = (line for line in done.stderr.splitlines() if "loop_" in line)
    assert '"event": "loop_stuck"' in stuck and "poll_that_spins" in stuck
    assert '"event": "loop_hopeless"' in hopeless


@dataclass
class Loop:
    turned_at_s: float
    in_database: bool = False


def test_a_loop_that_turns_or_waits_for_the_database_is_left_alone() -> None:
    clock, ended = SystemClock(), list[int]()
    loop = Loop(clock.monotonic_s())
    watchdog = Watchdog(loop, 0.4, clock, ended.append)
    watchdog.start()
    for _ in range(15):
        loop.turned_at_s = clock.monotonic_s()
        time.sleep(0.05)
    loop.in_database = True
    time.sleep(1.2)
    assert not watchdog.stalled and not ended
    loop.in_database = False
    while not ended:
        time.sleep(0.01)
    assert watchdog.stalled and set(ended) == {EXIT_STALLED}
    watchdog.stop()
