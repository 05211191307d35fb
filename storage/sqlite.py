"""SQLite files: connections, writers that take turns, and a log that is folded back beside the commits."""

from __future__ import annotations

import sqlite3
import threading
from contextlib import closing
from pathlib import Path

from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.pool import ConnectionPoolEntry

from storage.names import DatabaseUrlError

BUSY_S = 15.0
PAGE_BYTES = 8_192  # states and sketches are some KB each
CACHE_BYTES = 32 << 20
FOLD_BACK_ROWS = 10_000
"""Rows written until the log is folded back into the file; a commit of 10,000 series has 30,000, 50 MB."""
MOST_LOG_BYTES = 128 << 20
"""From here on whoever commits folds it back itself, so that the log is bounded whatever the disk is like."""
FEW_ROWS = 1_000  # are folded back while writers wait: a few milliseconds
READ_ONLY = "inferwatch_read_only"
_WRITES, _CHANGES = "inferwatch_writes", "inferwatch_changes"


def connect_sqlite(url: URL, pool_timeout_s: float) -> Engine:
    """Raises DatabaseUrlError where there is no file."""
    if url.database in (None, "", ":memory:"):
        raise DatabaseUrlError("a SQLite database needs a file: sqlite:///inferwatch.db")
    engine = create_engine(
        url.set(drivername="sqlite"), connect_args={"timeout": BUSY_S}, pool_timeout=pool_timeout_s
    )

    @event.listens_for(engine, "connect")
    def prepare(connection: sqlite3.Connection, record: object) -> None:
        connection.isolation_level = None  # we say BEGIN ourselves
        connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")  # of a file that is made now
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA cache_size = -{CACHE_BYTES // 1024}")
        connection.execute(f"PRAGMA wal_autocheckpoint = {MOST_LOG_BYTES // PAGE_BYTES}")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA foreign_keys = ON")

    turn = _Turn()
    folding = _FoldingBack(Path(str(url.database)), turn)

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        """Writers take the lock at once: a read lock that is upgraded later could deadlock."""
        read_only = connection.get_execution_options().get(READ_ONLY, False)
        if not read_only and turn.wait():
            connection.connection.record_info[_WRITES] = True  # type: ignore[index]
        connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")

    @event.listens_for(engine, "checkin")
    def checkin(connection: sqlite3.Connection | None, record: ConnectionPoolEntry) -> None:
        if (record.record_info or {}).pop(_WRITES, False):
            try:
                if connection is not None:
                    before = record.info.get(_CHANGES, 0)
                    record.info[_CHANGES] = connection.total_changes
                    folding.written(connection.total_changes - before)
            finally:
                turn.end()

    return engine


class _Turn:
    """The threads of one process write to SQLite in turns.

    Where they wait for SQLite's lock itself, each of them sleeps and tries again, and those that write often
    keep one that writes seldom waiting: the outbox a commit. A thread that has its turn is let through (its
    second connection meets the lock), and so is one that has waited for long.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._holder: int | None = None

    def wait(self) -> bool:
        """True when the turn has to be ended."""
        me = threading.get_ident()
        if self._holder == me or not self._lock.acquire(timeout=BUSY_S):
            return False
        self._holder = me
        return True

    def end(self) -> None:
        self._holder = None
        self._lock.release()


class _FoldingBack:
    """Folds the write-ahead log back into the file (a checkpoint) in a thread of its own.

    SQLite would do it inside the commit that fills the log, where two fsyncs and another 50 MB keep the
    notifications of that commit waiting. Writers and readers go on beside it. What they write meanwhile, the
    outbox's few rows behind a commit, would keep the next commit from beginning the log anew: the log would
    grow until somebody has to wait for it. So these rows are folded back too, while writers wait.
    """

    def __init__(self, path: Path, turn: _Turn) -> None:
        self._path = path
        self._turn = turn
        self._rows = 0  # written since it was last begun
        self._behind = False
        self._busy = threading.Lock()

    def written(self, rows: int) -> None:
        """A transaction has ended that wrote so many rows. To be called by one thread at a time."""
        self._rows += rows
        due = self._behind or self._rows >= FOLD_BACK_ROWS
        if not due or not self._busy.acquire(blocking=self._behind):
            return
        self._rows = 0
        if self._behind:  # commits come faster than the disk takes them: with this one they wait
            self._fold_back()
        else:
            threading.Thread(target=self._fold_back, name="folding back", daemon=True).start()

    def _fold_back(self) -> None:
        try:
            uri = f"{self._path.absolute().as_uri()}?mode=rw"  # a file that is gone is not made anew
            with closing(sqlite3.connect(uri, uri=True)) as connection:
                connection.execute("PRAGMA schema_version").fetchone()  # opens the log
                pages, done = _fold(connection)
                foreground = self._behind  # nobody writes meanwhile: the next commit begins the log anew
                if not foreground and done == pages:
                    pages, done = self._fold_the_rest(connection, pages)
                self._behind = pages * PAGE_BYTES >= MOST_LOG_BYTES and not (foreground and done == pages)
        except sqlite3.Error:
            pass  # the next one folds back more; nothing of a commit depends on it
        finally:
            self._busy.release()

    def _fold_the_rest(self, connection: sqlite3.Connection, pages: int) -> tuple[int, int]:
        """As _fold, where little has come since the log had so many pages."""
        mine = self._turn.wait()
        try:
            return _fold(connection) if self._rows < FEW_ROWS else (pages, pages)
        finally:
            if mine:
                self._turn.end()


def _fold(connection: sqlite3.Connection) -> tuple[int, int]:
    """(pages in the log when this begins, those of them that stand in the file now)."""
    _, pages, done = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
    return pages, done
