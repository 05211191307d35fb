"""What a real browser sends: the laptop case, signing in with the form, and what the policy lets pass."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, sync_playwright

from monitor.api.app import create_app
from monitor.api.server import serve_in_thread
from monitor.config import HttpSettings, Settings
from storage.actions import Actor
from storage.engine import connect
from storage.tokens import Tokens
from tests.stored import newest_incident, populate

CHANGE = """async ([path, headers]) => {
    const answer = await fetch(path, {method: "POST", headers, body: '{"text": "seen"}'});
    return answer.status;
}"""
MARKED = {"X-Inferwatch": "1", "content-type": "application/json"}
NOTES = f"/api/v1/incidents/{newest_incident()}/notes"


@pytest.fixture
def page() -> Iterator[Page]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        yield browser.new_page()
        browser.close()


def test_a_browser_changes_things_with_proof_of_its_origin(page: Page, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'b.db'}"
    populate(url)
    engine = connect(url)
    laptop = serve_in_thread(create_app(engine, health=dict), "127.0.0.1", 0)
    guarded_by = Settings(http=HttpSettings(host="0.0.0.0"))
    guarded = serve_in_thread(create_app(engine, health=dict, settings=guarded_by), "127.0.0.1", 0)
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    try:
        page.goto(laptop.url)
        assert page.evaluate(CHANGE, [NOTES, MARKED]) == 200
        assert said == [], "the policy blocks nothing that the pages use"
        assert page.evaluate(CHANGE, [NOTES, {"content-type": "application/json"}]) == 403
        secret = Tokens(engine).create("ann", "write", Actor("test", 1))
        page.goto(f"{guarded.url}/incidents/1?x=1")
        assert page.title() == "Sign in - Inferwatch"
        page.fill("#token", secret)
        page.click("button")
        page.wait_for_url(f"{guarded.url}/incidents/1?x=1")
        assert page.evaluate(CHANGE, [NOTES, MARKED]) == 200
        assert page.evaluate("document.cookie") == "", "no script sees the session"
        said.clear()
        page.evaluate(
            "() => { document.body.insertAdjacentHTML('beforeend', '<p style=\"color:red\">x</p>') }"
        )
        assert any("Content Security Policy" in text for text in said)
    finally:
        laptop.stop()
        guarded.stop()
        engine.dispose()
