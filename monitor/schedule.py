"""When models are trained and when traffic is compared with what they were trained on: event times alone.

Comparisons stand at fixed event times, every `check_every_ms` from the anchor on. Trainings follow each
other at `every_ms`; a comparison that found drift is itself the time of the next training, and the ones
after it are counted from there. Given the verdicts, all of it is arithmetic: no state, no clock.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

HOUR_MS = 3_600_000
DAY_MS = 86_400_000
NEVER_MS = 1 << 62
ACTIVATION_DELAY_MS = HOUR_MS
SETTLED_MS = HOUR_MS // 2  # behind T; later than the default revision horizon, so what is trained on is final
COMPARED_BEFORE_MS = HOUR_MS  # what is compared ended this long before the comparison, for the same reason
REFERENCE_MS = 7 * DAY_MS
SCORES_SETTLE_MS = 8 * DAY_MS  # a series finds its own usual level in its first week; scores move with it
ENOUGH_WINDOWS = 240  # in a span that is compared

Span = tuple[int, int]
"""[start_ms, end_ms)"""


@dataclass(frozen=True, slots=True)
class Comparison:
    """What is compared with what; `trained_at_ms` None: with the first windows, as nothing was trained."""

    recent: Span
    features: Span
    scores: Span | None  # None in the first week, and until the model has scored a whole span before `recent`
    trained_at_ms: int | None


@dataclass(frozen=True, slots=True)
class Schedule:
    """`drifted`, where it is asked for: ascending times of the comparisons that found drift."""

    anchor_ms: int
    first_ms: int
    every_ms: int
    check_every_ms: int  # 0 = no comparisons
    window_ms: int

    def newest_training(self, event_ms: int, drifted: Sequence[int]) -> int | None:
        """The newest training at or before `event_ms`."""
        newest, due_ms = None, self.first_ms
        for check_ms in (*drifted[: bisect_right(drifted, event_ms)], NEVER_MS):
            last_ms = min(check_ms - 1, event_ms)
            if due_ms <= last_ms:
                newest = last_ms - (last_ms - due_ms) % self.every_ms
                due_ms = newest + self.every_ms
            if check_ms <= event_ms:
                newest, due_ms = check_ms, check_ms + self.every_ms
        return newest

    def is_training(self, at_ms: int, drifted: Sequence[int]) -> bool:
        return self.newest_training(at_ms, drifted) == at_ms

    def is_check(self, at_ms: int) -> bool:
        since_ms = at_ms - self.anchor_ms
        return self.check_every_ms > 0 and since_ms > 0 and since_ms % self.check_every_ms == 0

    def next_gate(self, event_ms: int, drifted: Sequence[int]) -> int:
        """The first event time behind `event_ms` at which a verdict or a model must be known."""
        newest = self.newest_training(event_ms - ACTIVATION_DELAY_MS, drifted)
        next_ms = self.first_ms if newest is None else newest + self.every_ms
        behind = bisect_right(drifted, event_ms - ACTIVATION_DELAY_MS)
        if behind < len(drifted):
            next_ms = min(next_ms, drifted[behind])
        gate_ms = next_ms + ACTIVATION_DELAY_MS
        if not self.check_every_ms:
            return gate_ms
        checks = max((event_ms - self.anchor_ms) // self.check_every_ms + 1, 1)
        return min(gate_ms, self.anchor_ms + checks * self.check_every_ms)

    @property
    def span_ms(self) -> int:
        """A day, or as many as it takes for enough windows."""
        return -(-ENOUGH_WINDOWS * self.window_ms // DAY_MS) * DAY_MS

    def recent(self, check_ms: int) -> Span:
        """The span that a comparison judges."""
        end_ms = check_ms - COMPARED_BEFORE_MS
        return end_ms - self.span_ms, end_ms

    def too_early(self, check_ms: int, drifted: Sequence[int]) -> bool:
        """True while the recent span is not wholly behind the newest training, or the first windows."""
        newest = self.newest_training(check_ms, drifted[: bisect_right(drifted, check_ms - 1)])
        known_ms = self.anchor_ms + self.span_ms if newest is None else newest
        return self.recent(check_ms)[0] < known_ms

    def comparison(self, check_ms: int, trained_at_ms: int | None, history_ms: int) -> Comparison:
        """What to compare at `check_ms` if the newest training that ended well was at `trained_at_ms`."""
        recent = self.recent(check_ms)
        if trained_at_ms is None:
            first = (self.anchor_ms, self.anchor_ms + self.span_ms)
            return Comparison(recent, first, None, None)
        features = (trained_at_ms - min(REFERENCE_MS, history_ms), trained_at_ms)
        in_force_ms = trained_at_ms + ACTIVATION_DELAY_MS
        scores = (in_force_ms, in_force_ms + self.span_ms)
        comparable = scores[1] <= recent[0] and in_force_ms >= self.anchor_ms + SCORES_SETTLE_MS
        return Comparison(recent, features, scores if comparable else None, trained_at_ms)
