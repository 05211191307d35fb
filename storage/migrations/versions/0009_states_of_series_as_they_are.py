"""PostgreSQL: states of series as they are, and no question back to them for each new window

A commit writes the states of all series whose window has closed, and their windows. States are kept
uncompressed (they hardly shrink), and inside their row up to 8 KB; a page keeps room for the next version of
its rows, so that no index is written for it. Foreign keys of windows and sketches made PostgreSQL look up and
lock a row of `series` for each of them; the only writer takes their ids from these rows in the same
transaction.
"""

from __future__ import annotations

from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    if op.get_bind().dialect.name != "postgresql":
        return
    for column in ("window_state", "detector_state", "alert_state", "rollout_state"):
        op.execute(f"ALTER TABLE series ALTER COLUMN {column} SET STORAGE EXTERNAL")
    op.execute("ALTER TABLE series SET (toast_tuple_target = 8160, fillfactor = 50)")
    for table, column in (
        ("windows", "series_id"),
        ("window_sketches", "series_id"),
        ("window_sketches", "partition_id"),
    ):
        op.execute(f"ALTER TABLE {table} DROP CONSTRAINT IF EXISTS {table}_{column}_fkey")
