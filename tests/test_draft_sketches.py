"""Which sketch a draft gives for a window that late records are about to amend."""

from __future__ import annotations

import numpy as np

from monitor.partition import Draft
from monitor.series import SeriesInfo
from storage.types import RevisedWindow, ScoredWindows


def closed(start_ms: int, sketches: list[bytes | None]) -> ScoredWindows:
    """Windows of the series a, b, ... with one start."""
    n = len(sketches)
    names = [chr(ord("a") + row) for row in range(n)]
    score, nothing = np.zeros(n), [None] * n
    return ScoredWindows(
        start_ms, start_ms + 60_000, names, np.zeros((n, 19)), nothing, [b""] * n, sketches,
        score, score, score, score, np.zeros(n, np.bool_),
    )  # fmt: skip


def revised(series: str, start_ms: int, sketch: bytes) -> RevisedWindow:
    return RevisedWindow(
        series=series, window_start_ms=start_ms, features=np.zeros(19), metrics=None, statistics=b"",
        sketch=sketch, score=0.0, gbdt_score=0.0, lstm_score=0.0, tail_probability=1.0, is_anomalous=False,
    )  # fmt: skip


def test_a_draft_gives_the_newest_sketch_of_its_windows() -> None:
    draft = Draft()
    draft.close(closed(0, [b"a0", None, b"c0"]), [])
    draft.close(closed(60_000, [b"a1"]), [])
    assert draft.sketch("a", 0) == b"a0" and draft.sketch("c", 0) == b"c0"
    assert draft.sketch("a", 60_000) == b"a1"
    assert draft.sketch("b", 0) is None  # an empty window
    assert draft.sketch("b", 60_000) is None and draft.sketch("a", 120_000) is None  # not of this draft
    draft.revise(revised("a", 0, b"a0'"), SeriesInfo("a", "a", "", 0, 0, None))
    assert draft.sketch("a", 0) == b"a0'" and draft.sketch("c", 0) == b"c0"
    assert draft.window_rows == 4
