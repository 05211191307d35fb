"""Partitions of the log: what the database knows of them, and what only the process knows that reads them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

Health = Callable[[], dict[str, Any]]
"""How the process behind the database is; `partitions` says where those end that it reads."""


def with_lag(sources: Iterable[Mapping[str, Any]], health: Health) -> list[dict[str, Any]]:
    """Rows of `queries.sources` with what only the process knows that reads them; None of others' ones."""
    shown = ("epoch", "topic_id", "leader_epoch", "close_offset")
    partitions = health().get("partitions") or {}
    found = []
    for row in sources:
        known = partitions.get(f"{row['topic']}/{row['partition']}", {})
        end = known.get("end_offset")
        lag = None if end is None or row["next_offset"] is None else max(0, end - row["next_offset"])
        told = {"end_offset": end, "lag": lag, "stalled": known.get("stalled")}
        found.append({**{k: v for k, v in row.items() if k not in shown}, **told})
    return found
