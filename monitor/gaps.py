"""Records that were deleted before they were read: a fact with its exact size, told as an alert."""

from __future__ import annotations

import dataclasses
import uuid

from monitor.alerting import NAMESPACE
from monitor.clock import rfc3339
from monitor.sources.base import Gap
from storage.types import AlertRow, AlertTransition

REASON = "source_gap"


def gap_alert(gap: Gap, lost: int, at_ms: int) -> list[AlertTransition]:
    """Fires and resolves at once: `lost` offsets of a partition are gone, `at_ms` was event time before."""
    assert lost > 0
    series = f"source:{gap.partition}"
    alert = AlertRow(
        alert_id=str(uuid.uuid5(NAMESPACE, f"gap {gap.end - lost} {gap.end} {series}")),
        series=series,
        model="",
        endpoint="",
        status="firing",
        window_start_ms=at_ms,
        window_end_ms=at_ms,
        fired_at_ms=at_ms,
        resolved_at_ms=None,
        score=1.0,
        tail_probability=1e-9,
        severity="critical",
        rarity="never in normal operation",
        reason=REASON,
        summary=(
            f"{lost:,} records of {gap.partition} (offsets {gap.end - lost} to {gap.end - 1}) were deleted "
            f"before they were read; the windows after {rfc3339(at_ms)} lack them"
        ),
        top_features=[],
        slices=[],
        exemplars=[],
        model_versions=[],
    )
    ended = dataclasses.replace(alert, status="resolved", resolved_at_ms=at_ms)
    return [AlertTransition(at_ms, "fired", alert), AlertTransition(at_ms, "resolved", ended)]
