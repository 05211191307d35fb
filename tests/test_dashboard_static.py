"""What the pages load, and how they say things."""

from __future__ import annotations

import hashlib
import json
import re
from datetime import UTC, datetime
from pathlib import Path

import pytest

from monitor.api.dashboard import charts, render
from monitor.api.dashboard.lists import _measured

ROOT = Path(__file__).parent.parent
STATIC = ROOT / "monitor/api/static"


def test_vendored_files_are_the_ones_that_were_pinned() -> None:
    table = re.findall(
        r"^\| `([^`]+)` \|.*`([0-9a-f]{64})` \|$", (STATIC / "vendor/VENDORED.md").read_text(), re.M
    )
    code = {p.name for p in (STATIC / "vendor").iterdir() if p.suffix in (".js", ".css")}
    assert {name for name, _ in table} == code
    for name, digest in table:
        assert hashlib.sha256((STATIC / "vendor" / name).read_bytes()).hexdigest() == digest, name
    axe = ROOT / "tests/data/axe"
    digest = re.search(r"`([0-9a-f]{64})`", (axe / "VENDORED.md").read_text())
    assert digest is not None
    assert hashlib.sha256((axe / "axe.min.js").read_bytes()).hexdigest() == digest[1]


def test_pages_use_nothing_inline_and_nothing_from_elsewhere() -> None:
    for page in (ROOT / "monitor/api/templates").glob("*.html"):
        text = page.read_text()
        assert not re.search(r"\sstyle=|<style|\son[a-z]+=|javascript:|<script>|\|\s*safe", text), page.name
        assert not re.search(r'(?:src|href)="(?:https?:)?//', text), page.name
    own = [STATIC / "app.js", STATIC / "charts.js", STATIC / "style.css"]
    for file in own:
        assert not re.search(r"https?://|@import|\beval\(|new Function", file.read_text()), file.name


@pytest.mark.parametrize(
    "name", ["../pages.py", "vendor/../app.js", ".hidden", "", "vendor", "nothing.js", "a/b/c"]
)
def test_only_static_files_are_served(name: str) -> None:
    assert render.static_file(name) is None


def test_the_address_of_a_static_file_changes_with_its_content() -> None:
    digest = hashlib.sha256((STATIC / "app.js").read_bytes()).hexdigest()
    assert render.static_href("app.js") == f"/static/app.js?v={digest[:12]}"


@pytest.mark.parametrize(
    ("ms", "said"),
    [
        (0, "0 s"),
        (59_000, "59 s"),
        (95_000, "1 min"),
        (8_000_000, "2 h 13 min"),
        (36_000_000, "10 h"),
        (97_200_000, "1 d 3 h"),
        (864_000_000, "10 d"),
    ],
)
def test_lengths_of_time(ms: int, said: str) -> None:
    assert render.span(ms) == said


def test_addresses_of_series_survive_any_name() -> None:
    assert render.series_href("a/b c") == "/series/a%2Fb%20c"
    assert render.series_href("source:logs/0") == "/sources"
    for odd in ("..", ".", "", "a\nb", "x\x1b[2J"):
        assert render.series_href(odd).startswith("/series?name=")


def test_text_is_harmless_in_pages_and_in_data() -> None:
    env = render.environment()
    shown = env.from_string("{{ x }}|{{ x | lines }}|{{ data | json }}").render(
        x="<b>\x1b[2J\u202e", data={"<b>\x1b": float("nan"), "n": 1.23456789, "t": 1767225600}
    )
    assert "<b>" not in shown and "\x1b" not in shown and "\u202e" not in shown
    assert shown.count(r"&lt;b&gt;\x1b[2J\u202e") == 2
    assert "null" in shown and "1.2346" in shown and "1767225600" in shown
    exact = env.from_string("{{ x | exact_json }}").render(x={"value": 'a"\x1b\u202e'})
    assert json.loads(exact.replace("&#34;", '"').replace("&amp;", "&")) == {"value": 'a"\x1b\u202e'}


def test_a_time_says_its_age_by_the_clock_that_it_belongs_to() -> None:
    env = render.environment()
    at = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)
    now_ms = render.epoch_ms(at) + 300_000
    text = env.from_string("{{ at | moment }} {{ at | moment('wall') }}").render(
        at=at, now_ms=now_ms, wall_ms=now_ms - 600_000
    )
    assert "2026-01-31 12:00" in text and "(5 min ago)" in text and "(in 5 min)" in text


def rows(values: list[float | None], hot: set[int] = frozenset()) -> list[dict[str, object]]:  # type: ignore[assignment]
    return [{"start_ms": i * 60_000, "is_anomalous": i in hot, "x": v} for i, v in enumerate(values)]


def test_the_usual_band_leaves_out_anomalies_and_needs_enough_windows() -> None:
    calm = [float(v) for v in range(1, 101)]
    assert charts.usual_band(rows(calm), "x") == (5.0, 95.0)
    assert charts.usual_band(rows([*calm, 1e9, 1e9], hot={100, 101}), "x") == (5.0, 95.0)
    assert charts.usual_band(rows([*calm[:19], None]), "x") is None


def test_thinning_keeps_means_gaps_and_every_anomaly() -> None:
    found, stride = charts.thinned(rows([1.0, 3.0, None, None, 5.0], hot={1, 4}), ["x"], limit=3)
    assert stride == 2
    assert [row["x"] for row in found] == [2.0, None, 5.0]
    assert [row["is_anomalous"] for row in found] == [True, False, True]
    assert charts.hot_spans(found, 120_000) == [[0, 120], [240, 360]]
    assert charts.hot_spans(rows([1.0] * 4, hot={1, 2}), 60_000) == [[60, 180]]


def test_a_sparkline_stays_inside_its_box_whatever_the_values() -> None:
    points = [(0, -5.0), (60_000, 1e12), (120_000, 3.0), (999_000, 4.0)]
    svg = charts.sparkline(points, 0, 120_000, hot=(60_000, 10**12), band=[0.0, 1.0], label='"<x>')
    numbers = [float(n) for n in re.findall(r"-?\d+(?:\.\d+)?", svg.split('d="')[1].split('"')[0])]
    assert all(0 <= n <= charts.SPARK_WIDTH for n in numbers)
    assert 'aria-label="&#34;&lt;x&gt;"' in svg
    assert "hot" in charts.sparkline([(0, 1.0), (1, 1.0)], 0, 10, hot=(0, 1), band=None, label="flat")


def test_training_curves_are_told_from_plain_figures() -> None:
    found = _measured(
        {"loss": [3, 2.5, 2], "lstm": {"loss": [1.0, 0.5]}, "n": 5, "name": "x", "odd": ["a", 1], "one": [1]}
    )
    assert [c["title"] for c in found["curves"]] == ["loss", "lstm, loss"]
    assert found["curves"][0]["data"]["t"] == [1, 2, 3]
    assert found["figures"] == [("n", 5), ("name", "x"), ("one", 1.0)]
    assert _measured(None) == {"figures": [], "curves": []}
