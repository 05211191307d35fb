"""Notices from outside that the reading loop has stopped turning, says where it stands, and ends the process.

kafka-python's `poll` can spin for ever and ignore its timeout; a thread that spins cannot be woken or ended
from within. Everything that counts is in the database, so the way out is the end of the process: whoever
started it starts it again, and it goes on from its last commit.
"""

from __future__ import annotations

import os
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Literal, Protocol

import structlog

from monitor import metrics
from monitor.clock import Clock

log = structlog.get_logger()

EXIT_STALLED = 75  # EX_TEMPFAIL: another try may do
CHECKS = 20  # per timeout


class Turning(Protocol):
    """What the watchdog looks at: see Pipeline."""

    turned_at_s: float
    in_database: bool


def judge(waited_s: float, timeout_s: float, *, in_database: bool) -> Literal["turning", "stuck", "hopeless"]:
    """Pure: what it means that the loop last turned `waited_s` ago. Waiting for the database is no stall."""
    if in_database or waited_s < timeout_s:
        return "turning"
    return "stuck" if waited_s < 2 * timeout_s else "hopeless"


class Watchdog:
    """Watches the thread that made it. After `timeout_s` without a turn: a log line with the stack, and the
    metric; after twice as long: `end(EXIT_STALLED)`.

    A process that was stopped (SIGSTOP, a suspended machine) finds a lot of time gone; it gets a whole
    timeout before anything is said.
    """

    def __init__(
        self, watched: Turning, timeout_s: float, clock: Clock, end: Callable[[int], object] = os._exit
    ) -> None:
        self._watched, self._timeout_s, self._clock, self._end = watched, timeout_s, clock, end
        self._thread_id = threading.get_ident()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
        self.stalled = False

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()

    def _run(self) -> None:
        pause_s = self._timeout_s / CHECKS
        looked_s, excused_s = self._clock.monotonic_s(), 0.0
        turned_s = self._watched.turned_at_s
        while not self._stop.wait(pause_s):
            now_s = self._clock.monotonic_s()
            if self._watched.turned_at_s != turned_s:
                turned_s, excused_s = self._watched.turned_at_s, 0.0
            if now_s - looked_s > self._timeout_s / 2:  # this thread did not run either
                excused_s += now_s - looked_s
            looked_s = now_s
            self._look(now_s - turned_s - excused_s)

    def _look(self, waited_s: float) -> None:
        verdict = judge(waited_s, self._timeout_s, in_database=self._watched.in_database)
        if verdict == "turning":
            self.stalled = False
        elif not self.stalled:
            self.stalled = True
            metrics.STALLS.inc()
            log.error("loop_stuck", seconds=round(waited_s, 1), stack=stack_of(self._thread_id))
        elif verdict == "hopeless":
            log.critical(
                "loop_hopeless",
                seconds=round(waited_s, 1),
                exit_code=EXIT_STALLED,
                stack=stack_of(self._thread_id),
            )
            self._stop.set()
            self._end(EXIT_STALLED)


def stack_of(thread_id: int) -> str:
    """Where a thread stands now."""
    frame = sys._current_frames().get(thread_id)
    return "".join(traceback.format_stack(frame)) if frame is not None else "the thread has ended"
