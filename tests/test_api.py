"""The HTTP API and the pages, over real HTTP on a real database."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.openapi.models import OpenAPI

from monitor.api.app import create_app
from monitor.api.server import serve_in_thread
from monitor.errors import ConfigError
from storage.engine import connect
from tests.stored import CALM, HOSTILE, populate

HEALTH: dict[str, Any] = {"partitions": {}, "database_reachable": True}


@pytest.fixture(scope="module", params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a server over a populated database of each kind."""
    if request.param == "sqlite":
        url, drop = f"sqlite:///{tmp_path_factory.mktemp('api') / 'api.db'}", None
    else:
        from tests import services

        server = request.getfixturevalue("postgres_url")
        url = services.create_database(server)
        drop = (server, url)
    populate(url)
    engine = connect(url)
    handle = serve_in_thread(create_app(engine, health=lambda: HEALTH), "127.0.0.1", 0)
    yield handle.url
    handle.stop()
    engine.dispose()
    if drop is not None:
        services.drop_database(*drop)


def get(url: str) -> tuple[int, dict[str, str], str]:
    """Status, headers (lower case) and text."""
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.status, {k.lower(): v for k, v in answer.headers.items()}, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, {k.lower(): v for k, v in error.headers.items()}, error.read().decode()


def data(url: str) -> Any:
    status, _, text = get(url)
    assert status == 200, text
    return json.loads(text)


def test_incidents_come_newest_first_and_can_be_filtered(site: str) -> None:
    rows = data(f"{site}/api/v1/incidents")
    assert [row["status"] for row in rows] == ["open", "resolved"]
    assert rows[0]["series"] == [HOSTILE]
    assert re.fullmatch(r"1970-01-01T00:0\d:00Z", rows[0]["started_at"])
    assert [row["status"] for row in data(f"{site}/api/v1/incidents?status=resolved")] == ["resolved"]
    assert len(data(f"{site}/api/v1/incidents?limit=1")) == 1


def test_an_incident_is_found_by_its_id_or_its_beginning_with_all_that_belongs_to_it(site: str) -> None:
    wanted = data(f"{site}/api/v1/incidents")[0]["incident_id"]
    found = data(f"{site}/api/v1/incidents/{wanted[:10]}")
    assert found["incident_id"] == wanted
    assert found["alerts"][0]["top_features"][0]["feature"] == "latency_p99_ms"
    assert found["alerts"][0]["top_features"][1]["observed"] is None
    assert found["events"][0]["kind"] == "opened"
    assert [row["channel"] for row in found["deliveries"]] == ["oncall"]


def test_the_other_lists(site: str) -> None:
    assert {row["series"] for row in data(f"{site}/api/v1/series")} >= {CALM, HOSTILE}
    windows = data(f"{site}/api/v1/windows?series=chat%2Fb")
    assert [row["window_start"] for row in windows] == [f"1970-01-01T00:0{i}:00Z" for i in range(3)]
    assert windows[0]["latency_p99_ms"] is None or windows[0]["request_count"] == 60.0
    assert len(data(f"{site}/api/v1/alerts")) == 2
    assert {row["event"] for row in data(f"{site}/api/v1/deliveries")} == {
        "incident.opened",
        "incident.resolved",
    }
    assert data(f"{site}/api/v1/models") == []


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/api/v1/incidents/nothing", 404),
        ("/incidents/nothing", 404),
        ("/api/v1/nothing", 404),
        ("/api/v1/windows", 422),
        ("/api/v1/incidents?limit=0", 422),
        ("/api/v1/incidents?status=broken", 422),
        ("/api/v1/incidents?since=yesterday", 422),
        ("/api/v1/alerts?since=999999999w", 200),
        ("/api/v1/alerts?series=a%00b", 422),
        ("/api/v1/windows?series=a%00b", 422),
        ("/api/v1/incidents/a%00b", 404),
    ],
)
def test_errors_are_problem_documents(site: str, path: str, status: int) -> None:
    got, headers, text = get(site + path)
    assert got == status, text
    if status >= 400:
        assert headers["content-type"] == "application/problem+json"
        problem = json.loads(text)
        assert problem["status"] == status and problem["detail"] and problem["title"]


@pytest.mark.parametrize("path", ["/", "/api/v1/incidents", "/api/v1/nothing", "/static/app.js", "/metrics"])
def test_every_answer_forbids_foreign_and_inline_code(site: str, path: str) -> None:
    _, headers, _ = get(site + path)
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy and "script-src 'self';" in policy and "unsafe" not in policy
    assert headers["x-content-type-options"] == "nosniff"


def test_health_readiness_and_metrics(site: str) -> None:
    assert data(f"{site}/healthz")["status"] == "ok"
    assert data(f"{site}/readyz")["status"] == "ready"
    status, headers, text = get(f"{site}/metrics")
    assert status == 200 and headers["content-type"].startswith("text/plain")
    assert "inferwatch_records_total" in text or "# TYPE inferwatch_records" in text


def test_readiness_ends_when_commits_fail_or_the_database_is_gone(tmp_path: Path) -> None:
    engine = connect(f"sqlite:///{tmp_path / 'gone' / 'missing.db'}")
    state: dict[str, Any] = {"database_reachable": False}
    handle = serve_in_thread(create_app(engine, health=lambda: state), "127.0.0.1", 0)
    try:
        assert get(f"{handle.url}/healthz")[0] == 200
        assert get(f"{handle.url}/readyz")[0] == 503
        status, headers, _ = get(f"{handle.url}/api/v1/incidents")
        assert (status, headers["content-type"]) == (503, "application/problem+json")
    finally:
        handle.stop()
        engine.dispose()


def test_the_description_is_valid_openapi_and_names_every_documented_path(site: str) -> None:
    described = data(f"{site}/api/v1/openapi.json")
    OpenAPI.model_validate(described)
    text = (Path(__file__).parent.parent / "docs/http.md").read_text()
    documented = set(re.findall(r"^\| `([A-Z]+ /[^`]+)`", text, re.M))
    routes = {
        f"{method.upper()} {re.sub(r'{(incident|alert|silence|delivery)_id}', '{id}', path)}"
        for path, methods in described["paths"].items()
        for method in methods
    }
    assert routes == documented


def test_a_port_in_use_is_a_configuration_error(site: str) -> None:
    engine = connect("sqlite:///unused.db")
    with pytest.raises(ConfigError, match="cannot be bound"):
        serve_in_thread(create_app(engine, health=dict), "127.0.0.1", int(site.rpartition(":")[2]))
