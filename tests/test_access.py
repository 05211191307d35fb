"""Who may do what over HTTP: the decisions, the tokens on both databases, and a real server in front."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, text
from typer.testing import CliRunner

from monitor.api.access import Asked, Policy, Shown, decide, host_name, is_loopback, is_same_origin
from monitor.api.app import create_app
from monitor.api.limits import Buckets, client_key
from monitor.api.login import SESSION_COOKIE, local_target
from monitor.api.server import serve_in_thread
from monitor.cli import build_app
from monitor.clock import ManualClock
from monitor.config import HttpSettings, Settings
from storage.actions import Actor
from storage.engine import connect, reading, upgrade
from storage.names import TokenExists
from storage.tokens import Identity, Tokens
from tests.http_client import Answer, ask
from tests.stored import newest_incident, populate

MARK = {"x-inferwatch": "1"}
ANN = Actor("ann", 1_000)
READER, WRITER = Identity("grafana", "read"), Identity("ann", "write")

asked = st.builds(
    Asked,
    method=st.sampled_from(["GET", "HEAD", "POST", "DELETE", "PATCH"]),
    loopback_client=st.booleans(),
    loopback_host=st.booleans(),
    same_origin=st.booleans(),
    marked=st.booleans(),
)
shown = st.sampled_from(
    [Shown("none")] + [Shown(kind, who) for kind in ("token", "session") for who in (None, READER, WRITER)]
)
policies = st.builds(Policy, st.sampled_from(["auto", "always", "writes"]), st.booleans())


@settings(deadline=None, max_examples=300)
@given(policies, asked, shown, st.booleans())
def test_what_every_decision_keeps_to(policy: Policy, request: Asked, who: Shown, exist: bool) -> None:
    verdict = decide(policy, request, who, exist)
    known = who.identity
    if verdict.status == 200 and not request.safe:
        assert verdict.may_write and verdict.user is not None
        if known is None:  # nobody said who it is: only the laptop case
            assert policy.loopback_bind and request.loopback_client and request.loopback_host
            assert not exist and policy.reads_need != "always" and who.kind != "token"
        else:
            assert known.scope == "write" and verdict.user == known.name
        if who.kind != "token":
            assert request.marked and request.same_origin, "a browser's change proves where it comes from"
    if verdict.status == 200 and request.safe and known is None:
        assert who.kind != "token", "a wrong token is told, not ignored"
        assert policy.reads_need == "writes" or (
            policy.reads_need == "auto"
            and policy.loopback_bind
            and request.loopback_client
            and request.loopback_host
        )
    if verdict.may_write and known is not None:
        assert known.scope == "write"
    if verdict.status != 200:
        assert verdict.reason and verdict.user is None and not verdict.may_write


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.8.9.1", True),
        ("localhost", True),
        ("LOCALHOST", True),
        ("::1", True),
        ("[::1]", True),
        ("::ffff:127.0.0.1", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("", False),
        (None, False),
    ],
)
def test_loopback_names(host: str | None, loopback: bool) -> None:
    assert is_loopback(host) is loopback


@pytest.mark.parametrize(
    ("origin", "site", "host", "same"),
    [
        (None, None, "127.0.0.1:8800", True),
        ("http://127.0.0.1:8800", "same-origin", "127.0.0.1:8800", True),
        ("https://watch.example", None, "watch.example", True),
        ("https://watch.example:443", None, "watch.example", True),
        ("http://127.0.0.1:9999", None, "127.0.0.1:8800", False),
        ("http://evil.example", None, "127.0.0.1:8800", False),
        ("null", None, "127.0.0.1:8800", False),
        (None, "cross-site", "127.0.0.1:8800", False),
        (None, "same-site", "127.0.0.1:8800", False),
        (None, "none", "127.0.0.1:8800", False),
        ("http://127.0.0.1:8800", "cross-site", "127.0.0.1:8800", False),
        ("http://[", None, "127.0.0.1:8800", False),
        ("file://127.0.0.1:8800", None, "127.0.0.1:8800", False),
        ("http://", None, "", False),
    ],
)
def test_origins(origin: str | None, site: str | None, host: str, same: bool) -> None:
    assert is_same_origin(origin, site, host) is same


def test_the_name_in_a_host_header() -> None:
    assert host_name("127.0.0.1:8800") == "127.0.0.1" and host_name("[::1]:8800") == "::1"
    assert host_name("[") is None and host_name(None) is None


def test_nobody_is_sent_to_another_site() -> None:
    assert local_target("/incidents/1?x=2") == "/incidents/1?x=2"
    for target in ("https://evil.example", "//evil.example", "/\\evil", "", "x", "/a\nb", "/login"):
        assert local_target(target) == "/"


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3_000), st.sampled_from("ab")), max_size=60))
def test_a_bucket_lets_pass_what_its_rate_allows(steps: list[tuple[int, str]]) -> None:
    clock = ManualClock(0)
    buckets = Buckets(2.0, 5.0, clock.monotonic_s)
    passed: dict[str, int] = {"a": 0, "b": 0}
    for wait_ms, key in steps:
        clock.advance(wait_ms)
        wait_s = buckets.take(key)
        assert 0.0 <= wait_s <= 0.5
        passed[key] += wait_s == 0.0
        assert passed[key] <= 5 + clock.at_ms / 500
    clock.advance(2_500)
    assert buckets.take("a") == 0.0, "after a burst's worth of waiting there is room"


def test_buckets_belong_to_addresses_and_ipv6_networks() -> None:
    assert client_key("2001:db8::1") == client_key("2001:db8::ffff") != client_key("2001:db8:1::1")
    assert client_key("10.0.0.1") != client_key("10.0.0.2")
    clock = ManualClock(0)
    buckets = Buckets(1.0, 1.0, clock.monotonic_s)
    for i in range(10_001):
        buckets.take(str(i))
    assert buckets.take("0") == 0.0, "the eldest is forgotten, so memory has a bound"


# ------------------------------------------------------------------------------------ tokens


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    url = (
        f"sqlite:///{tmp_path / 't.db'}"
        if request.param == "sqlite"
        else request.getfixturevalue("postgres_database")
    )
    found = connect(url)
    upgrade(found)
    yield found
    found.dispose()


def test_tokens_are_kept_as_hashes_and_end_with_their_sessions(engine: Engine) -> None:
    tokens = Tokens(engine)
    assert not tokens.exist() and tokens.check("", 0) is None
    secret = tokens.create("ann", "write", ANN)
    assert tokens.exist() and len(secret) > 40
    with pytest.raises(TokenExists):
        tokens.create("ann", "read", ANN)
    for wrong in (
        {"name": "", "scope": "read"},
        {"name": "x", "scope": "all"},
        {"name": "a\0", "scope": "read"},
    ):
        with pytest.raises(ValueError, match=r".+"):
            tokens.create(actor=ANN, **wrong)
    assert tokens.check(secret, 5_000) == Identity("ann", "write")
    assert tokens.list()[0]["last_used_at_ms"] == 5_000
    tokens.check(secret, 6_000)
    assert tokens.list()[0]["last_used_at_ms"] == 5_000, "noted once a minute"
    for wrong_secret in (secret + "x", secret[:-1], "x" * 10_000, "\ud800"):
        assert tokens.check(wrong_secret, 7_000) is None
    session = tokens.open_session(WRITER, 10_000, 1_000)
    assert tokens.session(session, 10_999) == WRITER
    assert tokens.session(session, 11_000) is None, "it has ended"
    assert tokens.session(secret, 10_500) is None, "a token is no session"
    later = tokens.open_session(WRITER, 20_000, 1_000)
    tokens.close_session(later)
    assert tokens.session(later, 20_001) is None
    other = tokens.open_session(WRITER, 20_000, 10_000)
    with reading(engine) as connection:
        stored = repr(
            [connection.execute(text(f"SELECT * FROM {t}")).all() for t in ("api_tokens", "http_sessions")]
        )
        actions = connection.execute(text("SELECT actor, action, subject FROM actions ORDER BY id")).all()
    assert secret not in stored and other not in stored and secret.removeprefix("iw_") not in stored
    assert tokens.revoke("ann", ANN) and not tokens.revoke("ann", ANN)
    assert tokens.check(secret, 8_000) is None and tokens.session(other, 20_001) is None
    assert [tuple(row) for row in actions] == [("ann", "token.created", "ann")]
    again = tokens.create("ann", "read", Actor("bob", 30_000))
    assert tokens.session(other, 20_001) is None, "nor does a namesake bring it back"
    assert tokens.check(again, 30_001) == Identity("ann", "read")


def test_the_commands(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'c.db'}"
    upgrade(connect(url))
    run, app = CliRunner().invoke, build_app("tokens")
    made = run(app, ["tokens", "create", "ann", "--scope", "write", "--database", url])
    secret = made.stdout.strip()
    assert made.exit_code == 0 and secret.startswith("iw_") and secret not in made.stderr
    assert Tokens(connect(url)).check(secret, 1) == WRITER
    listed = run(app, ["tokens", "list", "--json", "--database", url])
    assert [(row["name"], row["scope"]) for row in json.loads(listed.stdout)] == [("ann", "write")]
    assert secret not in listed.stdout
    assert run(app, ["tokens", "create", "ann", "--database", url]).exit_code == 1
    assert run(app, ["tokens", "create", "bob", "--scope", "all", "--database", url]).exit_code == 2
    assert run(app, ["tokens", "revoke", "ann", "--database", url]).exit_code == 0
    assert run(app, ["tokens", "revoke", "ann", "--database", url]).exit_code == 1


# ------------------------------------------------------------------------------------ a real server


Serve = Callable[..., str]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """`serve(host=..., clock=..., **http options)` -> its address; a small populated SQLite database."""
    open_ones: list[Any] = []
    url = f"sqlite:///{tmp_path / 'served.db'}"
    populate(url)

    def start(clock: Any = None, **options: Any) -> str:
        http = HttpSettings(**{"max_requests_per_minute": 60_000, **options})
        engine = connect(url)
        app = create_app(engine, health=lambda: {"secret": 1}, settings=Settings(http=http), clock=clock)
        handle = serve_in_thread(app, "127.0.0.1", 0)
        open_ones.append((handle, engine))
        return handle.url

    yield start
    for handle, engine in open_ones:
        handle.stop()
        engine.dispose()


def token(site_path: Path, name: str, scope: str) -> dict[str, str]:
    secret = Tokens(connect(f"sqlite:///{site_path / 'served.db'}")).create(name, scope, ANN)
    return {"authorization": f"Bearer {secret}"}


def routes() -> list[tuple[str, str]]:
    engine = connect("sqlite:///unused.db")
    described = create_app(engine, health=dict).openapi()
    return sorted((method.upper(), path) for path, ways in described["paths"].items() for method in ways)


OPEN = {("GET", "/healthz"), ("GET", "/readyz"), ("POST", "/login")}


def test_every_route_wants_a_token_where_one_is_required(serve: Serve, tmp_path: Path) -> None:
    site = serve(host="0.0.0.0")
    reader = token(tmp_path, "reader", "read")
    assert len(routes()) > 30
    for method, path in [*routes(), ("GET", "/"), ("GET", "/incidents/1"), ("GET", "/nothing")]:
        if (method, path) in OPEN or path == "/api/v1/events":
            continue
        answer = ask(site, path.replace("{", "").replace("}", ""), method)
        assert answer.status == 401, f"{method} {path}"
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.headers["www-authenticate"].startswith("Bearer")
        if method != "GET":
            refused = ask(site, path, method, headers=reader)
            assert refused.status == 403, f"{method} {path} with a token that may only read"
    assert ask(site, "/api/v1/events").status == 401
    assert ask(site, "/api/v1/incidents", headers=reader).status == 200
    assert ask(site, "/metrics", headers=reader).status == 200
    assert ask(site, "/api/v1/incidents", headers={"authorization": "Bearer nothing"}).status == 401
    assert ask(site, "/api/v1/incidents", headers={"authorization": "Basic YTpi"}).status == 401


def test_health_is_open_and_says_nothing_more_to_a_stranger(serve: Serve, tmp_path: Path) -> None:
    site = serve(host="0.0.0.0")
    assert ask(site, "/healthz").json == {"status": "ok"}
    assert ask(site, "/readyz").json == {"status": "ready"}
    assert ask(site, "/healthz", headers=token(tmp_path, "r", "read")).json == {"status": "ok", "secret": 1}
    assert ask(serve(), "/healthz").json == {"status": "ok", "secret": 1}


@pytest.mark.parametrize(("mode", "status"), [("auto", 200), ("always", 401), ("writes", 200)])
def test_reading_on_loopback_by_setting(serve: Serve, mode: str, status: int) -> None:
    site = serve(require_token=mode)
    assert ask(site, "/api/v1/incidents").status == status
    assert ask(serve(host="0.0.0.0", require_token=mode), "/api/v1/series").status == (
        200 if mode == "writes" else 401
    )


def acknowledge(site: str, headers: dict[str, str]) -> Answer:
    return ask(site, f"/api/v1/incidents/{newest_incident()}/acknowledge", "POST", {}, headers)


def test_the_laptop_case_ends_with_the_first_token(serve: Serve, tmp_path: Path) -> None:
    site = serve()
    host = site.removeprefix("http://")
    assert acknowledge(site, {}).status == 403, "a form could have sent it"
    assert acknowledge(site, {**MARK, "origin": "http://evil.example"}).status == 403
    assert acknowledge(site, {**MARK, "sec-fetch-site": "cross-site"}).status == 403
    assert acknowledge(site, {**MARK, "host": "rebound.example"}).status == 401, "DNS rebinding"
    assert ask(site, "/api/v1/incidents", headers={"host": "rebound.example"}).status == 401
    done = acknowledge(site, {**MARK, "origin": f"http://{host}", "sec-fetch-site": "same-origin"})
    assert done.status == 200 and done.json["status"] == "acknowledged"
    assert done.json["events"][-1]["actor"] == "local"
    writer = token(tmp_path, "ann", "write")
    assert acknowledge(site, MARK).status == 401, "from now on it takes a token"
    assert acknowledge(site, writer).status == 200
    assert ask(site, "/api/v1/incidents").status == 200, "reading on loopback stays open"


def test_a_session_needs_proof_of_origin_and_ends(serve: Serve, tmp_path: Path) -> None:
    clock = ManualClock(1_800_000_000_000)
    site = serve(host="0.0.0.0", clock=clock, session_h=1)
    secret = token(tmp_path, "ann", "write")["authorization"].removeprefix("Bearer ")
    assert ask(site, "/login", "POST", {"token": "iw_wrong"}).status == 401
    assert ask(site, "/login", "POST", {"token": secret}, {"origin": "http://evil.example"}).status == 403
    for body in (b"", b"[]", b"\xff", b'{"token": 5}', b"[" * 20_000):
        assert ask(site, "/login", "POST", raw=body).status == 422
    opened = ask(site, "/login", "POST", {"token": secret})
    assert opened.status == 200 and opened.json == {"user": "ann", "may_write": True}
    cookie = opened.headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=strict" in cookie and "Max-Age=3600" in cookie
    assert secret not in cookie
    mine = {"cookie": cookie.partition(";")[0]}
    assert ask(site, "/api/v1/incidents", headers=mine).status == 200
    assert acknowledge(site, mine).status == 403
    assert acknowledge(site, {**mine, **MARK, "origin": "https://evil.example"}).status == 403
    assert acknowledge(site, {**mine, **MARK}).status == 200
    assert ask(site, "/api/v1/incidents", headers={"cookie": f"{SESSION_COOKIE}=forged"}).status == 401
    clock.advance(3_600_000)
    assert ask(site, "/api/v1/incidents", headers=mine).status == 401
    again = {"cookie": ask(site, "/login", "POST", {"token": secret}).headers["set-cookie"].partition(";")[0]}
    assert ask(site, "/logout", "POST", headers=again).status == 403
    assert ask(site, "/logout", "POST", headers={**again, **MARK}).status == 204
    assert ask(site, "/api/v1/incidents", headers=again).status == 401


def test_a_browser_gets_the_form_and_comes_back_to_its_page(serve: Serve, tmp_path: Path) -> None:
    site = serve(host="0.0.0.0")
    secret = token(tmp_path, "ann", "read")["authorization"].removeprefix("Bearer ")
    page = ask(site, "/incidents/1?a=%22b", headers={"accept": "text/html"})
    assert page.status == 401 and page.headers["content-type"].startswith("text/html")
    assert 'value="/incidents/1?a=%22b"' in page.text and "<script" not in page.text
    assert ask(site, "/style.css").status == 200 and ask(site, "/login").status == 200
    form = {"content-type": "application/x-www-form-urlencoded"}
    wrong = ask(site, "/login", "POST", raw=b"token=iw_wrong&next=/", headers=form)
    assert wrong.status == 401 and "not known" in wrong.text
    sent = ask(site, "/login", "POST", raw=f"token={secret}&next=//evil.example".encode(), headers=form)
    assert (sent.status, sent.headers["location"]) == (303, "/")
    sent = ask(site, "/login", "POST", raw=f"token={secret}&next=/incidents/1".encode(), headers=form)
    assert (sent.status, sent.headers["location"]) == (303, "/incidents/1")
    mine = {"cookie": sent.headers["set-cookie"].partition(";")[0], "accept": "text/html"}
    assert ask(site, "/", headers=mine).status == 200
    assert acknowledge(site, {**mine, **MARK}).status == 403, "its token may only read"


def test_too_much_is_refused(serve: Serve) -> None:
    clock = ManualClock(1_800_000_000_000)
    site = serve(clock=clock, max_requests_per_minute=60, max_body_bytes=1_024)
    assert ask(site, "/api/v1/incidents/1/notes", "POST", {"text": "x" * 2_000}, MARK).status == 413
    chunked = {**MARK, "transfer-encoding": "chunked"}
    assert send_chunks(site, chunked, [b"x" * 600] * 4) == 413
    answers = [ask(site, "/api/v1/models").status for _ in range(30)]
    assert answers[:18] == [200] * 18 and answers[-5:] == [429] * 5
    refused = ask(site, "/api/v1/models")
    assert refused.status == 429 and refused.headers["retry-after"] == "1"
    assert refused.headers["content-security-policy"]
    clock.advance(5_000)
    assert ask(site, "/api/v1/models").status == 200


def send_chunks(site: str, headers: dict[str, str], chunks: list[bytes]) -> int:
    """The status that a chunked body gets; the server may close before all of it is sent."""
    host, port = site.removeprefix("http://").split(":")
    lines = [f"{name}: {value}" for name, value in {"host": f"{host}:{port}", **headers}.items()]
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        head = "\r\n".join(["POST /api/v1/incidents/1/notes HTTP/1.1", *lines, "", ""])
        connection.sendall(head.encode())
        for chunk in chunks:
            connection.sendall(f"{len(chunk):x}\r\n".encode() + chunk + b"\r\n")
        connection.sendall(b"0\r\n\r\n")
        return int(connection.recv(64).split()[1])


def test_a_database_that_is_away_lets_nobody_in_and_keeps_health(tmp_path: Path) -> None:
    engine = connect(f"sqlite:///{tmp_path / 'gone' / 'missing.db'}")
    app = create_app(engine, health=dict, settings=Settings(http=HttpSettings(host="0.0.0.0")))
    handle = serve_in_thread(app, "127.0.0.1", 0)
    try:
        assert ask(handle.url, "/api/v1/series", headers={"authorization": "Bearer x"}).status == 503
        assert ask(handle.url, "/healthz", headers={"authorization": "Bearer x"}).status == 200
        assert ask(handle.url, "/api/v1/series").status == 401
        assert ask(handle.url, "/login", "POST", {"token": "x"}).status == 503
    finally:
        handle.stop()
        engine.dispose()
