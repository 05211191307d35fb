"""States of series as they are: not compressed, and inside their row up to 8 KB (PostgreSQL)

A commit writes the states of all series whose window has closed. Trying to compress what hardly shrinks and
cutting it up into a second table took most of it. A page keeps room for the next version of its rows, so that
no index is written for it.
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
