"""Where a list goes on: an opaque text made of the order's values in the last row of a page. Pure."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from storage import text
from storage.shown import ms_of

FIELDS: dict[str, tuple[str, ...]] = {
    "incidents": ("opened_at", "incident_id"),
    "alerts": ("window_start", "alert_id"),
    "windows": ("window_start",),
    "hours": ("window_start",),
    "series": ("series",),
    "deliveries": ("created_at", "sequence", "delivery_id"),
    "rejected": ("id",),
    "silences": ("starts_at", "silence_id"),
    "models": ("trained_at", "version"),
    "deployments": ("at", "series", "model_version"),
    "actions": ("id",),
}
"""List -> fields of its rows that make its order, as storage.lists.ORDERS has the columns."""
TEXTS = frozenset(
    ("incident_id", "alert_id", "series", "delivery_id", "silence_id", "version", "model_version")
)
MAX_LENGTH = 4_096
BIGGEST = (1 << 63) - 1


def encode(name: str, row: Mapping[str, Any]) -> str:
    """The cursor behind `row` in the list `name`."""
    values = [row[field] for field in FIELDS[name]]
    plain = [ms_of(value) if isinstance(value, datetime) else value for value in values]
    return base64.urlsafe_b64encode(json.dumps([name, *plain]).encode()).decode().rstrip("=")


def decode(name: str, cursor: str) -> Sequence[int | str]:
    """The values that `encode` was given. Raises ValueError for any other text."""
    if len(cursor) > MAX_LENGTH or not cursor.isascii():
        raise ValueError("no cursor of this list")
    try:
        values = json.loads(
            base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        )
    except (binascii.Error, ValueError, RecursionError):
        raise ValueError("no cursor of this list") from None
    fields = FIELDS[name]
    if not isinstance(values, list) or values[:1] != [name] or len(values) != len(fields) + 1:
        raise ValueError("no cursor of this list")
    for field, value in zip(fields, values[1:], strict=True):
        if field in TEXTS:
            fits = isinstance(value, str) and text.clean(value, MAX_LENGTH) == value
        else:
            fits = type(value) is int and -BIGGEST <= value <= BIGGEST
        if not fits:
            raise ValueError("no cursor of this list")
    return values[1:]
