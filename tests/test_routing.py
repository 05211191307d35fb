"""Routes, quiet hours, reminders and summaries: the decisions, and what comes of them in the database."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine

from monitor.attention import Attention
from monitor.config import ChannelSettings, DetectionSettings, RouteSettings, Settings, load
from monitor.errors import ConfigError
from monitor.incidents import make_fold
from monitor.people import people
from monitor.routing import About, Routed, decide, reminder_due
from monitor.timespans import inside, last_boundary_ms, parse_span
from storage import queries
from storage.engine import connect, upgrade
from storage.ledger import Ledger
from storage.outbox import Outbox
from storage.types import AlertTransition
from tests.storage_kit import make_alert, make_commit, make_series

MINUTE, HOUR = 60_000, 3_600_000
UTC_ZONE, BERLIN = ZoneInfo("UTC"), ZoneInfo("Europe/Berlin")
ABOUT = About("major", frozenset({"chat-large"}), frozenset({"acme"}))


def ms(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000)


def route(*channels: str, **options: Any) -> RouteSettings:
    return RouteSettings(channels=list(channels) or ["c"], **options)


# --------------------------------------------------------------- spans of time


@pytest.mark.parametrize(
    ("text", "moment", "covered"),
    [
        ("22:00-07:00", "2026-01-30T23:00", True),
        ("22:00-07:00", "2026-01-30T06:59", True),
        ("22:00-07:00", "2026-01-30T07:00", False),
        ("fri 22:00-07:00", "2026-01-31T06:00", True),  # the night from Friday to Saturday
        ("fri 22:00-07:00", "2026-01-30T06:00", False),
        ("sat,sun", "2026-01-31T00:00", True),
        ("sat,sun", "2026-01-30T23:59", False),
        ("fri-mon 08:00-18:00", "2026-02-02T08:00", True),
        ("fri-mon 08:00-18:00", "2026-02-03T08:00", False),
        ("mon 00:00-24:00", "2026-02-02T23:59", True),
    ],
)
def test_spans(text: str, moment: str, covered: bool) -> None:
    assert inside([parse_span(text)], ms(moment), UTC_ZONE) == covered


@pytest.mark.parametrize(
    "text", ["", "mon", "25:00-07:00", "22-7", "xyz 22:00-07:00", "mon tue 1:00-2:00", "24:00-01:00"]
)
def test_a_wrong_span_names_the_accepted_forms(text: str) -> None:
    if text == "mon":
        assert parse_span(text).days == {0}
        return
    with pytest.raises(ValueError, match="22:00-07:00"):
        parse_span(text)


@given(
    st.integers(0, 2_000_000_000),
    st.sampled_from(["Europe/Berlin", "Asia/Kolkata", "America/New_York", "UTC"]),
)
def test_a_span_and_its_complement_split_the_week(at_s: int, zone: str) -> None:
    night, day = parse_span("22:00-07:00"), parse_span("07:00-22:00")
    assert inside([night], at_s * 1000, ZoneInfo(zone)) != inside([day], at_s * 1000, ZoneInfo(zone))


@given(st.integers(1_700_000_000, 1_900_000_000), st.integers(0, 1_439), st.sampled_from([UTC_ZONE, BERLIN]))
def test_boundaries_are_in_the_past_and_at_most_a_day_old(at_s: int, at_min: int, zone: ZoneInfo) -> None:
    for daily, longest_ms in ((True, 25 * HOUR), (False, HOUR)):
        boundary_ms = last_boundary_ms(at_s * 1000, daily=daily, at_min=at_min, zone=zone)
        assert at_s * 1000 - longest_ms - 1 < boundary_ms <= at_s * 1000
        again_ms = last_boundary_ms(boundary_ms, daily=daily, at_min=at_min, zone=zone)
        assert again_ms == boundary_ms


def test_a_daily_boundary_follows_the_clocks_of_its_zone() -> None:
    for day, utc_hour in (("2026-03-28", 8), ("2026-03-29", 7)):  # summer time begins in the night between
        at_ms = last_boundary_ms(ms(f"{day}T12:00"), daily=True, at_min=540, zone=BERLIN)
        assert at_ms == ms(f"{day}T{utc_hour:02d}:00")


# ------------------------------------------------------------------- decisions


@pytest.mark.parametrize(
    ("routes", "expected"),
    [
        ([], Routed("send", "no_route_names_it")),
        ([route("other")], Routed("send", "no_route_names_it")),
        ([route("c")], Routed("send", "matched", 1)),
        ([route(severities=["critical"])], Routed("skip", "severity")),
        ([route(models=["chat-*"])], Routed("send", "matched", 1)),
        ([route(models=["rank", "chat"])], Routed("skip", "model")),
        ([route(tenants=["acme"])], Routed("send", "matched", 1)),
        ([route(tenants=["other"])], Routed("skip", "tenant")),
        ([route(hours=["mon-fri 08:00-18:00"])], Routed("skip", "hours")),
        ([route(hours=["sat"], time_zone="Europe/Berlin")], Routed("send", "matched", 1)),
        ([route(quiet_hours=["22:00-07:00"], time_zone="Europe/Berlin")], Routed("hold", "quiet_hours", 1)),
        ([route(quiet_hours=["22:00-07:00"], quiet_except=["major"])], Routed("send", "matched", 1)),
        ([route(digest="daily")], Routed("digest", "digest", 1)),
        ([route(severities=["critical"]), route(digest="hourly")], Routed("digest", "digest", 2)),
        ([route(severities=["major"]), route(digest="hourly")], Routed("send", "matched", 1)),
    ],
)
def test_the_first_route_that_matches_decides(routes: list[RouteSettings], expected: Routed) -> None:
    assert decide("c", ABOUT, ms("2026-01-31T05:30"), routes) == expected  # a Saturday, 06:30 in Berlin


@st.composite
def any_routes(draw: st.DrawFn) -> list[RouteSettings]:
    one = st.builds(
        route,
        st.sampled_from(["c", "d"]),
        severities=st.lists(st.sampled_from(["warning", "major", "critical"]), max_size=2),
        models=st.lists(st.sampled_from(["*", "chat*", "rank"]), max_size=2),
        hours=st.lists(st.sampled_from(["mon-fri", "08:00-18:00"]), max_size=1),
        quiet_hours=st.lists(st.sampled_from(["22:00-07:00", "sat,sun"]), max_size=2),
        digest=st.sampled_from(["never", "hourly"]),
    )
    return draw(st.lists(one, max_size=4))


@given(
    any_routes(),
    st.integers(0, 2_000_000_000_000),
    st.sampled_from(["warning", "major", "critical"]),
    st.sampled_from(["chat-large", "rank"]),
)
def test_what_always_holds_of_routing(
    routes: list[RouteSettings], at_ms: int, severity: str, model: str
) -> None:
    about = About(severity, frozenset({model}), frozenset())
    decision = decide("c", about, at_ms, routes)
    assert decision == decide("c", about, at_ms, routes)
    assert decide("nobody-names-me", about, at_ms, routes) == Routed("send", "no_route_names_it")
    if decision.route:
        chosen = routes[decision.route - 1]
        assert "c" in chosen.channels and (not chosen.severities or severity in chosen.severities)
        assert (decision.action == "digest") == (chosen.digest != "never")
        assert decide("c", about, at_ms, routes[: decision.route]) == decision, "later routes change nothing"
    if severity == "critical":
        assert decision.action != "hold", "quiet hours let critical ones through by default"


@given(st.integers(0, 10**9), st.integers(1, 10**6), st.sampled_from(["open", "acknowledged", "resolved"]))
def test_a_reminder_is_due_only_while_open_and_after_the_interval(
    since_ms: int, repeat_s: int, status: str
) -> None:
    routes, routed = [route(repeat_s=repeat_s)], Routed("send", "matched", 1)
    found = reminder_due(5_000, 5_000 + since_ms, status, routed, routes)
    assert (found == "due") == (status == "open" and since_ms >= repeat_s * 1000)
    assert reminder_due(None, since_ms, "open", routed, routes) == "not_told"
    assert reminder_due(0, 10**15, "open", Routed("hold", "quiet_hours", 1), routes) == "not_routed"
    assert reminder_due(0, 10**15, "open", routed, [route()]) == "no_repeat"
    assert reminder_due(0, 10**15, "open", Routed("send", "no_route_names_it"), routes) == "no_repeat"


WRONG: list[tuple[str, str, str]] = [
    ('[[routes]]\nchannels = ["nobody"]', "routes.0.channels", "known: a"),
    ('[[routes]]\nchannels = ["a"]\nquiet_hours = ["late"]', "routes.0.quiet_hours", "22:00-07:00"),
    ('[[routes]]\nchannels = ["a"]\ntime_zone = "Mars/Olympus"', "routes.0.time_zone", "Europe/Berlin"),
    ('[[routes]]\nchannels = ["a"]\ndigest_at = "9"', "routes.0.digest_at", "09:00"),
    ('[[routes]]\nchannels = ["a"]\nseverities = ["awful"]', "routes.0.severities.0", "awful"),
    ("[[routes]]\nchannels = []", "routes.0.channels", "at least 1"),
    (
        '[[routes]]\nchannels = ["p"]\ndigest = "daily"\n[channels.p]\ntype = "pagerduty"',
        "routes.0.digest",
        "never",
    ),
    ('[channels.b]\ntype = "slack"', "channels.b.url", "url_env"),
    ('[channels.b]\ntype = "pigeon"\nurl = "https://x.example"', "channels.b.type", "pigeon"),
]


@pytest.mark.parametrize(("text", "key", "said"), WRONG, ids=[w[1] + " " + w[2] for w in WRONG])
def test_a_wrong_route_or_channel_names_key_value_and_fix(
    tmp_path: Path, text: str, key: str, said: str
) -> None:
    file = tmp_path / "c.toml"
    file.write_text(f'[channels.a]\nurl = "https://x.example"\n{text}\n')
    with pytest.raises(ConfigError) as caught:
        load(file)
    assert (caught.value.key, caught.value.exit_code) == (key, 78)
    assert said in str(caught.value)


# ------------------------------------------------- what comes of it, in databases


class World:
    """A log of one partition whose event time is moved by hand."""

    def __init__(
        self,
        engine: Engine,
        *routes: RouteSettings,
        channels: tuple[str, ...] = ("c",),
        group_wait_s: float = 0.0,
    ) -> None:
        made = {name: ChannelSettings(url=f"https://{name}.example") for name in channels}
        detection = DetectionSettings(group_wait_s=group_wait_s)
        self.settings = Settings(channels=made, routes=list(routes), detection=detection)
        self.engine = engine
        self.ledger = Ledger(
            engine,
            fold=make_fold(self.settings),
            owner="t",
            revision_horizon_ms=900_000,
            reopen_ms=1_800_000,
        )
        self.claim = self.ledger.claim("logs", 0, now_ms=1)
        self.attention = Attention(engine, self.settings)
        self.offset: int | None = None

    def take(self, at_ms: int, *changes: tuple[str, dict[str, Any]], series: str = "chat-large/v1") -> None:
        """Event time passes to `at_ms`, with transitions (kind, changes of the alert) at that moment."""
        old, new = self.offset, (self.offset or 0) + 1
        made = [
            AlertTransition(at_ms, kind, make_alert(series, more.pop("start", at_ms - MINUTE), **more))
            for kind, more in changes
        ]
        rows = [make_series(series)] if changes else []
        self.ledger.commit(
            make_commit(self.claim, old, new, watermark_ms=at_ms, series=rows, transitions=made)
        )
        self.offset = new
        self.attention.look(self.ledger.event_time_ms(1 << 50))

    def sent(self) -> list[tuple[str, str, str]]:
        rows = queries.deliveries(self.engine, limit=1_000)
        found = [(row["created_at"].strftime("%dT%H:%M"), row["channel"], row["event"]) for row in rows]
        return [(at, name, event.removeprefix("incident.")) for at, name, event in sorted(found)]


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    on_file = request.param == "sqlite"
    url = f"sqlite:///{tmp_path / 'r.db'}" if on_file else request.getfixturevalue("postgres_database")
    made = connect(url)
    upgrade(made)
    yield made
    made.dispose()


def test_quiet_hours_hold_the_news_until_they_are_over(engine: Engine) -> None:
    world = World(engine, route("c", quiet_hours=["22:00-07:00"]), channels=("c", "d"))
    opened = ms("2026-01-30T23:00")
    world.take(opened, ("fired", {}))
    world.take(opened + 5 * HOUR)
    assert world.sent() == [("30T23:00", "d", "opened")], "d has no quiet hours"
    world.take(ms("2026-01-31T07:00"))
    world.take(ms("2026-01-31T07:01"))
    assert world.sent()[1:] == [("31T07:00", "c", "opened")], "told once, as an opening"
    incident = queries.incident(engine, queries.incidents(engine)[0]["incident_id"])
    kinds = [event["kind"] for event in incident["events"]]
    assert kinds == ["opened", "notification_held", "notification_released"]
    assert "route 1" in incident["events"][1]["reason"]


def test_the_first_news_waits_for_what_joins_and_survives_a_restart(engine: Engine) -> None:
    world = World(engine, group_wait_s=120)
    opened = ms("2026-01-30T10:00")
    world.take(opened, ("fired", {}))
    world.take(opened + MINUTE, ("fired", {}), series="chat-large/v2")
    assert world.sent() == []
    again = World(engine, group_wait_s=120)  # another process on the same database
    again.offset = world.offset
    again.take(opened + 2 * MINUTE)
    again.take(opened + 3 * MINUTE)
    assert again.sent() == [("30T10:02", "c", "opened")], "told once"
    (row,) = Outbox(engine).claim("t", opened + HOUR, 10, 1_000)
    assert json.loads(row.payload)["data"]["series"] == ["chat-large/v1", "chat-large/v2"]
    incident = queries.incidents(engine)[0]
    events = queries.incident(engine, incident["incident_id"])["events"]
    assert [e["kind"] for e in events] == [
        "opened",
        "notification_held",
        "alert_joined",
        "notification_released",
    ]
    assert "group_wait_s" in events[1]["reason"]


def test_what_ends_while_it_waits_is_not_told_and_an_end_never_waits(engine: Engine) -> None:
    world = World(engine, group_wait_s=120)
    at_ms = ms("2026-01-30T10:00")
    world.take(at_ms, ("fired", {}))
    world.take(at_ms + MINUTE, ("resolved", {"start": at_ms - MINUTE, "status": "resolved"}))
    world.take(at_ms + 10 * MINUTE, ("fired", {}), series="rank/x")
    world.take(at_ms + 12 * MINUTE)
    world.take(
        at_ms + 13 * MINUTE,
        ("resolved", {"start": at_ms + 9 * MINUTE, "status": "resolved"}),
        series="rank/x",
    )
    assert [event for _, _, event in world.sent()] == ["opened", "resolved"]


def test_what_ends_in_quiet_hours_is_never_told_and_what_was_told_ends_at_once(engine: Engine) -> None:
    world = World(engine, route("c", quiet_hours=["22:00-07:00"]))
    evening = ms("2026-01-30T21:00")
    world.take(evening, ("fired", {}))
    world.take(ms("2026-01-30T23:00"), ("resolved", {"start": evening - MINUTE, "status": "resolved"}))
    world.take(ms("2026-01-31T02:00"), ("fired", {}), series="rank/x")
    world.take(
        ms("2026-01-31T03:00"),
        ("resolved", {"start": ms("2026-01-31T01:59"), "status": "resolved"}),
        series="rank/x",
    )
    world.take(ms("2026-01-31T08:00"))
    assert world.sent() == [("30T21:00", "c", "opened"), ("30T23:00", "c", "resolved")]


def test_a_critical_incident_breaks_the_quiet(engine: Engine) -> None:
    world = World(engine, route("c", quiet_hours=["22:00-07:00"]))
    at_ms = ms("2026-01-30T23:00")
    world.take(at_ms, ("fired", {"severity": "warning"}))
    world.take(at_ms + HOUR, ("updated", {"start": at_ms - MINUTE, "severity": "critical"}))
    world.take(at_ms + 9 * HOUR)
    assert world.sent() == [("31T00:00", "c", "opened")]


def test_reminders_come_until_somebody_acknowledges(engine: Engine) -> None:
    world = World(engine, route("c", repeat_s=3_600), channels=("c", "d"))
    at_ms = ms("2026-01-30T10:00")
    world.take(at_ms, ("fired", {}))
    for minutes in (30, 59, 60, 61, 100, 120):
        world.take(at_ms + minutes * MINUTE)
    reminders = [(at, name) for at, name, event in world.sent() if event == "reminder"]
    assert reminders == [("30T11:00", "c"), ("30T12:00", "c")]
    world.take(at_ms + 600 * MINUTE)
    assert len(world.sent()) == 5, "a late look makes one reminder, not one for each that was missed"
    incident_id = queries.incidents(engine)[0]["incident_id"]
    people(engine, world.settings).acknowledge(incident_id, by="ada", now_ms=at_ms)
    world.take(at_ms + 900 * MINUTE)
    assert len(world.sent()) == 5
    bodies = {row["delivery_id"] for row in queries.deliveries(engine)}
    assert len(bodies) == 5, "every reminder has an id of its own"


def test_after_a_silence_whoever_was_not_told_is_told(engine: Engine) -> None:
    world = World(engine)
    at_ms = ms("2026-01-30T10:00")
    people(engine, world.settings).silence(
        {"model": "chat-large"}, starts_at_ms=at_ms - HOUR, ends_at_ms=at_ms + HOUR, by="ada", now_ms=0
    )
    world.take(at_ms, ("fired", {}))
    world.take(at_ms + 59 * MINUTE)
    assert world.sent() == []
    world.take(at_ms + 60 * MINUTE)
    assert world.sent() == [("30T11:00", "c", "opened")]


def test_a_daily_summary_tells_what_happened_once(engine: Engine) -> None:
    world = World(engine, route("c", digest="daily", digest_at="09:00", time_zone="Europe/Berlin"))
    day = ms("2026-01-30T10:00")
    world.take(day)
    world.take(day + HOUR, ("fired", {}))
    world.take(day + 2 * HOUR, ("resolved", {"start": day + HOUR - MINUTE, "status": "resolved"}))
    world.take(day + 3 * HOUR, ("fired", {"severity": "critical"}), series="rank/x")
    assert world.sent() == []
    for minutes in (0, 1, 60):
        world.take(ms("2026-01-31T08:00") + minutes * MINUTE)
    assert world.sent() == [("31T08:00", "c", "digest")]
    data = json.loads(_payloads(engine)[0])["data"]
    assert (data["incident_count"], data["open_count"]) == (2, 1)
    assert data["counts"] == {
        "opened": 2,
        "reopened": 0,
        "resolved": 1,
        "acknowledged": 0,
        "severity_raised": 0,
    }
    assert [row["status"] for row in data["incidents"]] == ["open", "resolved"]
    assert (data["from"], data["until"]) == ("2026-01-30T08:00:00Z", "2026-01-31T08:00:00Z")
    world.take(ms("2026-02-01T08:00"))
    assert len(world.sent()) == 1, "nothing happened, nothing is said"


def test_two_daemons_make_one_summary_and_one_reminder(engine: Engine) -> None:
    world = World(engine, route("c", digest="hourly", severities=["warning"]), route("c", repeat_s=600))
    other = Attention(engine, world.settings)
    at_ms = ms("2026-01-30T10:00")
    world.take(at_ms)
    world.take(at_ms + MINUTE, ("fired", {"severity": "warning"}), series="rank/x")
    world.take(at_ms + 2 * MINUTE, ("fired", {}))
    for minutes in range(3, 70):
        event_ms = at_ms + minutes * MINUTE
        world.take(event_ms)
        other.look(event_ms)
    events = [event for _, _, event in world.sent()]
    assert events.count("digest") == 1
    assert events.count("reminder") == 6


def _payloads(engine: Engine) -> list[str]:
    with engine.connect() as connection:
        return [str(row[0]) for row in connection.exec_driver_sql("SELECT payload FROM deliveries")]
