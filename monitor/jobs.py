"""What runs beside the pipeline: training in its own process, retention, the heartbeat."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import structlog
from apscheduler.schedulers.background import BackgroundScheduler
from sqlalchemy import Engine

from detectors.pack import unpack
from monitor import metrics
from monitor.attention import Attention
from monitor.clock import Clock, SystemClock, rfc3339
from monitor.config import Settings
from monitor.models import TrainedModels, load_scorer
from monitor.recall import readable
from storage.engine import connect, is_transient, upgrade
from storage.ledger import Ledger
from storage.models import ModelRegistry
from storage.models import SeriesHistory as StoredHistory
from storage.retention import purge
from storage.rollups import roll_up
from storage.types import ModelVersionRow

if TYPE_CHECKING:
    from detectors.training import SeriesHistory, TrainingResult

log = structlog.get_logger()

DAY_MS = 86_400_000
LEAST_DAYS = 2  # of a series, to train on it: one for its baselines to settle, one to learn from
HEARTBEAT_S, TRAINING_CHECK_S, FOLD_S, ATTENTION_S, RETENTION_S = 10, 5, 1, 5, 3_600


def schedule(
    settings: Settings,
    engine: Engine,
    *,
    ledger: Ledger,
    models: TrainedModels,
    clock: Clock,
    on_committed: Callable[[], None],
) -> BackgroundScheduler:
    """A started scheduler with the daemon's jobs; a job that fails is logged and runs again next time."""
    scheduler = BackgroundScheduler(
        timezone="UTC", job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": None}
    )
    database, attention = settings.database, Attention(engine, settings)

    def retention() -> None:
        summed_up = roll_up(engine, horizon_ms=int(settings.window.revision_horizon_s * 1000))
        purged = purge(
            engine,
            now_ms=clock.now_ms(),
            keep_windows_ms=int(database.keep_windows_days * DAY_MS),
            keep_rejected_ms=int(database.keep_rejected_days * DAY_MS),
            # beyond empty_for_s a series that comes back is a new one
            keep_parked_ms=round(2_000 * settings.window.empty_for_s) + DAY_MS,
            keep_hours_ms=int(database.keep_hours_days * DAY_MS),
        )
        log.info("retention", hours=summed_up, **purged)

    def heartbeat() -> None:
        metrics.HEARTBEAT.set(clock.now_ms() / 1000)

    def fold() -> None:
        if ledger.fold_pending(clock.now_ms()):
            on_committed()

    def attend() -> None:
        if attention.look(ledger.event_time_ms(clock.now_ms())):
            on_committed()

    ledger.attend(clock.now_ms())
    scheduler.add_job(heartbeat, "interval", seconds=HEARTBEAT_S, id="heartbeat")
    for name, job, every_s in (
        ("incidents of partitions that wait for others", fold, FOLD_S),
        ("what event time brings about", attend, ATTENTION_S),
        ("training", models.tick, TRAINING_CHECK_S),
        ("retention", retention, RETENTION_S),
    ):
        scheduler.add_job(patient(name, job), "interval", seconds=every_s, id=name)
    scheduler.start()
    return scheduler


def patient(name: str, job: Callable[[], None]) -> Callable[[], None]:
    """The job, which waits for its next turn while the database is away and says so once per outage."""
    away = False

    def run() -> None:
        nonlocal away
        try:
            job()
        except Exception as error:
            if not is_transient(error):
                raise
            if not away:
                log.warning("job_postponed", job=name, error=str(error).splitlines()[0][:300])
            away = True
        else:
            away = False

    return run


def train_at(settings: Settings, trained_at_ms: int) -> dict[str, Any]:
    """Train on the stored windows that ended by `trained_at_ms`; register the result, promoted or refused.

    Runs in a process of its own. Returns what was decided: version, promoted, reason, metrics.
    """
    from detectors.trial import golden

    engine = connect(settings.database.url)
    try:
        upgrade(engine)
        registry = ModelRegistry(engine)
        started_s = time.monotonic()
        result = challenger(settings, registry, trained_at_ms)
        took_s = round(time.monotonic() - started_s, 2)
        registered = registry.add(
            ModelVersionRow(
                version=result.ensemble.version,
                detector="ensemble",
                trained_at_ms=trained_at_ms,
                status="champion" if result.promoted else "refused",
                metrics={**result.metrics, "golden": golden(result.ensemble)},
                artifact=result.artifact,
                sha256=hashlib.sha256(result.artifact).hexdigest(),
                reason=result.reason,
            )
        )
        promoted = result.promoted and registered
        metrics.TRAININGS.labels("promoted" if promoted else "refused").inc()
        return {
            "version": result.ensemble.version,
            "promoted": promoted,
            "reason": result.reason if registered else "the training of this event time was decided before",
            "trained_at": rfc3339(trained_at_ms),
            "training_seconds": took_s,
            "metrics": result.metrics,
        }
    finally:
        engine.dispose()


def challenger(settings: Settings, registry: ModelRegistry, trained_at_ms: int) -> TrainingResult:
    """A model trained on the stored windows up to `trained_at_ms` and on labels; nothing is written."""
    from detectors.training import train

    training = settings.training
    history = registry.training_set(
        since_ms=trained_at_ms - int(training.history_days * DAY_MS),
        until_ms=trained_at_ms,
        max_windows=training.max_windows,
        least_windows=LEAST_DAYS * DAY_MS // (settings.window.length_s * 1000),
    )
    return train(
        {name: unpacked(name, windows) for name, windows in history.series.items()},
        champion=load_scorer(settings, registry.champion_artifact()),
        excluded=[(name, *span) for name, spans in history.excluded.items() for span in spans],
        labels=[(x.series, x.start_ms, x.end_ms, x.label == "true_positive") for x in history.labels],
        seed=training.seed,
        window_ms=settings.window.length_s * 1000,
        max_windows=training.max_windows,
        trained_at_ms=trained_at_ms,
    )


def unpacked(series: str, windows: StoredHistory) -> SeriesHistory:
    from detectors.training import SeriesHistory

    known = readable(series, windows.statistics)
    values, counts = unpack([windows.statistics[i] for i in known])
    return SeriesHistory(windows.window_start_ms[known], values, counts)


def train_now(settings: Settings) -> dict[str, Any]:
    """`inferwatch train`: train on everything stored so far, in this process.

    The event time of a training names it, and one may stand there already: labels are a reason to train
    again on the same windows.
    """
    engine = connect(settings.database.url)
    try:
        upgrade(engine)
        registry = ModelRegistry(engine)
        newest_ms = registry.newest_window_end_ms()
        at_ms = newest_ms if newest_ms is not None else SystemClock().now_ms()
        while registry.is_decided(at_ms):
            at_ms += 1
    finally:
        engine.dispose()
    return train_at(settings, at_ms)
