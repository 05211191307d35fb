"""No list of a large database is read whole: what SQLite says it would do for each of them.

PostgreSQL decides by statistics, and on tables this small always reads them whole; the indexes are the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import Engine, event

from storage import history, page_queries, queries, rollups, terminal
from storage.engine import connect, reading, upgrade
from storage.retention import purge

LARGE = {"windows", "window_hours", "incidents", "alerts", "deliveries", "incident_events", "incident_alerts",
         "rejects", "alert_transitions", "window_sketches", "window_revisions", "deployments"}  # fmt: skip
INCIDENT = "00000000-0000-5000-8000-000000000000"
AFTER = (1_772_409_600_000, INCIDENT)


def _scored(engine: Engine, *, series: str | None = None, **span: int | None) -> Iterator[Any]:
    return terminal.scored_series(
        engine, since_ms=span["since_ms"], until_ms=span["until_ms"], series=series, min_score=0.5
    )


QUESTIONS: dict[str, Callable[[Engine], Any]] = {
    "incidents": lambda e: queries.incidents(e),
    "incidents of a page": lambda e: queries.incidents(e, after=AFTER),
    "incidents of a status": lambda e: queries.incidents(e, status="resolved"),
    "incidents of a severity": lambda e: queries.incidents(e, severity="critical"),
    "incidents of a series": lambda e: queries.incidents(e, series="m/x"),
    "incidents of a model": lambda e: queries.incidents(e, model="m"),
    "incidents since, of a page": lambda e: queries.incidents(e, since_ms=1, after=AFTER),
    "incidents since": lambda e: queries.incidents(e, since_ms=1),
    "the newest incident": lambda e: queries.find_incident(e, "1"),
    "an incident": lambda e: queries.incident(e, INCIDENT),
    "earlier incidents": lambda e: queries.earlier(e, INCIDENT),
    "alerts": lambda e: queries.alerts(e),
    "alerts of a page": lambda e: queries.alerts(e, after=AFTER),
    "alerts of a series": lambda e: queries.alerts(e, series="m/x"),
    "alerts of a model": lambda e: queries.alerts(e, model="m"),
    "alerts of a status": lambda e: queries.alerts(e, status="firing"),
    "alerts of an incident": lambda e: queries.alerts(e, incident_id=INCIDENT),
    "alerts since": lambda e: queries.alerts(e, since_ms=1),
    "alerts since, of a page": lambda e: queries.alerts(e, since_ms=1, after=AFTER),
    "an alert": lambda e: history.alert(e, INCIDENT),
    "windows": lambda e: queries.windows(e, "m/x", since_ms=1, until_ms=9),
    "windows of a page": lambda e: queries.windows(e, "m/x", after=(5,)),
    "hours": lambda e: rollups.hours(e, "m/x", since_ms=1, until_ms=9),
    "scores": lambda e: list(_scored(e, since_ms=1, until_ms=9)),
    "scores of a series": lambda e: list(_scored(e, since_ms=None, until_ms=None, series="m/x")),
    "values of windows": lambda e: page_queries.measurements(e, "m/x", [], since_ms=1, until_ms=9),
    "revisions of a window": lambda e: queries.window_revisions(e, "m/x", 5),
    "deliveries": lambda e: queries.deliveries(e),
    "deliveries of a page": lambda e: queries.deliveries(e, after=(5, 1, INCIDENT)),
    "deliveries of a status": lambda e: queries.deliveries(e, status="dead"),
    "deliveries of a channel": lambda e: queries.deliveries(e, channel="c"),
    "deliveries of an incident": lambda e: queries.deliveries(e, incident_id=INCIDENT),
    "deliveries since": lambda e: queries.deliveries(e, since_ms=1),
    "numbers of deliveries": queries.delivery_totals,
    "rejected": lambda e: queries.rejected(e),
    "rejected of a page": lambda e: queries.rejected(e, after=(5,)),
    "rejected for a reason": lambda e: queries.rejected(e, reason="too_large"),
    "rejected since": lambda e: queries.rejected(e, since_ms=1),
    "deployments": lambda e: queries.deployments(e),
    "deployments of a page": lambda e: queries.deployments(e, after=(5, "m/x", "v1")),
    "deployments of a series": lambda e: queries.deployments(e, series="m/x"),
    "page of incidents": lambda e: page_queries.incident_page(e),
    "page of incidents far back": lambda e: page_queries.incident_page(e, offset=500),
    "page of incidents of a severity": lambda e: page_queries.incident_page(e, severity="minor"),
    "page of deliveries": lambda e: page_queries.delivery_page(e),
    "page of deliveries of a status": lambda e: page_queries.delivery_page(e, status="dead"),
    "overview of the terminal": terminal.overview,
    "newest window": terminal.newest_window,
    "events after": lambda e: history.events_after(e, 5, 100),
    "newest change": history.newest_change,
    "numbers of incidents": page_queries.incident_counts,
    "totals": queries.totals,
    "retention": lambda e: purge(e, now_ms=10**13, keep_windows_ms=1, keep_rejected_ms=1),
}  # fmt: skip
WALKS = {  # in the order of an index, and no further than the page: there is nothing to leave out
    "incidents": "incidents_newest", "the newest incident": "incidents_newest", "alerts": "alerts_newest",
    "deliveries": "deliveries_newest", "rejected": None, "deployments": "ix_deployments_at_ms",
    "page of deliveries": "deliveries_newest",
}  # fmt: skip
COUNTS = {
    "totals",
    "overview of the terminal",
    "numbers of incidents",
    "numbers of deliveries",
    "page of deliveries",
}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    engine = connect(f"sqlite:///{tmp_path_factory.mktemp('plans') / 'd.db'}")
    upgrade(engine)
    with engine.begin() as connection:  # a series, so that retention has something to ask about
        connection.exec_driver_sql(
            "insert into partitions (topic, partition, epoch, finished, records, accepted, rejected, late, "
            "duplicates, updated_at_ms) values ('t', 0, 0, false, 0, 0, 0, 0, 0, 0)"
        )
        connection.exec_driver_sql(
            "insert into series (name, model, endpoint, partition_id, first_seen_ms, last_record_ms, live, "
            "windows, last_window_start_ms) values ('m/x', 'm', 'x', 1, 0, 0, true, 0, 5)"
        )
        connection.exec_driver_sql(
            "insert into incidents (incident_id, group_key, status, severity, title, summary, started_at_ms, "
            "opened_at_ms, last_fired_at_ms, peak_score, series, firing, revision) values "
            f"('{INCIDENT}', 'm', 'open', 'major', 't', 's', 1, 1, 1, 0.5, '[\"m/x\"]', '[]', 1)"
        )
    yield engine
    engine.dispose()


def plans(engine: Engine, ask: Callable[[Engine], Any]) -> list[tuple[str, list[str]]]:
    """Every statement that a question sends, with SQLite's plan for it."""
    sent: list[tuple[str, Any]] = []

    def note(connection: Any, cursor: Any, statement: str, parameters: Any, context: Any, many: bool) -> None:
        if statement.lstrip()[:6].upper() in ("SELECT", "DELETE", "WITH R"):
            sent.append((statement, parameters))

    event.listen(engine, "before_cursor_execute", note)
    try:
        ask(engine)
    finally:
        event.remove(engine, "before_cursor_execute", note)
    with reading(engine) as connection:
        explained = (
            (statement, connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", given))
            for statement, given in sent
        )
        return [(statement, [row[3] for row in plan]) for statement, plan in explained]


@pytest.mark.parametrize("name", sorted(QUESTIONS))
def test_no_large_table_is_read_whole(engine: Engine, name: str) -> None:
    asked = plans(engine, QUESTIONS[name])
    assert asked
    for statement, steps in asked:
        named = {alias: of for of, alias in re.findall(r"\b(\w+) (?:AS )?(\w+)", statement) if of in LARGE}
        for step in steps:
            scan = re.match(r"SCAN (\w+)(?: USING (COVERING )?INDEX (\w+))?", step)
            if scan is None or named.get(scan[1], scan[1]) not in LARGE:
                continue
            counting = name in COUNTS and statement.lower().startswith("select") and "count(" in statement
            walking = name in WALKS and WALKS[name] == scan[3]
            assert walking or (counting and scan[2]), (statement, steps)
        sorted_whole = "USE TEMP B-TREE FOR ORDER BY" in steps and re.match(r"SCAN (\w+)", steps[0])
        assert not sorted_whole or sorted_whole[1] not in LARGE, (statement, steps)


def test_the_check_sees_a_scan(engine: Engine) -> None:
    """A list that nothing helps: looked for in texts."""
    asked = plans(engine, lambda e: page_queries.incident_page(e, text="latency"))
    assert asked
    with reading(engine) as connection:
        found = connection.exec_driver_sql("EXPLAIN QUERY PLAN select * from incidents where title = 'x'")
        assert [row[3] for row in found] == ["SCAN incidents"]
