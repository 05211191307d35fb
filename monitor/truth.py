"""The truth about simulated faults, as it is written beside a simulated log."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from monitor.clock import rfc3339
from monitor.fault_kinds import KINDS
from monitor.fault_plan import guilty_features
from monitor.record_faults import Fault, Touched
from monitor.workload import Profile

MIN_RECORDS = 5
"""A fault that changed fewer records than this left nothing to notice."""


@dataclass(frozen=True, slots=True)
class TruthInterval:
    """One fault as it came out. `visible_from_ms` is the time of the first record it changed by more
    than noise; `records` counts the records it changed, removed or added."""

    kind: str
    series: str
    start_ms: int
    end_ms: int
    visible_from_ms: int
    size: float
    guilty: tuple[str, ...]
    benign: bool
    gradual: bool
    records: int

    @property
    def visible(self) -> bool:
        return self.records >= MIN_RECORDS and bool(self.guilty)


def truth_of(profile: Profile, faults: Sequence[Fault], touched: Touched) -> list[TruthInterval]:
    """Intervals of the faults of this series, in order of start."""
    found = []
    for fault in faults:
        if fault.series != profile.series:
            continue
        effect = touched.effects.get(fault)
        kind = KINDS[fault.kind]
        found.append(
            TruthInterval(
                kind=fault.kind,
                series=fault.series,
                start_ms=fault.start_ms,
                end_ms=fault.end_ms,
                visible_from_ms=effect.first_ms if effect else fault.start_ms,
                size=fault.size,
                guilty=guilty_features(fault.kind, profile),
                benign=kind.benign,
                gradual=kind.gradual,
                records=effect.records if effect else 0,
            )
        )
    return sorted(found, key=lambda item: item.start_ms)


def write_truth(
    path: Path,
    profiles: Sequence[Profile],
    truth: Sequence[TruthInterval],
    *,
    seed: int,
    span_ms: tuple[int, int],
) -> None:
    """JSON: {version, seed, start, end, series: [...], faults: [...]}; times are RFC 3339, UTC."""
    document = {
        "version": 1,
        "seed": seed,
        "start": rfc3339(span_ms[0]),
        "end": rfc3339(span_ms[1]),
        "series": [
            {
                "series": profile.series,
                "kind": profile.kind,
                "workloads": list(profile.clients),
                "records_per_s": round(profile.mean_rate_per_s(), 4),
            }
            for profile in profiles
        ],
        "faults": [
            {
                "kind": item.kind,
                "what": KINDS[item.kind].help,
                "series": item.series,
                "start": rfc3339(item.start_ms),
                "end": rfc3339(item.end_ms),
                "visible_from": rfc3339(item.visible_from_ms),
                "size": item.size,
                "unit": KINDS[item.kind].unit,
                "guilty": list(item.guilty),
                "benign": item.benign,
                "visible": item.visible,
                "records": item.records,
            }
            for item in truth
        ],
    }
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
