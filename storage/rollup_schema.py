"""The table of hours: windows summed up, kept longer than the windows."""

from __future__ import annotations

from sqlalchemy import Float, ForeignKey
from sqlalchemy.orm import Mapped, mapped_column

from storage.names import FEATURE_COLUMNS
from storage.schema import Base


class WindowHourTable(Base):
    """One row per series and hour with windows, written once by storage.rollups."""

    __tablename__ = "window_hours"

    series_id: Mapped[int] = mapped_column(ForeignKey("series.id"), primary_key=True, autoincrement=False)
    window_start_ms: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    windows: Mapped[int]
    anomalous_windows: Mapped[int]
    score: Mapped[float]
    gbdt_score: Mapped[float | None]
    lstm_score: Mapped[float | None]
    tail_probability: Mapped[float | None]
    metrics: Mapped[str | None]  # JSON, as storage.metric_hours has it


for _feature in FEATURE_COLUMNS:
    WindowHourTable.__table__.append_column(  # type: ignore[attr-defined]
        mapped_column(_feature, Float, nullable=True).column
    )
