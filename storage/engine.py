"""Engines, the lock of a SQLite file, and which database errors pass by themselves."""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, exc, inspect, make_url, text

from storage.names import SCHEMA_VERSION, DatabaseInUse, DatabaseUrlError, SchemaTooNew
from storage.sqlite import READ_ONLY, connect_sqlite

POOL_SIZE, POOL_OVERFLOW, POOL_TIMEOUT_S, CONNECT_TIMEOUT_S = 5, 10, 10.0, 5
LOCK_TIMEOUT_S, IDLE_TRANSACTION_S = (
    20,
    15,
)  # a process that hangs in a transaction holds the others up no longer


def connect(url: str) -> Engine:
    """An engine on `sqlite:///PATH` or `postgresql://...` (psycopg 3); connects lazily.

    SQLite runs in WAL mode, so that readers never wait, with synchronous=NORMAL: kill -9 loses nothing,
    and a power cut may take back the newest commits *whole*: offsets and results go together, so
    they are computed again from the log, and notifications go out again under the same id. FULL would
    cost an fsync per commit to save only that repetition.

    Raises DatabaseUrlError for any other kind of URL.
    """
    try:
        parsed = make_url(url)
    except (exc.ArgumentError, ValueError) as error:
        raise DatabaseUrlError(f"not a database URL ({error}); try sqlite:///inferwatch.db") from None
    kind = parsed.get_backend_name()
    if kind == "sqlite":
        return connect_sqlite(parsed, POOL_TIMEOUT_S)
    if kind == "postgresql":
        return create_engine(
            parsed.set(drivername="postgresql+psycopg"),
            pool_size=POOL_SIZE,
            max_overflow=POOL_OVERFLOW,
            pool_timeout=POOL_TIMEOUT_S,
            pool_pre_ping=True,
            connect_args={
                "connect_timeout": CONNECT_TIMEOUT_S,
                "application_name": "inferwatch",
                "options": f"-c lock_timeout={LOCK_TIMEOUT_S}s "
                f"-c idle_in_transaction_session_timeout={IDLE_TRANSACTION_S}s",
            },
        )
    raise DatabaseUrlError(f"{kind!r} is not supported; use sqlite:///PATH or postgresql://USER@HOST/NAME")


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """A connection for reads only; it never waits for a writer of SQLite."""
    with engine.connect().execution_options(**{READ_ONLY: True}) as connection:
        yield connection


@contextmanager
def own_database(url: str) -> Iterator[None]:
    """Hold the one right to run a daemon on a SQLite file; for other databases there is nothing to hold.

    Raises DatabaseInUse, naming the process that holds it. The kernel drops the lock with the process.
    """
    try:
        parsed = make_url(url)
    except (exc.ArgumentError, ValueError) as error:
        raise DatabaseUrlError(f"not a database URL ({error}); try sqlite:///inferwatch.db") from None
    if parsed.get_backend_name() != "sqlite" or not parsed.database or parsed.database == ":memory:":
        yield
        return
    path = Path(os.path.realpath(parsed.database) + ".lock")
    try:
        handle = path.open("a+")
    except OSError as error:
        raise DatabaseUrlError(f"cannot write beside {parsed.database}: {error}") from None
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            handle.seek(0)
            holder = handle.read().strip() or "unknown"
            raise DatabaseInUse(
                f"{parsed.database} is in use by process {holder}; one daemon per SQLite file "
                "(a fleet shares a PostgreSQL database)"
            ) from None
        handle.truncate(0)
        handle.write(f"{os.getpid()}\n")
        handle.flush()
        yield


def current_version(engine: Engine) -> str | None:
    """The schema version of a database; None when it is empty."""
    with reading(engine) as connection:
        if not inspect(connection).has_table("alembic_version"):
            return None
        return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()


def upgrade(engine: Engine) -> None:
    """Bring the tables and views to this version; one query when they are there already.

    Raises SchemaTooNew when a newer release has written the database.
    """
    version = current_version(engine)
    if version == SCHEMA_VERSION:
        return
    from storage.migrations.run import known_versions, migrate

    if version is not None and version not in known_versions():
        raise SchemaTooNew(f"the database has schema {version}, this release knows up to {SCHEMA_VERSION}")
    migrate(engine)


_SQLITE_TRANSIENT = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_INTERRUPT,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_PROTOCOL,
}
# connection, rollback, resources (disk full), operator (shutdown), system; lock timeout; a standby
_POSTGRES_TRANSIENT = ("08", "40", "53", "57", "58", "55P03", "25006")


def is_transient(error: BaseException) -> bool:
    """True for an error that may pass by itself: connection lost, locked, serialization, disk full.

    False for what would fail again: a constraint, a wrong statement, a value the database refuses.
    """
    if isinstance(error, exc.TimeoutError):
        return True
    if isinstance(error, exc.DBAPIError):
        if error.connection_invalidated:
            return True
        original: Any = error.orig
    else:
        original = error
    if isinstance(original, sqlite3.Error):
        code = getattr(original, "sqlite_errorcode", None)
        return code is not None and code & 0xFF in _SQLITE_TRANSIENT
    state = getattr(original, "sqlstate", None)
    if state is not None:
        return str(state).startswith(_POSTGRES_TRANSIENT)
    return isinstance(error, (exc.OperationalError, exc.InterfaceError))
