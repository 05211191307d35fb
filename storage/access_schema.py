"""Tables of who may use the HTTP API, and of what people did that belongs to no incident."""

from __future__ import annotations

from sqlalchemy import String
from sqlalchemy.orm import Mapped, mapped_column

from storage.schema import ID_LENGTH, Base, _id, _name


class ApiTokenTable(Base):
    """Tokens by name; only the SHA-256 of the 256 random bits is kept."""

    __tablename__ = "api_tokens"

    name: Mapped[str] = _name(primary_key=True)
    hash: Mapped[str] = _id(unique=True)
    scope: Mapped[str] = mapped_column(String(16))  # "read" | "write"
    created_at_ms: Mapped[int]
    last_used_at_ms: Mapped[int | None]


class HttpSessionTable(Base):
    """Browsers that have shown a token; only the SHA-256 of the cookie is kept."""

    __tablename__ = "http_sessions"

    hash: Mapped[str] = mapped_column(String(ID_LENGTH), primary_key=True)
    token_name: Mapped[str] = _name(index=True)
    created_at_ms: Mapped[int]
    expires_at_ms: Mapped[int] = mapped_column(index=True)


class ActionTable(Base):
    """What people did to silences, models, deliveries and tokens: who, when and why."""

    __tablename__ = "actions"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    at_ms: Mapped[int] = mapped_column(index=True)
    actor: Mapped[str] = _name()
    action: Mapped[str] = mapped_column(String(ID_LENGTH))  # "silence.created", "model.promoted", ...
    subject: Mapped[str] = _name()  # the id of what was changed
    reason: Mapped[str]
    detail: Mapped[str]  # JSON
