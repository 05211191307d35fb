"""What the pages ask of the database, on SQLite and PostgreSQL alike; and ten thousand series."""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI
from sqlalchemy import Engine

from monitor.api import pages
from monitor.api.app import create_app
from monitor.api.dashboard.charts import version_marks
from monitor.api.server import serve_in_thread
from monitor.clock import ManualClock
from monitor.config import ChannelSettings, Settings
from monitor.gaps import gap_alert
from monitor.incidents import make_fold
from monitor.people import people
from monitor.similar import similar_to
from monitor.sources.base import Gap, Partition
from storage import page_queries, queries
from storage.engine import connect, upgrade
from storage.types import AlertTransition
from tests import services
from tests.dashboard_site import BASE, EMBED, FRESH, HOSTILE, LARGE, MINUTE_MS, RANK, SUPPORT, Story, populate
from tests.storage_kit import make_alert, make_commit, make_ledger, make_series, make_windows

NOW_MS = 1_773_144_000_000
MANY = 10_000


@pytest.fixture(scope="module", params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def filled(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Engine, Story]]:
    if request.param == "sqlite":
        url, server = f"sqlite:///{tmp_path_factory.mktemp('pages') / 'pages.db'}", None
    else:
        server = request.getfixturevalue("postgres_url")
        url = services.create_database(server)
    story = populate(url, NOW_MS, hostile=True)
    engine = connect(url)
    yield engine, story
    engine.dispose()
    if server is not None:
        services.drop_database(server, url)


def titles(page: page_queries.Page) -> list[str]:
    return [str(row["series"][0]) for row in page.rows]


def test_incidents_stand_open_before_resolved_the_worst_and_longest_first(
    filled: tuple[Engine, Story],
) -> None:
    engine, _ = filled
    page = page_queries.incident_page(engine)
    assert titles(page) == [LARGE, HOSTILE, EMBED, SUPPORT, LARGE] and page.total == 5
    assert page.rows[4]["labels"][0]["label"] == "true_positive"
    second = page_queries.incident_page(engine, limit=2, offset=2)
    assert titles(second) == [EMBED, SUPPORT] and second.total == 5
    assert page_queries.incident_counts(engine) == {
        ("open", "critical"): 1,
        ("open", "major"): 1,
        ("acknowledged", "warning"): 1,
        ("resolved", "critical"): 1,
        ("resolved", "major"): 1,
    }


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ({"text": "MEMORY"}, [EMBED]),
        ({"text": "p99 version v7"}, [LARGE]),
        ({"text": "<script>"}, [HOSTILE]),
        ({"text": "100%_"}, []),
        ({"text": "'; --"}, []),
        ({"statuses": ["resolved"], "severity": "major"}, [SUPPORT]),
        ({"statuses": ["open", "acknowledged"], "text": "chat-large"}, [LARGE]),
    ],
)
def test_incidents_are_searched_and_filtered(
    filled: tuple[Engine, Story], wanted: dict[str, object], found: list[str]
) -> None:
    page = page_queries.incident_page(filled[0], **wanted)  # type: ignore[arg-type]
    assert titles(page) == found and page.total == len(found)


def test_an_incident_is_found_by_the_beginning_of_its_id(filled: tuple[Engine, Story]) -> None:
    row = page_queries.incident_page(filled[0]).rows[3]
    found = page_queries.incident_page(filled[0], text=row["incident_id"][:13])
    assert [r["incident_id"] for r in found.rows] == [row["incident_id"]]


def test_leading_alerts_and_deliveries_of_incidents(filled: tuple[Engine, Story]) -> None:
    engine, _ = filled
    rows = page_queries.incident_page(engine).rows
    ids = [str(row["incident_id"]) for row in rows]
    leading = page_queries.leading_alerts(engine, ids)
    assert [leading[i]["series"] for i in ids] == titles(page_queries.Page(rows, 5))
    counts = page_queries.delivery_counts(engine, ids)
    assert counts[ids[0]] == {"delivered": 1, "dead": 1} and counts[ids[3]] == {"delivered": 3}
    assert page_queries.leading_alerts(engine, []) == page_queries.delivery_counts(engine, []) == {}


def test_measurements_are_the_windows_of_the_span_with_metrics_of_the_user(
    filled: tuple[Engine, Story],
) -> None:
    engine, story = filled
    since_ms, until_ms = story.now_ms - 10 * MINUTE_MS, story.now_ms - 4 * MINUTE_MS
    names = ["accuracy", "metric.cache_hit", "metric.nothing"]
    rows = page_queries.measurements(engine, RANK, names, since_ms=since_ms, until_ms=until_ms)
    assert [row["start_ms"] for row in rows] == list(range(since_ms, until_ms, MINUTE_MS))
    assert all(0.3 <= row["metric.cache_hit"] <= 0.5 and row["metric.nothing"] is None for row in rows)
    stored = queries.windows(engine, RANK, since_ms=since_ms, until_ms=until_ms)
    assert [row["accuracy"] for row in rows] == [row["accuracy"] for row in stored]
    newest = page_queries.measurements(engine, RANK, [], since_ms=0, until_ms=until_ms, limit=2)
    assert [row["start_ms"] for row in newest] == [until_ms - 2 * MINUTE_MS, until_ms - MINUTE_MS]
    assert page_queries.metric_names(engine, RANK) == ["metric.cache_hit"]
    assert page_queries.metric_names(engine, LARGE) == []


def test_series_are_searched_and_told_apart_by_state(filled: tuple[Engine, Story]) -> None:
    engine, _ = filled
    names = [row["series"] for row in page_queries.series_page(engine).rows]
    assert sorted(names) == sorted([*BASE, HOSTILE])
    assert [r["series"] for r in page_queries.series_page(engine, text="CHAT large").rows] == [LARGE]
    learning = page_queries.series_page(engine, state="learning")
    assert {r["series"] for r in learning.rows} == {FRESH, HOSTILE} and learning.total == 2
    assert {r["series"] for r in page_queries.series_page(engine, state="unusual").rows} == {LARGE, EMBED}
    assert page_queries.series_counts(engine) == {"total": 6, "learning": 2, "unusual": 2, "gone": 0}
    (found,) = queries.series(engine, name=HOSTILE)
    assert found["windows"] == 0 and found in page_queries.series_page(engine).rows
    assert queries.series(engine, name="nothing") == []


def test_earlier_incidents_like_it_come_with_their_labels(filled: tuple[Engine, Story]) -> None:
    engine, _ = filled
    first, *others, last = page_queries.incident_page(engine).rows
    (alike,) = similar_to(engine, first["incident_id"])
    assert alike["incident"]["incident_id"] == last["incident_id"] and alike["score"] > 0.5
    assert {f"series {LARGE}", "feature latency_p99_ms", "tenant acme"} <= set(alike["shared"])
    assert alike["incident"]["labels"][0]["comment"] == "rollout of v6 without warm-up"
    assert similar_to(engine, last["incident_id"]) == [], "the later one is none of the earlier ones"
    for stranger in (row for row in others if row["series"] != [HOSTILE]):
        assert similar_to(engine, stranger["incident_id"]) == [], stranger["title"]
    assert similar_to(engine, "nothing") == []


def test_reasons_of_rejects_deployments_and_the_delivery_log(filled: tuple[Engine, Story]) -> None:
    engine, story = filled
    reasons = page_queries.reject_reasons(engine)
    assert [(r["reason"], r["records"], r["offset"]) for r in reasons] == [
        ("not_json", 2, 101),
        ("missing_model", 1, 102),
    ]
    (mark,) = version_marks(engine, LARGE, 0, story.now_ms)
    assert mark[1] == "v7" and 0 < mark[0] < story.now_ms // 1000
    dead = page_queries.delivery_page(engine, status="dead", text="PAGER 500")
    assert dead.total == 1 and dead.rows[0]["title"] == f"High p99 latency on {LARGE}"
    assert page_queries.delivery_page(engine, text="chat-small").total == 3
    assert queries.delivery_totals(engine)["dead"] == 1
    assert [t["outcome"] for t in page_queries.trainings(engine)] == ["refused", "promoted", "promoted"]
    assert page_queries.disabled_channels(engine) == []


# -------------------------------------------------------------- many, and none


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=60) as answer:
        return str(answer.read().decode())


def test_ten_thousand_series_are_paged_and_searched(tmp_path: Path) -> None:
    engine = connect(f"sqlite:///{tmp_path / 'many.db'}")
    upgrade(engine)
    ledger = make_ledger(engine)
    claim = ledger.claim("logs", 0, now_ms=1)
    names = [f"model-{i // 100}/endpoint-{i:05d}" for i in range(MANY)]
    blob = bytes(12_000)  # as large as the states of a real series
    series = [make_series(name)._replace(detector_state=blob, window_state=blob[:100]) for name in names]
    ledger.commit(make_commit(claim, None, 10, series=series, windows=[make_windows(0, names)]))
    handle = serve_in_thread(create_app(engine, health=dict), "127.0.0.1", 0)
    try:
        started_s = time.monotonic()
        first = get(f"{handle.url}/series")
        print(f"/series with {MANY} series: {time.monotonic() - started_s:.2f} s, {len(first)} bytes")
        assert "10,000 series" in first and first.count("data-row") == 100 and len(first) < 100_000
        last = get(f"{handle.url}/series?page=100")
        assert "9,901 to 10,000 of 10,000" in last and "endpoint-09999" in last
        found = get(f"{handle.url}/series?q=endpoint-0777")
        assert found.count("data-row") == 10
        started_s = time.monotonic()
        index = get(handle.url)
        print(f"/ with {MANY} series: {time.monotonic() - started_s:.2f} s, {len(index)} bytes")
        assert "All 10,000 that are learning" in index and len(index) < 30_000
    finally:
        handle.stop()
        engine.dispose()


def test_many_incidents_are_paged(tmp_path: Path) -> None:
    from sqlalchemy import insert

    engine = connect(f"sqlite:///{tmp_path / 'incidents.db'}")
    upgrade(engine)
    rows = [
        {
            "incident_id": f"i-{i:04d}",
            "group_key": "{}",
            "status": "open" if i % 2 else "resolved",
            "severity": ("critical", "major", "warning")[i % 3],
            "title": f"title {i}",
            "summary": "s",
            "started_at_ms": i,
            "opened_at_ms": i,
            "last_fired_at_ms": i,
            "resolved_at_ms": None if i % 2 else i,
            "peak_score": 0.5,
            "series": '["a/b"]',
            "firing": "[]",
            "revision": 1,
        }
        for i in range(1_000)
    ]
    with engine.begin() as connection:
        connection.execute(insert(page_queries.INCIDENTS), rows)
    handle = serve_in_thread(create_app(engine, health=dict), "127.0.0.1", 0)
    try:
        page = get(f"{handle.url}/?state=open&page=13")
        assert "481 to 500 of 500" in page and page.count("data-row") == 20 and "Next" not in page
        assert "state=open&amp;page=12" in page
        assert "Nothing matches" in get(f"{handle.url}/?q=nothing")
    finally:
        handle.stop()
        engine.dispose()


@pytest.mark.parametrize("path", ["/", "/series", "/sources"])
def test_an_empty_database_says_what_is_awaited_and_what_to_type(tmp_path: Path, path: str) -> None:
    engine = connect(f"sqlite:///{tmp_path / 'empty.db'}")
    upgrade(engine)
    handle = serve_in_thread(create_app(engine, health=dict), "127.0.0.1", 0)
    try:
        text = get(handle.url + path)
        assert "Waiting for the first record" in text and "inferwatch doctor" in text
        for other in ("/models", "/silences", "/deliveries"):
            assert "<h1>" in get(handle.url + other)
    finally:
        handle.stop()
        engine.dispose()


def test_who_may_not_write_sees_no_buttons_and_who_is_known_can_leave(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'read.db'}"
    story = populate(url, NOW_MS)
    engine = connect(url)
    app = FastAPI()

    @app.middleware("http")
    async def who(request, call_next):  # type: ignore[no-untyped-def]
        request.state.user, request.state.may_write = "mira <x>", "write" in request.url.query
        return await call_next(request)

    app.include_router(pages.router(engine, ManualClock(story.now_ms + 20 * MINUTE_MS)))
    handle = serve_in_thread(app, "127.0.0.1", 0)
    try:
        incident = page_queries.incident_page(engine).rows[0]["incident_id"]
        for path in (f"/incidents/{incident}", "/models", "/silences", "/deliveries"):
            reading, writing = get(handle.url + path), get(f"{handle.url}{path}?q=&write")
            assert "/api/v1/" not in reading.replace("/api/v1/openapi.json", ""), path
            assert 'data-post="/api/v1/' in writing, path
            assert "mira &lt;x&gt;" in reading and 'data-post="/logout"' in reading
            assert "20 min behind the clock" in reading
    finally:
        handle.stop()
        engine.dispose()


def test_an_incident_of_many_series_shows_the_worst_and_counts_the_rest(tmp_path: Path) -> None:
    engine = connect(f"sqlite:///{tmp_path / 'wide.db'}")
    upgrade(engine)
    channel = ChannelSettings(url="http://127.0.0.1:9/hook", allow_private=True)
    ledger = make_ledger(engine, fold=make_fold(Settings(channels={"oncall": channel})))
    claim = ledger.claim("logs", 0, now_ms=1)
    names = [f"chat/endpoint-{i}" for i in range(60)]
    alerts = [make_alert(name, 0, score=0.5 + i / 200) for i, name in enumerate(names)]
    people(engine, Settings()).silence(
        {"model": "chat"}, starts_at_ms=0, ends_at_ms=MINUTE_MS * 9, by="jo", now_ms=0, comment="test"
    )
    lost = gap_alert(Gap(Partition("logs", 0), 7, 10), 3, 2 * MINUTE_MS)
    ledger.commit(
        make_commit(
            claim,
            None,
            10,
            series=[make_series(name) for name in names],
            windows=[make_windows(i * MINUTE_MS, names) for i in range(3)],
            transitions=[*(AlertTransition(MINUTE_MS, "fired", a) for a in alerts), *lost],
        )
    )
    handle = serve_in_thread(create_app(engine, health=dict), "127.0.0.1", 0)
    try:
        wide, gap = sorted(page_queries.incident_page(engine).rows, key=lambda r: -int(r["series_count"]))
        assert wide["series_count"] == 60
        text = get(f"{handle.url}/incidents/{wide['incident_id']}")
        assert text.count('class="alert"') == 40 and "and 20 alerts more" in text
        assert text.index("chat/endpoint-59</a></h2>") < text.index("chat/endpoint-58</a></h2>")
        assert "56 more series are affected" in text
        assert "kept quiet by a silence" in text and "Kept quiet by a silence" in text
        text = get(f"{handle.url}/incidents/{gap['incident_id']}")
        assert "3 records of" in text and "records were lost before they were read" in text
        assert 'href="/sources"' in text and "data-chart" not in text
    finally:
        handle.stop()
        engine.dispose()


def test_what_is_not_there_is_a_page_for_browsers_and_a_problem_for_programs(tmp_path: Path) -> None:
    engine = connect(f"sqlite:///{tmp_path / 'none.db'}")
    upgrade(engine)
    handle = serve_in_thread(create_app(engine, health=dict), "127.0.0.1", 0)
    try:
        for path in ("/incidents/nothing", "/series/no%2Fsuch", "/series?name=%0A", "/incidents/a%00b"):
            for accept, kind in (("text/html,*/*", "text/html"), ("*/*", "application/problem+json")):
                request = urllib.request.Request(handle.url + path, headers={"accept": accept})
                with pytest.raises(urllib.error.HTTPError) as raised:
                    urllib.request.urlopen(request, timeout=60)
                with raised.value as error:
                    assert error.code == 404 and error.headers["content-type"].startswith(kind), path
    finally:
        handle.stop()
        engine.dispose()
