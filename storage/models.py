"""The registry of trained models: artefacts, decisions, one champion, and what training reads."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt
from sqlalchemy import Connection, Engine, Row, ScalarSelect, desc, func, select, update

from storage import schema, text
from storage.actions import Action, Actor, record
from storage.engine import reading
from storage.model_schema import ModelTable, TrainingTable
from storage.schema import table
from storage.types import ModelVersionRow

MODELS, TRAININGS, FACTS = table(ModelTable), table(TrainingTable), table(schema.FactTable)
SERIES, WINDOWS, ALERTS = table(schema.SeriesTable), table(schema.WindowTable), table(schema.AlertTable)
LINKS, LABELS = table(schema.IncidentAlertTable), table(schema.IncidentLabelTable)


@dataclass(frozen=True, slots=True)
class SeriesHistory:
    """Windows of one series, oldest first."""

    window_start_ms: npt.NDArray[np.int64]  # [n]
    statistics: list[bytes]  # n blobs, as detectors.pack wrote them


@dataclass(frozen=True, slots=True)
class LabelledInterval:
    """A person's judgement on an alert; [start_ms, end_ms) covers its anomalous windows."""

    series: str
    start_ms: int
    end_ms: int
    label: str  # "true_positive" | "false_positive", the newest one of its incident


@dataclass(frozen=True, slots=True)
class PastAlert:
    """An alert, its incident if it has one, and the newest label of that; [start_ms, end_ms)."""

    alert_id: str
    incident_id: str | None
    series: str
    start_ms: int
    end_ms: int
    severity: str
    summary: str
    label: str | None


@dataclass(frozen=True, slots=True)
class TrainingSet:
    series: dict[str, SeriesHistory]
    excluded: dict[str, list[tuple[int, int]]]  # series -> [start_ms, end_ms) of alerts, not normal
    labels: list[LabelledInterval]


class ModelRegistry:
    """Model versions; every decision is made once, however many daemons share the database."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    # ------------------------------------------------------------------ versions

    def champion(self) -> str | None:
        """The version in force; None = the prior that ships with the package."""
        with reading(self.engine) as connection:
            return connection.execute(select(MODELS.c.version).where(MODELS.c.status == "champion")).scalar()

    def champion_trained_at_ms(self) -> int | None:
        """Event time up to which the champion has learned; None = the prior."""
        with reading(self.engine) as connection:
            statement = select(MODELS.c.trained_at_ms).where(MODELS.c.status == "champion")
            return connection.execute(statement).scalar()

    def artifact(self, version: str) -> bytes | None:
        """The artefact of a version; None for an unknown one, which the shipped prior is too."""
        with reading(self.engine) as connection:
            return connection.execute(select(MODELS.c.artifact).where(MODELS.c.version == version)).scalar()

    def golden(self, version: str | None) -> list[float] | None:
        """What a version answered when it was registered (metrics["golden"]); None where nobody knows."""
        with reading(self.engine) as connection:
            stored = connection.execute(select(MODELS.c.metrics).where(MODELS.c.version == version)).scalar()
        try:
            found = json.loads(stored or "{}").get("golden")
            return None if found is None else [float(x) for x in found]
        except (ValueError, TypeError, AttributeError):
            return []  # odd: nothing will be equal to it

    def champion_artifact(self) -> bytes | None:
        with reading(self.engine) as connection:
            return connection.execute(select(MODELS.c.artifact).where(MODELS.c.status == "champion")).scalar()

    def add(self, model: ModelVersionRow) -> bool:
        """Register a trained model and decide its training: status "champion" promotes it, else it is kept.

        Returns False, and changes nothing, when the training of this event time was decided before.
        """
        promoted = model.status == "champion"
        outcome = "promoted" if promoted else "refused"
        row = {
            "version": model.version,
            "detector": model.detector,
            "trained_at_ms": model.trained_at_ms,
            "status": "retired" if promoted else model.status,
            "metrics": text.to_json(model.metrics),
            "artifact": model.artifact,
            "sha256": model.sha256,
            "reason": text.clean(model.reason),
        }
        with self.engine.begin() as connection:
            if not _decide(connection, model.trained_at_ms, outcome, model.reason, model.version):
                return False
            _insert_once(connection, MODELS, ["version"], row)
            if promoted:
                _promote(connection, model.version)
        return True

    def promote(self, version: str, actor: Actor | None = None) -> bool:
        """Make a version the champion; the one before is retired. False for an unknown version."""
        with self.engine.begin() as connection:
            _lock(connection)
            promoted = _promote(connection, version)
            if promoted and actor is not None:
                record(connection, Action("model.promoted", version, actor))
            return promoted

    def refuse(self, version: str, reason: str, actor: Actor | None = None) -> bool:
        """Mark a version that is not the champion as refused; False for the champion or an unknown one."""
        with self.engine.begin() as connection:
            done = connection.execute(
                update(MODELS)
                .where(MODELS.c.version == version, MODELS.c.status != "champion")
                .values(status="refused", reason=text.clean(reason))
            )
            if done.rowcount == 1 and actor is not None:
                record(connection, Action("model.refused", version, actor))
            return done.rowcount == 1

    def rollback(self, actor: Actor | None = None) -> str | None:
        """Retire the champion and bring its predecessor back; None = the shipped prior is in force again."""
        with self.engine.begin() as connection:
            _lock(connection)
            current = connection.execute(
                select(MODELS.c.version, MODELS.c.promotion).where(MODELS.c.status == "champion")
            ).first()
            if current is None:
                return None
            _retire_champion(connection)
            before = connection.execute(
                select(MODELS.c.version)
                .where(MODELS.c.promotion < current.promotion, MODELS.c.status == "retired")
                .order_by(desc(MODELS.c.promotion))
                .limit(1)
            ).scalar()
            if before is not None:
                connection.execute(update(MODELS).where(MODELS.c.version == before).values(status="champion"))
            if actor is not None:
                record(connection, Action("model.rolled_back", current.version, actor, {"to": before}))
            return before

    # ----------------------------------------------------------------- decisions

    def is_decided(self, trained_at_ms: int) -> bool:
        """True when the training of this event time has ended, in whatever way."""
        with reading(self.engine) as connection:
            statement = select(TRAININGS.c.trained_at_ms).where(TRAININGS.c.trained_at_ms == trained_at_ms)
            return connection.execute(statement).first() is not None

    def newest_training_ms(self, until_ms: int) -> int | None:
        """Event time of the newest training up to `until_ms` that ended with a model, in force or refused."""
        statement = select(func.max(TRAININGS.c.trained_at_ms)).where(
            TRAININGS.c.trained_at_ms <= until_ms, TRAININGS.c.outcome != "failed"
        )
        with reading(self.engine) as connection:
            return connection.execute(statement).scalar()

    def record_failure(self, trained_at_ms: int, reason: str) -> bool:
        """The training of this event time failed, so the champion stays; False when it was decided before."""
        with self.engine.begin() as connection:
            return _decide(connection, trained_at_ms, "failed", reason, None)

    # ------------------------------------------------------------------ training

    def newest_window_end_ms(self) -> int | None:
        """End of the newest stored window of any series."""
        with reading(self.engine) as connection:
            newest = connection.execute(
                select(SERIES.c.id, SERIES.c.last_window_start_ms)
                .where(SERIES.c.last_window_start_ms.is_not(None))
                .order_by(desc(SERIES.c.last_window_start_ms))
                .limit(1)
            ).first()
            if newest is None:
                return None
            return connection.execute(
                select(WINDOWS.c.window_end_ms).where(
                    WINDOWS.c.series_id == newest.id, WINDOWS.c.window_start_ms == newest.last_window_start_ms
                )
            ).scalar()

    def training_set(
        self, *, since_ms: int, until_ms: int, max_windows: int, least_windows: int = 1
    ) -> TrainingSet:
        """Windows inside [since_ms, until_ms]: the newest of every series, `max_windows` altogether.

        Where that would leave a series fewer than `least_windows` of them (fewer say nothing of a day), not
        all series are read: those that a person labelled first, then the same ones each time.
        """
        with reading(self.engine) as connection:
            ids = connection.execute(
                select(SERIES.c.id, SERIES.c.name).where(SERIES.c.windows > 0).order_by(SERIES.c.name)
            ).all()
            excluded, labels = self._judged(connection, since_ms, until_ms)
            counts = {row.name: self._count(connection, row.id, since_ms, until_ms) for row in ids}
            chosen = _chosen(counts, {label.series for label in labels}, max_windows, least_windows)
            quota = _fair_quota([counts[name] for name in chosen], max_windows)
            series = {
                row.name: self._windows(connection, row.id, since_ms, until_ms, quota)
                for row in ids
                if row.name in chosen
            }
        return TrainingSet(series, excluded, labels)

    def past_alerts(self, *, since_ms: int, until_ms: int) -> list[PastAlert]:
        """Alerts with windows in [since_ms, until_ms), oldest first; withdrawn ones never were."""
        statement = (
            select(
                *(ALERTS.c.alert_id, LINKS.c.incident_id, ALERTS.c.series),
                *(ALERTS.c.window_start_ms, ALERTS.c.window_end_ms, ALERTS.c.severity, ALERTS.c.summary),
                _newest_label().label("label"),
            )
            .outerjoin(LINKS, LINKS.c.alert_id == ALERTS.c.alert_id)
            .where(
                ALERTS.c.status != "withdrawn",
                ALERTS.c.window_end_ms > since_ms,
                ALERTS.c.window_start_ms < until_ms,
            )
            .order_by(ALERTS.c.window_start_ms, ALERTS.c.series, ALERTS.c.alert_id)
        )
        with reading(self.engine) as connection:
            return [PastAlert(*row) for row in connection.execute(statement)]

    def _count(self, connection: Connection, series_id: int, since_ms: int, until_ms: int) -> int:
        statement = select(func.count()).where(
            WINDOWS.c.series_id == series_id,
            WINDOWS.c.window_start_ms >= since_ms,
            WINDOWS.c.window_end_ms <= until_ms,
        )
        return int(connection.execute(statement).scalar_one())

    def _windows(
        self, connection: Connection, series_id: int, since_ms: int, until_ms: int, limit: int
    ) -> SeriesHistory:
        statement = (
            select(WINDOWS.c.window_start_ms, WINDOWS.c.statistics)
            .where(
                WINDOWS.c.series_id == series_id,
                WINDOWS.c.window_start_ms >= since_ms,
                WINDOWS.c.window_end_ms <= until_ms,
            )
            .order_by(desc(WINDOWS.c.window_start_ms))
            .limit(limit)
        )
        rows = [row for row in connection.execute(statement) if row.statistics is not None][::-1]
        starts = np.array([row.window_start_ms for row in rows], dtype=np.int64)
        return SeriesHistory(starts, [row.statistics for row in rows])

    def _judged(
        self, connection: Connection, since_ms: int, until_ms: int
    ) -> tuple[dict[str, list[tuple[int, int]]], list[LabelledInterval]]:
        """Intervals of alerts that fired by `until_ms`, and what people said of them."""
        rows: list[Row[Any]] = list(
            connection.execute(
                select(
                    ALERTS.c.series,
                    ALERTS.c.window_start_ms,
                    ALERTS.c.window_end_ms,
                    _newest_label().label("label"),
                )
                .outerjoin(LINKS, LINKS.c.alert_id == ALERTS.c.alert_id)
                .where(
                    ALERTS.c.status != "withdrawn",
                    ALERTS.c.window_end_ms > since_ms,
                    ALERTS.c.fired_at_ms <= until_ms,
                )
                .order_by(ALERTS.c.series, ALERTS.c.window_start_ms, ALERTS.c.alert_id)
            )
        )
        excluded: dict[str, list[tuple[int, int]]] = {}
        labels = []
        for row in rows:
            if row.label in ("true_positive", "false_positive"):
                labels.append(LabelledInterval(row.series, row.window_start_ms, row.window_end_ms, row.label))
            if row.label != "false_positive":
                end_ms = min(row.window_end_ms, until_ms)
                excluded.setdefault(row.series, []).append((row.window_start_ms, end_ms))
        return excluded, labels


def _newest_label() -> ScalarSelect[Any]:
    """The newest label of the incident that an alert belongs to."""
    return (
        select(LABELS.c.label)
        .where(LABELS.c.incident_id == LINKS.c.incident_id)
        .order_by(desc(LABELS.c.id))
        .limit(1)
        .scalar_subquery()
    )


def _chosen(counts: dict[str, int], labelled: set[str], total: int, least: int) -> set[str]:
    """Series with windows, as many as can have `least` of theirs within `total`; labelled ones before others,
    else in an order that names give and time does not change."""
    waiting = sorted(
        (name for name, count in counts.items() if count),
        key=lambda name: (name not in labelled, hashlib.sha256(name.encode()).digest()),
    )
    reached = accumulate(min(counts[name], least) for name in waiting)
    return {
        name for name, windows in zip(waiting, reached, strict=True) if windows <= total or name in labelled
    }


def _fair_quota(counts: list[int], total: int) -> int:
    """The largest number per series whose sum over all series stays within `total`, at least 1."""
    left, waiting = total, sorted(counts)
    for i, count in enumerate(waiting):
        share = left // (len(waiting) - i)
        if count > share:
            return max(share, 1)
        left -= count
    return max(waiting, default=1)


def _insert_once(connection: Connection, target: Any, keys: list[str], row: dict[str, Any]) -> bool:
    """True when the row is new."""
    if connection.dialect.name == "postgresql":
        from sqlalchemy.dialects.postgresql import insert
    else:
        from sqlalchemy.dialects.sqlite import insert  # type: ignore[assignment]
    statement = insert(target).on_conflict_do_nothing(index_elements=keys).returning(target.c[keys[0]])
    return connection.execute(statement, row).first() is not None


def _decide(
    connection: Connection, trained_at_ms: int, outcome: str, reason: str, version: str | None
) -> bool:
    row = {
        "trained_at_ms": trained_at_ms,
        "version": version,
        "outcome": outcome,
        "reason": text.clean(reason),
    }
    return _insert_once(connection, TRAININGS, ["trained_at_ms"], row)


def _lock(connection: Connection) -> None:
    """One change of the champion at a time."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql("LOCK TABLE models IN SHARE ROW EXCLUSIVE MODE")


def _retire_champion(connection: Connection) -> None:
    connection.execute(update(MODELS).where(MODELS.c.status == "champion").values(status="retired"))


def _promote(connection: Connection, version: str) -> bool:
    _lock(connection)
    if connection.execute(select(MODELS.c.version).where(MODELS.c.version == version)).first() is None:
        return False
    newest = connection.execute(select(func.max(MODELS.c.promotion))).scalar() or 0
    _retire_champion(connection)
    connection.execute(
        update(MODELS).where(MODELS.c.version == version).values(status="champion", promotion=newest + 1)
    )
    return True
