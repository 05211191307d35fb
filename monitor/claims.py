"""Becoming the owner of a partition, and getting its memory back from what its last owner committed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from monitor.clock import Clock
from monitor.config import Settings
from monitor.gaps import apart_id
from monitor.models import Models
from monitor.partition import Draft, OwnedPartition
from monitor.recall import alert_states, recall, series_info
from monitor.records import Decoder
from monitor.rollouts import Rollouts
from monitor.sources.base import Assigned, Partition, Source
from monitor.stalls import Silence, stall_alert
from monitor.windows import PartitionWindows, SeriesInfo
from storage.drift import stored_windows
from storage.facts import Facts
from storage.ledger import Ledger
from storage.types import Claim, StoredWindow

LOSS_WAIT_S, MAX_LOSS_WAIT_S = 10.0, 300.0
APART = "series_suffix {}"  # the fact that series of a partition have names of their own


@dataclass(frozen=True, slots=True)
class Parts:
    """What a pipeline is made of; built by the daemon, the replay and the tests."""

    source: Source
    ledger: Ledger
    facts: Facts
    clock: Clock
    models: Models
    on_committed: Callable[[], None] = lambda: None  # wakes the delivery thread


@dataclass(slots=True)
class Waiting:
    """Partitions that are assigned to this process and not claimed yet."""

    clock: Clock
    assigned: dict[Partition, Assigned] = field(default_factory=dict)
    _not_before_s: dict[Partition, float] = field(default_factory=dict)  # monotonic
    _loss_wait_s: dict[Partition, float] = field(default_factory=dict)

    def add(self, assigned: Assigned, wait_s: float = 0.0) -> None:
        self.assigned[assigned.partition] = assigned
        self._not_before_s[assigned.partition] = self.clock.monotonic_s() + wait_s

    def revoke(self, key: Partition) -> None:
        self.assigned.pop(key, None)
        self._loss_wait_s.pop(key, None)

    def due(self) -> Iterator[Assigned]:
        now_s = self.clock.monotonic_s()
        return iter([a for key, a in self.assigned.items() if now_s >= self._not_before_s[key]])

    def claimed(self, key: Partition) -> None:
        del self.assigned[key]

    def after_loss_s(self, key: Partition) -> float:
        """How long to leave a partition to the newer owner that took it.

        Mostly the group takes it from us meanwhile (Revoked). But when that owner leaves before we have
        noticed anything, the group gives it back without a word: then nobody else will ever claim it. Two
        that both believe to own it give each other twice the time with every turn.
        """
        wait_s = min(2 * self._loss_wait_s.get(key, LOSS_WAIT_S / 2), MAX_LOSS_WAIT_S)
        self._loss_wait_s[key] = wait_s
        return wait_s


def load_partition(settings: Settings, parts: Parts, assigned: Assigned, claim: Claim) -> OwnedPartition:
    """Rebuild the memory of a partition from what its last owner committed."""
    key = assigned.partition
    scorer = parts.models.at_claim(claim.model_version)
    states = scorer.new_states()
    alerts = alert_states(claim.series, parts.ledger.firing_alert, partition=str(key))
    owned: OwnedPartition

    def load_windows(series: str, since_ms: int, until_ms: int) -> list[StoredWindow]:
        stored = stored_windows(parts.ledger.engine, series, since_ms, until_ms)
        newest = {window.start_ms: window for window in stored}
        newest |= owned.draft.windows_of(series, since_ms, until_ms)
        return [newest[start_ms] for start_ms in sorted(newest)]

    rollouts = Rollouts(load_windows)
    for row in claim.series:
        recall(row.series, "detector_state", row.detector_state, states.load, partition=str(key))
        recall(row.series, "rollout_state", row.rollout_state, rollouts.restore, partition=str(key))
    suffix = parts.facts.recall(APART.format(key)) or ""

    def load_sketch(series: str, start_ms: int) -> bytes | None:
        drafted = owned.draft.sketch(series, start_ms)
        return drafted if drafted is not None else parts.ledger.load_sketch(series, start_ms)

    def load_parked(names: list[str]) -> list[SeriesInfo]:
        drafted = [owned.draft.parked[name] for name in names if name in owned.draft.parked]
        stored = parts.ledger.load_parked(
            key.topic, key.partition, [name for name in names if name not in owned.draft.parked]
        )
        owned.returning.update((row.series, row) for row in stored)
        return [series_info(row, partition=str(key)) for row in [*drafted, *stored]]

    windows = PartitionWindows(
        settings.window,
        settings.record.series_by,
        key,
        watermark_ms=claim.watermark_ms,
        next_offset=claim.next_offset,
        close_offset=claim.close_offset,
        known=[series_info(row, partition=str(key)) for row in claim.series],
        load_sketch=load_sketch,
        load_parked=load_parked,
        max_metrics=settings.record.max_metrics,
        series_suffix=suffix,
    )
    now_s = parts.clock.monotonic_s()
    owned = OwnedPartition(
        assigned=assigned,
        claim=claim,
        windows=windows,
        scorer=scorer,
        states=states,
        alerts=alerts,
        rollouts=rollouts,
        decoder=Decoder(settings.record, settings.source, settings.window),
        draft=Draft(),
        next_offset=claim.next_offset,
        committed_offset=claim.next_offset,
        committed_at_s=now_s,
        read_at_s=now_s,
        told_at_s=now_s,
        silence=Silence(now_s),
        untold_suffix=suffix if suffix and not parts.ledger.has_alert(apart_id(key)) else "",
    )
    if claim.next_offset is not None and claim.watermark_ms is not None:
        alert = stall_alert(key, claim.next_offset, claim.watermark_ms)
        if parts.ledger.has_alert(alert.alert_id, status="firing"):
            owned.stall, owned.silence.stalled = alert, True
    return owned
