"""A source that stalls is told apart from series that fall silent. Pure, but for the partition it looks at.

A partition is *stalled* when nothing has come from it for `source.stalled_after_s` although there is more to
read, or nobody says where its log ends (brokers that are away). Its series are not silent then: they are not
read, so event time stands still and no empty windows are made of it. The stall is an alert of its own, of
the series `source:TOPIC/PARTITION`, which explains missing traffic that shows behind it (monitor.inhibition).
It fires at the event time that stands still and ends when the partition moves again or is fully read. Its id
is made of the offset that it stands at, so the next owner finds it.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from monitor.clock import rfc3339
from monitor.gaps import standing_alert
from monitor.sources.base import Partition, Progress
from storage.types import AlertRow, AlertTransition

REASON = "source_stalled"
SURE_S = 5.0  # one question without an answer says nothing yet


@dataclass(slots=True)
class Silence:
    """A partition from which nothing comes. Times are monotonic seconds."""

    waits_since_s: float  # more to read, or an end that nobody knows, and nothing has come since then
    unsure_since_s: float | None = None  # not known to be fully read since then
    unsure_at_s: float = float("-inf")  # the newest time at which it was not known to be fully read
    stalled: bool = False

    def look(
        self, progress: Progress | None, now_s: float, *, read_at_s: float, busy: bool, timeout_s: float
    ) -> bool:
        """True when the partition is stalled; to be asked every few seconds.

        `read_at_s` is the time of its newest message; `busy` says that it is this process that is waited
        for: messages that wait, a gate, a pause.
        """
        if is_fully_read(progress):
            self.unsure_since_s = None
        elif self.unsure_since_s is None:
            self.unsure_since_s = now_s
        elif now_s - self.unsure_since_s >= SURE_S:
            self.unsure_at_s = now_s
        if busy or self.unsure_since_s is None or read_at_s > self.waits_since_s:
            self.waits_since_s, self.stalled = now_s, False
        elif now_s - self.waits_since_s >= timeout_s:
            self.stalled = True
        return self.stalled


def is_fully_read(progress: Progress | None) -> bool:
    return (
        progress is not None
        and not progress.paused
        and progress.end is not None
        and progress.position >= progress.end
    )


def stall_alert(partition: Partition, next_offset: int, watermark_ms: int) -> AlertRow:
    """The alert of a partition that stands still at this offset and event time; always the same."""
    return standing_alert(
        partition,
        f"stall {next_offset} {watermark_ms}",
        watermark_ms,
        severity="critical",
        rarity="never in normal operation",
        reason=REASON,
        summary=(
            f"{partition} has stalled: nothing comes from offset {next_offset} on, though its log goes on or "
            f"no broker says where it ends. Its series are not silent, they are not read: event time stands "
            f"at {rfc3339(watermark_ms)}"
        ),
    )


def begins(alert: AlertRow) -> AlertTransition:
    return AlertTransition(alert.fired_at_ms, "fired", alert)


def ends(alert: AlertRow, at_ms: int) -> AlertTransition:
    """At the event time of the first commit behind the stall."""
    at_ms = max(at_ms, alert.fired_at_ms)
    return AlertTransition(
        at_ms, "resolved", dataclasses.replace(alert, status="resolved", resolved_at_ms=at_ms)
    )
