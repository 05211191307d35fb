"""The log of a SQLite file: folded back beside the commits, bounded, and never a reason to lose a row."""

from __future__ import annotations

import sqlite3
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import URL, Engine, text

from storage.engine import connect, reading
from storage.sqlite import FOLD_BACK_ROWS


def database(path: Path) -> Engine:
    engine = connect(f"sqlite:///{path}")
    with engine.begin() as connection:
        connection.execute(text("create table things (id integer primary key, what blob)"))
    return engine


def write(engine: Engine, rows: int) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql("insert into things (what) values (?)", [(bytes(200),)] * rows)


def rows_in_the_file(path: Path) -> int:
    """Without what stands in the log alone."""
    with closing(sqlite3.connect(f"file:{path}?immutable=1", uri=True)) as connection:
        (rows,) = connection.execute("select count(*) from things").fetchone()
        return int(rows)


def rest() -> None:
    """Until nothing is folded back any more."""
    for thread in threading.enumerate():
        if thread.name == "folding back":
            thread.join(30)


def log_bytes(path: Path) -> int:
    return Path(f"{path}-wal").stat().st_size


def test_the_log_is_folded_back_beside_the_commits(tmp_path: Path) -> None:
    path = tmp_path / "a b%23#?.db"  # a path is no URL
    engine = connect(URL.create("sqlite", database=str(path)).render_as_string())
    with engine.begin() as connection:
        connection.execute(text("create table things (id integer primary key, what blob)"))
    write(engine, FOLD_BACK_ROWS)
    rest()
    copy = tmp_path / "copy.db"
    copy.write_bytes(path.read_bytes())
    assert rows_in_the_file(copy) == FOLD_BACK_ROWS
    first = log_bytes(path)
    for _ in range(5):
        write(engine, FOLD_BACK_ROWS)
        rest()
    assert log_bytes(path) < 1.5 * first  # begun anew each time
    engine.dispose()


def test_what_is_written_beside_the_folding_does_not_keep_the_log_from_beginning_anew(tmp_path: Path) -> None:
    path = tmp_path / "things.db"
    engine = database(path)
    sizes = []
    for _ in range(5):
        write(engine, 4 * FOLD_BACK_ROWS)
        for _ in range(5):
            write(engine, 1)
        rest()
        sizes.append(log_bytes(path))
    assert sizes[-1] < 1.5 * sizes[0], sizes
    engine.dispose()


def test_a_little_is_left_in_the_log(tmp_path: Path) -> None:
    """Two fsyncs for each small commit would be many."""
    path = tmp_path / "things.db"
    engine = database(path)
    write(engine, FOLD_BACK_ROWS)
    rest()
    write(engine, FOLD_BACK_ROWS // 2)
    rest()
    assert rows_in_the_file(path) == FOLD_BACK_ROWS
    write(engine, FOLD_BACK_ROWS // 2)  # together they are enough
    rest()
    assert rows_in_the_file(path) == 2 * FOLD_BACK_ROWS
    engine.dispose()


def test_commits_without_a_break_do_not_let_the_log_grow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    most = 8 << 20
    monkeypatch.setattr("storage.sqlite.MOST_LOG_BYTES", most)
    path = tmp_path / "things.db"
    engine = database(path)
    largest = 0
    for _ in range(60):  # 130 MB
        write(engine, FOLD_BACK_ROWS)
        largest = max(largest, log_bytes(path))
    rest()
    assert largest < 3 * most
    with reading(engine) as connection:
        assert connection.execute(text("select count(*) from things")).scalar() == 60 * FOLD_BACK_ROWS
    engine.dispose()


def test_a_commit_does_not_wait_for_the_log_to_be_folded_back(tmp_path: Path) -> None:
    """A reader holds the log: nothing behind what it sees can go back into the file, commits go on."""
    path = tmp_path / "things.db"
    engine = database(path)
    write(engine, 10)
    with reading(engine) as reader:
        assert reader.execute(text("select count(*) from things")).scalar() == 10
        for _ in range(3):
            began = time.monotonic()
            write(engine, FOLD_BACK_ROWS)
            assert time.monotonic() - began < 10
        rest()
        assert reader.execute(text("select count(*) from things")).scalar() == 10
    write(engine, FOLD_BACK_ROWS)
    rest()
    assert rows_in_the_file(path) == 10 + 4 * FOLD_BACK_ROWS
    engine.dispose()
