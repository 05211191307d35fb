"""What was remembered of a series and cannot be read costs that series its memory, and nobody anything."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from detectors.ensemble import Ensemble
from monitor import metrics
from tests import test_pipeline as kit
from tests.daemons import rows, snapshot, totals
from tests.logs import lines

MESSAGES = lines(services=3, minutes=40, per_minute=6, fault_at=None)
FULL = "select s.name, w.window_start_ms, w.request_count, w.score from windows w "
FULL += "join series s on s.id = w.series_id"
ALERTS = "select alert_id, series, status, fired_at_ms, resolved_at_ms, window_start_ms from alerts"


def scorer() -> Ensemble:
    return Ensemble.prior(false_alarms_per_week=1.0, window_ms=60_000)


def half_read(folder: Path) -> str:
    """A database whose owner died in the middle of the log."""
    url = f"sqlite:///{folder / 'half.db'}"
    ledger = kit.ledger_for(url)
    ledger.commits_left, ledger.after = 8, True
    with contextlib.suppress(kit.Killed):
        kit.run_to_end(*kit.pipeline_for(ledger, MESSAGES, scorer=scorer()))
    ledger.engine.dispose()
    return url


def spoil(url: str, column: str, state: bytes) -> str:
    """Overwrite one part of the memory of the first series; returns its name."""
    (name,) = {row["name"] for row in rows(url, "select name from series order by id limit 1")}
    with contextlib.closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection:
        (before,) = connection.execute(f"select {column} from series where name = ?", (name,)).fetchone()
        assert before is not None or column in ("rollout_state", "alert_state")
        connection.execute(f"update series set {column} = ? where name = ?", (state, name))
        connection.commit()
    return str(name)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> str:
    url = f"sqlite:///{tmp_path_factory.mktemp('whole') / 'whole.db'}"
    kit.run_to_end(*kit.pipeline_for(kit.ledger_for(url), MESSAGES, scorer=scorer()))
    return url


@pytest.mark.parametrize("column", ["detector_state", "rollout_state", "window_state", "alert_state"])
def test_a_part_that_cannot_be_read_begins_anew(whole: str, tmp_path: Path, column: str) -> None:
    url = half_read(tmp_path)
    spoiled = spoil(url, column, b"written by another version")
    before = metrics.MEMORY_LOST.labels(column)._value.get()
    with capture_logs() as said:
        kit.run_to_end(*kit.pipeline_for(kit.ledger_for(url), MESSAGES, scorer=scorer()))
    assert metrics.MEMORY_LOST.labels(column)._value.get() == before + 1
    (lost,) = [line for line in said if line["event"] == "memory_lost"]
    assert (lost["series"], lost["part"], lost["log_level"]) == (spoiled, column, "error")
    assert totals(url) == totals(whole)
    expected, found = rows(whole, FULL), rows(url, FULL)
    counted = ("name", "window_start_ms", "request_count")
    assert [[row[k] for k in counted] for row in found] == [[row[k] for k in counted] for row in expected]
    others = [row for row in found if row["name"] != spoiled]
    assert others == [row for row in expected if row["name"] != spoiled]
    if column == "detector_state":
        assert found != expected
    else:
        assert snapshot(url)["window_history"] == snapshot(whole)["window_history"]


def test_an_alert_whose_state_cannot_be_read_still_ends_and_tells_its_incident(tmp_path: Path) -> None:
    messages = lines(services=3, minutes=90, per_minute=20, fault_at=60)
    calm = lines(services=3, minutes=60, per_minute=20, fault_at=None, seed=12)
    shift_ms = 90 * 60_000
    for line in calm:
        record = json.loads(line)
        at = datetime.fromisoformat(record["timestamp"]) + timedelta(milliseconds=shift_ms)
        messages.append(json.dumps({**record, "timestamp": at.isoformat()}).encode())
    whole, url = (f"sqlite:///{tmp_path / name}.db" for name in ("whole", "half"))
    kit.run_to_end(*kit.pipeline_for(kit.ledger_for(whole), messages, scorer=scorer()))
    ended = rows(whole, ALERTS)
    assert [row["status"] for row in ended] == ["resolved"], ended

    ledger, firing = kit.ledger_for(url), "select series from alerts where status = 'firing'"
    pipeline, clock = kit.pipeline_for(ledger, messages, scorer=scorer())
    while not rows(url, firing):
        assert pipeline.turn(0.0), "nothing fired"
        clock.advance(1_100)
    ledger.engine.dispose()
    with contextlib.closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection:
        connection.execute("update series set alert_state = x'00' where alert_state is not null")
        connection.commit()
    with capture_logs() as said:
        kit.run_to_end(*kit.pipeline_for(kit.ledger_for(url), messages, scorer=scorer()))
    assert [line["part"] for line in said if line["event"] == "memory_lost"] == ["alert_state"]
    assert rows(url, ALERTS) == ended
    incidents = "select incident_id, status, started_at, resolved_at from incident_history"
    assert rows(url, incidents) == rows(whole, incidents)


def test_a_sketch_that_cannot_be_read_leaves_its_window_as_it_is(tmp_path: Path) -> None:
    """Late records behind a restart find it damaged: they count as late, and the log is read to its end."""
    whole = f"sqlite:///{tmp_path / 'whole.db'}"
    kit.run_to_end(*kit.pipeline_for(kit.ledger_for(whole), kit.UNEVEN))
    url = f"sqlite:///{tmp_path / 'half.db'}"
    ledger = kit.ledger_for(url)
    ledger.commits_left, ledger.after = 6, True
    with contextlib.suppress(kit.Killed):
        kit.run_to_end(*kit.pipeline_for(ledger, kit.UNEVEN))
    ledger.engine.dispose()
    with contextlib.closing(sqlite3.connect(tmp_path / "half.db")) as connection:
        connection.execute("update window_sketches set sketch = x'0400'")
        connection.commit()
    with capture_logs() as said:
        kit.run_to_end(*kit.pipeline_for(kit.ledger_for(url), kit.UNEVEN))
    assert [line for line in said if line["event"] == "sketch_lost"]
    assert totals(url) == totals(whole)
