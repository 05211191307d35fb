"""Engine, migrations, views, queries, people, models and retention, on both databases."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Engine, inspect, text

from detectors.types import FEATURES
from storage import queries
from storage.engine import connect, current_version, own_database, reading, upgrade
from storage.facts import Facts
from storage.migrations.run import known_versions
from storage.models import ModelRegistry
from storage.names import SCHEMA_VERSION
from storage.outbox import Outbox
from storage.people import People
from storage.retention import purge
from storage.rollups import HOUR_MS, roll_up
from storage.schema import Base
from storage.tokens import Identity, Tokens
from storage.types import (
    FEATURE_COLUMNS,
    DatabaseInUse,
    DatabaseUrlError,
    ModelVersionRow,
    OutboxRow,
    SchemaTooNew,
    UnknownIncident,
)
from storage.views import VIEWS
from tests.storage_kit import (
    MINUTE_MS,
    fired,
    full_commit,
    make_commit,
    make_ledger,
    make_series,
    make_windows,
)

DOCS = Path(__file__).parent.parent / "docs" / "database.md"
COLUMNS = {
    "window_history": f"series model endpoint window_start window_end {' '.join(FEATURES)} score gbdt_score "
    "lstm_score tail_probability is_anomalous revision metrics",
    "alert_history": "alert_id incident_id series window_start window_end score severity reason top_features",
    "incident_history": "incident_id status severity title series_count started_at opened_at acknowledged_at "
    "resolved_at resolution peak_score labels",
    "delivery_history": "delivery_id incident_id event channel status attempts first_attempt_at "
    "delivered_at last_error",
    "rejected_records": "topic partition offset reason received_at sample",
    "model_versions": "version detector trained_at metrics status",
    "incident_event_history": "incident_id revision at kind actor reason detail",
    "deployment_history": "series model_version deployed_at previous_version verdict basis compared_at "
    "requests summary differences",
    "silence_history": "silence_id matchers starts_at ends_at recurrence created_by created_at comment",
    "hour_history": f"series model endpoint hour_start windows anomalous_windows {' '.join(FEATURES)} score "
    "gbdt_score lstm_score tail_probability metrics",
}


@pytest.fixture
def sqlite(tmp_path: Path) -> Iterator[Engine]:
    engine = connect(f"sqlite:///{tmp_path / 'd.db'}")
    upgrade(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def postgres(postgres_database: str) -> Iterator[Engine]:
    engine = connect(postgres_database)
    upgrade(engine)
    yield engine
    engine.dispose()


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def engine(request: pytest.FixtureRequest) -> Engine:
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Engine)
    return found


def model(version: str, trained_at_ms: int, status: str = "champion") -> ModelVersionRow:
    return ModelVersionRow(
        version, "ensemble", trained_at_ms, status, {"ap": 0.8, "bad": float("nan")}, b"bytes", "00"
    )


def fill(engine: Engine) -> str:
    """A little of everything; returns the id of the one incident, which is resolved and labelled."""
    ledger = make_ledger(engine)
    claim = ledger.claim("logs", 0, now_ms=0)
    ledger.commit(full_commit(claim))
    outbox = Outbox(engine)
    (delivery,) = outbox.claim("me", 10_000_000, 1, 1_000)
    outbox.delivered(delivery.delivery_id, "me", 10_000_100)
    ModelRegistry(engine).add(model("m1", 3_600_000))
    (incident,) = queries.incidents(engine)
    people = People(engine)
    people.label(incident["incident_id"], "true_positive", by="ann", now_ms=99_000, comment='a "b"')
    weekly = {"days": ["tue"], "start": "22:00", "duration": "4h", "time_zone": "UTC"}
    span = {"starts_at_ms": 0, "ends_at_ms": 86_400_000}
    people.silence({"model": "chat"}, **span, by="ann", now_ms=1, comment="weekly", recurrence=weekly)
    return str(incident["incident_id"])


def read_view(engine: Engine, view: str) -> list[dict[str, Any]]:
    """Rows in one form for both databases."""

    def form(value: Any, name: str) -> Any:
        if isinstance(value, datetime):
            return value.astimezone().strftime("%s")
        if name.endswith("_at") or name in ("window_start", "window_end", "hour_start", "at"):
            return None if value is None else datetime.fromisoformat(value).strftime("%s")
        if name in ("labels", "top_features", "metrics", "detail", "matchers", "recurrence") and isinstance(
            value, str
        ):
            return json.loads(value)
        return bool(value) if name == "is_anomalous" else value

    with reading(engine) as connection:
        rows = connection.execute(text(f"SELECT * FROM {view}")).mappings().all()
    return sorted(({name: form(value, name) for name, value in row.items()} for row in rows), key=repr)


def test_feature_columns_are_the_published_vocabulary() -> None:
    assert FEATURE_COLUMNS == FEATURES


def test_views_have_the_promised_columns_in_order(engine: Engine) -> None:
    assert set(COLUMNS) == set(VIEWS)
    for view, columns in COLUMNS.items():
        assert [c["name"] for c in inspect(engine).get_columns(view)] == columns.split()
        section = DOCS.read_text().split(f"\n## {view}\n")[1].split("\n## ")[0]
        assert set(columns.split()) <= set(re.findall(r"`([a-z0-9_]+)`", section)), f"{view} in docs"


@pytest.mark.postgres
def test_views_say_the_same_on_both_databases(sqlite: Engine, postgres: Engine) -> None:
    assert fill(sqlite) == fill(postgres)
    for each in (sqlite, postgres):
        assert roll_up(each, horizon_ms=-HOUR_MS) > 0, "even the hour that goes on"
    for view in VIEWS:
        names = ("silence_id",)  # of chance
        mine, theirs = (
            [{k: v for k, v in row.items() if k not in names} for row in read_view(each, view)]
            for each in (sqlite, postgres)
        )
        assert mine == theirs and mine
    (label,) = read_view(sqlite, "incident_history")[0]["labels"]
    assert label == {"label": "true_positive", "by": "ann", "at": "1970-01-01T00:01:39Z", "comment": 'a "b"'}
    assert read_view(sqlite, "window_history")[0]["metrics"] in ({"queue_depth": 3.0}, None)


def test_sqlite_times_are_rfc_3339(sqlite: Engine) -> None:
    fill(sqlite)
    with reading(sqlite) as connection:
        times = connection.execute(
            text("SELECT DISTINCT window_start FROM window_history ORDER BY 1")
        ).scalars()
        assert list(times) == ["1970-01-01T00:00:00Z", "1970-01-01T00:01:00Z"]


def test_the_queries_of_the_docs_run(engine: Engine) -> None:
    fill(engine)
    found = re.findall(r"```sql ?(\w*)\n(.*?)```", DOCS.read_text(), re.S)
    mine = [query for dialect, query in found if dialect in ("", engine.dialect.name)]
    assert len(mine) == 10
    with reading(engine) as connection:
        answers = [connection.exec_driver_sql(query.strip().rstrip(";")).all() for query in mine]
    assert [bool(rows) for rows in answers] == [
        False,
        False,
        False,
        True,
        True,
        True,
        False,
        True,
        True,
        True,
    ]
    assert tuple(answers[-1][0]) == ("latency_p99_ms", 1)


def test_migrations_lead_from_nothing_to_the_schema(engine: Engine) -> None:
    assert current_version(engine) == SCHEMA_VERSION and SCHEMA_VERSION in known_versions()
    upgrade(engine)
    with engine.connect() as connection:
        differences = compare_metadata(MigrationContext.configure(connection), Base.metadata)
    if engine.dialect.name == "sqlite":  # cannot drop a key without writing the whole table anew
        kept = [found for found in differences if found[0] == "remove_fk"]
        assert {found[1].table.name for found in kept} == {"windows", "window_sketches"}
        differences = [found for found in differences if found not in kept]
    assert differences == []


def test_an_empty_and_a_newer_database_are_told(tmp_path: Path) -> None:
    engine = connect(f"sqlite:///{tmp_path / 'n.db'}")
    assert current_version(engine) is None
    upgrade(engine)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(SchemaTooNew, match="9999"):
        upgrade(engine)
    engine.dispose()


@pytest.mark.parametrize("url", ["nonsense", "mysql://h/d", "sqlite://", "sqlite:///:memory:"])
def test_a_url_that_cannot_work_says_what_to_write(url: str) -> None:
    with pytest.raises(DatabaseUrlError, match="sqlite:///"):
        connect(url)


def test_one_daemon_per_sqlite_file(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'lock.db'}"
    code = f"import os, time\nfrom storage.engine import own_database\nwith own_database({url!r}):\n"
    code += "    print(os.getpid(), flush=True)\n    time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        pid = holder.stdout.readline().strip()
        with pytest.raises(DatabaseInUse, match=f"process {pid}"), own_database(url):
            pass
        holder.kill()
    with own_database(url), own_database("postgresql://h/d"):
        pass


def test_reading_loads_no_heavy_library(sqlite: Engine) -> None:
    code = (
        "import sys\nfrom storage import queries\nfrom storage.engine import connect, upgrade\n"
        f"engine = connect({str(sqlite.url)!r})\nupgrade(engine)\nassert queries.incidents(engine) == []\n"
        "heavy = {'torch', 'pandas', 'numba', 'lightgbm', 'alembic', 'psycopg'} & set(sys.modules)\n"
        "assert not heavy, heavy\nengine.dispose()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_people_leave_events_and_notifications(engine: Engine) -> None:
    ledger = make_ledger(engine)
    claim = ledger.claim("logs", 0, now_ms=0)
    ledger.commit(
        make_commit(claim, None, 5, series=[make_series("chat/a")], transitions=[fired("chat/a", 0)])
    )
    (incident_id,) = (row["incident_id"] for row in queries.incidents(engine, status="open"))
    told: list[str] = []

    def notify(incident: Any, event: Any) -> list[OutboxRow]:
        told.append(event.kind)
        name = f"{event.kind}-{event.revision}"
        return [OutboxRow(name, incident.incident_id, event.revision, "incident.updated", "hook", "{}", 0)]

    people = People(engine, notify)
    assert people.acknowledge(incident_id, by="ann", now_ms=7, reason="mine").status == "acknowledged"
    people.acknowledge(incident_id, by="bob", now_ms=8)
    people.note(incident_id, "looking", by="ann", now_ms=9)
    people.label(incident_id, "false_positive", by="ann", now_ms=10)
    done = people.resolve(incident_id, by="ann", now_ms=11)
    assert (done.status, done.resolution, done.firing) == ("resolved", "by_person", [])
    found = queries.incident(engine, queries.find_incident(engine, incident_id[:8]))
    kinds = [event["kind"] for event in found["events"]]
    assert kinds == ["opened", "acknowledged", "noted", "labelled", "resolved"] and told == kinds[1:]
    assert [event["revision"] for event in found["events"]] == [1, 2, 3, 4, 5]
    assert len(found["deliveries"]) == 5 and found["notes"][0]["note"] == "looking"
    assert found["labels"][0]["label"] == "false_positive" and found["alerts"][0]["top_features"]
    silence = people.silence({"model": "chat"}, starts_at_ms=0, ends_at_ms=9, by="ann", now_ms=1)
    assert people.end_silence(silence.silence_id, 5) and not people.end_silence(silence.silence_id, 6)
    assert queries.silences(engine)[0]["matchers"] == {"model": "chat"}
    with pytest.raises(UnknownIncident):
        people.note("nothing", "x", by="ann", now_ms=1)
    for reference in ("", "nothing", "99", "%"):
        with pytest.raises(UnknownIncident):
            queries.find_incident(engine, reference)


def test_one_champion_promoted_refused_and_rolled_back(engine: Engine) -> None:
    registry = ModelRegistry(engine)
    assert registry.champion() is None and registry.rollback() is None and not registry.is_decided(1)
    assert registry.add(model("m1", 1)) and registry.is_decided(1)
    assert not registry.add(model("other", 1)), "a training is decided once"
    assert registry.add(model("m2", 2, "refused")) and registry.champion() == "m1"
    assert registry.add(model("m3", 3)) and registry.champion() == "m3"
    assert registry.record_failure(4, "died") and not registry.record_failure(4, "again")
    assert registry.champion_artifact() == b"bytes" and registry.artifact("none") is None
    assert registry.rollback() == "m1" and registry.champion() == "m1"
    assert registry.rollback() is None and registry.champion() is None
    assert registry.promote("m2") and registry.champion() == "m2" and not registry.promote("none")


def test_the_first_one_to_state_a_fact_is_right(engine: Engine) -> None:
    facts, others = Facts(engine), Facts(engine)
    assert facts.recall("k") is None
    assert facts.remember("k", "first") == "first" == others.remember("k", "second") == others.recall("k")


def test_training_reads_the_newest_windows_and_what_people_said(engine: Engine) -> None:
    ledger, names = make_ledger(engine), ["m/a", "m/b"]
    claim = ledger.claim("logs", 0, now_ms=0)
    windows = [make_windows(i * MINUTE_MS, names if i < 3 else ["m/a"]) for i in range(10)]
    ledger.commit(
        make_commit(
            claim,
            None,
            12,
            windows=windows,
            series=[make_series(n) for n in names],
            transitions=[fired("m/a", 0)],
        )
    )
    registry = ModelRegistry(engine)
    assert registry.newest_window_end_ms() == 10 * MINUTE_MS
    everything = registry.training_set(since_ms=0, until_ms=10 * MINUTE_MS, max_windows=100)
    assert {name: len(h.statistics) for name, h in everything.series.items()} == {"m/a": 10, "m/b": 3}
    assert everything.excluded == {"m/a": [(0, MINUTE_MS)]} and everything.labels == []
    few = registry.training_set(since_ms=0, until_ms=9 * MINUTE_MS, max_windows=7)
    assert few.series["m/a"].window_start_ms.tolist() == [i * MINUTE_MS for i in range(5, 9)]
    assert len(few.series["m/b"].statistics) == 3
    (incident,) = queries.incidents(engine)
    People(engine).label(incident["incident_id"], "false_positive", by="ann", now_ms=1)
    judged = registry.training_set(since_ms=0, until_ms=10 * MINUTE_MS, max_windows=100)
    assert judged.excluded == {} and judged.labels[0].label == "false_positive"
    long = registry.training_set(since_ms=0, until_ms=10 * MINUTE_MS, max_windows=7, least_windows=5)
    assert {name: len(h.statistics) for name, h in long.series.items()} == {"m/a": 7}, (
        "the labelled one first"
    )


def test_retention_counts_windows_in_event_time(engine: Engine) -> None:
    fill(engine)
    tokens = Tokens(engine)
    for lifetime_ms in (10**10, 10**13):
        tokens.open_session(Identity("ann", "read"), 0, lifetime_ms)
    keep = {"keep_windows_ms": 10 * MINUTE_MS, "keep_rejected_ms": 10**9}
    assert sum(purge(engine, now_ms=10**9, **keep).values()) == 0
    ledger = make_ledger(engine)
    claim = ledger.claim("logs", 0, now_ms=0)
    ledger.commit(make_commit(claim, 10, 12, windows=[make_windows(11 * MINUTE_MS, ["chat/a"])]))
    done = purge(engine, now_ms=10**12, **keep)
    assert (done["windows"], done["window_revisions"], done["rejected"], done["deliveries"]) == (2, 1, 1, 1)
    assert (done["deployments"], done["sessions"]) == (1, 1)
    assert len(queries.windows(engine, "chat/a")) == 2 and queries.incidents(engine)


def test_threads_that_write_without_a_break_do_not_keep_one_waiting_that_writes_seldom(
    tmp_path: Path,
) -> None:
    """Deliveries that fail again and again are written beside the commits of what is read."""
    engine, stop = connect(f"sqlite:///{tmp_path / 'busy.db'}"), threading.Event()
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE written (n INTEGER)"))

    def write(hold_s: float) -> float:
        since_s = time.monotonic()
        with engine.begin() as connection:
            waited_s = time.monotonic() - since_s
            connection.execute(text("INSERT INTO written VALUES (1)"))
            time.sleep(hold_s)
        return waited_s

    def write_on() -> None:
        while not stop.is_set():
            write(0.005)

    others = [threading.Thread(target=write_on) for _ in range(8)]
    for other in others:
        other.start()
    try:
        waited_s = []
        for _ in range(30):
            time.sleep(0.02)
            waited_s.append(write(0.0))
    finally:
        stop.set()
        for other in others:
            other.join()
        engine.dispose()
    assert max(waited_s) < 2.0, waited_s
