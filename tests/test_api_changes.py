"""Changing things over HTTP, pages of lists, tags, and live events; on both databases."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine, insert, text

from monitor.api import cursors, replies, stream
from monitor.api.app import create_app
from monitor.api.server import serve_in_thread
from monitor.config import ChannelSettings, HttpSettings, Settings
from storage import queries
from storage.actions import Actor
from storage.engine import connect
from storage.models import ModelRegistry
from storage.outbox import Outbox
from storage.schema import DeploymentTable, table
from storage.tokens import Tokens
from storage.types import ModelVersionRow
from tests import services
from tests.http_client import Answer, ask
from tests.storage_kit import make_commit, make_ledger, make_revision, make_series, make_windows
from tests.stored import HOSTILE, OVER, populate

MINUTE_MS = 60_000


def fill(engine: Engine) -> None:
    """Models, deployments and a notification that was given up, beside what `populate` leaves."""
    registry = ModelRegistry(engine)
    for n, status in enumerate(("champion", "champion", "refused"), 1):
        registry.add(ModelVersionRow(f"m{n}", "ensemble", n, status, {"ap": 0.8}, b"bytes", "00"))
    rows = [
        {"series": series, "model_version": f"v{n}", "at_ms": n * MINUTE_MS}
        for n in range(1, 4)
        for series in (HOSTILE, OVER)
    ]
    with engine.begin() as connection:
        connection.execute(insert(table(DeploymentTable)), rows)
    outbox = Outbox(engine)
    for claimed in outbox.claim("test", 10_000_000, 10, 1_000):
        outbox.dead(claimed.delivery_id, "test", 10_000_001, "too_old")


@dataclass(frozen=True, slots=True)
class Site:
    url: str
    engine: Engine
    headers: dict[str, str]
    woken: list[int]

    def get(self, path: str, **headers: str) -> Answer:
        return ask(self.url, path, headers={**self.headers, **headers})

    def send(self, path: str, body: Any = None, method: str = "POST") -> Answer:
        return ask(self.url, path, method, body, self.headers)


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def site(request: pytest.FixtureRequest, tmp_path: Any) -> Iterator[Site]:
    """A server over a fresh populated database, asked with a token that may write."""
    server = None if request.param == "sqlite" else request.getfixturevalue("postgres_url")
    url = f"sqlite:///{tmp_path / 'w.db'}" if server is None else services.create_database(server)
    populate(url)
    engine = connect(url)
    fill(engine)
    secret = Tokens(engine).create("bot", "write", Actor("test", 1))
    channel = ChannelSettings(url="http://127.0.0.1:9/hook", allow_private=True)
    settings = Settings(http=HttpSettings(host="0.0.0.0"), channels={"oncall": channel})
    woken: list[int] = []
    app = create_app(engine, health=lambda: HEALTH, settings=settings, on_change=lambda: woken.append(1))
    handle = serve_in_thread(app, "127.0.0.1", 0)
    yield Site(handle.url, engine, {"authorization": f"Bearer {secret}"}, woken)
    handle.stop()
    engine.dispose()
    if server is not None:
        services.drop_database(server, url)


HEALTH: dict[str, Any] = {
    "partitions": {"logs/0": {"end_offset": 17, "stalled": True}},
    "database_reachable": True,
}


def test_an_incident_is_acknowledged_labelled_noted_and_resolved(site: Site) -> None:
    incident_id = site.get("/api/v1/incidents?status=open").json[0]["incident_id"]
    path = f"/api/v1/incidents/{incident_id[:12]}"
    taken = site.send(f"{path}/acknowledge", {"by": "ann", "comment": "mine"}).json
    assert taken["status"] == "acknowledged" and taken["acknowledged_at"]
    event = taken["events"][-1]
    assert (event["kind"], event["actor"], event["reason"]) == ("acknowledged", "ann", "mine")
    assert event["detail"]["via"] == "bot", "a name that is only said is told from the token that said it"
    again = site.send(f"{path}/acknowledge")
    assert again.status == 200 and again.json["revision"] == taken["revision"], "said once is enough"
    labelled = site.send(f"{path}/label", {"label": "true_positive", "comment": "v7"}).json
    assert labelled["labels"][0]["label"] == "true_positive" and labelled["labels"][0]["by"] == "bot"
    noted = site.send(f"{path}/notes", {"text": "the cache is <cold>"}).json
    assert noted["notes"][0]["note"] == "the cache is <cold>" and noted["notes"][0]["author"] == "bot"
    assert "via" not in noted["events"][-1]["detail"]
    before = len(site.woken)
    done = site.send(f"{path}/resolve", {"comment": "rolled back"}).json
    assert (done["status"], done["resolution"], done["firing"]) == ("resolved", "by_person", [])
    assert done["deliveries"][-1]["event"] == "incident.resolved", "who was told of it hears its end"
    assert len(site.woken) == before + 1
    assert [e["kind"] for e in done["events"][1:]] == ["acknowledged", "labelled", "noted", "resolved"]
    again = site.send(f"{path}/reopen", {"comment": "not gone"}).json
    assert (again["status"], again["resolution"], again["resolved_at"]) == ("open", None, None)
    assert again["acknowledged_at"] is None and again["deliveries"][-1]["event"] == "incident.reopened"
    assert (again["events"][-1]["kind"], again["events"][-1]["reason"]) == ("reopened", "not gone")
    same = site.send(f"{path}/reopen").json
    assert same["revision"] == again["revision"], "what is open is not opened again"
    assert site.send(f"{path}/resolve").json["status"] == "resolved"
    assert [e["revision"] for e in done["events"]] == list(range(1, 6))


WRONG: list[tuple[str, Any, int]] = [
    ("/incidents/nothing/acknowledge", {}, 404),
    ("/incidents/a%00b/resolve", {}, 404),
    ("/incidents/1/acknowledge", {"by": ""}, 422),
    ("/incidents/1/acknowledge", {"who": "x"}, 422),
    ("/incidents/1/label", {}, 422),
    ("/incidents/1/label", {"label": "a\0b"}, 422),
    ("/incidents/1/notes", {"text": ""}, 422),
    ("/incidents/1/notes", ["text"], 422),
    ("/silences", {"matchers": {}, "for": "2h"}, 422),
    ("/silences", {"matchers": {"colour": "red"}, "for": "2h"}, 422),
    ("/silences", {"matchers": {"model": "m"}}, 422),
    ("/silences", {"matchers": {"model": "m"}, "for": "soon"}, 422),
    ("/silences", {"matchers": {"model": "m"}, "for": "2h", "ends_at": "2026-01-01T00:00:00Z"}, 422),
    ("/silences", {"matchers": {"model": "m"}, "ends_at": "1970-01-01T00:00:01Z"}, 422),
    ("/silences", {"matchers": {"model": "m"}, "for": "999999999w"}, 422),
    ("/silences", {"matchers": {"model": "m"}, "recurrence": {"start": "25:00", "duration": "1h"}}, 422),
    ("/models/nothing/promote", {}, 404),
    ("/models/a%00b/promote", {}, 404),
    ("/deliveries/nothing/retry", {}, 404),
]


def test_what_cannot_be_is_a_problem_and_changes_nothing(site: Site) -> None:
    for path, body, status in WRONG:
        answer = site.send(f"/api/v1{path}", body)
        assert answer.status == status, (path, body, answer.text)
        assert answer.headers["content-type"] == "application/problem+json" and answer.json["detail"]
    assert site.get("/api/v1/silences").json == [] and not site.woken
    with site.engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM actions")).scalar() == 1, "only the token"


def test_silences_come_and_go_and_recur(site: Site) -> None:
    made = site.send("/api/v1/silences", {"matchers": {"model": "chat"}, "for": "2h", "comment": "load test"})
    assert made.status == 201 and made.json["created_by"] == "bot" and made.json["recurrence"] is None
    rule = {"days": ["thu", "tue"], "start": "22:00", "duration": "4h", "time_zone": "Europe/Berlin"}
    weekly = site.send(
        "/api/v1/silences",
        {"matchers": {"series": "a/b"}, "starts_at": "2026-01-01T00:00:00Z", "recurrence": rule, "by": "ann"},
    ).json
    assert weekly["recurrence"] == {**rule, "days": ["tue", "thu"], "duration": "14400s"}
    assert weekly["ends_at"] == "9999-12-31T23:59:59Z", "a recurrence may go on for good"
    both = site.get("/api/v1/silences?current=true").json
    assert {row["silence_id"] for row in both} == {made.json["silence_id"], weekly["silence_id"]}
    gone = site.send(f"/api/v1/silences/{made.json['silence_id']}", method="DELETE")
    assert gone.status == 200 and gone.json["ends_at"] <= made.json["ends_at"]
    assert [row["silence_id"] for row in site.get("/api/v1/silences?current=true").json] == [
        weekly["silence_id"]
    ]
    assert len(site.get("/api/v1/silences").json) == 2, "an ended one stays in the list"
    assert site.send("/api/v1/silences/nothing", method="DELETE").status == 404
    told = site.get("/api/v1/actions").json
    assert [(row["action"], row["actor"]) for row in told] == [
        ("silence.ended", "bot"),
        ("silence.created", "ann"),
        ("silence.created", "bot"),
        ("token.created", "test"),
    ]
    assert told[1]["detail"]["via"] == "bot" and told[2]["reason"] == "load test"


def test_models_are_promoted_and_taken_back(site: Site) -> None:
    assert [row["status"] for row in site.get("/api/v1/models").json] == ["refused", "champion", "retired"]
    assert site.send("/api/v1/models/m3/promote", {"comment": "better on ours"}).json["status"] == "champion"
    assert site.send("/api/v1/models/rollback").json["version"] == "m2"
    assert site.send("/api/v1/models/rollback").json["version"] == "m1"
    prior = site.send("/api/v1/models/rollback").json
    assert prior["version"] is None and prior["status"] == "champion"
    assert site.send("/api/v1/models/rollback").status == 409
    actions = [row["action"] for row in site.get("/api/v1/actions?limit=4").json]
    assert actions == ["model.rolled_back"] * 3 + ["model.promoted"]


def test_a_notification_that_was_given_up_is_sent_again(site: Site) -> None:
    dead = site.get("/api/v1/deliveries?status=dead").json
    again = site.send(f"/api/v1/deliveries/{dead[0]['delivery_id']}/retry")
    assert again.json["status"] == "pending" and site.woken
    assert site.send(f"/api/v1/deliveries/{dead[0]['delivery_id']}/retry").status == 409


PAGED = {
    "/api/v1/incidents": "incident_id",
    "/api/v1/alerts": "alert_id",
    "/api/v1/series": "series",
    "/api/v1/windows?series=chat%2Fb": "window_start",
    "/api/v1/deployments": "series",
    "/api/v1/deliveries": "delivery_id",
    "/api/v1/models": "version",
    "/api/v1/silences": "silence_id",
    "/api/v1/rejected": "offset",
    "/api/v1/actions": "at",
}


def test_pages_hold_everything_once_in_order(site: Site) -> None:
    for n in range(3):
        site.send("/api/v1/silences", {"matchers": {"model": f"m{n}"}, "for": "2h"})
    for path in PAGED:
        whole = site.get(path).json
        pages, next_path = [], f"{path}{'&' if '?' in path else '?'}limit=1"
        while next_path:
            answer = site.get(next_path)
            assert len(answer.json) == 1 or not whole
            pages.append(answer.json)
            link = answer.headers.get("link")
            next_path = ""
            if link is not None:
                found = re.fullmatch(r'<(/api/v1/[^>]+)>; rel="next"', link)
                assert found, link
                next_path = found[1]
        if "windows" in path:
            pages.reverse()
        assert [row for page in pages for row in page] == whole, path
        assert len(whole) > 1 or "rejected" in path, path
    other = cursors.encode("models", {"trained_at": 1, "version": "m1"})
    for cursor in ("x", "", "W10", "////", other, "é"):
        refused = site.get(f"/api/v1/incidents?cursor={cursor.encode().hex() if cursor == 'é' else cursor}")
        assert refused.status == 422 and "cursor" in refused.json["detail"]


@given(st.text(max_size=30))
def test_any_text_is_a_cursor_or_refused(cursor: str) -> None:
    for name in cursors.FIELDS:
        try:
            values = cursors.decode(name, cursor)
        except ValueError:
            continue
        assert cursors.encode(name, dict(zip(cursors.FIELDS[name], values, strict=True)))


def test_filters(site: Site) -> None:
    (hostile,) = site.get(
        f"/api/v1/incidents?series={HOSTILE.replace('/', '%2F').replace(chr(27), '%1B')}"
    ).json
    assert hostile["series"] == [HOSTILE]
    assert [row["series"] for row in site.get("/api/v1/incidents?model=rank").json] == [[OVER]]
    assert site.get("/api/v1/incidents?severity=critical").json == []
    assert len(site.get("/api/v1/alerts?status=resolved").json) == 1
    assert [row["series"] for row in site.get("/api/v1/series?contains=RANK").json] == [OVER]
    assert site.get("/api/v1/series?contains=%25").json == [], "% is no wildcard"
    assert {row["channel"] for row in site.get("/api/v1/deliveries?channel=oncall").json} == {"oncall"}
    assert len(site.get("/api/v1/deployments?series=rank/search").json) == 3
    assert site.get("/api/v1/rejected?reason=other").json == []


def test_single_things(site: Site) -> None:
    summary = site.get("/api/v1/series/rank/search").json
    assert summary["learning"] and summary["open_incidents"] == [] and len(summary["deployments"]) == 3
    assert site.get("/api/v1/series/no/such").status == 404
    assert site.get("/api/v1/series/a%00b").status == 404
    (source,) = site.get("/api/v1/sources").json
    assert (source["next_offset"], source["end_offset"], source["lag"], source["rejected"]) == (10, 17, 7, 1)
    assert source["stalled"] is True
    alert_id = site.get("/api/v1/alerts?status=resolved").json[0]["alert_id"]
    steps = site.get(f"/api/v1/alerts/{alert_id}").json["steps"]
    assert [step["kind"] for step in steps] == ["fired", "resolved"]
    assert site.get("/api/v1/alerts/none").status == 404 == site.get("/api/v1/models/none").status
    assert site.get("/api/v1/models/m1").json["metrics"] == {"ap": 0.8}
    incident_id = site.get("/api/v1/incidents?status=open").json[0]["incident_id"]
    (alike,) = site.get(f"/api/v1/incidents/{incident_id}/similar").json
    assert 0 < alike["score"] <= 1 and "feature latency_p99_ms" in alike["shared"]
    assert alike["incident"]["series"] == [OVER]
    assert site.get("/api/v1/revisions?series=a&window_start=0").status == 422
    assert site.get("/api/v1/revisions?series=a&window_start=1970-01-01T00:00:00Z").json == []


def test_an_unchanged_answer_is_not_sent_twice(site: Site) -> None:
    first = site.get("/api/v1/incidents")
    tag = first.headers["etag"]
    assert tag.startswith('W/"') and "private" in first.headers["cache-control"]
    for condition in (tag, f'"x", {tag}', "*", tag.removeprefix("W/")):
        same = site.get("/api/v1/incidents", **{"if-none-match": condition})
        assert (same.status, same.text, same.headers["etag"]) == (304, "", tag)
    assert site.get("/api/v1/incidents", **{"if-none-match": '"other"'}).status == 200
    assert site.send("/api/v1/incidents/1/notes", {"text": "changed"}).status == 404, "a position is no id"
    site.send(f"/api/v1/incidents/{first.json[0]['incident_id']}/notes", {"text": "changed"})
    changed = site.get("/api/v1/incidents", **{"if-none-match": tag})
    assert changed.status == 200 and changed.headers["etag"] != tag


class Listener:
    """A raw reader of server-sent events."""

    def __init__(self, site: Site, last_event_id: str | None = None) -> None:
        host, port = site.url.removeprefix("http://").split(":")
        self.socket = socket.create_connection((host, int(port)), timeout=20)
        lines = [f"authorization: {site.headers['authorization']}"]
        if last_event_id is not None:
            lines.append(f"last-event-id: {last_event_id}")
        head = "\r\n".join(["GET /api/v1/events HTTP/1.1", f"host: {host}:{port}", *lines, "", ""])
        self.socket.sendall(head.encode())
        self.text = ""

    def until(self, pattern: str) -> str:
        while not re.search(pattern, self.text, re.S):
            part = self.socket.recv(65_536)
            assert part, self.text
            self.text += part.decode()
        return self.text


def test_live_events_name_what_changed_and_go_on_after_a_break(site: Site) -> None:
    incident_id = site.get("/api/v1/incidents?status=open").json[0]["incident_id"]
    listener = Listener(site)
    listener.until("retry: ")
    site.send(f"/api/v1/incidents/{incident_id}/acknowledge")
    site.send(f"/api/v1/incidents/{incident_id}/notes", {"text": "seen"})
    heard = listener.until('"kind": "noted"')
    assert "text/event-stream" in heard
    mark = re.findall(r"id: (\d+\.\d+\.\d+)", heard)[-1]
    listener.socket.close()
    dead = queries.deliveries(site.engine, status="dead", limit=1)[0]["delivery_id"]
    site.send(f"/api/v1/incidents/{incident_id}/resolve")
    site.send(f"/api/v1/deliveries/{dead}/retry")
    later = Listener(site, mark)
    heard = later.until('"delivery_id": null')
    assert heard.count("event: incident") == 1 and '"kind": "resolved"' in heard
    site.send(f"/api/v1/incidents/{incident_id}/notes", {"text": "more"})
    later.until('"kind": "noted"')
    later.socket.close()


def test_a_server_ends_while_somebody_listens(site: Site, tmp_path: Any) -> None:
    handle = serve_in_thread(create_app(site.engine, health=dict), "127.0.0.1", 0)
    listener = Listener(Site(handle.url, site.engine, {"authorization": site.headers["authorization"]}, []))
    listener.until("retry: ")
    handle.stop()
    while listener.socket.recv(65_536):
        pass
    listener.socket.close()
    with pytest.raises(OSError, match=r"\w"):
        ask(handle.url, "/healthz")


def test_listeners_have_a_bound(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "MAX_STREAMS", 1)
    first = Listener(site)
    first.until("retry: ")
    refused = site.get("/api/v1/events")
    assert refused.status == 503 and refused.headers["retry-after"]
    first.socket.close()


def test_what_late_records_changed_stays_visible(site: Site) -> None:
    ledger = make_ledger(site.engine)
    claim = ledger.claim("other", 0, now_ms=1)
    late = {"windows": [make_windows(0, ["late/a"])], "revisions": [make_revision("late/a", 0, 0.75)]}
    ledger.commit(make_commit(claim, None, 10, series=[make_series("late/a")], **late))
    (window,) = site.get("/api/v1/windows?series=late%2Fa").json
    assert (window["revision"], window["score"]) == (1, 0.75)
    start = quote(window["window_start"])
    (before,) = site.get(f"/api/v1/revisions?series=late%2Fa&window_start={start}").json
    assert (before["revision"], before["score"], before["request_count"]) == (0, 0.25, 60.0)
    assert replies.Revision.model_validate(before) and replies.Window.model_validate(window)
