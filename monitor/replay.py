"""`inferwatch replay`: recorded logs through the same pipeline, in event time."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from monitor.attention import Attention
from monitor.config import Settings
from monitor.pipeline import Pipeline
from monitor.runtime import Runtime
from monitor.sources.file import FileSource
from monitor.warming import warm_up
from storage.queries import totals

DRAIN_S = 30.0


@dataclass(frozen=True, slots=True)
class ReplayProgress:
    records: int
    windows: int
    watermark_ms: int | None
    bytes_read: int
    bytes_total: int | None  # None where the size is not known (stdin)
    training: bool


@dataclass(frozen=True, slots=True)
class ReplaySummary:
    """What one replay did. Counts are of this run; a log that was replayed before goes on where it ended."""

    records: int
    accepted: int
    rejected: int
    duplicates: int
    late: int
    windows: int
    alerts: int
    incidents: int
    series: int
    seconds: float  # wall time, training included
    records_per_second: float  # wall time without training and warm-up
    training_seconds: float
    warm_up_seconds: float  # before the first record: imports, and compiling on a machine that is new to it
    model_version: str

    def as_json(self) -> dict[str, object]:
        return dataclasses.asdict(self)


def replay(
    settings: Settings,
    paths: list[Path],
    *,
    speed: float | None = None,
    deliver: bool = False,
    on_progress: Callable[[ReplayProgress], None] | None = None,
) -> ReplaySummary:
    """Run recorded logs through the whole pipeline; `speed` = event time per wall time, None = at full speed.

    Raises SourceError for a file that cannot be read.
    """
    with Runtime(settings) as runtime:
        if deliver:
            runtime.start_delivery()
        source = FileSource(paths, settings.source)
        pipeline = runtime.pipeline(source)
        before = totals(runtime.engine)
        began_s = time.monotonic()
        warm_up(settings, runtime.models.at_claim(runtime.registry.champion()))
        warm_up_s = time.monotonic() - began_s
        if on_progress is not None:
            on_progress(_progress(pipeline, source))
        started_s, waited_s = time.monotonic(), 0.0
        pace = _Pace(speed)
        busy = True
        while busy:
            turn_s = time.monotonic()
            busy = pipeline.turn(0.05 if pipeline.waiting_for_model else 0.0, pace.max_records)
            runtime.models.tick()
            if pipeline.waiting_for_model:
                waited_s += time.monotonic() - turn_s
            if on_progress is not None:
                on_progress(_progress(pipeline, source))
            pace.hold(pipeline)
        pipeline.commit_all()
        wall_s = time.monotonic() - started_s
        if deliver:
            attention = Attention(runtime.engine, settings)
            attention.look(runtime.ledger.event_time_ms(runtime.clock.now_ms()))
            runtime.delivery.drain(DRAIN_S)
        after = totals(runtime.engine)
        done = {name: after[name] - before[name] for name in after}
        return ReplaySummary(
            records=done["records"],
            accepted=done["accepted"],
            rejected=done["rejected"],
            duplicates=done["duplicates"],
            late=done["late"],
            windows=done["windows"],
            alerts=done["alerts"],
            incidents=done["incidents"],
            series=after["series"],
            seconds=round(wall_s, 3),
            records_per_second=round(done["records"] / max(wall_s - waited_s, 1e-9), 1),
            training_seconds=round(runtime.models.training_s, 3),
            warm_up_seconds=round(warm_up_s, 3),
            model_version=runtime.registry.champion() or "",
        )


@dataclass(slots=True)
class _Pace:
    """Holds event time down to `speed` times wall time."""

    speed: float | None
    start: tuple[float, int] | None = None

    @property
    def max_records(self) -> int:
        """Small steps where time is held back, large ones otherwise."""
        return 50_000 if self.speed is None else 200

    def hold(self, pipeline: Pipeline) -> None:
        mark_ms = pipeline.newest_event_ms()
        if self.speed is None or mark_ms is None:
            return
        now_s = time.monotonic()
        if self.start is None:
            self.start = (now_s, mark_ms)
        due_s = self.start[0] + (mark_ms - self.start[1]) / 1000 / self.speed
        if due_s > now_s:
            time.sleep(min(due_s - now_s, 1.0))


def _progress(pipeline: Pipeline, source: FileSource) -> ReplayProgress:
    read, total = source.bytes_read()
    return ReplayProgress(
        records=pipeline.records_read,
        windows=pipeline.windows_closed,
        watermark_ms=pipeline.newest_event_ms(),
        bytes_read=read,
        bytes_total=total,
        training=pipeline.waiting_for_model,
    )
