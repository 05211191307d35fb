"""One contract for every kind of channel, over real HTTP; then what each kind promises by itself."""

from __future__ import annotations

import json
import re
from datetime import datetime
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from standardwebhooks import Webhook

from monitor.channels import slack
from monitor.channels.apprise import AppriseChannel, message
from monitor.channels.base import Channel
from monitor.channels.registry import SIGNED_TYPES, make_channel, shape_of
from monitor.clock import SystemClock
from monitor.config import ChannelSettings
from monitor.config_channels import NO_DIGEST, PAGERDUTY_URL, ChannelType
from monitor.errors import ConfigError
from tests.notices import HOSTILE, KINDS, ROUTING_KEY, SECRET, incident, settings_of, stored
from tests.receivers import hang, hook

TYPES: tuple[str, ...] = get_args(ChannelType)
OVER_HTTP = tuple(name for name in TYPES if name != "apprise")
DASHBOARD = "https://watch.example.org/"


def make(kind: str, url: str, *, timeout_s: float = 20.0, **more: Any) -> Channel:
    return make_channel(
        "c", settings_of(kind, url, **more), timeout_s=timeout_s, clock=SystemClock(), dashboard_url=DASHBOARD
    )


def told(kind: str) -> tuple[str, ...]:
    """Every notification a type can be given."""
    return (*KINDS, "test", *(() if kind in NO_DIGEST else ("digest",)))


# -------------------------------------------------------------------- contract


@pytest.mark.parametrize("kind", TYPES)
def test_every_kind_of_news_arrives_with_the_same_bytes_at_every_attempt(kind: str) -> None:
    news = told(kind) if kind != "apprise" else ("incident.opened",)  # a process each: one is enough
    with hook(*[status for _ in news for status in (500, 200)], 200) as server:
        for event in news:
            first, second = make(kind, server.url), make(kind, server.url)
            assert not first.send(stored(event)).arrived
            assert second.send(stored(event)).arrived
        bodies = [body for _, body in server.requests]
    assert len(bodies) == 2 * len(news)
    assert bodies[::2] == bodies[1::2]
    for body in bodies:
        json.loads(body.decode())


@pytest.mark.parametrize("kind", TYPES)
def test_the_guard_stands_in_front_of_every_channel(kind: str) -> None:
    with hook(200) as server:
        outcome = make(kind, server.url, allow_private=False).send(stored("incident.opened"))
        assert (outcome.error, outcome.arrived) == ("target_refused", False)
        assert "loopback" in outcome.detail and "allow_private" in outcome.detail
        assert server.requests == []


@pytest.mark.parametrize("kind", TYPES)
def test_a_receiver_that_hangs_is_left_at_the_deadline_and_a_closed_channel_stops(kind: str) -> None:
    with hook(hang(20)) as server:
        ours = make(kind, server.url, timeout_s=0.5)
        assert ours.send(stored("incident.opened")).error == "timeout"
        ours.close()
        assert ours.send(stored("incident.opened")).error == "stopped"


@pytest.mark.parametrize("kind", TYPES)
def test_secrets_stay_out_of_what_is_said(kind: str) -> None:
    ours = make(kind, "http://127.0.0.1:1/hook/hunter2")
    outcome = ours.send(stored("incident.opened"))
    assert not outcome.arrived
    for secret in ("hunter2", ROUTING_KEY, SECRET):
        assert secret not in outcome.detail + outcome.error


@pytest.mark.parametrize("kind", sorted(SIGNED_TYPES))
def test_signed_channels_are_accepted_by_the_reference_under_either_key_of_a_rotation(
    kind: str, tmp_path: Path
) -> None:
    old = "whsec_" + "b2xkIGtleSB0aGF0IGlzIHJvdGF0ZWQgb3V0"
    file = tmp_path / "secrets"
    file.write_text(f"{SECRET}\n{old}\n")
    with hook(200) as server:
        chosen = ChannelSettings(type=kind, url=server.url, secret_file=file, allow_private=True)  # type: ignore[arg-type]
        channel = make_channel("c", chosen, timeout_s=5, clock=SystemClock())
        assert channel.send(stored("incident.opened", delivery_id="m-1")).arrived
        headers, body = server.requests[0]
    assert headers["webhook-id"] == "m-1"
    for secret in (SECRET, old):
        assert Webhook(secret).verify(body, headers) == json.loads(body)
    with pytest.raises(Exception, match="signature"):
        Webhook("whsec_" + "YW5vdGhlciBrZXkgb2Ygc29tZWJvZHkgZWxzZQ==").verify(body, headers)


@pytest.mark.parametrize("kind", TYPES)
def test_a_wrong_address_or_secret_names_key_and_fix(kind: str, tmp_path: Path) -> None:
    missing = ChannelSettings(type=kind, url_env="NOT_SET", secret=ROUTING_KEY)  # type: ignore[arg-type]
    if kind in SIGNED_TYPES:
        missing = ChannelSettings(type=kind, url_env="NOT_SET")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"channels\.c\.url_env.*export NOT_SET"):
        make_channel("c", missing, timeout_s=1, clock=SystemClock(), environment={})
    if kind in ("slack", "apprise"):
        return
    file = tmp_path / "no-such-file"
    with pytest.raises(ConfigError, match=r"channels\.c\.secret_file.*not readable"):
        shape_of("c", ChannelSettings(type=kind, url="https://x.example", secret_file=file), {})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"channels\.c\.secret") as caught:
        shape_of(
            "c",
            settings_of(kind, "https://x.example", secret="hunter2 \x01")
            if kind == "alertmanager"
            else ChannelSettings(type=kind, url="https://x.example", secret="hunter2"),
            {},
        )  # type: ignore[arg-type]
    assert "hunter2" not in str(caught.value)


# ------------------------------------------------------------------- PagerDuty


def body_of(kind: str, event: str, **changes: Any) -> Any:
    shape = shape_of("c", settings_of(kind, "https://receiver.example/x"), {}, DASHBOARD)
    return json.loads(shape.body(stored(event, **changes)))


def test_pagerduty_triggers_acknowledges_and_resolves_under_one_key() -> None:
    events = {name: body_of("pagerduty", name) for name in KINDS}
    assert {event["dedup_key"] for event in events.values()} == {incident("incident.opened")["id"]}
    assert [event["event_action"] for event in events.values()] == [
        "trigger",
        "trigger",
        "trigger",
        "trigger",
        "acknowledge",
        "resolve",
    ]
    for event in events.values():
        assert event["routing_key"] == ROUTING_KEY
        assert ("payload" in event) == (event["event_action"] == "trigger")
    payload = events["incident.opened"]["payload"]
    assert payload["severity"] == "error"
    assert payload["timestamp"] == "2026-01-31T12:00:00Z"
    assert {
        body_of("pagerduty", KINDS[0], severity=s)["payload"]["severity"] for s in ("warning", "critical")
    } == {
        "warning",
        "critical",
    }
    long = body_of("pagerduty", "incident.opened", title="x" * 5_000)["payload"]
    assert len(long["summary"]) == 1_024
    assert events["incident.opened"]["links"][0]["href"].startswith(DASHBOARD + "incidents/")
    assert body_of("pagerduty", "test")["payload"]["severity"] == "info"


def test_pagerduty_needs_no_address_and_hears_of_acknowledgements() -> None:
    channel = ChannelSettings(type="pagerduty", secret=ROUTING_KEY)  # type: ignore[arg-type]
    assert shape_of("c", channel, {}).url == PAGERDUTY_URL
    assert channel.wants("incident.acknowledged")
    assert not ChannelSettings(url="https://x.example").wants("incident.acknowledged")
    only = ChannelSettings(type="pagerduty", secret=ROUTING_KEY, events=["incident.opened"])  # type: ignore[arg-type]
    assert not only.wants("incident.acknowledged")


# ----------------------------------------------------------------------- Slack


def slack_texts(block: Any) -> list[str]:
    """Every text of a message."""
    if isinstance(block, dict):
        own = [block["text"]] if isinstance(block.get("text"), str) else []
        return own + [text for value in block.values() for text in slack_texts(value)]
    return [text for item in block for text in slack_texts(item)] if isinstance(block, list) else []


@pytest.mark.parametrize("event", told("slack"))
def test_slack_shows_names_of_the_log_as_text_only(event: str) -> None:
    sent = body_of("slack", event)
    texts = slack_texts(sent)
    assert any("&lt;!channel&gt; &amp;" in text for text in texts) or event == "test"
    for text in texts:
        links = re.findall(r"<([^>]*)>", text)
        assert all(
            link == f"{DASHBOARD}incidents/{incident(event)['id']}|Open the incident" for link in links
        )
        assert "\x1b" not in text and "\u202e" not in text
        assert re.fullmatch(r"([^&]|&(amp|lt|gt);)*", text)
    sections = [
        part for block in sent["blocks"] for part in (block.get("text"), *block.get("fields", [])) if part
    ]
    assert all(part.get("verbatim") is True for part in sections if part["type"] == "mrkdwn")


@settings(max_examples=60, deadline=None)
@given(
    st.text(st.sampled_from('<>&"@x é\n'), max_size=8_000),
    st.integers(0, 200),
    st.sampled_from(["incident.opened", "incident.resolved", "digest"]),
)
@example(" ", 1, "digest")
@example("", 0, "incident.opened")
def test_slack_messages_keep_the_limits_whatever_the_log_holds(text: str, many: int, event: str) -> None:
    rows = [{"title": text, "status": "open", "severity": "major"}] * many
    sent = body_of("slack", event, title=text, summary=text, series=[text] * many, incidents=rows)
    assert 1 <= len(sent["blocks"]) <= 50
    for block in sent["blocks"]:
        if block["type"] == "header":
            assert 1 <= len(block["text"]["text"]) <= 150 and block["text"]["type"] == "plain_text"
        elif "text" in block:
            assert 1 <= len(block["text"]["text"]) <= 3_000
        assert len(block.get("fields", [])) <= 10
        assert all(1 <= len(field["text"]) <= 2_000 for field in block.get("fields", []))


@given(st.text(st.sampled_from("<>&ab"), max_size=50), st.integers(8, 60))
def test_no_entity_is_cut(text: str, limit: int) -> None:
    escaped = slack.escape(text, limit)
    assert len(escaped) <= limit
    assert re.fullmatch(r"([^&<>]|&(amp|lt|gt);)*", escaped)
    if not escaped.endswith("…"):
        back = escaped.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
        assert back == text


# ----------------------------------------------------------------- CloudEvents


@pytest.mark.parametrize("event", told("cloudevents"))
def test_cloudevents_have_the_attributes_of_the_specification(event: str) -> None:
    shape = shape_of("c", settings_of("cloudevents", "https://receiver.example/x"), {})
    assert shape.content_type.startswith("application/cloudevents+json")
    sent = json.loads(shape.body(stored(event, delivery_id="d-7")))
    assert (sent["specversion"], sent["id"], sent["source"]) == ("1.0", "d-7", "/inferwatch")
    assert sent["type"] == f"inferwatch.{event}"
    assert datetime.fromisoformat(sent["time"]).tzinfo is not None
    assert all(re.fullmatch(r"[a-z0-9]{1,20}", name) for name in sent)
    assert sent["data"] == json.loads(stored(event).payload)["data"]
    assert sent.get("subject") == (incident(event)["id"] if event.startswith("incident.") else None)


# --------------------------------------------------------------------- apprise


def test_apprise_sends_title_and_text_without_mentions() -> None:
    with hook(200) as server:
        assert make("apprise", server.url).send(stored("incident.opened")).accepted
        sent = json.loads(server.requests[0][1])
    assert sent["title"].startswith("[major] High p95 latency")
    assert "p95 latency of" in sent["message"] and "Since: 2026-01-31T12:00:00Z" in sent["message"]
    assert "@here" not in sent["title"] + sent["message"] and "\x1b" not in sent["message"]


def test_apprise_uses_no_proxy_of_the_environment() -> None:
    with hook(200) as proxy:
        settings = ChannelSettings(type="apprise", url="jsons://name.invalid/")
        environment = {"http_proxy": proxy.url, "HTTPS_PROXY": proxy.url, "all_proxy": proxy.url}
        ours = AppriseChannel("c", settings, timeout_s=20, environment=environment)
        assert ours.send(stored("incident.opened")).error == "not_accepted"
        assert proxy.requests == []


@pytest.mark.parametrize("inside", [False, True])
def test_a_redirect_that_apprise_follows_passes_the_guard(inside: bool) -> None:
    """To an address in another's clothes, which stays closed even where private ones are open."""
    with hook(200) as inner:
        target = inner.url.replace("127.0.0.1", "[::ffff:127.0.0.1]") if inside else inner.url
        with hook((307, {"location": target})) as outer:
            outcome = make("apprise", outer.url).send(stored("incident.opened"))
        assert (outcome.arrived, len(inner.requests)) == (not inside, int(not inside))
        assert inside == (outcome.error == "target_refused")


@pytest.mark.parametrize("url", ["nonsense", "no-such-service://x", "syslog://", "dbus://"])
def test_apprise_refuses_what_it_does_not_know_and_what_stays_on_this_machine(url: str) -> None:
    ours = AppriseChannel("c", ChannelSettings(type="apprise", url=url), timeout_s=20)
    outcome = ours.send(stored("test"))
    assert outcome.error in ("not_accepted", "target_refused") and not outcome.arrived


def test_a_digest_for_apprise_names_every_incident_that_fits() -> None:
    title, text = message(stored("digest"))
    assert title == "Digest"
    assert text.count("major, open") > 10 and len(text) <= 4_200
    assert HOSTILE not in text
