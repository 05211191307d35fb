"""Tokens, sessions and actions of people; silences that recur"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

INTEGER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "api_tokens",
        sa.Column("name", sa.String(length=512), nullable=False),
        sa.Column("hash", sa.String(length=64), nullable=False),
        sa.Column("scope", sa.String(length=16), nullable=False),
        sa.Column("created_at_ms", INTEGER, nullable=False),
        sa.Column("last_used_at_ms", INTEGER, nullable=True),
        sa.PrimaryKeyConstraint("name"),
        sa.UniqueConstraint("hash"),
    )

    op.create_table(
        "http_sessions",
        sa.Column("hash", sa.String(length=64), nullable=False),
        sa.Column("token_name", sa.String(length=512), nullable=False),
        sa.Column("created_at_ms", INTEGER, nullable=False),
        sa.Column("expires_at_ms", INTEGER, nullable=False),
        sa.PrimaryKeyConstraint("hash"),
    )
    op.create_index("ix_http_sessions_token_name", "http_sessions", ["token_name"])
    op.create_index("ix_http_sessions_expires_at_ms", "http_sessions", ["expires_at_ms"])

    op.create_table(
        "actions",
        sa.Column("id", INTEGER, autoincrement=True, nullable=False),
        sa.Column("at_ms", INTEGER, nullable=False),
        sa.Column("actor", sa.String(length=512), nullable=False),
        sa.Column("action", sa.String(length=64), nullable=False),
        sa.Column("subject", sa.String(length=512), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_actions_at_ms", "actions", ["at_ms"])

    op.add_column("silences", sa.Column("recurrence", sa.Text(), nullable=True))
