"""Dataclasses of storage.types <-> rows of the tables."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import chain, repeat
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
from sqlalchemy.sql.elements import ColumnElement

from storage import schema, text
from storage.schema import table
from storage.types import (
    FEATURE_COLUMNS,
    AlertRow,
    IncidentEventRow,
    IncidentRow,
    OutboxRow,
    RevisedWindow,
    ScoredWindows,
    SilenceRow,
)

Row = dict[str, Any]
Float64 = npt.NDArray[np.float64]


@lru_cache(maxsize=65_536)
def series_key(name: str) -> str:
    return text.key(name, schema.NAME_LENGTH)


def _finite(values: Any) -> list[float | None]:
    """Floats with None for NaN and infinity, which the databases treat differently."""
    array = np.asarray(values, dtype=np.float64)
    finite, listed = np.isfinite(array), array
    if not bool(finite.all()):
        listed = array.astype(object)
        listed[~finite] = None
    found: list[float | None] = listed.tolist()
    return found


WINDOW_COLUMNS = (
    "series_id", "window_start_ms", "window_end_ms", *FEATURE_COLUMNS, "metrics", "statistics", "score",
    "gbdt_score", "lstm_score", "tail_probability", "is_anomalous", "revision",
)  # fmt: skip


def window_rows(batches: Sequence[ScoredWindows], ids: Sequence[int]) -> list[tuple[Any, ...]]:
    """Rows of `windows`, as WINDOW_COLUMNS, in the order of the batches; `ids` are those of their series.

    Raises ValueError for a score that is no number.
    """
    if not batches:
        return []

    def numbers(of: str) -> list[float | None]:
        return _finite(np.concatenate([getattr(batch, of) for batch in batches]))

    score = numbers("score")
    if None in score:
        at_ms = next(batch.window_start_ms for batch in batches if not np.isfinite(batch.score).all())
        raise ValueError(f"windows at {at_ms} hold a score that is no number")
    features = np.concatenate([np.asarray(batch.features, dtype=np.float64) for batch in batches])
    rows = zip(
        ids,
        chain.from_iterable(repeat(batch.window_start_ms, len(batch.series)) for batch in batches),
        chain.from_iterable(repeat(batch.window_end_ms, len(batch.series)) for batch in batches),
        *map(_finite, features.T),
        [text.to_json(metrics) if metrics else None for batch in batches for metrics in batch.metrics],
        [statistics for batch in batches for statistics in batch.statistics],
        score,
        *map(numbers, ("gbdt_score", "lstm_score", "tail_probability")),
        np.concatenate([batch.is_anomalous for batch in batches]).tolist(),
        repeat(0, len(ids)),
        strict=True,
    )
    return list(rows)


def revised_row(window: RevisedWindow, series_id: int) -> Row:
    """Parameters of the UPDATE of an amended window; keys are prefixed `b_` (bound names)."""
    if not math.isfinite(window.score):
        raise ValueError(f"the amended window of {window.series!r} holds a score that is no number")
    values = _finite(window.features)
    gbdt, lstm, tail = _finite([window.gbdt_score, window.lstm_score, window.tail_probability])
    return {
        **{f"b_{name}": value for name, value in zip(FEATURE_COLUMNS, values, strict=True)},
        "b_series_id": series_id,
        "b_window_start_ms": window.window_start_ms,
        "b_metrics": text.to_json(window.metrics) if window.metrics else None,
        "b_statistics": window.statistics,
        "b_score": window.score,
        "b_gbdt_score": gbdt,
        "b_lstm_score": lstm,
        "b_tail_probability": tail,
        "b_is_anomalous": window.is_anomalous,
    }


def alert_row(alert: AlertRow) -> Row:
    """A row of `alerts`; raises ValueError for a score that is no number."""
    if not (math.isfinite(alert.score) and math.isfinite(alert.tail_probability)):
        raise ValueError(f"alert {alert.alert_id} holds a score that is no number")
    row = {name: getattr(alert, name) for name in AlertRow.__dataclass_fields__}
    for name in ("model", "endpoint", "series"):
        row[name] = series_key(row[name])
    for name in ("reason", "summary", "rarity"):
        row[name] = text.clean(row[name])
    for name in ("top_features", "slices", "exemplars", "model_versions"):
        row[name] = text.to_json(row[name])
    return row


def encode_alert(alert: AlertRow) -> str:
    return text.to_json(alert)


_alert_decoder = msgspec.json.Decoder(AlertRow)


def decode_alert(encoded: str) -> AlertRow:
    return _alert_decoder.decode(encoded)


def incident_row(incident: IncidentRow) -> Row:
    row = {name: getattr(incident, name) for name in IncidentRow.__dataclass_fields__}
    for name in ("title", "summary"):
        row[name] = text.clean(row[name])
    row["group_key"] = text.clean(incident.group_key, len(incident.group_key))  # the fold's own, never cut
    row["series"], row["firing"] = text.to_json(incident.series), text.to_json(incident.firing)
    return row


def to_incident(row: Any) -> IncidentRow:
    """From a row (mapping) of `incidents`."""
    values = {name: row[name] for name in IncidentRow.__dataclass_fields__}
    values["series"], values["firing"] = json.loads(row["series"]), json.loads(row["firing"])
    return IncidentRow(**values)


def event_row(event: IncidentEventRow) -> Row:
    return {
        "incident_id": event.incident_id,
        "revision": event.revision,
        "at_ms": event.at_ms,
        "kind": event.kind,
        "actor": text.clean(event.actor, schema.NAME_LENGTH),
        "reason": text.clean(event.reason),
        "detail": text.to_json(event.detail),
    }


def outbox_row(row: OutboxRow) -> Row:
    return {
        "delivery_id": row.delivery_id,
        "incident_id": row.incident_id,
        "sequence": row.sequence,
        "event": row.event,
        "channel": row.channel,
        "payload": row.payload,
        "status": "pending",
        "due_at_ms": row.created_at_ms,
        "attempts": 0,
        "created_at_ms": row.created_at_ms,
    }


def to_silence(row: Any) -> SilenceRow:
    """From a row (mapping) of `silences`."""
    return SilenceRow(
        silence_id=row["silence_id"],
        matchers=json.loads(row["matchers"]),
        starts_at_ms=row["starts_at_ms"],
        ends_at_ms=row["ends_at_ms"],
        created_by=row["created_by"],
        comment=row["comment"],
        recurrence=None if row["recurrence"] is None else json.loads(row["recurrence"]),
    )


def insert_missing(of: type[schema.Base], dialect: str) -> Any:
    """INSERT ... ON CONFLICT DO NOTHING."""
    if dialect == "postgresql":
        from sqlalchemy.dialects.postgresql import insert
    else:
        from sqlalchemy.dialects.sqlite import insert  # type: ignore[assignment]
    return insert(table(of)).on_conflict_do_nothing()


def upsert(of: type[schema.Base], dialect: str, keys: list[str], update: dict[str, Any] | None = None) -> Any:
    """INSERT ... ON CONFLICT (keys) DO UPDATE of every other column, or of `update` where given.

    `update` maps column names to functions of (existing table, excluded) that return an expression.
    """
    if dialect == "postgresql":
        from sqlalchemy.dialects.postgresql import insert
    else:
        from sqlalchemy.dialects.sqlite import insert  # type: ignore[assignment]
    target = table(of)
    statement = insert(target)
    if update is None:
        changes: dict[str, ColumnElement[Any]] = {
            column.name: statement.excluded[column.name]
            for column in target.columns
            if column.name not in keys and not column.primary_key
        }
    else:
        changes = {name: make(target.c, statement.excluded) for name, make in update.items()}
    return statement.on_conflict_do_update(index_elements=keys, set_=changes)
