"""Facts about a partition that are told as an alert: deleted records with their number, too many series."""

from __future__ import annotations

import dataclasses
import uuid

from monitor.alerting import NAMESPACE
from monitor.clock import rfc3339
from monitor.inhibition import SOURCE_PREFIX
from monitor.sources.base import Gap, Partition
from monitor.steps import CapReached
from storage.types import AlertRow, AlertTransition

REASON, CAP_REASON, APART_REASON = "source_gap", "series_cap", "series_in_two_partitions"


def gap_alert(gap: Gap, lost: int, at_ms: int) -> list[AlertTransition]:
    """Fires and resolves at once: `lost` offsets of a partition are gone, `at_ms` was event time before."""
    assert lost > 0
    return _fact(
        gap.partition,
        f"gap {gap.end - lost} {gap.end}",
        at_ms,
        severity="critical",
        rarity="never in normal operation",
        reason=REASON,
        summary=(
            f"{lost:,} records of {gap.partition} (offsets {gap.end - lost} to {gap.end - 1}) were deleted "
            f"before they were read; the windows after {rfc3339(at_ms)} lack them"
        ),
    )


def cap_alert(partition: Partition, reached: CapReached) -> list[AlertTransition]:
    """Fires and resolves at once: a partition has more series than have a place."""
    return _fact(
        partition,
        f"cap {reached.at_ms} {reached.limit}",
        reached.at_ms,
        severity="major",
        rarity="never with a sound record.series_by",
        reason=CAP_REASON,
        summary=(
            f"{partition} has more than {reached.limit:,} live series: from {rfc3339(reached.at_ms)} on "
            f"records of further ones are counted together as {reached.series}; raise window.max_series, or "
            "name series by fewer fields (record.series_by)"
        ),
    )


def apart_id(partition: Partition) -> str:
    return _alert_id("apart", f"{SOURCE_PREFIX}{partition}")


def apart_alert(partition: Partition, suffix: str, at_ms: int) -> list[AlertTransition]:
    """Fires and resolves at once, once per partition: some of its series live in another partition too."""
    return _fact(
        partition,
        "apart",
        at_ms,
        severity="major",
        rarity="never with a producer that keys by series",
        reason=APART_REASON,
        summary=(
            f"series of {partition} are found in another partition too; they are kept apart here under names "
            f"that end in {suffix}; key the producer by what record.series_by names"
        ),
    )


def _alert_id(key: str, series: str) -> str:
    return str(uuid.uuid5(NAMESPACE, f"{key} {series}"))


def _fact(
    partition: Partition, key: str, at_ms: int, *, severity: str, rarity: str, reason: str, summary: str
) -> list[AlertTransition]:
    alert = standing_alert(
        partition, key, at_ms, severity=severity, rarity=rarity, reason=reason, summary=summary
    )
    ended = dataclasses.replace(alert, status="resolved", resolved_at_ms=at_ms)
    return [AlertTransition(at_ms, "fired", alert), AlertTransition(at_ms, "resolved", ended)]


def standing_alert(
    partition: Partition, key: str, at_ms: int, *, severity: str, rarity: str, reason: str, summary: str
) -> AlertRow:
    """An alert about a partition that fires at event time `at_ms`; its id is made of `key`."""
    series = f"{SOURCE_PREFIX}{partition}"
    return AlertRow(
        alert_id=_alert_id(key, series),
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
        severity=severity,
        rarity=rarity,
        reason=reason,
        summary=summary,
        top_features=[],
        slices=[],
        exemplars=[],
        model_versions=[],
    )
