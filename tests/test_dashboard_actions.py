"""What a person does on the pages reaches the database, and what others do reaches the pages."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Browser, Page, expect
from sqlalchemy import Engine

from monitor.api.app import create_app
from monitor.api.server import ServerHandle, serve_in_thread
from monitor.config import Settings
from monitor.people import people
from storage import queries
from storage.engine import connect
from tests.dashboard_browser import Site, accessibility_violations, chromium, painted
from tests.dashboard_site import EMBED, HOSTILE, LARGE, RANK, incident_of, populate


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ServerHandle, Engine]]:
    """A server over a filled database that the tests of this module change, each another part of it."""
    url = f"sqlite:///{tmp_path_factory.mktemp('actions') / 'site.db'}"
    populate(url, int(time.time() * 1000), hostile=True)
    engine = connect(url)
    app = create_app(engine, health=dict)
    handle = serve_in_thread(app, "127.0.0.1", 0)
    yield handle, engine
    handle.stop()
    engine.dispose()


@pytest.fixture
def engine(served: tuple[ServerHandle, Engine]) -> Engine:
    return served[1]


@pytest.fixture
def site(browser: Browser, served: tuple[ServerHandle, Engine]) -> Iterator[Site]:
    opened = Site(browser, served[0].url)
    yield opened
    assert opened.problems == []


def dialog(page: Page, button: str) -> Callable[[str], None]:
    """Open a dialog of the page; the answer presses a button in it."""
    page.get_by_role("button", name=button, exact=True).first.click()

    def confirm(name: str) -> None:
        page.locator("dialog[open]").get_by_role("button", name=name, exact=True).click()
        expect(page.locator("dialog[open]")).to_have_count(0)

    return confirm


def test_an_incident_is_acknowledged_noted_labelled_and_resolved(site: Site, engine: Engine) -> None:
    incident_id = incident_of(engine, LARGE, "open")
    with site.page(f"/incidents/{incident_id}") as page:
        confirm = dialog(page, "Acknowledge")
        page.locator("dialog[open]").get_by_label("Comment").fill("rolling back v7")
        confirm("Acknowledge")
        expect(page.locator("#said")).to_have_text("Acknowledged.")
        expect(page.locator(".facts")).to_contain_text("rolling back v7")
        expect(page.locator("#head .tag", has_text="acknowledged")).to_be_visible()
        assert min(painted(page)) > 2_000  # the charts were drawn anew

        confirm = dialog(page, "Note")
        page.locator("dialog[open]").get_by_label("Note").fill("<b>first</b>\nsecond")
        confirm("Save")
        expect(page.locator("#timeline")).to_contain_text("<b>first</b>")

        confirm = dialog(page, "Label")
        page.locator("dialog[open]").get_by_label("a false alarm").check()
        confirm("Save")
        expect(page.locator("#head .tag", has_text="false alarm")).to_be_visible()

        page.get_by_role("button", name="Resolve", exact=True).first.click()
        box = page.locator("dialog[open]")
        box.get_by_label("What was it?").fill("v7 is gone")
        box.get_by_role("button", name="Resolve", exact=True).click()
        expect(page.locator("#head .tag", has_text="resolved")).to_be_visible()

        page.get_by_role("button", name="Reopen", exact=True).first.click()
        box = page.locator("dialog[open]")
        box.get_by_label("Why?").fill("v7 came back")
        box.get_by_role("button", name="Reopen", exact=True).click()
        expect(page.locator("#head .tag", has_text="open")).to_be_visible()
        page.get_by_role("button", name="Resolve", exact=True).first.click()
        box = page.locator("dialog[open]")
        box.get_by_label("What was it?").fill("v7 is gone")
        box.get_by_role("button", name="Resolve", exact=True).click()
        expect(page.locator("#head .tag", has_text="resolved")).to_be_visible()
    found = queries.incident(engine, incident_id)
    assert [e["reason"] for e in found["events"] if e["kind"] == "reopened"] == ["v7 came back"]
    assert (found["status"], found["resolution"]) == ("resolved", "by_person")
    assert found["labels"][-1]["label"] == "false_positive"
    assert [n["note"] for n in found["notes"]] == ["<b>first</b>\nsecond"]
    reasons = {e["kind"]: e["reason"] for e in found["events"]}
    assert reasons["acknowledged"] == "rolling back v7" and reasons["resolved"] == "v7 is gone"


def test_a_refusal_is_said_where_it_happened(browser: Browser, served: tuple[ServerHandle, Engine]) -> None:
    handle, engine = served
    site = Site(browser, handle.url)
    with site.page(f"/incidents/{incident_of(engine, EMBED)}") as page:
        page.route(
            "**/api/v1/incidents/*/resolve",
            lambda route: route.fulfill(
                status=409,
                content_type="application/problem+json",
                body='{"title": "Conflict", "detail": "somebody else was faster"}',
            ),
        )
        page.get_by_role("button", name="Resolve", exact=True).first.click()
        box = page.locator("dialog[open]")
        box.get_by_role("button", name="Resolve", exact=True).click()
        expect(box.get_by_role("alert")).to_have_text("somebody else was faster")
        expect(box.get_by_role("button", name="Resolve", exact=True)).to_be_enabled()
        page.unroute("**/api/v1/incidents/*/resolve")
        page.route("**/api/v1/incidents/*/resolve", lambda route: route.abort())
        box.get_by_role("button", name="Resolve", exact=True).click()
        expect(box.get_by_role("alert")).to_have_text("Inferwatch does not answer.")
    assert all(p.startswith("console: Failed to load resource") for p in site.problems)
    assert queries.incident(engine, incident_of(engine, EMBED))["status"] == "acknowledged"


def test_a_silence_is_made_from_an_incident_with_the_exact_name_and_ended(site: Site, engine: Engine) -> None:
    with site.page(f"/incidents/{incident_of(engine, HOSTILE)}") as page:
        confirm = dialog(page, "Silence")
        page.locator("dialog[open]").get_by_label("For how long").select_option("8h")
        page.locator("dialog[open]").get_by_label("Why").fill("known")
        confirm("Silence")
        expect(page.locator("#said")).to_have_text("Silenced.")
    mine = next(row for row in queries.silences(engine) if row["comment"] == "known")
    assert mine["matchers"] == {"series": HOSTILE}
    assert (mine["ends_at"] - mine["starts_at"]).total_seconds() == 8 * 3600
    with site.page("/silences") as page:
        row = page.locator(".plainlist > li", has_text="known")
        row.get_by_role("button", name="End now").click()
        expect(page.locator("h2", has_text="Over")).to_be_visible()
        page.get_by_label("What").select_option("tenant")
        page.get_by_label("is exactly").fill("acme")
        page.get_by_label("For", exact=True).fill("soon")
        page.get_by_label("Why").fill("their load test")
        page.get_by_role("button", name="Silence", exact=True).click()
        assert page.get_by_label("For", exact=True).evaluate("e => e.validity.patternMismatch")
        page.get_by_label("For", exact=True).fill("90m")
        page.get_by_role("button", name="Silence", exact=True).click()
        expect(page.locator(".plainlist > li", has_text="tenant acme")).to_be_visible()
        expect(page.get_by_label("is exactly")).to_have_value("")


def test_weekly_maintenance_is_made_and_says_when_it_holds(site: Site, engine: Engine) -> None:
    with site.page("/silences", width=390) as page:
        page.get_by_label("is exactly").fill(RANK)
        page.get_by_label("For", exact=True).fill("4h")
        page.get_by_label("Why").fill("patch night")
        page.get_by_text("It comes back").click()
        for day in ("Tue", "Thu"):
            page.get_by_label(day, exact=True).check()
        page.get_by_label("Time zone").fill("Middle/Earth")
        page.get_by_role("button", name="Silence", exact=True).click()
        expect(page.locator("#add .problem")).to_contain_text("is no time zone")
        page.get_by_label("Time zone").fill("Europe/Berlin")
        assert accessibility_violations(page) == []
        page.get_by_role("button", name="Silence", exact=True).click()
        row = page.locator("#live li", has_text="patch night")
        expect(row).to_contain_text("Only tue, thu at 22:00 for 4h, Europe/Berlin")
        expect(row).to_contain_text("for good")
        assert "9999" not in page.locator("#live").inner_text()
        widths = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
        assert widths[0] <= widths[1]
    (refused,) = site.problems
    assert "status of 422" in refused, "the browser says it too"
    site.problems.clear()
    mine = next(row for row in queries.silences(engine) if row["comment"] == "patch night")
    assert mine["matchers"] == {"series": RANK} and mine["recurrence"]["duration"] == "14400s"


def test_a_failed_notification_is_sent_again(site: Site, engine: Engine) -> None:
    with site.page("/deliveries?status=dead") as page:
        page.get_by_role("button", name="Send again").click()
        expect(page.get_by_text("Nothing matches")).to_be_visible()
    assert queries.deliveries(engine, status="dead") == []
    assert len(queries.deliveries(engine, status="pending")) >= 1


def test_a_model_is_promoted_and_rolled_back(site: Site, engine: Engine) -> None:
    with site.page("/models") as page:
        page.locator("article", has_text="41b0c9d2e6f8").get_by_role("button", name="Promote").click()
        page.locator("dialog[open]").get_by_role("button", name="Promote").click()
        expect(page.locator(".lead")).to_contain_text("41b0c9d2e6f8 is in force")
        page.get_by_role("button", name="Roll back").first.click()
        page.locator("dialog[open]").get_by_role("button", name="Roll back").click()
        expect(page.locator(".lead")).to_contain_text("9f2c41d07a55 is in force")
    champion = next(row for row in queries.models(engine) if row["status"] == "champion")
    assert champion["version"] == "9f2c41d07a55"


def test_what_others_do_appears_without_a_reload_and_keeps_the_place(site: Site, engine: Engine) -> None:
    incident_id = incident_of(engine, HOSTILE)
    with site.page("/?state=open") as page:
        card = page.locator(".card", has=page.locator(f"[id='i-{incident_id}']"))
        card.locator("a").focus()
        page.evaluate("window.same = true")
        by = people(engine, Settings())
        by.label(incident_id, "false_positive", by="jo", now_ms=int(time.time() * 1000), comment="")
        expect(card.locator(".tag", has_text="false alarm")).to_be_visible()
        expect(card.locator("a")).to_be_focused()
        by.acknowledge(incident_id, by="jo", now_ms=int(time.time() * 1000))
        expect(card).to_have_count(0)
        assert page.evaluate("window.same")


def test_a_server_that_is_gone_is_said_and_forgotten_when_it_is_back(
    browser: Browser, served: tuple[ServerHandle, Engine]
) -> None:
    site = Site(browser, served[0].url)
    with site.page("/") as page:
        expect(page.locator("#offline")).to_be_hidden()
        page.context.set_offline(True)
        page.evaluate("htmx.trigger(document.body, 'changed')")
        expect(page.locator("#offline")).to_be_visible()
        page.context.set_offline(False)
        page.evaluate("htmx.trigger(document.body, 'changed')")
        expect(page.locator("#offline")).to_be_hidden()
    assert all("ERR_INTERNET_DISCONNECTED" in p or re.search("console: htmx", p) for p in site.problems)
