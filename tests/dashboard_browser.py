"""A real headless Chromium for the tests of the pages, and what every page must keep to in it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, ConsoleMessage, Page, expect, sync_playwright

ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
AXE = Path(__file__).parent / "data/axe/axe.min.js"
VIOLATIONS = """
window.violations = [];
document.addEventListener("securitypolicyviolation",
  (event) => window.violations.push(`${event.violatedDirective} ${event.blockedURI}`));
"""
TIMEOUT_MS = 90_000  # a busy machine; nothing here asserts how fast a page is
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]


@contextmanager
def chromium() -> Iterator[Browser]:
    """The system's Chromium; not having one is a failure."""
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    assert program is not None, "no chromium on PATH: on Debian, apt-get install chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=ARGUMENTS)
        expect.set_options(timeout=TIMEOUT_MS)
        yield browser
        browser.close()


class Site:
    """Opens pages of one server; `problems` is whatever a page did that none may do."""

    def __init__(self, browser: Browser, url: str) -> None:
        self.browser = browser
        self.url = url
        self.problems: list[str] = []

    @contextmanager
    def page(self, path: str, *, width: int = 1280, scheme: str = "light", **options: Any) -> Iterator[Page]:
        """A page in a fresh context; its console errors, policy violations and dialogs become problems."""
        context = self.browser.new_context(
            viewport={"width": width, "height": 844},
            color_scheme=scheme,  # type: ignore[arg-type]
            **options,
        )
        context.set_default_timeout(TIMEOUT_MS)
        context.add_init_script(VIOLATIONS)
        page = context.new_page()
        page.on("console", self._heard)
        page.on("pageerror", lambda error: self.problems.append(f"exception: {error}"))
        page.on("dialog", lambda dialog: self.problems.append(f"dialog: {dialog.message}"))
        page.on("request", self._asked)
        try:
            page.goto(self.url + path)
            yield page
            if options.get("java_script_enabled", True):
                self.problems += [f"policy: {v}" for v in page.evaluate("window.violations")]
        finally:
            context.close()

    def _heard(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.problems.append(f"console: {message.text}")

    def _asked(self, request: Any) -> None:
        if not request.url.startswith((self.url, "data:")):
            self.problems.append(f"foreign request: {request.url}")


def accessibility_violations(page: Page, *, only_colours: bool = False) -> list[str]:
    """What axe-core finds: rule, and the first element that breaks it."""
    page.evaluate(AXE.read_text(encoding="utf-8") + ";undefined")
    chosen = (
        {"type": "rule", "values": ["color-contrast"]} if only_colours else {"type": "tag", "values": RULES}
    )
    found = page.evaluate(
        "(chosen) => axe.run(document, {runOnly: chosen, resultTypes: ['violations']})", chosen
    )
    return [
        f"{v['id']}: {v['nodes'][0]['html'][:200]} {v['nodes'][0]['failureSummary']}"
        for v in found["violations"]
    ]


def painted(page: Page) -> list[int]:
    """Of each chart: how many of its pixels are drawn on."""
    counts: list[int] = page.evaluate(
        """() => [...document.querySelectorAll(".plot canvas")].map((canvas) => {
          const copy = new OffscreenCanvas(canvas.width, canvas.height);
          const context = copy.getContext("2d", { willReadFrequently: true });
          context.drawImage(canvas, 0, 0);
          const data = context.getImageData(0, 0, canvas.width, canvas.height).data;
          let n = 0;
          for (let i = 3; i < data.length; i += 4) if (data[i]) n++;
          return n;
        })"""
    )
    return counts
