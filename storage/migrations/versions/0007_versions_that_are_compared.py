"""New model versions are compared with those they replace"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

INTEGER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.add_column("series", sa.Column("rollout_state", sa.LargeBinary(), nullable=True))
    for column in (
        sa.Column("previous_version", sa.Text(), nullable=True),
        sa.Column("verdict", sa.String(16), nullable=True),
        sa.Column("basis", sa.String(32), nullable=True),
        sa.Column("compared_at_ms", INTEGER, nullable=True),
        sa.Column("requests", INTEGER, nullable=True),
        sa.Column("summary", sa.Text(), nullable=True),
        sa.Column("differences", sa.Text(), nullable=True),
    ):
        op.add_column("deployments", column)
