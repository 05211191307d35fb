"""The documentation as a site: it builds strictly, holds every page, and begins as a new user does."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
PAGES = {path.name for path in ROOT.glob("docs/*.md")}


def in_nav(entries: Any) -> list[str]:
    """The pages of a navigation, in its order."""
    if isinstance(entries, str):
        return [entries]
    parts = entries.values() if isinstance(entries, dict) else entries
    return [page for part in parts for page in in_nav(part)]


NAV = in_nav(tomllib.loads((ROOT / "zensical.toml").read_text())["project"]["nav"])


def build(directory: Path) -> subprocess.CompletedProcess[str]:
    program = str(Path(sys.executable).with_name("zensical"))
    command = [program, "build", "--strict", "--clean"]
    return subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False, timeout=200)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "docs", tmp_path / "docs", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "zensical.toml", tmp_path)
    return tmp_path


def test_every_page_is_in_the_navigation_once_and_the_first_is_the_first_five_minutes() -> None:
    assert sorted(NAV) == sorted(PAGES)
    assert NAV[0] == "index.md"


def test_it_builds_strictly_with_every_page_and_nothing_from_elsewhere(project: Path) -> None:
    done = build(project)
    assert done.returncode == 0, done.stdout + done.stderr
    for page in NAV:
        html = (project / "site" / page).with_suffix(".html").read_text()
        assert "Inferwatch" in html
        assert not re.search(r"""(?:src|href)=["']https?://fonts\.""", html), page


def test_a_link_to_nowhere_fails_the_build(project: Path) -> None:
    with (project / "docs" / "http.md").open("a") as page:
        page.write("\n[nowhere](no-such-page.md)\n")
    done = build(project)
    assert done.returncode != 0
    assert "page does not exist" in done.stderr


def test_readme_and_first_page_give_the_same_order() -> None:
    steps = ["demo", "inspect", "replay", "init", "config check", "doctor", "run"]
    for page in ("README.md", "docs/index.md"):
        text = (ROOT / page).read_text()
        places = [re.search(rf"^(?:inferwatch|make) {step}\b", text, re.MULTILINE) for step in steps]
        assert all(places), page
        found = [place.start() for place in places if place is not None]
        assert found == sorted(found), page
