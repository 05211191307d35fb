"""Tables of trained models and of the trainings that made them."""

from __future__ import annotations

from sqlalchemy import Index, String, text
from sqlalchemy.orm import Mapped, mapped_column

from storage.schema import ID_LENGTH, Base


class ModelTable(Base):
    """Trained models; `artifact` is in the database so that a fleet shares it."""

    __tablename__ = "models"
    __table_args__ = (
        Index(
            "models_champion",
            "status",
            unique=True,
            sqlite_where=text("status = 'champion'"),
            postgresql_where=text("status = 'champion'"),
        ),
    )

    version: Mapped[str] = mapped_column(String(ID_LENGTH), primary_key=True)
    detector: Mapped[str]
    trained_at_ms: Mapped[int] = mapped_column(index=True)
    status: Mapped[str] = mapped_column(String(16))
    metrics: Mapped[str]
    artifact: Mapped[bytes]
    sha256: Mapped[str] = mapped_column(String(ID_LENGTH))
    reason: Mapped[str] = mapped_column(default="")
    promotion: Mapped[int | None]  # counts promotions; of the newest one of this version


class TrainingTable(Base):
    """Every training that was decided, by its event time, failed ones included."""

    __tablename__ = "trainings"

    trained_at_ms: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    version: Mapped[str | None] = mapped_column(String(ID_LENGTH))
    outcome: Mapped[str] = mapped_column(String(16))  # "promoted" | "refused" | "failed"
    reason: Mapped[str]
