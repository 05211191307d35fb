"""Windows summed up per hour"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

INTEGER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
FEATURES = (
    *("request_count", "error_rate", "latency_p50_ms", "latency_p95_ms", "latency_p99_ms", "ttft_p50_ms"),
    *("ttft_p95_ms", "tpot_p50_ms", "queue_p95_ms", "input_tokens_mean", "output_tokens_mean"),
    *("output_tokens_p95", "empty_output_rate", "max_output_rate", "memory_mb_max", "gpu_util_mean"),
    *("confidence_mean", "accuracy", "cost_usd_sum"),
)

revision = "0006"
down_revision = "0004"


def upgrade() -> None:
    op.create_table(
        "window_hours",
        sa.Column("series_id", INTEGER, sa.ForeignKey("series.id"), primary_key=True, autoincrement=False),
        sa.Column("window_start_ms", INTEGER, primary_key=True, autoincrement=False),
        sa.Column("windows", INTEGER, nullable=False),
        sa.Column("anomalous_windows", INTEGER, nullable=False),
        sa.Column("score", sa.Double, nullable=False),
        *(sa.Column(name, sa.Double) for name in ("gbdt_score", "lstm_score", "tail_probability")),
        *(sa.Column(name, sa.Float) for name in FEATURES),
    )
