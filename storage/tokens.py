"""Who may use the HTTP API: tokens, and the sessions of browsers that have shown one.

Both are 256 random bits, so that their plain SHA-256 is as safe to keep as the bits are hard to guess.
Times are wall time.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine, delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from storage import schema, text
from storage.access_schema import ApiTokenTable, HttpSessionTable
from storage.actions import Action, Actor, record
from storage.engine import reading
from storage.names import TokenExists

TOKENS, SESSIONS = schema.table(ApiTokenTable), schema.table(HttpSessionTable)
SCOPES = ("read", "write")
PREFIX = "iw_"
MAX_SECRET = 128  # characters; nothing longer is looked up
USED_EVERY_MS = 60_000


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a token or a session speaks for."""

    name: str
    scope: str  # "read" | "write"


@dataclass(frozen=True, slots=True)
class Tokens:
    """Creates, checks and revokes; secrets are returned once and never stored."""

    engine: Engine

    def create(self, name: str, scope: str, actor: Actor) -> str:
        """A new token. Raises TokenExists for a name that is taken, ValueError for an unknown scope."""
        if scope not in SCOPES:
            raise ValueError(f"{scope!r} is no scope; use read or write")
        if not name or name != text.clean(name, 200):
            raise ValueError("a token's name has 1 to 200 characters")
        token = PREFIX + secrets.token_urlsafe(32)
        row = {"name": name, "hash": _hash(token), "scope": scope, "created_at_ms": actor.now_ms}
        try:
            with self.engine.begin() as connection:
                connection.execute(insert(TOKENS), row)
                record(connection, Action("token.created", name, actor, {"scope": scope}))
        except IntegrityError:
            raise TokenExists(
                f"there is a token {name!r} already; revoke it first or use another name"
            ) from None
        return token

    def list(self) -> list[dict[str, Any]]:
        """Names, scopes and times (ms), by name; never a hash."""
        columns = (TOKENS.c.name, TOKENS.c.scope, TOKENS.c.created_at_ms, TOKENS.c.last_used_at_ms)
        with reading(self.engine) as connection:
            rows = connection.execute(select(*columns)).mappings().all()
        return sorted((dict(row) for row in rows), key=lambda row: str(row["name"]))

    def exist(self) -> bool:
        """True when somebody has made a token."""
        with reading(self.engine) as connection:
            return connection.execute(select(TOKENS.c.name).limit(1)).first() is not None

    def revoke(self, name: str, actor: Actor) -> bool:
        """End a token and every session opened with it; False when there is none of this name."""
        with self.engine.begin() as connection:
            done = connection.execute(delete(TOKENS).where(TOKENS.c.name == name)).rowcount
            connection.execute(delete(SESSIONS).where(SESSIONS.c.token_name == name))
            if done:
                record(connection, Action("token.revoked", name, actor))
        return bool(done)

    def check(self, token: str, now_ms: int) -> Identity | None:
        """Whose token it is; None for an unknown one. Notes its use, once a minute at most."""
        if not 0 < len(token) <= MAX_SECRET:
            return None
        hashed = _hash(token)
        with reading(self.engine) as connection:
            row = connection.execute(select(TOKENS).where(TOKENS.c.hash == hashed)).first()
        if row is None or not hmac.compare_digest(row.hash, hashed):
            return None
        if row.last_used_at_ms is None or now_ms - row.last_used_at_ms >= USED_EVERY_MS:
            used = update(TOKENS).where(TOKENS.c.hash == hashed).values(last_used_at_ms=now_ms)
            with self.engine.begin() as connection:
                connection.execute(used)
        return Identity(row.name, row.scope)

    # ----------------------------------------------------------------- sessions

    def open_session(self, identity: Identity, now_ms: int, lifetime_ms: int) -> str:
        """The secret of a new session; sessions that have ended are swept away."""
        secret = secrets.token_urlsafe(32)
        row = {
            "hash": _hash(secret),
            "token_name": identity.name,
            "created_at_ms": now_ms,
            "expires_at_ms": now_ms + lifetime_ms,
        }
        with self.engine.begin() as connection:
            connection.execute(delete(SESSIONS).where(SESSIONS.c.expires_at_ms <= now_ms))
            connection.execute(insert(SESSIONS), row)
        return secret

    def session(self, secret: str, now_ms: int) -> Identity | None:
        """Whose session it is, as long as it lasts and its token exists."""
        if not 0 < len(secret) <= MAX_SECRET:
            return None
        hashed = _hash(secret)
        with reading(self.engine) as connection:
            row = connection.execute(
                select(SESSIONS.c.hash, TOKENS.c.name, TOKENS.c.scope)
                .join(TOKENS, TOKENS.c.name == SESSIONS.c.token_name)
                .where(SESSIONS.c.hash == hashed, SESSIONS.c.expires_at_ms > now_ms)
                .where(SESSIONS.c.created_at_ms >= TOKENS.c.created_at_ms)  # not of a namesake before it
            ).first()
        if row is None or not hmac.compare_digest(row.hash, hashed):
            return None
        return Identity(row.name, row.scope)

    def close_session(self, secret: str) -> None:
        with self.engine.begin() as connection:
            connection.execute(delete(SESSIONS).where(SESSIONS.c.hash == _hash(secret)))


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()
