"""Getting back what was remembered of a series, and what happens where that cannot be read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import structlog

from detectors.pack import is_packed
from monitor import metrics
from monitor.alerting import AlertState
from monitor.series import SeriesInfo, check_state
from storage.types import AlertRow, SeriesRow

log = structlog.get_logger()


def recall(
    series: str, part: str, state: bytes | None, restore: Callable[[str, bytes], None], *, partition: str
) -> bool:
    """Restore one part of a series' memory, if there is one; False where it begins anew.

    Bytes that are damaged, or of a version that had another layout, cost this series what it had learned, and
    nobody else anything: a partition that cannot be claimed would be blind for all of its series.
    """
    if state is None:
        return True
    try:
        restore(series, state)
    except ValueError as error:
        log.error("memory_lost", series=series, part=part, partition=partition, error=str(error)[:300])
        metrics.MEMORY_LOST.labels(part).inc()
        return False
    return True


def readable(series: str, blobs: Sequence[bytes | None]) -> list[int]:
    """Which of a series' stored windows have statistics that can be read; the others are as if missing."""
    found = [i for i, blob in enumerate(blobs) if blob is not None and is_packed(blob)]
    if lost := sum(blob is not None for blob in blobs) - len(found):
        log.error("windows_lost", series=series, windows=lost, reason="their statistics cannot be read")
        metrics.MEMORY_LOST.labels("window").inc(lost)
    return found


def series_info(row: SeriesRow, *, partition: str) -> SeriesInfo:
    """What the windows of a partition want to know of a stored series."""
    state = row.window_state
    if not recall(row.series, "window_state", state, check_state, partition=partition):
        state = None
    return SeriesInfo(row.series, row.model, row.endpoint, row.first_seen_ms, row.last_record_ms, state)


def alert_states(
    rows: Iterable[SeriesRow], firing_alert: Callable[[str], AlertRow | None], *, partition: str
) -> dict[str, AlertState]:
    """Alert states by series.

    An alert whose state cannot be read still has to end, so it goes on from what its newest step said; an
    episode that had ended can no longer be amended.
    """
    found: dict[str, AlertState] = {}

    def restore(series: str, state: bytes) -> None:
        found[series] = AlertState.from_bytes(state)

    for row in rows:
        read = recall(row.series, "alert_state", row.alert_state, restore, partition=partition)
        if not read and (alert := firing_alert(row.series)) is not None:
            found[row.series] = AlertState.of_alert(alert)
    return found
