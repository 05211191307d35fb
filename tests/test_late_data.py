"""Late records amend windows and what was said of them: an alert is withdrawn, and what it said stays."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from playwright.sync_api import expect

from monitor.api.app import create_app
from monitor.api.server import serve_in_thread
from monitor.clock import rfc3339
from storage.engine import connect
from tests.daemons import rows, totals
from tests.dashboard_browser import Site, accessibility_violations, chromium
from tests.logs import MINUTE_MS, START_MS, records
from tests.test_cli import run
from tests.test_pipeline import ledger_for, pipeline_for, run_to_end

SERIES, HELD_UP, UNTIL = "m-small/svc-0", range(30, 32), 32
SILENT_SINCE = rfc3339(START_MS + HELD_UP.start * MINUTE_MS)


def story() -> Iterator[bytes]:
    """One service is silent for two minutes, as it seems: its records are held up and come a little later."""
    held: list[bytes] = []
    for record in records(services=2, minutes=60, per_minute=10, fault_at=None):
        _, _, minute, number = str(record["request_id"]).split("-")
        line = json.dumps({name: value for name, value in record.items() if value is not None}).encode()
        if record["endpoint"] == "svc-0" and int(minute) in HELD_UP:
            held.append(line)
            continue
        yield line
        if (int(minute), int(number)) == (UNTIL, 12):
            yield from held


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    database = f"sqlite:///{tmp_path_factory.mktemp('late') / 'late.db'}"
    ledger = ledger_for(database)
    run_to_end(*pipeline_for(ledger, list(story())))
    ledger.engine.dispose()
    assert totals(database)["late"] > 10
    return database


def test_windows_are_amended_and_the_incident_ends_as_withdrawn(url: str) -> None:
    windows = (
        "select window_start, request_count, is_anomalous, series from window_history where revision > 0"
    )
    amended = rows(url, windows)
    assert [row["window_start"] for row in amended] == [
        rfc3339(START_MS + minute * MINUTE_MS) for minute in HELD_UP
    ]
    assert all(row["request_count"] > 0 and not row["is_anomalous"] for row in amended)
    assert {row["series"] for row in amended} == {SERIES}
    (incident,) = rows(url, "select status, resolution from incident_history")
    assert incident == {"status": "resolved", "resolution": "withdrawn"}


def test_at_a_terminal(url: str) -> None:
    shown = run("incidents", "show", "1", "--database", url).stdout
    assert "withdrawn: late records made every window of it normal" in shown
    assert f"late records amended the window of {SILENT_SINCE}: revision 1" in shown
    steps = shown.partition("what it said, step by step\n")[2].splitlines()
    assert [line.split("\t")[1] for line in steps[1:3]] == ["fired", "withdrawn"]
    assert SERIES in steps[1], "what it said then"
    newest = json.loads(run("windows", SERIES, "--since", SILENT_SINCE, "--database", url, "--json").stdout)
    assert newest[0]["revision"] == 1


def test_in_a_browser(url: str) -> None:
    engine = connect(url)
    handle = serve_in_thread(create_app(engine, health=dict), "127.0.0.1", 0)
    try:
        with chromium() as browser:
            site = Site(browser, handle.url)
            with site.page("/?state=resolved", width=390) as page:
                page.locator(".card h3 a").click()
                expect(page.locator(".facts")).to_contain_text("withdrawn after late data")
                withdrawn = page.locator("details.alert", has_text="Withdrawn after late records")
                withdrawn.locator("summary").click()
                steps = withdrawn.locator(".steps li")
                expect(steps).to_have_count(2)
                expect(steps.first).to_contain_text(SERIES)
                expect(steps.last).to_contain_text("late records made every window of it normal")
                expect(withdrawn).to_contain_text("amended 2 windows")
                widths = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
                assert widths[0] <= widths[1] and accessibility_violations(page) == []
                withdrawn.get_by_role("link", name=SILENT_SINCE[:16].replace("T", " ")).click()
                before = json.loads(page.locator("body").inner_text())
                assert [(row["revision"], row["request_count"]) for row in before] == [(0, 0.0)]
            assert site.problems == []
    finally:
        handle.stop()
        engine.dispose()
