"""What lets a commit pass: its partition still has this owner and stands where the commit begins."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from sqlalchemy import Connection, bindparam, select, update

from storage import schema
from storage.schema import table
from storage.types import Commit, Fenced

PARTITIONS = table(schema.PartitionTable)
TOTALS = ("records", "accepted", "rejected", "late", "duplicates")
OFFSETS = ("old_next_offset", "next_offset", "restart_offset", "close_offset")
FENCED = ("topic", "partition", "epoch", *OFFSETS, "watermark_ms", "model_version", "committed_at_ms")

_FENCE = (
    update(PARTITIONS)
    .where(
        PARTITIONS.c.topic == bindparam("b_topic"),
        PARTITIONS.c.partition == bindparam("b_partition"),
        PARTITIONS.c.epoch == bindparam("b_epoch"),
        PARTITIONS.c.next_offset.is_not_distinct_from(bindparam("b_old_next_offset")),
        PARTITIONS.c.commit_token.is_distinct_from(bindparam("b_token")),
    )
    .values(
        next_offset=bindparam("b_next_offset"),
        restart_offset=bindparam("b_restart_offset"),
        close_offset=bindparam("b_close_offset"),
        watermark_ms=bindparam("b_watermark_ms"),
        model_version=bindparam("b_model_version"),
        commit_token=bindparam("b_token"),
        updated_at_ms=bindparam("b_committed_at_ms"),
        finished=False,
        **{name: PARTITIONS.c[name] + bindparam(f"b_{name}") for name in TOTALS},
    )
    .returning(PARTITIONS.c.id, PARTITIONS.c.topic_id)
)


@dataclass(frozen=True, slots=True)
class Passed:
    partition_id: int
    topic_id: str | None


def pass_fence(connection: Connection, commit: Commit) -> Passed | None:
    """Move the partition on to where the commit ends; None where the database has this commit already.

    Raises Fenced when the partition has a newer owner or stands elsewhere.
    """
    token = _token(commit)
    values = {f"b_{name}": getattr(commit, name) for name in (*FENCED, *TOTALS)} | {"b_token": token}
    found = connection.execute(_FENCE, values).first()
    if found is not None:
        return Passed(found.id, found.topic_id)
    stored = connection.execute(
        select(PARTITIONS.c.epoch, PARTITIONS.c.next_offset, PARTITIONS.c.commit_token).where(
            PARTITIONS.c.topic == commit.topic, PARTITIONS.c.partition == commit.partition
        )
    ).first()
    where = f"{commit.topic}[{commit.partition}]"
    if stored is None or stored.epoch != commit.epoch:
        raise Fenced(f"{where}: epoch {commit.epoch} is not the newest")
    if stored.commit_token != token:
        fenced = Fenced(
            f"{where}: the database stands at offset {stored.next_offset}, not {commit.old_next_offset}"
        )
        fenced.reclaim = True
        raise fenced
    return None


def _token(commit: Commit) -> str:
    """Tells whether a stored commit is this one; equal for equal content, whenever it is tried."""
    content = [
        commit.epoch,
        commit.old_next_offset,
        commit.next_offset,
        commit.restart_offset,
        commit.close_offset,
        commit.watermark_ms,
        *(getattr(commit, name) for name in TOTALS),
        [row.series for row in commit.parked],
        [(batch.window_start_ms, len(batch.series)) for batch in commit.windows],
        [(w.series, w.window_start_ms) for w in commit.revisions],
        [(t.at_ms, t.kind, t.alert.alert_id) for t in commit.transitions],
        commit.expired_series,
        commit.model_version,
    ]
    return hashlib.sha256(repr(content).encode("utf-8", "replace")).hexdigest()
