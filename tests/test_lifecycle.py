"""Recurring windows, inhibition by the source, similar incidents: pure rules, and the fold that has them."""

from __future__ import annotations

import dataclasses
import itertools
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from monitor import recurrence
from monitor.config import ChannelSettings, Settings
from monitor.gaps import gap_alert
from monitor.incidents import make_fold
from monitor.inhibition import lacks_traffic
from monitor.memo import silence_of
from monitor.similar import MIN_SCORE, Traits, likeness, most_similar, similar_to, traits_of
from monitor.sources.base import Gap, Partition
from storage import history, queries
from storage.engine import connect, upgrade
from storage.people import People
from storage.types import AlertRow, AlertTransition, IncidentView, SilenceRow
from tests.storage_kit import make_commit, make_ledger, make_series
from tests.test_incidents import MINUTE, Database, alert, at, configure

BERLIN = {"days": ["tue"], "start": "22:00", "duration": "4h", "time_zone": "Europe/Berlin"}
HOUR_MS = 3_600_000


def ms(text: str) -> int:
    return round(datetime.fromisoformat(text).timestamp() * 1000)


# ---------------------------------------------------------------------------- recurring windows


@pytest.mark.parametrize(
    ("moment", "covered"),
    [
        ("2026-01-06T21:00:00+00:00", True),  # Tuesday, 22:00 in Berlin
        ("2026-01-06T20:59:59.999+00:00", False),
        ("2026-01-07T00:59:59+00:00", True),  # past midnight, still Tuesday's window
        ("2026-01-07T01:00:00+00:00", False),
        ("2026-01-07T21:30:00+00:00", False),  # Wednesday
        ("2026-07-07T20:00:00+00:00", True),  # summer time: an hour earlier in UTC
        ("2026-07-07T21:00:00+00:00", True),
        ("2026-07-07T19:59:00+00:00", False),
    ],
)
def test_a_window_follows_the_local_clock(moment: str, covered: bool) -> None:
    assert recurrence.covers(recurrence.parse(BERLIN), ms(moment)) is covered


def test_a_window_keeps_its_length_in_the_night_in_which_clocks_change() -> None:
    night = recurrence.parse({**BERLIN, "days": ["sat"]})  # clocks go on at 02:00 on Sunday 2026-03-29
    start = ms("2026-03-28T22:00:00+01:00")
    assert [recurrence.covers(night, start + i * HOUR_MS) for i in range(-1, 5)] == [
        False,
        *[True] * 4,
        False,
    ]
    skipped = recurrence.parse({**BERLIN, "days": ["sun"], "start": "02:30", "duration": "1h"})
    covered = [m for m in range(180) if recurrence.covers(skipped, start + (180 + m) * 60_000)]
    assert len(covered) == 60


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {**BERLIN, "start": "24:00"},
        {**BERLIN, "start": "9:00"},
        {**BERLIN, "duration": "soon"},
        {**BERLIN, "duration": "8d"},
        {**BERLIN, "duration": "0s"},
        {**BERLIN, "days": ["Tuesday"]},
        {**BERLIN, "days": "tue"},
        {**BERLIN, "time_zone": "Mars/Base"},
        {**BERLIN, "time_zone": "../etc/passwd"},
        {**BERLIN, "weekday": 1},
    ],
)
def test_what_is_no_recurrence_says_so(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        recurrence.parse(wrong)


rules = st.builds(
    lambda days, start, minutes, zone: {
        "days": sorted(days, key=recurrence.DAYS.index),
        "start": f"{start // 60:02}:{start % 60:02}",
        "duration": f"{minutes * 60}s",
        "time_zone": zone,
    },
    st.sets(st.sampled_from(recurrence.DAYS), min_size=1),
    st.integers(0, 1439),
    st.integers(1, 7 * 1440),
    st.sampled_from(["UTC", "Europe/Berlin", "Asia/Kolkata", "America/New_York", "Pacific/Chatham"]),
)
moments = st.integers(ms("2024-01-01T00:00:00+00:00"), ms("2028-01-01T00:00:00+00:00"))


@settings(deadline=None, max_examples=100)
@given(rules, moments)
def test_covers_agrees_with_counting_days_by_hand(rule: dict[str, Any], at_ms: int) -> None:
    parsed = recurrence.parse(rule)
    assert parsed.to_dict() == rule, "a rule survives its way through the database"
    zone, hit = ZoneInfo(rule["time_zone"]), False
    today = datetime.fromtimestamp(at_ms / 1000, UTC).astimezone(zone)
    for back in range(10):
        day = (today - timedelta(days=back)).date()
        hours, minutes = map(int, rule["start"].split(":"))
        start = datetime(day.year, day.month, day.day, hours, minutes, tzinfo=zone)
        begin_ms = round(start.timestamp() * 1000)
        if recurrence.DAYS[day.weekday()] in rule["days"]:
            hit |= begin_ms <= at_ms < begin_ms + parsed.duration_ms
    assert recurrence.covers(parsed, at_ms) is hit
    following = recurrence.next_start_ms(parsed, at_ms)
    assert at_ms <= following <= at_ms + 9 * 24 * HOUR_MS and recurrence.covers(parsed, following)


def test_a_recurring_silence_holds_only_in_its_windows() -> None:
    silence = SilenceRow("s", {"model": "m"}, 0, 1 << 60, "ann", "", BERLIN)
    row = alert("m/a", 0)
    assert silence_of(row, [silence], ms("2026-01-06T21:30:00+00:00")) is silence
    assert silence_of(row, [silence], ms("2026-01-06T20:30:00+00:00")) is None
    bounded = dataclasses.replace(silence, ends_at_ms=ms("2026-01-01T00:00:00+00:00"))
    assert silence_of(row, [bounded], ms("2026-01-06T21:30:00+00:00")) is None


# ---------------------------------------------------------------------------- inhibition


def quiet(series: str, start: int, **more: Any) -> AlertRow:
    missing = [{"feature": "request_count", "observed": 0.0, "expected": 60.0}]
    return alert(series, start, **{"top_features": missing, **more})


class Placed(Database):
    """Every series of model m arrives in logs/0, every other one in logs/1."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        fold = self.fold

        def placed(view: IncidentView, transitions: list[AlertTransition]) -> Any:
            names = {t.alert.series for t in transitions}
            places = {name: "logs/0" if name.startswith("m/") else "logs/1" for name in names}
            return fold(dataclasses.replace(view, partitions=places), transitions)

        self.fold = placed


def gap(at_minute: int) -> list[AlertTransition]:
    return gap_alert(Gap(Partition("logs", 0), 10, 110), 100, at_minute * MINUTE)


def kinds(db: Database, incident_id: str) -> list[str]:
    return [e.kind for e in db.events if e.incident_id == incident_id]


def test_a_gap_explains_the_silence_that_follows_it_in_its_partition() -> None:
    db = Placed(configure())
    db.take(*gap(10))
    told = db.sent()
    assert told == ["opened", "resolved"]
    db.take(at(11, "fired", quiet("m/a", 10)))
    incident_id = db.links["m/a@10"]
    assert db.incidents[incident_id].status == "open", "it is recorded all the same"
    assert db.sent() == told and kinds(db, incident_id) == ["opened", "notification_inhibited"]
    event = db.events[-1]
    assert "100 records of logs/0" in event.reason
    assert event.detail["cause"] == next(
        i for i, row in db.incidents.items() if row.series == ["source:logs/0"]
    )
    db.take(at(12, "resolved", quiet("m/a", 10)))
    assert db.sent() == told, "no end of what was never told"


def test_a_gap_explains_nothing_else() -> None:
    busy = [{"feature": "request_count", "observed": 90.0, "expected": 60.0}]
    for row, minute in (
        (alert("m/a", 10), 11),  # slow, not silent
        (quiet("n/a", 10), 11),  # of another partition
        (quiet("m/a", 40), 41),  # long after it
        (quiet("m/a", 8), 12),  # its windows end before it
        (
            quiet("m/a", 10, top_features=busy),
            11,
        ),
    ):
        db = Placed(configure())
        db.take(*gap(10))
        db.take(at(minute, "fired", row))
        assert db.sent() == ["opened", "resolved", "opened"], row


def test_an_outage_of_the_source_holds_back_until_it_is_over_and_then_tells() -> None:
    outage = alert("source:logs", 5, severity="critical", top_features=[], model="", endpoint="")
    db = Placed(configure())
    db.take(at(6, "fired", outage), at(6, "fired", quiet("m/a", 5)), at(6, "fired", quiet("n/a", 5)))
    assert db.sent() == ["opened"], "what befell the source comes first, and everybody hears of it once"
    db.take(at(8, "updated", quiet("m/a", 5, severity="major")))
    assert db.sent() == ["opened"]
    db.take(at(10, "resolved", outage))
    db.take(at(40, "updated", quiet("m/a", 5, severity="critical")))
    assert db.sent() == ["opened", "resolved", "opened"], "it goes on without the outage, so it is news now"


def test_missing_traffic() -> None:
    assert lacks_traffic([{"feature": "request_count", "observed": 0, "expected": None}])
    assert not lacks_traffic([]) and not lacks_traffic([{"feature": "error_rate", "observed": 0}])
    assert not lacks_traffic([{"feature": "request_count", "observed": None, "expected": 5.0}])


# ---------------------------------------------------------------------------- the life of an incident

steps = st.lists(
    st.tuples(
        st.sampled_from(["m/a", "m/b", "n/a", "gap", "person"]),
        st.sampled_from(["fired", "updated", "resolved", "withdrawn"]),
        st.booleans(),
    ),
    max_size=25,
)


@settings(deadline=None, max_examples=50)
@given(steps)
def test_every_life_is_told_in_order_and_nothing_is_edited_away(story: list[tuple[str, str, bool]]) -> None:
    """Alerts that come, go and are withdrawn by late data, gaps, and a person who resolves."""
    db, live = Placed(configure()), dict[str, AlertRow]()
    for minute, (who, kind, missing) in enumerate(story, 1):
        before, events = dict(db.incidents), len(db.events)
        if who == "gap":
            db.take(*gap(minute))
        elif who == "person":
            still = [i for i in db.incidents.values() if i.status != "resolved"]
            for i in still[:1]:
                ended = {"status": "resolved", "resolution": "by_person", "firing": []}
                new = dataclasses.replace(i, resolved_at_ms=i.last_fired_at_ms, **ended)
                db.incidents[i.incident_id] = new
            continue
        elif kind == "fired" and who not in live:
            live[who] = (quiet if missing else alert)(who, minute - 1)
            db.take(at(minute, "fired", live[who]))
        elif kind != "fired" and who in live:
            db.take(at(minute, kind, live[who] if kind == "updated" else live.pop(who)))
        for incident_id, old in before.items():
            new = db.incidents[incident_id]
            added = [e for e in db.events[events:] if e.incident_id == incident_id]
            assert new.revision == old.revision + len(added), "every change is an event"
            assert (new == old) or added
            assert new.started_at_ms <= old.started_at_ms and new.peak_score >= old.peak_score
            assert set(old.series) <= set(new.series)
    for incident in db.incidents.values():
        own = [row for row in db.outbox if row.incident_id == incident.incident_id]
        news = [row.event.removeprefix("incident.") for row in own if row.event != "incident.updated"]
        assert news[:1] in ([], ["opened"])
        assert all(a != b for a, b in itertools.pairwise(news)), "an end between two openings"
        held = [e for e in db.events if e.kind == "notification_inhibited"]
        assert all(e.detail["cause"] in db.incidents and e.reason for e in held)


def test_the_fold_is_the_same_whether_places_are_known_or_not_without_a_gap() -> None:
    fold, view = make_fold(configure()), IncidentView([], {}, [])
    story = [at(1, "fired", quiet("m/a", 0)), at(2, "fired", alert("n/a", 1))]
    placed = dataclasses.replace(view, partitions={"m/a": "logs/0", "n/a": "logs/0"})
    assert fold(view, story) == fold(placed, story)


# ---------------------------------------------------------------------------- similar incidents

words = st.frozensets(st.sampled_from("abcde"), max_size=4)
traits = st.builds(Traits, words, words, words, words)


@given(traits, traits)
def test_likeness_is_symmetric_bounded_and_whole_only_for_equals(one: Traits, other: Traits) -> None:
    alike, back = likeness(one, other), likeness(other, one)
    assert alike.score == back.score and sorted(alike.shared) == sorted(back.shared)
    assert 0.0 <= alike.score <= 1.0
    assert (alike.score > 0) == bool(alike.shared)
    assert (alike.score == 1.0) == (one == other and one != Traits())


def as_row(incident_id: str, series: str, feature: str, **slices: str) -> dict[str, Any]:
    model, _, endpoint = series.partition("/")
    return {
        "incident_id": incident_id,
        "series": series,
        "model": model,
        "endpoint": endpoint,
        "top_features": [{"feature": feature}, {"feature": "queue_p95_ms"}],
        "slices": [{"field": field, "value": value} for field, value in slices.items()],
    }


def test_the_most_alike_come_first_and_strangers_not_at_all() -> None:
    rows = [
        as_row("now", "m/a", "latency_p99_ms", tenant="acme"),
        as_row("same", "m/a", "latency_p99_ms", tenant="acme"),
        as_row("feature", "m/b", "latency_p99_ms"),
        as_row("stranger", "x/y", "accuracy") | {"top_features": [{"feature": "accuracy"}]},
    ]
    candidates = [{"incident_id": name} for name in ("stranger", "feature", "same", "bare")]
    found = most_similar("now", candidates, rows, limit=5)
    assert [row["incident"]["incident_id"] for row in found] == ["same", "feature"]
    assert found[0]["score"] == 1.0 and "tenant acme" in found[0]["shared"]
    assert MIN_SCORE <= found[1]["score"] < 1 and "model m" in found[1]["shared"]
    assert most_similar("now", candidates, rows, limit=1) == found[:1]
    assert traits_of([]) == Traits()


def test_equally_alike_ones_stand_newest_first_and_where_nothing_is_to_blame_the_series_counts() -> None:
    rows = [
        as_row("now", "m/a", "") | {"top_features": []},
        as_row("newer", "m/a", "latency_p99_ms"),
        as_row("older", "m/a", "error_rate"),
        as_row("elsewhere", "x/y", "latency_p99_ms"),
        as_row("nothing either", "m/a", "") | {"top_features": []},
    ]
    candidates = [{"incident_id": name} for name in ("elsewhere", "newer", "older", "nothing either")]
    found = most_similar("now", candidates, rows, limit=5)
    assert [row["incident"]["incident_id"] for row in found] == ["nothing either", "newer", "older"]
    assert found[1]["score"] == found[2]["score"] < found[0]["score"] == 1.0
    assert found[1]["shared"] == ["series m/a", "endpoint a", "model m"]


# ---------------------------------------------------------------------------- on a real database


@pytest.mark.postgres
def test_the_ledger_knows_which_partition_a_series_comes_from(tmp_path: Path, postgres_database: str) -> None:
    channel = ChannelSettings(url="https://example.org/hook")
    for url in (f"sqlite:///{tmp_path / 'l.db'}", postgres_database):
        engine = connect(url)
        upgrade(engine)
        ledger = make_ledger(engine, fold=make_fold(Settings(channels={"all": channel})), reopen_ms=1_800_000)
        claims = [ledger.claim("logs", number, now_ms=0) for number in (0, 1)]
        for claim, name in zip(claims, ("m/a", "n/a"), strict=True):
            silent = AlertTransition(11 * MINUTE, "fired", quiet(name, 10))
            lost = gap(10) if claim.partition == 0 else []
            ledger.commit(
                make_commit(claim, None, 20, series=[make_series(name)], transitions=[*lost, silent])
            )
        for claim in claims:
            ledger.finish("logs", claim.partition, claim.epoch, now_ms=2_000_000)
        told = {row["series"][0]: row["incident_id"] for row in queries.incidents(engine)}
        events = {name: queries.incident(engine, i)["events"] for name, i in told.items()}
        assert [e["kind"] for e in events["m/a"]] == ["opened", "notification_inhibited"]
        assert [e["kind"] for e in events["n/a"]] == ["opened"]
        assert events["m/a"][1]["detail"]["cause"] == told["source:logs/0"]
        assert {row["incident_id"] for row in queries.deliveries(engine)} == {
            told["source:logs/0"],
            told["n/a"],
        }
        engine.dispose()


def test_what_was_withdrawn_is_like_nothing(tmp_path: Path) -> None:
    """Three incidents on one series, hours apart; the alert of the first turns out to be none."""
    engine = connect(f"sqlite:///{tmp_path / 's.db'}")
    upgrade(engine)
    ledger = make_ledger(engine, fold=make_fold(Settings()), reopen_ms=1_800_000)
    rows = [alert("m/a", minute) for minute in (0, 500, 1_000)]
    over = [dataclasses.replace(row, status="resolved", resolved_at_ms=row.window_end_ms) for row in rows]
    steps = [
        step
        for minute, row, done in zip((1, 501, 1_001), rows, over, strict=True)
        for step in (at(minute, "fired", row), at(minute + 9, "resolved", done))
    ]
    claim = ledger.claim("logs", 0, now_ms=0)
    first = {"series": [make_series("m/a")], "transitions": steps, "watermark_ms": 1_011 * MINUTE}
    ledger.commit(make_commit(claim, None, 10, **first))
    newest, middle, oldest = (row["incident_id"] for row in queries.incidents(engine))
    assert [row["incident"]["incident_id"] for row in similar_to(engine, newest)] == [middle, oldest]
    assert [row["incident"]["incident_id"] for row in similar_to(engine, newest, 1)] == [middle]
    gone = dataclasses.replace(over[0], status="withdrawn")
    withdrawn = [at(1_020, "withdrawn", gone)]
    ledger.commit(make_commit(claim, 10, 20, transitions=withdrawn, watermark_ms=1_021 * MINUTE))
    assert [row["incident"]["incident_id"] for row in similar_to(engine, newest)] == [middle]
    engine.dispose()


deeds = st.lists(
    st.sampled_from(["fired", "resolved", "acknowledge", "resolve", "label", "note", "silence"]), max_size=8
)


@settings(deadline=None, max_examples=5, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(deeds)
def test_people_and_the_pipeline_take_turns_and_every_change_is_an_event(
    tmp_path_factory: pytest.TempPathFactory, story: list[str]
) -> None:
    engine = connect(f"sqlite:///{tmp_path_factory.mktemp('turns') / 't.db'}")
    upgrade(engine)
    ledger = make_ledger(engine, fold=make_fold(Settings()), reopen_ms=1_800_000)
    claim, people = ledger.claim("logs", 0, now_ms=0), People(engine)
    offset: int | None = None
    live: AlertRow | None = None
    for minute, deed in enumerate(["fired", *story], 1):
        transitions = []
        if deed == "fired" and live is None:
            live = alert("m/a", minute)
            transitions = [at(minute, "fired", live)]
        elif deed == "resolved" and live is not None:
            transitions, live = [at(minute, "resolved", live)], None
        new = (offset or 0) + 10 + minute
        ledger.commit(make_commit(claim, offset, new, series=[make_series("m/a")], transitions=transitions))
        offset = new
        (incident_id, *_) = [row["incident_id"] for row in queries.incidents(engine)]
        said = {"by": "ann", "now_ms": minute}
        if deed in ("acknowledge", "resolve"):
            getattr(people, deed)(incident_id, reason="why", **said)
        elif deed == "label":
            people.label(incident_id, "true_positive", **said)
        elif deed == "note":
            people.note(incident_id, "seen", **said)
        elif deed == "silence":
            people.silence({"model": "m"}, starts_at_ms=0, ends_at_ms=minute * MINUTE, **said)
        for row in queries.incidents(engine):
            found = queries.incident(engine, row["incident_id"])
            revisions = [event["revision"] for event in found["events"]]
            assert revisions == list(range(1, found["revision"] + 1))
            assert all(event["actor"] in ("ann", "inferwatch") for event in found["events"])
            assert (found["status"] == "resolved") == (found["resolved_at"] is not None)
            if found["status"] == "acknowledged":
                assert "acknowledged" in [event["kind"] for event in found["events"]]
    silences = sum(deed == "silence" for deed in story)
    assert len(history.actions(engine)) == len(queries.silences(engine)) == silences
    engine.dispose()
