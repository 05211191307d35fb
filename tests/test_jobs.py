"""What runs beside the pipeline waits for a database that is away, and says so once."""

from __future__ import annotations

import sqlite3

import pytest
from sqlalchemy.exc import OperationalError
from structlog.testing import capture_logs

from monitor.jobs import patient


def away() -> OperationalError:
    original = sqlite3.OperationalError("disk I/O error")
    original.sqlite_errorcode = sqlite3.SQLITE_IOERR
    return OperationalError("select 1", {}, original)


def test_a_job_says_once_per_outage_that_it_waits() -> None:
    turns = [away(), away(), None, None, away()]

    def job() -> None:
        turn = turns.pop(0)
        if turn is not None:
            raise turn

    run = patient("retention", job)
    with capture_logs() as said:
        for _ in range(5):
            run()
    assert [line["event"] for line in said] == ["job_postponed"] * 2
    assert {line["job"] for line in said} == {"retention"}


def test_what_does_not_pass_by_itself_is_not_hidden() -> None:
    def job() -> None:
        raise ValueError("a fault of ours")

    with pytest.raises(ValueError, match="a fault of ours"):
        patient("retention", job)()
