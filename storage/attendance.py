"""Whom incidents wait for, and for how long: what a ledger remembers of the wall clock. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from storage.folding import NO_LIMIT_MS, Passed

GAP_MS = 15_000
"""Folding beside the commits that was away for longer cannot tell who stood still meanwhile."""
REST_GRACE_MS = 900
"""In which the owner of a partition at rest notices that it has records again."""


@dataclass(slots=True)
class Attendance:
    """Without `attend` nobody folds beside the commits, and whoever is at rest has ended."""

    hold_ms: int
    since_ms: int | None = None  # from here on time counts
    at_ms: int = 0  # when it was looked last
    _rested: tuple[int, int] = (0, -NO_LIMIT_MS)  # when it was asked how far everything is, and the answer

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

    def beside_commits_ms(self, passed: Passed, now_ms: int) -> int:
        """Over those at rest as far as everything had come when this was asked before: what one of them had
        to bring by then, its owner has seen meanwhile, and said so (`Ledger.touch`)."""
        if self.since_ms is None:
            return passed.over_resting_ms
        at_ms, reached_ms = self._rested
        if abs(now_ms - at_ms) < REST_GRACE_MS:
            return passed.surely_ms
        self._rested = now_ms, min(passed.over_resting_ms, passed.newest_ms)
        return max(passed.surely_ms, min(reached_ms, passed.over_resting_ms))

    def _is_gap(self, now_ms: int) -> bool:
        return self.since_ms is not None and now_ms - self.at_ms > GAP_MS
