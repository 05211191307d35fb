"""What people say of incidents, also at times when one would not: by command and by HTTP alike."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from sqlalchemy import Engine

from monitor.api.app import create_app
from monitor.api.server import serve_in_thread
from monitor.clock import SystemClock
from monitor.config import ChannelSettings, Settings
from monitor.people import people
from storage import queries
from storage.engine import connect
from tests.stored import HOSTILE, OVER, populate
from tests.test_cli import call

__all__ = ["call"]  # the fixture
Call = Callable[..., tuple[int, str, str]]
Act = Callable[..., dict[str, Any]]
WANTS_ALL = ("incident.opened", "incident.resolved", "incident.acknowledged", "incident.reopened")
SETTINGS = Settings(
    channels={
        "oncall": ChannelSettings(url="http://127.0.0.1:9/", allow_private=True, events=list(WANTS_ALL))
    }
)


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    url = f"sqlite:///{tmp_path / 'edges.db'}"
    if request.param == "postgresql":
        url = str(request.getfixturevalue("postgres_database"))
    populate(url)
    return url


@pytest.fixture
def engine(url: str) -> Iterator[Engine]:
    engine = connect(url)
    yield engine
    engine.dispose()


@pytest.fixture(params=["command", "http"])
def act(request: pytest.FixtureRequest, call: Call, url: str, engine: Engine) -> Iterator[Act]:
    """`act("acknowledge", ID, by="ada", comment="why")` -> the incident afterwards, in either way."""
    if request.param == "command":
        words = {"acknowledge": "ack", "notes": "note"}

        def command(
            deed: str, incident_id: str, by: str, comment: str = "", said: str = ""
        ) -> dict[str, Any]:
            given = ["--by", by, "--database", url, "--json"] + (["--comment", comment] if comment else [])
            more = [said] if said else []
            code, out, _ = call("incidents", words.get(deed, deed), incident_id, *more, *given)
            assert code == 0
            return dict(json.loads(out))

        yield command
        return
    handle = serve_in_thread(create_app(engine, health=dict, settings=SETTINGS), "127.0.0.1", 0)

    def post(deed: str, incident_id: str, by: str, comment: str = "", said: str = "") -> dict[str, Any]:
        name = {"label": "label", "notes": "text"}.get(deed)
        body = {"by": by, **({"comment": comment} if comment else {}), **({name: said} if name else {})}
        answer = httpx2.post(
            f"{handle.url}/api/v1/incidents/{incident_id}/{deed}", json=body, headers={"X-Inferwatch": "1"}
        )
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    yield post
    handle.stop()


def incident_of(engine: Engine, series: str) -> str:
    return str(queries.incidents(engine, series=series)[0]["incident_id"])


def kinds(found: dict[str, Any]) -> list[tuple[str, str]]:
    return [(event["kind"], event["actor"]) for event in found["events"] if event["actor"] != "inferwatch"]


def test_acknowledging_what_is_over_records_who_has_seen_it(engine: Engine, act: Act) -> None:
    incident_id = incident_of(engine, OVER)
    before = queries.incident(engine, incident_id)
    found = act("acknowledge", incident_id, "ada", "looked at it in the morning")
    assert (found["status"], found["resolution"]) == ("resolved", before["resolution"])
    assert found["acknowledged_at"] is not None
    assert kinds(found) == [("acknowledged", "ada")]
    assert found["events"][-1]["reason"] == "looked at it in the morning"
    sent = [row["event"] for row in queries.deliveries(engine, incident_id=incident_id)]
    assert "incident.acknowledged" not in sent, "nobody need be told after the end"
    again = act("acknowledge", incident_id, "bob")
    assert kinds(again) == [("acknowledged", "ada")]
    assert again["acknowledged_at"] == found["acknowledged_at"]


def test_it_can_come_back_and_is_seen_by_nobody_again(engine: Engine, act: Act) -> None:
    incident_id = incident_of(engine, OVER)
    act("acknowledge", incident_id, "ada")
    found = act("reopen", incident_id, "bob", "it goes on")
    assert (found["status"], found["acknowledged_at"], found["resolved_at"]) == ("open", None, None)
    found = act("acknowledge", incident_id, "bob")
    assert found["status"] == "acknowledged"
    assert kinds(found) == [("acknowledged", "ada"), ("reopened", "bob"), ("acknowledged", "bob")]


def test_an_acknowledgement_outlives_the_end(engine: Engine, act: Act) -> None:
    incident_id = incident_of(engine, HOSTILE)
    taken = act("acknowledge", incident_id, "ada")
    found = act("resolve", incident_id, "ada")
    assert (found["status"], found["acknowledged_at"]) == ("resolved", taken["acknowledged_at"])
    assert kinds(act("acknowledge", incident_id, "bob")) == [("acknowledged", "ada"), ("resolved", "ada")]


def test_labels_and_notes_after_the_end_change_nothing_else(engine: Engine, act: Act) -> None:
    incident_id = incident_of(engine, OVER)
    before = queries.incident(engine, incident_id)
    act("label", incident_id, "ada", said="false_positive")
    found = act("label", incident_id, "bob", "it was the deploy", said="true_positive")
    found = act("notes", incident_id, "bob", said="restart the cache first")
    assert [(row["label"], row["by"]) for row in found["labels"]] == [
        ("false_positive", "ada"),
        ("true_positive", "bob"),
    ]
    assert [(note["note"], note["author"]) for note in found["notes"]] == [("restart the cache first", "bob")]
    for name in ("status", "resolution", "severity", "peak_score", "title"):
        assert found[name] == before[name]
    assert kinds(found) == [("labelled", "ada"), ("labelled", "bob"), ("noted", "bob")]
    assert len(queries.deliveries(engine, incident_id=incident_id)) == len(before["deliveries"])


def test_a_command_that_changes_nothing_says_so(call: Call, engine: Engine, url: str) -> None:
    over, going_on = incident_of(engine, OVER), incident_of(engine, HOSTILE)
    given = ("--by", "ada", "--database", url)
    code, out, err = call("incidents", "resolve", over, *given)
    assert (code, err) == (0, "nothing was changed: it is resolved already\n")
    code, out, err = call("incidents", "reopen", going_on, *given)
    assert (code, err) == (0, "nothing was changed: it is open already\n")
    code, out, err = call("incidents", "ack", over, *given)
    assert out.endswith(": resolved, acknowledged by ada\n") and err == ""
    code, out, err = call("incidents", "ack", over, "--by", "bob", "--database", url)
    assert (code, err) == (0, "nothing was changed: it is resolved, and ada has acknowledged it\n")
    for words in (("note", over, "  "), ("label", over, ""), ("note", over, "text", "--comment", "more")):
        assert call("incidents", *words, *given)[0] == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["colour=red"], "write FIELD=VALUE"),
        (["model=a", "model=b"], "model is given twice"),
        (["model=a", "--for", "0h"], "must be longer than nothing"),
        (["model=a", "--for", "long"], "is no duration"),
        (["model=a", "--start", "yesterday"], "is no time"),
    ],
)
def test_a_silence_that_makes_no_sense_is_refused_before_the_database_is_looked_at(
    call: Call, words: list[str], said: str
) -> None:
    code, _, err = call("silences", "add", *words, "--database", "sqlite:///nowhere.db")
    assert code == 2 and said in " ".join(err.replace("│", " ").split())


def test_a_silence_begins_when_it_is_told_to(call: Call, engine: Engine, url: str) -> None:
    given = ["--for", "1h", "--by", "ada", "--comment", "load test", "--database", url]
    code, out, _ = call("silences", "add", "model=a", "tenant=b", "--start", "1970-01-01T00:00:00Z", *given)
    (silence,) = queries.silences(engine)
    assert (code, out) == (0, f"{silence['silence_id']} until 1970-01-01T01:00:00Z\n")
    assert silence["matchers"] == {"model": "a", "tenant": "b"} and silence["starts_at"].timestamp() == 0
    assert (silence["created_by"], silence["comment"]) == ("ada", "load test")


def test_channels_hear_of_an_acknowledgement_while_it_lasts(engine: Engine) -> None:
    acting, incident_id = people(engine, SETTINGS), incident_of(engine, HOSTILE)
    acting.acknowledge(incident_id, by="ada", now_ms=SystemClock().now_ms())
    sent = [row["event"] for row in queries.deliveries(engine, incident_id=incident_id)]
    assert sent.count("incident.acknowledged") == 1


def test_people_acknowledge_label_and_resolve(call: Call, url: str) -> None:
    database = ("--database", url)
    assert call("incidents", "ack", "1", "--by", "ada", "--comment", "mine", *database)[0] == 0
    assert call("incidents", "label", "1", "true_positive", "--by", "ada", *database)[0] == 0
    code, out, _ = call("incidents", "resolve", "1", "--by", "ada", *database, "--json")
    found = json.loads(out)
    assert (code, found["status"], found["resolution"]) == (0, "resolved", "by_person")
    assert [label["label"] for label in found["labels"]] == ["true_positive"]
    people = [(event["kind"], event["actor"]) for event in found["events"] if event["actor"] == "ada"]
    assert people == [("acknowledged", "ada"), ("labelled", "ada"), ("resolved", "ada")]
    assert [row["event"] for row in found["deliveries"]] == ["incident.opened", "incident.resolved"]
    assert [row["channel"] for row in found["deliveries"]] == ["oncall", "oncall"]
    out = call("incidents", "reopen", "1", "--by", "ada", "--comment", "no", *database, "--json")[1]
    again = json.loads(out)
    assert (again["status"], again["events"][-1]["reason"]) == ("open", "no")


def test_silences_are_added_listed_and_ended(call: Call, url: str) -> None:
    database = ("--database", url)
    code, out, _ = call("silences", "add", "model=chat", "--for", "2h", "--by", "ada", *database, "--json")
    assert code == 0
    silence = json.loads(out)["silence_id"]
    rows = json.loads(call("silences", "list", *database, "--json")[1])
    assert [(row["silence_id"], row["matchers"]) for row in rows] == [(silence, {"model": "chat"})]
    assert call("silences", "remove", silence, *database)[0] == 0
