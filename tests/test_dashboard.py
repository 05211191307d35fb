"""The questions of a person on call, asked of the pages in a real browser."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

import pytest
from playwright.sync_api import Browser, Page, expect
from sqlalchemy import Engine

from monitor.api.app import create_app
from monitor.api.dashboard.budget import budget
from monitor.api.server import serve_in_thread
from monitor.config import DetectionSettings
from storage.engine import connect
from tests.dashboard_browser import Site, accessibility_violations, chromium, painted
from tests.dashboard_site import EMBED, FRESH, HOSTILE, LARGE, SUPPORT, Story, incident_of, populate

ROOT = Path(__file__).parent.parent
PATHS = ("/", "/series", "/models", "/sources", "/silences", "/deliveries", "/budget?other=20&reach=30d")
HEALTH = {"partitions": {"inference-logs/0": {"end_offset": 412_400, "stalled": True}}}
SHOWN_HOSTILE = r"<script>alert(1)</script>\u202egpj\x1b[31m/x"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Engine, Story]]:
    """Address, engine and story of a server over a filled database; nobody changes it."""
    url = f"sqlite:///{tmp_path_factory.mktemp('dashboard') / 'site.db'}"
    story = populate(url, int(time.time() * 1000), hostile=True)
    engine = connect(url)
    app = create_app(engine, health=lambda: HEALTH)
    handle = serve_in_thread(app, "127.0.0.1", 0)
    yield handle.url, engine, story
    handle.stop()
    engine.dispose()


@pytest.fixture
def site(browser: Browser, served: tuple[str, Engine, Story]) -> Iterator[Site]:
    opened = Site(browser, served[0])
    yield opened
    assert opened.problems == []


@pytest.fixture
def story(served: tuple[str, Engine, Story]) -> Story:
    return served[2]


@pytest.fixture
def large(served: tuple[str, Engine, Story]) -> str:
    """Path of the page of the incident that is worst and not acknowledged."""
    return f"/incidents/{incident_of(served[1], LARGE, 'open')}"


def minute(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M")


def fact(page: Page, name: str) -> str:
    return page.locator(".facts div", has=page.locator("dt", has_text=re.compile(f"^{name}$"))).inner_text()


def arrived(page: Page, heading: str) -> None:
    """Wait until a page that was asked for is there, its scripts included."""
    expect(page.locator("h1")).to_have_text(heading)
    page.wait_for_load_state("load")


# ------------------------------------------------------------------ questions


def test_what_is_broken_now_the_worst_first(site: Site) -> None:
    with site.page("/") as page:
        expect(page.locator("h1")).to_have_text("3 incidents going on")
        titles = page.locator(".card h3").all_inner_texts()
        assert titles[0] == f"High p99 latency on {LARGE}"
        assert [t.rpartition(" ")[2] for t in titles[2:]] == [EMBED, SUPPORT, LARGE]
        first = page.locator(".card").first
        assert "critical" in first.inner_text() and "usually 4.1 to 6.2 s at this hour" in first.inner_text()
        picture = first.locator("svg.spark")
        expect(picture).to_have_attribute("aria-label", "p99 latency: 15.4 s, usually 4.1 s to 6.2 s")


def test_since_when(site: Site, story: Story, large: str) -> None:
    with site.page("/") as page:
        assert f"since {minute(story.broken_since_ms)}" in page.locator(".card").first.inner_text()
    with site.page(large) as page:
        told = re.search(r"\((\d+) min ago\)", fact(page, "Since"))
        assert (
            told is not None and 38 <= int(told[1]) <= (time.time() * 1000 - story.broken_since_ms) / 60_000
        )
        expect(page.locator(".facts time").first).to_have_attribute(
            "datetime", minute(story.broken_since_ms).replace(" ", "T") + ":00Z"
        )


def test_how_sure_are_we_and_why(site: Site, large: str) -> None:
    with site.page(large) as page:
        assert "once in 11 months" in fact(page, "How sure")
        row = page.locator("details.alert tbody tr").first
        assert row.locator("td").all_inner_texts()[1:4] == ["15.4 s", "5.05 s", "4.1 s to 6.2 s"]
        assert page.locator(".chart figcaption strong").all_inner_texts() == [
            "p99 latency",
            "p95 time to first token",
            "median latency",
        ]
        expect(page.locator(".plot canvas")).to_have_count(3)
        assert min(painted(page)) > 2_000
        assert page.locator(".chips code").all_inner_texts() == ["req-7f31a0", "req-7f31c4", "req-7f32e9"]
        legend = page.locator(".legend").inner_text()
        assert "as the alert says" in legend and "the day before" in legend


def test_which_version_or_tenant(site: Site, large: str) -> None:
    with site.page(large) as page:
        where = fact(page, "Where")
        assert "version v7 (94%)" in where and "tenant acme (61%)" in where
        slices = page.locator(".slices li").all_inner_texts()
        assert "94% of the excess latency, 20% of the traffic" in slices[0]


def test_did_anyone_see_it(site: Site, served: tuple[str, Engine, Story], large: str) -> None:
    with site.page(large) as page:
        assert "nobody yet" in fact(page, "Seen by")
    with site.page(f"/incidents/{incident_of(served[1], EMBED)}") as page:
        assert "mira: looks like the leak of #418" in fact(page, "Seen by")
        timeline = page.locator(".timeline").inner_text()
        assert "Acknowledged by mira" in timeline
        assert "Restarted one of four replicas.\nIts memory is back at 6.9 GB." in timeline
        expect(page.get_by_role("button", name="Acknowledge")).to_have_count(0)


def test_was_the_webhook_delivered(site: Site, large: str) -> None:
    with site.page(large) as page:
        assert "1 of 2 notifications failed" in fact(page, "Told")
        rows = page.locator("#deliveries li").all_inner_texts()
        assert any("delivered" in r and "oncall" in r for r in rows)
        assert any("failed" in r and "pager" in r and "HTTP 500" in r for r in rows)
    with site.page("/deliveries?status=dead") as page:
        expect(page.locator(".plainlist > li")).to_have_count(1)
        page.locator(".plainlist a").click()
        expect(page).to_have_url(re.compile(re.escape(large)))


def test_has_it_happened_before(site: Site, large: str) -> None:
    with site.page(large) as page:
        assert "1 similar incident" in fact(page, "Before")
        before = page.locator("#similar li")
        expect(before).to_have_count(1)
        text = before.inner_text()
        assert "real problem" in text and "rollout of v6 without warm-up" in text and "over after" in text
        assert "alike: median latency, p99 latency, p95 time to first token" in text
        before.locator("a").click()
        expect(page.locator(".tag", has_text="resolved").first).to_be_visible()
        assert "version v6 (94%)" in fact(page, "Where")


# ---------------------------------------------------------------- other pages


def test_what_would_have_fired_with_another_budget(site: Site, served: tuple[str, Engine, Story]) -> None:
    engine, detection = served[1], DetectionSettings()
    asked = budget(engine, detection, other=50.0, reach="30d", series="")
    with site.page("/models") as page:
        page.get_by_role("link", name="another false-alarm budget").click()
        arrived(page, "What another budget would have found")
        page.get_by_label("False alarms per series and week").fill("50")
        page.get_by_label("In the newest").select_option("30d")
        page.get_by_role("button", name="Ask").click()
        expect(page.locator("tbody tr")).to_have_count(len(asked["judged"]))
        rows = page.locator("tbody tr").all_inner_texts()
        told = [[cell.strip() for cell in row.split("\t")] for row in rows]
        assert [row[1:] for row in told] == [
            [str(len(one.episodes)), str(one.windows)] for one in asked["judged"]
        ]
        assert told[0][0] == "1 (configured)" and told[1][0] == "50"
        expect(page.locator("section[aria-labelledby=more-title] li")).to_have_count(len(asked["more"]))
    configured, other = asked["judged"]
    assert other.windows >= configured.windows


def test_a_series_shows_its_features_its_scores_and_its_alerts(site: Site) -> None:
    with site.page("/series") as page:
        page.get_by_role("link", name=LARGE).click()
        expect(page.locator("h1")).to_have_text(LARGE)
        names = page.locator(".chart figcaption strong").all_inner_texts()
        assert names[:2] == ["score", "rarity"] and {"request count", "p99 latency"} <= set(names)
        assert "accuracy" not in names
        assert min(painted(page)) > 500
        expect(page.locator("section", has_text="Alerts").locator("li a")).to_have_count(2)
        page.get_by_role("link", name="3h", exact=True).click()
        expect(page.get_by_role("link", name="3h", exact=True)).to_have_attribute("aria-current", "true")
    with site.page("/series/rank%2Fsearch") as page:
        assert {"accuracy", "cache_hit"} <= set(page.locator(".chart figcaption strong").all_inner_texts())


def test_what_is_being_learned_says_how_far_it_is(site: Site) -> None:
    for path in ("/", "/series?state=learning", f"/series/{quote(FRESH, safe='')}"):
        with site.page(path) as page:
            expect(page.get_by_text("learning 40 of 200 windows").first).to_be_visible()


def test_models_show_what_was_measured_and_the_training_curve(site: Site) -> None:
    with site.page("/models") as page:
        expect(page.locator(".lead")).to_contain_text("9f2c41d07a55 is in force")
        expect(page.locator("article")).to_have_count(3)
        refused = page.locator("article", has_text="c07d5e11ab34")
        assert "refused" in refused.inner_text() and "changes by -0.013" in refused.inner_text()
        assert len(painted(page)) == 3 and min(painted(page)) > 300


def test_sources_show_offsets_rejects_with_their_reasons_and_late_records(site: Site) -> None:
    with site.page("/sources") as page:
        partition = page.locator("tbody tr").first.inner_text()
        assert "inference-logs/0 stalled" in partition and "412,345" in partition
        assert page.locator("tbody td[data-label=lag]").all_inner_texts()[:2] == ["55", "-"]
        reasons = page.locator("table").nth(1).locator("tbody tr").all_inner_texts()
        assert "not json" in reasons[0] and "<html>" in reasons[0] and "missing model" in reasons[1]
        expect(page.get_by_text("12 records came after their window had closed")).to_be_visible()


def test_names_from_the_log_are_text_and_nothing_else(site: Site, served: tuple[str, Engine, Story]) -> None:
    with site.page(f"/incidents/{incident_of(served[1], HOSTILE)}") as page:
        expect(page.locator("h1")).to_have_text(f"High p99 latency on {SHOWN_HOSTILE}")
        assert "\u202e" not in page.content() and "\x1b" not in page.content()
        page.locator("details.alert a").first.click()
        expect(page.locator("h1")).to_have_text(SHOWN_HOSTILE)
    with site.page("/series") as page:
        page.get_by_role("link", name=SHOWN_HOSTILE).click()
        expect(page.locator("h1")).to_have_text(SHOWN_HOSTILE)


# --------------------------------------------------------------- for everyone


def test_search_and_filters_narrow_the_list_and_can_be_bookmarked(site: Site) -> None:
    with site.page("/") as page:
        page.get_by_label("Search").fill("memory embed")
        expect(page.locator(".card")).to_have_count(1)
        expect(page).to_have_url(re.compile(r"q=memory"))
        page.get_by_label("Search").fill("100%_nothing")
        expect(page.get_by_text("Nothing matches")).to_be_visible()
        page.get_by_label("Search").fill("")
        page.get_by_label("State").select_option("resolved")
        expect(page.locator(".card")).to_have_count(2)
        page.reload()
        expect(page.locator(".card")).to_have_count(2)


def test_without_scripts_the_pages_still_answer(site: Site, large: str) -> None:
    with site.page("/", java_script_enabled=False) as page:
        page.get_by_label("Search").fill("memory")
        page.get_by_role("button", name="Filter").click()
        expect(page.locator(".card")).to_have_count(1)
        page.goto(site.url + large)
        assert "once in 11 months" in fact(page, "How sure")


def test_everything_can_be_reached_with_the_keyboard(site: Site) -> None:
    with site.page("/") as page:
        page.keyboard.press("j")
        page.keyboard.press("j")
        page.keyboard.press("k")
        card = page.locator(".card").first
        expect(card.locator("a")).to_be_focused()
        assert card.evaluate("e => getComputedStyle(e).outlineStyle") == "solid"
        page.keyboard.press("Enter")
        arrived(page, f"High p99 latency on {LARGE}")
        page.keyboard.press("a")
        expect(page.get_by_role("dialog", name="Acknowledge")).to_be_visible()
        page.keyboard.press("Escape")
        expect(page.get_by_role("dialog")).to_have_count(0)
        page.wait_for_function("!document.querySelector('dialog[open]')")
        page.keyboard.press("u")
        arrived(page, "3 incidents going on")
        page.keyboard.press("/")
        expect(page.get_by_label("Search")).to_be_focused()
        page.keyboard.press("Escape")
        page.keyboard.press("?")
        expect(page.get_by_role("dialog", name="Keyboard")).to_be_visible()
        page.keyboard.press("Escape")
        page.keyboard.press("g")
        page.keyboard.press("s")
        arrived(page, "Series")
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.className") == "skip"


def test_pages_are_accessible_and_fit_a_phone(site: Site, large: str) -> None:
    for path in (*PATHS, large, f"/series/{quote(LARGE, safe='')}"):
        with site.page(path, width=390) as page:
            widths = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
            assert widths[0] <= widths[1] == 390, path
            assert accessibility_violations(page) == [], path
    with site.page(large) as page:
        page.get_by_role("button", name="Silence").click()
        assert accessibility_violations(page) == []


def test_colours_can_be_told_apart_in_the_dark(site: Site, large: str) -> None:
    for path in ("/", large, "/models", "/deliveries"):
        with site.page(path, scheme="dark") as page:
            assert accessibility_violations(page, only_colours=True) == [], path


def test_dark_mode_is_dark_and_charts_are_drawn_anew_when_it_changes(site: Site, large: str) -> None:
    with site.page(large, scheme="light") as page:
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(245, 246, 248)"
        light = page.locator(".plot canvas").first.evaluate("c => c.toDataURL()")
        page.emulate_media(color_scheme="dark")
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(15, 18, 22)"
        page.wait_for_function(
            "(old) => document.querySelector('.plot canvas').toDataURL() !== old", arg=light
        )
        assert min(painted(page)) > 2_000


def test_a_printed_incident_has_what_matters_and_no_controls(site: Site, large: str) -> None:
    with site.page(large) as page:
        page.emulate_media(media="print")
        expect(page.locator("nav[aria-label=Pages]")).to_be_hidden()
        expect(page.get_by_role("group", name="Actions")).to_be_hidden()
        expect(page.locator("h1")).to_be_visible()
        assert len(page.pdf()) > 10_000


# ---------------------------------------------------------------- screenshots


SHOTS = {
    "first-page": ("/", 1280, "light"),
    "incident-page": ("LARGE", 1280, "light"),
    "incident-page-dark": ("LARGE", 1280, "dark"),
    "incident-phone": ("LARGE", 390, "light"),
    "series-page": (f"/series/{quote(LARGE, safe='')}", 1280, "light"),
}


@pytest.mark.screenshots
def test_screenshots(browser: Browser, tmp_path: Path) -> None:
    """`-m screenshots` takes the pictures; INFERWATCH_SCREENSHOTS=docs writes them there."""
    target = ROOT / os.environ.get("INFERWATCH_SCREENSHOTS", str(tmp_path))
    url = f"sqlite:///{tmp_path / 'shots.db'}"
    populate(url, int(time.time() * 1000))
    engine = connect(url)
    handle = serve_in_thread(create_app(engine, health=dict), "127.0.0.1", 0)
    try:
        site = Site(browser, handle.url)
        for name, (path, width, scheme) in SHOTS.items():
            path = path.replace("LARGE", f"/incidents/{incident_of(engine, LARGE, 'open')}")
            with site.page(path, width=width, scheme=scheme) as page:
                page.screenshot(path=target / f"{name}.png", full_page=width > 400, animations="disabled")
        assert site.problems == []
        assert {path.stem for path in target.glob("*.png")} >= set(SHOTS)
    finally:
        handle.stop()
        engine.dispose()
