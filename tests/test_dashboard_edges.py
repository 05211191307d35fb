"""Pages at their edges, in a real Chromium: nothing to draw, no such page, a phone, nobody signed in."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from playwright.sync_api import Browser, expect
from sqlalchemy import Engine

from monitor.api.app import create_app
from monitor.api.server import serve_in_thread
from storage import queries
from storage.engine import connect, upgrade
from tests.dashboard_browser import Site, chromium
from tests.dashboard_site import HOSTILE, LARGE, populate
from tests.storage_kit import make_commit, make_ledger


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Engine]]:
    url = f"sqlite:///{tmp_path_factory.mktemp('edges') / 'edges.db'}"
    populate(url, int(time.time() * 1000), hostile=True)
    engine = connect(url)
    handle = serve_in_thread(create_app(engine, health=dict), "127.0.0.1", 0)
    yield handle.url, engine
    handle.stop()
    engine.dispose()


@pytest.fixture
def site(browser: Browser, served: tuple[str, Engine]) -> Site:
    return Site(browser, served[0])


def asked(url: str, accept: str) -> tuple[int, str, str]:
    request = urllib.request.Request(url, headers={"accept": accept})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.headers["content-type"], answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.headers["content-type"], error.read().decode()


def test_an_address_that_is_not_there_is_a_page_for_a_browser_and_a_problem_for_programs(
    served: tuple[str, Engine],
) -> None:
    url = served[0]
    status, kind, text = asked(f"{url}/nowhere", "text/html,*/*")
    assert status == 404 and kind.startswith("text/html") and "no page of this address" in text
    assert 'href="/series"' in text, "with the way back"
    for path, accept in (
        ("/nowhere", "*/*"),
        ("/api/v1/nowhere", "text/html"),
        ("/static/no.js", "text/html"),
    ):
        status, kind, text = asked(url + path, accept)
        assert (status, kind, json.loads(text)["status"]) == (404, "application/problem+json", 404)


@pytest.mark.parametrize(("topic", "recorded"), [("file:monday.jsonl", True), ("requests", False)])
def test_ages_are_counted_from_the_end_of_a_file_and_not_from_that_of_a_topic_at_rest(
    tmp_path: Path, topic: str, recorded: bool
) -> None:
    engine = connect(f"sqlite:///{tmp_path / 'ages.db'}")
    upgrade(engine)
    ledger = make_ledger(engine)
    claim = ledger.claim(topic, 0, now_ms=0)
    ledger.commit(make_commit(claim, None, 1, watermark_ms=1_772_409_600_000))
    ledger.finish(topic, 0, claim.epoch, 0)
    handle = serve_in_thread(create_app(engine, health=dict), "127.0.0.1", 0)
    try:
        status, _, text = asked(handle.url, "text/html")
    finally:
        handle.stop()
        engine.dispose()
    assert status == 200 and ("A recorded log that was read to its end" in text) == recorded


def test_a_chart_without_windows_says_so(site: Site, served: tuple[str, Engine]) -> None:
    (incident,) = queries.incidents(served[1], series=HOSTILE)
    with site.page(f"/incidents/{incident['incident_id']}") as page:
        plots = page.locator("#charts .plot")
        assert plots.count() == 2 and plots.locator("canvas").count() == 0
        assert plots.all_text_contents() == ["no window of this time is stored"] * 2
    assert site.problems == []


def test_labels_of_an_axis_can_be_told_apart(site: Site) -> None:
    close = {"t": [1, 2, 3], "v": [0.44061, 0.44064, 0.44068], "unit": "", "label": "loss", "steps": True}
    rare = {"t": [1, 2], "v": [1, 1e11], "unit": "one in", "label": "rarity", "log": True, "steps": True}
    drawn = """(charts) => {
        const texts = [], write = CanvasRenderingContext2D.prototype.fillText;
        CanvasRenderingContext2D.prototype.fillText = function (text, ...rest) {
            texts.push(text);
            return write.call(this, text, ...rest);
        };
        const figures = charts.map((chart) => {
            const figure = document.createElement("figure");
            figure.innerHTML = "<output></output><div class=plot></div>";
            figure.querySelector("div").dataset.chart = JSON.stringify(chart);
            document.querySelector("main").append(figure);
            return figure;
        });
        document.dispatchEvent(new Event("htmx:afterSettle"));
        return new Promise((done) => setTimeout(() => {
            figures.forEach((figure) => figure.remove());
            done(texts);
        }, 300));
    }"""
    with site.page(f"/series/{quote(LARGE, safe='')}") as page:
        texts = page.evaluate(drawn, [close, rare])
    losses = [text for text in texts if text.startswith("0.44")]
    assert len(losses) > 1 and len(set(losses)) == len(losses), texts
    rarities = [text for text in texts if text.startswith("1 in")]
    assert any(text.endswith("G") for text in rarities), texts
    assert all(len(text) <= len("1 in 100G") for text in rarities), texts


def test_nobody_who_is_not_signed_in_is_offered_to_sign_out(site: Site) -> None:
    with site.page("/") as page:
        assert page.locator(".session .user").inner_text() == "local"
        assert page.get_by_role("button", name="Sign out").count() == 0


def test_who_looked_at_it_once_it_was_over_is_recorded(site: Site, served: tuple[str, Engine]) -> None:
    incident_id = queries.incidents(served[1], status="resolved", limit=1)[0]["incident_id"]
    with site.page(f"/incidents/{incident_id}") as page:
        seen = page.locator(".facts > div", has_text="Seen by")
        expect(seen).to_contain_text("nobody")
        page.get_by_role("button", name="I have seen it").click()
        page.get_by_label("Comment").first.fill("read in the morning")
        page.locator("dialog[open] button.main").click()
        expect(seen).to_contain_text("local: read in the morning")
        expect(page.get_by_role("button", name="I have seen it")).to_have_count(0)
        expect(page.locator("#head .tags")).to_contain_text("resolved")
    assert site.problems == []


@pytest.mark.parametrize("path", ["/", "/silences", "/deliveries"])
def test_on_a_phone_the_page_one_is_on_is_in_sight(site: Site, path: str) -> None:
    with site.page(path, width=390) as page:
        box = page.locator(".top nav [aria-current]").bounding_box()
        assert box is not None and box["x"] >= 0 and box["x"] + box["width"] <= 390


def test_on_a_phone_facts_stand_two_in_a_row(site: Site) -> None:
    with site.page(f"/series/{quote(LARGE, safe='')}", width=390) as page:
        boxes = [fact.bounding_box() for fact in page.locator(".facts > div").all()]
        assert len(boxes) == 4 and all(box is not None and box["width"] > 150 for box in boxes)
