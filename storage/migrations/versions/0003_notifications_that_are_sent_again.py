"""Notifications that are sent again while an incident lasts"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

INTEGER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("deliveries", sa.Column("resend_at_ms", INTEGER, nullable=True))
    op.create_index(
        "deliveries_resend",
        "deliveries",
        ["resend_at_ms"],
        sqlite_where=sa.text("resend_at_ms IS NOT NULL"),
        postgresql_where=sa.text("resend_at_ms IS NOT NULL"),
    )
