"""Rows of a statement as people see them, and pages of a list by the keys of its order."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from storage.names import FEATURE_COLUMNS

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement, Connection, Engine, Select

Row = dict[str, Any]
Key = tuple["ColumnElement[Any]", bool]
"""A column of the order, and whether it descends."""

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
JSON_COLUMNS = frozenset(
    (
        *("firing", "top_features", "slices", "exemplars", "model_versions"),
        *("detail", "matchers", "metrics", "recurrence", "differences"),
    )
)
TRUTH_COLUMNS = frozenset(("is_anomalous", "last_is_anomalous", "live", "finished", "folded"))
"""SQLite has no truth values: 0 and 1 come out of it."""


def time_of(ms: int | None) -> datetime | None:
    """Milliseconds since the epoch as an aware datetime."""
    return None if ms is None else EPOCH + timedelta(milliseconds=ms)


def ms_of(moment: datetime) -> int:
    """An aware datetime as milliseconds since the epoch."""
    return (moment - EPOCH) // timedelta(milliseconds=1)


def rows(source: Engine | Connection, statement: Select[Any], drop: Iterable[str] = ()) -> list[Row]:
    """Rows of a statement of SQLAlchemy, as `shown` shows them."""
    from sqlalchemy import Connection

    from storage.engine import reading

    if isinstance(source, Connection):
        return shown(source.execute(statement).mappings().all(), drop)
    with reading(source) as connection:
        return shown(connection.execute(statement).mappings().all(), drop)


def shown(found: Iterable[Mapping[Any, Any]], drop: Iterable[str] = ()) -> list[Row]:
    """Times (`*_at_ms`, `window_start_ms`, ...) as datetimes without the suffix, JSON as data."""
    dropped = frozenset(drop)
    return [_shown(row, dropped) for row in found]


def _shown(row: Mapping[str, Any], dropped: frozenset[str]) -> Row:
    shown: Row = {}
    for name, value in row.items():
        if name in dropped:
            continue
        if name in JSON_COLUMNS:
            shown[name] = json.loads(value) if isinstance(value, str) else value
        elif name in TRUTH_COLUMNS:
            shown[name] = None if value is None else bool(value)
        elif name.endswith("_ms") and name not in FEATURE_COLUMNS:
            shown[name.removesuffix("_ms")] = time_of(value)
        else:
            shown[name] = value
    return shown


def ordered(statement: Select[Any], keys: Sequence[Key], after: Sequence[Any] | None) -> Select[Any]:
    """The statement in the order of `keys`, behind the row whose keys are `after` (ms for times).

    The first key is bounded once more by itself: with that an index finds the place at once.
    """
    from sqlalchemy import and_, asc, desc, or_

    statement = statement.order_by(*(desc(column) if down else asc(column) for column, down in keys))
    if after is None:
        return statement
    assert len(after) == len(keys)
    alternatives = []
    for i, (column, down) in enumerate(keys):
        equal = [earlier == value for (earlier, _), value in zip(keys[:i], after[:i], strict=True)]
        alternatives.append(and_(*equal, column < after[i] if down else column > after[i]))
    first, down = keys[0]
    bound = first <= after[0] if down else first >= after[0]
    return statement.where(bound, or_(*alternatives))
