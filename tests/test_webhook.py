"""Signatures against the reference implementation, the webhook channel and the receiver over real HTTP."""

from __future__ import annotations

import base64
import datetime
import json
import ssl
import subprocess
import threading
from pathlib import Path

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr
from standardwebhooks import Webhook

from monitor.channels.standard_webhooks import BadSignature, parse_secrets, sign, verify
from monitor.channels.webhook import WebhookChannel
from monitor.clock import ManualClock, SystemClock
from monitor.config import ChannelSettings
from monitor.errors import ConfigError
from monitor.listen import Received, Receiver
from storage.types import ClaimedDelivery
from tests.receivers import drip_headers, endless_body, garbage, hang, hook

OLD = "whsec_" + base64.b64encode(b"an old key that is rotated out").decode()
NEW = "whsec_" + base64.b64encode(b"a new key of thirty bytes or so").decode()
NOW_S = 1_767_225_600


def delivery(payload: str = '{"type":"incident.opened"}', delivery_id: str = "d-1") -> ClaimedDelivery:
    return ClaimedDelivery(delivery_id, "i", "incident.opened", "c", payload, 0, 0, None)


def channel(url: str, *, timeout_s: float = 5.0, secret: str | None = NEW, **more: object) -> WebhookChannel:
    settings = ChannelSettings(url=url, secret=SecretStr(secret) if secret else None, allow_private=True)
    return WebhookChannel("c", settings, timeout_s=timeout_s, clock=SystemClock(), **more)  # type: ignore[arg-type]


# ------------------------------------------------------------------- signatures


@given(
    st.binary(min_size=16, max_size=64),
    st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=40),
    st.integers(0, 2**33),
    st.text(st.characters(codec="utf-8"), max_size=200),
)
def test_signatures_are_those_of_the_reference(key: bytes, message_id: str, at_s: int, body: str) -> None:
    secret = "whsec_" + base64.b64encode(key).decode()
    keys = parse_secrets(secret)
    assert keys == [key]
    ours = sign(keys, message_id, at_s, body.encode())["webhook-signature"]
    at = datetime.datetime.fromtimestamp(at_s, datetime.UTC)
    assert ours == Webhook(secret).sign(message_id, at, body)
    assert verify(keys, sign(keys, message_id, at_s, body.encode()), body.encode(), now_s=at_s) == message_id


def test_the_reference_accepts_either_key_of_a_rotation() -> None:
    at_s = int(datetime.datetime.now(datetime.UTC).timestamp())
    headers = sign(parse_secrets(f"{NEW} {OLD}"), "m1", at_s, b'{"a":1}')
    for secret in (NEW, OLD):
        assert Webhook(secret).verify(b'{"a":1}', headers) == {"a": 1}


def test_verify_names_what_is_wrong() -> None:
    keys, body = parse_secrets(NEW), b"{}"
    good = sign(keys, "m1", NOW_S, body)
    for reason, headers, now_s, text in [
        ("missing_header", {k: v for k, v in good.items() if k != "webhook-id"}, NOW_S, body),
        ("bad_timestamp", {**good, "webhook-timestamp": "1e9"}, NOW_S, body),
        ("too_old", good, NOW_S + 301, body),
        ("too_new", good, NOW_S - 301, body),
        ("no_match", good, NOW_S, b"{ }"),
        ("no_match", {**good, "webhook-id": "m2"}, NOW_S, body),
        ("no_match", {**good, "webhook-signature": "v2,abc v1,"}, NOW_S, body),
        ("no_match", {**good, "webhook-signature": "v1,é"}, NOW_S, body),
        ("no_match", sign(parse_secrets(OLD), "m1", NOW_S, body), NOW_S, body),
    ]:
        with pytest.raises(BadSignature) as caught:
            verify(keys, headers, text, now_s=now_s)
        assert caught.value.reason == reason
    assert verify(keys, {k.upper(): v for k, v in good.items()}, body, now_s=NOW_S + 300) == "m1"


@pytest.mark.parametrize("secret", ["", "abc", "whsec_", "whsec_!!!!", "whsec_YWJj", f"{NEW} oops"])
def test_a_wrong_secret_is_refused_and_not_repeated(secret: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011  (the message differs)
        parse_secrets(secret)
    if len(secret) > 6:
        assert secret.removeprefix("whsec_") not in str(caught.value)


def test_an_id_with_a_dot_is_not_signed() -> None:
    with pytest.raises(ValueError, match="dot"):
        sign(parse_secrets(NEW), "a.b", 1, b"")


# --------------------------------------------------------------------- channel


def test_what_arrives_is_verified_by_the_reference() -> None:
    payload = json.dumps(
        {"type": "incident.opened", "data": {"title": "p95 – “высокая”"}}, ensure_ascii=False
    )
    with hook(200) as server:
        outcome = channel(server.url, secret=f"{NEW}\n{OLD}").send(delivery(payload))
        headers, body = server.requests[0]
    assert outcome.status == 200
    assert Webhook(OLD).verify(body, headers) == json.loads(payload)
    assert headers["host"] == server.url.split("/")[2]
    assert headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    ("answer", "status", "error"),
    [
        (204, 204, ""),
        (500, 500, ""),
        ((429, {"retry-after": "7"}), 429, ""),
        (410, 410, ""),
        (endless_body, 200, ""),
        (garbage, None, "broken_response"),
    ],
)
def test_answers(answer: object, status: int | None, error: str) -> None:
    with hook(answer) as server:
        outcome = channel(server.url).send(delivery())
    assert (outcome.status, outcome.error) == (status, error)
    assert outcome.retry_after == ("7" if status == 429 else None)


def test_no_redirect_is_followed() -> None:
    with hook(200) as inner, hook((302, {"location": inner.url})) as outer:
        assert channel(outer.url).send(delivery()).status == 302
        assert inner.requests == []


@pytest.mark.parametrize("answer", [hang(), drip_headers])
def test_one_deadline_for_everything(answer: object) -> None:
    with hook(answer) as server:
        assert channel(server.url, timeout_s=0.5).send(delivery()).error == "timeout"


def test_closing_breaks_off_what_is_on_its_way() -> None:
    with hook(hang()) as server:
        ours = channel(server.url, timeout_s=30)
        outcomes = []
        thread = threading.Thread(target=lambda: outcomes.append(ours.send(delivery())))
        thread.start()
        while not server.requests:
            thread.join(0.01)
        ours.close()
        thread.join(5)
    assert [o.error for o in outcomes] == ["stopped"]
    assert ours.send(delivery()).error == "stopped"


def test_a_refused_connection_is_an_outcome() -> None:
    with hook(200) as server:
        url = server.url
    assert channel(url, timeout_s=2).send(delivery()).error == "connect_failed"


def test_environment_proxies_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with hook(200) as proxy, hook(200) as server:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        monkeypatch.setenv("no_proxy", "")
        assert channel(server.url).send(delivery()).status == 200
        assert proxy.requests == []


def test_secrets_come_from_the_environment_and_stay_out_of_errors() -> None:
    settings = ChannelSettings(url="https://example.org/", secret_env="HOOK")
    with pytest.raises(ConfigError, match="not set"):
        WebhookChannel("c", settings, timeout_s=1, clock=SystemClock(), environment={})
    with pytest.raises(ConfigError) as caught:
        WebhookChannel("c", settings, timeout_s=1, clock=SystemClock(), environment={"HOOK": "hunter2"})
    assert "hunter2" not in str(caught.value)
    with pytest.raises(ConfigError) as caught:
        channel("http://ada:hunter2@example.org/")
    assert "hunter2" not in str(caught.value)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tls")
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", "key.pem"]
    name = ["-subj", "/CN=hook.example", "-addext", "subjectAltName=DNS:hook.example"]
    subprocess.run(
        ["openssl", "req", "-x509", "-days", "2", "-out", "cert.pem", *key, *name],
        cwd=directory,
        check=True,
        capture_output=True,
    )
    return directory


def test_tls_is_verified_for_the_name_while_the_address_is_pinned(certificate: Path) -> None:
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_side.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
    trusting = ssl.create_default_context(cafile=str(certificate / "cert.pem"))
    with hook(200, tls=server_side) as server:
        port = server.server_address[1]
        there = {"resolver": lambda host, port: ["127.0.0.1"]}
        good = channel(f"https://hook.example:{port}/", ssl_context=trusting, **there).send(delivery())
        assert good.status == 200
        assert server.requests[0][0]["host"] == f"hook.example:{port}"
        for url, context in (("https://other.example", trusting), ("https://hook.example", None)):
            outcome = channel(f"{url}:{port}/", ssl_context=context, **there).send(delivery())
            assert outcome.error == "tls_failed"
        assert len(server.requests) == 1


# -------------------------------------------------------------------- receiver


def test_the_receiver_verifies_counts_once_and_refuses() -> None:
    got: list[Received] = []
    with Receiver(secret=NEW, on_event=got.append) as receiver:
        assert channel(receiver.url).send(delivery()).status == 204
        assert channel(receiver.url).send(delivery()).status == 204
        assert channel(receiver.url, secret=OLD).send(delivery(delivery_id="d-2")).status == 401
        assert channel(receiver.url).send(delivery("[1]", "d-3")).status == 400
        assert channel(receiver.url, secret=None).send(delivery(delivery_id="d-4")).status == 401
        assert receiver.wait_until_quiet(quiet_s=0.05)
    assert [(r.delivery_id, r.verified, r.reason) for r in got] == [
        ("d-1", True, "verified"),
        ("d-2", False, "no_match"),
        ("d-3", False, "not_json"),
        ("d-4", False, "missing_header"),
    ]
    assert got[0].payload == {"type": "incident.opened"}


def test_the_receiver_refuses_replays_and_big_bodies() -> None:
    got: list[Received] = []
    clock = ManualClock(NOW_S * 1000)
    body = b"{}"
    with Receiver(secret=NEW, on_event=got.append, clock=clock) as receiver:
        headers = sign(parse_secrets(NEW), "m", NOW_S - 301, body)
        with httpx2.Client(trust_env=False) as client:
            assert client.post(receiver.url, content=body, headers=headers).status_code == 401
            assert client.post(receiver.url, content=bytes(5 << 20)).status_code == 413
    assert [r.reason for r in got] == ["too_old"]


def test_without_a_secret_the_receiver_says_that_nothing_was_verified() -> None:
    got: list[Received] = []
    with Receiver(secret=None, on_event=got.append) as receiver:
        assert channel(receiver.url).send(delivery()).status == 204
    assert [(r.verified, r.reason) for r in got] == [(False, "unsigned")]
