"""Whom incidents wait for, and for how long: what a ledger remembers of the wall clock. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from storage.folding import Passed

GAP_MS = 5_000
"""Folding beside the commits that was away for longer cannot tell who stood still meanwhile."""
ANSWERS = 2
"""The first that is seen may have been on its way when it was asked; the next one looked at the log later."""


@dataclass(slots=True)
class Question:
    """Whether those at rest are still fully read, asked when transitions up to `reached_ms` were waiting."""

    reached_ms: int
    at_ms: int
    seen_ms: dict[int, int]  # partition -> when it was last heard of
    answers: dict[int, int] = field(default_factory=dict)

    def unanswered(self, resting: Mapping[int, int]) -> list[int]:
        """One that came to rest since then has looked since then."""
        for partition, heard_ms in resting.items():
            if self.seen_ms.get(partition, heard_ms) != heard_ms:
                self.seen_ms[partition] = heard_ms
                self.answers[partition] = self.answers.get(partition, 0) + 1
        return [p for p in resting if p in self.seen_ms and self.answers.get(p, 0) < ANSWERS]


@dataclass(slots=True)
class Attendance:
    """Without `attend` nobody folds beside the commits, and whoever is at rest has ended."""

    hold_ms: int
    since_ms: int | None = None  # from here on time counts
    at_ms: int = 0  # when it was looked last
    question: Question | None = None

    def attend(self, now_ms: int) -> None:
        self.since_ms = self.at_ms = now_ms

    def excuse(self, now_ms: int) -> None:
        if self.since_ms is not None:
            self.since_ms = now_ms

    def look(self, now_ms: int) -> None:
        """Before it is folded beside the commits."""
        if self._is_gap(now_ms):
            self.excuse(now_ms)

    def looked(self, now_ms: int) -> None:
        self.at_ms = now_ms

    def stale_before_ms(self, now_ms: int) -> int | None:
        """A partition last seen before this holds nobody back; None = who stands still cannot be told."""
        at_ms = now_ms - self.hold_ms
        if self.since_ms is None:
            return at_ms
        return None if self._is_gap(now_ms) or self.since_ms > at_ms else at_ms

    def in_commits_ms(self, passed: Passed) -> int:
        """How far may be folded inside a commit."""
        return passed.over_resting_ms if self.since_ms is None else passed.surely_ms

    def beside_commits_ms(
        self, passed: Passed, newest_ms: int, resting: Mapping[int, int], now_ms: int
    ) -> tuple[int, list[int]]:
        """How far may be folded, and the partitions at rest that nobody answers for any more.

        newest_ms: the newest transition that waits; resting: partition -> when it was last heard of. Over
        those at rest go transitions that waited when it was asked, once each has answered since: what one
        of them had to bring by then, its owner would have seen (`Ledger.touch`, `Ledger.rests`). An owner
        that is dead or frozen does not answer; its partition is waited for like any other.
        """
        if self.since_ms is None:
            return passed.over_resting_ms, []
        asked, gone = self.question, []
        if asked is not None:
            gone = asked.unanswered(resting)
            if gone and now_ms - max(asked.at_ms, self.since_ms) < self.hold_ms:
                return passed.surely_ms, []
        self.question = Question(min(passed.over_resting_ms, newest_ms), now_ms, dict(resting))
        if asked is None:
            return passed.surely_ms, []
        return max(passed.surely_ms, min(asked.reached_ms, passed.over_resting_ms)), gone

    def _is_gap(self, now_ms: int) -> bool:
        return self.since_ms is not None and now_ms - self.at_ms > GAP_MS
